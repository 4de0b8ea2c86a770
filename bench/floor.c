/* The floor: what a durable put costs a plain program in C, and what loads it. bench/floor.py compiles and runs it.
 *
 *     floor serve FILE GATHER_US [PEER_PORT...]              prints its port; with peers it is the leader
 *     floor load PORT even|poisson|h2load RATE SECONDS SEED  puts at a steady rate, whatever the answers do
 *     floor lone PORT COUNT                                  one put after the other
 *
 * A put is a message of 300 bytes, as one with a value of 256 bytes is behind its headers. The server appends a record
 * of 384 bytes for it to FILE, syncs in a thread of its own, and answers with 60 bytes. There is no HTTP/2, no store
 * and no revision. A leader sends the puts of one turn to each peer in one message, syncs meanwhile, and answers when a
 * majority has synced. A peer is such a server too, whose client is the leader. GATHER_US is how long the first put of
 * a group waits for others; 0 is not at all. The program ends at anything that is not as it should be.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { PUT = 300, RECORD = 384, REPLY = 60 };
enum { CONNECTIONS = 50, EVENTS = 64, BUFFER = 1 << 16, DESCRIPTORS = 1024, PEERS = 8 };
/* The log is written over again and again, like a prepared segment. A sync of such a block writes no metadata. */
enum { LOG = 64 << 20, GROUP = 4096 };
/* Puts that wait for their answer, at most. A power of two. */
enum { UNDER_WAY = 1 << 16 };

static _Noreturn void die(const char *what, ...) {
    va_list arguments;
    va_start(arguments, what);
    vfprintf(stderr, what, arguments);
    fprintf(stderr, ": %s\n", errno ? strerror(errno) : "no error of the system");
    exit(1);
}

static long checked(long result, const char *what) {
    if (result < 0) die("%s", what);
    return result;
}

static int64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

static void send_all(int socket, const char *bytes, size_t length) {
    while (length > 0) {
        ssize_t sent = checked(send(socket, bytes, length, MSG_NOSIGNAL), "send");
        bytes += sent;
        length -= (size_t)sent;
    }
}

static int connect_to(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int one = 1, made = (int)checked(socket(AF_INET, SOCK_STREAM, 0), "socket");
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    checked(connect(made, (void *)&address, sizeof address), "connect");
    checked(setsockopt(made, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one), "TCP_NODELAY");
    return made;
}

static void watch(int poll, int descriptor) {
    struct epoll_event event = {.events = EPOLLIN, .data.fd = descriptor};
    checked(epoll_ctl(poll, EPOLL_CTL_ADD, descriptor, &event), "epoll_ctl");
}

/* ---- the disk's thread ---- */

/* Records that the loop hands over. The thread takes all that are there as one group; the loop fills the other one. */
struct group {
    long count;
    char records[GROUP * RECORD];
};

static struct {
    pthread_mutex_t lock;
    pthread_cond_t filled, emptied;
    struct group groups[2], *filling;
    int file, eventfd;
    long synced; /* how many puts are on the disk; the eventfd tells of each change */
} disk = {.lock = PTHREAD_MUTEX_INITIALIZER, .filled = PTHREAD_COND_INITIALIZER, .emptied = PTHREAD_COND_INITIALIZER};

static struct group *take_group(void) {
    struct group *taken;
    pthread_mutex_lock(&disk.lock);
    while (disk.filling->count == 0) pthread_cond_wait(&disk.filled, &disk.lock);
    taken = disk.filling;
    disk.filling = taken == &disk.groups[0] ? &disk.groups[1] : &disk.groups[0];
    pthread_cond_signal(&disk.emptied);
    pthread_mutex_unlock(&disk.lock);
    return taken;
}

static _Noreturn void *write_and_sync(void *unused) {
    off_t at = 0;
    (void)unused;
    for (;;) {
        struct group *group = take_group();
        uint64_t one = 1;
        long count = group->count;
        size_t size = (size_t)count * RECORD;
        if (at + (off_t)size > LOG) at = 0;
        if (checked(pwrite(disk.file, group->records, size, at), "pwrite") != (ssize_t)size) die("a short write");
        at += (off_t)size;
        checked(fdatasync(disk.file), "fdatasync");
        group->count = 0; /* the loop sees it when this group is the one to fill, after the lock of take_group */
        __atomic_add_fetch(&disk.synced, count, __ATOMIC_RELEASE);
        checked(write(disk.eventfd, &one, sizeof one), "eventfd");
    }
}

