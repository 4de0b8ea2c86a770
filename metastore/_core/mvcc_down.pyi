"""A range from its end to its start, for other compiled modules only."""
