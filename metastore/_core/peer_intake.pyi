"""What each Raft message and each forward of another member passes on its way to the driver."""

from collections.abc import Callable
from typing import Any

from metastore._core.raft_types import Message

class MessageIntake:
    """The compiled half of the dealings with other members. A subclass has `_taken_in_by(message)`: whether a member
    that has not begun yet begins with this message.

    declines: whether this member does not take leadership from a member. held: whether a snapshot (index, term) is
    here.
    """

    #: What decides when this member begins; None: it has.
    founding: Any
    #: The member's ticks. Where it rests, one that is due comes before a message is received.
    ticks: Any
    _driver: Any
    _loop: Any
    _declines: Callable[[int], bool]
    _held: Callable[[int, int], bool]

    def __init__(
        self, driver: Any, loop: Any, declines: Callable[[int], bool], held: Callable[[int, int], bool]
    ) -> None: ...
    def on_message(self, message: Message) -> None:
        """A Raft message has come."""

    def on_forward(self, from_: int, frame: bytes) -> None:
        """A follower forwards operations to be proposed."""
