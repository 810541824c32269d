/* SPDX-License-Identifier: Apache-2.0
 *
 * Where all memory of the library comes from, so that a test can fail the
 * n-th allocation. moec_free is free(3): memory given to callers may be freed
 * with that. And the arena: many small objects, freed together. */

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/base.h"

/* Process-wide, as the hook must reach allocations on every thread. Relaxed
 * order is enough: the numbers order nothing else. */
static atomic_uint_fast64_t n_allocs;
static atomic_uint_fast64_t fail_at; /* 0: never */

static bool must_fail(void)
{
    uint_fast64_t k =
        atomic_fetch_add_explicit(&n_allocs, 1, memory_order_relaxed) + 1;

    return k == atomic_load_explicit(&fail_at, memory_order_relaxed);
}

uint64_t moec_alloc_fail_at(uint64_t n)
{
    uint64_t before;

    atomic_store(&fail_at, 0);
    before = atomic_exchange(&n_allocs, 0);
    atomic_store(&fail_at, n);
    return before;
}

/* Large tables in huge pages, where the kernel has them: a plan of 500,000
 * tensors is 34,000 faults of small pages, a sixth of its time. */
#define HUGE_BYTES ((size_t)2 << 20)

static void *in_huge_pages(void *p, size_t bytes)
{
    uintptr_t begin = ((uintptr_t)p + HUGE_BYTES - 1) & ~(HUGE_BYTES - 1);
    uintptr_t end = ((uintptr_t)p + bytes) & ~(HUGE_BYTES - 1);

    if (p != NULL && bytes >= 2 * HUGE_BYTES && begin < end)
        (void)madvise((unsigned char *)p + (begin - (uintptr_t)p), end - begin,
                      MADV_HUGEPAGE); /* advice: a refusal changes nothing */
    return p;
}

void *moec_alloc(size_t bytes)
{
    return must_fail() ? NULL : in_huge_pages(malloc(bytes ? bytes : 1), bytes);
}

void *moec_calloc(size_t n, size_t size)
{
    size_t bytes;

    /* calloc checks too, but the address sanitizer's ends the process. */
    if (must_fail() || __builtin_mul_overflow(n, size, &bytes))
        return NULL;
    return in_huge_pages(calloc(bytes ? bytes : 1, 1), bytes);
}

void *moec_realloc_array(void *p, size_t n, size_t size)
{
    size_t bytes;

    if (must_fail() || __builtin_mul_overflow(n, size, &bytes))
        return NULL;
    return in_huge_pages(realloc(p, bytes ? bytes : 1), bytes);
}

bool moec_grow(void *list, size_t *cap, size_t size)
{
    size_t more = *cap == 0 ? 64 : *cap * 2;
    void *p;

    memcpy(&p, list, sizeof(p)); /* a pointer of any type */
    p = moec_realloc_array(p, more, size);
    if (p == NULL)
        return false;
    memcpy(list, &p, sizeof(p));
    *cap = more;
    return true;
}

void moec_free(void *p)
{
    free(p);
}

/* Large buffers are for direct I/O: the kernel pins each of their pages for
 * every request and cuts requests by page, so they are of huge pages where it
 * has them. Measured: twice the disk's throughput. */

void *moec_alloc_aligned(size_t bytes, size_t align)
{
    void *p = NULL;
    bool huge = bytes >= HUGE_BYTES;

    if (huge && align < HUGE_BYTES)
        align = HUGE_BYTES;
    if (must_fail() || posix_memalign(&p, align, bytes ? bytes : 1) != 0)
        return NULL;
    if (huge) /* advice: a refusal changes nothing */
        (void)madvise(p, bytes & ~(HUGE_BYTES - 1), MADV_HUGEPAGE);
    return p;
}

void moec_free_aligned(void *p)
{
    free(p);
}

/* Blocks double from the first size to the last, so that an arena of three
 * names is small and one of a million has few blocks, in huge pages. */
#define BLOCK_BYTES_FIRST ((size_t)4 << 10)
#define BLOCK_BYTES_LAST  (2 * HUGE_BYTES)

struct moec_arena_block {
    struct moec_arena_block *next;
    size_t used, cap;
    unsigned char data[];
};

/* `align` is a power of two. */
static void *take(struct moec_arena_block *b, size_t bytes, size_t align)
{
    size_t gap = (size_t)(-(uintptr_t)(b->data + b->used)) & (align - 1);
    void *p;

    if (gap > b->cap - b->used || bytes > b->cap - b->used - gap)
        return NULL;
    p = b->data + b->used + gap;
    b->used += gap + bytes;
    return p;
}

void *moec_arena_alloc(moec_arena *a, size_t bytes, size_t align)
{
    struct moec_arena_block *b = a->head;
    size_t cap = BLOCK_BYTES_FIRST, want;
    void *p = b ? take(b, bytes, align) : NULL;

    if (p)
        return p;
    if (b)
        cap = b->cap < BLOCK_BYTES_LAST / 2 ? (b->cap + sizeof(*b)) * 2
                                            : BLOCK_BYTES_LAST;
    if (__builtin_add_overflow(bytes, align + sizeof(*b), &want))
        return NULL;
    want -= sizeof(*b);
    if (want > cap / 4) { /* its own block, behind the one being filled */
        b = moec_alloc(sizeof(*b) + want);
        if (!b)
            return NULL;
        *b = (struct moec_arena_block){.cap = want};
        if (a->head) {
            b->next = a->head->next;
            a->head->next = b;
        } else {
            a->head = b;
        }
        return take(b, bytes, align);
    }
    /* the head of the block is part of its size: whole pages */
    b = cap < HUGE_BYTES ? moec_alloc(cap)
                         : moec_alloc_aligned(cap, HUGE_BYTES);
    if (!b)
        return NULL;
    *b = (struct moec_arena_block){.next = a->head, .cap = cap - sizeof(*b)};
    a->head = b;
    return take(b, bytes, align);
}

char *moec_arena_strdup(moec_arena *a, const char *s, size_t n)
{
    char *copy = n < SIZE_MAX ? moec_arena_alloc(a, n + 1, 1) : NULL;

    if (!copy)
        return NULL;
    if (n)
        memcpy(copy, s, n);
    copy[n] = '\0';
    return copy;
}

void moec_arena_fini(moec_arena *a)
{
    struct moec_arena_block *b = a->head;

    while (b) {
        struct moec_arena_block *next = b->next;
        moec_free_aligned(b); /* which frees the others as well */
        b = next;
    }
    a->head = NULL;
}
