"""The first pairs of a range in an explicit order, for other compiled modules only."""

class Best:
    seen: int  # pairs looked at
    cost: int  # units that the last step took
