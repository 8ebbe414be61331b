"""CortexBench's released demonstrations, converted once into our layout."""
