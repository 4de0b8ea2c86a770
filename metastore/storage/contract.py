"""The old place of the engine contract suite, kept for one release: use `metastore.testing.engine_contract`."""

from __future__ import annotations

import warnings

from ..testing.engine_contract import EngineContract

__all__ = ["EngineContract"]

warnings.warn(
    "metastore.storage.contract has moved to metastore.testing.engine_contract", DeprecationWarning, stacklevel=2
)
