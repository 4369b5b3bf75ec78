"""Recommenders that know items by their ids: sequential networks and counts."""
