/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A model's facts as JSON, each with where it came from: what a server prints
 * when it disagrees.
 */

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "family.h"
#include "model.h"

#define OF_TENSORS "the checkpoint's tensors"
#define OF_FAMILY  "the family"

static void put_string(moec_buf *b, const char *s)
{
    if (s == NULL)
        moec_buf_puts(b, "null");
    else
        moec_buf_json_string(b, s, strlen(s));
}

static void begin_fact(moec_buf *b, const char *key)
{
    moec_buf_printf(b, ",\n  \"%s\": {\"value\": ", key);
}

static void end_fact(moec_buf *b, const char *from)
{
    moec_buf_puts(b, ", \"from\": ");
    put_string(b, from != NULL && from[0] != '\0' ? from : NULL);
    moec_buf_puts(b, "}");
}

static void put_u64(moec_buf *b, const char *key, uint64_t v, const char *from)
{
    begin_fact(b, key);
    moec_buf_printf(b, "%" PRIu64, v);
    end_fact(b, from);
}

static void put_text(moec_buf *b, const char *key, const char *v,
                     const char *from)
{
    begin_fact(b, key);
    put_string(b, v);
    end_fact(b, from);
}

static void put_number(moec_buf *b, const char *key, double v, const char *from)
{
    begin_fact(b, key);
    moec_buf_printf(b, "%.17g", v);
    end_fact(b, from);
}

static void put_norm(moec_buf *b, int v, const char *from)
{
    begin_fact(b, "norm_topk_prob");
    moec_buf_puts(b, v < 0 ? "null" : v ? "true" : "false");
    end_fact(b, from);
}

static void put_layers(moec_buf *b, const moec_model *m, moec_space space,
                       const char *key)
{
    const char *between = "";

    begin_fact(b, key);
    moec_buf_puts(b, "[");
    for (size_t i = 0; i < moec_model_n_layers(m); i++) {
        const moec_moe_layer *l = moec_model_layer(m, i);
        if (l->key.space != space)
            continue;
        moec_buf_printf(b, "%s%" PRIu32, between, l->key.number);
        between = ", ";
    }
    moec_buf_puts(b, "]");
    end_fact(b, OF_TENSORS);
}

static void put_facts(moec_buf *b, const moec_model *m)
{
    const moec_facts *f = moec_model_facts(m);
    const struct {
        const char *key;
        uint64_t v;
        moec_fact from;
    } counts[] = {
        {"n_routed_experts", f->n_experts, MOEC_FACT_N_EXPERTS},
        {"top_k", f->top_k, MOEC_FACT_TOP_K},
        {"n_shared_experts", f->n_shared, MOEC_FACT_N_SHARED},
        {"hidden_size", f->hidden, MOEC_FACT_HIDDEN},
        {"moe_intermediate_size", f->inter, MOEC_FACT_INTER},
        {"shared_width", f->shared_width, MOEC_FACT_SHARED_WIDTH},
        {"n_layers", f->n_layers, MOEC_FACT_N_LAYERS},
        {"n_group", f->n_group, MOEC_FACT_N_GROUP},
        {"topk_group", f->topk_group, MOEC_FACT_TOPK_GROUP},
    };

    put_text(b, "model_type", f->model_type, "config.json");
    for (size_t i = 0; i < sizeof(counts) / sizeof(*counts); i++)
        put_u64(b, counts[i].key, counts[i].v,
                moec_model_origin(m, counts[i].from));
    put_number(b, "routed_scaling_factor", f->routed_scale,
               moec_model_origin(m, MOEC_FACT_ROUTED_SCALE));
    put_norm(b, f->norm_topk, moec_model_origin(m, MOEC_FACT_NORM_TOPK));
    put_text(b, "score", f->score, moec_model_origin(m, MOEC_FACT_SCORE));
    put_text(b, "activation", f->activation,
             moec_model_origin(m, MOEC_FACT_ACTIVATION));
    put_text(b, "shared_kind", moec_shared_kind_name(f->shared_kind),
             OF_FAMILY);
    put_u64(b, "shared_slots", f->shared_slots, OF_TENSORS);
    put_text(b, "no_fuse_why", f->no_fuse_why, OF_TENSORS);
    put_text(b, "expert_dtype", moec_dtype_name(f->expert_dtype), OF_TENSORS);
    put_u64(b, "gated", f->gated, OF_FAMILY);
    put_layers(b, m, MOEC_SPACE_MAIN, "moe_layers");
    put_layers(b, m, MOEC_SPACE_MTP, "mtp_layers");
}

moec_status moec_model_describe(const moec_model *model, char **out,
                                moec_error *err)
{
    moec_buf b = {0};
    char *copy;

    moec_buf_puts(&b, "{\n  \"schema\": \"moec.model/1\"");
    put_text(&b, "family", moec_model_facts(model)->family,
             "config.json: model_type");
    put_facts(&b, model);
    moec_buf_puts(&b, "\n}\n");
    /* the caller's: freed by free(3), not by ours */
    copy = b.oom ? NULL : malloc(b.len + 1);
    if (copy != NULL)
        memcpy(copy, b.data, b.len + 1);
    moec_buf_fini(&b);
    if (copy == NULL)
        return moec_fail_nomem(err, "the description of a model");
    *out = copy;
    return MOEC_OK;
}
