/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_FAMILY_DESC_H
#define MOEC_FAMILY_DESC_H

/*
 * What this is: what family.c and family_config.c share while a description
 *   is parsed: its JSON, the family being filled, and values read from the one
 *   into the other. Every refusal is C09 with file, line and key.
 * Lifetime: strings are copied into the family's arena.
 */

#include "base/json.h"
#include "family.h"

#define MOEC_DESC_LIST_MAX 64u

typedef struct moec_desc {
    moec_family *f;
    const char *text; /* all of it, for lines */
    json_t *tree;
    moec_json_doc doc;
    moec_json root;
    moec_json suffixes; /* the description's own sets, or absent */
    moec_error error;
} moec_desc;

/* Put ":LINE" of `v` behind the file name of the error that was just written.
 * Returns `st`. */
moec_status moec_desc_at(moec_desc *p, const moec_json *v, moec_status st);
moec_status moec_desc_nomem(moec_desc *p);

/* Refuse `v` with a sentence. */
#define BAD(p, v, ...)                                                         \
  moec_desc_at((p), (v),                                                       \
               moec_json_fail((v), MOEC_RULE_C09, &(p)->error, __VA_ARGS__))

moec_status moec_desc_only_keys(moec_desc *p, const moec_json *obj,
                                const char *const *keys, size_t n);
#define ONLY_KEYS(p, obj, ...)                                                 \
  moec_desc_only_keys((p), (obj), (const char *const[]){__VA_ARGS__},          \
                      sizeof((const char *const[]){__VA_ARGS__}) /             \
                          sizeof(const char *))

/* A string, member `key` (of which it must be there, or may be absent and
 * leaves *out as it is), as the family's own copy. */
moec_status moec_desc_string(moec_desc *p, const moec_json *v,
                             const char **out);
moec_status moec_desc_get_string(moec_desc *p, const moec_json *obj,
                                 const char *key, const char **out);
moec_status moec_desc_opt_string(moec_desc *p, const moec_json *obj,
                                 const char *key, const char **out);
moec_status moec_desc_opt_bool(moec_desc *p, const moec_json *obj,
                               const char *key, uint8_t *out);
/* One of the words of a NULL-terminated table, by index; absent gives
 * `absent`, or is refused where that is negative. */
moec_status moec_desc_word(moec_desc *p, const moec_json *obj, const char *key,
                           const char *const *words, int absent, uint8_t *out);
/* A list of `least` to MOEC_DESC_LIST_MAX items; absent is empty. */
moec_status moec_desc_list(moec_desc *p, const moec_json *obj, const char *key,
                           size_t least, moec_json *out, size_t *n_out);
/* The same of strings that are not empty. */
moec_status moec_desc_strings(moec_desc *p, const moec_json *obj,
                              const char *key, size_t least, const char ***out,
                              size_t *n_out);

/* family_config.c: "only_if", "config", "moe_layers", and, after the tensors,
 * "shared". */
moec_status moec_desc_only_if(moec_desc *p);
moec_status moec_desc_config(moec_desc *p);
moec_status moec_desc_layer_rules(moec_desc *p);
moec_status moec_desc_shared(moec_desc *p);

/* family_run.c: "use" and "why_not" of one tensor rule, whose role is known;
 * "router" and "ffn". */
moec_status moec_desc_use(moec_desc *p, const moec_json *rule, moec_kind *kind);
moec_status moec_desc_run(moec_desc *p);

#endif
