"""Keys that are too long for a storage engine."""

from libc.stdint cimport uint8_t

# What kind of a request it is: a method of KVServer, or a kind of an operation, and 1.
cdef enum:
    KEYS_RANGE = 1
    KEYS_PUT = 2
    KEYS_DELETE = 3
    KEYS_TXN = 4

# Raises RequestTooLarge if a request has a key or an end of a range of more than `most` bytes; 0: no limit. Kinds above
# KEYS_TXN have no keys. The request need not be well formed.
cdef int check_keys(int kind, const uint8_t* body, size_t n, size_t most) except -1
