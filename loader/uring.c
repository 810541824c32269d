/* SPDX-License-Identifier: Apache-2.0 */

/* Reading by io_uring, through the kernel's own interface. See uring.h. */

#include <errno.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/base.h"
#include "uring.h"

#if defined(__has_include) && __has_include(<linux/io_uring.h>) &&             \
  defined(SYS_io_uring_setup)
#  include <linux/io_uring.h>
#  define HAVE_URING 1
#endif
/* An older header than what we ask for: go without. */
#if defined(HAVE_URING) && !defined(IORING_RSRC_REGISTER_SPARSE)
#  undef HAVE_URING
#endif

#ifdef HAVE_URING

static int setup(uint32_t entries, struct io_uring_params *p)
{
    /* Completions wait until we ask, and one thread asks: spares the
     * interrupts of our own copying. Linux 6.0; refused before. */
    *p = (struct io_uring_params){.flags = IORING_SETUP_COOP_TASKRUN |
                                           IORING_SETUP_SINGLE_ISSUER};
    int fd = (int)syscall(SYS_io_uring_setup, entries, p);

    if (fd < 0 && errno == EINVAL) {
        *p = (struct io_uring_params){0};
        fd = (int)syscall(SYS_io_uring_setup, entries, p);
    }
    return fd;
}

static bool reads_are_known(int fd)
{
    const size_t n = IORING_OP_READ + 1;
    union { /* the head ends in an array without a size */
        struct io_uring_probe head;
        unsigned char
            room[sizeof(struct io_uring_probe) +
                 (IORING_OP_READ + 1) * sizeof(struct io_uring_probe_op)];
    } probe;

    memset(&probe, 0, sizeof(probe));
    if (syscall(SYS_io_uring_register, fd, IORING_REGISTER_PROBE, &probe, n) !=
        0)
        return false;
    return (probe.head.ops[IORING_OP_READ].flags & IO_URING_OP_SUPPORTED) != 0;
}

static void *map(int fd, size_t bytes, uint64_t what)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                   MAP_SHARED | MAP_POPULATE, fd, (off_t)what);

    return p == MAP_FAILED ? NULL : p;
}

static bool map_rings(moec_uring *u, const struct io_uring_params *p)
{
    size_t sq = p->sq_off.array + p->sq_entries * sizeof(uint32_t);
    size_t cq = p->cq_off.cqes + p->cq_entries * sizeof(struct io_uring_cqe);
    unsigned char *b;

    if (!(p->features & IORING_FEAT_SINGLE_MMAP))
        return false; /* Linux 5.3 and before */
    u->ring_bytes = sq > cq ? sq : cq;
    u->sqes_bytes = p->sq_entries * sizeof(struct io_uring_sqe);
    u->ring_map = map(u->fd, u->ring_bytes, IORING_OFF_SQ_RING);
    u->sqes = map(u->fd, u->sqes_bytes, IORING_OFF_SQES);
    if (u->ring_map == NULL || u->sqes == NULL)
        return false;
    b = u->ring_map;
    u->sq_tail = (uint32_t *)(void *)(b + p->sq_off.tail);
    u->sq_mask = (uint32_t *)(void *)(b + p->sq_off.ring_mask);
    u->sq_array = (uint32_t *)(void *)(b + p->sq_off.array);
    u->cq_head = (uint32_t *)(void *)(b + p->cq_off.head);
    u->cq_tail = (uint32_t *)(void *)(b + p->cq_off.tail);
    u->cq_mask = (uint32_t *)(void *)(b + p->cq_off.ring_mask);
    u->cqes = b + p->cq_off.cqes;
    return true;
}

bool moec_uring_open(moec_uring *u, uint32_t entries)
{
    struct io_uring_params p;

    *u = (moec_uring){.fd = setup(entries, &p), .entries = entries};
    if (u->fd < 0)
        return false;
    /* a filter may allow to make a ring and forbid to use it */
    if (reads_are_known(u->fd) && map_rings(u, &p) &&
        syscall(SYS_io_uring_enter, u->fd, 0, 0, 0, NULL, 0) == 0)
        return true;
    moec_uring_close(u);
    return false;
}

