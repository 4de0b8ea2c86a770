"""HTTP/1.1 on one connection (RFC 9112), parsed by httptools. Requests are answered in order, each with one answer.

Parsing and answering are separate steps: `feed` takes bytes and queues the requests, and `answer_next` answers the
oldest one. A client that sends thousands of requests at once therefore gets one answer in each turn of the loop. The
caller feeds few bytes at a time, and feeds nothing more while requests wait.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import httptools

from metastore import errors
from metastore._core.grpc import Limits
from metastore.api.answers import TEXT, Answer, Later

log = logging.getLogger("metastore.http")

REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    409: "Conflict",
    412: "Precondition Failed",
    413: "Content Too Large",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}

MAX_HEADERS: Final = 100

#: Answers one request, now or later: method, target with its query, headers by lower-case name, body.
Page = Callable[[str, str, dict[str, str], bytes], Answer | Later]


class HttpError(Exception):
    """An HTTP/1.1 request raises this when it must be answered with an error and its connection must end."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    keep: bool  # the connection goes on after the answer


class HttpSession:
    """The HTTP/1.1 side of one connection.

    `max_header` and `max_body` bound a request, in bytes; the body is charged to the account of `limits`. The session
    calls `wake` when an answer has come that `answer_next` had to wait for.
    """

    def __init__(
        self, page: Page, limits: Limits, wake: Callable[[], object], *, max_header: int, max_body: int
    ) -> None:
        self._page = page
        self._wake = wake
        self._pending: _Request | None = None  # its answer comes later
        self._limits = limits
        self._max_header = max_header
        self._max_body = max_body
        self._parser = httptools.HttpRequestParser(self)
        self._output: list[bytes] = []
        self._waiting: deque[_Request | HttpError] = deque()
        self._path = b""
        self._headers: dict[str, str] = {}
        self._body = bytearray()
        self._charged = 0  # bytes of bodies on the account
        self._size = 0  # header bytes as RFC 9113 6.5.2 counts them
        self._raw = 0  # bytes of this request as they came
        self._in_body = False
        self._expects = False
        self._retired = False
        self._last = False  # no request after the one that came last
        #: True between requests, when nothing of the next one has come.
        self.idle = True
        self.closed = False

    def feed(self, data: bytes | memoryview) -> None:
        """Takes bytes from the client. It never raises because of their contents."""
        if self.closed or self._last:
            return
        try:
            self._parser.feed_data(data)
            if not self.idle:
                self._count_raw(len(data))
        except httptools.HttpParserUpgrade:
            # RFC 9110 7.8 allows to ignore an upgrade. The request is answered; the bytes behind it are discarded.
            self._last = True
        except HttpError as error:
            self._give_up(error)
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            if not isinstance(cause, HttpError):
                raise
            self._give_up(cause)
        except httptools.HttpParserError as error:
            self._give_up(HttpError(400, f"malformed HTTP request: {error}"))

    def take_output(self) -> bytes:
        """Returns the bytes to send; empty when there are none."""
        output = b"".join(self._output)
        self._output.clear()
        return output

    @property
    def waiting(self) -> bool:
        """Whether there are requests without an answer."""
        return bool(self._waiting) or self._pending is not None

    @property
    def ready(self) -> bool:
        """Whether `answer_next` has something to do."""
        return bool(self._waiting) and self._pending is None

    @property
    def quiet(self) -> bool:
        """Whether no request is under way: none is partly received, and none waits for its answer."""
        return self.idle and not self.waiting

    def answer_next(self) -> None:
        """Answers the oldest request that waits.

        If a page raises an exception, the client gets a 500 and the log gets a line. The node goes on for its other
        clients.
        """
        request = self._waiting.popleft()
        if isinstance(request, HttpError):
            self._answer(request.status, TEXT, f"{request.text}\n".encode(), keep=False)
            return
        answer: Answer | Later
        try:
            answer = self._page(request.method, request.path, request.headers, request.body)
        except errors.ApiError as error:
            answer = error.http_status, TEXT, f"{error.text}\n".encode()
        except errors.MetaStoreError:
            raise
        except Exception:
            log.exception("the page %s failed", request.path[:200])
            answer = 500, TEXT, b"internal error, see the server's log\n"
        if isinstance(answer, Later):
            self._pending = request
            answer.on_answer = self._came
        else:
            self._answered(request, answer)

    def _came(self, answer: Answer) -> None:
        request, self._pending = self._pending, None
        if request is not None and not self.closed:
            self._answered(request, answer)
            self._wake()

    def _answered(self, request: _Request, answer: Answer) -> None:
        self._uncharge(len(request.body))
        keep = request.keep and not (self._retired and not self._waiting)
        self._answer(*answer, keep=keep, head=request.method == "HEAD")

    def close(self) -> None:
        """Gives back the bytes that the account holds for this connection; idempotent."""
        self.closed = True
        self._uncharge(self._charged)

    def _uncharge(self, size: int) -> None:
        self._charged -= size
        self._limits.total_buffered -= size

    def _give_up(self, error: HttpError) -> None:
        self._last = True
        self._waiting.append(error)

    def _count(self, size: int) -> None:
        self._size += size
        if self._size > self._max_header:
            raise HttpError(431, "request header too large")

    def _count_raw(self, size: int) -> None:
        # The parser reports a header, or a trailer, only when its line is complete.
        self._raw += size
        if not self._in_body and self._raw > self._max_header:
            raise HttpError(431, "request header too large")
        if self._raw > self._max_header + 2 * self._max_body:
            raise HttpError(413, "request too large")

    def on_message_begin(self) -> None:
        self.idle = self._in_body = False
        self._raw = 0
        self._path = b""
        self._headers = {}
        self._body = bytearray()
        self._size = 0
        self._expects = False

    def on_url(self, url: bytes) -> None:
        self._path += url
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + 32)
        if len(self._headers) >= MAX_HEADERS:
            raise HttpError(431, f"more than {MAX_HEADERS} header fields")
        key = name.decode("latin-1").lower()
        self._headers[key] = value.decode("latin-1")
        if key == "expect" and value.lower() == b"100-continue":
            self._expects = True

    def on_headers_complete(self) -> None:
        self._in_body = True
        if self._expects and self._parser.get_http_version() == "1.1":
            self._output.append(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        if len(self._body) + len(body) > self._max_body:
            raise HttpError(413, "request body too large")
        if self._limits.total_buffered + len(body) > self._limits.max_total_buffered:
            raise HttpError(503, "too many requests")
        self._body += body
        self._uncharge(-len(body))

    def on_message_complete(self) -> None:
        self.idle = True
        if self._last:
            return
        method = self._parser.get_method().decode("latin-1")
        body, self._body = bytes(self._body), bytearray()
        keep = self._keeps()
        self._last = not keep
        self._waiting.append(_Request(method, self._path.decode("latin-1"), self._headers, body, keep))

    def retire(self) -> None:
        """Accepts no request after the one that has begun."""
        self._retired = True
        if self.quiet:
            self.closed = True

    def _keeps(self) -> bool:
        return bool(self._parser.should_keep_alive()) and not self._parser.should_upgrade()

    def _answer(self, status: int, kind: str, body: bytes, *, keep: bool, head: bool = False) -> None:
        lines = [
            f"HTTP/1.1 {status} {REASONS.get(status, 'Status')}",
            f"Content-Type: {kind}",
            f"Content-Length: {len(body)}",
        ]
        if status == 405:
            lines.append("Allow: GET")
        if not keep:
            lines.append("Connection: close")
            self.closed = True
        self._output.append("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n")
        if not head:
            self._output.append(body)
