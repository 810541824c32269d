/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_BUILD_H
#define MOEC_BUILD_H

/*
 * What this is: what model.c, slices.c and fuse.c share while a model is made:
 *   the tensors as classified, before and while they are proved.
 */

#include "config.h"

/* A layer with expert tensors. All its tensors stand in [begin, end) of the
 * checkpoint's sorted table, those that are not its experts' too. */
typedef struct moec_found_layer {
    moec_layer_key key;
    uint32_t number; /* in the names */
    uint32_t prefix;
    size_t begin, end;
} moec_found_layer;

typedef struct moec_build {
    const moec_ckpt *ckpt;
    const moec_family *family;
    const moec_config *config;
    moec_arena *arena; /* the model's */
    uint32_t *entries; /* by tensor: index of names.entries, or NO_ENTRY */
    uint32_t *experts; /* by tensor: number in its name, or NO_EXPERT */
    const char **components; /* the model's copies of the family's */
    /* Scratch of slices.c, sized once for the largest layer. */
    uint32_t *counts;  /* by group */
    uint32_t *members; /* tensors of the layer, group by group */
    uint8_t *seen;     /* by pattern */
} moec_build;
#define MOEC_NO_ENTRY UINT32_MAX
#define CONFIG_NAME   "config.json"
#define PARAMS_NAME   "params.json" /* where there is no config.json */

/* A place for messages: "layer main 3". */
typedef struct moec_layer_text {
    char s[32];
} moec_layer_text;
moec_layer_text moec_layer_say(moec_layer_key key);

/* Shape as "[256, 64]". */
typedef struct moec_shape_text {
    char s[96];
} moec_shape_text;
moec_shape_text moec_shape_say(uint32_t rank, const uint64_t *shape);

/* Are `n` blocks of `whole` features all whole? */
bool moec_whole_blocks(uint64_t n, uint64_t whole);

/* Prove the layer's tensors complete and uniform and make its slices. */
moec_status moec_build_slices(moec_build *b, const moec_found_layer *found,
                              moec_layer_slices *out, moec_error *err);

/* Tell how the layer is run (moe_facts.c). `facts` are complete. */
moec_status moec_build_moe_facts(const moec_build *b,
                                 const moec_found_layer *found,
                                 const moec_layer_slices *slices,
                                 const moec_facts *facts, moec_moe_facts *out,
                                 moec_error *err);

/* Clamps of the activation in routed and shared experts, 0 for none. */
moec_status moec_read_limits(const moec_config *c, moec_layer_key key,
                             double *routed, double *shared, moec_error *err);

/* Set shared_slots and no_fuse_why from what all layers have. */
moec_status moec_decide_fusion(const moec_build *b,
                               const moec_layer_slices *layers, size_t n,
                               moec_facts *facts, moec_error *err);

#endif
