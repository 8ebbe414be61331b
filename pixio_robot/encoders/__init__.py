"""Encoders: Pixio's network, loaders for other networks, baselines, preprocessing."""
