/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Family descriptions: the built-in ones are sound, and each mistake of a
 * description is refused with file, line and key.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <moec/moec.h>

#include "base/base.h"
#include "families_builtin.h"
#include "family.h"

/* A sound description, a line for each key so that lines can be told. */
static const char sound[] =
    "{\"schema\": \"moec.family/1\",\n"                          /* 1 */
    " \"family\": \"mine\",\n"                                   /* 2 */
    " \"model_types\": [\"mine_moe\"],\n"                        /* 3 */
    " \"layers\": [{\"prefix\": \"model.layers.{L}.\"}],\n"      /* 4 */
    " \"namespaces\": [\"mlp.experts\", \"mlp.shared\"],\n"      /* 5 */
    " \"experts\": \"mlp.experts\",\n"                           /* 6 */
    " \"tensors\": [\n"                                          /* 7 */
    "  {\"name\": \"mlp.gate.weight\", \"role\": \"router\"},\n" /* 8 */
    "  {\"name\": \"mlp.experts.{E}.w1.{suffix}\",\n"            /* 9 */
    "   \"role\": \"routed\", \"part\": \"gate\"},\n"            /* 10 */
    "  {\"name\": \"mlp.experts.{E}.w3.{suffix}\",\n"            /* 11 */
    "   \"role\": \"routed\", \"part\": \"up\"},\n"              /* 12 */
    "  {\"name\": \"mlp.experts.{E}.w2.{suffix}\",\n"            /* 13 */
    "   \"role\": \"routed\", \"part\": \"down\"},\n"            /* 14 */
    "  {\"name\": \"mlp.shared.gate_up.weight\",\n"              /* 15 */
    "   \"role\": \"shared\", \"part\": \"gate_up\"},\n"         /* 16 */
    "  {\"name\": \"mlp.shared.down.weight\",\n"                 /* 17 */
    "   \"role\": \"shared\", \"part\": \"down\"}],\n"           /* 18 */
    " \"config\": {\"n_experts\": {\"keys\": [\"E\"]},\n"        /* 19 */
    "  \"top_k\": {\"keys\": [\"K\"]},\n"                        /* 20 */
    "  \"hidden\": {\"keys\": [\"H\"]},\n"                       /* 21 */
    "  \"inter\": {\"keys\": [\"I\"]},\n"                        /* 22 */
    "  \"n_layers\": {\"keys\": [\"N\"]},\n"                     /* 23 */
    "  \"n_shared\": {\"keys\": [\"S\"], \"default\": 0},\n"     /* 24 */
    "  \"score\": {\"default\": \"softmax\"},\n"                 /* 25 */
    "  \"activation\": {\"default\": \"silu\"}},\n"              /* 26 */
    " \"moe_layers\": [{\"kind\": \"all\"}],\n"                  /* 27 */
    " \"shared\": {\"kind\": \"plain\"}}\n";                     /* 28 */

/* `sound` with the first `from` replaced. The result is the caller's. */
static char *changed(const char *from, const char *to)
{
    const char *at = strstr(sound, from);
    assert_non_null(at);
    moec_buf b = {0};
    moec_buf_append(&b, sound, (size_t)(at - sound));
    moec_buf_puts(&b, to);
    moec_buf_puts(&b, at + strlen(from));
    assert_false(b.oom);
    char *text = strdup(b.data);
    assert_non_null(text);
    moec_buf_fini(&b);
    return text;
}

