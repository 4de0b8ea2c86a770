"""Networking for clients: the event loop, the listening sockets, and the HTTP/2 and HTTP/1.1 connections."""
