"""What frozen features are good for: nearest neighbours, linear and dense probes."""
