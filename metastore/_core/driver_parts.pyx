"""The fields of the driver's parts that each turn looks at, to find out that there is nothing to do.

They are compiled because `driver_path` looks at them some twenty times for a put, and each look into an object of
Python cost 20 ns, and more with cold caches. The classes of `replica/membership_changes.py` and
`replica/read_rounds.py` inherit them.
"""


cdef class JudgeFields:
    """Fields of `Judge`."""


cdef class ChangesFields:
    """Fields of `MembershipChanges`."""


cdef class CommittedFields:
    """Fields of `CommittedChanges`."""


cdef class ReadsFields:
    """Fields of `ReadRounds`."""
