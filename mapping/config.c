/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Facts of a model from its config.json; config_layers.c says which layers
 * have experts.
 *
 * Config files are written by hand, by several library versions and by
 * converters: keys have two spellings, null stands for "none" or for 1.0, a
 * count may be a list, a wrapper may hold everything in text_config. What the
 * family's description allows is accepted; a string where a number belongs is
 * refused and never read as one. No number of a config is used as a size here
 * or anywhere before the shard headers agree with it.
 */

#include "config_find.h"

#include <string.h>

void moec_config_follow(const moec_json *from, const char *path,
                        moec_config_at *out)
{
    const moec_json *at = from;
    size_t n = 0;
    (void)snprintf(out->path, sizeof(out->path), "%s", path);
    for (char *key = out->path; key != NULL && n < MOEC_CONFIG_PATH_PARTS;
         n++) {
        char *dot = strchr(key, '.');
        if (dot != NULL)
            *dot++ = '\0';
        out->way[n] = moec_json_member(at, key);
        at = &out->way[n];
        key = dot;
    }
    out->v = at;
}

/* Find one of the keys. Where several of them are there they must agree. */
static moec_status find_spelling(const moec_config *c, const char *const *keys,
                                 size_t n, moec_config_at *out, moec_error *err)
{
    moec_config_at other;
    for (size_t i = 0; i < n; i++) {
        moec_config_follow(c->facts_in, keys[i], &other);
        if (other.v->value == NULL)
            continue;
        if (out->v->value == NULL) {
            moec_config_follow(c->facts_in, keys[i], out);
            continue;
        }
        if (!json_equal(out->v->value, other.v->value))
            return moec_json_fail(other.v, MOEC_RULE_C07, err,
                                  "differs from '%s', which says the same "
                                  "thing",
                                  out->v->key);
    }
    return MOEC_OK;
}

moec_status moec_config_find(const moec_config *c, const moec_fact_source *src,
                             moec_config_at *out, moec_error *err)
{
    moec_config_follow(c->facts_in, src->n_keys > 0 ? src->keys[0] : "", out);
    if (src->n_keys == 0) {
        out->way[0].value = NULL;
        return MOEC_OK;
    }
    MOEC_TRY(find_spelling(c, src->keys, src->n_keys, out, err));
    if (out->v->value == NULL)
        MOEC_TRY(find_spelling(c, src->otherwise, src->n_else, out, err));
    if (out->v->value == NULL && !src->optional)
        return moec_json_fail(out->v, MOEC_RULE_C11, err,
                              "is missing: the family '%s' needs it",
                              c->family->name);
    return MOEC_OK;
}

moec_status moec_config_as_count(const moec_json *v, uint32_t *out,
                                 moec_error *err)
{
    int64_t value;
    MOEC_TRY(moec_json_as_i64(v, INT64_MIN, INT64_MAX, &value, err));
    if (value < 0 || value > INT32_MAX)
        return moec_json_fail(v, MOEC_RULE_C06, err,
                              "is %jd, must be between 0 and %jd",
                              (intmax_t)value, (intmax_t)INT32_MAX);
    *out = (uint32_t)value;
    return MOEC_OK;
}

/* A count that some configs write once a layer: 0 where a layer has none of
 * it. Or once a group of experts (ERNIE VL): other widths are other tensors. */
static moec_status as_equal_counts(const moec_json *v, uint32_t *out,
                                   moec_error *err)
{
    size_t n = moec_json_len(v);
    uint32_t value = 0;
    *out = 0;
    if (n == 0)
        return moec_json_fail(v, MOEC_RULE_C03, err, "is an empty list");
    for (size_t i = 0; i < n; i++) {
        moec_json item = moec_json_item(v, i);
        MOEC_TRY(moec_config_as_count(&item, &value, err));
        if (*out != 0 && value != 0 && value != *out)
            return moec_fail(err, MOEC_E_MIXED, MOEC_RULE_C12,
                             CONFIG_NAME ": %s: %u and %u: experts of unequal "
                                         "number or width are not supported",
                             v->key, *out, value);
        *out = value != 0 ? value : *out;
    }
    return MOEC_OK;
}

