"""Grounding, metrics and the report."""
