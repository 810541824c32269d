/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_READ_JSON_H
#define MOEC_READ_JSON_H

/*
 * What this is: base/json.h's parsing for the command line, which sees no
 *   header of base: jansson alone spoils memory where it finds too little.
 * Lifetime: the tree is the caller's (json_decref).
 * Errors: FORMAT with `rule`, NOMEM.
 */

#include <jansson.h>
#include <moec/error.h>

moec_status moec_read_json(const char *text, size_t n, const char *name,
                           moec_rule rule, json_t **out, moec_error *err);
/* Of any size, duplicate keys and all; NULL in *out where it is malformed. */
moec_status moec_read_loose_json(const char *text, size_t n, const char *name,
                                 json_t **out, moec_error *err);

#endif
