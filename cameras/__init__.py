"""Colour and depth cameras, live, recorded and simulated, behind one interface."""
