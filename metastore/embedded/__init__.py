"""The node as a Python object."""
