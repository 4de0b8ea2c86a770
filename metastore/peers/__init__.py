"""Connections between members: greetings, streams, joining."""