/* A count that some configs write once a group. */
static moec_status as_sum(const moec_json *v, uint32_t *out, moec_error *err)
{
    uint32_t value = 0;
    uint64_t sum = 0;
    for (size_t i = 0; i < moec_json_len(v); i++) {
        moec_json item = moec_json_item(v, i);
        MOEC_TRY(moec_config_as_count(&item, &value, err));
        sum += value;
        if (sum > INT32_MAX)
            return moec_json_fail(v, MOEC_RULE_C06, err,
                                  "adds up to more than %d", INT32_MAX);
    }
    *out = (uint32_t)sum;
    return MOEC_OK;
}

moec_status moec_config_count_at(const moec_config *c,
                                 const moec_fact_source *src, uint32_t none,
                                 uint32_t *out, moec_error *err)
{
    moec_config_at at;
    *out = src->has_default ? src->integer : none;
    MOEC_TRY(moec_config_find(c, src, &at, err));
    if (at.v->value == NULL)
        return MOEC_OK;
    if (src->per_layer && moec_json_is(at.v->value, JSON_ARRAY))
        return as_equal_counts(at.v, out, err);
    if (src->sum && moec_json_is(at.v->value, JSON_ARRAY))
        return as_sum(at.v, out, err);
    return moec_config_as_count(at.v, out, err);
}

/* 0, null and absent mean 1. */
static moec_status get_scale(const moec_config *c, double *out, moec_error *err)
{
    const moec_fact_source *src = &c->family->facts[MOEC_FACT_ROUTED_SCALE];
    moec_config_at at;
    *out = src->has_default ? src->number : 1.0;
    MOEC_TRY(moec_config_find(c, src, &at, err));
    if (at.v->value == NULL)
        return MOEC_OK;
    MOEC_TRY(moec_json_as_double(at.v, out, err));
    if (*out < 0.0)
        return moec_json_fail(at.v, MOEC_RULE_C06, err,
                              "is %g, must not be negative", *out);
    if (*out <= 0.0)
        *out = 1.0;
    return MOEC_OK;
}

static moec_status get_norm(const moec_config *c, int *out, moec_error *err)
{
    const moec_fact_source *src = &c->family->facts[MOEC_FACT_NORM_TOPK];
    moec_config_at at;
    bool b;
    double p;
    *out = src->has_default ? (int)src->integer : -1;
    MOEC_TRY(moec_config_find(c, src, &at, err));
    if (at.v->value == NULL)
        return MOEC_OK;
    if (src->p_norm) { /* dbrx: weights divided by their p-norm */
        MOEC_TRY(moec_json_as_double(at.v, &p, err));
        *out = p >= 1.0 && p <= 1.0 ? 1 : -1;
        return MOEC_OK;
    }
    MOEC_TRY(moec_json_as_bool(at.v, &b, err));
    *out = b;
    return MOEC_OK;
}

/* A word; a boolean is the word "true" or "false" where the description says
 * what that is called. */
static moec_status as_word(const moec_json *v, const moec_fact_source *src,
                           const char **out, moec_error *err)
{
    if (moec_json_is_boolean(v->value) && src->n_values != 0)
        *out = moec_json_is(v->value, JSON_TRUE) ? "true" : "false";
    else
        MOEC_TRY(moec_json_as_string(v, out, err));
    for (size_t i = 0; i < src->n_values; i++) {
        if (strcmp(src->values[2 * i], *out) == 0) {
            *out = src->values[2 * i + 1];
            break;
        }
    }
    return MOEC_OK;
}

moec_status moec_config_word(const moec_config *c, moec_fact fact,
                             const char **out, moec_error *err)
{
    const moec_fact_source *src = &c->family->facts[fact];
    moec_config_at at;
    *out = src->has_default ? src->string : "";
    MOEC_TRY(moec_config_find(c, src, &at, err));
    return at.v->value != NULL ? as_word(at.v, src, out, err) : MOEC_OK;
}

static moec_status get_text(const moec_config *c, moec_fact fact,
                            moec_arena *arena, const char **out,
                            moec_error *err)
{
    const char *s;
    MOEC_TRY(moec_config_word(c, fact, &s, err));
    *out = moec_arena_strdup(arena, s, strlen(s));
    return *out != NULL ? MOEC_OK : moec_fail_nomem(err, "facts of a model");
}

