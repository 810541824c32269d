/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Models of the fixtures: facts against the reference's own (experts.json,
 * made without this library), every rule of config.json, and headers that do
 * not hold what the config says.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include <moec/moec.h>

#include "header_ckpt.h"
#include "model.h"
#include "st_build.h"

#define CHECKPOINTS MOEC_TEST_FIXTURES "/checkpoints/"

static moec_families *families;

static int setup(void **state)
{
    moec_error err = MOEC_ERROR_INIT;
    (void)state;
    return moec_families_create(&families, &err) == MOEC_OK ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    moec_families_destroy(families);
    return 0;
}

static json_t *load(const char *fixture, const char *file)
{
    char path[512];
    json_error_t e;
    snprintf(path, sizeof(path), CHECKPOINTS "%s/%s", fixture, file);
    json_t *j = json_load_file(path, 0, &e);
    if (j == NULL)
        fail_msg("%s: %s", path, e.text);
    return j;
}

static moec_ckpt *open_fixture(const char *fixture)
{
    char path[512];
    moec_ckpt *ckpt = NULL;
    moec_error err = MOEC_ERROR_INIT;
    snprintf(path, sizeof(path), CHECKPOINTS "%s", fixture);
    if (moec_ckpt_open(&ckpt, path, NULL, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    return ckpt;
}

/* Set the value at dotted `path` of `config`; "-" as value deletes it. */
static void set(json_t *config, const char *path, const char *value)
{
    char copy[128];
    json_t *at = config;
    snprintf(copy, sizeof(copy), "%s", path);
    char *key = copy, *dot;
    while ((dot = strchr(key, '.')) != NULL) {
        *dot = '\0';
        at = json_object_get(at, key);
        assert_non_null(at);
        key = dot + 1;
    }
    if (strcmp(value, "-") == 0) {
        assert_int_equal(json_object_del(at, key), 0);
        return;
    }
    json_t *v = json_loads(value, JSON_DECODE_ANY, NULL);
    assert_non_null(v);
    json_object_set_new(at, key, v);
}

static moec_status create(moec_model **out, const moec_ckpt *ckpt,
                          const json_t *config, moec_error *err)
{
    char *text = json_dumps(config, 0);
    assert_non_null(text);
    moec_status st =
        moec_model_create(out, ckpt, families, text, strlen(text), err);
    free(text);
    return st;
}

/* A model of edited tensors, with the fixture's config and one key changed
 * (`path` NULL: none). */
static moec_status edited(const char *fixture, const hc_list *list,
                          const char *path, const char *value, moec_error *err)
{
    moec_ckpt *ckpt = hc_open(list);
    json_t *config = load(fixture, "config.json");
    moec_model *m = NULL;
    if (path != NULL)
        set(config, path, value);
    moec_status st = create(&m, ckpt, config, err);
    assert_true((st == MOEC_OK) == (m != NULL));
    moec_model_destroy(m);
    moec_ckpt_close(ckpt);
    json_decref(config);
    return st;
}

static hc_list tensors_of(const char *fixture)
{
    moec_ckpt *ckpt = open_fixture(fixture);
    hc_list l = hc_copy(ckpt);
    moec_ckpt_close(ckpt);
    return l;
}

static void expect_refusal(const char *fixture, hc_list *list,
                           moec_status status, moec_rule rule, const char *text)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_status st = edited(fixture, list, NULL, NULL, &err);
    if (st != status || err.rule != rule || strstr(err.text, text) == NULL)
        fail_msg("want %d %s\nhave %d %s", (int)status, text, (int)st,
                 err.text);
    free(list->t);
}

/* -------------------------------------------------------------- facts */

typedef struct expected {
    const char *fixture;
    uint32_t shared_slots;
    moec_shared_kind kind;
    moec_dtype dtype;
    const char *prefix; /* of the first MoE layer's experts */
} expected;

static const expected fixtures[] = {
    {"dbrx", 0, MOEC_SHARED_NONE, MOEC_DTYPE_BF16,
     "transformer.blocks.0.ffn.experts"},
    {"deepseek_v2", 2, MOEC_SHARED_PLAIN, MOEC_DTYPE_BF16,
     "model.layers.1.mlp.experts"},
    {"deepseek_v3", 1, MOEC_SHARED_PLAIN, MOEC_DTYPE_BF16,
     "model.layers.1.mlp.experts"},
    {"deepseek_v3_fp8", 1, MOEC_SHARED_PLAIN, MOEC_DTYPE_F8_E4M3,
     "model.layers.1.mlp.experts"},
    {"deepseek_v3_fp8_ragged", 1, MOEC_SHARED_PLAIN, MOEC_DTYPE_F8_E4M3,
     "model.layers.1.mlp.experts"},
    {"glm4_moe", 1, MOEC_SHARED_PLAIN, MOEC_DTYPE_BF16,
     "model.layers.1.mlp.experts"},
    {"gpt_oss", 0, MOEC_SHARED_NONE, MOEC_DTYPE_BF16,
     "model.layers.0.mlp.experts"},
    {"llama4", 1, MOEC_SHARED_PLAIN, MOEC_DTYPE_BF16,
     "language_model.model.layers.1.feed_forward.experts"},
    {"mixtral", 0, MOEC_SHARED_NONE, MOEC_DTYPE_BF16,
     "model.layers.0.block_sparse_moe.experts"},
    {"olmoe", 0, MOEC_SHARED_NONE, MOEC_DTYPE_BF16,
     "model.layers.0.mlp.experts"},
    {"qwen2_moe", 4, MOEC_SHARED_SIGMOID, MOEC_DTYPE_BF16,
     "model.layers.0.mlp.experts"},
    {"qwen3_moe", 0, MOEC_SHARED_NONE, MOEC_DTYPE_BF16,
     "model.layers.0.mlp.experts"},
    {"qwen3_next", 1, MOEC_SHARED_SIGMOID, MOEC_DTYPE_BF16,
     "model.layers.0.mlp.experts"},
};
#define N_FIXTURES (sizeof(fixtures) / sizeof(*fixtures))

static uint64_t number(const json_t *facts, const char *key)
{
    const json_t *v = json_object_get(facts, key);
    return json_is_integer(v) ? (uint64_t)json_integer_value(v) : 0;
}

static void check_layers(const moec_model *m, const json_t *facts)
{
    const json_t *main_layers = json_object_get(facts, "moe_layers");
    const json_t *mtp_layers = json_object_get(facts, "mtp_layers");
    size_t n_main = json_array_size(main_layers);
    size_t n_mtp = json_array_size(mtp_layers);
    assert_int_equal(moec_model_n_layers(m), n_main + n_mtp);
    for (size_t i = 0; i < n_main + n_mtp; i++) {
        const moec_moe_layer *l = moec_model_layer(m, i);
        bool mtp = i >= n_main;
        json_int_t want =
            json_integer_value(mtp ? json_array_get(mtp_layers, i - n_main)
                                   : json_array_get(main_layers, i));
        moec_layer_key key = {mtp ? MOEC_SPACE_MTP : MOEC_SPACE_MAIN,
                              mtp ? (uint32_t)(i - n_main) : (uint32_t)want};
        assert_int_equal(l->source_number, want);
        assert_int_equal(l->key.space, key.space);
        assert_int_equal(l->key.number, key.number);
        assert_int_equal(moec_model_find_layer(m, key), i);
    }
    moec_layer_key none = {MOEC_SPACE_MTP, (uint32_t)n_mtp};
    assert_int_equal(moec_model_find_layer(m, none), MOEC_NO_LAYER);
}

static void check_facts(const expected *e, const moec_model *m)
{
    json_t *file = load(e->fixture, "experts.json");
    const json_t *want = json_object_get(file, "facts");
    const moec_facts *f = moec_model_facts(m);
    assert_string_equal(f->family,
                        json_string_value(json_object_get(want, "family")));
    assert_string_equal(f->model_type,
                        json_string_value(json_object_get(want, "model_type")));
    assert_string_equal(f->activation,
                        json_string_value(json_object_get(want, "act")));
    /* "sigmoid_bias_group_top2" begins with the score function. */
    assert_memory_equal(f->score,
                        json_string_value(json_object_get(want, "router")),
                        strlen(f->score));
    assert_true(strlen(f->score) >= 5);
    assert_int_equal(f->n_experts, number(want, "E"));
    assert_int_equal(f->top_k, number(want, "K"));
    assert_int_equal(f->hidden, number(want, "H"));
    assert_int_equal(f->inter, number(want, "I"));
    assert_int_equal(f->n_shared, number(want, "S"));
    assert_int_equal(f->shared_width, number(want, "shared_width"));
    assert_int_equal(f->n_layers, number(want, "layers"));
    assert_int_equal(f->n_group, number(want, "n_group"));
    assert_int_equal(f->topk_group, number(want, "topk_group"));
    const json_t *scale = json_object_get(want, "routed_scaling_factor");
    double rsf = json_is_null(scale) ? 1.0 : json_number_value(scale);
    assert_true(f->routed_scale >= rsf && f->routed_scale <= rsf);
    assert_int_equal(f->norm_topk,
                     json_is_true(json_object_get(want, "norm_topk_prob")));
    assert_int_equal(f->shared_slots, e->shared_slots);
    assert_int_equal(f->shared_kind, e->kind);
    assert_int_equal(f->expert_dtype, e->dtype);
    assert_int_equal(f->gated, 1);
    assert_null(f->no_fuse_why);
    check_layers(m, want);
    assert_string_equal(moec_model_layer(m, 0)->experts_prefix, e->prefix);
    json_decref(file);
}

static void facts_are_the_references(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_FIXTURES; i++) {
        moec_ckpt *ckpt = open_fixture(fixtures[i].fixture);
        moec_model *m = NULL;
        moec_error err = MOEC_ERROR_INIT;
        if (moec_model_open(&m, ckpt, families, &err) != MOEC_OK)
            fail_msg("%s: %s", fixtures[i].fixture, err.text);
        assert_ptr_equal(moec_model_ckpt(m), ckpt);
        check_facts(&fixtures[i], m);
        moec_model_destroy(m);
        moec_ckpt_close(ckpt);
    }
}

