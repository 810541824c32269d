/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Fuzz target: a safetensors file from its first byte. Whatever is accepted
 * must obey the rules that others rely on: tensors inside the file, names
 * terminated and different, bytes that fit shape and dtype.
 */

#include <stdlib.h>
#include <string.h>

#include "safetensors.h"
#include "table.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void check(moec_header *h, size_t n)
{
    moec_error err = MOEC_ERROR_INIT;
    uint64_t sum = 0;

    for (size_t i = 0; i < h->n_tensors; i++) {
        const moec_tensor *t = &h->tensors[i];
        size_t bytes = strlen(t->name), bad = 0;
        if (bytes == 0 || bytes > MOEC_NAME_BYTES_MAX ||
            !moec_utf8_valid(t->name, bytes, &bad) || t->rank > MOEC_RANK_MAX ||
            moec_dtype_bits(t->dtype) == 0 || t->off < h->header_bytes ||
            t->off > n || t->bytes > n - t->off)
            abort();
        sum += t->bytes;
    }
    if (sum != h->data_bytes || h->header_bytes + sum != n)
        abort();
    moec_run *runs = malloc((h->n_breaks + 1) * sizeof(*runs));
    const moec_tensor **sorted = malloc((h->n_tensors + 1) * sizeof(*sorted));
    size_t twice, n_runs = moec_header_runs(h, runs);
    if (n_runs != moec_header_n_runs(h) ||
        moec_table_merge(sorted, runs, n_runs, &twice, &err) != MOEC_OK ||
        twice != SIZE_MAX)
        abort();
    for (size_t i = 1; i < h->n_tensors; i++) {
        if (strcmp(sorted[i - 1]->name, sorted[i]->name) >= 0)
            abort();
    }
    free(sorted);
    free(runs);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_header h;
    moec_status st = moec_header_parse(&h, data, n, n, "fuzz", &err);

    if (st == MOEC_OK) {
        check(&h, n);
        moec_header_fini(&h);
    } else if (err.status != st || err.text[0] == '\0') {
        abort();
    }
    return 0;
}
