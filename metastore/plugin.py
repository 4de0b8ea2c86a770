"""What plug-ins are written with: storage engines, codecs.

An engine subclasses `Engine`; its views are engines that are only read. Each write stores its log position under the
key `APPLIED_KEY`. `metastore.testing.engine_contract.EngineContract` tests an engine. A codec has the shape of `Codec`.
"""

from __future__ import annotations

from ._core.engine import APPLIED_KEY, Engine
from .errors import EngineBusy, EngineDamaged, EngineFailed, MetaStoreError
from .ports import Codec

__all__ = ["APPLIED_KEY", "Codec", "Engine", "EngineBusy", "EngineDamaged", "EngineFailed", "MetaStoreError"]
