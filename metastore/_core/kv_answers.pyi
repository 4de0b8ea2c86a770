"""What a Future of a put needs in compiled form."""

from typing import Any

def encode_put(key: bytes, value: bytes) -> bytes: ...  # a PutRequest with nothing else
def revision_of(reply: bytes) -> int: ...  # in the header of an encoded response; raises MalformedRequest
def resolve(fields: dict[str, Any], before: str, after: str, result: object, error: object) -> bool:
    """Resolve a Future for which nobody waits, by its attributes, as one step; return whether nobody did, and its state
    was `before`."""
