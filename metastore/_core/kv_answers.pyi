"""What a Future of a put needs in compiled form."""

from typing import Any

from metastore._core.waiter import RevisionWaiter

def encode_put(key: bytes, value: bytes) -> bytes: ...  # a PutRequest with nothing else
def resolve(fields: dict[str, Any], result: object, error: object) -> bool:
    """Resolve a Future for which nobody waits, by its attributes, as one step; return whether nobody did, and it was
    not resolved."""

class FuturePut(RevisionWaiter):
    """Resolves a Future with the result of a put: a `kind`, which has slots for `revision` and `prev`."""

    @property
    def future(self) -> Any: ...
    def __init__(self, future: Any, kind: type) -> None: ...
