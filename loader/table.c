/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Writers sort a shard's names, and shards hold neighbouring layers. So the
 * table, shard behind shard, is a few hundred ascending runs that hardly
 * interleave. The sort finds the runs, keeps them in a heap by their first
 * name, and takes from the least run all that stands before the next one's
 * first name, found by doubling steps: about n comparisons for a real
 * checkpoint, n log n for any order at all.
 */

#include "table.h"

#include <string.h>

typedef struct sorter {
    const moec_tensor *tensors;
    uint32_t *next; /* of each run: its first tensor not yet taken */
    uint32_t *end;  /* of each run */
    uint32_t *heap; /* run numbers, least first name on top */
    size_t n_heap;
} sorter;

static int compare(const sorter *s, uint32_t a, uint32_t b)
{
    return strcmp(s->tensors[a].name, s->tensors[b].name);
}

static bool heap_less(const sorter *s, uint32_t run_a, uint32_t run_b)
{
    return compare(s, s->next[run_a], s->next[run_b]) < 0;
}

static void sift_down(sorter *s, size_t i)
{
    uint32_t moving = s->heap[i];
    size_t child;

    for (; (child = 2 * i + 1) < s->n_heap; i = child) {
        if (child + 1 < s->n_heap &&
            heap_less(s, s->heap[child + 1], s->heap[child]))
            child++;
        if (!heap_less(s, s->heap[child], moving))
            break;
        s->heap[i] = s->heap[child];
    }
    s->heap[i] = moving;
}

/* First tensor of [from, end) that does not stand before tensor `limit`;
 * `from` itself is known to. */
static uint32_t gallop(const sorter *s, uint32_t from, uint32_t end,
                       uint32_t limit)
{
    uint32_t low = from + 1, step = 1;
    uint32_t high = end;

    while (low < high && step < high - low &&
           compare(s, low + step - 1, limit) < 0) {
        low += step;
        step *= 2;
    }
    if (step < high - low)
        high = low + step;
    while (low < high) {
        uint32_t mid = low + (high - low) / 2;
        if (compare(s, mid, limit) < 0)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

/* Write the tensors' numbers in order. */
static void merge_runs(sorter *s, uint32_t *order)
{
    for (size_t i = s->n_heap / 2; i-- > 0;)
        sift_down(s, i);
    while (s->n_heap > 0) {
        uint32_t run = s->heap[0];
        uint32_t to = s->end[run];
        if (s->n_heap > 1) {
            uint32_t second = s->heap[1];
            if (s->n_heap > 2 && heap_less(s, s->heap[2], second))
                second = s->heap[2];
            to = gallop(s, s->next[run], to, s->next[second]);
        }
        for (uint32_t i = s->next[run]; i < to; i++)
            *order++ = i;
        s->next[run] = to;
        if (to == s->end[run])
            s->heap[0] = s->heap[--s->n_heap];
        if (s->n_heap > 0)
            sift_down(s, 0);
    }
}

/* Put tensor order[i] at i, for all i, following each cycle once. */
static void permute(moec_tensor *tensors, uint32_t *order, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        moec_tensor first = tensors[i];
        size_t to = i;
        while (order[to] != i) {
            size_t from = order[to];
            tensors[to] = tensors[from];
            order[to] = (uint32_t)to;
            to = from;
        }
        tensors[to] = first;
        order[to] = (uint32_t)to;
    }
}

static size_t count_runs(const moec_tensor *tensors, size_t n)
{
    size_t runs = n > 0;

    for (size_t i = 1; i < n; i++)
        runs += strcmp(tensors[i - 1].name, tensors[i].name) > 0;
    return runs;
}

moec_status moec_table_sort(moec_tensor *tensors, size_t n, moec_error *err)
{
    sorter s = {.tensors = tensors};
    size_t runs = count_runs(tensors, n);
    uint32_t *order;
    size_t r = 0;

    if (runs < 2)
        return MOEC_OK;
    order = moec_alloc((n + 3 * runs) * sizeof(*order));
    if (order == NULL)
        return moec_fail_nomem(err, "sorting the tensors");
    s.next = order + n;
    s.end = s.next + runs;
    s.heap = s.end + runs;
    s.n_heap = runs;
    s.next[0] = 0;
    for (size_t i = 1; i < n; i++) {
        if (strcmp(tensors[i - 1].name, tensors[i].name) <= 0)
            continue;
        s.end[r++] = (uint32_t)i;
        s.next[r] = (uint32_t)i;
    }
    s.end[r] = (uint32_t)n;
    for (size_t i = 0; i < runs; i++)
        s.heap[i] = (uint32_t)i;
    merge_runs(&s, order);
    permute(tensors, order, n);
    moec_free(order);
    return MOEC_OK;
}

int moec_table_compare(const moec_tensor *t, const char *name, size_t n)
{
    int c = strncmp(t->name, name, n);

    return c != 0 ? c : t->name[n] != '\0';
}

size_t moec_table_find(const moec_tensor *tensors, size_t n, const char *name,
                       size_t name_bytes, size_t guess)
{
    size_t low = 0, high = n;

    if (guess < n && moec_table_compare(&tensors[guess], name, name_bytes) == 0)
        return guess;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        int c = moec_table_compare(&tensors[mid], name, name_bytes);
        if (c == 0)
            return mid;
        if (c < 0)
            low = mid + 1;
        else
            high = mid;
    }
    return SIZE_MAX;
}
