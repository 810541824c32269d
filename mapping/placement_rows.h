/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_PLACEMENT_ROWS_H
#define MOEC_PLACEMENT_ROWS_H

/*
 * What this is: the seam between the readers of placement files, one a kind of
 *   file, and placement_formats.c, which makes a placement of what they found:
 *   rows of integers and what each row is about. Readers refuse what has not
 *   their form; what the numbers mean is checked in one place, so that all
 *   forms are held to the same rules.
 * Lifetime: zero-initialise; moec_rows_fini frees. `target` and `name` are
 *   borrowed from the caller of moec_placement_file_read.
 * Threads: one thread at a time.
 * Errors: FORMAT (P01..P04), UNSUPPORTED (P01), NOMEM.
 */

#include "base/base.h"
#include "placement.h"

/* What rows are about. */
typedef enum moec_rows_kind {
    MOEC_ROWS_DECODER = 1, /* row i: decoder layer i, MTP ones behind */
    MOEC_ROWS_MOE = 2,     /* row i: the i-th MoE layer, MTP ones behind */
    MOEC_ROWS_NUMBERED = 3 /* row i: decoder layer `number`, MTP counted on */
} moec_rows_kind;

typedef struct moec_rows_row {
    size_t first, n; /* ids[first .. first+n) */
    uint64_t number; /* MOEC_ROWS_NUMBERED */
} moec_rows_row;

typedef struct moec_rows {
    const moec_placement_target *target;
    const char *name;
    moec_placement_form form;
    moec_rows_kind kind;
    moec_buf ids;      /* int64_t */
    moec_buf rows;     /* moec_rows_row */
    moec_buf replica;  /* uint32_t beside ids, or empty */
    uint32_t n_ranks;  /* 0: the file says nothing */
    uint32_t mtp_rows; /* MTP layers counted by their highest number */
    /* The first id that is no integer: reported when its turn comes, behind
     * what is wrong with the number of rows. */
    bool bad;
    size_t bad_row, bad_slot;
    char bad_what[64];
    char note[160]; /* what is not carried over; or empty */
} moec_rows;

void moec_rows_fini(moec_rows *r);
void moec_rows_begin(moec_rows *r, uint64_t number);
void moec_rows_push(moec_rows *r, int64_t id);
/* An id that is no integer: `what` says what it is. */
void moec_rows_push_bad(moec_rows *r, const char *what);
size_t moec_rows_count(const moec_rows *r);
const moec_rows_row *moec_rows_at(const moec_rows *r, size_t row);

#define MOEC_ROWS_TEXT_BYTES 64
/* "layer 3", "layer 3 (row 0)", "row 0", as far as it is known. */
const char *moec_rows_text(const moec_rows *r, size_t row,
                           char buf[MOEC_ROWS_TEXT_BYTES]);

/* An array of integers with its name, as .npy, .npz and .pt files hold them.
 * Row major. */
#define MOEC_ARRAY_DIMS 3
typedef struct moec_int_array {
    char name[40]; /* "" without one */
    uint32_t n_dims;
    uint64_t shape[MOEC_ARRAY_DIMS];
    int64_t *v; /* moec_alloc'ed */
    size_t n;   /* product of the shape */
} moec_int_array;
#define MOEC_ARRAYS_MAX 8
typedef struct moec_int_arrays {
    moec_int_array a[MOEC_ARRAYS_MAX];
    size_t n;
    bool named; /* a dict: names count; else positions */
} moec_int_arrays;
void moec_int_arrays_fini(moec_int_arrays *a);
/* Append an array of that shape, zeros. NOMEM, and FORMAT P01 for too many or
 * for sizes that `max` elements do not allow. */
moec_status moec_int_arrays_add(moec_int_arrays *a, const char *name,
                                const uint64_t *shape, uint32_t n_dims,
                                size_t max, moec_int_array **out,
                                const char *file, moec_error *err);

/* Take EPLB's log2phy [moe_layers][E][X]: rows where there are none yet, else
 * it must agree with them; and the order of replicas. */
moec_status moec_rows_take_log2phy(moec_rows *r, const moec_int_array *log2phy,
                                   moec_error *err);
/* Refuse a logcnt [moe_layers][E] that does not count the rows' replicas. */
moec_status moec_rows_check_logcnt(const moec_rows *r,
                                   const moec_int_array *logcnt,
                                   moec_error *err);
/* UNSUPPORTED: counts alone name no slots. */
moec_status moec_rows_fail_logcnt(const moec_rows *r, moec_error *err);
/* Rows out of arrays: physical_to_logical_map, or phy2log, log2phy, logcnt.
 * Unnamed: two dimensions are phy2log, three log2phy; EPLB's three stand in
 * that order. */
moec_status moec_rows_from_arrays(moec_rows *r, const moec_int_arrays *a,
                                  moec_error *err);

/* The readers. */
moec_status moec_rows_read_json(moec_rows *r, const char *text, size_t n,
                                moec_error *err);
moec_status moec_rows_read_yaml(moec_rows *r, const char *text, size_t n,
                                moec_error *err);
moec_status moec_rows_read_npy(moec_rows *r, const char *text, size_t n,
                               moec_error *err);
moec_status moec_rows_read_zip(moec_rows *r, const char *text, size_t n,
                               moec_error *err);

/* One .npy as an array named `name`. */
moec_status moec_npy_array(moec_int_arrays *a, const char *name,
                           const char *file, const unsigned char *text,
                           size_t n, moec_error *err);

/* What a torch.save wrote: the pickle and a way to its storages. */
typedef struct moec_torch_storage {
    const unsigned char *data;
    size_t bytes;
} moec_torch_storage;
typedef bool (*moec_torch_find)(void *ctx, const char *key,
                                moec_torch_storage *out);
moec_status moec_torch_read(moec_int_arrays *a, const char *file,
                            const unsigned char *pickle, size_t n,
                            moec_torch_find find, void *ctx, moec_error *err);

/* File begins with these bytes. */
static inline bool moec_begins(const char *text, size_t n, const char *magic,
                               size_t m)
{
    return n >= m && __builtin_memcmp(text, magic, m) == 0;
}

#endif
