"""Sparse update: which parameters learn, and how that choice is made."""
