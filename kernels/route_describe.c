/* SPDX-License-Identifier: Apache-2.0
 *
 * A router's configuration in force as one JSON object, for logs. */

#include "route.h"

static void put_name(moec_buf *b, const char *key, const char *name)
{
    moec_buf_printf(b, ",\"%s\":\"%s\"", key, name);
}

static void put_uint(moec_buf *b, const char *key, uint32_t v)
{
    moec_buf_printf(b, ",\"%s\":%u", key, v);
}

/* Nine digits give the float back. */
static void put_float(moec_buf *b, const char *key, float v)
{
    moec_buf_printf(b, ",\"%s\":%.9g", key, (double)v);
}

static void put_choice(moec_buf *b, const moec_route_config *c)
{
    static const char *const scores[] = {"softmax", "sigmoid", "sqrt_softplus",
                                         "logit"};
    static const char *const choices[] = {"topk", "hash", "sparse_mixer"};
    static const char *const group_scores[] = {"max", "top2"};

    put_name(b, "score", scores[c->score]);
    put_name(b, "choice", choices[c->choice]);
    put_uint(b, "n_group", c->n_group);
    put_uint(b, "topk_group", c->topk_group);
    if (c->n_group > 1)
        put_name(b, "group_score", group_scores[c->group_score]);
    if (c->softcap != 0.0f)
        put_float(b, "softcap", c->softcap);
    if (c->choice == MOEC_CHOICE_SPARSE_MIXER)
        put_float(b, "mixer_eps", c->mixer_eps);
}

static void put_weights(moec_buf *b, const moec_route_config *c)
{
    static const char *const norms[] = {"none", "sum",     "floor",
                                        "p",    "softmax", "joint"};

    put_name(b, "norm", norms[c->norm]);
    if (c->norm == MOEC_NORM_FLOOR || c->norm == MOEC_NORM_P)
        put_float(b, "norm_arg", c->norm_arg);
    put_float(b, "rsf", c->rsf);
    put_name(b, "rsf_on",
             c->rsf_on == MOEC_RSF_ON_WEIGHTS ? "weights" : "output");
    put_uint(b, "n_shared", c->n_shared);
    put_uint(b, "n_shared_logits", c->n_shared_logits);
    put_name(b, "shared_kind", moec_shared_kind_name(c->shared_kind));
    put_uint(b, "shared_ranks", c->shared_ranks);
}

static void put_expert_choice(moec_buf *b, const moec_ec_config *ec)
{
    static const char *const fills[] = {"fill-missing", "full-row", "pad",
                                        "balanced"};

    if (ec->mode == MOEC_EC_OFF) {
        moec_buf_puts(b, ",\"expert_choice\":{\"mode\":\"off\"}");
        return;
    }
    moec_buf_printf(b, ",\"expert_choice\":{\"mode\":\"%s\"",
                    ec->mode == MOEC_EC_ON ? "on" : "auto");
    put_name(b, "fill", fills[ec->fill]);
    if (ec->capacity_ppm)
        put_uint(b, "capacity_ppm", ec->capacity_ppm);
    else
        put_name(b, "capacity_ppm", "auto");
    if (ec->mode == MOEC_EC_AUTO) {
        put_uint(b, "min_tokens", ec->min_tokens ? ec->min_tokens : 32);
        put_uint(b, "max_tokens", ec->max_tokens ? ec->max_tokens : 128);
        put_float(b, "threshold", ec->threshold != 0.0f ? ec->threshold : 0.2f);
        put_float(b, "threshold_off",
                  ec->threshold_off != 0.0f ? ec->threshold_off : 0.15f);
        put_float(b, "ema", ec->ema != 0.0f ? ec->ema : 0.1f);
    }
    moec_buf_puts(b, "}");
}

moec_status moec_route_describe(const moec_router *router, char **out,
                                moec_error *err)
{
    const moec_route_config *c;
    moec_buf b = {0};

    if (!router || !out)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE, "describe: NULL");
    c = &router->config;
    moec_buf_printf(&b, "{\"isa\":\"%s\",\"n_threads\":%u",
                    moec_isa_name(router->k->isa),
                    moec_kernels_n_threads(router->k));
    put_uint(&b, "n_experts", c->n_experts);
    put_uint(&b, "n_zero", c->n_zero);
    put_uint(&b, "top_k", c->top_k);
    put_choice(&b, c);
    put_weights(&b, c);
    put_expert_choice(&b, &c->ec);
    moec_buf_puts(&b, "}");
    if (b.oom) {
        moec_buf_fini(&b);
        return moec_fail_nomem(err, "description of a router");
    }
    *out = b.data;
    return MOEC_OK;
}
