"""Robots behind one interface, the safety filter, and the control loop that drives them."""
