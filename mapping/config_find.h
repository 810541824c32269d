/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_CONFIG_FIND_H
#define MOEC_CONFIG_FIND_H

/*
 * What this is: how config.c and config_layers.c find values in config.json.
 * Lifetime: of the config that was searched.
 */

#include "build.h"
#include "config.h"

#define MOEC_CONFIG_PATH_PARTS 8u

/* A value found in the config, with the way to it for messages. Points into
 * itself: do not move it. */
typedef struct moec_config_at {
    moec_json way[MOEC_CONFIG_PATH_PARTS];
    const moec_json *v; /* last one of way; v->value NULL: absent or null */
    char path[128];
} moec_config_at;

/* Follow the dotted `path` from `from`. Keys borrow out->path. */
void moec_config_follow(const moec_json *from, const char *path,
                        moec_config_at *out);

/* Find the fact, or what stands in for it: out->v->value is NULL where the
 * config may be without it and is. */
moec_status moec_config_find(const moec_config *c, const moec_fact_source *src,
                             moec_config_at *out, moec_error *err);

/* A number of things: 0 to INT32_MAX. */
moec_status moec_config_as_count(const moec_json *v, uint32_t *out,
                                 moec_error *err);
/* The same of a fact; *out is `none` where neither config nor description have
 * it. */
moec_status moec_config_count_at(const moec_config *c,
                                 const moec_fact_source *src, uint32_t none,
                                 uint32_t *out, moec_error *err);

#endif
