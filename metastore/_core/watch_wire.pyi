"""Messages of etcd's Watch service."""

class WatchRequest:
    """One decoded WatchRequest. `kind` is 0 unknown, 1 create, 2 cancel, 3 progress."""

    kind: int
    key: bytes
    range_end: bytes
    start_revision: int
    watch_id: int
    progress_notify: bool
    prev_kv: bool
    fragment: bool
    no_put: bool
    no_delete: bool

def decode_request(body: bytes) -> WatchRequest: ...  # raises MalformedRequest
