"""The parts of a transaction: conditions (`Compare`) and operations (`Op`).

node.txn(
    compare=[Compare.missing("/lock")],
    success=[Op.put("/lock", "mine")],
    failure=[Op.range("/lock")],
)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from .arguments import Key, as_bytes, named, number, several
from .requests import (
    SortOrder,
    SortTarget,
    delete_request,
    end_bytes,
    messages,
    prefix_range,
    put_request,
    range_request,
    txn_request,
)

Relation = Literal["=", "!=", ">", "<"]
_RELATIONS = {"=": 0, ">": 1, "<": 2, "!=": 3}


class Compare:
    """A condition of a transaction. Make one by one of the builders below.

    Each compares one number or the value of `key` with an operand; a `relation` is "=", "!=", ">" or "<". With a
    `range_end` the condition must hold for every key in [key, range_end). For a key that is missing all numbers are 0.
    All builders raise TypeError for a key that is neither bytes nor str, and ValueError for another relation or for a
    number that does not fit into 64 bits.
    """

    __slots__ = ("message",)

    def __init__(self, message: object) -> None:
        #: The Compare message.
        self.message: Any = message

    @staticmethod
    def exists(key: Key) -> Compare:
        """The key exists."""
        return Compare.version(key, ">", 0)

    @staticmethod
    def missing(key: Key) -> Compare:
        """The key does not exist."""
        return Compare.version(key, "=", 0)

    @staticmethod
    def value(key: Key, relation: Relation, value: Key, *, range_end: Key | None = None) -> Compare:
        """Compare the value, byte by byte; false where the key is missing."""
        return _compare(key, relation, range_end, target=3, value=as_bytes(value, "value"))

    @staticmethod
    def version(key: Key, relation: Relation, version: int, *, range_end: Key | None = None) -> Compare:
        """Compare the version: 1 where the key was created, and 1 more with each put since."""
        return _compare(key, relation, range_end, target=0, version=number(version, "version"))

    @staticmethod
    def create_revision(key: Key, relation: Relation, revision: int, *, range_end: Key | None = None) -> Compare:
        """Compare the revision at which the key was created."""
        return _compare(key, relation, range_end, target=1, create_revision=number(revision, "revision"))

    @staticmethod
    def mod_revision(key: Key, relation: Relation, revision: int, *, range_end: Key | None = None) -> Compare:
        """Compare the revision at which the key was last changed."""
        return _compare(key, relation, range_end, target=2, mod_revision=number(revision, "revision"))

    @staticmethod
    def lease(key: Key, relation: Relation, lease: int, *, range_end: Key | None = None) -> Compare:
        """Compare the id of the lease; 0 for a key that has none."""
        return _compare(key, relation, range_end, target=4, lease=number(lease, "lease"))


def _compare(key: Key, relation: str, range_end: Key | None, **fields: int | bytes) -> Compare:
    if not isinstance(relation, str):
        raise TypeError(f"relation must be a str, not {named(relation)}")
    if relation not in _RELATIONS:
        raise ValueError(f"relation {relation!r} is none of {', '.join(_RELATIONS)}")
    made = messages().Compare(
        result=_RELATIONS[relation], key=as_bytes(key, "key"), range_end=end_bytes(range_end), **fields
    )
    return Compare(made)


class Op:
    """An operation of a transaction. Make one by one of the builders below.

    They take the arguments of the calls of the same names, and mean the same. All raise TypeError for a key or value
    that is neither bytes nor str, and ValueError for a number that does not fit into 64 bits.
    """

    __slots__ = ("message",)

    def __init__(self, message: object) -> None:
        #: The RequestOp message.
        self.message: Any = message

    @staticmethod
    def put(
        key: Key,
        value: Key,
        *,
        lease: int = 0,
        prev_kv: bool = False,
        ignore_value: bool = False,
        ignore_lease: bool = False,
    ) -> Op:
        """Store `value` under `key`; the result is a PutResult. See `Node.put`."""
        request = put_request(
            key, value, lease=lease, prev_kv=prev_kv, ignore_value=ignore_value, ignore_lease=ignore_lease
        )
        return Op(messages().RequestOp(request_put=request))

    @staticmethod
    def range(
        key: Key,
        range_end: Key | None = None,
        *,
        limit: int = 0,
        revision: int = 0,
        sort_order: SortOrder = SortOrder.NONE,
        sort_target: SortTarget = SortTarget.KEY,
        serializable: bool = False,
        keys_only: bool = False,
        count_only: bool = False,
        min_mod_revision: int = 0,
        max_mod_revision: int = 0,
        min_create_revision: int = 0,
        max_create_revision: int = 0,
    ) -> Op:
        """The key, or those in [key, range_end); the result is a RangeResult. See `Node.range`."""
        request = range_request(
            key,
            range_end,
            limit=limit,
            revision=revision,
            sort_order=sort_order,
            sort_target=sort_target,
            serializable=serializable,
            keys_only=keys_only,
            count_only=count_only,
            min_mod_revision=min_mod_revision,
            max_mod_revision=max_mod_revision,
            min_create_revision=min_create_revision,
            max_create_revision=max_create_revision,
        )
        return Op(messages().RequestOp(request_range=request))

    @staticmethod
    def delete(key: Key, range_end: Key | None = None, *, prev_kv: bool = False) -> Op:
        """Delete the key, or all in [key, range_end); the result is a DeleteResult. See `Node.delete`."""
        return Op(messages().RequestOp(request_delete_range=delete_request(key, range_end, prev_kv)))

    @staticmethod
    def delete_prefix(prefix: Key, *, prev_kv: bool = False) -> Op:
        """Delete all keys that begin with `prefix`; the result is a DeleteResult."""
        return Op.delete(*prefix_range(prefix), prev_kv=prev_kv)

    @staticmethod
    def txn(compare: Sequence[Compare] = (), success: Sequence[Op] = (), failure: Sequence[Op] = ()) -> Op:
        """A transaction inside of the transaction; the result is a TxnResult."""
        return Op(messages().RequestOp(request_txn=txn_of(compare, success, failure)))


def txn_of(compare: Sequence[Compare], success: Sequence[Op], failure: Sequence[Op]) -> Any:
    """TxnRequest out of the parts. Raises TypeError."""
    return txn_request(
        [one.message for one in several(compare, Compare, "compare")],
        [one.message for one in several(success, Op, "success")],
        [one.message for one in several(failure, Op, "failure")],
    )
