cdef class MessageIntake:
    cdef readonly object _driver        # replica.driver.Driver
    cdef readonly object _loop          # net.loop.Loop
    cdef readonly object _declines
    cdef readonly object _held
    cdef public object founding         # peers.founding.Founding, or None
    cdef public object ticks            # member.ticks.Ticks, or None before a member serves