/* Slices name each expert tensor once, and nothing else. */
static void slices_hold_every_expert_tensor_once(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_FIXTURES; i++) {
        moec_ckpt *ckpt = open_fixture(fixtures[i].fixture);
        moec_model *m = NULL;
        moec_error err = MOEC_ERROR_INIT;
        assert_int_equal(moec_model_open(&m, ckpt, families, &err), MOEC_OK);
        size_t n = moec_ckpt_n_tensors(ckpt);
        uint8_t *seen = calloc(n, 1);
        uint64_t bytes = 0, want = 0;
        assert_non_null(seen);
        for (size_t l = 0; l < moec_model_n_layers(m); l++) {
            const moec_layer_slices *s = moec_model_slices(m, l);
            for (size_t j = 0; j < s->n_slices; j++) {
                const moec_slice *x = &s->slices[j];
                uint32_t copies =
                    x->stacked ? moec_model_facts(m)->n_experts : x->n_tensors;
                bytes += x->bytes * copies;
                for (uint32_t t = 0; t < x->n_tensors; t++) {
                    moec_tensor_use u = moec_model_use(m, x->tensors[t]);
                    assert_int_equal(seen[x->tensors[t]]++, 0);
                    assert_int_equal(u.role, x->role);
                    assert_int_equal(u.layer, l);
                    assert_int_equal(u.is_mtp,
                                     s->layer.key.space == MOEC_SPACE_MTP);
                    if (x->n_tensors > 1)
                        assert_int_equal(u.expert, t);
                    else
                        assert_int_equal(u.expert, MOEC_NO_EXPERT);
                }
            }
        }
        for (size_t t = 0; t < n; t++) {
            moec_role role = moec_model_use(m, t).role;
            bool weights = role == MOEC_ROLE_ROUTED || role == MOEC_ROLE_SHARED;
            assert_int_equal(seen[t], weights);
            want += weights ? moec_ckpt_tensor(ckpt, t)->bytes : 0;
        }
        assert_int_equal(bytes, want);
        free(seen);
        moec_model_destroy(m);
        moec_ckpt_close(ckpt);
    }
}

static const moec_slice *slice(const moec_model *m, moec_role role,
                               moec_part part, const char *component)
{
    const moec_layer_slices *l = moec_model_slices(m, 0);
    size_t i = 0;
    while (i < l->n_slices &&
           (l->slices[i].role != role || l->slices[i].part != part ||
            strcmp(l->slices[i].component, component) != 0))
        i++;
    if (i == l->n_slices)
        fail_msg("no slice '%s' of part %d", component, (int)part);
    return &l->slices[i];
}

static void orientation_is_the_familys(void **state)
{
    static const struct {
        const char *fixture;
        moec_part part;
        uint8_t in_out, interleaved;
        uint64_t rows, columns;
    } want[] = {
        {"llama4", MOEC_PART_GATE_UP, 1, 0, 64, 64},
        {"llama4", MOEC_PART_DOWN, 1, 0, 32, 64},
        {"gpt_oss", MOEC_PART_GATE_UP, 1, 1, 64, 128},
        {"gpt_oss", MOEC_PART_DOWN, 1, 0, 64, 64},
        {"dbrx", MOEC_PART_GATE, 0, 0, 32, 64},
        {"dbrx", MOEC_PART_DOWN, 1, 0, 32, 64},
        {"mixtral", MOEC_PART_DOWN, 0, 0, 64, 32},
    };
    (void)state;
    for (size_t i = 0; i < sizeof(want) / sizeof(*want); i++) {
        moec_ckpt *ckpt = open_fixture(want[i].fixture);
        moec_model *m = NULL;
        moec_error err = MOEC_ERROR_INIT;
        assert_int_equal(moec_model_open(&m, ckpt, families, &err), MOEC_OK);
        const moec_slice *s =
            slice(m, MOEC_ROLE_ROUTED, want[i].part, "weight");
        assert_int_equal(s->in_out, want[i].in_out);
        assert_int_equal(s->interleaved, want[i].interleaved);
        assert_int_equal(s->rank, 2);
        assert_int_equal(s->shape[0], want[i].rows);
        assert_int_equal(s->shape[1], want[i].columns);
        moec_model_destroy(m);
        moec_ckpt_close(ckpt);
    }
}

