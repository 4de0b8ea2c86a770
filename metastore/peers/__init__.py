"""Connections between members: handshakes, message streams, and joining a cluster."""
