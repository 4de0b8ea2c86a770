"""Threads of the idle class that keep a processor awake while a client waits for the disk.

A single client's put is a chain of short waits: for the write, for the flush, for the client's next request. Each time
a processor has nothing to do it halts, and in a virtual machine waking it costs more than the work that it wakes for.
Measured with one client and one put at a time on two virtual processors: the median is 300-330 us without these threads
and 190-230 us with them (etcd, whose runtime also polls for work: 250-270). They cost processor time that no other
thread wants: 400 us a put instead of 180.

Therefore they poll only for a client that is measured to come back within their time, put after put. Arrivals that are
spread over time gain nothing: at 1,000 puts a second of 50 clients these threads were half of all processor time (474 us
a put, 208 without them).

These threads also wake others. A thread that sleeps on the processor that one of them keeps awake is woken by it, and not by
an interrupt from another processor, which costs five times as much (gate.h).

Their policy is SCHED_IDLE (sched(7)): any other thread goes first. The loops never take the GIL.
"""

from libc.errno cimport errno
from libc.stdint cimport int64_t

cdef extern from "semaphore.h" nogil:
    int sem_init(sem_t*, int, unsigned int)
    int sem_wait(sem_t*)
    int sem_post(sem_t*)
    int sem_destroy(sem_t*)

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <pthread.h>
    #include <sched.h>
    #include <stdint.h>
    #include <time.h>

    #define ms_load(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
    #define ms_store(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)

    /* The calling thread gets what others leave. */
    static int ms_idle_class(void) {
        struct sched_param none = {0};
        return sched_setscheduler(0, SCHED_IDLE, &none);
    }

    static int ms_bind(unsigned long thread, int cpu) {
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        return pthread_setaffinity_np((pthread_t)thread, sizeof(one), &one);
    }

    static int64_t ms_thread_time(void) {
        struct timespec used;
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
        return (int64_t)used.tv_sec * 1000000000 + used.tv_nsec;
    }

    /* `used` is told how much processor time the thread has used. Asking takes a system call. */
    static void ms_poll(int64_t* until, int64_t* looked, int64_t* used, ms_gate** gates) {
        int64_t now, told = ms_now();
        while ((now = ms_now()) < ms_load(until)) {
            ms_store(looked, now);
            if (now - told > 10000000) {
                told = now;
                ms_store(used, ms_thread_time());
            }
            for (int i = 0; i < 16; i++) {
                if (gates[0]) {
                    ms_gate_look(gates[0]);
                    ms_gate_look(gates[1]);
                }
                ms_pause();
            }
        }
        ms_store(used, ms_thread_time());
    }
    """
    int ms_load(int*) nogil
    void ms_store(int*, int) nogil
    void ms_store_time "ms_store"(int64_t*, int64_t) nogil
    int ms_idle_class() nogil
    int ms_bind(unsigned long, int) nogil
    int64_t ms_load_time "ms_load"(int64_t*) nogil
    void ms_poll(int64_t*, int64_t*, int64_t*, ms_gate**) nogil     # C, for the debug build traces every line of Cython and takes the GIL for it
    unsigned long pthread_self() nogil
    int sched_getcpu() nogil


cdef enum:
    LONGEST = 1_000_000      # nanoseconds
    MOST_RETURNS = 8
    ENOUGH_RETURNS = 4       # two pauses in a row of a steady client are one too many


cdef class IdlePollers:
    """The loops, and the state that the main thread shares with them. `linger` is in seconds: the loops poll so long
    after a wait, for a client that comes back within this time. `cpus` names two processors to keep awake; if it is empty, the one on which `keep` is called is kept
    awake."""

    def __cinit__(self, double linger, tuple cpus):
        cdef int i
        if len(cpus) not in (0, MAX_POLLERS):
            raise ValueError(f"{len(cpus)} processors to keep awake; it is either none or {MAX_POLLERS}")
        self.linger = <int64_t>(linger * 1e9)
        self.count = MAX_POLLERS if cpus else 1
        for i in range(MAX_POLLERS):
            self.cpus[i] = cpus[i] if cpus else -1
            self.pollers[i].cpu = -1
            if sem_init(&self.pollers[i].wake, 0, 0) != 0:
                raise OSError(errno, "sem_init")

    def __dealloc__(self):
        cdef int i
        for i in range(MAX_POLLERS):
            sem_destroy(&self.pollers[i].wake)

    cdef int help(self, ms_gate* one, ms_gate* other, object owner) except -1:
        """Help to wake the threads that wait at these gates, which are part of `owner`. Call it before any thread waits."""
        self.gates[0], self.gates[1], self.owner = one, other, owner
        return 0

    def run(self, int which):
        """Main function of thread number `which`. It returns after `stop`."""
        if not 0 <= which < self.count:
            raise ValueError(f"no poller {which}")
        with nogil:
            self.loop(&self.pollers[which])

    cdef void loop(self, Poller* mine) noexcept nogil:
        mine.thread = pthread_self()
        if ms_idle_class() != 0:
            # Without the idle class the loop would take time from other threads, so do not run it.
            return
        while not ms_load(&self.stopping):
            ms_store(&mine.asleep, 1)
            while sem_wait(&mine.wake) != 0:
                pass
            ms_poll(&self.until, &self.looked, &mine.used, self.gates)

    cdef void waiting(self, size_t client) noexcept nogil:
        """A wait for the disk begins, for a write of `client`, a number of which nothing is known. It ends with `waited`
        or after LONGEST. One thread calls both."""
        cdef bint paid = self.returns >= ENOUGH_RETURNS
        # As long as nobody polls, the client's way here and back takes about twice as long.
        if client == self.client and ms_now() - self.answered <= (self.linger if paid else 2 * self.linger):
            if self.returns < MOST_RETURNS:
                self.returns += 1
        else:
            self.returns //= 2
        self.client = client
        if self.returns >= ENOUGH_RETURNS:
            self.keep(LONGEST)

    cdef void waited(self) noexcept nogil:
        """The disk is done. Now the reply goes out, and perhaps the client's next request arrives."""
        self.answered = ms_now()
        if self.returns >= ENOUGH_RETURNS:
            self.keep(self.linger)

    @property
    def seconds(self):
        """Processor time that the threads have used, up to 10 ms ago."""
        cdef int i
        cdef int64_t used = 0
        for i in range(self.count):
            used += ms_load_time(&self.pollers[i].used)
        return used / 1e9

    cdef void keep(self, int64_t span) noexcept nogil:
        cdef int i, asleep, cpu = sched_getcpu()
        cdef Poller* one
        ms_store_time(&self.until, ms_now() + span)
        for i in range(self.count):
            one = &self.pollers[i]
            if self.count > 1:
                cpu = self.cpus[i]
            asleep = ms_load(&one.asleep)
            # The thread is neither asleep nor bound to a processor, so it has not begun yet.
            if one.cpu != cpu and (asleep or one.cpu >= 0):
                one.cpu = cpu
                ms_bind(one.thread, cpu)
            if asleep:
                ms_store(&one.asleep, 0)
                sem_post(&one.wake)

    def stop(self):
        """Let every `run` return."""
        cdef int i
        ms_store(&self.stopping, 1)
        ms_store_time(&self.until, 0)
        for i in range(self.count):
            sem_post(&self.pollers[i].wake)
