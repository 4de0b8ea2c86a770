"""Lists of pairs that a range has collected, for other compiled modules only."""
