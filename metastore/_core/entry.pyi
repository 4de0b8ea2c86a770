from typing import Final

from typing_extensions import Buffer

MAX_PAYLOAD: Final[int]
NORMAL: Final[int]
CONF_CHANGE: Final[int]
CONF_CHANGE_V2: Final[int]

class Entry:
    """One entry of the Raft log; immutable. ValueError for an unknown type."""

    @property
    def term(self) -> int: ...
    @property
    def index(self) -> int: ...
    @property
    def type(self) -> int: ...  # NORMAL, CONF_CHANGE or CONF_CHANGE_V2
    @property
    def data(self) -> bytes: ...  # the payload
    def __init__(self, term: int = 0, index: int = 0, type: int = 0, data: bytes = b"") -> None: ...
    def __eq__(self, other: object) -> bool: ...
    def __hash__(self) -> int: ...

class HardState:
    """The persistent state of a Raft node; immutable."""

    @property
    def term(self) -> int: ...
    @property
    def vote(self) -> int: ...  # member voted for in this term; 0: none
    @property
    def commit(self) -> int: ...  # commit index
    def __init__(self, term: int = 0, vote: int = 0, commit: int = 0) -> None: ...
    def __eq__(self, other: object) -> bool: ...
    def __hash__(self) -> int: ...
    def __bool__(self) -> bool: ...
    def encode(self) -> bytes: ...  # 32 bytes
    @staticmethod
    def decode(buf: Buffer) -> HardState: ...  # raises FormatError

def encode_entry(entry: Entry) -> bytes: ...  # raises ValueError above MAX_PAYLOAD
def decode_entry(buf: Buffer, pos: int = 0) -> tuple[Entry, int]:
    """The entry and the position after it. Raises FormatError."""

def decode_entries(buf: Buffer) -> list[Entry]: ...  # raises FormatError
