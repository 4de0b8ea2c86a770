"""`put_many` takes its pairs out of two arrays, and says what is wrong with them."""

from __future__ import annotations

import array
import asyncio
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from metastore import Columns, Node, errors

pytestmark = pytest.mark.node_only


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Node.in_memory() as node:
        yield node


def stored(node: Node) -> list[tuple[bytes, bytes]]:
    """All that is there, which is removed."""
    found = [(item.key, item.value) for item in node.get_prefix("").kvs]
    node.delete_prefix("")
    return found


def with_offsets(strings: list[bytes], kind: str) -> tuple[bytes, Any]:
    ends = np.cumsum([0, *map(len, strings)])
    return b"".join(strings), array.array(kind, ends.tolist())


def test_strings_of_one_width(node: Node) -> None:
    draw = random.Random(1)
    exact = sorted({draw.randbytes(15) + b"\0" for _ in range(1700)})
    for keys in (np.array(exact, "V16"), np.frombuffer(b"".join(exact), np.uint8).reshape(-1, 16)):
        done = node.put_many(Columns(keys, keys))
        assert (done.count, done.last_revision - done.first_revision) == (1700, 1699)
        assert stored(node) == [(one, one) for one in exact], "every byte counts"
    padded = np.array(exact, "S16")
    given = Columns(padded, padded[::-1])
    assert len(given) == 1700 and list(given) == [
        (bytes(one), bytes(two)) for one, two in zip(padded, padded[::-1], strict=True)
    ]
    assert node.put_many(given).count == 1700
    assert stored(node) == sorted(given), "as NumPy shows them, and with a step"
    every_other = np.array([b"a", b"x", b"b", b"y"], "S2")[::2]
    node.put_many(Columns(every_other, np.array([b"", b"v"])))
    assert stored(node) == [(b"a", b""), (b"b", b"v")]


@pytest.mark.parametrize("kind", "iIlLqQ")
def test_strings_between_offsets(node: Node, kind: str) -> None:
    draw = random.Random(2)
    keys = sorted({draw.randbytes(draw.randrange(1, 30)) for _ in range(1200)})
    values = [draw.randbytes(draw.randrange(300)) for _ in keys]
    (data, ends), (more, places) = with_offsets(keys, kind), with_offsets(values, kind)
    node.put_many(Columns(data, bytearray(more), key_offsets=ends, value_offsets=np.array(places)))
    assert stored(node) == list(zip(keys, values, strict=True))


def test_few_large_and_none(node: Node) -> None:
    large = np.full((4, 700_000), 7, np.uint8)
    assert node.put_many(Columns(np.array([b"a", b"b", b"c", b"d"]), large)).count == 4
    assert [len(value) for _, value in stored(node)] == [700_000] * 4
    revision = node.revision
    none = Columns(np.array([], "S4"), b"", value_offsets=np.array([0]))
    assert node.put_many(none).count == 0 and node.revision == revision

    async def awaited() -> int:
        return (await node.aio.put_many(Columns(np.array([b"k"]), np.array([b"v"])))).count

    assert asyncio.run(awaited()) == 1 and stored(node) == [(b"k", b"v")]
    assert [one.result(30).prev for one in node.futures.put_many(Columns(np.array([b"k"]), np.array([b"v"])))] == [None]
    assert stored(node) == [(b"k", b"v")]


@pytest.mark.parametrize("ends", [[0, 3, 2], [0, 1, 99], [-1, 2, 3], [0, 1 << 62, 3]])
def test_offsets_that_lead_elsewhere_are_named(node: Node, ends: list[int]) -> None:
    keys = np.array([b"k0", b"k1"])
    with pytest.raises(
        errors.WrongPair, match=r"pairs\[[01]\]: the offsets of values are .*there are 3 bytes"
    ) as caught:
        node.put_many(Columns(keys, b"abc", value_offsets=np.array(ends)))
    assert not caught.value.written and not caught.value.open
    assert stored(node) == []


def test_an_empty_key_is_refused_at_its_place(node: Node) -> None:
    keys = np.array([b"k%d" % n if n != 700 else b"" for n in range(900)])
    with pytest.raises(errors.PutManyFailed, match="key is not provided") as caught:
        node.put_many(Columns(keys, keys))
    assert caught.value.not_written[0].start == 700 and len(caught.value.not_written[0]) == 1
    assert len(stored(node)) == sum(map(len, caught.value.written)) == 899


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((["a"], np.array([b"a"])), TypeError, "keys must be an array or a buffer of bytes, not list"),
        ((np.array([1]), np.array([b"a"])), TypeError, "keys must be of bytes of one width"),
        ((np.array(["a"]), np.array([b"a"])), TypeError, "keys must be of bytes of one width"),
        ((np.array([b"a"]), b"abc"), TypeError, "values must be of bytes of one width"),
        ((np.array([b"a"]), np.array([b"a", b"b"])), ValueError, "there are 1 keys and 2 values"),
        ((np.array([b"a"]), b"abc", [0, 1]), TypeError, "the offsets of values must be an array of numbers, not list"),
        ((np.array([b"a"]), b"abc", np.array([0.0, 1.0])), TypeError, "must be whole numbers of 32 or 64 bits"),
        ((np.array([b"a"]), b"abc", np.array([0, 1], ">i4")), TypeError, "must be whole numbers of 32 or 64 bits"),
        ((np.array([b"a"]), b"abc", np.array([], "i4")), ValueError, "must be one more than they are"),
    ],
)
def test_other_arrays_are_refused(arguments: tuple[Any, ...], error: type[Exception], text: str) -> None:
    keys, values, *offsets = arguments
    with pytest.raises(error, match=text):
        Columns(keys, values, value_offsets=offsets[0] if offsets else None)
