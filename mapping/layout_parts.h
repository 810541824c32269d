/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_LAYOUT_PARTS_H
#define MOEC_LAYOUT_PARTS_H

/*
 * What this is: the inside of a moec_layout, shared by layout.c (where each
 *   tensor lies), layout_header.c (what the files say of it) and
 *   layout_figures.c (what a rank costs), and by nobody else.
 */

#include <moec/mapping.h>

#include "base/base.h"

/* One part of the rank (or store) files, the same for every rank. */
typedef struct moec_layout_part {
    size_t first_layer, n_layers;
    uint64_t bytes, header_bytes;
    size_t n_tensors;
    moec_out_tensor *tensors;
} moec_layout_part;

/* Where a source tensor lies that is stored unchanged. */
typedef struct moec_common_at {
    uint64_t off;
    uint32_t source, file;
} moec_common_at;

struct moec_layout {
    const moec_plan *plan;
    const moec_ckpt *ckpt; /* the plan's source */
    uint64_t max_part_bytes;
    uint32_t n_ranks;
    bool store;
    size_t n_parts;
    moec_layout_part *parts;
    uint32_t *layer_part;   /* [planned layer] */
    size_t *layer_first;    /* [planned layer + 1] into slot_off */
    uint64_t *slot_off;     /* of every slot tensor, from the file's begin */
    size_t n_common;        /* most tensors are not among them */
    moec_common_at *common; /* by source tensor */
    size_t n_files, files_cap;
    moec_out_file *files;
    moec_rank_figures *figures; /* [n_ranks] */
    char placement_hex[65];
    moec_arena arena; /* file names and tables of out tensors */
};

/* Bytes that the header of these tensors takes, padded to a multiple of
 * MOEC_ALIGN. Their offsets count from the begin of the data here. */
moec_status moec_layout_header_size(const moec_layout *l,
                                    moec_out_file_kind kind,
                                    const moec_out_tensor *tensors, size_t n,
                                    uint64_t *out, moec_error *err);

/* Add what each rank reads and moves to figures[n_ranks]. */
moec_status moec_plan_add_figures(const moec_plan *plan, uint32_t n_ranks,
                                  moec_rank_figures *figures, moec_error *err);

#endif
