/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The parts of a family description that are about config.json: where facts
 * stand, which layers have experts, and what the shared expert is.
 */

#include "family_desc.h"

#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name;
    moec_fact_type type;
    bool needed;
} fact_info[MOEC_FACT_COUNT] = {
    [MOEC_FACT_N_EXPERTS] = {"n_experts", MOEC_FACT_INTEGER, true},
    [MOEC_FACT_ZERO_EXPERTS] = {"zero_experts", MOEC_FACT_INTEGER, false},
    [MOEC_FACT_TOP_K] = {"top_k", MOEC_FACT_INTEGER, true},
    [MOEC_FACT_HIDDEN] = {"hidden", MOEC_FACT_INTEGER, true},
    [MOEC_FACT_EXPERT_HIDDEN] = {"expert_hidden", MOEC_FACT_INTEGER, false},
    [MOEC_FACT_INTER] = {"inter", MOEC_FACT_INTEGER, true},
    [MOEC_FACT_N_LAYERS] = {"n_layers", MOEC_FACT_INTEGER, true},
    [MOEC_FACT_MTP_LAYERS] = {"mtp_layers", MOEC_FACT_INTEGER, false},
    [MOEC_FACT_N_GROUP] = {"n_group", MOEC_FACT_INTEGER, false},
    [MOEC_FACT_TOPK_GROUP] = {"topk_group", MOEC_FACT_INTEGER, false},
    [MOEC_FACT_N_SHARED] = {"n_shared", MOEC_FACT_INTEGER, false},
    [MOEC_FACT_SHARED_WIDTH] = {"shared_width", MOEC_FACT_INTEGER, false},
    [MOEC_FACT_ROUTED_SCALE] = {"routed_scale", MOEC_FACT_NUMBER, false},
    [MOEC_FACT_NORM_TOPK] = {"norm_topk", MOEC_FACT_BOOL, false},
    [MOEC_FACT_SCORE] = {"score", MOEC_FACT_STRING, true},
    [MOEC_FACT_ACTIVATION] = {"activation", MOEC_FACT_STRING, true},
    [MOEC_FACT_GROUP_SCORE] = {"group_score", MOEC_FACT_STRING, false},
    [MOEC_FACT_USE_BIAS] = {"use_bias", MOEC_FACT_BOOL, false},
    [MOEC_FACT_HASH_LAYERS] = {"hash_layers", MOEC_FACT_INTEGER, false},
    [MOEC_FACT_NORM_MIN] = {"norm_min", MOEC_FACT_NUMBER, false},
    [MOEC_FACT_NORM_P] = {"norm_p", MOEC_FACT_NUMBER, false},
    [MOEC_FACT_NORM_EPS] = {"norm_eps", MOEC_FACT_NUMBER, false},
    [MOEC_FACT_SOFTCAP] = {"softcap", MOEC_FACT_NUMBER, false},
    [MOEC_FACT_MIXER_EPS] = {"mixer_eps", MOEC_FACT_NUMBER, false},
    [MOEC_FACT_LIMIT] = {"limit", MOEC_FACT_NUMBER, false},
    [MOEC_FACT_SHARED_LIMIT] = {"shared_limit", MOEC_FACT_NUMBER, false},
    [MOEC_FACT_ALPHA] = {"alpha", MOEC_FACT_NUMBER, false},
    [MOEC_FACT_BETA] = {"beta", MOEC_FACT_NUMBER, false},
    [MOEC_FACT_LINEAR_BETA] = {"linear_beta", MOEC_FACT_NUMBER, false},
    [MOEC_FACT_LATENT_NORM] = {"latent_norm", MOEC_FACT_BOOL, false},
};

const char *moec_fact_name(moec_fact fact)
{
    return fact_info[fact].name;
}

