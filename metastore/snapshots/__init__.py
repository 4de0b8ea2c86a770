"""Snapshots and backups: their format, their files, when they are taken, and how peers and clients receive them."""
