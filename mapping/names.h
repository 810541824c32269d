/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_NAMES_H
#define MOEC_NAMES_H

/*
 * What this is: the matcher of tensor names. A family's patterns are expanded
 *   once into a hash table; a name is then classified in one pass over its
 *   bytes and one look-up, whatever the number of experts and patterns.
 * Lifetime: prefixes, spaces and keys are copied. Threads: a moec_names is
 *   immutable once filled: share freely.
 */

#include "base/base.h"

#define MOEC_VARIANTS_MAX     8u
#define MOEC_NAME_NUMBERS_MAX 4u
#define MOEC_NO_KIND          UINT16_MAX

/* A name with every segment of digits replaced by '#'. */
typedef struct moec_norm {
    size_t bytes;
    uint32_t n_numbers; /* '#' from digits; numbers[] keeps the first ones */
    bool canonical;     /* numbers are below 2^31 without leading zeros, and
                           no segment of the name was '#' itself */
    uint32_t numbers[MOEC_NAME_NUMBERS_MAX];
    char text[MOEC_NAME_BYTES_MAX + 1];
} moec_norm;

/* Normalise `name`. False where it is longer than MOEC_NAME_BYTES_MAX. */
bool moec_norm_name(moec_norm *out, const char *name);

/* What one normalised name stands for; kind[v] is the caller's number in
 * variant v, or MOEC_NO_KIND. */
typedef struct moec_name_entry {
    uint32_t variants;  /* bit v: variant v has this name */
    uint16_t prefix;    /* index of the layer prefix */
    uint16_t n_numbers; /* 1: the layer; 2: layer, then expert */
    uint16_t kind[MOEC_VARIANTS_MAX];
} moec_name_entry;

typedef struct moec_names {
    size_t n_prefixes, n_spaces, n_entries, cap;
    const char **prefixes; /* "model.layers.#." */
    const char **spaces;   /* "mlp.experts" */
    moec_name_entry *entries;
    moec_strmap map;
    moec_arena arena;
} moec_names;

/* Make an empty table of the given layer prefixes (each with one '#') and
 * name spaces (relative to a prefix). */
moec_status moec_names_init(moec_names *names, const char *const *prefixes,
                            size_t n_prefixes, const char *const *spaces,
                            size_t n_spaces, moec_error *err);
void moec_names_fini(moec_names *names);

/* Add `tail` (normalised, behind prefix `prefix`) as `kind` of variant
 * `variant`. `*old_out` is the kind that the name has in that variant already
 * (nothing is changed then), or MOEC_NO_KIND; `*other_out` one that it has in
 * another variant, or MOEC_NO_KIND. */
moec_status moec_names_add(moec_names *names, size_t prefix, const char *tail,
                           uint32_t variant, uint16_t kind, uint16_t *old_out,
                           uint16_t *other_out, moec_error *err);

typedef enum moec_name_class {
    MOEC_NAME_OTHER = 0,  /* in no layer */
    MOEC_NAME_LAYER = 1,  /* a layer's, but nothing of its experts */
    MOEC_NAME_KNOWN = 2,  /* entry says what */
    MOEC_NAME_STRANGE = 3 /* inside an expert name space, and no pattern's */
} moec_name_class;

typedef struct moec_name_found {
    moec_name_class what;
    uint32_t entry; /* KNOWN: index of entries */
    uint32_t prefix;
    uint32_t layer;  /* number in the name */
    uint32_t expert; /* KNOWN with two numbers, else UINT32_MAX */
} moec_name_found;

/* Classify `name`; `scratch` holds its normalised form afterwards. */
moec_name_found moec_names_find(const moec_names *names, const char *name,
                                moec_norm *scratch);

/* What was found for the names before: of the hundreds of experts of a layer
 * only the number differs, between one head and a few tails. */
#define MOEC_NAME_TAILS_MAX 16u
typedef struct moec_name_memo {
    const char *head; /* of a name before, up to its second number */
    size_t head_bytes;
    uint32_t n_tails, next; /* the tail that is expected next */
    struct moec_name_tail {
        const char *text; /* behind the number */
        moec_name_found found;
    } tails[MOEC_NAME_TAILS_MAX];
} moec_name_memo;

/* The same answer, from `memo` where a name before had it; `scratch` holds the
 * normalised form of names that are not KNOWN. Zero-initialise `memo`; the
 * names given with it must stay. */
moec_name_found moec_names_recall(const moec_names *names, moec_name_memo *memo,
                                  const char *name, moec_norm *scratch);

#endif
