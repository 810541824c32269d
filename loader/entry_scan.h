/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_ENTRY_SCAN_H
#define MOEC_ENTRY_SCAN_H

/*
 * What this is: the quick way over one entry of a shard's header, in the form
 *   in which all known writers write it: keys in the order dtype, shape,
 *   data_offsets, at most one space behind a colon or a comma, plain ASCII,
 *   short integers. It takes what it understands whole and refuses nothing:
 *   every other text, right or wrong, is left to the tokenizer (jsonscan.h),
 *   which alone says what is wrong with it.
 * Threads: one moec_entry_scan, one thread.
 */

#include "base/base.h"

typedef struct moec_entry_scan {
    const char *name; /* in the window, not terminated */
    size_t name_bytes;
    uint64_t shape[MOEC_RANK_MAX];
    uint64_t begin, end; /* data_offsets */
    moec_dtype dtype;
    uint16_t rank;
    /* element types met before, by the text up to and with their quote */
    struct moec_dtype_seen {
        uint64_t text;
        moec_dtype dtype;
    } seen[4];
    uint32_t n_seen;
} moec_entry_scan;

/* Read the entry that begins at `p`, its name's opening quote. Returns the byte
 * behind its closing brace, or NULL where the text has another form or the
 * window may end within the entry. Zero-initialise `e` for the first one. */
const unsigned char *moec_entry_read(moec_entry_scan *e, const unsigned char *p,
                                     const unsigned char *end);

#endif
