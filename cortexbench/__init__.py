"""CortexBench: suites, tasks, seeds and encoders as independent cells, run anywhere, joined into one table."""