moec_status moec_config_count(const moec_config *c, moec_fact fact,
                              uint32_t none, uint32_t *out, moec_error *err)
{
    return moec_config_count_at(c, &c->family->facts[fact], none, out, err);
}

moec_status moec_config_number(const moec_config *c, moec_fact fact,
                               uint32_t layer, double none, double *out,
                               moec_error *err)
{
    const moec_fact_source *src = &c->family->facts[fact];
    moec_config_at at;
    *out = src->has_default ? src->number : none;
    MOEC_TRY(moec_config_find(c, src, &at, err));
    if (at.v->value == NULL)
        return MOEC_OK;
    if (!src->per_layer || !moec_json_is(at.v->value, JSON_ARRAY))
        return moec_json_as_double(at.v, out, err);
    *out = 0.0;
    if (layer >= moec_json_len(at.v))
        return MOEC_OK;
    moec_json item = moec_json_item(at.v, layer);
    return item.value == NULL || moec_json_is(item.value, JSON_NULL)
               ? MOEC_OK
               : moec_json_as_double(&item, out, err);
}

moec_status moec_config_flag(const moec_config *c, moec_fact fact, bool none,
                             bool *out, moec_error *err)
{
    const moec_fact_source *src = &c->family->facts[fact];
    moec_config_at at;
    *out = src->has_default ? src->integer != 0 : none;
    MOEC_TRY(moec_config_find(c, src, &at, err));
    return at.v->value != NULL ? moec_json_as_bool(at.v, out, err) : MOEC_OK;
}

/* -------------------------------------------------------- the family */

/* model_type of `obj`: NULL where it has none. */
static moec_status type_of(const moec_json *obj, const char **out,
                           moec_error *err)
{
    moec_json v = moec_json_member(obj, "model_type");
    *out = NULL;
    return v.value != NULL ? moec_json_as_string(&v, out, err) : MOEC_OK;
}

/* What a config is called that says no model_type (Mistral's params.json). */
#define NO_TYPE "none"

/* The object that holds the facts: one that the family names, or the top. */
static void find_object(moec_config *c, const moec_family *f)
{
    c->facts_in = &c->root;
    for (size_t i = 0; i < f->n_in; i++) {
        moec_json v = moec_json_member(&c->root, f->in[i]);
        if (!moec_json_is(v.value, JSON_OBJECT))
            continue;
        c->nested = v;
        c->facts_in = &c->nested;
        return;
    }
}

/* moec_only_if_fn: do all conditions hold in this config? */
static bool only_if_holds(const moec_family *family, const moec_only_if *o,
                          void *ctx)
{
    moec_config *c = ctx;
    bool holds = true;
    find_object(c, family);
    for (size_t i = 0; holds && i < o->n; i++) {
        const moec_condition *want = &o->conditions[i];
        moec_config_at at;
        moec_config_follow(c->facts_in, want->key, &at);
        holds = at.v->value != NULL;
        if (!holds || want->value == NULL)
            continue;
        bool starved;
        json_t *v = moec_json_load(want->value, strlen(want->value),
                                   JSON_DECODE_ANY, NULL, &starved);
        c->oom |= v == NULL; /* jansson wrote it: it can be read */
        holds = v != NULL && json_equal(v, at.v->value);
        json_decref(v);
    }
    return holds;
}

static moec_status look_up(moec_config *c, const moec_families *families,
                           const char *type, moec_error *err)
{
    moec_error why = MOEC_ERROR_INIT;
    moec_status st = moec_families_find(families, type, only_if_holds, c,
                                        &c->family, &c->own_family, &why);
    if (c->oom)
        return moec_fail_nomem(err, "conditions of a family");
    return moec_hand_on(err, st, &why);
}

