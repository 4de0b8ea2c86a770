"""The memory engine, under the name that the entry point of `metastore.storage` gives."""

from __future__ import annotations

from metastore._core.engine import MemoryEngine

__all__ = ["MemoryEngine"]
