"""Pickles read as data: a machine that knows no import, stand-ins for numpy and torch, nothing that runs code."""
