from metastore.errors import MetaStoreError

class Waiter:
    """Gets one answer, by one call of one method. reply: the encoded message, without gRPC prefix."""

    def complete(self, reply: bytes) -> None: ...
    def fail(self, error: MetaStoreError) -> None: ...

class RevisionWaiter(Waiter):
    """Waits for a put, and wants its revision instead of a reply."""