/* Called by the loop. It waits where the group is full, which holds up the load as a slow disk should. */
static void append_record(const char *put) {
    pthread_mutex_lock(&disk.lock);
    while (disk.filling->count == GROUP) {
        pthread_cond_signal(&disk.filled);
        pthread_cond_wait(&disk.emptied, &disk.lock);
    }
    memcpy(disk.filling->records + disk.filling->count++ * RECORD, put, PUT);
    pthread_mutex_unlock(&disk.lock);
}

static void start_disk(const char *path) {
    static char filled[1 << 20];
    pthread_t thread;
    memset(filled, 1, sizeof filled);
    disk.filling = &disk.groups[0];
    disk.file = (int)checked(open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600), path);
    for (int done = 0; done < LOG; done += (int)sizeof filled)
        if (pwrite(disk.file, filled, sizeof filled, done) != (ssize_t)sizeof filled) die("%s", path);
    checked(fsync(disk.file), "fsync");
    disk.eventfd = (int)checked(eventfd(0, EFD_NONBLOCK), "eventfd");
    if (pthread_create(&thread, NULL, write_and_sync, NULL) != 0) die("pthread_create");
}

/* ---- the server's loop ---- */

/* A connection, of a client or to a peer: the first bytes of a message whose rest has not come yet, and the answers
   that leave at the end of the turn. Each descriptor has its own. Clients close when they have all their answers. */
struct connection {
    size_t held, owed;
    char bytes[BUFFER];
};

static struct connection *connections[DESCRIPTORS];
static int listener, clients, inside; /* inside: what has to do with puts that were read already */
static int gather_us, peer_count, peers[PEERS];
static long acknowledged[PEERS];
/* Puts are numbered. Those below `answered` are done with; `owners` has the descriptors of the others. */
static long received, answered;
static int owners[UNDER_WAY];

static struct connection *connection_of(int descriptor) {
    if (descriptor >= DESCRIPTORS) die("more than %d descriptors", DESCRIPTORS);
    if (connections[descriptor] == NULL) connections[descriptor] = calloc(1, sizeof(struct connection));
    if (connections[descriptor] == NULL) die("calloc");
    return connections[descriptor];
}

static void accept_client(void) {
    int one = 1, made = (int)checked(accept(listener, NULL, NULL), "accept");
    checked(setsockopt(made, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one), "TCP_NODELAY");
    connection_of(made)->held = 0;
    watch(clients, made);
}

static void pass_on(void) {
    for (int peer = 0; peer < peer_count; peer++) {
        struct connection *to = connections[peers[peer]];
        if (to->owed > 0) send_all(peers[peer], to->bytes, to->owed);
        to->owed = 0;
    }
}

static void read_puts(int descriptor, struct connection *from) {
    ssize_t got = recv(descriptor, from->bytes + from->held, BUFFER - from->held, 0);
    size_t at = 0;
    if (got <= 0) {
        close(descriptor);
        return;
    }
    from->held += (size_t)got;
    for (; from->held - at >= PUT; at += PUT) {
        if (received - answered == UNDER_WAY) die("more than %d puts under way", UNDER_WAY);
        append_record(from->bytes + at);
        owners[received++ % UNDER_WAY] = descriptor;
    }
    for (int peer = 0; peer < peer_count; peer++) {
        struct connection *to = connections[peers[peer]];
        if (to->owed + at > BUFFER) pass_on();
        memcpy(to->bytes + to->owed, from->bytes, at);
        to->owed += at;
    }
    from->held -= at;
    memmove(from->bytes, from->bytes + at, from->held);
}

/* All that a peer sends is answers, each as long as the others, in the order of the puts. */
static void read_answers(int peer) {
    static char bytes[BUFFER];
    static size_t held[PEERS];
    ssize_t got = recv(peers[peer], bytes, sizeof bytes, 0);
    if (got <= 0) die("a peer is gone");
    held[peer] += (size_t)got;
    acknowledged[peer] += (long)(held[peer] / REPLY);
    held[peer] %= REPLY;
}

static int peer_of(int descriptor) {
    for (int peer = 0; peer < peer_count; peer++)
        if (peers[peer] == descriptor) return peer;
    return -1;
}

/* The highest number such that a majority, this member included, has synced all puts below it. */
static long committed(void) {
    long sorted[PEERS + 1] = {__atomic_load_n(&disk.synced, __ATOMIC_ACQUIRE)};
    for (int peer = 0; peer < peer_count; peer++) {
        int at = peer + 1;
        for (; at > 0 && sorted[at - 1] < acknowledged[peer]; at--) sorted[at] = sorted[at - 1];
        sorted[at] = acknowledged[peer];
    }
    return sorted[(peer_count + 1) / 2]; /* of the members in descending order the one that makes the majority */
}

