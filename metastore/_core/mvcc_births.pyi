"""What turns a count of the engine into the count of another revision. For other compiled modules, and for tests."""

CHANGES: int  # births and deaths that a store remembers at most
KEY_BYTES: int  # bytes of the longest key that is remembered
PAGE_COUNTS: int  # pages whose rest is remembered at least

class Births:
    since: int  # every birth and death of a revision above this one is remembered
    lost: bool  # changes are missing that the engine does not have either
    def __init__(self, since: int) -> None: ...
    def __len__(self) -> int: ...

class PageCounts:
    def __len__(self) -> int: ...
