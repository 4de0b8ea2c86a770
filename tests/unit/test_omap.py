"""The ordered map against a sorted dict, with views that are taken on the way and kept to the end."""

from __future__ import annotations

import ctypes
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metastore._core import ordered_map
from metastore._core.ordered_map import OrderedMap
from metastore._core.ordered_map_check import check
from metastore._core.record import held_now
from metastore._core.slabs import slabs_now


class MallInfo2(ctypes.Structure):
    """struct mallinfo2 of glibc."""

    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
    )]  # fmt: skip


LIBC = ctypes.CDLL(None)
LIBC.mallinfo2.restype = MallInfo2

KEYS = st.one_of(
    st.binary(max_size=3),
    st.integers(0, 400).map(lambda n: n.to_bytes(8, "big")),
    st.text(alphabet="ab\0\xff", max_size=6).map(lambda text: text.encode("latin-1")),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), KEYS, st.binary(max_size=5)),
        st.tuples(st.just("delete"), KEYS),
        st.tuples(st.just("view")),
        st.tuples(st.just("drop")),
        st.tuples(st.just("clear")),
        st.tuples(st.just("run"), st.integers(0, 400), st.integers(1, 150), st.booleans()),
    ),
    max_size=40,
)


def apply_step(step: tuple, tree: OrderedMap, model: dict[bytes, bytes], views: list) -> None:
    """Do one step on the tree and on the model."""
    if step[0] == "set":
        tree.set(step[1], step[2])
        model[step[1]] = step[2]
    elif step[0] == "delete":
        assert tree.delete(step[1]) == (model.pop(step[1], None) is not None)
    elif step[0] == "view":
        views.append((tree.view(), dict(model)))
    elif step[0] == "drop" and views:
        views.pop(0)
    elif step[0] == "clear":
        tree.clear()
        model.clear()
    elif step[0] == "run":
        for number in range(step[1], step[1] + step[2]):
            key = number.to_bytes(8, "big")
            if step[3]:
                tree.set(key, b"v%d" % number)
                model[key] = b"v%d" % number
            else:
                assert tree.delete(key) == (model.pop(key, None) is not None)


@settings(max_examples=150, deadline=None)
@given(STEPS, st.lists(st.tuples(KEYS, KEYS, st.integers(0, 20)), max_size=6))
def test_equals_a_sorted_dict(steps: list[tuple], probes: list[tuple]) -> None:
    tree, model, views = OrderedMap(), {}, []
    for step in steps:
        apply_step(step, tree, model, views)
    check(tree)
    for view, model_of_it in [(tree, model), *views]:
        check(view)
        keys = sorted(model_of_it)
        assert len(view) == len(keys)
        assert list(view.items(chunk=7)) == [(key, model_of_it[key]) for key in keys]
        for low, high, limit in probes:
            inside = [(key, model_of_it[key]) for key in keys if low <= key < high]
            assert view.scan(low, high) == inside
            assert view.scan(low, high, True) == inside[::-1]
            assert view.scan(low, high, False, limit) == (inside[:limit] if limit else inside)
            above = [(key, model_of_it[key]) for key in keys if key >= low]
            assert view.scan(low, None, True, limit) == above[::-1][: limit or None]
            assert view.get(low) == model_of_it.get(low)
            assert (low in view) == (low in model_of_it)
            assert view.seek_ge(low) == min(((k, model_of_it[k]) for k in keys if k >= low), default=None)
            assert view.seek_le(low) == max(((k, model_of_it[k]) for k in keys if k <= low), default=None)


@pytest.mark.parametrize("order", ["up", "down", "random"])
def test_large_tree_grows_and_shrinks(order: str) -> None:
    rng = random.Random(7)
    keys = [number.to_bytes(4, "big") for number in range(20_000)]
    if order == "down":
        keys.reverse()
    elif order == "random":
        rng.shuffle(keys)
    tree = OrderedMap()
    for key in keys:
        tree.set(key, key)
    check(tree)
    view = tree.view()
    rng.shuffle(keys)
    for count, key in enumerate(keys):
        assert tree.delete(key)
        if count % 4000 == 0:
            check(tree)
    assert len(tree) == 0 and tree.nbytes == 0 and tree.seek_ge(b"") is None
    check(view)
    assert len(view) == 20_000
    tree.set(b"again", b"1")
    check(tree)


def test_a_view_cannot_be_written() -> None:
    tree = OrderedMap()
    tree.set(b"a", b"1")
    view = tree.view()
    for write in (lambda: view.set(b"a", b"2"), lambda: view.delete(b"a"), view.clear, lambda: view.set_deleted(b"a")):
        with pytest.raises(TypeError):
            write()
    assert view.get(b"a") == b"1"


def test_pending_deletions_show_as_none() -> None:
    tree = OrderedMap()
    tree.set(b"a", b"1")
    tree.set_deleted(b"b")
    tree.set_deleted(b"a")
    assert tree.scan() == [(b"a", None), (b"b", None)]
    assert tree.get(b"a", b"default") == b"default" and b"b" not in tree
    check(tree)


def test_dropped_trees_are_freed_in_slices() -> None:
    tree = OrderedMap()
    for number in range(30_000):
        tree.set(number.to_bytes(4, "big"), b"x")
    while ordered_map.reclaim(1 << 20):
        pass
    tree.clear()
    assert len(tree) == 0
    slices = 0
    while ordered_map.reclaim(1000):
        slices += 1
    assert slices >= 20, "a large part of the tree was freed in one go"


def given_out() -> int:
    """Return the bytes that slabs and malloc have given out, including chunk headers."""
    return slabs_now()[2] + int(sum(getattr(LIBC.mallinfo2(), name) for name in ("uordblks", "hblkhd")))


@pytest.mark.parametrize("size", [0, 3, 16, 100, 1000, 5000, 140_000])
def test_the_memory_that_is_told_is_what_is_given_out(size: int) -> None:
    """The keys come in random order. Half of them are removed, half of the rest are replaced by larger ones, with and
    without a view."""
    rng = random.Random(size)
    keys = [b"%016x" % rng.getrandbits(64) for _ in range(20_000 if size <= 100 else 600)]
    held, given = held_now(), given_out()
    tree = OrderedMap()
    for key in keys:
        tree.set(key, b"v" * size)
    assert held_now() - held == tree.taken
    glibc = given_out() > 0  # false under AddressSanitizer
    assert not glibc or given_out() - given == pytest.approx(tree.taken, rel=0.03, abs=20_000)
    view = tree.view()
    for key in keys[::2]:
        tree.delete(key)
    for key in keys[1::4]:
        tree.set(key, b"v" * (size + 40))
    check(tree)
    check(view)
    both = tree.taken + view.taken
    assert max(tree.taken, view.taken) < held_now() - held <= both
    assert not glibc or given_out() - given == pytest.approx(held_now() - held, rel=0.03, abs=20_000)
    del view
    while ordered_map.reclaim():
        pass
    assert held_now() - held == tree.taken
    del tree
    while ordered_map.reclaim():
        pass
    assert held_now() == held
    assert given_out() - given == pytest.approx(0, abs=20_000)