static moec_status find_family(moec_config *c, const moec_families *families,
                               moec_arena *arena, moec_error *err)
{
    const char *top = NULL, *inner = NULL;
    moec_json text = moec_json_member(&c->root, "text_config");
    MOEC_TRY(type_of(&c->root, &top, err));
    if (text.value != NULL && moec_json_is(text.value, JSON_OBJECT))
        MOEC_TRY(type_of(&text, &inner, err));
    if (top == NULL && inner == NULL) {
        top = NO_TYPE;
        MOEC_TRY(look_up(c, families, top, err));
    }
    if (c->family == NULL && top != NULL && strcmp(top, NO_TYPE) == 0)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_C11,
                         CONFIG_NAME ": model_type: is missing: it names the "
                                     "family");
    const char *type = top != NULL ? top : inner;
    if (top != NULL && c->family == NULL)
        MOEC_TRY(look_up(c, families, top, err));
    if (c->family != NULL)
        find_object(c, c->family);
    if (c->family == NULL && inner != NULL) {
        /* A wrapper that no family knows around a model that one does. */
        MOEC_TRY(look_up(c, families, inner, err));
        type = c->family != NULL ? inner : type;
        c->nested = text;
        c->facts_in = &c->nested;
    }
    if (c->family == NULL) {
        moec_buf hint = {0};
        moec_families_hint(families, type, &hint);
        moec_status st =
            moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_C08,
                      CONFIG_NAME ": model_type '%s' is in no family "
                                  "description; %s",
                      type, hint.oom ? "" : hint.data);
        moec_buf_fini(&hint);
        return st;
    }
    c->facts.model_type = moec_arena_strdup(arena, type, strlen(type));
    c->facts.family =
        moec_arena_strdup(arena, c->family->name, strlen(c->family->name));
    if (c->facts.model_type == NULL || c->facts.family == NULL)
        return moec_fail_nomem(err, "facts of a model");
    return MOEC_OK;
}

/* ------------------------------------------------------------ the facts */

static moec_status read_block(moec_config *c, moec_error *err)
{
    const moec_json *places[2] = {c->facts_in, &c->root};
    for (size_t i = 0; i < 2; i++) {
        moec_json quant = moec_json_member(places[i], "quantization_config");
        moec_json block = moec_json_member(&quant, "weight_block_size");
        if (block.value == NULL)
            continue;
        if (!moec_json_is(block.value, JSON_ARRAY) ||
            moec_json_len(&block) != 2)
            return moec_json_fail(&block, MOEC_RULE_C03, err,
                                  "must be a list of two integers");
        for (size_t j = 0; j < 2; j++) {
            moec_json v = moec_json_item(&block, j);
            MOEC_TRY(moec_config_as_count(&v, &c->block[j], err));
            if (c->block[j] == 0)
                return moec_json_fail(&v, MOEC_RULE_C06, err, "is 0");
        }
        c->has_block = 1;
        return MOEC_OK;
    }
    return MOEC_OK;
}

#define OUT_OF_RANGE(err, ...)                                                 \
  moec_fail((err), MOEC_E_FORMAT, MOEC_RULE_C06, CONFIG_NAME ": " __VA_ARGS__)

/* What the config calls a fact. */
static const char *key_of(const moec_config *c, moec_fact fact)
{
    const moec_fact_source *src = &c->family->facts[fact];
    return src->n_keys > 0 ? src->keys[0] : moec_fact_name(fact);
}

static moec_status check_groups(const moec_config *c, moec_error *err)
{
    const moec_facts *f = &c->facts;
    const char *groups = key_of(c, MOEC_FACT_N_GROUP);
    if (f->n_experts % f->n_group != 0)
        return OUT_OF_RANGE(err, "%s %u does not divide %s %u", groups,
                            f->n_group, key_of(c, MOEC_FACT_N_EXPERTS),
                            f->n_experts);
    if (f->topk_group > f->n_group || (f->topk_group == 0 && f->n_group > 1))
        return OUT_OF_RANGE(err, "%s %u must be between 1 and %s %u",
                            key_of(c, MOEC_FACT_TOPK_GROUP), f->topk_group,
                            groups, f->n_group);
    uint32_t kept = f->topk_group == 0 ? 1 : f->topk_group;
    if (f->top_k > f->n_experts / f->n_group * kept)
        return OUT_OF_RANGE(err,
                            "%s %u is more than the %u experts of the "
                            "kept groups",
                            key_of(c, MOEC_FACT_TOP_K), f->top_k,
                            f->n_experts / f->n_group * kept);
    return MOEC_OK;
}

