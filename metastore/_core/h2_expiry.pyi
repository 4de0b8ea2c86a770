"""Time limits of the calls of all sessions."""

from metastore._core.grpc import Limits
from metastore._core.h2_request import Request

def expire(limits: Limits, now: float) -> list[Request]:
    """End the calls whose time has passed at `now` (seconds). Return those past their client's grpc-timeout; the others
    did not arrive completely in time."""
