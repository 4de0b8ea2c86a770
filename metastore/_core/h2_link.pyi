"""Common part of an HTTP/2 session and its requests."""

from typing import Any

from metastore._core.grpc import Limits, MethodTable

class Link:
    limits: Limits
    methods: MethodTable
    owner: Any  # the connection, for the code that goes through `dirty`
    pending_output: int  # reply bytes that take_output has not returned yet
    buffered: int  # request bytes that are not answered yet
    taken: int  # bytes that take_output has returned in all
    replied: int  # those of them that are messages of replies
    open_streams: int
    failed: bool
    received: int  # bytes that `feed` has received in all
    asked: bool  # a whole request arrived, or the first message of a streaming one
    asked_at: float  # time at which the last of these arrived, as given to `feed`
    error: str | None  # reason why it failed, or the flood that ended it