static moec_status parse_default(moec_desc *p, const moec_json *v,
                                 moec_fact_type type, moec_fact_source *out)
{
    bool b;
    out->has_default = 1;
    switch (type) {
    case MOEC_FACT_INTEGER:
        return moec_desc_at(
            p, v, moec_json_as_u32(v, INT32_MAX, &out->integer, &p->error));
    case MOEC_FACT_NUMBER:
        return moec_desc_at(p, v,
                            moec_json_as_double(v, &out->number, &p->error));
    case MOEC_FACT_BOOL:
        MOEC_TRY(moec_desc_at(p, v, moec_json_as_bool(v, &b, &p->error)));
        out->integer = b;
        return MOEC_OK;
    case MOEC_FACT_STRING:
        return moec_desc_string(p, v, &out->string);
    case MOEC_FACT_LIST:
        break;
    }
    return BAD(p, v, "stands at a list, which has no default");
}

/* "values": what a word of the config is called here. */
static moec_status parse_values(moec_desc *p, const moec_json *fact,
                                moec_fact_type type, moec_fact_source *out)
{
    moec_json map = moec_json_member(fact, "values");
    const char *word;
    json_t *value;
    size_t n = 0;
    if (map.value == NULL)
        return MOEC_OK;
    MOEC_TRY(moec_desc_at(p, &map, moec_json_want_object(&map, &p->error)));
    if (type != MOEC_FACT_STRING)
        return BAD(p, &map, "stands at a fact that is no word");
    size_t bytes = (2 * json_object_size(map.value) + 1) * sizeof(char *);
    out->values = moec_arena_alloc(&p->f->arena, bytes, _Alignof(char *));
    if (out->values == NULL)
        return moec_desc_nomem(p);
    json_object_foreach (map.value, word, value) {
        moec_json v = moec_json_member(&map, word);
        out->values[n] = moec_arena_strdup(&p->f->arena, word, strlen(word));
        if (out->values[n++] == NULL)
            return moec_desc_nomem(p);
        MOEC_TRY(moec_desc_string(p, &v, &out->values[n++]));
    }
    out->n_values = n / 2;
    return MOEC_OK;
}

static moec_status parse_fact(moec_desc *p, const moec_json *obj,
                              const char *key, moec_fact_type type, bool needed,
                              moec_fact_source *out)
{
    moec_json v = moec_json_member(obj, key);
    if (v.value == NULL && !needed)
        return MOEC_OK;
    MOEC_TRY(ONLY_KEYS(p, &v, "keys", "else", "default", "per_layer", "sum",
                       "p_norm", "values", "about"));
    out->given = 1;
    MOEC_TRY(moec_desc_strings(p, &v, "keys", 0, &out->keys, &out->n_keys));
    MOEC_TRY(
        moec_desc_strings(p, &v, "else", 0, &out->otherwise, &out->n_else));
    MOEC_TRY(parse_values(p, &v, type, out));
    MOEC_TRY(moec_desc_opt_bool(p, &v, "per_layer", &out->per_layer));
    MOEC_TRY(moec_desc_opt_bool(p, &v, "sum", &out->sum));
    MOEC_TRY(moec_desc_opt_bool(p, &v, "p_norm", &out->p_norm));
    out->optional = json_object_get(v.value, "default") != NULL;
    moec_json def = moec_json_member(&v, "default");
    if (def.value != NULL)
        MOEC_TRY(parse_default(p, &def, type, out));
    if (out->n_keys == 0 && !out->has_default)
        return BAD(p, &v, "has neither 'keys' nor a 'default'");
    if (out->n_keys == 0 && (out->n_else != 0 || out->n_values != 0))
        return BAD(p, &v, "has 'else' or 'values' without 'keys'");
    return MOEC_OK;
}

