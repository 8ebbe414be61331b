"""Which images are worth seeing how often: scores by masked reconstruction, weights, and the images of an epoch."""
