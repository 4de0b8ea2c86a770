"""What each Raft message and each forward of another member passes on its way to the driver.

It is compiled because a put brings two messages to its leader, and three functions of the interpreter found for each that
nothing was the matter.
"""

from libc.stdint cimport uint64_t

from metastore._core.raft_types cimport MSG_TIMEOUT_NOW, Message


cdef class MessageIntake:
    def __init__(self, driver, loop, declines, held):
        self._driver = driver
        self._loop = loop
        self._declines = declines
        self._held = held

    def on_message(self, Message message not None):
        if message.type == MSG_TIMEOUT_NOW and self._declines(message.from_):
            return
        if self.ticks is not None and self.ticks.rests:
            self.ticks.catch_up()
        if self.founding is not None and not self._taken_in_by(message):
            return
        if message.snapshot is None or self._held(message.snapshot.index, message.snapshot.term):
            self._driver.receive(message)

    def on_forward(self, uint64_t from_, bytes frame not None):
        self._driver.receive_forward(from_, frame, self._loop.now())
