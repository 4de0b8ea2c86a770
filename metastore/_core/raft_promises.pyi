class Claim:
    """Entries and a snapshot that Ready `number` will make durable."""

    @property
    def number(self) -> int: ...
    @property
    def last_index(self) -> int: ...
    @property
    def last_term(self) -> int: ...
    @property
    def snapshot_index(self) -> int: ...  # 0: no snapshot

class Promises:
    def __init__(self) -> None: ...
