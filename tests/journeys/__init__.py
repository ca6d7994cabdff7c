"""Somebody's first commands, one after the other."""
