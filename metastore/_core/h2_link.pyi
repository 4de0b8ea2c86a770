"""What an HTTP/2 session and its requests share."""

from typing import Any

from metastore._core.grpc import Limits, MethodTable

class Link:
    limits: Limits
    methods: MethodTable
    owner: Any  # the connection, for whoever walks `dirty`
    pending_output: int  # reply bytes not taken yet
    buffered: int  # request bytes not answered yet
    taken: int  # bytes ever given out by take_output
    open_streams: int
    failed: bool
    received: int  # bytes ever given to `feed`
    asked: bool  # a whole request came, or the first message of a streaming one
    asked_at: float  # when the last of them did, as `feed` was told
    error: str | None  # why it failed, or which flood ended it
