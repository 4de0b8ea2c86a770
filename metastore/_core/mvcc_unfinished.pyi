"""Records of an entry that has not ended; only compiled code uses them."""
