class WorkQueue:
    count: int
    begun: int
    held: int
    def busy(self) -> bool: ...
