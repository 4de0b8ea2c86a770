"""Which watchers a changed key concerns."""

NO_END: bytes

class Sink:
    """Where the responses of one stream go. Subclasses define both methods."""

    def full(self) -> bool: ...  # whether nothing more is to be sent at the moment
    def send(self, message: bytes) -> None: ...  # one encoded WatchResponse

class Stream:
    """One Watch stream."""

    sink: Sink
    watchers: dict[int, Watcher]
    behind: int  # watchers for which history is still to be read
    def __init__(self, sink: Sink) -> None: ...

class Watcher:
    """One watcher. `end` is empty for a single key, and a zero byte for "from key on"."""

    stream: Stream
    id: int
    key: bytes
    end: bytes
    prev_kv: bool
    no_put: bool
    no_delete: bool
    fragment: bool
    progress: bool
    state: int  # 0 waiting for a revision, 1 behind, 2 live, 3 gone
    next_rev: int  # changes before it do not concern this watcher, or were sent
    units: int

def units_of(key: bytes, end: bytes) -> int: ...
