"""Reads of single keys by threads of this process, which do not wait for the loop's thread."""

from typing import Any

from metastore._core.kv_server import KVServer
from metastore._core.quiet import Quiet

MISSED: object  # the reader must use the queue

class DirectReads(Quiet):  # the conditions for `open` are in the .pyx
    @property
    def able(self) -> bool: ...  # the engine can be read so
    @property
    def served(self) -> int: ...  # reads that did not miss
    def __init__(self, server: KVServer, made: type[Any]) -> None: ...  # `made`: the class of the results
    @property
    def inside(self) -> int: ...  # threads that are in an engine that lets others have their turn
    def close(self) -> None: ...  # every read misses from now on; from any thread
    def get(self, key: object, keys_only: bool = False) -> Any: ...  # a result, None for no such key, or MISSED
