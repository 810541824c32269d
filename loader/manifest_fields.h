/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_MANIFEST_FIELDS_H
#define MOEC_MANIFEST_FIELDS_H

/*
 * What this is: manifest.json as a table: its keys in their order, what each
 *   may hold and where it stands in a moec_manifest. The writer walks it and
 *   gives keys in its order; the reader walks it and so knows which keys must
 *   be there, what they may hold and which are unknown.
 * Lifetime: static and constant.
 */

#include "converted.h"

#define MOEC_MANIFEST_SCHEMA "moec.manifest/1"

/* JSON's integers are read as int64. */
#define MOEC_MF_INTEGER_MAX ((uint64_t)INT64_MAX)

typedef enum moec_mf_kind {
    MOEC_MF_SCHEMA,   /* the constant MOEC_MANIFEST_SCHEMA */
    MOEC_MF_TEXT,     /* const char * */
    MOEC_MF_NAME,     /* const char *, a plain file name */
    MOEC_MF_WORD,     /* const char *, one of `words` */
    MOEC_MF_U32,      /* uint32_t in [min, UINT32_MAX] */
    MOEC_MF_VERSION,  /* uint32_t, MOEC_FORMAT_VERSION */
    MOEC_MF_U64,      /* uint64_t in [min, INTEGER_MAX] */
    MOEC_MF_BOOL,     /* bool */
    MOEC_MF_TRISTATE, /* int: 0, 1, or -1 for null */
    MOEC_MF_REAL,     /* double, finite */
    MOEC_MF_DTYPE,    /* moec_dtype, by its name */
    MOEC_MF_SPACE,    /* moec_space, "main" or "mtp" */
    MOEC_MF_SHA256,   /* moec_sha256, 64 hex digits */
    MOEC_MF_OBJECT,   /* an object of `sub` */
    MOEC_MF_OBJECTS,  /* const T *, `count_off`: an array of objects of `sub` */
    MOEC_MF_TEXTS,    /* const char *const *, `count_off` */
    MOEC_MF_TRIVIAL,  /* "trivial" where p2l is NULL, else "explicit" */
    MOEC_MF_ROWS      /* const int32_t *: p2l, absent where it is NULL */
} moec_mf_kind;

enum {
    MOEC_MF_ABSENT_OK = 1, /* NULL is a key left out */
    MOEC_MF_NULL_OK = 2    /* NULL is null */
};

typedef struct moec_mf_field {
    const char *key;
    moec_mf_kind kind;
    unsigned flags;
    size_t off; /* in the struct that the table describes */
    uint64_t min;
    const char *const *words; /* ends with NULL */
    const struct moec_mf_table *sub;
    size_t count_off, bytes; /* of arrays: their count, one element */
} moec_mf_field;

typedef struct moec_mf_table {
    const moec_mf_field *fields;
    size_t n;
} moec_mf_table;

/* The document itself, described as a moec_manifest. */
extern const moec_mf_table moec_mf_manifest;

/* "main", "mtp", NULL: by moec_space. */
extern const char *const moec_mf_spaces[];

/* The value at an offset: the table is the one place that says its type. */
static inline const void *moec_mf_at(const void *base, size_t off)
{
    return (const char *)base + off;
}

#endif