static void roles_of_tensors_beside_the_experts(void **state)
{
    static const struct {
        const char *fixture, *tensor;
        moec_role role;
        uint32_t layer;
        uint8_t is_mtp;
    } want[] = {
        {"deepseek_v3", "model.layers.1.mlp.gate.weight", MOEC_ROLE_ROUTER, 0,
         0},
        {"deepseek_v3", "model.layers.1.mlp.gate.e_score_correction_bias",
         MOEC_ROLE_ROUTER, 0, 0},
        {"deepseek_v3", "model.layers.0.mlp.gate_proj.weight", MOEC_ROLE_COMMON,
         MOEC_NO_LAYER, 0},
        {"deepseek_v3", "model.layers.3.eh_proj.weight", MOEC_ROLE_COMMON, 2,
         1},
        {"deepseek_v3", "model.layers.3.mlp.gate.weight", MOEC_ROLE_ROUTER, 2,
         1},
        {"deepseek_v3", "model.norm.weight", MOEC_ROLE_COMMON, MOEC_NO_LAYER,
         0},
        {"qwen2_moe", "model.layers.2.mlp.shared_expert_gate.weight",
         MOEC_ROLE_SHARED_GATE, 1, 0},
        {"gpt_oss", "model.layers.1.mlp.router.bias", MOEC_ROLE_ROUTER, 1, 0},
        {"llama4", "vision_model.model.layers.0.mlp.fc1.weight",
         MOEC_ROLE_COMMON, MOEC_NO_LAYER, 0},
    };
    (void)state;
    for (size_t i = 0; i < sizeof(want) / sizeof(*want); i++) {
        moec_ckpt *ckpt = open_fixture(want[i].fixture);
        moec_model *m = NULL;
        moec_error err = MOEC_ERROR_INIT;
        assert_int_equal(moec_model_open(&m, ckpt, families, &err), MOEC_OK);
        size_t t = moec_ckpt_find(ckpt, want[i].tensor);
        assert_true(t != SIZE_MAX);
        moec_tensor_use u = moec_model_use(m, t);
        assert_int_equal(u.role, want[i].role);
        assert_int_equal(u.layer, want[i].layer);
        assert_int_equal(u.expert, MOEC_NO_EXPERT);
        assert_int_equal(u.is_mtp, want[i].is_mtp);
        moec_model_destroy(m);
        moec_ckpt_close(ckpt);
    }
}

/* ------------------------------------------------------------- config */

typedef struct bad_config {
    const char *fixture, *path, *value;
    moec_rule rule;
    const char *text;
} bad_config;

static const bad_config bad_configs[] = {
    {"mixtral", "model_type", "-", MOEC_RULE_C11, "model_type: is missing"},
    {"mixtral", "model_type", "3", MOEC_RULE_C05,
     "model_type: is an integer, must be a string"},
    {"mixtral", "model_type", "\"mixtrl\"", MOEC_RULE_C08,
     "did you mean 'mixtral'?"},
    {"mixtral", "model_type", "\"bert\"", MOEC_RULE_C08, "--list-families"},
    {"mixtral", "num_local_experts", "\"8\"", MOEC_RULE_C03,
     "num_local_experts: is a string, must be an integer"},
    {"mixtral", "num_local_experts", "8.0", MOEC_RULE_C03, "is a fraction"},
    {"mixtral", "num_local_experts", "true", MOEC_RULE_C03, "is a boolean"},
    {"mixtral", "num_local_experts", "[8]", MOEC_RULE_C03, "is an array"},
    {"mixtral", "num_local_experts", "-8", MOEC_RULE_C06, "is -8"},
    {"mixtral", "num_local_experts", "9999999999", MOEC_RULE_C06,
     "is 9999999999"},
    {"mixtral", "num_local_experts", "0", MOEC_RULE_C06,
     "num_local_experts: is 0, must be at least 1"},
    {"mixtral", "num_local_experts", "null", MOEC_RULE_C11,
     "num_local_experts: is missing"},
    {"mixtral", "num_local_experts", "-", MOEC_RULE_C11,
     "num_local_experts: is missing: the family 'mixtral' needs it"},
    {"mixtral", "num_local_experts", "2147483647", MOEC_RULE_C07,
     "layer main 0: expert 8 of 2147483647 has no tensor "
     "'model.layers.0.block_sparse_moe.experts.8."},
    {"mixtral", "num_local_experts", "7", MOEC_RULE_C07,
     "is of expert 7, config.json has 7 experts"},
    {"mixtral", "num_experts", "9", MOEC_RULE_C07,
     "num_experts: differs from 'num_local_experts'"},
    {"mixtral", "num_experts_per_tok", "9", MOEC_RULE_C06,
     "num_experts_per_tok 9 is more than num_local_experts 8"},
    {"mixtral", "num_experts_per_tok", "0", MOEC_RULE_C06, "is 0"},
    {"mixtral", "hidden_size", "65", MOEC_RULE_C07,
     "projection of 32 features from 65"},
    {"mixtral", "intermediate_size", "64", MOEC_RULE_C07,
     "projection of 64 features from 64"},
    {"mixtral", "num_hidden_layers", "4", MOEC_RULE_C07,
     "config.json has 4 layers, the last one of the tensors is number 2"},
    {"mixtral", "num_hidden_layers", "2", MOEC_RULE_C07, "has 2 layers"},
    {"mixtral", "num_hidden_layers", "2147483647", MOEC_RULE_C07,
     "has 2147483647 layers"},
    {"mixtral", "hidden_act", "1", MOEC_RULE_C05, "hidden_act: is an integer"},
    {"deepseek_v3", "routed_scaling_factor", "\"2.5\"", MOEC_RULE_C04,
     "routed_scaling_factor: is a string, must be a number"},
    {"deepseek_v3", "routed_scaling_factor", "true", MOEC_RULE_C04,
     "is a boolean"},
    {"deepseek_v3", "routed_scaling_factor", "-1.0", MOEC_RULE_C06,
     "must not be negative"},
    {"deepseek_v3", "scoring_func", "7", MOEC_RULE_C05, "scoring_func"},
    {"deepseek_v3", "norm_topk_prob", "1", MOEC_RULE_C02,
     "norm_topk_prob: is an integer, must be a boolean"},
    {"deepseek_v3", "n_group", "3", MOEC_RULE_C06,
     "n_group 3 does not divide n_routed_experts 16"},
    {"deepseek_v3", "topk_group", "5", MOEC_RULE_C06,
     "topk_group 5 must be between 1 and n_group 4"},
    {"deepseek_v3", "topk_group", "0", MOEC_RULE_C06, "topk_group 0"},
    {"deepseek_v3", "num_experts_per_tok", "9", MOEC_RULE_C06,
     "num_experts_per_tok 9 is more than the 8 experts of the kept groups"},
    {"deepseek_v3", "n_shared_experts", "2", MOEC_RULE_C07,
     "mlp.shared_experts.gate_proj.weight"},
    {"deepseek_v3", "n_shared_experts", "0", MOEC_RULE_C07,
     "is of a shared expert, config.json has none"},
    {"deepseek_v3", "first_k_dense_replace", "0", MOEC_RULE_C07,
     "layer main 0 is a MoE layer by config.json, and dense or absent"},
    {"deepseek_v3", "first_k_dense_replace", "2", MOEC_RULE_C07,
     "layer main 1 is dense by config.json, and a MoE layer"},
    {"deepseek_v3", "moe_layer_freq", "2", MOEC_RULE_C07, "layer main 1"},
    {"deepseek_v3", "moe_layer_freq", "0", MOEC_RULE_C06,
     "moe_layer_freq: is 0"},
    {"deepseek_v3", "moe_layer_freq", "[0, 1]", MOEC_RULE_C07,
     "is about 2 layers, the model has 3"},
    {"deepseek_v3", "moe_layer_freq", "[0, 1, 2]", MOEC_RULE_C06,
     "moe_layer_freq[2]: is 2, must be 0 or 1"},
    {"deepseek_v3", "moe_layer_freq", "[0, 1, 0]", MOEC_RULE_C07,
     "layer main 2 is dense"},
    {"deepseek_v3", "num_nextn_predict_layers", "0", MOEC_RULE_C07,
     "is of MTP layer 0, config.json has 0"},
    {"deepseek_v3", "num_hidden_layers", "2", MOEC_RULE_C07,
     "is of MTP layer 1, config.json has 1"},
    {"deepseek_v3", "num_hidden_layers", "5", MOEC_RULE_C07, "has 5 layers"},
    {"deepseek_v3_fp8", "quantization_config.weight_block_size", "[64, 128]",
     MOEC_RULE_C07, "weight_scale_inv"},
    {"deepseek_v3_fp8", "quantization_config.weight_block_size", "[0, 128]",
     MOEC_RULE_C06, "is 0"},
    {"deepseek_v3_fp8", "quantization_config.weight_block_size", "128",
     MOEC_RULE_C03, "must be a list of two integers"},
    {"qwen2_moe", "mlp_only_layers", "[]", MOEC_RULE_C07,
     "layer main 1 is a MoE layer by config.json"},
    {"qwen2_moe", "mlp_only_layers", "[3]", MOEC_RULE_C06,
     "names layer 3 of 3 layers"},
    {"qwen2_moe", "mlp_only_layers", "[\"1\"]", MOEC_RULE_C03,
     "mlp_only_layers[0]: is a string"},
    {"qwen2_moe", "mlp_only_layers", "1", MOEC_RULE_C03, "is not a list"},
    {"qwen2_moe", "shared_expert_intermediate_size", "-", MOEC_RULE_C11,
     "shared_expert_intermediate_size: is missing"},
    {"qwen2_moe", "shared_expert_intermediate_size", "64", MOEC_RULE_C07,
     "mlp.shared_expert."},
    {"qwen2_moe", "decoder_sparse_step", "2", MOEC_RULE_C07, "layer main 0"},
    {"llama4", "text_config.moe_layers", "[1]", MOEC_RULE_C07, "layer main 3"},
    {"llama4", "text_config.num_local_experts", "4", MOEC_RULE_C07,
     "config.json has 4 experts: they do not stack"},
    {"llama4", "text_config", "-", MOEC_RULE_C11, "num_local_experts"},
    {"dbrx", "ffn_config.moe_num_experts", "7", MOEC_RULE_C07,
     "they do not stack"},
    {"dbrx", "ffn_config.moe_num_experts", "4", MOEC_RULE_C07, "[64, 64]"},
    {"dbrx", "ffn_config", "-", MOEC_RULE_C11,
     "ffn_config.moe_num_experts: is missing"},
};

