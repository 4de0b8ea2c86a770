"""The memory engine, as the entry point `metastore.storage` names it."""

from __future__ import annotations

from metastore._core.engine import MemoryEngine

__all__ = ["MemoryEngine"]
