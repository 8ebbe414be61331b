"""Exported policies at work: bundles, and what runs them without torch."""