static void answer(void) {
    static const char zeros[BUFFER];
    static int owing[UNDER_WAY];
    int count = 0;
    for (long until = committed(); answered < until; answered++) {
        int owner = owners[answered % UNDER_WAY];
        if (connections[owner]->owed == 0) owing[count++] = owner;
        connections[owner]->owed += REPLY;
    }
    for (int at = 0; at < count; at++) {
        for (size_t *owed = &connections[owing[at]]->owed; *owed > 0;) {
            size_t some = *owed < BUFFER ? *owed : BUFFER;
            send_all(owing[at], zeros, some);
            *owed -= some;
        }
    }
}

/* Wait for descriptors of one epoll, `timeout` in milliseconds, and do what they ask for. */
static void turn(int poll, int timeout) {
    struct epoll_event events[EVENTS];
    long before = received;
    int count = epoll_wait(poll, events, EVENTS, timeout);
    for (int at = 0; at < count; at++) {
        int descriptor = events[at].data.fd, peer = peer_of(descriptor);
        uint64_t ignored;
        if (descriptor == listener) accept_client();
        else if (peer >= 0) read_answers(peer);
        else if (descriptor != disk.eventfd) read_puts(descriptor, connection_of(descriptor));
        else checked(read(descriptor, &ignored, sizeof ignored), "eventfd");
    }
    if (received > before) {
        /* The lock is free by now, so that the thread does not wake up only to wait for it. */
        pthread_cond_signal(&disk.filled);
        pass_on();
    }
    answer();
}

static void gather(void) {
    struct timespec time = {0, gather_us * 1000L};
    struct epoll_event first;
    epoll_wait(clients, &first, 1, -1);
    nanosleep(&time, NULL);
}

static int listen_anywhere(void) {
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t length = sizeof address;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    listener = (int)checked(socket(AF_INET, SOCK_STREAM, 0), "socket");
    checked(bind(listener, (void *)&address, sizeof address), "bind");
    checked(listen(listener, CONNECTIONS), "listen");
    checked(getsockname(listener, (void *)&address, &length), "getsockname");
    return ntohs(address.sin_port);
}

static void serve(int count, char **arguments) {
    start_disk(arguments[0]);
    gather_us = atoi(arguments[1]);
    inside = (int)checked(epoll_create1(0), "epoll_create1");
    /* Who gathers leaves the clients alone while a group is under way. The others wait for all in one place. */
    clients = gather_us > 0 ? (int)checked(epoll_create1(0), "epoll_create1") : inside;
    watch(inside, disk.eventfd);
    for (int at = 2; at < count; at++) {
        if (peer_count == PEERS) die("more than %d peers", PEERS);
        peers[peer_count] = connect_to(atoi(arguments[at]));
        connection_of(peers[peer_count]);
        watch(inside, peers[peer_count++]);
    }
    printf("port %d\n", listen_anywhere());
    fflush(stdout);
    watch(clients, listener);
    for (;;) {
        if (gather_us == 0 || answered < received) turn(inside, -1);
        else {
            gather();
            turn(clients, 0);
        }
    }
}

/* ---- the load ---- */

struct sending {
    int64_t due;
    int connection;
};

static int by_time(const void *one, const void *other) {
    const struct sending *first = one, *second = other;
    if (first->due == second->due) return first->connection - second->connection;
    return first->due > second->due ? 1 : -1;
}

/* When each put is due, in nanoseconds from the beginning, and on which connection. "even" keeps the same time between
   any two, "poisson" a random one. "h2load" is what that program does with a rate for each connection: they begin 3 ms
   after each other, look at the clock when a put is due or every 10 ms, and then send at once all that are due. */
static struct sending *plan(const char *arrivals, long rate, long count) {
    struct sending *made = calloc((size_t)count, sizeof *made);
    double between = 1 / (double)rate, own = between * CONNECTIONS, look = own < 0.01 ? 0.01 : own, at = 0;
    if (made == NULL) die("calloc");
    for (long put = 0; put < count; put++) {
        /* Neighbours in time have different connections. */
        long connection = put * 7 % CONNECTIONS;
        if (strcmp(arrivals, "even") == 0) at = between * (double)put;
        else if (strcmp(arrivals, "poisson") == 0) at -= log(1 - drand48()) * between;
        else if (strcmp(arrivals, "h2load") == 0)
            at = ceil(own * (double)(put / CONNECTIONS) / look) * look + fmod((double)connection * 0.003, look);
        else die("no such arrivals, %s", arrivals);
        made[put] = (struct sending){(int64_t)(at * 1e9), (int)connection};
    }
    qsort(made, (size_t)count, sizeof *made, by_time);
    return made;
}

