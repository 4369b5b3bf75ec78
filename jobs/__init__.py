"""Thin entry points: each is a docstring and a call."""