/* One model_type of "only_if": keys and the values that they must have. */
static moec_status parse_conditions(moec_desc *p, const moec_json *v,
                                    moec_only_if *out)
{
    const char *key;
    json_t *value;
    MOEC_TRY(moec_desc_at(p, v, moec_json_want_object(v, &p->error)));
    size_t bytes = (json_object_size(v->value) + 1) * sizeof(moec_condition);
    moec_condition *list =
        moec_arena_alloc(&p->f->arena, bytes, _Alignof(moec_condition));
    if (list == NULL)
        return moec_desc_nomem(p);
    out->conditions = list;
    json_object_foreach (v->value, key, value) {
        moec_json at = moec_json_member(v, key);
        moec_condition *c = &list[out->n++];
        if (at.value == NULL || moec_json_is(value, JSON_OBJECT) ||
            moec_json_is(value, JSON_ARRAY))
            return BAD(p, &at, "must be a string, a number or a boolean");
        const char *word = json_string_value(value);
        bool any = word != NULL && strcmp(word, "*") == 0;
        char *text = any ? NULL : json_dumps(value, JSON_ENCODE_ANY);
        c->key = moec_arena_strdup(&p->f->arena, key, strlen(key));
        c->value = text == NULL
                       ? NULL
                       : moec_arena_strdup(&p->f->arena, text, strlen(text));
        free(text);
        if (c->key == NULL || (c->value == NULL && !any))
            return moec_desc_nomem(p);
    }
    return MOEC_OK;
}

moec_status moec_desc_only_if(moec_desc *p)
{
    moec_family *f = p->f;
    moec_json map = moec_json_member(&p->root, "only_if");
    const char *type;
    json_t *value;
    if (map.value == NULL)
        return MOEC_OK;
    MOEC_TRY(moec_desc_at(p, &map, moec_json_want_object(&map, &p->error)));
    size_t bytes = (json_object_size(map.value) + 1) * sizeof(*f->only_if);
    f->only_if = moec_arena_alloc(&f->arena, bytes, _Alignof(moec_only_if));
    if (f->only_if == NULL)
        return moec_desc_nomem(p);
    memset(f->only_if, 0, bytes);
    json_object_foreach (map.value, type, value) {
        moec_json v = moec_json_member(&map, type);
        moec_only_if *o = &f->only_if[f->n_only_if];
        for (size_t i = 0; o->model_type == NULL && i < f->n_model_types; i++)
            if (strcmp(f->model_types[i], type) == 0)
                o->model_type = f->model_types[i];
        if (o->model_type == NULL)
            return BAD(p, &v, "is none of 'model_types'");
        MOEC_TRY(parse_conditions(p, &v, o));
        f->n_only_if++;
    }
    return MOEC_OK;
}

moec_status moec_desc_config(moec_desc *p)
{
    moec_family *f = p->f;
    moec_json config = moec_json_member(&p->root, "config");
    const char *keys[MOEC_FACT_COUNT + 1];
    for (size_t i = 0; i < MOEC_FACT_COUNT; i++)
        keys[i] = fact_info[i].name;
    keys[MOEC_FACT_COUNT] = "in";
    MOEC_TRY(moec_desc_only_keys(p, &config, keys, MOEC_FACT_COUNT + 1));
    MOEC_TRY(moec_desc_strings(p, &config, "in", 0, &f->in, &f->n_in));
    for (size_t i = 0; i < MOEC_FACT_COUNT; i++)
        MOEC_TRY(parse_fact(p, &config, fact_info[i].name, fact_info[i].type,
                            fact_info[i].needed, &f->facts[i]));
    return MOEC_OK;
}

