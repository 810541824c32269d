/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which decoder layers have experts, by what a family's config.json has for
 * it: a list of layers, a word or a letter a layer, or first, last and step.
 * Refuses numbers of layers that the model does not have, and lists that are
 * shorter than the model.
 */

#include "config_find.h"

#include <stdlib.h>
#include <string.h>

/* Mark layer `number` of a list; it must exist. */
static moec_status mark(const moec_config *c, const moec_json *v,
                        uint32_t number, uint8_t value, uint8_t *moe,
                        moec_error *err)
{
    if (number >= c->facts.n_layers)
        return moec_json_fail(v, MOEC_RULE_C06, err,
                              "names layer %u of %u layers", number,
                              c->facts.n_layers);
    moe[number] = value;
    return MOEC_OK;
}

/* "3,4,5" */
static moec_status mark_text(const moec_config *c, const moec_json *v,
                             uint8_t *moe, moec_error *err)
{
    const char *s;
    MOEC_TRY(moec_json_as_string(v, &s, err));
    while (*s != '\0') {
        size_t n = strspn(s, "0123456789");
        if (n == 0 || n > 9 || (s[n] != '\0' && s[n] != ','))
            return moec_json_fail(v, MOEC_RULE_C03, err,
                                  "is not a list of layer numbers");
        MOEC_TRY(mark(c, v, (uint32_t)strtoul(s, NULL, 10), 1, moe, err));
        s += n + (s[n] == ',');
    }
    return MOEC_OK;
}

static moec_status mark_list(const moec_config *c, const moec_json *v,
                             uint8_t value, uint8_t *moe, moec_error *err)
{
    uint32_t number;
    if (!moec_json_is(v->value, JSON_ARRAY))
        return moec_json_fail(v, MOEC_RULE_C03, err,
                              "is not a list of layer numbers");
    for (size_t i = 0; i < moec_json_len(v); i++) {
        moec_json item = moec_json_item(v, i);
        MOEC_TRY(moec_config_as_count(&item, &number, err));
        MOEC_TRY(mark(c, &item, number, value, moe, err));
    }
    return MOEC_OK;
}

static moec_status check_length(const moec_config *c, const moec_json *v,
                                size_t n, moec_error *err)
{
    /* Entries behind the decoder layers are about MTP layers. */
    if (n >= c->facts.n_layers)
        return MOEC_OK;
    return moec_json_fail(v, MOEC_RULE_C07, err,
                          "is about %zu layers, the model has %u", n,
                          c->facts.n_layers);
}

static bool is_word(const moec_layer_rule *r, const char *word, size_t n)
{
    for (size_t i = 0; i < r->n_moe; i++)
        if (strlen(r->moe[i]) == n && memcmp(r->moe[i], word, n) == 0)
            return true;
    return false;
}

/* A word or a boolean a layer, or a string with one letter a layer. */
static moec_status mark_types(const moec_config *c, const moec_layer_rule *r,
                              const moec_json *v, uint8_t *moe, moec_error *err)
{
    const char *s;
    if (!moec_json_is(v->value, JSON_ARRAY)) {
        MOEC_TRY(moec_json_as_string(v, &s, err));
        MOEC_TRY(check_length(c, v, strlen(s), err));
        for (uint32_t i = 0; i < c->facts.n_layers; i++)
            moe[i] = is_word(r, s + i, 1);
        return MOEC_OK;
    }
    MOEC_TRY(check_length(c, v, moec_json_len(v), err));
    for (uint32_t i = 0; i < c->facts.n_layers; i++) {
        moec_json item = moec_json_item(v, i);
        if (moec_json_is_boolean(item.value))
            s = moec_json_is(item.value, JSON_TRUE) ? "true" : "false";
        else
            MOEC_TRY(moec_json_as_string(&item, &s, err));
        moe[i] = is_word(r, s, strlen(s));
    }
    return MOEC_OK;
}

/* The frequency of DeepSeek's names is a step, or a list of 0 and 1. */
static moec_status mark_flags(const moec_config *c, const moec_json *v,
                              uint32_t first, uint8_t *moe, moec_error *err)
{
    uint32_t flag;
    MOEC_TRY(check_length(c, v, moec_json_len(v), err));
    for (uint32_t i = 0; i < c->facts.n_layers; i++) {
        moec_json item = moec_json_item(v, i);
        MOEC_TRY(moec_config_as_count(&item, &flag, err));
        if (flag > 1)
            return moec_json_fail(&item, MOEC_RULE_C06, err,
                                  "is %u, must be 0 or 1", flag);
        moe[i] = flag && i >= first;
    }
    return MOEC_OK;
}

/* Some configs write -1 for "to the end". */
static moec_status get_last(const moec_config *c, const moec_fact_source *src,
                            uint32_t *out, moec_error *err)
{
    moec_config_at at;
    *out = UINT32_MAX;
    MOEC_TRY(moec_config_find(c, src, &at, err));
    if (moec_json_is(at.v->value, JSON_INTEGER) &&
        json_integer_value(at.v->value) == -1)
        return MOEC_OK;
    return moec_config_count_at(c, src, UINT32_MAX, out, err);
}

static moec_status mark_stride(const moec_config *c, const moec_layer_rule *r,
                               uint8_t *moe, moec_error *err)
{
    uint32_t first, last, step, offset;
    moec_config_at at;
    MOEC_TRY(moec_config_count_at(c, &r->first, 0, &first, err));
    MOEC_TRY(get_last(c, &r->last, &last, err));
    MOEC_TRY(moec_config_count_at(c, &r->offset, 0, &offset, err));
    MOEC_TRY(moec_config_find(c, &r->step, &at, err));
    if (moec_json_is(at.v->value, JSON_ARRAY))
        return mark_flags(c, at.v, first, moe, err);
    MOEC_TRY(moec_config_count_at(c, &r->step, 1, &step, err));
    if (step == 0)
        return moec_json_fail(at.v, MOEC_RULE_C06, err,
                              "is 0, must be at least 1");
    for (uint32_t i = 0; i < c->facts.n_layers; i++)
        moe[i] = i >= first && i <= last && i + r->phase >= offset &&
                 (i + r->phase - offset) % step == 0;
    if (!r->except.given)
        return MOEC_OK;
    MOEC_TRY(moec_config_find(c, &r->except, &at, err));
    return at.v->value == NULL ? MOEC_OK : mark_list(c, at.v, 0, moe, err);
}

moec_status moec_config_moe_layers(const moec_config *c, uint8_t *moe,
                                   moec_error *err)
{
    moec_config_at at;
    memset(moe, 0, c->facts.n_layers);
    for (size_t i = 0; i < c->family->n_layer_rules; i++) {
        const moec_layer_rule *r = &c->family->layer_rules[i];
        if (r->kind == MOEC_LAYERS_ALL) {
            memset(moe, 1, c->facts.n_layers);
            return MOEC_OK;
        }
        if (r->kind == MOEC_LAYERS_STRIDE)
            return mark_stride(c, r, moe, err);
        moec_config_follow(c->facts_in, r->key, &at);
        if (at.v->value == NULL)
            continue;
        if (r->kind == MOEC_LAYERS_TYPES)
            return mark_types(c, r, at.v, moe, err);
        if (moec_json_is(at.v->value, JSON_STRING))
            return mark_text(c, at.v, moe, err);
        return mark_list(c, at.v, 1, moe, err);
    }
    return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_C11,
                     CONFIG_NAME
                     ": none of the keys that say which layers have "
                     "experts is there");
}