/* Name of the family for a model_type; "none" where there is none. */
static const char *found(const moec_families *fs, const char *type,
                         moec_only_if_fn holds, void *ctx)
{
    static char name[64];
    const moec_family *f;
    moec_family *own;
    moec_error err = MOEC_ERROR_INIT;
    if (moec_families_find(fs, type, holds, ctx, &f, &own, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    snprintf(name, sizeof(name), "%s", f != NULL ? f->name : "none");
    moec_family_destroy(own);
    return name;
}

static void builtin_families_are_sound(void **state)
{
    /* Every entry of the table of families; their order is alphabetic. */
    static const char *const want[] = {
        "afmoe",           "bailing_moe", "dbrx",         "deepseek_v2",
        "deepseek_v3",     "deepseek_v4", "dots1",        "ernie4_5_moe",
        "exaone_moe",      "gemma4_moe",  "glm4_moe",     "gpt_oss",
        "granite_moe",     "grok",        "hunyuan_moe",  "hy_v3",
        "inkling",         "jamba",       "kimi_k2",      "kimi_k3",
        "kimi_linear",     "lfm2_moe",    "llama4",       "longcat_flash",
        "mimo_v2",         "minimax_m2",  "minimax_m3",   "minimax_text_01",
        "mistral_large_3", "mixtral",     "moonlight",    "nemotron_h",
        "olmoe",           "phimoe",      "qwen2_moe",    "qwen3_5_moe",
        "qwen3_moe",       "qwen3_next",  "qwen3_vl_moe", "step3"};
    moec_families *fs = NULL;
    moec_error err = MOEC_ERROR_INIT;
    (void)state;
    assert_int_equal(moec_families_create(&fs, &err), MOEC_OK);
    assert_int_equal(moec_families_count(fs), sizeof(want) / sizeof(*want));
    for (size_t i = 0; i < sizeof(want) / sizeof(*want); i++) {
        const struct moec_builtin_family *b = &moec_builtin_families[i];
        moec_family *f = NULL;
        assert_string_equal(moec_families_name(fs, i), want[i]);
        if (moec_family_parse(&f, b->name, b->text, b->bytes, &err) != MOEC_OK)
            fail_msg("%s", err.text);
        assert_string_equal(f->name, want[i]);
        assert_string_equal(moec_families_tested(fs, i), f->tested);
        assert_string_not_equal(f->tested, "none");
        moec_family_destroy(f);
    }
    assert_string_equal(found(fs, "deepseek_v32", NULL, NULL), "deepseek_v3");
    assert_string_equal(found(fs, "glm_moe_dsa", NULL, NULL), "glm4_moe");
    assert_string_equal(found(fs, "deepseek_v9", NULL, NULL), "none");
    moec_families_destroy(fs);
}

static bool holds_for(const moec_family *f, const moec_only_if *c, void *ctx)
{
    assert_true(c->n > 0);
    return strcmp(f->name, ctx) == 0;
}

/* Three families list deepseek_v3: conditions go first, the user's before all
 * of them. */
static void conditions_decide_between_families(void **state)
{
    char moonlight[] = "moonlight", mistral[] = "mistral_large_3";
    moec_families *fs = NULL;
    moec_error err = MOEC_ERROR_INIT;
    (void)state;
    assert_int_equal(moec_families_create(&fs, &err), MOEC_OK);
    assert_string_equal(found(fs, "deepseek_v3", NULL, NULL), "deepseek_v3");
    assert_string_equal(found(fs, "deepseek_v3", holds_for, moonlight),
                        "moonlight");
    assert_string_equal(found(fs, "deepseek_v3", holds_for, mistral),
                        "mistral_large_3");
    assert_string_equal(found(fs, "none", NULL, NULL), "none");
    assert_string_equal(found(fs, "none", holds_for, mistral),
                        "mistral_large_3");
    char *text = changed("mine_moe", "deepseek_v3");
    assert_int_equal(
        moec_families_add(fs, "mine.json", text, strlen(text), &err), MOEC_OK);
    assert_string_equal(found(fs, "deepseek_v3", holds_for, moonlight), "mine");
    free(text);
    moec_families_destroy(fs);
}

static void reads_a_sound_description(void **state)
{
    moec_family *f = NULL;
    moec_error err = MOEC_ERROR_INIT;
    (void)state;
    if (moec_family_parse(&f, "mine.json", sound, sizeof(sound) - 1, &err) !=
        MOEC_OK)
        fail_msg("%s", err.text);
    assert_string_equal(f->name, "mine");
    assert_string_equal(f->prefixes[0], "model.layers.#.");
    assert_int_equal(f->n_variants, 1);
    assert_int_equal(f->shared_kind, MOEC_SHARED_PLAIN);
    assert_int_equal(f->shared_each, 1);
    assert_int_equal(f->fuse, 1);
    moec_norm norm;
    moec_name_found found = moec_names_find(
        &f->names, "model.layers.1.mlp.experts.2.w2.weight_scale_2", &norm);
    assert_int_equal(found.what, MOEC_NAME_KNOWN);
    const moec_kind *k = &f->kinds[f->names.entries[found.entry].kind[0]];
    assert_int_equal(k->role, MOEC_ROLE_ROUTED);
    assert_int_equal(k->part, MOEC_PART_DOWN);
    assert_int_equal(k->geometry, MOEC_GEO_SCALE);
    assert_string_equal(f->components[k->component], "weight_scale_2");
    char name[128];
    moec_kind_format(f, k, 0, 11, 12, name, sizeof(name));
    assert_string_equal(name,
                        "model.layers.11.mlp.experts.12.w2.weight_scale_2");
    moec_family_destroy(f);
}

typedef struct bad {
    const char *from, *to;
    const char *want; /* the whole error text behind rule and file name */
} bad;

#define TEN "\"x\",\"x\",\"x\",\"x\",\"x\",\"x\",\"x\",\"x\",\"x\",\"x\","

static const bad bads[] = {
    {"moec.family/1", "moec.family/2",
     ":1: schema: is \"moec.family/2\", must be \"moec.family/1\""},
    {"\"family\": \"mine\"", "\"family\": 7",
     ":2: family: is an integer, must be a string"},
    {" \"family\": \"mine\",\n", "",
     ":1: family: is missing, must be a "
     "string"},
    {"\"family\": \"mine\"", "\"family\": \"mine\", \"famly\": 1",
     ":1: has the unknown key 'famly'"},
    {"[\"mine_moe\"]", "[]", ":3: model_types: has 0 items, must have 1 to 64"},
    {"[\"mine_moe\"]", "[\"\"]", ":3: model_types[0]: is empty"},
    {"\"mine_moe\"", "\"mine_moe\", 3",
     ":3: model_types[1]: is an integer, must be a string"},
    {"[\"mine_moe\"]", "[\"mine_moe\"], \"only_if\": {\"other\": {\"a\": 1}}",
     ":3: only_if.other: is none of 'model_types'"},
    {"[\"mine_moe\"]",
     "[\"mine_moe\"], \"only_if\": {\"mine_moe\": {\"a\": [1]}}",
     ":3: only_if.mine_moe.a: must be a string, a number or a boolean"},
    {"[\"mine_moe\"]", "[\"mine_moe\"], \"tested\": \"well\"",
     ":3: tested: is \"well\", must be one of \"none\", \"generated\", "
     "\"fixture\""},
    {"model.layers.{L}.", "model.layers.{L}",
     ":4: layers[0].prefix: is \"model.layers.{L}\", must end in \"{L}.\""},
    {"model.layers.{L}.", "model.{Lx.{L}.",
     ":4: layers[0].prefix: \"model.{Lx.{L}.\" has a '{', '}' or '#' outside a "
     "segment of its own"},
    {"\"family\": \"mine\"", "\"family_\": 1,\t\r\n\t\"family\": \"mine\"",
     ":1: has the unknown key 'family_'"},
    {"[\"mine_moe\"]", "[" TEN TEN TEN TEN TEN TEN TEN "\"y\"]",
     ":3: model_types: has 71 items, must have 1 to 64"},
    {"\"part\": \"gate_up\"", "\"part\": \"gate\"",
     ":1: describes shared tensors of parts other than gate, up and down; "
     "gate_up and down; or up and down"},
    {"model.layers.{L}.", "{L}.layers.{L}.",
     ":4: layers[0].prefix: has {L} more than once"},
    {"model.layers.{L}.", "model.0.{L}.",
     ":4: layers[0].prefix: \"model.0.{L}.\" has a segment of digits: write "
     "{L} or {E}"},
    {"\"model.layers.{L}.\"", "\"model.layers.{L}.\", \"space\": \"side\"",
     ":4: layers[0].space: is \"side\", must be one of \"main\", \"mtp\""},
    {"\"mlp.shared\"", "\"mlp.#\"",
     ":5: namespaces[1]: \"mlp.#\" has a '{', '}' or '#' outside a segment of "
     "its own"},
    {" \"experts\": \"mlp.experts\",\n", "",
     ":1: experts: is missing: what names of slot tensors begin with behind "
     "the layer's prefix"},
    {"\"role\": \"router\"", "\"role\": \"ruoter\"",
     ":8: tensors[0].role: is \"ruoter\", must be one of \"common\", "
     "\"routed\", \"shared\", \"router\", \"shared_gate\""},
    {"\"role\": \"router\"", "\"role\": \"router\", \"part\": \"up\"",
     ":8: tensors[0]: has 'part', which only a routed or shared tensor has"},
    {"\"role\": \"router\"", "\"role\": \"router\", \"shape\": [\"E\", \"X\"]",
     ":8: tensors[0].shape[1]: is \"X\", must be \"E\", \"H\", \"I\", \"R\" "
     "or a number"},
    {"mlp.experts.{E}.w1", "mlp.experts.{X}.w1",
     ":9: tensors[1].name: \"mlp.experts.{X}.w1.weight\" has a '{', '}' or "
     "'#' outside a segment of its own"},
    {"mlp.experts.{E}.w1", "mlp.experts.w1",
     ":9: tensors[1]: is routed: its name has {E}, or 'stack' says where the "
     "experts are, and not both"},
    {"\"part\": \"gate\"", "\"part\": \"gate\", \"stack\": \"rows\"",
     ":9: tensors[1]: is routed: its name has {E}, or 'stack' says where the "
     "experts are, and not both"},
    {"\"part\": \"gate\"", "\"part\": \"gate\", \"interleaved\": true",
     ":9: tensors[1]: is interleaved, which only part \"gate_up\" can be"},
    {"\"part\": \"gate\"", "\"part\": \"gate\", \"interleaved\": 1",
     ":10: tensors[1].interleaved: is an integer, must be a boolean"},
    {"\"part\": \"gate\"", "\"part\": \"gate\", \"component\": \"x\"",
     ":9: tensors[1]: has 'component' or 'geometry' beside {suffix}, which "
     "names them"},
    {"\"part\": \"gate\"", "\"part\": \"gate\", \"suffixes\": \"my\"",
     ":9: tensors[1]: uses suffixes \"my\", which are not described"},
    {"w1.{suffix}", "{suffix}.w1",
     ":9: tensors[1].name: has {suffix} before its end"},
    {"w3.{suffix}", "w1.{suffix}",
     ":11: tensors[2]: names 'mlp.experts.#.w1.weight' a second time"},
    {"\"part\": \"up\"", "\"part\": \"gate\"",
     ":1: describes routed tensors of parts other than gate, up and down; "
     "gate_up and down; or up and down"},
    {"\"role\": \"shared\", \"part\": \"gate_up\"",
     "\"role\": \"shared\", \"part\": \"gate_up\", \"required\": true",
     ":15: tensors[4]: has 'shape' or 'required', which follow from the part "
     "of a routed or shared tensor"},
    {"mlp.shared.down.weight", "mlp.shared.{E}.weight",
     ":17: tensors[5]: has {E} in its name, which only a routed tensor has"},
    {"\"keys\": [\"E\"]", "\"kays\": [\"E\"]",
     ":19: config.n_experts: has the unknown key 'kays'"},
    {"\"keys\": [\"K\"]", "",
     ":20: config.top_k: has neither 'keys' nor a 'default'"},
    {"{\"keys\": [\"K\"]}", "{\"default\": 2, \"else\": [\"K\"]}",
     ":20: config.top_k: has 'else' or 'values' without 'keys'"},
    {"{\"keys\": [\"K\"]}", "{\"keys\": [\"K\"], \"values\": {\"a\": \"b\"}}",
     ":20: config.top_k.values: stands at a fact that is no word"},
    {"  \"inter\": {\"keys\": [\"I\"]},\n", "",
     ":19: config.inter: is missing, must be an object"},
    {"\"default\": 0", "\"default\": \"0\"",
     ":24: config.n_shared.default: is a string, must be an integer"},
    {"\"default\": \"softmax\"", "\"default\": 1",
     ":25: config.score.default: is an integer, must be a string"},
    {"\"activation\"", "\"activision\"",
     ":19: config: has the unknown key 'activision'"},
    {"{\"kind\": \"all\"}", "",
     ":27: moe_layers: has 0 items, must have 1 to 64"},
    {"\"kind\": \"all\"", "\"kind\": \"list\"",
     ":27: moe_layers[0].key: is missing, must be a string"},
    {"\"kind\": \"all\"", "\"kind\": \"stride\", \"stop\": 1",
     ":27: moe_layers[0]: has the unknown key 'stop'"},
    {"\"kind\": \"plain\"", "\"kind\": \"plain\", \"fuse\": false",
     ":28: shared: must have 'why_not' where 'fuse' is false, and only there"},
    {"  \"n_shared\": {\"keys\": [\"S\"], \"default\": 0},\n", "",
     ":27: shared: stands without the fact 'n_shared'"},
    {",\n \"shared\": {\"kind\": \"plain\"}", "",
     ":1: shared: is missing, must be an object"},
    {"[\"mine_moe\"]", "[\"mine_moe\"], \"only_if\": 1",
     ":3: only_if: is an integer, must be an object"},
    {"[\"mine_moe\"]", "[\"mine_moe\"], \"only_if\": {\"mine_moe\": 1}",
     ":3: only_if.mine_moe: is an integer, must be an object"},
    {"[\"mine_moe\"]",
     "[\"mine_moe\"], \"only_if\": {\"mine_moe\": {\"a\": {}}}",
     ":3: only_if.mine_moe.a: must be a string, a number or a boolean"},
    {"[\"mine_moe\"]",
     "[\"mine_moe\"], \"only_if\": {\"mine_moe\": {\"a\": null}}",
     ":3: only_if.mine_moe.a: must be a string, a number or a boolean"},
    {"{\"prefix\": \"model.layers.{L}.\"}",
     "{\"prefix\": \"a.{L}.\"}, {\"prefix\": \"a.{L}.\"}",
     ":4: layers[1].prefix: stands twice"},
    {"model.layers.{L}.", "model..{L}.",
     ":4: layers[0].prefix: \"model..{L}.\" has an empty segment"},
    {"\"mlp.shared\"", "\"mlp.shared.\"",
     ":5: namespaces[1]: has {E} or ends in a dot"},
    {"\"mlp.shared\"", "\"mlp.{E}\"",
     ":5: namespaces[1]: has {E} or ends in a dot"},
    {"\"experts\": \"mlp.experts\"", "\"experts\": \"mlp.{E}\"",
     ":6: experts: has {E}"},
    {"\"role\": \"router\"", "\"role\": \"router\", \"shape\": [1, 2, 3, 4, 5]",
     ":8: tensors[0].shape: has 5 dimensions, at most 4"},
    {"\"role\": \"router\"", "\"role\": \"router\", \"stack\": \"x\"",
     ":8: tensors[0].stack: is \"x\", must be one of \"none\", \"experts\", "
     "\"rows\""},
    {"mlp.experts.{E}.w1", "mlp.experts.{E}.{E}",
     ":9: tensors[1].name: has {E} more than once"},
    {"\"part\": \"gate\"", "\"part\": \"gate\", \"geometry\": \"scale\"",
     ":9: tensors[1]: has 'component' or 'geometry' beside {suffix}, which "
     "names them"},
    {"\"part\": \"gate\"", "\"part\": \"gate\", \"geometry\": \"x\"",
     ":10: tensors[1].geometry: is \"x\", must be one of \"matrix\", \"kept\", "
     "\"vector\", \"scalar\", \"record\", \"scale\""},
    {"\"part\": \"gate\"", "\"part\": \"gate\", \"component\": 1",
     ":10: tensors[1].component: is an integer, must be a string"},
    {"\"part\": \"gate\"", "\"part\": \"gate\", \"suffixes\": 1",
     ":10: tensors[1].suffixes: is an integer, must be a string"},
    {"\"part\": \"gate\"", "\"part\": \"gate\", \"shape\": [\"E\"]",
     ":9: tensors[1]: has 'shape' or 'required', which follow from the part "
     "of a routed or shared tensor"},
    {"\"keys\": [\"E\"]", "\"keys\": [\"E\"], \"per_layer\": 1",
     ":19: config.n_experts.per_layer: is an integer, must be a boolean"},
    {"\"keys\": [\"E\"]", "\"keys\": [\"E\"], \"sum\": 1",
     ":19: config.n_experts.sum: is an integer, must be a boolean"},
    {"\"keys\": [\"E\"]", "\"keys\": [\"E\"], \"p_norm\": 1",
     ":19: config.n_experts.p_norm: is an integer, must be a boolean"},
    {"\"keys\": [\"E\"]", "\"keys\": [\"E\"], \"else\": 1",
     ":19: config.n_experts.else: is an integer, must be an array"},
    {"{\"default\": \"softmax\"}", "{\"default\": \"softmax\", \"values\": 1}",
     ":25: config.score.values: is an integer, must be an object"},
    {"{\"default\": \"softmax\"}",
     "{\"default\": \"softmax\", \"values\": {\"a\": 1}}",
     ":25: config.score.values.a: is an integer, must be a string"},
    {"{\"default\": \"softmax\"}",
     "{\"default\": \"softmax\", \"values\": {\"a\": \"b\"}}",
     ":25: config.score: has 'else' or 'values' without 'keys'"},
    {"\"kind\": \"all\"", "\"kind\": \"all\", \"key\": \"x\"",
     ":27: moe_layers[0]: has the unknown key 'key'"},
    {"\"kind\": \"all\"", "\"kind\": \"list\", \"moe\": []",
     ":27: moe_layers[0]: has the unknown key 'moe'"},
    {"\"kind\": \"all\"", "\"kind\": \"types\", \"first\": 1",
     ":27: moe_layers[0]: has the unknown key 'first'"},
    {"\"kind\": \"all\"", "\"kind\": \"types\", \"moe\": [1]",
     ":27: moe_layers[0].moe[0]: is an integer, must be a string"},
    {"\"kind\": \"all\"", "\"kind\": \"stride\", \"last\": 1",
     ":27: moe_layers[0].last: is an integer, must be an object"},
    {"\"kind\": \"all\"", "\"kind\": \"stride\", \"offset\": 1",
     ":27: moe_layers[0].offset: is an integer, must be an object"},
    {"\"kind\": \"all\"", "\"kind\": \"stride\", \"except\": 1",
     ":27: moe_layers[0].except: is an integer, must be an object"},
    {"\"kind\": \"all\"",
     "\"kind\": \"stride\", \"except\": {\"keys\": [\"x\"], \"default\": 1}",
     ":27: moe_layers[0].except.default: stands at a list, which has no "
     "default"},
    {"\"kind\": \"plain\"", "\"kind\": \"plain\", \"each\": 1",
     ":28: shared.each: is an integer, must be a boolean"},
    {"\"kind\": \"plain\"", "\"kind\": \"plain\", \"fuse\": 1",
     ":28: shared.fuse: is an integer, must be a boolean"},
    {"\"kind\": \"plain\"", "\"kind\": \"plain\", \"why_not\": 1",
     ":28: shared.why_not: is an integer, must be a string"},
    {"\"tensors\": [",
     "\"suffixes\": {\"my\": 1}, \"tensors\": [{\"name\": "
     "\"a.{E}.{suffix}\", \"role\": \"routed\", \"part\": \"up\", "
     "\"suffixes\": \"my\"},",
     ":7: suffixes.my: is an integer, must be an object"},
    {"\"tensors\": [",
     "\"suffixes\": {\"my\": {\"w\": {\"x\": 1}}}, \"tensors\": "
     "[{\"name\": \"a.{E}.{suffix}\", \"role\": \"routed\", \"part\": "
     "\"up\", \"suffixes\": \"my\"},",
     ":7: suffixes.my.w: has the unknown key 'x'"},
    {"\"tensors\": [",
     "\"suffixes\": {\"my\": {\"w\": {\"geometry\": \"scale\"}}}, "
     "\"tensors\": [{\"name\": \"a.{E}.{suffix}\", \"role\": \"routed\", "
     "\"part\": \"up\", \"suffixes\": \"my\"},",
     ":7: suffixes.my.w.component: is missing, must be a string"},
    {"\"tensors\": [",
     "\"suffixes\": {\"my\": {\"w\": {\"component\": \"w\"}}}, "
     "\"tensors\": [{\"name\": \"a.{E}.{suffix}\", \"role\": \"routed\", "
     "\"part\": \"up\", \"suffixes\": \"my\"},",
     ":7: suffixes.my.w.geometry: is missing, must be a string"},
    {"\"tensors\": [",
     "\"suffixes\": {\"my\": {\"{E}\": {\"component\": \"w\", "
     "\"geometry\": \"scale\"}}}, \"tensors\": [{\"name\": "
     "\"a.{E}.{suffix}\", \"role\": \"routed\", \"part\": \"up\", "
     "\"suffixes\": \"my\"},",
     ":7: tensors[0].name: has {E} more than once"},
    {"\"tensors\": [",
     "\"tensors\": [{\"name\": \"a.{E}.w\", \"role\": \"routed\", "
     "\"part\": \"up\"}, {\"name\": \"b.{E}.w\", \"role\": \"routed\", "
     "\"part\": \"up\", \"orientation\": \"in_out\"},",
     ":1: reads 'a.#.w' and 'b.#.w', both weight of one part, in two ways"},
};

static void each_mistake_is_refused_with_its_line(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(bads) / sizeof(*bads); i++) {
        static const char begin[] = "[MOE-C09 family-file] mine.json";
        char *text = changed(bads[i].from, bads[i].to);
        moec_family *f = NULL;
        moec_error err = MOEC_ERROR_INIT;
        moec_status st =
            moec_family_parse(&f, "mine.json", text, strlen(text), &err);
        if (st != MOEC_E_FORMAT || err.rule != MOEC_RULE_C09 ||
            strncmp(err.text, begin, sizeof(begin) - 1) != 0 ||
            strcmp(err.text + sizeof(begin) - 1, bads[i].want) != 0)
            fail_msg("case %zu\n  want %s\n  have %s", i, bads[i].want,
                     err.text);
        assert_null(f);
        assert_int_equal(
            moec_family_parse(&f, "mine.json", text, strlen(text), NULL), st);
        free(text);
    }
}

static void refuses_text_that_is_no_json(void **state)
{
    moec_family *f = NULL;
    moec_error err = MOEC_ERROR_INIT;
    (void)state;
    assert_int_equal(moec_family_parse(&f, "x.json", "{\"a\":\n,", 7, &err),
                     MOEC_E_FORMAT);
    assert_int_equal(err.rule, MOEC_RULE_C09);
    assert_non_null(strstr(err.text, "x.json: line 2"));
    err = (moec_error)MOEC_ERROR_INIT;
    assert_int_equal(
        moec_family_parse(&f, "x.json", "{\"a\":1,\"a\":1}", 13, &err),
        MOEC_E_FORMAT);
    assert_int_equal(err.rule, MOEC_RULE_C09);
}

static void variants_must_agree_on_what_a_name_is(void **state)
{
    static const char tensors[] =
        "\"variants\": [{\"name\": \"a\"}, {\"name\": \"b\", \"tensors\": "
        "[{\"name\": \"mlp.x\", \"role\": \"router\"}]}, {\"name\": \"c\", "
        "\"tensors\": [{\"name\": \"mlp.x\", \"role\": \"shared_gate\"}]}],\n"
        " \"config\"";
    char *text = changed("\"config\"", tensors);
    moec_family *f = NULL;
    moec_error err = MOEC_ERROR_INIT;
    (void)state;
    assert_int_equal(
        moec_family_parse(&f, "mine.json", text, strlen(text), &err),
        MOEC_E_FORMAT);
    assert_string_equal(err.text,
                        "[MOE-C09 family-file] mine.json:19: "
                        "variants[2].tensors[0]: calls 'mlp.x' by another "
                        "role, part, component or use than another variant "
                        "does");
    free(text);
}

static void own_suffix_sets_take_the_place_of_ours(void **state)
{
    char *text = changed(
        "\"role\": \"routed\", \"part\": \"down\"",
        "\"role\": \"routed\", \"part\": \"down\", \"suffixes\": \"my\"");
    char *two = strdup(text);
    moec_buf b = {0};
    moec_family *f = NULL;
    moec_norm norm;
    moec_error err = MOEC_ERROR_INIT;
    (void)state;
    assert_non_null(two);
    moec_buf_puts(&b, "{\"suffixes\": {\"my\": {\"q4\": {\"component\": "
                      "\"weight\", \"geometry\": \"kept\"}}},");
    moec_buf_puts(&b, two + 1);
    if (moec_family_parse(&f, "mine.json", b.data, b.len, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    moec_name_found q4 =
        moec_names_find(&f->names, "model.layers.0.mlp.experts.0.w2.q4", &norm);
    assert_int_equal(q4.what, MOEC_NAME_KNOWN);
    assert_int_equal(f->kinds[f->names.entries[q4.entry].kind[0]].geometry,
                     MOEC_GEO_MATRIX_KEPT);
    assert_int_equal(moec_names_find(&f->names,
                                     "model.layers.0.mlp.experts.0.w2.weight",
                                     &norm)
                         .what,
                     MOEC_NAME_STRANGE);
    moec_family_destroy(f);
    moec_buf_fini(&b);
    free(two);
    free(text);
}

static void an_added_family_wins(void **state)
{
    char *text = changed("mine_moe", "mixtral");
    moec_families *fs = NULL;
    moec_error err = MOEC_ERROR_INIT;
    (void)state;
    assert_int_equal(moec_families_create(&fs, &err), MOEC_OK);
    size_t n = moec_families_count(fs);
    assert_string_equal(found(fs, "mixtral", NULL, NULL), "mixtral");
    assert_int_equal(
        moec_families_add(fs, "mine.json", text, strlen(text), &err), MOEC_OK);
    assert_int_equal(moec_families_count(fs), n + 1);
    assert_string_equal(found(fs, "mixtral", NULL, NULL), "mine");
    assert_int_equal(moec_families_add(fs, "bad.json", "{}", 2, &err),
                     MOEC_E_FORMAT);
    assert_int_equal(moec_families_count(fs), n + 1);
    moec_families_destroy(fs);
    free(text);
}

static void hints_at_near_names_or_at_the_list(void **state)
{
    moec_families *fs = NULL;
    moec_buf b = {0};
    moec_error err = MOEC_ERROR_INIT;
    (void)state;
    assert_int_equal(moec_families_create(&fs, &err), MOEC_OK);
    moec_families_hint(fs, "mixtrall", &b);
    assert_string_equal(b.data, "did you mean 'mixtral'?");
    b.len = 0;
    moec_families_hint(fs, "something_else", &b);
    assert_non_null(strstr(b.data, "--list-families"));
    moec_buf_fini(&b);
    moec_families_destroy(fs);
}

/* Every allocation of a parse fails in turn: an error, no leak, no crash. */
static void survives_every_failing_allocation(void **state)
{
    moec_status st = MOEC_E_NOMEM;
    uint64_t n = 1;
    char *text =
        changed("[\"mine_moe\"]",
                "[\"mine_moe\"], \"only_if\": {\"mine_moe\": {\"a\": \"*\", "
                "\"b\": 1}}, \"suffixes\": {\"my\": {\"s\": {\"component\": "
                "\"c\", \"geometry\": \"scale\"}}}, \"tested\": \"none\"");
    (void)state;
    for (; st != MOEC_OK && n < 100000; n++) {
        moec_family *f = NULL;
        moec_error err = MOEC_ERROR_INIT;
        moec_alloc_fail_at(n);
        st = moec_family_parse(&f, "mine.json", text, strlen(text), &err);
        moec_alloc_fail_at(0);
        if (st != MOEC_OK)
            assert_int_equal(st, MOEC_E_NOMEM);
        moec_family_destroy(f);
    }
    free(text);
    assert_int_equal(st, MOEC_OK);
    assert_true(n > 10);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(builtin_families_are_sound),
        cmocka_unit_test(conditions_decide_between_families),
        cmocka_unit_test(reads_a_sound_description),
        cmocka_unit_test(each_mistake_is_refused_with_its_line),
        cmocka_unit_test(refuses_text_that_is_no_json),
        cmocka_unit_test(variants_must_agree_on_what_a_name_is),
        cmocka_unit_test(own_suffix_sets_take_the_place_of_ours),
        cmocka_unit_test(an_added_family_wins),
        cmocka_unit_test(hints_at_near_names_or_at_the_list),
        cmocka_unit_test(survives_every_failing_allocation),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
