/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The parts of a family description that are about running a layer: what each
 * router tensor is for, and "router" and "ffn". Level 3 and servers need them;
 * converting does not, so a description may leave them out.
 */

#include "family_desc.h"

static const char *const uses[] = {
    "none",         "weight",       "logit_bias",  "choice_bias",
    "expert_scale", "global_scale", "hash_table",  "input_scale",
    "latent_in",    "latent_out",   "latent_norm", NULL};

moec_status moec_desc_use(moec_desc *p, const moec_json *rule, moec_kind *kind)
{
    bool weights =
        kind->role == MOEC_ROLE_ROUTED || kind->role == MOEC_ROLE_SHARED;
    if (weights &&
        (moec_json_has(rule, "use") || moec_json_has(rule, "why_not")))
        return BAD(p, rule,
                   "has 'use' or 'why_not', which no routed or shared tensor "
                   "has");
    if (kind->role == MOEC_ROLE_SHARED_GATE)
        kind->use = MOEC_USE_SHARED_GATE;
    else
        MOEC_TRY(moec_desc_word(p, rule, "use", uses, 0, &kind->use));
    return moec_desc_opt_string(p, rule, "why_not", &kind->why_not);
}

static moec_status parse_router(moec_desc *p, moec_run_desc *r)
{
    static const char *const choices[] = {"topk", "sparse_mixer", NULL};
    static const char *const scores[] = {"softmax", "sigmoid", "sqrtsoftplus",
                                         "logit", NULL};
    static const char *const norms[] = {"none",    "sum",   "floor", "p",
                                        "softmax", "joint", NULL};
    static const char *const places[] = {"output", "weights", NULL};
    static const char *const inputs[] = {"hidden", "rms", NULL};
    moec_json v = moec_json_member(&p->root, "router");
    if (v.value == NULL)
        return MOEC_OK;
    MOEC_TRY(ONLY_KEYS(p, &v, "choice", "weight", "norm", "norm_always",
                       "norm_from_k", "rsf_on", "input", "why_not", "about"));
    r->given = 1;
    MOEC_TRY(moec_desc_word(p, &v, "choice", choices, 0, &r->choice));
    if (r->choice != 0)
        r->choice = MOEC_CHOICE_SPARSE_MIXER;
    r->has_weight = moec_json_has(&v, "weight");
    MOEC_TRY(moec_desc_word(p, &v, "weight", scores, 0, &r->weight));
    MOEC_TRY(moec_desc_word(p, &v, "norm", norms, -1, &r->norm));
    MOEC_TRY(moec_desc_opt_bool(p, &v, "norm_always", &r->norm_always));
    MOEC_TRY(moec_desc_word(p, &v, "rsf_on", places, MOEC_RSF_ON_WEIGHTS,
                            &r->rsf_on));
    MOEC_TRY(moec_desc_word(p, &v, "input", inputs, 0, &r->input_rms));
    MOEC_TRY(moec_desc_opt_string(p, &v, "why_not", &r->why_not));
    moec_json least = moec_json_member(&v, "norm_from_k");
    if (least.value == NULL)
        return MOEC_OK;
    return moec_desc_at(
        p, &least, moec_json_as_u32(&least, 64, &r->norm_from_k, &p->error));
}

moec_status moec_desc_run(moec_desc *p)
{
    static const char *const clamps[] = {"before", "after", NULL};
    moec_run_desc *r = &p->f->run;
    moec_json v = moec_json_member(&p->root, "ffn");
    MOEC_TRY(parse_router(p, r));
    if (v.value == NULL)
        return MOEC_OK;
    MOEC_TRY(ONLY_KEYS(p, &v, "clamp", "weight_on_input", "about"));
    MOEC_TRY(moec_desc_word(p, &v, "clamp", clamps, 0, &r->clamp));
    return moec_desc_opt_bool(p, &v, "weight_on_input", &r->weight_on_input);
}
