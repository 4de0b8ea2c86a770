"""A million keys go in one revision: by the end of their lease, or by one deletion. Then a compaction removes them. No
turn of the loop is long, neither then nor in any look at where they were."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support import messages as m
from support.client import Client, op
from support.leasing import grant, revoke
from support.processes import Server, metric
from support.turns import Turns
from support.watching import WatchStream

pytestmark = pytest.mark.node_only

KEYS = 1_000_000
AT_ONCE = 5000
SWEEPING = "metastore_sweep_pending"


def fill(client: Client, lease: int) -> int:
    """Put all keys. Return the revision."""
    for first in range(0, KEYS, AT_ONCE):
        some = range(first, first + AT_ONCE)
        done = client.txn(success=[op(m.PutRequest(key=b"k%07d" % n, value=b"%d" % n, lease=lease)) for n in some])
    return int(done.header.revision)


def look_around(client: Client) -> None:
    """Look for keys, and for the next one in both directions, where the million was."""
    for key in (b"a", b"k", b"k0000000", b"k0500000", b"k9999999", b"z"):
        assert client.get(key) is None
    assert client.range(b"k9", b"\0", limit=1).kvs[0].key == b"l"
    client.put(b"j", b"again")


@pytest.mark.parametrize("what", ["revoke", "deletion"])
@pytest.mark.parametrize("engine", ["memory", "rocksdb"])
def test_a_million_keys_go_at_once(fresh: Callable[..., Server], engine: str, what: str) -> None:
    """Three watchers of one stream, one of whom wants fragments."""
    settings = {
        "storage.engine": f'"{engine}"', "limits.max_txn_ops": str(AT_ONCE), "limits.request_timeout": '"60s"'
    }  # fmt: skip
    with fresh(settings=settings).start() as server, server.client(120) as client:
        lease = grant(client, 100_000).ID
        client.put(b"j")
        client.put(b"l")
        revision = fill(client, lease if what == "revoke" else 0) + 1
        with WatchStream(client) as stream:
            for fragment in (False, False, True):
                assert not stream.create(b"k", b"l", filters=[0], fragment=fragment).canceled
            turns = Turns(server)
            if what == "revoke":
                revoke(client, lease)
            else:
                assert client.delete(b"k", b"l").deleted == KEYS
            assert client.revision() == revision
            assert client.range(b"k", b"l", count_only=True).count == 0
            stream.wait(lambda: sum(len(response.events) for response in stream.responses) >= 3 * KEYS, 120)
            for ident in range(3):
                told = [one for one in stream.responses if one.watch_id == ident and one.events]
                assert (len(told) == 1) == (ident < 2)
                keys = [event.kv.key for one in told for event in one.events]
                assert keys == [b"k%07d" % n for n in range(KEYS)]
                assert {event.kv.mod_revision for one in told for event in one.events} == {revision}
            slow, longest = turns.slow, turns.longest
        assert slow == 0, f"{slow} turns worked for more than 20 ms, the longest for {1000 * longest:.0f} ms"
        turns = Turns(server)
        client.compact(revision)
        while metric(server, SWEEPING):
            look_around(client)
        # A new key among those that are gone, and another lease behind the one with a million keys.
        other = grant(client, 100_000).ID
        for key in (b"a", b"k0500000", b"z"):
            client.put(key, lease=other)
        assert client.range(b"k", b"l", count_only=True).count == 1
        assert client.range(b"k", b"l", limit=1).kvs[0].key == b"k0500000"
        assert client.range(b"a", b"k1", limit=1, sort_order=2).kvs[0].key == b"k0500000"
        revoke(client, other)
        look_around(client)
        assert client.hash_kv().hash
        slow, longest = turns.slow, turns.longest
        # Each slice of the sweep took 55 ms once: thousands of turns. A busy machine makes one or two in these minutes.
        assert slow < 10, f"{slow} turns worked for more than 20 ms, the longest for {1000 * longest:.0f} ms"
