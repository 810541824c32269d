/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_SLICES_H
#define MOEC_SLICES_H

/*
 * What this is: the layer at hand, shared by slices.c, which makes its slices,
 *   and slices_fit.c, which holds them against the config.
 */

#include <string.h>

#include "build.h"

/* The layer, read as one variant of the family. */
typedef struct moec_reading {
    moec_build *b;
    const moec_found_layer *layer;
    uint32_t variant;
    moec_error *err;
} moec_reading;

/* What the tensor is in this variant, or NULL. */
static inline const moec_kind *moec_reading_kind(const moec_reading *r,
                                                 size_t tensor)
{
    uint32_t e = r->b->entries[tensor];
    if (e == MOEC_NO_ENTRY)
        return NULL;
    uint16_t k = r->b->family->names.entries[e].kind[r->variant];
    return k == MOEC_NO_KIND ? NULL : &r->b->family->kinds[k];
}

static inline const char *moec_reading_name(const moec_reading *r,
                                            size_t tensor)
{
    return moec_ckpt_tensor(r->b->ckpt, tensor)->name;
}

static inline bool moec_kind_is_weights(const moec_kind *k)
{
    return k->role == MOEC_ROLE_ROUTED || k->role == MOEC_ROLE_SHARED;
}

static inline bool moec_same_form(const moec_tensor *a, const moec_tensor *b)
{
    return a->dtype == b->dtype && a->rank == b->rank &&
           memcmp(a->shape, b->shape, a->rank * sizeof(*a->shape)) == 0;
}

#define DISAGREE(r, ...)                                                       \
  moec_fail((r)->err, MOEC_E_FORMAT, MOEC_RULE_C07, __VA_ARGS__)

/* Elements of their own size: floats of 8 bits and more. */
bool moec_dtype_is_unpacked(moec_dtype dtype);

/* Is the slice what the config's widths make it, and can gate and up be told
 * apart in it? */
moec_status moec_slice_fits(const moec_reading *r, const moec_slice *s);

/* Gate is like up, and routers and gates have the shape stated. */
moec_status moec_slices_fit(const moec_reading *r, const moec_slice *list,
                            size_t n);

/* The slice of this role, part and component, or NULL. */
const moec_slice *moec_slices_find(const moec_slice *list, size_t n,
                                   moec_role role, uint32_t part,
                                   const char *component);

#endif
