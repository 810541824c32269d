/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Sorted by (begin, end), each tensor must begin where the one before it ends,
 * the first at 0 and the last at the end of the file. Empty tensors may stand
 * at any such border. Nearly all files list their tensors so already; for the
 * rest there is a heap sort of ours, because the C library's qsort may be
 * quadratic, or allocate past moec_alloc.
 */

#include "tiling.h"

#include <inttypes.h>

static bool before(const moec_tensor *a, const moec_tensor *b)
{
    return a->off != b->off ? a->off < b->off : a->bytes < b->bytes;
}

static bool in_order(const moec_tensor *tensors, size_t n)
{
    for (size_t i = 1; i < n; i++) {
        if (before(&tensors[i], &tensors[i - 1]))
            return false;
    }
    return true;
}

/* Let order[root] sink in the heap order[0, n): last tensor on top. */
static void sift_down(const moec_tensor *tensors, uint32_t *order, size_t root,
                      size_t n)
{
    uint32_t moving = order[root];
    size_t child;

    for (; (child = 2 * root + 1) < n; root = child) {
        if (child + 1 < n &&
            before(&tensors[order[child]], &tensors[order[child + 1]]))
            child++;
        if (!before(&tensors[moving], &tensors[order[child]]))
            break;
        order[root] = order[child];
    }
    order[root] = moving;
}

/* Give the tensors' numbers by (begin, end); NULL where they stand so. */
static moec_status offset_order(const moec_tensor *tensors, size_t n,
                                uint32_t **out, moec_error *err)
{
    uint32_t *order;

    *out = NULL;
    if (in_order(tensors, n))
        return MOEC_OK;
    order = moec_alloc(n * sizeof(*order));
    if (order == NULL)
        return moec_fail_nomem(err, "the order of the tensors");
    for (size_t i = 0; i < n; i++)
        order[i] = (uint32_t)i;
    for (size_t root = n / 2; root-- > 0;)
        sift_down(tensors, order, root, n);
    for (size_t last = n - 1; last > 0; last--) {
        uint32_t top = order[0];
        order[0] = order[last];
        order[last] = top;
        sift_down(tensors, order, 0, last);
    }
    *out = order;
    return MOEC_OK;
}

/* H16, H17. */
static moec_status check_end(uint64_t end, uint64_t header_bytes,
                             uint64_t file_bytes, const char *name,
                             moec_error *err)
{
    uint64_t data_bytes = file_bytes - header_bytes;

    if (end > data_bytes)
        return moec_fail_at(err, MOEC_E_FORMAT, MOEC_RULE_H17, file_bytes,
                            "%s: the header says %" PRIu64
                            " bytes of data, the file ends behind %" PRIu64
                            " (byte %" PRIu64 ")",
                            name, end, data_bytes, file_bytes);
    if (end < data_bytes)
        return moec_fail_at(err, MOEC_E_FORMAT, MOEC_RULE_H16,
                            header_bytes + end,
                            "%s: %" PRIu64 " bytes behind the last tensor "
                            "(from byte %" PRIu64 ")",
                            name, data_bytes - end, header_bytes + end);
    return MOEC_OK;
}

moec_status moec_tiling_check(const moec_tensor *tensors, size_t n,
                              uint64_t header_bytes, uint64_t file_bytes,
                              const char *name, moec_error *err)
{
    uint32_t *order = NULL;
    uint64_t end = 0;
    moec_status st;

    MOEC_TRY(offset_order(tensors, n, &order, err));
    st = MOEC_OK;
    for (size_t i = 0; st == MOEC_OK && i < n; i++) {
        const moec_tensor *t = &tensors[order != NULL ? order[i] : i];
        if (t->off != end)
            st = moec_fail_at(
                err, MOEC_E_FORMAT, MOEC_RULE_H15, header_bytes,
                "%s: tensor '%s': begins at %" PRIu64
                " of the data, the one before it ends at %" PRIu64 " (%s)",
                name, t->name, t->off, end, t->off > end ? "hole" : "overlap");
        end = t->off + t->bytes; /* both were read: no overflow */
    }
    if (st == MOEC_OK)
        st = check_end(end, header_bytes, file_bytes, name, err);
    moec_free(order);
    return st;
}
