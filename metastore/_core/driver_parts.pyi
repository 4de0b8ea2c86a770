"""The fields of the driver's parts that each turn looks at, to find out that there is nothing to do."""

class JudgeFields:
    """Fields of `Judge`, beside `waiting`."""

    silent: set[int]  # members that have not been reached lately
    term: int  # the core's term when this member last judged
    restate: bool  # the roster must be stated
    restate_at: float  # when it must be stated again (seconds)

class ChangesFields:
    """Fields of `MembershipChanges`: `judging` and `requests`."""

class CommittedFields:
    """Fields of `CommittedChanges`: `due`."""

class ReadsFields:
    """Fields of `ReadRounds`: `rounds` and `confirmed_rounds`."""