void moec_uring_close(moec_uring *u)
{
    if (u->fd < 0)
        return;
    if (u->sqes != NULL)
        munmap(u->sqes, u->sqes_bytes);
    if (u->ring_map != NULL)
        munmap(u->ring_map, u->ring_bytes);
    close(u->fd);
    *u = (moec_uring){.fd = -1};
}

void moec_uring_table(moec_uring *u, uint32_t n)
{
    struct io_uring_rsrc_register r = {.nr = n,
                                       .flags = IORING_RSRC_REGISTER_SPARSE};

    u->fixed = syscall(SYS_io_uring_register, u->fd, IORING_REGISTER_BUFFERS2,
                       &r, sizeof(r)) == 0;
}

bool moec_uring_register(moec_uring *u, uint32_t i, void *p, size_t bytes)
{
    struct iovec_like {
        void *base;
        size_t len;
    } v = {p, bytes};
    struct io_uring_rsrc_update2 up = {
        .offset = i, .data = (uintptr_t)&v, .nr = 1};

    return u->fixed &&
           syscall(SYS_io_uring_register, u->fd, IORING_REGISTER_BUFFERS_UPDATE,
                   &up, sizeof(up)) == 1;
}

void moec_uring_read(moec_uring *u, int fd, uint64_t off, void *to, uint32_t n,
                     uint32_t buffer, uint64_t tag)
{
    uint32_t tail = *u->sq_tail, i = tail & *u->sq_mask;
    struct io_uring_sqe *s = (struct io_uring_sqe *)u->sqes + i;

    memset(s, 0, sizeof(*s));
    s->opcode =
        buffer == MOEC_URING_NO_BUFFER ? IORING_OP_READ : IORING_OP_READ_FIXED;
    s->fd = fd;
    s->off = off;
    s->addr = (uintptr_t)to;
    s->len = n;
    s->user_data = tag;
    if (buffer != MOEC_URING_NO_BUFFER)
        s->buf_index = (uint16_t)buffer;
    u->sq_array[i] = i;
    __atomic_store_n(u->sq_tail, tail + 1, __ATOMIC_RELEASE);
    u->n_queued++;
}

int moec_uring_enter(moec_uring *u, bool wait)
{
    for (;;) {
        long n = syscall(SYS_io_uring_enter, u->fd, u->n_queued, wait,
                         IORING_ENTER_GETEVENTS, NULL, 0);

        if (n >= 0) {
            u->n_queued -= (uint32_t)n;
            if (u->n_queued == 0)
                return 0;
            continue; /* not all were taken: there is room again now */
        }
        if (errno == EAGAIN || errno == EBUSY)
            sched_yield(); /* the kernel is short of something for now */
        else if (errno != EINTR)
            return errno;
    }
}

bool moec_uring_next(moec_uring *u, uint64_t *tag_out, int *res_out)
{
    uint32_t head = *u->cq_head;
    const struct io_uring_cqe *c =
        (const struct io_uring_cqe *)u->cqes + (head & *u->cq_mask);

    if (head == __atomic_load_n(u->cq_tail, __ATOMIC_ACQUIRE))
        return false;
    *tag_out = c->user_data;
    *res_out = c->res;
    __atomic_store_n(u->cq_head, head + 1, __ATOMIC_RELEASE);
    return true;
}

#else /* no header of the kernel's that we can use */

bool moec_uring_open(moec_uring *u, uint32_t entries)
{
    *u = (moec_uring){.fd = -1, .entries = entries};
    return false;
}

void moec_uring_close(moec_uring *u)
{
    u->fd = -1;
}

void moec_uring_table(moec_uring *u, uint32_t n)
{
    (void)n;
    u->fixed = false;
}

bool moec_uring_register(moec_uring *u, uint32_t i, void *p, size_t bytes)
{
    (void)u, (void)i, (void)p, (void)bytes;
    return false;
}

void moec_uring_read(moec_uring *u, int fd, uint64_t off, void *to, uint32_t n,
                     uint32_t buffer, uint64_t tag)
{
    (void)u, (void)fd, (void)off, (void)to, (void)n, (void)buffer, (void)tag;
}

int moec_uring_enter(moec_uring *u, bool wait)
{
    (void)u, (void)wait;
    return ENOSYS;
}

bool moec_uring_next(moec_uring *u, uint64_t *tag_out, int *res_out)
{
    (void)u, (void)tag_out, (void)res_out;
    return false;
}

#endif
