"""Transactions that are nothing but a few puts."""

from metastore._core.mvcc import Store

def puts_reply(store: Store, body: bytes, want: bool = True) -> object:
    """Run such a transaction. Return the encoded TxnResponse (None unless `want`), or False if it is another one."""
