"""Calibration, checks, views and fault injection for cameras."""
