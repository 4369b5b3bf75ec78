"""Engines that write recommendations."""
