/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_LOAD_PIECES_H
#define MOEC_LOAD_PIECES_H

/*
 * What this is: a rank of a plan as pieces for the engine: which stretch of
 *   which file goes to which place in memory, with which digests. Of the
 *   plan's checkpoint or of a conversion of its model, into dense slots, slots
 *   with gaps, or a tensor-parallel part of them.
 * Lifetime: a moec_loading borrows all that it points to.
 * Threads: immutable once checked: share freely; a list is one thread's.
 * Errors: UNSUPPORTED (a part that would cut a block), MAPPING and FORMAT (the
 *   conversion does not hold what the plan wants), NOMEM.
 *
 * What no piece can do says so (*slow_out), and is filled block by block
 * (load/slow.c): empty slots, requantised slots, tensors that stand in slots
 * only, and checked bytes that are not adjacent in their rows.
 */

#include "base/base.h"
#include "converted.h"
#include "engine.h"
#include "slot_axes.h"

/* From where to where. */
typedef struct moec_loading {
    const moec_plan *plan; /* what is loaded */
    uint32_t rank;
    uint32_t tp_rank, tp_size; /* 0, 1: whole slots */
    bool verify;               /* bytes with leaves are checked against them */
    /* The conversion that holds the bytes: its layout and its slots.bin. NULL:
     * the plan's checkpoint does. */
    const moec_layout *old;
    const moec_slots *slots;
} moec_loading;

/* Bytes that stand in one stretch of a file: of the checkpoint's files, or of
 * the conversion's. */
typedef struct moec_stretch {
    uint32_t file;
    uint64_t off, bytes;
    const moec_leaf *leaves; /* from `off` on, or NULL */
} moec_stretch;

/* Rows and columns [first, first + n) of each half of a slot; in memory,
 * element (h, r, c) of it at data + h*half + r*row + c*elem. */
typedef struct moec_window {
    moec_slot_axes axes;
    uint64_t row_first, n_rows, col_first, n_cols;
    uint64_t row_stride, half_stride; /* bytes in memory */
    uint64_t bytes;                   /* of the dense form */
} moec_window;

typedef struct moec_piece_list {
    moec_piece *v;
    size_t n, cap;
} moec_piece_list;
void moec_piece_list_fini(moec_piece_list *l);

/* Refuse (MAPPING, FORMAT M09) what this source cannot give this plan. */
moec_status moec_loading_check(const moec_loading *ld, moec_error *err);

/* The part of slot tensor `t` that this rank of a tensor-parallel group has,
 * dense. UNSUPPORTED where a block would be cut. */
moec_status moec_loading_window(const moec_loading *ld, size_t layer, size_t t,
                                moec_window *out, moec_error *err);
/* Give it strides in memory; 0 keeps the dense one. ARG where they overlap. */
moec_status moec_window_stride(moec_window *w, uint64_t row_stride,
                               uint64_t half_stride, moec_error *err);

/* Where source tensor `tensor` stands in one stretch. False where it does not:
 * it went into slots, or was left out. */
bool moec_loading_tensor(const moec_loading *ld, size_t tensor,
                         moec_stretch *out);

/* Where the block of (layer, t) with `unit` stands as it is. `row` is the row
 * of the slot tensor that wants it, on the rank that is loaded. False where it
 * must be made of source tensors. Only with ld->old. */
bool moec_loading_slot(const moec_loading *ld, size_t layer, size_t t,
                       uint32_t row, uint32_t unit, moec_stretch *out);

/* Append the pieces that bring `unit` into the window at `data`, for row `row`
 * of the slot tensor; `group` and `tag` are theirs. Nothing is appended where
 * *slow_out. */
moec_status moec_loading_block(const moec_loading *ld, size_t layer, size_t t,
                               uint32_t row, uint32_t unit,
                               const moec_window *w, unsigned char *data,
                               uint32_t group, uint32_t tag,
                               moec_piece_list *out, bool *slow_out,
                               moec_error *err);

/* A source tensor, or a part of it, in memory: rows of shape[0]. */
typedef struct moec_tensor_window {
    uint64_t n_rows, row_bytes;          /* of the tensor */
    uint64_t row_first, rows;            /* wanted */
    uint64_t col_first_bytes, col_bytes; /* of each of them */
    uint64_t row_stride;                 /* in memory */
} moec_tensor_window;
moec_status moec_loading_tensor_piece(const moec_loading *ld, size_t tensor,
                                      const moec_tensor_window *w,
                                      unsigned char *data, uint32_t group,
                                      uint32_t tag, moec_piece_list *out,
                                      bool *slow_out, moec_error *err);

/* Copy bytes [from, from + n) of a dense slot, whole elements, to where the
 * window has them: calls `put` with rows of adjacent bytes. */
typedef moec_status (*moec_put_fn)(void *ctx, uint64_t dst_off,
                                   uint64_t dst_row, const unsigned char *src,
                                   uint64_t src_row, uint64_t row_bytes,
                                   uint64_t rows, moec_error *err);
moec_status moec_window_put(const moec_window *w, uint64_t from, uint64_t n,
                            const unsigned char *src, moec_put_fn put,
                            void *ctx, moec_error *err);

#endif
