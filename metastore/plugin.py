"""What plug-ins are written with: storage engines, codecs. `plugin.pyi` is the contract, word by word.

An engine subclasses `Engine`; its views are engines that are only read. Each write stores its log position under the
key `APPLIED_KEY`. A codec has the shape of `Codec`. `metastore.testing` has the suites that test both.
"""

from __future__ import annotations

from ._core.engine import APPLIED_KEY, Engine
from ._core.ordered_map import OrderedMap as Batch
from .errors import (
    ConfigError,
    DamagedData,
    DataDirInUse,
    DiskFailed,
    EngineBusy,
    EngineDamaged,
    EngineFailed,
    EngineFull,
    FormatError,
    MetaStoreError,
)
from .ports import CONTRACT, Codec
from .settings import parse_duration, parse_size

#: A view of an engine: an engine of which only the reading methods are called.
View = Engine

__all__ = [
    "APPLIED_KEY", "CONTRACT", "Batch", "Codec", "ConfigError", "DamagedData", "DataDirInUse", "DiskFailed", "Engine",
    "EngineBusy", "EngineDamaged", "EngineFailed", "EngineFull", "FormatError", "MetaStoreError", "View",
    "parse_duration", "parse_size",
]  # fmt: skip
