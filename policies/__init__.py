"""Demonstrations, token caches, behaviour cloning and evaluation."""
