"""What the loop's thread tells the other threads of its process, without a lock."""

class Quiet:
    open: bool  # the loop's thread waits for its next turn, and nothing is half done
    @property
    def wanted(self) -> bool: ...  # it waits for the GIL
