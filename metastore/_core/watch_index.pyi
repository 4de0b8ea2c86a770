"""Which watchers a changed key concerns."""

NO_END: bytes

class Sink:
    """Where the responses of one stream go. Subclasses define both methods."""

    def full(self) -> bool: ...  # whether nothing more is to be sent at the moment
    def send(self, message: bytes) -> None: ...  # one encoded WatchResponse

class Stream:
    """One Watch stream."""

    @property
    def sink(self) -> Sink: ...
    @property
    def watchers(self) -> dict[int, Watcher]: ...
    @property
    def waiting(self) -> int: ...  # watchers whose revision is still to come
    @property
    def behind(self) -> int: ...  # watchers for which history is still to be read
    def __init__(self, sink: Sink) -> None: ...

class Watcher:
    """One watcher. `end` is empty for a single key, and a zero byte for "from key on"."""

    @property
    def stream(self) -> Stream: ...
    @property
    def id(self) -> int: ...
    @property
    def key(self) -> bytes: ...
    @property
    def end(self) -> bytes: ...
    @property
    def prev_kv(self) -> bool: ...
    @property
    def no_put(self) -> bool: ...
    @property
    def no_delete(self) -> bool: ...
    @property
    def fragment(self) -> bool: ...
    @property
    def progress(self) -> bool: ...
    @property
    def state(self) -> int: ...  # 0 waiting for a revision, 1 behind, 2 live, 3 gone
    @property
    def next_rev(self) -> int: ...  # changes before it do not concern this watcher, or were sent
    @property
    def units(self) -> int: ...

def units_of(key: bytes, end: bytes) -> int: ...
