from metastore.errors import MetaStoreError

class Waiter:
    """Gets one answer, by one call of one method. reply: the encoded message, without gRPC prefix."""

    def complete(self, reply: bytes) -> None: ...
    def fail(self, error: MetaStoreError) -> None: ...
