/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_INVERSE_H
#define MOEC_INVERSE_H

/*
 * What this is: the way back. Every source tensor is cut into blocks (one for
 *   a tensor of one expert, one per expert for a stacked tensor), and each
 *   block names the stretches of output files that it is read from and the
 *   moves that bring them back. unconvert writes them, verify compares them.
 * Lifetime: a moec_inverse is a plain value of about 8 KiB.
 * Threads: safe from any thread; the layout is immutable.
 * Errors: UNSUPPORTED (M09: the tensor was left out, or has more parts than
 *   a block can name), INTERNAL.
 */

#include <stdbool.h>

#include <moec/mapping.h>

/* A shared expert of 32 parts whose gate and up are one source: no known
 * model has more than 8. */
#define MOEC_INVERSE_MOVES_MAX 64

/* Where one move reads: the slot (or common tensor) begins at `off` bytes from
 * the begin of output file `file` and has `bytes` bytes. */
typedef struct moec_inverse_from {
    size_t file; /* for moec_layout_file */
    uint64_t off, bytes;
} moec_inverse_from;

/* One block: bytes [off, off + bytes) of the source tensor. Destinations of
 * the moves are relative to `off`; `tensor` of a move is its index in `from`,
 * and its source offsets are relative to that slot's begin. The moves tile
 * the block, as moec_block_read wants it. */
typedef struct moec_inverse {
    uint64_t off, bytes;
    size_t n_moves;
    moec_move moves[MOEC_INVERSE_MOVES_MAX];
    moec_inverse_from from[MOEC_INVERSE_MOVES_MAX];
} moec_inverse;

/* Number of blocks of source tensor `tensor`: 0 where it was left out
 * (MOEC_FATE_SKIPPED), 1, or E for a stacked one. Blocks are ascending and
 * tile the tensor. */
size_t moec_inverse_n_blocks(const moec_layout *layout, size_t tensor);

/* Describe block `block` of source tensor `tensor`. Of several replicas the
 * first in physical order serves. */
moec_status moec_inverse_block(const moec_layout *layout, size_t tensor,
                               size_t block, moec_inverse *out,
                               moec_error *err);

/* Say where the first slot that holds `unit` stands for slot tensor `t` of
 * planned layer `layer`. False where no slot of the files holds it. */
bool moec_inverse_slot(const moec_layout *layout, size_t layer, size_t t,
                       uint32_t unit, moec_inverse_from *out);

#endif
