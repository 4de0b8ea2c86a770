"""HashKV of a node, for many callers and compared with a real etcd."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support import messages as m
from support.client import Failure
from support.differ import outcome
from support.processes import Server

Make = Callable[..., Server]


def ask(revision: int) -> Any:
    return m.TYPES["HashKVRequest"](revision=revision)


def test_errors_and_fields_as_in_etcd(fresh: Make, fresh_etcd: Make) -> None:
    """Only the hash itself differs, and the compact revision, where 3.5.1 refuses and 3.6 answers."""
    with fresh_etcd().start().client() as a, fresh().start().client() as b:
        for client in (a, b):
            for number in range(9):
                client.put(b"%d" % number, b"v")
        for revision in (0, 1, 2, 10, 11, 2**62):
            answers = [outcome(client, ask(revision)) for client in (a, b)]
            if isinstance(answers[0], tuple):
                assert answers[1] == answers[0]
            else:
                facts = [(one.header.revision, one.compact_revision, bool(one.hash)) for one in answers]
                assert facts[1] == facts[0]
                assert answers[1].hash_revision == (revision or 10)
        for client in (a, b):
            client.compact(5)
        for revision in (1, 4, 6, 10, 11):
            answers = [outcome(client, ask(revision)) for client in (a, b)]
            if isinstance(answers[0], tuple):
                assert answers[1] == answers[0]
            else:
                assert (answers[0].compact_revision, answers[1].compact_revision) == (5, 5)
        assert outcome(a, ask(5)) == (11, "etcdserver: mvcc: required revision has been compacted")
        assert b.hash_kv(5).hash_revision == 5
        assert b.hash_kv().hash == b.hash_kv(10).hash != b.hash_kv(9).hash
        assert b.call(m.TYPES["HashRequest"]()).hash not in (0, b.hash_kv().hash)


@pytest.mark.node_only
def test_many_at_a_time(fresh: Make) -> None:
    """The number of waiting calls is bounded. All served callers get the same hash, and callers that go away do no
    harm."""
    node = fresh().start()
    with node.client() as client:
        puts = [client.future(m.PutRequest(key=b"%05d" % number, value=b"x" * 100)) for number in range(3000)]
        assert all(put.result() for put in puts)

        def one(_number: int) -> Any:
            try:
                with node.client() as own:
                    return own.hash_kv(3001).hash
            except Failure as failure:
                return (failure.code, failure.text)

        for _ in range(8):
            client.future(ask(0)).cancel()
        with ThreadPoolExecutor(24) as pool:
            answers = set(pool.map(one, range(24)))
        sums = {answer for answer in answers if isinstance(answer, int)}
        assert sums == {client.hash_kv(3001).hash}
        assert answers - sums <= {(8, "etcdserver: too many requests")}
