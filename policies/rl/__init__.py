"""Reinforcement learning by stable-baselines3, with the encoder outside of the learner."""
