"""Work in pieces. The head of work.pyx is the contract."""

class Detours:
    """How the walks of an engine in files went."""

    count: int  # detours that they have made around removed records
    runs: int  # values that `find_many` has found one behind the other

class Work:
    """One request that is done piece by piece. Budgets and costs are units of work.pxd."""

    @property
    def cost(self) -> int: ...  # units that the last step took
    @property
    def held(self) -> int: ...  # bytes that it holds for its reply
    @property
    def reply(self) -> object: ...  # bytes, when `step` has returned True; None when no reply is wanted
    def step(self, budget: int) -> bool: ...  # whether it is done; raises ApiError, DamagedData and engine errors
    def discard(self, budget: int) -> bool: ...  # give back what is held; returns whether that is all

def set_held_most(one: int, together: int) -> None: ...  # bytes for one reply, and for those of all begun works
