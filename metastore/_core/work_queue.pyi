class WorkQueue:
    """The requests that are done in pieces, with a line for each client."""

    @property
    def count(self) -> int: ...  # requests that wait, begun ones too
    @property
    def begun(self) -> int: ...
    @property
    def held(self) -> int: ...  # bytes that the begun works hold
    def busy(self) -> bool: ...  # whether there is anything to do
