"""Camera drivers, one source per file."""
