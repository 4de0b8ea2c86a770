"""Gates, which the handlers of signals may use."""

from __future__ import annotations

import signal
import threading
from typing import Any

from metastore.threads import LOOK_UP, Gate


def test_a_gate_opens_once_and_for_all() -> None:
    gate = Gate()
    assert not gate.is_open() and not gate.wait(0) and not gate.wait(-1) and not gate.wait(0.01)
    passed: list[bool] = []
    threads = [threading.Thread(target=lambda: passed.append(gate.wait())) for _ in range(8)]
    threads += [threading.Thread(target=lambda: passed.append(gate.wait(60))) for _ in range(8)]
    openers = [threading.Thread(target=gate.open) for _ in range(8)]
    for thread in threads + openers:
        thread.start()
    for thread in threads + openers:
        thread.join(60)
    assert passed == [True] * 16
    gate.open()
    assert gate.is_open() and gate.wait() and gate.wait(0)


def test_a_handler_may_open_what_its_thread_waits_for() -> None:
    for _ in range(20):
        gate, wait = Gate(), Gate()

        def interrupt(asked: Gate = wait) -> None:
            asked.wait()
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

        before = signal.signal(signal.SIGUSR1, lambda *_, opened=gate: opened.open() or opened.wait())  # type: ignore[misc]
        thread = threading.Thread(target=interrupt)
        thread.start()
        try:
            wait.open()
            assert gate.wait(60)
        finally:
            thread.join()
            signal.signal(signal.SIGUSR1, before)


def test_only_the_main_thread_wakes_to_look_for_signals() -> None:
    """A process that serves waits at gates for as long as it lives."""
    gate: Any = Gate()
    waits: list[float] = []

    class Lock:
        def acquire(self, timeout: float) -> bool:
            waits.append(timeout)
            gate.opened = True
            return False

    gate._closed = Lock()
    for call in (gate.wait, lambda: gate.wait(60), lambda: gate.wait(LOOK_UP / 2)):
        gate.opened = False
        call()
        gate.opened = False
        thread = threading.Thread(target=call)
        thread.start()
        thread.join(60)
    looks, whole, one, most, short, also = waits
    assert looks == one == LOOK_UP and whole == threading.TIMEOUT_MAX and most > LOOK_UP
    assert short <= LOOK_UP / 2 and also <= LOOK_UP / 2
