/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Fuzz target: an index file. Names that the callback sees must be plain, and
 * both ways of reading must agree.
 */

#include <stdlib.h>
#include <string.h>

#include "index.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static moec_status check(void *ctx, const moec_index_entry *e, moec_error *err)
{
    size_t bad = 0;

    (void)err;
    if (e->tensor_bytes == 0 || e->tensor_bytes > MOEC_NAME_BYTES_MAX ||
        e->file_bytes == 0 || e->file_bytes > 255 ||
        memchr(e->tensor, '\0', e->tensor_bytes) != NULL ||
        memchr(e->file, '\0', e->file_bytes) != NULL ||
        memchr(e->file, '/', e->file_bytes) != NULL ||
        (e->file[0] == '.' &&
         (e->file_bytes == 1 || (e->file_bytes == 2 && e->file[1] == '.'))) ||
        !moec_utf8_valid(e->tensor, e->tensor_bytes, &bad) ||
        !moec_utf8_valid(e->file, e->file_bytes, &bad))
        abort();
    ++*(size_t *)ctx;
    return MOEC_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_index_facts facts;
    size_t checked = 0, trusting = 0;
    moec_status st = moec_index_parse(data, n, "fuzz", MOEC_INDEX_CHECKED,
                                      check, &checked, &facts, &err);

    if (st == MOEC_OK &&
        (moec_index_parse(data, n, "fuzz", MOEC_INDEX_TRUSTING, check,
                          &trusting, &facts, &err) != MOEC_OK ||
         checked != trusting || checked != facts.n_tensors || checked == 0))
        abort();
    if (st != MOEC_OK && (err.status != st || err.text[0] == '\0'))
        abort();
    return 0;
}
