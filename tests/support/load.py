"""Writers that remember what they sent and what was acknowledged, and the check of a store against that memory."""

from __future__ import annotations

import random
import signal
import threading
from dataclasses import dataclass, field

from .client import Client, Failure
from .processes import Server

PREFIX = b"load/"
VALUE_SIZES = [20, 20, 20, 300, 3000]


@dataclass
class Slot:
    """The history of one key: the numbers sent so far, the highest acknowledged one and its revision."""

    sent: int = 0
    acked: int = 0
    revision: int = 0


@dataclass
class History:
    """What was sent and acknowledged, over any number of crashes. One writer owns a key at a time."""

    slots: dict[bytes, Slot] = field(default_factory=dict)
    acks: int = 0

    def check(self, client: Client) -> None:
        """Raise AssertionError unless the store holds what was acknowledged, and nothing that was not sent."""
        reply = client.range(PREFIX, PREFIX[:-1] + b"0")
        pairs = {kv.key: kv for kv in reply.kvs}
        invented = set(pairs) - set(self.slots)
        assert not invented, f"keys that nobody sent: {sorted(invented)[:5]}"
        for key, slot in self.slots.items():
            if key not in pairs:
                assert slot.acked == 0, f"{key!r}: acknowledged number {slot.acked} at {slot.revision} is lost"
                continue
            kv = pairs[key]
            number = int(kv.value[:12])
            assert kv.value == value_of(key, number), f"{key!r}: the value of number {number} is not what was sent"
            assert slot.acked <= number <= slot.sent, (
                f"{key!r}: holds {number}, {slot.acked} of {slot.sent} acknowledged"
            )
            if number == slot.acked:
                assert kv.mod_revision == slot.revision, f"{key!r}: acknowledged at {slot.revision}: {kv}"
            assert kv.version <= number
            # This value counts as acknowledged from here on: a put of unknown outcome has been decided, one way or the
            # other.
            slot.acked, slot.revision = number, kv.mod_revision
        assert reply.header.revision >= max((slot.revision for slot in self.slots.values()), default=1)


def value_of(key: bytes, number: int) -> bytes:
    """Return the value that belongs to a number. It is recognisable, of varying size, and partly compressible."""
    rng = random.Random(key + b"%d" % number)
    size = rng.choice(VALUE_SIZES)
    return b"%012d" % number + (rng.randbytes(size) if number % 2 else b"x" * size)


class Load:
    """`writers` threads that put one after the other until the server goes away, or `stop` is called."""

    def __init__(
        self, client: Client, history: History, writers: int = 6, keys: int = 8, expect_end: bool = True
    ) -> None:
        self._client = client
        self._history = history
        self._expect_end = expect_end
        self._stopping = False
        self._changed = threading.Condition()
        self._left = writers
        self.acked = 0
        self.failures: list[Failure] = []
        self._errors: list[Exception] = []
        for writer in range(writers):
            for n in range(keys):
                history.slots.setdefault(PREFIX + b"%d/%d" % (writer, n), Slot())
        self._threads = [
            threading.Thread(
                target=self._run, args=([PREFIX + b"%d/%d" % (writer, n) for n in range(keys)],), daemon=True
            )
            for writer in range(writers)
        ]

    def start(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def _run(self, keys: list[bytes]) -> None:
        try:
            self._write(keys)
        except Failure as failure:
            self.failures.append(failure)
        except Exception as error:  # noqa: BLE001 - whatever it is, join() raises it in the test's thread
            self._errors.append(error)
        finally:
            with self._changed:
                self._left -= 1
                self._changed.notify_all()

    def _write(self, keys: list[bytes]) -> None:
        turn = 0
        while not self._stopping:
            key = keys[turn % len(keys)]
            turn += 1
            slot = self._history.slots[key]
            slot.sent += 1
            number = slot.sent
            reply = self._client.put(key, value_of(key, number))
            slot.acked, slot.revision = number, reply.header.revision
            with self._changed:
                self.acked += 1
                self._history.acks += 1
                self._changed.notify_all()

    def wait_acks(self, count: int, timeout: float = 60.0) -> None:
        """Return once `count` puts were acknowledged, or all writers have ended."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.acked >= count or self._left == 0, timeout), f"{self.acked} acks"

    def stop(self) -> None:
        """Let the writers end after their present puts, and join them."""
        self._stopping = True
        self.join()

    def join(self, timeout: float = 60.0) -> None:
        """Wait for the end of all writers. Raises the error that ended one."""
        for thread in self._threads:
            thread.join(timeout)
            assert not thread.is_alive(), "a writer hangs: a put got neither a reply nor an error"
        if self._errors:
            raise self._errors[0]
        assert self._expect_end or not self.failures, self.failures


def write_until_end(server: Server, history: History, code: int = -signal.SIGKILL, writers: int = 6) -> None:
    """Write to a running server until it ends by itself, which must be with exit code `code`."""
    with server.client(timeout=60) as client:
        load = Load(client, history, writers).start()
        assert server.running().wait(60) == code, server.running().log
        load.join()


def goes_on(client: Client, history: History, acks: int = 60) -> None:
    """Check that the store holds what it must, takes `acks` further writes, and holds those too."""
    history.check(client)
    load = Load(client, history, expect_end=False).start()
    load.wait_acks(acks)
    load.stop()
    history.check(client)
