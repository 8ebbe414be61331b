"""Simulators behind one gymnasium contract. Nothing here imports torch, so workers start in a second."""
