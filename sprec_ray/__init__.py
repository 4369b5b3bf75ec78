"""Self-play preference training for LLM recommenders on Ray."""

__version__ = "0.2.0"
