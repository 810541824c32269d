/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_CONVERSION_H
#define MOEC_CONVERSION_H

/*
 * What this is: what the library may ask of an opened conversion beyond the
 *   public validate.h, and the opening in its two steps, so that verify can go
 *   on where only the first one works.
 * Lifetime: the conversion owns everything; close frees it.
 * Threads: immutable once open: share freely.
 */

#include <moec/validate.h>

#include "base/base.h"
#include "converted.h"

/* Both steps, of directory `dir` or, where it is not NULL, of `store`. */
moec_status moec_conversion_open_at(moec_conversion **out, const char *dir,
                                    const moec_store *store,
                                    const moec_families *families,
                                    moec_error *err);

/* Step 1: read manifest.json, slots.bin and sources.bin. */
moec_status moec_conversion_read(moec_conversion **out, const char *dir,
                                 const moec_store *store, moec_error *err);

/* Step 1 of a conversion under way: its manifest has the name `manifest`, and
 * there is no slots.bin. */
moec_status moec_conversion_read_begun(moec_conversion **out, const char *dir,
                                       const moec_store *store,
                                       const char *manifest, moec_error *err);

/* Step 2: decide everything again from the source's headers, config.json and
 * the manifest's options, and compare with what the manifest says. */
moec_status moec_conversion_rebuild(moec_conversion *c,
                                    const moec_families *families,
                                    moec_error *err);

/* The three files; valid after step 1. */
const moec_converted *moec_conversion_files(const moec_conversion *c);

/* Is `src` the checkpoint that was converted? NULL where it is, else what
 * differs: by names, sizes and headers, so that another revision with the same
 * headers is found by its bytes alone. */
const char *moec_conversion_other_source(const moec_converted *files,
                                         const moec_ckpt *src);

#endif