/* What is under way on one connection: its answers come in the order of its puts. */
struct line {
    int socket;
    size_t held;
    long first, last;
    int64_t *dues;
};

static struct line lines[CONNECTIONS];

static int by_value(const void *one, const void *other) {
    int64_t first = *(const int64_t *)one, second = *(const int64_t *)other;
    return (first > second) - (first < second);
}

/* One line for bench/floor.py: the time of all in nanoseconds, then the latency of each put in microseconds. */
static void report(int64_t *latencies, long count, int64_t took) {
    qsort(latencies, (size_t)count, sizeof *latencies, by_value);
    printf("%lld", (long long)took);
    for (long put = 0; put < count; put++) printf(" %lld", (long long)(latencies[put] / 1000));
    printf("\n");
}

static long take_answers(struct line *line, int64_t *latencies, long done) {
    static char bytes[BUFFER];
    ssize_t got = checked(recv(line->socket, bytes, sizeof bytes, 0), "recv");
    int64_t now = now_ns();
    if (got == 0) die("the server is gone");
    for (line->held += (size_t)got; line->held >= REPLY; line->held -= REPLY)
        latencies[done++] = now - line->dues[line->first++];
    return done;
}

/* Send all puts that are due by now, those that follow each other on one connection at once. Return the next one. */
static struct sending *send_due(struct sending *next, const struct sending *end, int64_t began) {
    static const char puts[EVENTS * PUT];
    int64_t now = now_ns();
    while (next < end && began + next->due <= now) {
        struct line *line = &lines[next->connection];
        long count = 0;
        for (; count < EVENTS && next < end && began + next->due <= now && line == &lines[next->connection]; next++) {
            line->dues[line->last++] = began + next->due;
            count++;
        }
        send_all(line->socket, puts, (size_t)count * PUT);
    }
    return next;
}

/* Latencies count from the moment when a put was due, so a server that is late cannot hide it from the puts behind. */
static void load(int port, const char *arrivals, long rate, double seconds) {
    long count = (long)((double)rate * seconds), done = 0;
    struct sending *next = plan(arrivals, rate, count), *end = next + count;
    int64_t *latencies = calloc((size_t)count, sizeof *latencies), began;
    int poll = (int)checked(epoll_create1(0), "epoll_create1");
    if (latencies == NULL) die("calloc");
    for (int at = 0; at < CONNECTIONS; at++) {
        lines[at].socket = connect_to(port);
        lines[at].dues = calloc((size_t)count, sizeof(int64_t));
        if (lines[at].dues == NULL) die("calloc");
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = (uint32_t)at};
        checked(epoll_ctl(poll, EPOLL_CTL_ADD, lines[at].socket, &event), "epoll_ctl");
    }
    began = now_ns();
    while (done < count) {
        struct epoll_event events[EVENTS];
        int64_t left = next < end ? began + next->due - now_ns() : INT64_C(1000000000);
        struct timespec wait = {left > 0 ? left / 1000000000 : 0, left > 0 ? left % 1000000000 : 0};
        int ready = (int)checked(epoll_pwait2(poll, events, EVENTS, &wait, NULL), "epoll_pwait2");
        for (int at = 0; at < ready; at++) done = take_answers(&lines[events[at].data.u32], latencies, done);
        next = send_due(next, end, began);
    }
    report(latencies, count, now_ns() - began);
}

static void lone(int port, long count) {
    int socket = connect_to(port);
    int64_t *latencies = calloc((size_t)count, sizeof *latencies), began = now_ns();
    static const char put[PUT];
    char reply[REPLY];
    if (latencies == NULL) die("calloc");
    for (long at = 0; at < count; at++) {
        int64_t sent = now_ns();
        send_all(socket, put, PUT);
        if (checked(recv(socket, reply, REPLY, MSG_WAITALL), "recv") != REPLY) die("the server is gone");
        latencies[at] = now_ns() - sent;
    }
    report(latencies, count, now_ns() - began);
}

int main(int count, char **arguments) {
    const char *what = count > 1 ? arguments[1] : "";
    /* Sleeps end when they should, not up to 50 us later. */
    checked(prctl(PR_SET_TIMERSLACK, 1L), "PR_SET_TIMERSLACK");
    if (strcmp(what, "serve") == 0 && count >= 4) serve(count - 2, arguments + 2);
    else if (strcmp(what, "load") == 0 && count == 7) {
        srand48(atol(arguments[6]));
        load(atoi(arguments[2]), arguments[3], atol(arguments[4]), atof(arguments[5]));
    } else if (strcmp(what, "lone") == 0 && count == 4) lone(atoi(arguments[2]), atol(arguments[3]));
    else die("see the beginning of bench/floor.c for the arguments");
    return 0;
}
