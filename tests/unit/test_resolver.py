"""Names are looked up beside the loop, by few threads that stay, with one question at a time for each name."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from metastore.net.loop import Loop
from metastore.net.resolver import MAX_NAMES, MAX_THREADS, Places, Resolver

REAL = socket.getaddrinfo
PLACE = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 80))


class NameServer:
    """Replaces the system's resolver, and answers when the test says so. It passes addresses on unchanged."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.threads: set[threading.Thread] = set()
        self.answering = threading.Event()
        self.answering.set()

    def getaddrinfo(self, host: str, port: int, **options: int) -> Places:
        if options.get("flags"):
            return REAL(host, port, **options)
        self.asked.append(host)
        self.threads.add(threading.current_thread())
        assert self.answering.wait(20)
        if host.startswith("wrong"):
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return [PLACE]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[NameServer]:
    server = NameServer()
    monkeypatch.setattr(socket, "getaddrinfo", server.getaddrinfo)
    yield server
    server.answering.set()


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def resolver(loop: Loop, server: NameServer) -> Iterator[Resolver]:
    resolver = Resolver(loop)
    yield resolver
    server.answering.set()
    resolver.close()
    for thread in resolver.threads:
        thread.join(20)
        assert not thread.is_alive()


def answers(loop: Loop, results: list[Places | str], count: int) -> None:
    while len(results) < count:
        loop.run_once(20)


def test_one_thread_asks_again_and_again(resolver: Resolver, loop: Loop, server: NameServer) -> None:
    results: list[Places | str] = []
    for number in range(30):
        resolver.resolve("http://wrong:80/" if number % 2 else "right:80", results.append)
        answers(loop, results, number + 1)
    assert results[0] == [PLACE] and "wrong: " in str(results[1])
    assert len(server.asked) == 30
    assert len(server.threads) == 1, "a thread for each attempt, of which any may get a signal of the process"


def test_a_name_is_asked_for_once_at_a_time(resolver: Resolver, loop: Loop, server: NameServer) -> None:
    server.answering.clear()
    results: list[Places | str] = []
    for _ in range(5):
        resolver.resolve("right:80", results.append)
    server.answering.set()
    answers(loop, results, 5)
    assert results == [[PLACE]] * 5 and server.asked == ["right"]


def test_threads_and_names_are_bounded(resolver: Resolver, loop: Loop, server: NameServer) -> None:
    server.answering.clear()
    results: list[Places | str] = []
    for number in range(MAX_NAMES):
        resolver.resolve(f"right-{number}:80", results.append)
    assert results == [] and len(resolver.threads) == MAX_THREADS
    resolver.resolve("right-late:80", results.append)
    assert results == [f"right-late: {MAX_NAMES} other names are being looked up"]
    server.answering.set()
    answers(loop, results, MAX_NAMES + 1)
    resolver.resolve("right-late:80", results.append)
    answers(loop, results, MAX_NAMES + 2)
    assert results[-1] == [PLACE] and len(resolver.threads) == MAX_THREADS


@pytest.mark.parametrize(
    ("address", "answer"),
    [("127.0.0.1:80", "127.0.0.1"), ("http://[::1]:80", "::1"), ("nonsense", "'nonsense' is no address: write")],
)
def test_addresses_are_nobodys_question(resolver: Resolver, server: NameServer, address: str, answer: str) -> None:
    results: list[Places | str] = []
    resolver.resolve(address, results.append)
    assert answer in (results[0] if isinstance(results[0], str) else results[0][0][4])
    assert not server.asked and not resolver.threads


def test_nobody_is_answered_after_the_end(resolver: Resolver, loop: Loop, server: NameServer) -> None:
    server.answering.clear()
    results: list[Places | str] = []
    resolver.resolve("right:80", results.append)
    resolver.close()
    server.answering.set()
    resolver.threads[0].join(20)
    loop.run_once(0)
    resolver.resolve("127.0.0.1:80", results.append)
    assert results == []
