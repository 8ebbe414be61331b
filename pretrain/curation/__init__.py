"""Image curation: scores by masked reconstruction, weights, and the images of an epoch."""
