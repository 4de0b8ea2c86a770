"""Messages about leases. TTLs are seconds; lease ids are signed 64-bit numbers."""

from typing import Final

from metastore._core.mvcc import Store

RENEW: Final[int]
TIME_TO_LIVE: Final[int]
MOST_ASKED: Final[int]

def reply_head(store: Store) -> bytes: ...
def decode_call(body: bytes, name: str) -> tuple[int, int]: ...  # raises MalformedRequest
def decode_keepalives(messages: list[bytes]) -> list[int]: ...  # raises MalformedRequest
def keepalive_replies(
    head: bytes, idents: list[int], ttls: list[int | None], at: int, until: int
) -> bytes: ...  # each message behind gRPC's prefix
def time_to_live_reply(head: bytes, ident: int, ttl: int, granted: int, keys: list[bytes]) -> bytes: ...
def leases_part(idents: list[int], at: int, until: int) -> bytes: ...
def encode_question(kind: int, number: int, idents: list[int]) -> bytes: ...  # raises ValueError
def decode_question(data: bytes) -> tuple[int, int, list[int]]: ...  # raises FormatError
def encode_answer(kind: int, number: int, index: int, found: list[tuple[int, int, int]]) -> bytes: ...
def decode_answer(data: bytes) -> tuple[int, int, int, list[tuple[int, int, int]]]: ...  # raises FormatError
