// SPDX-License-Identifier: Apache-2.0
//
// The fibers of emulate.h. Each thread of a block has a stack of its own;
// threads take turns, and a turn ends where a thread waits. No round has the
// order of the one before, nor have blocks: what only an order makes right is
// wrong in one of them. Switching is _setjmp and _longjmp (no signal mask, no
// system call); a fiber's first turn needs a context.
// Under ThreadSanitizer each fiber is a thread to it, ordered with the others
// by barriers and __syncwarp alone, and two workers share the blocks of a
// launch: races in shared and in global memory are reported, of threads of a
// block and of blocks.

#include "emulate.h"

#include <mutex>
#include <thread>
#include <sys/mman.h>

namespace emu {

thread_local block *now;
thread_local dim3 tid, bid, bdim, gdim;
thread_local unsigned char *dynamic_shared;
static uint32_t n_launches; // moves the order of turns

} // namespace emu

#if defined(__SANITIZE_THREAD__)
extern "C" {
void *__tsan_get_current_fiber(void);
void *__tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void *fiber, unsigned flags);
void __tsan_acquire(void *at);
void __tsan_release(void *at);
}
// What the scheduler does between turns is no work of the kernel's.
#  define UNSEEN __attribute__((no_sanitize("thread")))
static const unsigned n_workers = 2;

// This module's thread-local storage: its __shared__ variables and the ones
// above.
#  include <link.h>

static int poison(struct dl_phdr_info *info, size_t bytes, void *inside)
{
    uintptr_t at = (uintptr_t)inside, tls = (uintptr_t)info->dlpi_tls_data;

    (void)bytes;
    for (unsigned i = 0; i < info->dlpi_phnum; i++)
        if (info->dlpi_phdr[i].p_type == PT_TLS && tls != 0 && at >= tls &&
            at - tls < info->dlpi_phdr[i].p_memsz) {
            memset(info->dlpi_tls_data, 0xa5, info->dlpi_phdr[i].p_memsz);
            return 1;
        }
    return 0;
}

static void poison_shared(void)
{
    using namespace emu;
    block *b = now;
    dim3 t = tid, i = bid, n = bdim, g = gdim;
    unsigned char *d = dynamic_shared;

    dl_iterate_phdr(poison, &now);
    now = b;
    tid = t;
    bid = i;
    bdim = n;
    gdim = g;
    dynamic_shared = d;
}
#else
static const unsigned n_workers = 1; // __shared__ variables are there once

static void poison_shared(void)
{
}
static void *__tsan_get_current_fiber(void)
{
    return nullptr;
}
static void *__tsan_create_fiber(unsigned)
{
    return nullptr;
}
static void __tsan_switch_to_fiber(void *, unsigned)
{
}
static void __tsan_acquire(void *)
{
}
static void __tsan_release(void *)
{
}
#  define UNSEEN
#endif

