"""Snapshots and backups: their bytes, their files, when one is taken, how a peer or a client gets it."""
