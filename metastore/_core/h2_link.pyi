"""Common part of an HTTP/2 session and its requests."""

from typing import Any

from metastore._core.grpc import Limits, MethodTable

class Link:
    """The state of a session that its requests use. Sizes are bytes, times seconds as given to `feed`."""

    owner: Any  # the connection, for the code that goes through `dirty`
    @property
    def limits(self) -> Limits: ...
    @property
    def methods(self) -> MethodTable: ...
    @property
    def pending_output(self) -> int: ...  # reply bytes that take_output has not returned yet
    @property
    def patient_output(self) -> int: ...  # those of them that the client may leave unread
    @property
    def patient_streams(self) -> int: ...  # number of calls that they belong to
    @property
    def choked(self) -> int: ...  # number of calls for whose sake this connection is not to be read
    @property
    def buffered(self) -> int: ...  # request bytes that are not answered yet
    @property
    def taken(self) -> int: ...  # bytes that take_output has returned in all
    @property
    def replied(self) -> int: ...  # the part of these that is messages of replies
    @property
    def open_streams(self) -> int: ...  # number of streams
    @property
    def failed(self) -> bool: ...  # the session is unusable
    @property
    def received(self) -> int: ...  # bytes that `feed` has received in all
    @property
    def asked(self) -> bool: ...  # a whole request arrived, or the first message of a streaming one
    @property
    def asked_at(self) -> float: ...  # time at which the last of these arrived
    @property
    def error(self) -> str | None: ...  # reason why it failed, or the flood that ended it
