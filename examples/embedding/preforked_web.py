"""A web application with worker processes that share one store.

The first process owns the node. It forks its workers before it starts the node, so that no worker has a copy of it, and
tells each of them the address of the node's client port. A worker is a client like any other: it reaches the store by
aetcd. Instead of the first process, a MetaStore that runs as a service of its own may serve the workers; they need its
address and nothing else.

    python examples/embedding/preforked_web.py --port 8080 --workers 4 --data-dir data/web
    curl -X POST 127.0.0.1:8080/visits

A POST adds 1 to the counter of its path, whichever worker gets it, and a GET shows it.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import signal
import socket
from collections.abc import Awaitable, Callable

import aetcd
from aetcd.transactions import Put, Version

from metastore import Config, Node


async def add(store: aetcd.Client, path: bytes) -> int:
    """Add 1 to a counter. Other workers do so at the same time, so only an unchanged value is replaced."""
    while True:
        found = await store.get(path)
        value, version = (int(found.value) + 1, found.version) if found is not None else (1, 0)
        done, _ = await store.transaction(
            compare=[Version(path) == version], success=[Put(path, str(value).encode())], failure=[]
        )
        if done:
            return value


async def answer(store: aetcd.Client, request: bytes) -> bytes:
    """The body of the answer to one request."""
    method, path, _ = request.split(b" ", 2)
    if method == b"POST":
        value = await add(store, path)
    else:
        found = await store.get(path)
        value = int(found.value) if found is not None else 0
    return f"{path.decode()} {value} from worker {os.getpid()}\n".encode()


def handler(store: aetcd.Client) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    """What serves one connection of a browser."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            body = await answer(store, await reader.readuntil(b"\r\n\r\n"))
            head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            writer.write(head.encode() + body)
            await writer.drain()
        except asyncio.IncompleteReadError:
            pass  # a browser that opened a connection and did not use it
        finally:
            writer.close()

    return serve


async def work(web: socket.socket, address: str) -> None:
    """One worker: serve browsers until SIGTERM."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    host, port = address.rsplit(":", 1)
    async with aetcd.Client(host, int(port)) as store:
        server = await asyncio.start_server(handler(store), sock=web)
        async with server:
            await stopped.wait()


def begin(web: socket.socket, addresses: multiprocessing.SimpleQueue[str]) -> None:
    """The beginning of a worker's process."""
    address = addresses.get()
    if address:
        asyncio.run(work(web, address))


def main() -> None:
    """The process that owns the node."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--data-dir", default="data/web")
    options = parser.parse_args()
    stop = {signal.SIGTERM, signal.SIGINT}
    web = socket.create_server(("127.0.0.1", options.port))
    context = multiprocessing.get_context("fork")
    addresses = context.SimpleQueue()
    workers = [context.Process(target=begin, args=(web, addresses)) for _ in range(options.workers)]
    for worker in workers:
        worker.start()
    signal.pthread_sigmask(signal.SIG_BLOCK, stop)  # the workers were forked before, and take theirs
    address = ""
    try:
        with Node(Config(node={"data_dir": options.data_dir}, listen={"client": "127.0.0.1:0"})) as node:
            address = node.client_addresses[0]
            for _ in workers:
                addresses.put(address)
            print(f"serving on port {web.getsockname()[1]}", flush=True)
            signal.sigwait(stop)
            for worker in workers:
                worker.terminate()
            for worker in workers:
                worker.join()
    finally:
        if not address:  # the node did not start
            for _ in workers:
                addresses.put("")


if __name__ == "__main__":
    main()
