"""Compiled hot paths."""
