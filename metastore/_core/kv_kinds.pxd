"""What an encoded request asks for, as far as admission must know it. The requests are well formed."""

from libc.stdint cimport int64_t, uint8_t

# Whether an operation may delete more than single keys.
cdef bint deletes_ranges(int kind, const uint8_t* body, size_t size) except -1

# Whether an operation adds to the state: what the quota and a full disk refuse.
cdef bint takes_room(int kind, const uint8_t* body, size_t size) except -1

# Whether a RangeRequest is about more than one key, and its limit does not keep it below `few` and 1.
cdef bint range_is_long(bytes body, int64_t few) except -1
