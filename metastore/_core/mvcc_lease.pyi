"""Revoking leases."""

from metastore._core.mvcc import Store

def execute_revoke(store: Store, body: bytes, want: bool = True, budget: int = ...) -> bytes | None:
    """Carry out a LEASE_REVOKE (op.pyi) in steps of `budget` units (_core/work). Return the encoded
    LeaseRevokeResponse, or None unless `want`. Raises LeaseNotFound, FormatError."""
