"""Robots behind one interface, the safety filter between them and policies, and the control loop that drives them."""
