"""The client API: one module for each service of etcd, the HTTP pages, and `services.py`, which puts them together."""
