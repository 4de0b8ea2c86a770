"""Checks and fields of encoded KV requests (etcd v3 API)."""

from typing import Any

def check_put(body: bytes) -> None: ...  # raises MalformedRequest, EmptyKey, ValueProvided, LeaseProvided
def check_range(body: bytes) -> None: ...  # raises MalformedRequest, EmptyKey, InvalidSortOption
def check_delete_range(body: bytes) -> None: ...  # raises MalformedRequest, EmptyKey
def check_compact(body: bytes) -> None: ...  # raises MalformedRequest
def range_is_serializable(body: bytes) -> bool: ...  # raises MalformedRequest

# The fields of a request by their names in the API. They raise MalformedRequest.
def read_put(body: bytes) -> dict[str, Any]: ...
def read_range(body: bytes) -> dict[str, Any]: ...
def read_delete_range(body: bytes) -> dict[str, Any]: ...
def read_compact(body: bytes) -> dict[str, Any]: ...
