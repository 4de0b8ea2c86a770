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
    """The claims of Readies that are not durable yet; only compiled code uses it."""

    def __init__(self) -> None: ...