static void each_mistake_of_a_config_is_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(bad_configs) / sizeof(*bad_configs); i++) {
        const bad_config *b = &bad_configs[i];
        moec_ckpt *ckpt = open_fixture(b->fixture);
        json_t *config = load(b->fixture, "config.json");
        moec_model *m = NULL;
        moec_error err = MOEC_ERROR_INIT;
        set(config, b->path, b->value);
        moec_status st = create(&m, ckpt, config, &err);
        if (st == MOEC_OK || m != NULL || err.rule != b->rule ||
            strstr(err.text, b->text) == NULL)
            fail_msg("%s: %s = %s\n  want %s\n  have %s", b->fixture, b->path,
                     b->value, b->text, st == MOEC_OK ? "none" : err.text);
        assert_int_equal(st, b->rule == MOEC_RULE_C08 ? MOEC_E_UNSUPPORTED
                                                      : MOEC_E_FORMAT);
        json_decref(config);
        moec_ckpt_close(ckpt);
    }
}

static void a_config_must_be_strict_json(void **state)
{
    static const struct {
        const char *text;
        moec_rule rule;
    } want[] = {
        {"", MOEC_RULE_C02},
        {"[]", MOEC_RULE_C02},
        {"{\"model_type\": \"mixtral\",}", MOEC_RULE_C02},
        {"{\"model_type\": \"a\", \"model_type\": \"b\"}", MOEC_RULE_C02},
        {"\xef\xbb\xbf{}", MOEC_RULE_C02},
        {"{\"x\": \"\xff\"}", MOEC_RULE_C02},
        {"{\"x\": NaN}", MOEC_RULE_C04},
        {"{\"x\": Infinity}", MOEC_RULE_C04},
        {"{\"x\": -Infinity}", MOEC_RULE_C04},
        {"{\"x\": 1e999}", MOEC_RULE_C04},
        {"{\"x\": 99999999999999999999}", MOEC_RULE_C03},
        {"{}", MOEC_RULE_C11},
    };
    moec_ckpt *ckpt = open_fixture("mixtral");
    (void)state;
    for (size_t i = 0; i < sizeof(want) / sizeof(*want); i++) {
        moec_model *m = NULL;
        moec_error err = MOEC_ERROR_INIT;
        moec_status st = moec_model_create(&m, ckpt, families, want[i].text,
                                           strlen(want[i].text), &err);
        if (st != MOEC_E_FORMAT || err.rule != want[i].rule)
            fail_msg("%s: %d %s", want[i].text, (int)st, err.text);
        assert_null(m);
    }
    moec_ckpt_close(ckpt);
}

