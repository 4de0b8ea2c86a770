class IdlePollers:
    """Threads that keep processors awake. `linger`: seconds that they poll after a wait. `cpus`: two processors, or
    none for the one in use."""

    def __init__(self, linger: float, cpus: tuple[int, ...]) -> None: ...
    @property
    def count(self) -> int: ...  # threads
    @property
    def seconds(self) -> float: ...  # processor time that the threads have used
    def run(self, which: int) -> None: ...  # main function of thread number `which`
    def stop(self) -> None: ...  # lets every `run` return
