/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_CONFIG_H
#define MOEC_CONFIG_H

/*
 * What this is: config.json read by a family's description into facts.
 * Lifetime: facts' strings live in the arena given; the JSON tree and the
 *   family live until moec_config_fini, the facts without them.
 * Errors: FORMAT C02..C07, C11; UNSUPPORTED C08; NOMEM.
 */

#include <jansson.h>

#include "base/json.h"
#include "family.h"

typedef struct moec_config {
    const moec_family *family;
    moec_family *own_family; /* the same, where it is not the registry's */
    moec_facts facts;        /* shared_slots and expert_dtype not set yet */
    uint64_t expert_hidden;  /* width that routed experts work on; H but for
                               latent experts */
    uint32_t zero_experts;   /* columns of the router that have no weights */
    uint32_t mtp_layers;
    bool oom;          /* while conditions were compared */
    uint8_t mtp_known; /* the config says how many MTP layers there are */
    uint8_t has_block; /* of quantization_config.weight_block_size */
    uint32_t block[2]; /* rows, columns */
    json_t *tree;
    moec_json_doc doc;
    moec_json root;
    moec_json nested; /* the object of a wrapper config, where there is one */
    const moec_json *facts_in; /* root or nested */
} moec_config;

/* Read `text`. Do not move `*out` afterwards: it points into itself. */
moec_status moec_config_read(moec_config *out, const moec_families *families,
                             const char *text, size_t n, moec_arena *arena,
                             moec_error *err);
void moec_config_fini(moec_config *config);

/* One fact, `none` where neither config nor description have it. A list has a
 * value for each of the layers, 0 behind its end. */
moec_status moec_config_count(const moec_config *config, moec_fact fact,
                              uint32_t none, uint32_t *out, moec_error *err);
moec_status moec_config_number(const moec_config *config, moec_fact fact,
                               uint32_t layer, double none, double *out,
                               moec_error *err);
moec_status moec_config_flag(const moec_config *config, moec_fact fact,
                             bool none, bool *out, moec_error *err);
/* The string is borrowed from the config. */
moec_status moec_config_word(const moec_config *config, moec_fact fact,
                             const char **out, moec_error *err);

/* Say where the fact was found: "config.json: text_config.top_k", or "default
 * of the family", or "" where it is nowhere; in `arena`. */
moec_status moec_config_origin(const moec_config *config, moec_fact fact,
                               moec_arena *arena, const char **out,
                               moec_error *err);

/* Set moe[i] to 1 where decoder layer i has experts, else 0, for i below
 * n_layers. Call only once n_layers agrees with the headers. */
moec_status moec_config_moe_layers(const moec_config *config, uint8_t *moe,
                                   moec_error *err);

#endif
