"""The stream of a remote watcher."""

from metastore._core.h2_request import Request
from metastore._core.watch_index import Sink

class RequestSink(Sink):
    """Sends to one call of the method Watch."""

    @property
    def request(self) -> Request: ...
    def __init__(self, request: Request) -> None: ...
