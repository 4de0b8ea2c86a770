"""Admission of many puts of this process."""

from collections import deque

from metastore._core.kv_pieces import Piece
from metastore._core.kv_server import KVServer
from metastore._core.waiter import Waiter

def admit_piece(server: KVServer, piece: Piece, now: float, most: int) -> int:
    """Admit at most `most` puts at `now` (seconds), as long as half of what may be in flight is free. Return their
    number; `piece.next` is where it goes on. A put that is refused has its error."""

def admit_puts(
    server: KVServer, queue: deque[tuple[str, bytes, Waiter]], now: float, most: int
) -> tuple[int, tuple[str, bytes, Waiter] | None]:
    """Admit at most `most` puts of Futures from the left end. Return their number, and the call behind them that was
    taken out and is none. A put that is refused has its error."""
