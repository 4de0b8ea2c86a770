"""What a fork means for the nodes of a process: they go on in that process, and in the new one they are nobody's.

A fork copies memory and descriptors, and of the threads only the one that forks. A copied node has no thread, so it
would answer nothing for ever; and its copied descriptors would keep the port, the locks and the connections of clients
open when the node closes them. So the new process lets go of these, and every call there says whose the node is.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol

#: This process. A module's variable costs less than a system call for each call of a node.
process = os.getpid()


class Copied(Protocol):
    """What a fork of its process copies, and is told of that in the new process."""

    def left_behind(self) -> None:
        """This is a copy, in another process."""


_known: weakref.WeakSet[Copied] = weakref.WeakSet()


def watch(one: Copied) -> None:
    """Have `one` told of forks from now on."""
    _known.add(one)


def forget(one: Copied) -> None:
    """It is nothing any more that a fork could harm."""
    _known.discard(one)


def _in_the_new_process() -> None:
    global process
    process = os.getpid()
    for one in list(_known):
        one.left_behind()


os.register_at_fork(after_in_child=_in_the_new_process)
