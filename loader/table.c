/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Writers sort a shard's names, and shards hold neighbouring layers. So a
 * checkpoint's tables are a few hundred ascending runs that hardly interleave;
 * the headers' reader notes where each begins, while the names are in the
 * cache. The merge keeps the runs in a heap by their first name and takes from
 * the least all that stands before the next one's first name, found by
 * doubling steps: for a real checkpoint a few thousand comparisons, and
 * n log n for any order at all. Tensors stay where they are: moving them would
 * cost more than the merge.
 */

#include "table.h"

#include <string.h>

typedef struct merger {
    moec_run *runs;
    uint32_t *heap; /* run numbers, least first name on top */
    size_t n_heap;
} merger;

static bool heap_less(const merger *m, uint32_t a, uint32_t b)
{
    int c = strcmp(m->runs[a].next->name, m->runs[b].next->name);

    return c != 0 ? c < 0 : a < b;
}

static void sift_down(merger *m, size_t i)
{
    uint32_t moving = m->heap[i];
    size_t child;

    for (; (child = 2 * i + 1) < m->n_heap; i = child) {
        if (child + 1 < m->n_heap &&
            heap_less(m, m->heap[child + 1], m->heap[child]))
            child++;
        if (!heap_less(m, m->heap[child], moving))
            break;
        m->heap[i] = m->heap[child];
    }
    m->heap[i] = moving;
}

/* How many tensors of the run stand before the name `limit`; its first one is
 * known not to stand behind it. */
static size_t gallop(const moec_run *run, const char *limit)
{
    size_t low = 1, step = 1, high = (size_t)(run->end - run->next);

    while (low < high && step < high - low &&
           strcmp(run->next[low + step - 1].name, limit) < 0) {
        low += step;
        step *= 2;
    }
    if (low < high && step < high - low)
        high = low + step;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (strcmp(run->next[mid].name, limit) < 0)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

/* Tensors of the least run that come next: up to the first name of the one
 * that is second. */
static size_t count_next(const merger *m)
{
    const moec_run *run = &m->runs[m->heap[0]];
    uint32_t second;

    if (m->n_heap == 1)
        return (size_t)(run->end - run->next);
    second = m->heap[1];
    if (m->n_heap > 2 && heap_less(m, m->heap[2], second))
        second = m->heap[2];
    return gallop(run, m->runs[second].next->name);
}

/* Equal names can only meet where one run follows another. */
static size_t merge(merger *m, const moec_tensor **out)
{
    size_t at = 0;

    for (size_t i = m->n_heap / 2; i-- > 0;)
        sift_down(m, i);
    while (m->n_heap > 0) {
        moec_run *run = &m->runs[m->heap[0]];
        size_t n = count_next(m);

        if (at > 0 && strcmp(out[at - 1]->name, run->next->name) == 0) {
            out[at] = run->next;
            return at;
        }
        for (size_t i = 0; i < n; i++)
            out[at++] = run->next++;
        if (run->next == run->end)
            m->heap[0] = m->heap[--m->n_heap];
        if (m->n_heap > 0)
            sift_down(m, 0);
    }
    return SIZE_MAX;
}

moec_status moec_table_merge(const moec_tensor **out, moec_run *runs,
                             size_t n_runs, size_t *twice_out, moec_error *err)
{
    merger m = {.runs = runs, .n_heap = n_runs};

    m.heap = moec_alloc(n_runs * sizeof(*m.heap));
    if (m.heap == NULL)
        return moec_fail_nomem(err, "sorting the tensors");
    for (size_t i = 0; i < n_runs; i++)
        m.heap[i] = (uint32_t)i;
    *twice_out = merge(&m, out);
    moec_free(m.heap);
    return MOEC_OK;
}

int moec_table_compare(const moec_tensor *t, const char *name, size_t n)
{
    int c = strncmp(t->name, name, n);

    return c != 0 ? c : t->name[n] != '\0';
}

size_t moec_table_find(const moec_tensor *const *tensors, size_t n,
                       const char *name, size_t name_bytes, size_t guess)
{
    size_t low = 0, high = n;

    if (guess < n && moec_table_compare(tensors[guess], name, name_bytes) == 0)
        return guess;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        int c = moec_table_compare(tensors[mid], name, name_bytes);
        if (c == 0)
            return mid;
        if (c < 0)
            low = mid + 1;
        else
            high = mid;
    }
    return SIZE_MAX;
}
