"""The budgets of one turn, in units (_core/work)."""

from collections.abc import Callable
from typing import Final

APPLY_BUDGET: Final[int]
WATCH_BUDGET: Final[int]

def whole() -> float: ...  # the share of a turn in which time does not count

class Budgets:
    """What one turn may cost, in units (_core/work). Whoever made the object may change it between two turns."""

    apply: int  # the entries that are applied from one `pump` to the next
    serve: int  # the requests of this turn
    watch: int  # what watchers are sent of new changes, and the same once more of history
    share: Callable[[], float]  # how much is left of the turn, from 1.0 down to 0.0
    again: int  # how many further budgets of applying a turn may spend while most of it is left
    def __init__(
        self,
        *,
        apply: int = ...,
        serve: int = ...,
        watch: int = ...,
        share: Callable[[], float] = ...,
        again: int = 0,
    ) -> None: ...
    def part(self, budget: int, spent: int = 0) -> int:
        """What is left of a budget, of which this turn has spent some: at least one unit."""
