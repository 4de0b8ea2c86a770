/* A gate. One thread waits behind it, another one opens it, and a third one may help to wake the waiting thread.
 *
 * In a virtual machine it takes 15 us to wake a thread that sleeps on another processor (measured: a futex takes 33 us
 * there and back), because this needs an interrupt between processors. If a thread of the idle class polls on that
 * processor anyway (idle_poll.pyx), it sees the open gate and wakes the sleeper there; this takes 3 us there and back.
 */
#ifndef MS_GATE_H
#define MS_GATE_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <linux/futex.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define MS_HELP 5000       /* nanoseconds that a helper has to wake the sleeper before we do it */
#define MS_RECENT 2000     /* nanoseconds; a helper that last looked longer ago does not run */

typedef struct {
    int open;              /* the futex: 1 from `ms_gate_open` until the waiting thread has gone through */
    int asleep;            /* whether a thread waits */
} ms_gate;

static inline int64_t ms_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static inline void ms_pause(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Wait for the gate until `until`, a moment of ms_now() (0: for ever), and close it. Return whether it was open. */
static inline int ms_gate_wait(ms_gate *gate, int64_t until) {
    struct timespec end = {until / 1000000000, until % 1000000000};
    int passed;
    __atomic_store_n(&gate->asleep, 1, __ATOMIC_SEQ_CST);
    while (!(passed = __atomic_exchange_n(&gate->open, 0, __ATOMIC_SEQ_CST)) && (until == 0 || ms_now() < until))
        syscall(SYS_futex, &gate->open, FUTEX_WAIT_BITSET_PRIVATE, 0, until ? &end : NULL, NULL, FUTEX_BITSET_MATCH_ANY);
    __atomic_store_n(&gate->asleep, 0, __ATOMIC_SEQ_CST);
    return passed;
}

static inline void ms_gate_wake(ms_gate *gate) {
    syscall(SYS_futex, &gate->open, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

/* Wake the waiting thread if the gate is open. A helper calls this again and again. */
static inline void ms_gate_look(ms_gate *gate) {
    if (__atomic_load_n(&gate->open, __ATOMIC_ACQUIRE) && __atomic_load_n(&gate->asleep, __ATOMIC_ACQUIRE))
        ms_gate_wake(gate);
}

/* Open the gate. `looked` is the moment (ms_now()) at which a helper last looked, or NULL without helpers. */
static inline void ms_gate_open(ms_gate *gate, const int64_t *looked) {
    int64_t now;
    __atomic_store_n(&gate->open, 1, __ATOMIC_SEQ_CST);
    if (!__atomic_load_n(&gate->asleep, __ATOMIC_SEQ_CST)) return;
    now = looked == NULL ? 0 : ms_now();
    if (looked != NULL && __atomic_load_n(looked, __ATOMIC_RELAXED) > now - MS_RECENT) {
        for (int64_t until = now + MS_HELP; now < until; now = ms_now()) {
            if (!__atomic_load_n(&gate->open, __ATOMIC_ACQUIRE)) return;
            ms_pause();
        }
    }
    ms_gate_wake(gate);
}

#endif
