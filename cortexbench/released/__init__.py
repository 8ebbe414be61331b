"""CortexBench's released demonstrations, converted to our layout."""
