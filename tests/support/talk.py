"""A session without sockets and the client's view of it."""

from __future__ import annotations

from metastore._core.grpc import Limits, MethodTable
from metastore._core.h2 import Session
from metastore._core.h2_request import Request

from . import http2 as h

PUT, OTHER, BIDI = 0, 1, 2
OTHER_PATH, BIDI_PATH = b"/test.Test/Other", b"/test.Test/Bidi"
TABLE = MethodTable({h.PUT_PATH: PUT, OTHER_PATH: OTHER, BIDI_PATH: BIDI}, streaming=[BIDI_PATH])
NO_ERROR, PROTOCOL_ERROR, REFUSED_STREAM, CALM = 0, 1, 7, 11
CALL = 1024  # bytes that a call counts besides its own


class Talk:
    """A session and the client's view of it."""

    def __init__(self, window: int = 1 << 24, **limits: float) -> None:
        self.limits = Limits(**limits)
        self.dirty: list[Session] = []
        self.session = Session(TABLE, self.limits, self.dirty)
        self.reader = h.Reader()
        self.now = 0.0
        self.feed(h.hello(window))
        self.flush()

    def feed(self, data: bytes) -> list[Request]:
        return self.session.feed(data, len(data), self.now)

    def bytewise(self, data: bytes) -> list[Request]:
        return [request for i in range(len(data)) for request in self.feed(data[i : i + 1])]

    def flush(self) -> h.Reader:
        while data := self.session.take_output():
            self.reader.feed(data)
        return self.reader

    def answer(self, data: bytes, stream: int = 1) -> h.Stream:
        """Feed the session, and return what came back on `stream` without any help of the server."""
        assert self.feed(data) == []
        return self.flush().stream(stream)


def finished(talk: Talk, code: int) -> None:
    """Check that the session sent GOAWAY with `code`, or failed outright, and is over, and that its requests are
    gone."""
    reader = talk.flush()
    assert talk.session.closed
    assert talk.session.failed or (reader.goaway is not None and reader.goaway[1] == code)
    talk.session.close()
    assert (talk.session.open_streams, talk.limits.total_buffered) == (0, 0)