static moec_status parse_layer_rule(moec_desc *p, const moec_json *v,
                                    moec_layer_rule *r)
{
    static const char *const kinds[] = {"all", "list", "types", "stride", NULL};
    uint8_t kind;
    MOEC_TRY(moec_desc_word(p, v, "kind", kinds, -1, &kind));
    r->kind = (moec_layer_rule_kind)kind;
    switch (r->kind) {
    case MOEC_LAYERS_ALL:
        return ONLY_KEYS(p, v, "kind");
    case MOEC_LAYERS_LIST:
        MOEC_TRY(ONLY_KEYS(p, v, "kind", "key"));
        return moec_desc_get_string(p, v, "key", &r->key);
    case MOEC_LAYERS_TYPES:
        MOEC_TRY(ONLY_KEYS(p, v, "kind", "key", "moe"));
        MOEC_TRY(moec_desc_strings(p, v, "moe", 1, &r->moe, &r->n_moe));
        return moec_desc_get_string(p, v, "key", &r->key);
    case MOEC_LAYERS_STRIDE:
        break;
    }
    MOEC_TRY(ONLY_KEYS(p, v, "kind", "first", "last", "step", "offset", "phase",
                       "except"));
    MOEC_TRY(parse_fact(p, v, "first", MOEC_FACT_INTEGER, false, &r->first));
    MOEC_TRY(parse_fact(p, v, "last", MOEC_FACT_INTEGER, false, &r->last));
    MOEC_TRY(parse_fact(p, v, "step", MOEC_FACT_INTEGER, false, &r->step));
    MOEC_TRY(parse_fact(p, v, "offset", MOEC_FACT_INTEGER, false, &r->offset));
    MOEC_TRY(parse_fact(p, v, "except", MOEC_FACT_LIST, false, &r->except));
    moec_json phase = moec_json_member(v, "phase");
    if (phase.value == NULL)
        return MOEC_OK;
    return moec_desc_at(p, &phase,
                        moec_json_as_u32(&phase, 1024, &r->phase, &p->error));
}

moec_status moec_desc_layer_rules(moec_desc *p)
{
    moec_family *f = p->f;
    moec_json list;
    MOEC_TRY(
        moec_desc_list(p, &p->root, "moe_layers", 1, &list, &f->n_layer_rules));
    size_t bytes = f->n_layer_rules * sizeof(*f->layer_rules);
    f->layer_rules =
        moec_arena_alloc(&f->arena, bytes, _Alignof(moec_layer_rule));
    if (f->layer_rules == NULL)
        return moec_desc_nomem(p);
    memset(f->layer_rules, 0, bytes);
    for (size_t i = 0; i < f->n_layer_rules; i++) {
        moec_json v = moec_json_item(&list, i);
        MOEC_TRY(parse_layer_rule(p, &v, &f->layer_rules[i]));
    }
    return MOEC_OK;
}

moec_status moec_desc_shared(moec_desc *p)
{
    static const char *const kinds[] = {"plain", "sigmoid", "router", NULL};
    moec_family *f = p->f;
    moec_json v = moec_json_member(&p->root, "shared");
    bool described = false;
    uint8_t kind;
    for (size_t i = 0; i < f->n_variants; i++)
        described |= f->variants[i].shared_parts != 0;
    bool counted = f->facts[MOEC_FACT_N_SHARED].given != 0;
    if (v.value == NULL && !described && !counted)
        return MOEC_OK;
    MOEC_TRY(ONLY_KEYS(p, &v, "kind", "each", "fuse", "why_not"));
    if (!described || !counted)
        return BAD(p, &v, "stands without %s",
                   described ? "the fact 'n_shared'"
                             : "tensors of role \"shared\"");
    MOEC_TRY(moec_desc_word(p, &v, "kind", kinds, -1, &kind));
    f->shared_kind = (moec_shared_kind)(kind + 1);
    f->shared_each = !f->facts[MOEC_FACT_SHARED_WIDTH].given;
    f->fuse = 1;
    MOEC_TRY(moec_desc_opt_bool(p, &v, "each", &f->shared_each));
    MOEC_TRY(moec_desc_opt_bool(p, &v, "fuse", &f->fuse));
    MOEC_TRY(moec_desc_opt_string(p, &v, "why_not", &f->why_not));
    if (f->fuse == (f->why_not != NULL))
        return BAD(p, &v,
                   "must have 'why_not' where 'fuse' is false, and "
                   "only there");
    return MOEC_OK;
}
