"""Nodes that may use little memory: they are full before they are killed, and there is a way out."""

from __future__ import annotations

import re

import pytest
from support import messages as m
from support.client import Failure
from support.limitedmemory import fill, full_and_the_way_out, overwritten_for_ever, way_out
from support.memlimits import MIB, STACKS, Group, LimitedNode
from support.processes import StartError

from metastore import errors

pytestmark = pytest.mark.node_only


FEW = 52 * MIB  # enough for a node, but not for the data of one that had three times as much


@pytest.mark.parametrize("memory_group", [160 * MIB], indirect=True)
def test_a_start_that_cannot_fit_says_what_to_do(limited_node: LimitedNode, memory_group: Group) -> None:
    node, group = limited_node, memory_group
    node.start()
    with node.client(60) as client:
        fill(client, 3000)
        revision, whole = client.revision(), client.hash_kv().hash
    node.kill()
    before = group.nbytes
    group.change(FEW)
    group.stacks = STACKS // 2  # a start that does not fit has its threads already, and gets no more
    with pytest.raises(StartError, match="the data does not fit into memory") as failure:
        node.start()
    assert failure.value.returncode == errors.OutOfMemory.exit_code
    assert 'storage.engine = "rocksdb"' in str(failure.value) and "Traceback" not in str(failure.value)
    group.stacks = STACKS
    if group.kind != "cgroup":
        group.change(before)  # RocksDB's threads reserve far more than they use
    node.settings["storage.engine"] = '"rocksdb"'
    node.start(120)
    with node.client(60) as client:
        assert (client.revision(), client.hash_kv().hash) == (revision, whole)
    assert node.stop() == 0
    # The other way round, with room again.
    group.change(before)
    node.settings.pop("storage.engine")
    node.start()
    with node.client(60) as client:
        assert (client.revision(), client.hash_kv().hash) == (revision, whole)
    assert node.stop() == 0


def test_deleting_all_at_once_is_refused_where_it_would_take_too_much(limited_node: LimitedNode) -> None:
    """The keys are small, and their tombstones take as much as they do. The error names the number that fits, and so
    many work."""
    node = limited_node.start()
    with node.client(60) as client:
        count = fill(client, 600)
        everything = m.DeleteRangeRequest(key=b"fill/", range_end=b"fill0")
        for request in (everything, m.TxnRequest(success=[m.RequestOp(request_delete_range=everything)])):
            with pytest.raises(Failure, match="there is memory to delete") as failure:
                client.call(request)
            assert failure.value.code == 8
        number = re.search(r"delete (\d+) keys", failure.value.text)
        assert number and 1000 < int(number[1]) < count
        client.delete(b"fill/%09d" % 7)
        way_out(client, count + 100)


@pytest.mark.parametrize("size", [3000])
def test_full_before_killed_and_the_way_out(size: int, limited_node: LimitedNode) -> None:
    full_and_the_way_out(limited_node, size)


@pytest.mark.parametrize("puts", [20_000])
def test_overwriting_for_ever(puts: int, limited_node: LimitedNode) -> None:
    overwritten_for_ever(limited_node, puts)
