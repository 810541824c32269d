/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_EXECUTE_H
#define MOEC_EXECUTE_H

/*
 * What this is: the one executor of moves. It fills a range of a block (one
 *   slot of a slot tensor, or with inverse moves a stretch of a source
 *   tensor) from wherever a read callback finds the bytes. convert/ hands it
 *   write buffers, validate/ hands it buffers to digest, unconvert hands it
 *   inverse moves.
 * Threads: no state but the caller's scratch; one scratch, one thread.
 */

#include <stdbool.h>

#include <moec/error.h>
#include <moec/types.h>

/* Read `n` bytes at `off` bytes from the begin of tensor `tensor`. */
typedef moec_status (*moec_read_fn)(void *ctx, uint32_t tensor, uint64_t off,
                                    void *buf, size_t n, moec_error *err);

/* Reused between calls; zero-initialise, free with moec_scratch_fini. */
typedef struct moec_scratch {
    unsigned char *data;
    size_t bytes;
} moec_scratch;
void moec_scratch_fini(moec_scratch *s);

/* Bytes that the scratch grows to at most, whatever the moves. */
#define MOEC_SCRATCH_BYTES_MAX ((size_t)4 << 20)

/* Fill dst[0, to-from) with bytes [from, to) of the block that `moves` tile.
 * `from` and `to` fall on element borders. Bytes that no move covers are left
 * as they are (moves are proved first). Where gate and up alternate in the
 * source and the range holds both, the source is read once. */
moec_status moec_block_read(const moec_move *moves, size_t n_moves,
                            uint64_t from, uint64_t to, void *dst,
                            moec_read_fn read, void *ctx, moec_scratch *scratch,
                            moec_error *err);

/* Swap the two sides of a move. Source offsets become destination offsets
 * relative to `block_off`, the begin of the stretch of the source tensor that
 * the inverse fills; destination offsets become offsets in the slot that the
 * inverse reads, which the read callback knows as `tensor`. */
moec_move moec_move_inverse(const moec_move *m, uint32_t tensor,
                            uint64_t block_off);

/* True where the destinations of at most 256 moves tile [0, bytes): each byte
 * exactly once. On false, *off_out is a byte that is written never or twice
 * (as near as can be told). */
bool moec_moves_tile(const moec_move *moves, size_t n_moves, uint64_t bytes,
                     uint64_t *off_out);

#endif
