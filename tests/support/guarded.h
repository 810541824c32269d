/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_TESTS_GUARDED_H
#define MOEC_TESTS_GUARDED_H

/*
 * Memory that ends at a page nobody may touch: what reads or writes behind
 * its end dies at once. Filled with a poison that no result equals by chance.
 * Freed by the test's end; a program frees all with guarded_free_all. And a
 * small generator of numbers, the same on every run.
 */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <sys/mman.h>
#include <unistd.h>

#define GUARDED_POISON 0xA5

struct guarded_block {
    struct guarded_block *next;
    void *map;
    size_t bytes;
};
static struct guarded_block *guarded_blocks;

/* `bytes` bytes; the last stands before the guard page. Multiples of 4 stay
 * aligned to 4. */
static inline void *guarded(size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t body = (bytes + page - 1) / page * page;
    struct guarded_block *b = malloc(sizeof(*b));
    unsigned char *p;

    p = mmap(NULL, body + page, PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (!b || p == MAP_FAILED || mprotect(p + body, page, PROT_NONE) != 0)
        abort();
    memset(p, GUARDED_POISON, body);
    b->map = p;
    b->bytes = body + page;
    b->next = guarded_blocks;
    guarded_blocks = b;
    return p + body - bytes;
}

static inline void *guarded_copy(const void *from, size_t bytes)
{
    void *p = guarded(bytes);

    if (bytes)
        memcpy(p, from, bytes);
    return p;
}

static inline void guarded_free_all(void)
{
    while (guarded_blocks) {
        struct guarded_block *b = guarded_blocks;

        guarded_blocks = b->next;
        (void)munmap(b->map, b->bytes);
        free(b);
    }
}

/* splitmix64. */
static inline uint64_t random_u64(uint64_t *state)
{
    uint64_t z = (*state += UINT64_C(0x9E3779B97F4A7C15));

    z = (z ^ z >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ z >> 27) * UINT64_C(0x94D049BB133111EB);
    return z ^ z >> 31;
}

static inline uint32_t random_below(uint64_t *state, uint32_t n)
{
    return (uint32_t)(random_u64(state) % n);
}

/* In [-1, 1). */
static inline float random_float(uint64_t *state)
{
    return (float)((double)(random_u64(state) >> 40) / 0x1p23 - 1.0);
}

#endif
