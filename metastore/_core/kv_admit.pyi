"""Admission of the puts of a piece."""

from metastore._core.kv_pieces import Piece
from metastore._core.kv_server import KVServer

def admit_piece(server: KVServer, piece: Piece, now: float, most: int) -> int:
    """Admit at most `most` puts at `now` (seconds), as long as half of what may be in flight is free. Return their
    number; `piece.next` is where it goes on. A put that is refused has its error."""