static void what_configs_may_say_otherwise_is_accepted(void **state)
{
    static const struct {
        const char *fixture, *path, *value;
    } want[] = {
        {"deepseek_v3", "routed_scaling_factor", "null"},
        {"deepseek_v3", "routed_scaling_factor", "0"},
        {"deepseek_v3", "routed_scaling_factor", "3"},
        {"deepseek_v3", "moe_layer_freq", "[0, 1, 1]"},
        {"deepseek_v3", "moe_layer_freq", "[0, 1, 1, 1]"},
        {"deepseek_v3", "num_nextn_predict_layers", "null"},
        {"deepseek_v3", "num_nextn_predict_layers", "-"},
        {"deepseek_v3", "num_experts", "16"},
        {"deepseek_v3", "model_type", "\"deepseek_v32\""},
        {"mixtral", "num_experts", "8"},
        {"glm4_moe", "scoring_func", "null"},
        {"glm4_moe", "mlp_layer_types", "[\"dense\", \"sparse\", \"sparse\"]"},
        {"qwen3_moe", "mlp_only_layers", "null"},
        {"llama4", "text_config.moe_layers", "-"},
        {"llama4", "model_type", "\"some_wrapper\""},
        {"dbrx", "ffn_config.moe_normalize_expert_weights", "null"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof(want) / sizeof(*want); i++) {
        moec_ckpt *ckpt = open_fixture(want[i].fixture);
        json_t *config = load(want[i].fixture, "config.json");
        moec_model *m = NULL;
        moec_error err = MOEC_ERROR_INIT;
        set(config, want[i].path, want[i].value);
        if (create(&m, ckpt, config, &err) != MOEC_OK)
            fail_msg("%s = %s: %s", want[i].path, want[i].value, err.text);
        double rsf = moec_model_facts(m)->routed_scale;
        if (strcmp(want[i].path, "routed_scaling_factor") == 0)
            assert_int_equal((int)rsf, *want[i].value == '3' ? 3 : 1);
        if (strcmp(want[i].value, "\"some_wrapper\"") == 0)
            assert_string_equal(moec_model_facts(m)->model_type, "llama4_text");
        moec_model_destroy(m);
        json_decref(config);
        moec_ckpt_close(ckpt);
    }
}

/* ------------------------------------------------------------ headers */

static void a_missing_expert_is_named(void **state)
{
    hc_list l = tensors_of("mixtral");
    (void)state;
    hc_drop(&l, "model.layers.1.block_sparse_moe.experts.5.w2.weight");
    expect_refusal("mixtral", &l, MOEC_E_FORMAT, MOEC_RULE_C07,
                   "layer main 1: expert 5 of 8 has no tensor "
                   "'model.layers.1.block_sparse_moe.experts.5.w2.weight'");
    l = tensors_of("deepseek_v3");
    hc_drop(&l, "model.layers.3.mlp.experts.15.up_proj.weight");
    expect_refusal("deepseek_v3", &l, MOEC_E_FORMAT, MOEC_RULE_C07,
                   "layer mtp 0: expert 15 of 16 has no tensor "
                   "'model.layers.3.mlp.experts.15.up_proj.weight'");
}

static void a_missing_part_scale_router_or_shared_is_named(void **state)
{
    char name[96];
    (void)state;
    hc_list l = tensors_of("mixtral");
    for (int e = 0; e < 8; e++) {
        snprintf(name, sizeof(name),
                 "model.layers.0.block_sparse_moe.experts.%d.w1.weight", e);
        hc_drop(&l, name);
    }
    expect_refusal("mixtral", &l, MOEC_E_FORMAT, MOEC_RULE_C07,
                   "experts.0.w1.weight'");
    l = tensors_of("deepseek_v3_fp8");
    for (int e = 0; e < 8; e++) {
        snprintf(name, sizeof(name),
                 "model.layers.2.mlp.experts.%d.down_proj.weight_scale_inv", e);
        hc_drop(&l, name);
    }
    expect_refusal("deepseek_v3_fp8", &l, MOEC_E_FORMAT, MOEC_RULE_C07,
                   "expert 0 of 8 has no tensor 'model.layers.2.mlp.experts.0."
                   "down_proj.weight_scale_inv'");
    l = tensors_of("mixtral");
    hc_drop(&l, "model.layers.2.block_sparse_moe.gate.weight");
    expect_refusal("mixtral", &l, MOEC_E_FORMAT, MOEC_RULE_C07,
                   "layer main 2 has no tensor "
                   "'model.layers.2.block_sparse_moe.gate.weight'");
    l = tensors_of("qwen3_next");
    hc_drop(&l, "model.layers.1.mlp.shared_expert_gate.weight");
    expect_refusal("qwen3_next", &l, MOEC_E_FORMAT, MOEC_RULE_C07,
                   "mlp.shared_expert_gate.weight'");
    l = tensors_of("qwen3_next");
    hc_drop(&l, "model.layers.1.mlp.shared_expert.up_proj.weight");
    expect_refusal("qwen3_next", &l, MOEC_E_FORMAT, MOEC_RULE_C07,
                   "'model.layers.1.mlp.shared_expert.up_proj.weight'");
    l = tensors_of("qwen3_next");
    hc_drop(&l, "model.layers.1.mlp.shared_expert.up_proj.weight");
    hc_drop(&l, "model.layers.1.mlp.shared_expert.gate_proj.weight");
    hc_drop(&l, "model.layers.1.mlp.shared_expert.down_proj.weight");
    expect_refusal("qwen3_next", &l, MOEC_E_FORMAT, MOEC_RULE_C07,
                   "layer main 1 has no shared expert");
}

static void the_odd_expert_is_named(void **state)
{
    static const char *const odd[] = {"0", "4", "7"};
    char name[96], text[160];
    (void)state;
    for (size_t i = 0; i < 3; i++) {
        hc_list l = tensors_of("mixtral");
        snprintf(name, sizeof(name),
                 "model.layers.1.block_sparse_moe.experts.%s.w3.weight",
                 odd[i]);
        hc_find(&l, name)->dtype = MOEC_DTYPE_F16;
        snprintf(text, sizeof(text),
                 "tensor '%s' is F16 [32, 64], the other "
                 "experts' are BF16 [32, 64]",
                 name);
        expect_refusal("mixtral", &l, MOEC_E_MIXED, MOEC_RULE_C12, text);
    }
    hc_list l = tensors_of("mixtral");
    hc_find(&l, "model.layers.0.block_sparse_moe.experts.3.w2.weight")
        ->shape[0] = 48;
    expect_refusal("mixtral", &l, MOEC_E_MIXED, MOEC_RULE_C12,
                   "experts.3.w2.weight' is BF16 [48, 32]");
}

static void up_must_be_like_gate(void **state)
{
    char name[96];
    (void)state;
    hc_list l = tensors_of("mixtral");
    for (int e = 0; e < 8; e++) {
        snprintf(name, sizeof(name),
                 "model.layers.0.block_sparse_moe.experts.%d.w3.weight", e);
        hc_find(&l, name)->dtype = MOEC_DTYPE_F16;
    }
    expect_refusal("mixtral", &l, MOEC_E_MIXED, MOEC_RULE_C12,
                   "experts.0.w3.weight' is F16 [32, 64], its gate");
}

static void a_transposed_projection_is_refused(void **state)
{
    char name[96];
    (void)state;
    hc_list l = tensors_of("mixtral");
    for (int e = 0; e < 8; e++) {
        snprintf(name, sizeof(name),
                 "model.layers.0.block_sparse_moe.experts.%d.w1.weight", e);
        hc_tensor *t = hc_find(&l, name);
        t->shape[0] = 64;
        t->shape[1] = 32;
    }
    expect_refusal("mixtral", &l, MOEC_E_FORMAT, MOEC_RULE_C07,
                   "experts.0.w1.weight' is [64, 32]");
    l = tensors_of("llama4");
    hc_tensor *t = hc_find(
        &l, "language_model.model.layers.1.feed_forward.experts.down_proj");
    t->shape[1] = 64;
    t->shape[2] = 32;
    expect_refusal("llama4", &l, MOEC_E_FORMAT, MOEC_RULE_C07,
                   "experts.down_proj' is [8, 64, 32]");
    l = tensors_of("deepseek_v3");
    t = hc_find(&l, "model.layers.1.mlp.gate.weight");
    t->shape[0] = 64;
    t->shape[1] = 16;
    expect_refusal("deepseek_v3", &l, MOEC_E_FORMAT, MOEC_RULE_C07,
                   "mlp.gate.weight' is [64, 16], must be [16, 64]");
}

static void strange_names_among_experts_are_refused(void **state)
{
    static const struct {
        const char *fixture, *name;
    } want[] = {
        {"mixtral", "model.layers.0.block_sparse_moe.experts.0.w1.weight_x"},
        {"mixtral", "model.layers.0.block_sparse_moe.experts.01.w1.weight"},
        {"mixtral", "model.layers.0.block_sparse_moe.experts.w1.weight"},
        {"mixtral", "model.layers.02.block_sparse_moe.experts.1.w1.weight"},
        {"deepseek_v3", "model.layers.1.mlp.shared_experts.0.up_proj.weight"},
        {"qwen3_moe", "model.layers.1.mlp.shared_expert.up_proj.weight"},
        {"deepseek_v3", "model.layers.0.mlp.experts.e_score_correction_bias"},
        {"gpt_oss", "model.layers.0.mlp.experts.down_proj_zeros"},
    };
    const uint64_t shape[1] = {4};
    (void)state;
    for (size_t i = 0; i < sizeof(want) / sizeof(*want); i++) {
        hc_list l = tensors_of(want[i].fixture);
        hc_add(&l, want[i].name, MOEC_DTYPE_F32, 1, shape);
        expect_refusal(want[i].fixture, &l, MOEC_E_MAPPING, MOEC_RULE_T1,
                       want[i].name);
    }
}

static void names_outside_the_experts_are_common(void **state)
{
    static const char *const names[] = {
        "model.layers.0.mlp.experts_norm.weight",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.layers.007.extra", "model.layers.1.mlp.f.007",
        "x.model.layers.0.mlp.experts.0.w"};
    const uint64_t shape[1] = {4};
    moec_error err = MOEC_ERROR_INIT;
    hc_list l = tensors_of("deepseek_v3");
    (void)state;
    for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
        hc_add(&l, names[i], MOEC_DTYPE_F32, 1, shape);
    if (edited("deepseek_v3", &l, NULL, NULL, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    free(l.t);
}

static void names_of_fillers_are_refused(void **state)
{
    const uint64_t shape[1] = {4};
    hc_list l = tensors_of("mixtral");
    (void)state;
    hc_add(&l, "__pad.0", MOEC_DTYPE_U8, 1, shape);
    expect_refusal("mixtral", &l, MOEC_E_FORMAT, MOEC_RULE_H24, "'__pad.0'");
}

static void an_expert_too_many_is_refused(void **state)
{
    const uint64_t shape[2] = {32, 64};
    hc_list l = tensors_of("mixtral");
    (void)state;
    hc_add(&l, "model.layers.0.block_sparse_moe.experts.8.w1.weight",
           MOEC_DTYPE_BF16, 2, shape);
    expect_refusal("mixtral", &l, MOEC_E_FORMAT, MOEC_RULE_C07,
                   "is of expert 8, config.json has 8 experts (0 to 7)");
}

static void a_layer_in_two_layouts_is_refused(void **state)
{
    const uint64_t shape[3] = {8, 64, 32};
    hc_list l = tensors_of("mixtral");
    (void)state;
    hc_add(&l, "model.layers.0.mlp.experts.down_proj", MOEC_DTYPE_BF16, 3,
           shape);
    expect_refusal("mixtral", &l, MOEC_E_FORMAT, MOEC_RULE_C10,
                   "belong to different layouts of the family 'mixtral'");
}

/* The fixture's experts as transformers 5 saves them when told to. */
static hc_list restacked(void)
{
    const uint64_t gate_up[3] = {10, 64, 64}, down[3] = {10, 64, 32};
    hc_list l = tensors_of("qwen3_moe");
    char name[96];
    size_t n = 0;
    for (size_t i = 0; i < l.n; i++)
        if (strstr(l.t[i].name, ".mlp.experts.") == NULL)
            l.t[n++] = l.t[i];
    l.n = n;
    for (int i = 0; i < 3; i++) {
        snprintf(name, sizeof(name), "model.layers.%d.mlp.experts.gate_up_proj",
                 i);
        hc_add(&l, name, MOEC_DTYPE_BF16, 3, gate_up);
        snprintf(name, sizeof(name), "model.layers.%d.mlp.experts.down_proj",
                 i);
        hc_add(&l, name, MOEC_DTYPE_BF16, 3, down);
    }
    return l;
}

static void a_restacked_model_is_read_as_stacked(void **state)
{
    hc_list l = restacked();
    moec_ckpt *ckpt = hc_open(&l);
    json_t *config = load("qwen3_moe", "config.json");
    moec_model *m = NULL;
    moec_error err = MOEC_ERROR_INIT;
    (void)state;
    if (create(&m, ckpt, config, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    const moec_slice *s =
        slice(m, MOEC_ROLE_ROUTED, MOEC_PART_GATE_UP, "weight");
    assert_int_equal(s->stacked, 1);
    assert_int_equal(s->in_out, 0);
    assert_int_equal(s->shape[0], 64);
    assert_int_equal(s->bytes, 64 * 64 * 2);
    assert_string_equal(moec_model_layer(m, 0)->experts_prefix,
                        "model.layers.0.mlp.experts");
    moec_model_destroy(m);
    json_decref(config);
    moec_ckpt_close(ckpt);
    free(l.t);
}

/* gpt_oss as published: blocks of 32 elements, a scale each. */
static void mxfp4_blocks_and_scales_are_read(void **state)
{
    static const struct {
        const char *tail;
        uint32_t rank;
        uint64_t shape[4];
    } packed[] = {
        {"gate_up_proj_blocks", 4, {8, 128, 2, 16}},
        {"gate_up_proj_scales", 3, {8, 128, 2}},
        {"down_proj_blocks", 4, {8, 64, 2, 16}},
        {"down_proj_scales", 3, {8, 64, 2}},
    };
    hc_list l = tensors_of("gpt_oss");
    json_t *config = load("gpt_oss", "config.json");
    moec_model *m = NULL;
    moec_error err = MOEC_ERROR_INIT;
    char name[96];
    (void)state;
    for (int i = 0; i < 2; i++) {
        snprintf(name, sizeof(name), "model.layers.%d.mlp.experts.down_proj",
                 i);
        hc_drop(&l, name);
        snprintf(name, sizeof(name), "model.layers.%d.mlp.experts.gate_up_proj",
                 i);
        hc_drop(&l, name);
        for (size_t t = 0; t < 4; t++) {
            snprintf(name, sizeof(name), "model.layers.%d.mlp.experts.%s", i,
                     packed[t].tail);
            hc_add(&l, name, MOEC_DTYPE_U8, packed[t].rank, packed[t].shape);
        }
    }
    moec_ckpt *ckpt = hc_open(&l);
    if (create(&m, ckpt, config, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    assert_int_equal(moec_model_facts(m)->expert_dtype, MOEC_DTYPE_U8);
    const moec_slice *s =
        slice(m, MOEC_ROLE_ROUTED, MOEC_PART_GATE_UP, "blocks");
    assert_int_equal(s->in_out, 0);
    assert_int_equal(s->interleaved, 1);
    assert_int_equal(s->rank, 3);
    assert_int_equal(s->shape[0], 128);
    assert_int_equal(s->bytes, 128 * 2 * 16);
    s = slice(m, MOEC_ROLE_ROUTED, MOEC_PART_GATE_UP, "bias");
    assert_int_equal(s->geometry, MOEC_GEO_OUT_VECTOR);
    moec_model_destroy(m);
    moec_ckpt_close(ckpt);
    json_decref(config);
    free(l.t);
}

/* Routed experts as compressed-tensors packs them: int4 in groups of 32,
 * shared ones in bf16 (Kimi-K2-Thinking). */
static void packed_int4_beside_bf16_is_read_and_not_fused(void **state)
{
    hc_list l = tensors_of("deepseek_v3");
    json_t *config = load("deepseek_v3", "config.json");
    moec_model *m = NULL;
    moec_error err = MOEC_ERROR_INIT;
    char name[160];
    size_t n = l.n;
    (void)state;
    for (size_t i = 0; i < n; i++) {
        hc_tensor t = l.t[i];
        if (strstr(t.name, ".mlp.experts.") == NULL)
            continue;
        const uint64_t record[1] = {2};
        const uint64_t packed[2] = {t.shape[0], t.shape[1] / 8};
        const uint64_t scale[2] = {t.shape[0], t.shape[1] / 32};
        size_t stem = strlen(t.name) - strlen("weight");
        snprintf(name, sizeof(name), "%.*sweight_shape", (int)stem, t.name);
        hc_add(&l, name, MOEC_DTYPE_I32, 1, record);
        snprintf(name, sizeof(name), "%.*sweight_scale", (int)stem, t.name);
        hc_add(&l, name, MOEC_DTYPE_BF16, 2, scale);
        snprintf(l.t[i].name, sizeof(l.t[i].name), "%.*sweight_packed",
                 (int)stem, t.name);
        l.t[i].dtype = MOEC_DTYPE_I32;
        memcpy(l.t[i].shape, packed, sizeof(packed));
    }
    moec_ckpt *ckpt = hc_open(&l);
    if (create(&m, ckpt, config, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    const moec_facts *f = moec_model_facts(m);
    assert_int_equal(f->expert_dtype, MOEC_DTYPE_I32);
    assert_int_equal(f->shared_slots, 0);
    assert_string_equal(f->no_fuse_why,
                        "layer main 1: the routed experts have "
                        "'weight_packed', the shared have none");
    const moec_slice *s =
        slice(m, MOEC_ROLE_ROUTED, MOEC_PART_UP, "weight_shape");
    assert_int_equal(s->geometry, MOEC_GEO_RECORD);
    moec_model_destroy(m);
    moec_ckpt_close(ckpt);
    json_decref(config);
    free(l.t);
}

/* A family like qwen3_moe but with the stacked layout in two orientations. */
static const char two_ways[] =
    "{\"schema\": \"moec.family/1\", \"family\": \"two_ways\","
    "\"model_types\": [\"qwen3_moe\"],"
    "\"layers\": [{\"prefix\": \"model.layers.{L}.\"}],"
    "\"namespaces\": [\"mlp.experts\"], \"experts\": \"mlp.experts\","
    "\"variants\": [{\"name\": \"straight\", \"tensors\": ["
    "{\"name\": \"mlp.experts.gate_up_proj\", \"role\": \"routed\","
    " \"part\": \"gate_up\", \"stack\": \"experts\"},"
    "{\"name\": \"mlp.experts.down_proj\", \"role\": \"routed\","
    " \"part\": \"down\", \"stack\": \"experts\"}]},"
    "{\"name\": \"turned\", \"tensors\": ["
    "{\"name\": \"mlp.experts.gate_up_proj\", \"role\": \"routed\","
    " \"part\": \"gate_up\", \"stack\": \"experts\","
    " \"orientation\": \"in_out\"},"
    "{\"name\": \"mlp.experts.down_proj\", \"role\": \"routed\","
    " \"part\": \"down\", \"stack\": \"experts\"%s}]}],"
    "\"config\": {\"n_experts\": {\"keys\": [\"num_experts\"]},"
    "\"top_k\": {\"keys\": [\"num_experts_per_tok\"]},"
    "\"hidden\": {\"keys\": [\"hidden_size\"]},"
    "\"inter\": {\"keys\": [\"moe_intermediate_size\"]},"
    "\"n_layers\": {\"keys\": [\"num_hidden_layers\"]},"
    "\"score\": {\"default\": \"softmax\"},"
    "\"activation\": {\"default\": \"silu\"}},"
    "\"moe_layers\": [{\"kind\": \"all\"}]}";

static moec_status with_family(const char *extra, moec_error *err,
                               uint8_t *in_out)
{
    char text[sizeof(two_ways) + 64];
    moec_families *fs = NULL, *ours = families;
    hc_list l = restacked();
    moec_ckpt *ckpt = hc_open(&l);
    json_t *config = load("qwen3_moe", "config.json");
    moec_model *m = NULL;
    snprintf(text, sizeof(text), two_ways, extra);
    assert_int_equal(moec_families_create(&fs, err), MOEC_OK);
    if (moec_families_add(fs, "two.json", text, strlen(text), err) != MOEC_OK)
        fail_msg("%s", err->text);
    families = fs;
    moec_status st = create(&m, ckpt, config, err);
    families = ours;
    if (st == MOEC_OK) {
        assert_string_equal(moec_model_facts(m)->family, "two_ways");
        *in_out =
            slice(m, MOEC_ROLE_ROUTED, MOEC_PART_GATE_UP, "weight")->in_out;
    }
    /* A model retains nothing of its registry. */
    moec_families_destroy(fs);
    if (st == MOEC_OK)
        assert_string_equal(moec_model_facts(m)->model_type, "qwen3_moe");
    moec_model_destroy(m);
    json_decref(config);
    moec_ckpt_close(ckpt);
    free(l.t);
    return st;
}

/* 2I == H: gate_up has one shape in both orientations. Where down tells them
 * apart the model is read; where it does not, it is refused. */
static void square_tensors_are_ambiguous_until_told_apart(void **state)
{
    moec_error err = MOEC_ERROR_INIT;
    uint8_t in_out = 9;
    (void)state;
    moec_status st =
        with_family(", \"orientation\": \"in_out\"", &err, &in_out);
    if (st != MOEC_OK)
        fail_msg("%s", err.text);
    assert_int_equal(in_out, 0);
    assert_int_equal(with_family("", &err, &in_out), MOEC_E_FORMAT);
    assert_int_equal(err.rule, MOEC_RULE_C10);
    assert_non_null(strstr(err.text, "layouts 'straight' and 'turned'"));
}

static void mtp_layers_may_have_been_left_out(void **state)
{
    moec_error err = MOEC_ERROR_INIT;
    hc_list l = tensors_of("deepseek_v3");
    size_t n = 0;
    (void)state;
    for (size_t i = 0; i < l.n; i++)
        if (strncmp(l.t[i].name, "model.layers.3.", 15) != 0)
            l.t[n++] = l.t[i];
    assert_true(n < l.n);
    l.n = n;
    if (edited("deepseek_v3", &l, NULL, NULL, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    free(l.t);
}

static void mtp_modules_are_told_by_their_names(void **state)
{
    static const char *const moe[] = {
        "mlp.gate.weight",
        "mlp.shared_expert_gate.weight",
        "mlp.shared_expert.gate_proj.weight",
        "mlp.shared_expert.up_proj.weight",
        "mlp.shared_expert.down_proj.weight",
    };
    const uint64_t shape[1] = {64};
    hc_list l = tensors_of("qwen3_next");
    size_t n = l.n;
    (void)state;
    for (size_t i = 0; i < n; i++) {
        hc_tensor t = l.t[i];
        bool wanted = strncmp(t.name, "model.layers.2.mlp.", 19) == 0;
        if (!wanted)
            continue;
        char name[160];
        snprintf(name, sizeof(name), "mtp.layers.0.%.120s", t.name + 15);
        hc_add(&l, name, t.dtype, t.rank, t.shape);
    }
    assert_true(l.n >= n + sizeof(moe) / sizeof(*moe));
    hc_add(&l, "mtp.norm.weight", MOEC_DTYPE_BF16, 1, shape);
    moec_ckpt *ckpt = hc_open(&l);
    json_t *config = load("qwen3_next", "config.json");
    moec_model *m = NULL;
    moec_error err = MOEC_ERROR_INIT;
    if (create(&m, ckpt, config, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    assert_int_equal(moec_model_n_layers(m), 4);
    const moec_moe_layer *last = moec_model_layer(m, 3);
    assert_int_equal(last->key.space, MOEC_SPACE_MTP);
    assert_int_equal(last->key.number, 0);
    assert_string_equal(last->experts_prefix, "mtp.layers.0.mlp.experts");
    for (size_t i = 0; i < moec_ckpt_n_tensors(ckpt); i++) {
        const char *name = moec_ckpt_tensor(ckpt, i)->name;
        assert_int_equal(moec_model_use(m, i).is_mtp,
                         strncmp(name, "mtp.", 4) == 0);
    }
    moec_model_destroy(m);
    json_decref(config);
    moec_ckpt_close(ckpt);
    free(l.t);
}

/* ------------------------------------------------------------- fusion */

/* The reason why the edited model does not fuse, or fail. */
static void expect_no_fusion(const char *fixture, hc_list *l, const char *path,
                             const char *value, const char *text)
{
    moec_ckpt *ckpt = hc_open(l);
    json_t *config = load(fixture, "config.json");
    moec_model *m = NULL;
    moec_error err = MOEC_ERROR_INIT;
    if (path != NULL)
        set(config, path, value);
    if (create(&m, ckpt, config, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    const moec_facts *f = moec_model_facts(m);
    assert_int_equal(f->shared_slots, 0);
    assert_non_null(f->no_fuse_why);
    if (strstr(f->no_fuse_why, text) == NULL)
        fail_msg("want %s\nhave %s", text, f->no_fuse_why);
    moec_model_destroy(m);
    json_decref(config);
    moec_ckpt_close(ckpt);
    free(l->t);
}

/* Apply to each tensor of the shared experts of `fixture`. */
static hc_list shared_as(const char *fixture, moec_dtype dtype)
{
    hc_list l = tensors_of(fixture);
    for (size_t i = 0; i < l.n; i++)
        if (strstr(l.t[i].name, "mlp.shared_expert") != NULL &&
            strstr(l.t[i].name, "_gate.weight") == NULL &&
            strstr(l.t[i].name, "scale") == NULL)
            l.t[i].dtype = dtype;
    return l;
}

static void a_shared_expert_of_another_dtype_stays_apart(void **state)
{
    hc_list l = shared_as("deepseek_v3", MOEC_DTYPE_F16);
    (void)state;
    expect_no_fusion("deepseek_v3", &l, NULL, NULL,
                     "layer main 1: 'weight' of the shared expert is of "
                     "another dtype");
}

static void a_shared_expert_without_scales_stays_apart(void **state)
{
    hc_list l = shared_as("deepseek_v3_fp8", MOEC_DTYPE_BF16);
    size_t n = 0;
    (void)state;
    for (size_t i = 0; i < l.n; i++)
        if (strstr(l.t[i].name, "mlp.shared_experts") == NULL ||
            strstr(l.t[i].name, "scale") == NULL)
            l.t[n++] = l.t[i];
    l.n = n;
    expect_no_fusion("deepseek_v3_fp8", &l, NULL, NULL,
                     "'weight' of the shared expert is of another dtype");
}

/* deepseek_v3_fp8 with a shared expert twice as wide, in blocks of 128. */
static hc_list wide_fp8(const char *fixture, uint64_t width)
{
    hc_list l = tensors_of(fixture);
    for (size_t i = 0; i < l.n; i++) {
        hc_tensor *t = &l.t[i];
        bool down = strstr(t->name, "down_proj") != NULL;
        bool scale = strstr(t->name, "scale") != NULL;
        if (strstr(t->name, "mlp.shared_experts") != NULL)
            t->shape[down ? 1 : 0] = scale ? (width + 127) / 128 : width;
    }
    return l;
}

static void a_wide_shared_expert_is_cut_at_blocks_only(void **state)
{
    hc_list l = wide_fp8("deepseek_v3_fp8", 256);
    moec_ckpt *ckpt = hc_open(&l);
    json_t *config = load("deepseek_v3_fp8", "config.json");
    moec_model *m = NULL;
    moec_error err = MOEC_ERROR_INIT;
    (void)state;
    set(config, "n_shared_experts", "2");
    if (create(&m, ckpt, config, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    assert_int_equal(moec_model_facts(m)->shared_slots, 2);
    moec_model_destroy(m);
    m = NULL;
    /* The same without a stated block: 128 of 128 rows is a power of two. */
    set(config, "quantization_config", "-");
    assert_int_equal(create(&m, ckpt, config, &err), MOEC_OK);
    assert_int_equal(moec_model_facts(m)->shared_slots, 2);
    moec_model_destroy(m);
    json_decref(config);
    moec_ckpt_close(ckpt);
    free(l.t);
    /* I = 192 = 128 + 64: the second part would begin inside a block. */
    l = wide_fp8("deepseek_v3_fp8_ragged", 384);
    expect_no_fusion("deepseek_v3_fp8_ragged", &l, "n_shared_experts", "2",
                     "is not cut at borders of its blocks");
}

static void a_width_that_is_no_multiple_stays_apart(void **state)
{
    hc_list l = tensors_of("qwen3_next");
    (void)state;
    for (size_t i = 0; i < l.n; i++)
        if (strstr(l.t[i].name, "mlp.shared_expert.") != NULL)
            l.t[i].shape[strstr(l.t[i].name, "down") != NULL ? 1 : 0] = 48;
    expect_no_fusion("qwen3_next", &l, "shared_expert_intermediate_size", "48",
                     "the shared expert's width 48 is no multiple of the "
                     "routed experts' 32");
}

static void biases_on_one_side_keep_apart(void **state)
{
    static const char *const parts[] = {"gate_proj", "up_proj", "down_proj"};
    const uint64_t sizes[] = {32, 32, 64};
    char name[96];
    hc_list l = tensors_of("deepseek_v3");
    (void)state;
    for (int i = 1; i <= 3; i++)
        for (size_t p = 0; p < 3; p++) {
            snprintf(name, sizeof(name),
                     "model.layers.%d.mlp.shared_experts.%s.bias", i, parts[p]);
            hc_add(&l, name, MOEC_DTYPE_BF16, 1, &sizes[p]);
        }
    expect_no_fusion("deepseek_v3", &l, NULL, NULL,
                     "layer main 1: the shared experts have 'bias', the "
                     "routed have none");
}

/* -------------------------------------------------------------- memory */

static void survives_every_failing_allocation(void **state)
{
    moec_ckpt *ckpt = open_fixture("deepseek_v3");
    moec_status st = MOEC_E_NOMEM;
    uint64_t n = 1;
    (void)state;
    for (; st != MOEC_OK && n < 10000; n++) {
        moec_model *m = NULL;
        moec_error err = MOEC_ERROR_INIT;
        moec_alloc_fail_at(n);
        st = moec_model_open(&m, ckpt, families, &err);
        moec_alloc_fail_at(0);
        if (st != MOEC_OK) {
            assert_int_equal(st, MOEC_E_NOMEM);
            assert_null(m);
        }
        moec_model_destroy(m);
    }
    assert_int_equal(st, MOEC_OK);
    assert_true(n > 10);
    moec_ckpt_close(ckpt);
}

static void needs_a_config(void **state)
{
    static const st_tensor tensors[] = {{"model.norm.weight", 4}, {NULL, 0}};
    tmpdir d = tmpdir_make();
    moec_ckpt *ckpt = NULL;
    moec_model *m = NULL;
    moec_error err = MOEC_ERROR_INIT;
    (void)state;
    st_write(&d, "model.safetensors", tensors);
    assert_int_equal(moec_ckpt_open(&ckpt, d.path, NULL, &err), MOEC_OK);
    assert_int_equal(moec_model_open(&m, ckpt, families, &err), MOEC_E_FORMAT);
    assert_int_equal(err.rule, MOEC_RULE_C01);
    assert_null(m);
    moec_ckpt_close(ckpt);
    tmpdir_remove(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(facts_are_the_references),
        cmocka_unit_test(slices_hold_every_expert_tensor_once),
        cmocka_unit_test(orientation_is_the_familys),
        cmocka_unit_test(roles_of_tensors_beside_the_experts),
        cmocka_unit_test(each_mistake_of_a_config_is_refused),
        cmocka_unit_test(a_config_must_be_strict_json),
        cmocka_unit_test(what_configs_may_say_otherwise_is_accepted),
        cmocka_unit_test(a_missing_expert_is_named),
        cmocka_unit_test(a_missing_part_scale_router_or_shared_is_named),
        cmocka_unit_test(the_odd_expert_is_named),
        cmocka_unit_test(up_must_be_like_gate),
        cmocka_unit_test(a_transposed_projection_is_refused),
        cmocka_unit_test(strange_names_among_experts_are_refused),
        cmocka_unit_test(names_of_fillers_are_refused),
        cmocka_unit_test(names_outside_the_experts_are_common),
        cmocka_unit_test(an_expert_too_many_is_refused),
        cmocka_unit_test(a_layer_in_two_layouts_is_refused),
        cmocka_unit_test(a_restacked_model_is_read_as_stacked),
        cmocka_unit_test(mxfp4_blocks_and_scales_are_read),
        cmocka_unit_test(packed_int4_beside_bf16_is_read_and_not_fused),
        cmocka_unit_test(square_tensors_are_ambiguous_until_told_apart),
        cmocka_unit_test(mtp_layers_may_have_been_left_out),
        cmocka_unit_test(mtp_modules_are_told_by_their_names),
        cmocka_unit_test(a_shared_expert_of_another_dtype_stays_apart),
        cmocka_unit_test(a_shared_expert_without_scales_stays_apart),
        cmocka_unit_test(a_wide_shared_expert_is_cut_at_blocks_only),
        cmocka_unit_test(a_width_that_is_no_multiple_stays_apart),
        cmocka_unit_test(biases_on_one_side_keep_apart),
        cmocka_unit_test(survives_every_failing_allocation),
        cmocka_unit_test(needs_a_config),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
