"""Tests; a package, so that helpers are imported by their place."""
