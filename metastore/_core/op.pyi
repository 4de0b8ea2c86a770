from typing import Final

from typing_extensions import Buffer

PUT: Final[int]
DELETE_RANGE: Final[int]
TXN: Final[int]
MEMBER: int
ALARM: int
COMPACT: Final[int]
LEVEL: Final[int]

class Operation:
    @property
    def kind(self) -> int: ...
    @property
    def request_id(self) -> int: ...
    @property
    def user(self) -> bytes: ...
    @property
    def auth_rev(self) -> int: ...
    @property
    def lease_id(self) -> int | None: ...
    @property
    def wall_ms(self) -> int | None: ...
    @property
    def request(self) -> bytes: ...

def encode_op(
    kind: int,
    request_id: int,
    request: bytes,
    *,
    user: bytes = b"",
    auth_rev: int = 0,
    lease_id: int | None = None,
    wall_ms: int | None = None,
) -> bytes: ...
def decode_op(buf: Buffer) -> Operation: ...
def level_of(data: Buffer) -> int: ...