static moec_status check_ranges(const moec_config *c, moec_error *err)
{
    static const moec_fact positive[] = {MOEC_FACT_N_EXPERTS, MOEC_FACT_TOP_K,
                                         MOEC_FACT_HIDDEN, MOEC_FACT_INTER,
                                         MOEC_FACT_N_LAYERS};
    const moec_facts *f = &c->facts;
    const uint64_t values[] = {f->n_experts, f->top_k, f->hidden, f->inter,
                               f->n_layers};
    for (size_t i = 0; i < sizeof(values) / sizeof(*values); i++)
        if (values[i] == 0)
            return OUT_OF_RANGE(err, "%s: is 0, must be at least 1",
                                key_of(c, positive[i]));
    if (f->top_k > f->n_experts + c->zero_experts)
        return OUT_OF_RANGE(err, "%s %u is more than %s %u",
                            key_of(c, MOEC_FACT_TOP_K), f->top_k,
                            key_of(c, MOEC_FACT_N_EXPERTS), f->n_experts);
    return f->n_group == 0 ? MOEC_OK : check_groups(c, err);
}

/* Width and count of the shared expert; a width or count of 0 means none. */
static moec_status read_shared(moec_config *c, moec_error *err)
{
    const moec_family *f = c->family;
    uint32_t width;
    moec_facts *facts = &c->facts;
    MOEC_TRY(
        moec_config_count(c, MOEC_FACT_N_SHARED, 0, &facts->n_shared, err));
    MOEC_TRY(moec_config_count(c, MOEC_FACT_SHARED_WIDTH,
                               (uint32_t)facts->inter, &width, err));
    facts->shared_width =
        f->shared_each ? (uint64_t)width * facts->n_shared : width;
    if (facts->n_shared == 0 || width == 0) {
        facts->n_shared = 0;
        facts->shared_width = 0;
        return MOEC_OK;
    }
    facts->shared_kind = f->shared_kind;
    return MOEC_OK;
}

static moec_status read_facts(moec_config *c, moec_arena *arena,
                              moec_error *err)
{
    moec_facts *f = &c->facts;
    uint32_t hidden, inter, expert_hidden;
    MOEC_TRY(moec_config_count(c, MOEC_FACT_N_EXPERTS, 0, &f->n_experts, err));
    MOEC_TRY(
        moec_config_count(c, MOEC_FACT_ZERO_EXPERTS, 0, &c->zero_experts, err));
    MOEC_TRY(moec_config_count(c, MOEC_FACT_TOP_K, 0, &f->top_k, err));
    MOEC_TRY(moec_config_count(c, MOEC_FACT_HIDDEN, 0, &hidden, err));
    MOEC_TRY(moec_config_count(c, MOEC_FACT_EXPERT_HIDDEN, hidden,
                               &expert_hidden, err));
    MOEC_TRY(moec_config_count(c, MOEC_FACT_INTER, 0, &inter, err));
    MOEC_TRY(moec_config_count(c, MOEC_FACT_N_LAYERS, 0, &f->n_layers, err));
    MOEC_TRY(moec_config_count(c, MOEC_FACT_N_GROUP, 0, &f->n_group, err));
    MOEC_TRY(
        moec_config_count(c, MOEC_FACT_TOPK_GROUP, 0, &f->topk_group, err));
    MOEC_TRY(moec_config_count(c, MOEC_FACT_MTP_LAYERS, UINT32_MAX,
                               &c->mtp_layers, err));
    c->mtp_known = c->mtp_layers != UINT32_MAX;
    f->hidden = hidden;
    f->inter = inter;
    c->expert_hidden = expert_hidden;
    MOEC_TRY(get_scale(c, &f->routed_scale, err));
    MOEC_TRY(get_norm(c, &f->norm_topk, err));
    MOEC_TRY(get_text(c, MOEC_FACT_SCORE, arena, &f->score, err));
    MOEC_TRY(get_text(c, MOEC_FACT_ACTIVATION, arena, &f->activation, err));
    MOEC_TRY(read_shared(c, err));
    MOEC_TRY(read_block(c, err));
    return check_ranges(c, err);
}

