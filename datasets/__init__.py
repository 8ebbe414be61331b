"""Demonstrations: one contract for every format, windows, statistics, the token cache, the writer."""
