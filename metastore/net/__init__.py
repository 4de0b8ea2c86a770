"""Sockets: the selector loop, and the connections of clients."""
