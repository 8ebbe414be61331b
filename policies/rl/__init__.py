"""Reinforcement learning with stable-baselines3, on tokens of an encoder that is not part of the learner."""
