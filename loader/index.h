/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_INDEX_H
#define MOEC_INDEX_H

/*
 * What this is: model.safetensors.index.json:
 *     {"metadata": {"total_size": BYTES}, "weight_map": {TENSOR: FILE, ...}}
 *   streamed: the map's entries are handed to a callback and not kept. An open
 *   reads the index twice: once for the files that it names, once, when the
 *   shards' tensors are known, to compare the two. That costs less than
 *   keeping half a million names.
 * Threads: one index, one thread.
 * Errors: FORMAT (H08, H22, I02, I04, I05, I07, I09, I10), IO, NOMEM, and what
 *   the callback returns.
 */

#include <moec/loader.h>

#include "base/base.h"

/* Entries of a weight_map that we accept: four times the largest model. */
#define MOEC_INDEX_TENSORS_MAX 2000000u

/* One entry. Names are not terminated and good until the callback returns.
 * `off` is the byte in the index where the entry begins. */
typedef struct moec_index_entry {
    const char *tensor, *file;
    size_t tensor_bytes, file_bytes;
    uint64_t off;
} moec_index_entry;

typedef moec_status (*moec_index_fn)(void *ctx, const moec_index_entry *entry,
                                     moec_error *err);

/* What stands beside the map. */
typedef struct moec_index_facts {
    size_t n_tensors;
    bool has_total;       /* metadata has a total_size */
    bool total_is_number; /* ... and it is an unsigned integer */
    uint64_t total_bytes;
} moec_index_facts;

/* Whether tensors that appear twice are looked for. That takes 21 to 43 bytes
 * a tensor and a cache miss each: a caller who compares the entries with a
 * table sees a tensor's second entry there for nothing. */
typedef enum moec_index_mode {
    MOEC_INDEX_CHECKED = 0,
    MOEC_INDEX_TRUSTING = 1
} moec_index_mode;

/* Read the index of `fd`, `bytes` long. `name` is for the messages. */
moec_status moec_index_read(int fd, uint64_t bytes, const char *name,
                            moec_index_mode mode, moec_index_fn fn, void *ctx,
                            moec_index_facts *out, moec_error *err);

/* The same for an index in memory. */
moec_status moec_index_parse(const void *data, size_t n, const char *name,
                             moec_index_mode mode, moec_index_fn fn, void *ctx,
                             moec_index_facts *out, moec_error *err);

#endif
