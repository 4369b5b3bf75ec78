"""Thin entry points: each reads its arguments, makes a call and prints the outcome."""
