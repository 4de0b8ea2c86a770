"""What remains of HTTP/2 sessions whose connections are gone is given back in pieces.

A client may have 4,096 calls open when its connection ends. On a busy machine it took 15 ms to let go of 4,000 watch
streams, and 4 ms to give back nghttp2's memory. The calls therefore go a few at a time, in turns of the loop. Another
thread gives back nghttp2's memory, which cannot be done in pieces.

Until then the calls and frames stay on the account of `Limits`, which therefore bounds what may wait here: new calls
are refused before a client that connects and leaves quickly can fill the memory.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from metastore._core.h2 import Session
from metastore.net.loop import Loop

#: A session that holds no more calls and frames than this goes at once. This takes 0.5 ms.
FEW: Final = 256
#: Calls that go before the clock is looked at, and the seconds of one turn for all of them.
CALLS: Final = 64
PIECE_TIME: Final = 0.003
#: Threads that give back memory at the same time. Where there are as many, the loop does it.
MOST_THREADS: Final = 4


class Endings:
    """The sessions of one listener that have ended. `another_turn` makes the loop call `go_on` again."""

    def __init__(self, loop: Loop, another_turn: Callable[[], object]) -> None:
        self._loop = loop
        self._another_turn = another_turn
        self._sessions: deque[Session] = deque()
        self._threads: list[threading.Thread] = []

    def __len__(self) -> int:
        """The number of sessions that still have calls to let go."""
        return len(self._sessions)

    def end(self, session: Session) -> None:
        """Ends a session at once, and gives back what it holds now or in later turns."""
        if session.held <= FEW:
            session.close()
            return
        session.quit()
        self._sessions.append(session)
        self._another_turn()

    def go_on(self) -> None:
        """Lets some calls go. The loop calls this once a turn while there are any."""
        if not self._sessions:
            return
        until = self._loop.now() + PIECE_TIME
        while self._sessions:
            if self._sessions[0].let_go(CALLS):
                self._free(self._sessions.popleft())
            if self._loop.now() >= until:
                break
        if self._sessions:
            self._another_turn()

    def _free(self, session: Session) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        if len(self._threads) < MOST_THREADS:
            thread = threading.Thread(target=session.free, name="metastore-ending")
            try:
                thread.start()
            except RuntimeError:
                pass  # the system has no more threads
            else:
                self._threads.append(thread)
                return
        session.free()

    def close(self) -> None:
        """Gives everything back now; idempotent."""
        while self._sessions:
            self._sessions.popleft().close()
        for thread in self._threads:
            thread.join()
        self._threads = []
