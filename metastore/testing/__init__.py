"""Tests for the authors of plug-ins."""
