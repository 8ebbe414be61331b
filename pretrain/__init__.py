"""The encoder's own training. A layer beside `policies`: the two never import each other."""
