"""What belongs to the node that runs in this process, and so can be neither copied nor pickled."""

from __future__ import annotations

from typing import NoReturn, SupportsIndex


class Uncopied:
    """Raises TypeError where somebody copies or pickles it.

    A copy of a Node would stop the node when it is collected, one of a watch would close it, and nobody would answer
    one of a Future.
    """

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__}: cannot be copied or pickled, for it belongs to a node that runs in this process"
        )
