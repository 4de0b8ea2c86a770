"""What the loop's thread tells the other threads of its process, without a lock.

`open` says that it waits for its next turn. It clears that when the wait is over; who sets it at the end of a turn says
that nothing is half done. `wanted` says that a wait of the loop's thread is over and that it needs the GIL to go on.
A thread that holds the GIL for long in compiled code looks at it and gives way. The interpreter would ask for the GIL
only after 5 ms, and not at all of a thread that lets go of it now and then and takes it again at once.
"""


cdef class Quiet:
    @property
    def open(self):
        return self.opened

    @open.setter
    def open(self, bint opened):
        if opened:
            self.opened = True
        else:
            self.shut()

    @property
    def wanted(self):
        return ms_wanted(&self.asking)

    cdef int shut(self) except -1:
        self.opened = False
        return 0
