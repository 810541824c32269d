/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_HEADER_PARTS_H
#define MOEC_HEADER_PARTS_H

/*
 * What this is: a shard header at work, shared by safetensors.c (the object,
 *   the table, the source) and header_entry.c (one tensor's entry).
 */

#include "entry_scan.h"
#include "jsonscan.h"
#include "nameset.h"
#include "safetensors.h"

#define N_SHAPES_KEPT 64 /* models repeat a dozen shapes; power of two */

/* What an entry has said so far. */
enum { HAS_DTYPE = 1, HAS_SHAPE = 2, HAS_OFFSETS = 4 };

typedef struct moec_header_entry {
    moec_tensor *t;
    uint64_t begin, end;
    uint64_t shape[MOEC_RANK_MAX];
    uint32_t has;
} moec_header_entry;

typedef struct moec_header_parser {
    moec_jsonscan js;
    moec_header *h;
    moec_arena *arena; /* of names and shapes */
    size_t cap;        /* of h->tensors */
    size_t breaks_cap;
    moec_nameset names;
    moec_entry_scan scan;
    const uint64_t *shapes[N_SHAPES_KEPT]; /* stored ones, by hash */
    uint16_t shape_rank[N_SHAPES_KEPT];
    /* source */
    int fd;
    uint64_t next, limit; /* bytes of the file still to be read */
    unsigned char *window;
    moec_hasher *hasher;
    char text[MOEC_NAME_BYTES_MAX];
} moec_header_parser;

/* Read the entry of `t`, whose name was read. */
moec_status moec_header_read_entry(moec_header_parser *p, moec_tensor *t);
/* Refuse an entry that is not whole or does not hold together; give its tensor
 * place and shape. */
moec_status moec_header_check_entry(moec_header_parser *p,
                                    moec_header_entry *e);
/* Give the tensor its shape; equal shapes are stored once where they are
 * near each other. */
moec_status moec_header_keep_shape(moec_header_parser *p, moec_header_entry *e);

#endif
