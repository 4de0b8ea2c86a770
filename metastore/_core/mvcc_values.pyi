"""The values of pairs that a range has collected without them."""
