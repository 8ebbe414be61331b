"""CortexBench: every suite, task, encoder and seed is an independent run; all of them give one table."""
