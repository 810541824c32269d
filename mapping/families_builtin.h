/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_FAMILIES_BUILTIN_H
#define MOEC_FAMILIES_BUILTIN_H

/*
 * What this is: the family descriptions of mapping/families/, as text inside
 *   the library. families_builtin.c is made at build time by embed.cmake from
 *   the list in mapping/CMakeLists.txt; nothing here is parsed yet.
 * Lifetime: static storage. Threads: immutable: share freely.
 */

#include <stddef.h>

struct moec_builtin_family {
    const char *name;   /* base name without .json: "deepseek_v3" */
    const char *tested; /* its "tested" */
    const char *text;   /* JSON, NUL-terminated */
    size_t bytes;       /* of `text`, the NUL not counted */
};

/* In the order of the list, which is alphabetic. */
extern const struct moec_builtin_family moec_builtin_families[];
extern const size_t moec_n_builtin_families;

#endif
