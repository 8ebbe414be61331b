"""How fast programs and networks are at batch 1, and how far that is from what the machine can do."""