namespace emu {

static const unsigned unordered = 1; // __tsan_switch_to_fiber_no_sync
static const size_t stack_bytes = 64 << 10;
static const unsigned threads_max = 1024;
// ThreadSanitizer's names of fibers, once made.
static void *names[n_workers][threads_max];


void fail(const char *what)
{
    fprintf(stderr, "emulated kernel: block %u thread %u: %s\n", bid.x,
            now ? linear() : 0, what);
    abort();
}

UNSEEN static void enter()
{
    block *b = now;
    fiber *f = &b->fibers[b->current];

    __tsan_acquire(b);
    (*b->body)();
    __tsan_release(b);
    if (!f->copies.empty())
        fail("a thread that ends before its copies");
    f->done = true;
    b->live--;
    b->progress++;
    // Those at the barrier may have waited for this thread alone.
    __tsan_switch_to_fiber(b->host, unordered);
    _longjmp(b->scheduler, 1);
}

UNSEEN void yield()
{
    fiber *f = &now->fibers[now->current];

    if (_setjmp(f->at) == 0) {
        __tsan_switch_to_fiber(now->host, unordered);
        _longjmp(now->scheduler, 1);
    }
}

UNSEEN static void resume(block *b, unsigned i)
{
    fiber *f = &b->fibers[i];

    b->current = i;
    tid = f->tid;
    if (_setjmp(b->scheduler) != 0)
        return;
    __tsan_switch_to_fiber(f->tsan, unordered);
    if (f->begun)
        _longjmp(f->at, 1);
    f->begun = true;
    setcontext(&f->start);
}

UNSEEN unsigned sync_count(unsigned add)
{
    block *b = now;
    unsigned mine = b->barrier;

    __tsan_release(&b->barrier);
    b->waiting++;
    b->sum += add;
    b->progress++;
    while (b->barrier == mine) {
        if (b->waiting == b->live) {
            b->sum_before = b->sum;
            b->sum = b->waiting = 0;
            b->barrier++;
            b->progress++;
            break;
        }
        yield();
    }
    __tsan_acquire(&b->barrier);
    return b->sum_before;
}

// Put a value down and wait until all lanes of `mask` have.
UNSEEN static const uint64_t *meet(uint32_t mask, uint64_t value)
{
    warp *w = &now->warps[linear() / 32];
    uint32_t bit = 1u << lane(), mine = w->generation;

    if ((mask & bit) == 0)
        fail("a collective whose mask leaves the caller out");
    // A meeting of other lanes of the warp is still under way.
    while (w->arrived != 0 && w->mask != mask) {
        yield();
        mine = w->generation;
    }
    w->mask = mask;
    w->value[mine & 1][lane()] = value;
    w->arrived |= bit;
    now->progress++;
    if (w->arrived == mask) {
        w->arrived = 0;
        w->generation++;
    }
    while (w->generation == mine)
        yield();
    return w->value[mine & 1];
}

UNSEEN uint64_t exchange(uint32_t mask, uint64_t value, unsigned from)
{
    const uint64_t *v = meet(mask, value);

    return (mask >> from & 1) != 0 ? v[from] : value;
}

UNSEEN void gather(uint32_t mask, uint64_t value, uint64_t out[32])
{
    memcpy(out, meet(mask, value), 32 * sizeof(*out));
}

// Memory seen by the others at the barrier, where shuffles and votes order
// none.
UNSEEN void sync_warp(uint32_t mask)
{
    warp *w = &now->warps[linear() / 32];

    __tsan_release(w);
    (void)meet(mask, 0);
    __tsan_acquire(w);
}

// As the kernel's own, for ThreadSanitizer: the first write may come at once,
// the last when the thread waits.
void copy_later(void *shared, const void *global, uint32_t bytes)
{
    fiber *f = &now->fibers[now->current];

    if (reinterpret_cast<uintptr_t>(shared) % 16 ||
        reinterpret_cast<uintptr_t>(global) % 16 || bytes > 16)
        fail("a copy of 16 bytes that is not aligned");
    memset(shared, 0xa5, 16);
    f->copies.push_back({shared, global, bytes, f->group});
}

void copy_commit()
{
    now->fibers[now->current].group++;
}

void copy_wait(unsigned n_newest)
{
    fiber *f = &now->fibers[now->current];

    while (!f->copies.empty() &&
           f->group - f->copies.front().group > n_newest) {
        const small_copy &c = f->copies.front();

        memset(c.to, 0, 16);
        memcpy(c.to, c.from, c.bytes);
        f->copies.pop_front();
    }
}

// The i-th of n to have its turn: up or down from anywhere.
UNSEEN static unsigned turn(unsigned i, unsigned n, uint32_t round)
{
    uint32_t r = (round + 1) * 0x9e3779b1u;

    i = (i + (r >> 8) % n) % n;
    return (r & 64) != 0 ? n - 1 - i : i;
}

UNSEEN static void run_block(block *b)
{
    unsigned idle = 0;

    while (b->live > 0) {
        b->progress = 0;
        b->round++;
        for (unsigned k = 0; k < b->n; k++) {
            unsigned i = turn(k, b->n, b->round);
            if (!b->fibers[i].done)
                resume(b, i);
        }
        // Two rounds: a meeting that the last thread completes is seen by
        // the others in the next one.
        idle = b->progress != 0 ? 0 : idle + 1;
        if (idle > 2)
            fail("deadlock: a barrier or collective that not all reach");
    }
}

UNSEEN static void prepare(block *b, const dim3 &threads)
{
    b->live = b->n;
    b->waiting = b->barrier = b->sum = b->sum_before = 0;
    memset(b->warps, 0, (b->n + 31) / 32 * sizeof(*b->warps));
    for (unsigned i = 0; i < b->n; i++) {
        fiber *f = &b->fibers[i];

        f->tid = dim3(i % threads.x, i / threads.x % threads.y,
                      i / threads.x / threads.y);
        f->begun = f->done = false;
        getcontext(&f->start);
        f->start.uc_stack.ss_sp = f->stack;
        f->start.uc_stack.ss_size = stack_bytes;
        f->start.uc_link = nullptr;
        makecontext(&f->start, enter, 0);
    }
}

// One worker's share of the blocks, every n_workers-th.
static void run_blocks(unsigned worker, dim3 grid, dim3 threads, size_t shared,
                       const std::function<void()> *body, uint32_t order)
{
    unsigned n = threads.x * threads.y * threads.z;
    uint64_t n_blocks = (uint64_t)grid.x * grid.y * grid.z;
    block b = {};

    char *stacks = (char *)mmap(nullptr, n * stack_bytes,
                                PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (stacks == MAP_FAILED)
        fail("no memory for stacks");
    b.fibers = new fiber[n]();
    b.warps = new warp[(n + 31) / 32]();
    b.n = n;
    b.body = body;
    b.host = __tsan_get_current_fiber();
    for (unsigned i = 0; i < n; i++) {
        b.fibers[i].stack = stacks + i * stack_bytes;
        if (names[worker][i] == nullptr)
            names[worker][i] = __tsan_create_fiber(0);
        b.fibers[i].tsan = names[worker][i];
    }
    dynamic_shared = (unsigned char *)aligned_alloc(128, (shared + 255) & ~127ul);
    now = &b;
    bdim = threads;
    gdim = grid;
    b.round = order;
    for (uint64_t k = worker; k < n_blocks; k += n_workers) {
        unsigned x = turn((unsigned)(k % grid.x), grid.x, order);

        bid = dim3(x, (unsigned)(k / grid.x % grid.y),
                   (unsigned)(k / grid.x / grid.y));
        memset(dynamic_shared, 0xa5, shared);
        poison_shared();
        prepare(&b, threads);
        __tsan_release(&b);
        run_block(&b);
        __tsan_acquire(&b);
    }
    now = nullptr;
    free(dynamic_shared);
    delete[] b.fibers;
    delete[] b.warps;
    munmap(stacks, n * stack_bytes);
}

void launch(dim3 grid, dim3 threads, size_t shared,
            const std::function<void()> &body)
{
    unsigned n = threads.x * threads.y * threads.z;
    uint32_t order = n_launches++;
    std::thread other;

    emu_copies_finish(); // one stream does the work of all
    if (n == 0 || n > threads_max || grid.x == 0 || grid.y == 0 || grid.z == 0)
        fail("a launch of no threads, or of too many");
    if (n_workers > 1 && (uint64_t)grid.x * grid.y * grid.z > 1)
        other = std::thread(run_blocks, 1, grid, threads, shared, &body, order);
    run_blocks(0, grid, threads, shared, &body, order);
    if (other.joinable())
        other.join();
}

} // namespace emu

// ------------------------------------------------------------ copy engine

namespace {

struct late_copy {
    unsigned char *to;
    const unsigned char *from;
    size_t to_stride, from_stride, row_bytes, rows;
};

// Copies by number, from `n_done` on; an event stands behind a number.
std::mutex copies_lock;
std::deque<late_copy> copies;
unsigned long long n_queued, n_done;

void do_one()
{
    const late_copy &c = copies.front();

    for (size_t r = 0; r < c.rows; r++)
        memcpy(c.to + r * c.to_stride, c.from + r * c.from_stride, c.row_bytes);
    copies.pop_front();
    n_done++;
}

} // namespace

struct emu_event {
    unsigned long long after;
};

void emu_copy_later(void *to, size_t to_stride, const void *from,
                    size_t from_stride, size_t row_bytes, size_t rows)
{
    std::lock_guard<std::mutex> guard(copies_lock);

    copies.push_back({static_cast<unsigned char *>(to),
                      static_cast<const unsigned char *>(from), to_stride,
                      from_stride, row_bytes, rows});
    n_queued++;
}

void emu_copies_finish(void)
{
    std::lock_guard<std::mutex> guard(copies_lock);

    while (!copies.empty())
        do_one();
}

cudaError_t emu_event_create(cudaEvent_t *e)
{
    *e = new emu_event();
    return cudaSuccess;
}

void emu_event_destroy(cudaEvent_t e)
{
    delete e;
}

void emu_event_record(cudaEvent_t e)
{
    std::lock_guard<std::mutex> guard(copies_lock);

    e->after = n_queued;
}

bool emu_event_done(cudaEvent_t e, bool block)
{
    std::lock_guard<std::mutex> guard(copies_lock);

    while (n_done < e->after) {
        do_one();
        if (!block)
            break;
    }
    return n_done >= e->after;
}
