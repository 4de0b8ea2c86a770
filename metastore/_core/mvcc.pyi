"""The revisioned key-value store over an engine. Requests and replies are encoded messages of etcd's KV service."""

from metastore._core.engine import Engine
from metastore._core.leases import Leases
from metastore._core.ordered_map import OrderedMap

class Store:
    """Keys and their history. One thread at a time uses a store."""

    cluster_id: int  # this and the next two appear in the headers of replies
    member_id: int
    raft_term: int
    stale: bool  # the engine holds a part of an entry that will be applied again
    def __init__(self, engine: Engine, cluster_id: int = 0, member_id: int = 0) -> None: ...
    @property
    def engine(self) -> Engine: ...
    @property
    def overlay(self) -> OrderedMap: ...  # what operations wrote since the last commit
    @property
    def revision(self) -> int: ...  # the current main revision
    @property
    def compact_revision(self) -> int: ...  # revisions below are gone; -1: never compacted
    @property
    def leases(self) -> Leases: ...
    @property
    def settled(self) -> bool: ...  # no operation is half done, so what is not read at a revision is whole, too
    @property
    def spilled(self) -> bool: ...  # the engine holds a part of an unfinished entry
    def get_meta(self, name: bytes) -> bytes | None: ...
    def put_meta(self, name: bytes, value: bytes) -> None: ...  # the next commit writes it
    def reload(self) -> None: ...  # after the engine's contents were replaced; raises DamagedData
    def execute(self, kind: int, body: bytes, want: bool = True) -> bytes | None:
        """Apply one operation that is no transaction (kinds: op.pyi). Return the reply, or None unless `want`. Raises
        ApiError and FormatError; nothing is changed then."""

    def put(self, body: bytes) -> bytes: ...  # raises ApiError
    def delete_range(self, body: bytes) -> bytes: ...  # raises ApiError
    def compact(self, body: bytes) -> bytes: ...  # raises ApiError
    def range_reply(self, body: bytes, term: int | None = None) -> bytes:
        """Answer a RangeRequest. `term` goes into the header; the default is raft_term. Raises ApiError."""

    def undo(self) -> None: ...  # drop what the operation under way has written
    def commit(self, index: int, term: int) -> None:
        """Hand everything written since the last commit to the engine, in one write with the log position. Raises what
        Engine.write raises."""
