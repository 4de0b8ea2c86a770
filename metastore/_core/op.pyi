"""Operations of the log; layout: FORMATS.md, "Operation"."""

from typing import Final

from typing_extensions import Buffer

PUT: Final[int]
DELETE_RANGE: Final[int]
TXN: Final[int]
MEMBER: Final[int]
ALARM: Final[int]
COMPACT: Final[int]
LEASE_GRANT: Final[int]
LEASE_REVOKE: Final[int]
LEASE_CHECKPOINT: Final[int]
LEVEL: Final[int]  # the highest operation level that this version can apply

class Operation:
    """One decoded operation."""

    @property
    def kind(self) -> int: ...  # PUT, ...
    @property
    def request_id(self) -> int: ...  # unsigned 64-bit, unique over restarts
    @property
    def user(self) -> bytes: ...  # empty: nobody is logged in
    @property
    def auth_rev(self) -> int: ...  # auth revision at which the user was checked
    @property
    def lease_id(self) -> int | None: ...
    @property
    def wall_ms(self) -> int | None: ...  # milliseconds since 1970, fixed by the leader
    @property
    def request(self) -> bytes: ...  # the client's message

def encode_op(
    kind: int,
    request_id: int,
    request: bytes,
    *,
    user: bytes = b"",
    auth_rev: int = 0,
    lease_id: int | None = None,
    wall_ms: int | None = None,
) -> bytes: ...  # raises ValueError
def decode_op(buf: Buffer) -> Operation: ...  # raises FormatError
def level_of(data: Buffer) -> int: ...  # the level that the operation needs; raises FormatError
