"""Depth: encodings, dense heads, the depth estimator."""
