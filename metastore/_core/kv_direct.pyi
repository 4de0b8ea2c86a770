"""Reads of single keys by threads of this process, which do not wait for the loop's thread."""

from collections.abc import Callable
from typing import Any

from metastore._core.kv_server import KVServer

MISSED: object  # the reader must use the queue

class DirectReads:
    open: bool  # the loop's thread sets it before it waits, and clears it after that; the conditions are in the .pyx
    @property
    def able(self) -> bool: ...  # the engine can be read so
    @property
    def served(self) -> int: ...  # reads that did not miss
    # `made`: the class of the results; `pause` sleeps some 0.1 ms without the GIL
    def __init__(self, server: KVServer, made: type[Any], pause: Callable[[], object]) -> None: ...
    @property
    def inside(self) -> int: ...  # threads that are in an engine that lets others have their turn
    def close(self) -> None: ...  # every read misses from now on; from any thread
    def get(self, key: object, keys_only: bool = False) -> Any: ...  # a result, None for no such key, or MISSED
