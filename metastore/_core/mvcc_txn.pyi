"""Checks of encoded TxnRequests."""

def check_txn(body: bytes, max_ops: int = 128) -> None:
    """Check a TxnRequest at admission, with at most `max_ops` operations along any path. Raises MalformedRequest,
    TooManyOps, EmptyKey, ValueProvided, LeaseProvided, InvalidSortOption, KeyNotFound (an empty operation),
    DuplicateKey."""

def txn_is_readonly(body: bytes) -> bool: ...  # raises MalformedRequest
def txn_is_serializable(body: bytes) -> bool: ...  # raises MalformedRequest