/* ------------------------------------------------------------ reading */

/* jansson calls a NaN or 1e999 a syntax error; it is a number all the same,
 * and the rule about numbers says what to mend. */
static moec_rule rule_of_syntax(const char *text, size_t n)
{
    json_error_t e;
    bool starved;
    json_t *tree =
        moec_json_load(text, n, JSON_REJECT_DUPLICATES, &e, &starved);
    if (tree != NULL) {
        json_decref(tree);
        return MOEC_RULE_C02;
    }
    if (strstr(e.text, "real number overflow") != NULL ||
        strstr(e.text, "near 'NaN'") != NULL ||
        strstr(e.text, "near 'Infinity'") != NULL ||
        strstr(e.text, "near '-Infinity'") != NULL ||
        strstr(e.text, "near '-'") != NULL)
        return MOEC_RULE_C04;
    return strstr(e.text, "integer") != NULL ? MOEC_RULE_C03 : MOEC_RULE_C02;
}

moec_status moec_config_read(moec_config *out, const moec_families *families,
                             const char *text, size_t n, moec_arena *arena,
                             moec_error *err)
{
    moec_error local = MOEC_ERROR_INIT;
    memset(out, 0, sizeof(*out));
    moec_status st = moec_json_parse(text, n, CONFIG_NAME, MOEC_RULE_C02,
                                     MOEC_RULE_C02, &out->tree, &local);
    if (st == MOEC_E_FORMAT && local.rule == MOEC_RULE_C02) {
        moec_rule rule = rule_of_syntax(text, n);
        if (rule != MOEC_RULE_C02) {
            local = (moec_error)MOEC_ERROR_INIT;
            moec_json_parse(text, n, CONFIG_NAME, rule, MOEC_RULE_C02,
                            &out->tree, &local);
        }
    }
    if (st != MOEC_OK)
        return moec_hand_on(err, st, &local);
    out->doc = (moec_json_doc){CONFIG_NAME,   MOEC_RULE_C02, MOEC_RULE_C11,
                               MOEC_RULE_C03, MOEC_RULE_C04, MOEC_RULE_C05};
    out->root = moec_json_root(out->tree, &out->doc);
    st = moec_json_want_object(&out->root, err);
    if (st == MOEC_OK)
        st = find_family(out, families, arena, err);
    if (st == MOEC_OK)
        st = read_facts(out, arena, err);
    if (st != MOEC_OK)
        moec_config_fini(out);
    return st;
}

void moec_config_fini(moec_config *config)
{
    json_decref(config->tree);
    config->tree = NULL;
    moec_family_destroy(config->own_family);
    config->own_family = NULL;
}

/* The key of `keys` that is there, or NULL. */
static const char *key_there(const moec_config *c, const char *const *keys,
                             size_t n)
{
    moec_config_at at;

    for (size_t i = 0; i < n; i++) {
        moec_config_follow(c->facts_in, keys[i], &at);
        if (at.v->value != NULL)
            return keys[i];
    }
    return NULL;
}

moec_status moec_config_origin(const moec_config *c, moec_fact fact,
                               moec_arena *arena, const char **out,
                               moec_error *err)
{
    const moec_fact_source *src = &c->family->facts[fact];
    bool inside = c->facts_in == &c->nested && c->nested.key != NULL;
    const char *key = key_there(c, src->keys, src->n_keys);
    moec_buf b = {0};

    if (key == NULL)
        key = key_there(c, src->otherwise, src->n_else);
    if (key != NULL)
        moec_buf_printf(&b, "%s: %s%s%s", CONFIG_NAME,
                        inside ? c->nested.key : "", inside ? "." : "", key);
    else if (src->has_default)
        moec_buf_puts(&b, "default of the family");
    *out = b.oom ? NULL : moec_arena_strdup(arena, b.data, b.len);
    moec_buf_fini(&b);
    return *out != NULL ? MOEC_OK : moec_fail_nomem(err, "origins of facts");
}
