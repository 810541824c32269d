/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_INPUT_H
#define MOEC_INPUT_H

/*
 * What this is: where a conversion gets the source's bytes from. Two kinds: a
 *   checkpoint's own directory, and a conversion that holds the same bytes in
 *   other places (an expert store, another number of ranks). What is asked is
 *   always the ORIGINAL source: its tensors, headers, index and small files;
 *   so the output is the same, byte for byte, whichever kind answers.
 * Lifetime: create, hire before the first read of data, destroy. The layout
 *   and the options are borrowed.
 * Threads: read_block and read_tensor from the hand's own thread, all else
 *   from one.
 * Errors: FORMAT, INTEGRITY (a conversion's bytes have not their digest), IO,
 *   NOMEM.
 */

#include "convert.h"
#include "crew.h"
#include "requant.h"

/* Who reads: worker `index` of the crew. */
typedef struct moec_hand {
    uint32_t index;
    moec_worker *worker;
} moec_hand;

/* A block of the new plan: (planned layer, slot tensor, unit). */
typedef struct moec_block_id {
    uint32_t layer, t, unit;
} moec_block_id;

/* First byte that a piece of work reads: a sort key and nothing else. */
typedef struct moec_spot {
    uint32_t file;
    uint64_t off;
} moec_spot;

/* A small file of the source, opened. */
typedef struct moec_extra {
    const char *name;
    uint64_t bytes;
    int fd;                    /* -1: the bytes are at `data` */
    const void *data;          /* borrowed from the input */
    const moec_sha256 *sha256; /* that they must have, or NULL */
} moec_extra;

typedef struct moec_input moec_input;

typedef struct moec_input_kind {
    /* Open what read_* need, for `n` workers. */
    moec_status (*hire)(moec_input *in, uint32_t n, moec_error *err);
    moec_status (*block_spot)(moec_input *in, moec_block_id b, moec_spot *out,
                              moec_error *err);
    moec_status (*tensor_spot)(moec_input *in, uint32_t tensor, moec_spot *out,
                               moec_error *err);
    /* Bytes [from, to) of a block as the new plan has it. */
    moec_status (*read_block)(moec_input *in, moec_hand h, moec_block_id b,
                              uint64_t from, uint64_t to, void *dst,
                              moec_error *err);
    /* `n` bytes at `off` of a source tensor. */
    moec_status (*read_tensor)(moec_input *in, moec_hand h, uint32_t tensor,
                               uint64_t off, void *dst, size_t n,
                               moec_error *err);
    /* Is all that was read still what was opened? */
    moec_status (*check_unchanged)(const moec_input *in, moec_error *err);
    /* First header_bytes of source shard `i`. */
    moec_status (*read_header)(const moec_input *in, size_t i, void *dst,
                               moec_error *err);
    /* The whole index; where index_name is not NULL. */
    moec_status (*read_index)(const moec_input *in, moec_buf *out,
                              moec_error *err);
    moec_status (*open_extra)(const moec_input *in, size_t i, moec_extra *out,
                              moec_error *err);
    /* Hugging Face etag of shard `i`, or NULL. */
    const char *(*etag)(const moec_input *in, size_t i);
    /* Lines for identity.h. */
    moec_status (*identity)(const moec_input *in, moec_buf *out,
                            moec_error *err);
    void (*destroy)(moec_input *in);
} moec_input_kind;

/* What both kinds begin with. */
struct moec_input {
    const moec_input_kind *kind;
    const moec_layout *layout; /* of the output */
    const moec_plan *plan;
    const moec_ckpt *ckpt; /* the source's tables; maybe headers alone */
    const moec_convert_opts *opts;
    const char *index_name; /* of the source, or NULL */
    size_t n_extra;
    const char *const *extra; /* names, sorted bytewise */
    moec_requant *requant;    /* NULL: nothing is requantised */
    uint32_t n_hands;         /* that were hired */
    /* What is not measured again: the manifest that has it, or NULL. */
    const struct moec_manifest *carried;
};

/* The kind that opts->source asks for. */
moec_status moec_input_create(moec_input **out, const moec_layout *layout,
                              const moec_convert_opts *opts, moec_error *err);
/* NULL is fine. */
void moec_input_destroy(moec_input *in);

/* The kind's hire, noted. */
moec_status moec_input_hire(moec_input *in, uint32_t n, moec_error *err);

/* The kind's read_block; blocks that are requantised are made here. */
moec_status moec_input_block(moec_input *in, moec_hand h, moec_block_id b,
                             uint64_t from, uint64_t to, void *dst,
                             moec_error *err);

/* A moec_read_fn over read_tensor. */
typedef struct moec_input_call {
    moec_input *in;
    moec_hand hand;
} moec_input_call;
moec_status moec_input_read(void *call, uint32_t tensor, uint64_t off,
                            void *dst, size_t n, moec_error *err);

/* input_ckpt.c: the directory of the layout's checkpoint. */
moec_status moec_input_of_ckpt(moec_input **out, const moec_input *common,
                               moec_error *err);
/* input_conversion.c: opts->source. */
moec_status moec_input_of_conversion(moec_input **out, const moec_input *common,
                                     moec_error *err);

/* Extra files. A file of unknown kind: read `n` bytes at `off`. */
moec_status moec_extra_read(const moec_extra *x, uint64_t off, void *dst,
                            size_t n, moec_error *err);
/* Fail with M08 where the digest is not the one that it must have. */
moec_status moec_extra_check(const moec_extra *x, const moec_sha256 *got,
                             moec_error *err);
void moec_extra_close(moec_extra *x);

#endif
