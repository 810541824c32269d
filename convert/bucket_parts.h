/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_BUCKET_PARTS_H
#define MOEC_BUCKET_PARTS_H

/*
 * What this is: what bucket.c and bucket_finalize.c share.
 */

#include "bucket.h"
#include "objects.h"
#include "prepare.h"

#define MOEC_BUCKET_LEAVES ".moec-leaves-"

/* Name of the leaves of a data file, into buf. */
#define MOEC_BUCKET_NAME_BYTES 300
void moec_bucket_leaves_name(char buf[MOEC_BUCKET_NAME_BYTES],
                             const char *file);
/* What was there at the opening; NULL: it was not. */
const moec_store_file *moec_bucket_find(const moec_objects *o,
                                        const char *name);
/* The rank whose data file `i` is. */
uint32_t moec_bucket_owner(const moec_prepared *p, size_t i);
/* Remove what stands there while a conversion is under way. */
moec_status moec_bucket_tidy(const moec_objects *o, const moec_prepared *p,
                             moec_error *err);

#endif
