"""aetcd, an asyncio client that users have, against a server, with the calls that its users make daily."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import aetcd
import pytest
from support.client import Client
from support.processes import Server


def run(server: Server, body: Callable[[aetcd.Client], Awaitable[Any]]) -> Any:
    """Run `body` with a connected aetcd client."""
    host, _, port = server.address.rpartition(":")

    async def main() -> Any:
        async with aetcd.Client(host, int(port), timeout=10) as client:
            return await body(client)

    return asyncio.run(main())


def test_put_get_delete(server: Server, prefix: str) -> None:
    key = f"{prefix}key".encode()

    async def body(client: aetcd.Client) -> None:
        assert await client.get(key) is None
        first = await client.put(key, b"one")
        second = await client.put(key, b"two", prev_kv=True)
        assert second.prev_kv.value == b"one"
        assert second.header.revision == first.header.revision + 1
        reply = await client.get(key)
        assert (reply.key, reply.value, reply.version) == (key, b"two", 2)
        assert (reply.create_revision, reply.mod_revision) == (first.header.revision, second.header.revision)
        deletion = await client.delete(key, prev_kv=True)
        assert deletion.prev_kv.value == b"two"
        assert await client.get(key) is None
        assert await client.delete(key) is None

    run(server, body)


def test_watch(server: Server, prefix: str) -> None:
    base = prefix.encode()

    async def body(client: aetcd.Client) -> None:
        for number in range(3):
            await client.put(base + b"%d" % number, b"before")
        first = (await client.put(base, b"start")).header.revision
        seen: list[tuple[str, bytes, bytes]] = []
        watch = await client.watch_prefix(base, start_revision=first)
        await client.put(base + b"a", b"1")
        await client.delete(base + b"a")
        await client.put(base + b"b", b"2")
        async for event in watch:
            seen.append((str(event.kind), event.kv.key[len(base) :], event.kv.value))
            if len(seen) == 4:
                await watch.cancel()
                break
        assert seen == [("PUT", b"", b"start"), ("PUT", b"a", b"1"), ("DELETE", b"a", b""), ("PUT", b"b", b"2")]

        waiting = asyncio.ensure_future(client.watch_once(base + b"once", timeout=20))
        while not waiting.done():
            await client.put(base + b"once", b"now")
            await asyncio.sleep(0)
        assert (await waiting).kv.value == b"now"

    run(server, body)


def test_ranges(server: Server, prefix: str) -> None:
    base = prefix.encode()

    async def body(client: aetcd.Client) -> None:
        for number in range(10):
            await client.put(base + b"%d" % number, b"%d" % (9 - number))
        pairs = await client.get_prefix(base)
        assert [kv.key for kv in pairs] == [base + b"%d" % n for n in range(10)]
        down = await client.get_prefix(base, sort_order="descend", sort_target="key", keys_only=True)
        assert [kv.key for kv in down] == [base + b"%d" % n for n in range(9, -1, -1)]
        assert {kv.value for kv in down} == {b""}
        by_value = await client.get_range(base + b"2", base + b"5", sort_order="ascend", sort_target="value")
        assert [kv.value for kv in by_value] == [b"5", b"6", b"7"]
        assert len(await client.get_all(keys_only=True)) >= 10
        assert (await client.delete_range(base + b"0", base + b"3")).deleted == 3
        assert (await client.delete_prefix(base)).deleted == 7
        assert not await client.get_prefix(base)

    run(server, body)


def test_transactions(server: Server, prefix: str) -> None:
    key = f"{prefix}counter".encode()

    async def body(client: aetcd.Client) -> None:
        txn = client.transactions
        done, _ = await client.transaction(
            compare=[txn.version(key) == 0], success=[txn.put(key, b"0")], failure=[txn.get(key)]
        )
        assert done
        done, answers = await client.transaction(
            compare=[txn.version(key) == 0], success=[txn.put(key, b"0")], failure=[txn.get(key)]
        )
        assert not done
        assert answers[0].kvs[0].value == b"0" if hasattr(answers[0], "kvs") else answers
        assert await client.replace(key, b"0", b"1")
        assert not await client.replace(key, b"0", b"2")
        assert (await client.get(key)).value == b"1"

    run(server, body)


def test_many_clients_count_together(server: Server, prefix: str) -> None:
    """Several connections compare and swap at once. No step may be lost or counted twice."""
    key = f"{prefix}counter".encode()
    workers, steps = 5, 20

    async def count(client: aetcd.Client) -> None:
        done = 0
        while done < steps:
            value = (await client.get(key)).value
            done += await client.replace(key, value, b"%d" % (int(value) + 1))

    async def main() -> None:
        host, _, port = server.address.rpartition(":")
        clients = [aetcd.Client(host, int(port), timeout=10) for _ in range(workers)]
        await clients[0].put(key, b"0")
        await asyncio.gather(*(count(client) for client in clients))
        assert (await clients[0].get(key)).value == b"%d" % (workers * steps)
        for client in clients:
            await client.close()

    asyncio.run(main())


def test_errors_reach_the_client(server: Server, client: Client) -> None:
    async def body(other: aetcd.Client) -> None:
        with pytest.raises(aetcd.ClientError):
            await other.put(b"", b"no key")
        with pytest.raises(aetcd.ClientError):
            await other.compact(client.revision() + 1000)

    run(server, body)


def test_status_and_members(server: Server, client: Client) -> None:
    state = client.status()

    async def body(other: aetcd.Client) -> None:
        status = await other.status()
        assert status.version == state.version
        assert status.leader.id == state.leader
        members = [member async for member in other.members()]
        assert [member.id for member in members] == [state.header.member_id]

    run(server, body)
