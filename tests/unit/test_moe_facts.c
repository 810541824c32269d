/* SPDX-License-Identifier: Apache-2.0 */

/*
 * How each layer is run: against the goldens' own facts (experts.json), and
 * against a table of all families typed from the public table of families, on
 * checkpoints that tests/support/make_family_trees.py writes. Then what a
 * config may say otherwise, on headers alone.
 */

#include <math.h>
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
#include "tmpdir.h"

#define CHECKPOINTS MOEC_TEST_FIXTURES "/checkpoints/"

static moec_families *families;
static tmpdir trees; /* of all families; "" without a python */

static int setup(void **state)
{
    const char *python = getenv("MOEC_PYTHON"), *root = getenv("MOEC_ROOT");
    moec_error err = MOEC_ERROR_INIT;
    char command[1200];
    (void)state;
    trees = tmpdir_make();
    if (python != NULL && *python != '\0' && root != NULL) {
        snprintf(command, sizeof(command),
                 "'%s' '%s/tests/support/make_family_trees.py' '%s/trees'",
                 python, root, trees.path);
        if (system(command) != 0) /* NOLINT(cert-env33-c): our own script */
            return -1;
    }
    return moec_families_create(&families, &err) == MOEC_OK ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    moec_families_destroy(families);
    tmpdir_remove(&trees);
    return 0;
}

typedef struct subject {
    moec_ckpt *ckpt;
    moec_model *model;
} subject;

static subject open_dir(const char *path)
{
    subject s = {NULL, NULL};
    moec_error err = MOEC_ERROR_INIT;
    if (moec_ckpt_open(&s.ckpt, path, NULL, &err) != MOEC_OK ||
        moec_model_open(&s.model, s.ckpt, families, &err) != MOEC_OK)
        fail_msg("%s: %s", path, err.text);
    return s;
}

static void close_subject(subject *s)
{
    moec_model_destroy(s->model);
    moec_ckpt_close(s->ckpt);
}

static moec_moe_facts facts_of(const subject *s, size_t layer)
{
    moec_moe_facts f;
    moec_error err = MOEC_ERROR_INIT;
    memset(&f, 0xa5, sizeof(f));
    if (moec_model_moe(s->model, layer, &f, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    assert_int_equal(f.struct_bytes, sizeof(f));
    return f;
}

/* ------------------------------------------------------------- fixtures */

static json_t *golden_facts(const char *fixture)
{
    char path[512];
    json_error_t e;
    snprintf(path, sizeof(path), CHECKPOINTS "%s/experts.json", fixture);
    json_t *all = json_load_file(path, 0, &e);
    if (all == NULL)
        fail_msg("%s: %s", path, e.text);
    json_t *facts = json_incref(json_object_get(all, "facts"));
    json_decref(all);
    return facts;
}

static uint32_t number(const json_t *facts, const char *key)
{
    return (uint32_t)json_integer_value(json_object_get(facts, key));
}

/* The tensor that the facts name, or "". */
static const char *name_of(const subject *s, uint32_t tensor)
{
    return tensor == MOEC_NO_TENSOR ? ""
                                    : moec_ckpt_tensor(s->ckpt, tensor)->name;
}

static void check_fixture_router(const subject *s, const json_t *g,
                                 const moec_moe_facts *f)
{
    const char *word = json_string_value(json_object_get(g, "router"));
    bool logit = strcmp(word, "logit") == 0;
    bool llama = strstr(moec_model_facts(s->model)->family, "llama") != NULL;
    const moec_route_config *r = &f->route;
    uint32_t groups = number(g, "n_group") > 1 ? number(g, "n_group") : 0;
    json_t *rsf = json_object_get(g, "routed_scaling_factor");
    assert_int_equal(r->choice, MOEC_CHOICE_TOPK);
    assert_int_equal(r->score, strncmp(word, "soft", 4) == 0
                                   ? MOEC_SCORE_SOFTMAX
                               : logit && !llama ? MOEC_SCORE_LOGIT
                                                 : MOEC_SCORE_SIGMOID);
    assert_int_equal(f->choice_bias != MOEC_NO_TENSOR,
                     strstr(word, "_bias") != NULL);
    assert_int_equal(f->logit_bias != MOEC_NO_TENSOR, logit && !llama);
    assert_int_equal(r->n_group, groups);
    assert_int_equal(r->topk_group, groups != 0 ? number(g, "topk_group") : 0);
    if (groups != 0)
        assert_int_equal(r->group_score, strstr(word, "max") != NULL
                                             ? MOEC_GROUP_MAX
                                             : MOEC_GROUP_TOP2);
    assert_int_equal(r->norm != MOEC_NORM_NONE,
                     json_is_true(json_object_get(g, "norm_topk_prob")));
    double scale = json_is_null(rsf) ? 1.0 : json_number_value(rsf);
    assert_int_equal(lrint((double)r->rsf * 1e6), lrint(scale * 1e6));
    assert_int_equal(r->rsf_on, MOEC_RSF_ON_WEIGHTS);
    assert_int_equal(f->ffn.weight_on_input, llama);
}

static void check_fixture(const char *fixture)
{
    char path[512];
    json_t *g = golden_facts(fixture);
    snprintf(path, sizeof(path), CHECKPOINTS "%s", fixture);
    subject s = open_dir(path);
    const moec_facts *m = moec_model_facts(s.model);
    for (size_t i = 0; i < moec_model_n_layers(s.model); i++) {
        moec_moe_facts f = facts_of(&s, i);
        char prefix[40];
        snprintf(prefix, sizeof(prefix), "layers.%u.",
                 moec_model_layer(s.model, i)->source_number);
        if (strcmp(fixture, "dbrx") == 0)
            memcpy(prefix, "blocks", 6);
        check_fixture_router(&s, g, &f);
        assert_null(f.why_not);
        assert_int_equal(f.steps, 0);
        assert_int_equal(f.route.n_experts, number(g, "E"));
        assert_int_equal(f.route.top_k, number(g, "K"));
        assert_int_equal(f.route.n_zero, 0);
        assert_int_equal(f.route.n_shared, m->shared_slots);
        assert_int_equal(f.route.shared_kind, m->shared_kind);
        assert_int_equal(f.ffn.hidden, number(g, "H"));
        assert_int_equal(f.ffn.inter, number(g, "I"));
        assert_int_equal(f.ffn.gated, 1);
        assert_int_equal(f.shared_ffn.inter, number(g, "shared_width"));
        assert_non_null(strstr(name_of(&s, f.router_weight), prefix));
        assert_int_equal(f.shared_gate != MOEC_NO_TENSOR,
                         m->shared_kind == MOEC_SHARED_SIGMOID);
        assert_int_equal(f.hash_table, MOEC_NO_TENSOR);
    }
    close_subject(&s);
    json_decref(g);
}

static void facts_are_those_of_the_goldens(void **state)
{
    static const char *const fixtures[] = {
        "dbrx",      "deepseek_v2", "deepseek_v3", "deepseek_v3_fp8",
        "glm4_moe",  "gpt_oss",     "llama4",      "deepseek_v3_fp8_ragged",
        "mixtral",   "olmoe",       "qwen2_moe",   "qwen3_moe",
        "qwen3_next"};
    (void)state;
    for (size_t i = 0; i < sizeof(fixtures) / sizeof(*fixtures); i++)
        check_fixture(fixtures[i]);
}

static void gpt_oss_is_clamped_and_has_p_norms_beside_it(void **state)
{
    subject s = open_dir(CHECKPOINTS "gpt_oss");
    moec_moe_facts f = facts_of(&s, 1);
    (void)state;
    assert_int_equal(f.route.norm, MOEC_NORM_SOFTMAX);
    assert_int_equal(f.ffn.act, MOEC_ACT_SWIGLU_OAI);
    assert_float_equal(f.ffn.limit, 7.0, 0.0);
    assert_float_equal(f.ffn.alpha, 1.702, 1e-6);
    assert_string_equal(name_of(&s, f.logit_bias),
                        "model.layers.1.mlp.router.bias");
    close_subject(&s);
    s = open_dir(CHECKPOINTS "dbrx");
    f = facts_of(&s, 0);
    assert_int_equal(f.route.norm, MOEC_NORM_P);
    assert_float_equal(f.route.norm_arg, 1.0, 0.0);
    close_subject(&s);
}

/* ---------------------------------------------------------- all families
 * Typed from the table of families: its `router`, `activation` and `values`.
 * Of the last MoE layer, or of the first where `first` says so. */

typedef struct row {
    const char *tree;
    moec_score score;
    moec_route_norm norm;
    const char *more; /* words: see expect_more */
    const char *bias; /* end of the choice bias' name, or NULL */
    double rsf;
    moec_act act;
} row;

#define SOFTMAX MOEC_SCORE_SOFTMAX
#define SIGMOID MOEC_SCORE_SIGMOID
#define SQRTSP  MOEC_SCORE_SQRT_SOFTPLUS
#define LOGIT   MOEC_SCORE_LOGIT
#define N_NONE  MOEC_NORM_NONE
#define N_SUM   MOEC_NORM_SUM
#define SILU    MOEC_ACT_SILU
#define OAI     MOEC_ACT_SWIGLU_OAI
#define GATE_E  ".mlp.gate.e_score_correction_bias"

/* clang-format off */
static const row rows[] = {
    {"deepseek_v2", SOFTMAX, N_NONE, "max", NULL, 16.0, SILU},
    {"deepseek_v3", SIGMOID, N_SUM, "top2", GATE_E, 2.5, SILU},
    {"deepseek_v3-nvfp4", SIGMOID, N_SUM, "top2", GATE_E, 2.5, SILU},
    {"deepseek_v4", SQRTSP, N_SUM, "limit10", ".ffn.gate.bias", 1.5,
     MOEC_ACT_SILU_CLAMP_BEFORE},
    {"deepseek_v4-mtp", SQRTSP, N_SUM, "limit10", ".ffn.gate.bias", 1.5,
     MOEC_ACT_SILU_CLAMP_BEFORE},
    {"kimi_k2", SIGMOID, N_SUM, "", GATE_E, 2.827, SILU},
    {"kimi_k2-int4", SIGMOID, N_SUM, "", GATE_E, 2.827, SILU},
    {"moonlight", SIGMOID, N_SUM, "", GATE_E, 2.446, SILU},
    {"kimi_linear", SIGMOID, N_SUM, "",
     ".block_sparse_moe.gate.e_score_correction_bias", 2.446, SILU},
    {"kimi_k3", SIGMOID, N_SUM, "latent situ norm",
     ".block_sparse_moe.gate.e_score_correction_bias", 1.0, MOEC_ACT_SITU},
    {"glm4_moe", SIGMOID, N_SUM, "", GATE_E, 2.5, SILU},
    {"qwen2_moe", SOFTMAX, N_NONE, "gate", NULL, 1.0, SILU},
    {"qwen3_moe", SOFTMAX, N_SUM, "", NULL, 1.0, SILU},
    {"qwen3_vl_moe", SOFTMAX, N_SUM, "", NULL, 1.0, SILU},
    {"qwen3_next", SOFTMAX, N_SUM, "gate", NULL, 1.0, SILU},
    {"qwen3_5_moe", SOFTMAX, N_SUM, "gate", NULL, 1.0, SILU},
    {"llama4", SIGMOID, N_NONE, "input", NULL, 1.0, SILU},
    {"mixtral", SOFTMAX, N_SUM, "", NULL, 1.0, SILU},
    {"dbrx", SOFTMAX, MOEC_NORM_P, "", NULL, 1.0, SILU},
    {"gpt_oss", LOGIT, MOEC_NORM_SOFTMAX, "logit_bias limit7 alpha", NULL, 1.0,
     OAI},
    {"minimax_m2", SIGMOID, N_SUM, "",
     ".block_sparse_moe.e_score_correction_bias", 1.0, SILU},
    {"minimax_m3", SIGMOID, N_SUM, "output limit7 alpha",
     ".block_sparse_moe.e_score_correction_bias", 2.0, OAI},
    {"minimax_text_01", SOFTMAX, N_SUM, "", NULL, 1.0, SILU},
    {"minimax_text_01-shared", SOFTMAX, N_SUM, "gate why", NULL, 1.0, SILU},
    {"hunyuan_moe", SOFTMAX, N_SUM, "", NULL, 1.0, SILU},
    {"hy_v3", SIGMOID, N_SUM, "", ".mlp.expert_bias", 2.826, SILU},
    {"ernie4_5_moe", SOFTMAX, MOEC_NORM_FLOOR, "",
     ".mlp.moe_statics.e_score_correction_bias", 1.0, SILU},
    {"dots1", SIGMOID, N_SUM, "top2", GATE_E, 2.5, SILU},
    {"bailing_moe", SIGMOID, N_SUM, "top2", ".mlp.gate.expert_bias", 2.5, SILU},
    {"longcat_flash", SOFTMAX, N_NONE, "zero",
     ".mlp.router.e_score_correction_bias", 6.0, SILU},
    {"step3", SOFTMAX, N_NONE, "output", ".moe.router_bias", 1.0, SILU},
    {"step3-flash", SIGMOID, N_SUM, "output", ".moe.router_bias", 3.0, SILU},
    {"granite_moe", LOGIT, MOEC_NORM_SOFTMAX, "", NULL, 1.0, SILU},
    {"olmoe", SOFTMAX, N_NONE, "", NULL, 1.0, SILU},
    {"phimoe", SOFTMAX, N_NONE, "mixer", NULL, 1.0, SILU},
    {"jamba", SOFTMAX, N_NONE, "", NULL, 1.0, SILU},
    {"nemotron_h", SIGMOID, N_SUM, "",
     ".mixer.gate.e_score_correction_bias", 2.5, MOEC_ACT_RELU2},
    {"nemotron_h-super", SIGMOID, N_SUM, "latent",
     ".mixer.gate.e_score_correction_bias", 2.5, MOEC_ACT_RELU2},
    {"mimo_v2", SIGMOID, N_SUM, "", GATE_E, 1.0, SILU},
    {"afmoe", SIGMOID, N_SUM, "", ".mlp.expert_bias", 2.448, SILU},
    {"grok", SOFTMAX, N_NONE, "cap", NULL, 1.0, MOEC_ACT_GELU_TANH},
    {"mistral_large_3", SOFTMAX, N_SUM, "", ".router_biases", 1.0, SILU},
    {"gemma4_moe", SOFTMAX, N_SUM, "rms scale", NULL, 1.0, MOEC_ACT_GELU_TANH},
    {"inkling", SIGMOID, MOEC_NORM_JOINT, "joint", ".mlp.gate.bias", 8.0, SILU},
    {"exaone_moe", SIGMOID, N_SUM, "top2", ".mlp.e_score_correction_bias", 2.5,
     SILU},
    {"lfm2_moe", SIGMOID, N_SUM, "", ".feed_forward.expert_bias", 1.0, SILU},
};
/* clang-format on */

static bool says(const row *r, const char *word)
{
    return strstr(r->more, word) != NULL;
}

static bool ends_in(const char *name, const char *tail)
{
    size_t n = strlen(name), m = strlen(tail);
    return n >= m && strcmp(name + n - m, tail) == 0;
}

#define EXPECT(r, what, found, wanted)                                         \
  do {                                                                         \
    if ((double)(found) < (double)(wanted)-1e-6 ||                             \
        (double)(found) > (double)(wanted) + 1e-6)                             \
      fail_msg("%s: %s is %g, expected %g", (r)->tree, (what),                 \
               (double)(found), (double)(wanted));                             \
  } while (0)

static void expect_router(const subject *s, const row *r,
                          const moec_moe_facts *f)
{
    const moec_route_config *c = &f->route;
    bool groups = says(r, "top2") || says(r, "max");
    EXPECT(r, "score", c->score, r->score);
    EXPECT(r, "norm", c->norm, r->norm);
    EXPECT(r, "rsf", c->rsf, r->rsf);
    EXPECT(r, "rsf_on", c->rsf_on,
           says(r, "output") ? MOEC_RSF_ON_OUTPUT : MOEC_RSF_ON_WEIGHTS);
    EXPECT(r, "choice", c->choice,
           says(r, "mixer") ? MOEC_CHOICE_SPARSE_MIXER : MOEC_CHOICE_TOPK);
    EXPECT(r, "n_group", c->n_group, groups ? 4 : 0);
    EXPECT(r, "topk_group", c->topk_group, groups ? 2 : 0);
    EXPECT(r, "group_score", c->group_score,
           says(r, "top2") ? MOEC_GROUP_TOP2 : MOEC_GROUP_MAX);
    EXPECT(r, "softcap", c->softcap, says(r, "cap") ? 30 : 0);
    EXPECT(r, "mixer_eps", c->mixer_eps, 0.01F);
    EXPECT(r, "n_zero", c->n_zero, says(r, "zero") ? 4 : 0);
    EXPECT(r, "n_shared_logits", c->n_shared_logits, says(r, "joint") ? 2 : 0);
    if (!ends_in(name_of(s, f->choice_bias), r->bias != NULL ? r->bias : "") ||
        (r->bias == NULL) != (f->choice_bias == MOEC_NO_TENSOR))
        fail_msg("%s: choice bias is '%s'", r->tree,
                 name_of(s, f->choice_bias));
}

static void expect_more(const row *r, const moec_moe_facts *f)
{
    uint32_t steps = (says(r, "rms") ? MOEC_STEP_ROUTER_NORM : 0u) |
                     (says(r, "latent") ? MOEC_STEP_LATENT : 0u);
    EXPECT(r, "logit bias", f->logit_bias != MOEC_NO_TENSOR,
           says(r, "logit_bias"));
    EXPECT(r, "shared gate", f->shared_gate != MOEC_NO_TENSOR, says(r, "gate"));
    EXPECT(r, "expert scale", f->expert_scale != MOEC_NO_TENSOR,
           says(r, "scale"));
    EXPECT(r, "global scale", f->global_scale != MOEC_NO_TENSOR,
           says(r, "joint"));
    EXPECT(r, "steps", f->steps, steps);
    EXPECT(r, "reasons", f->why_not != NULL, steps != 0 || says(r, "why"));
    EXPECT(r, "latent norm", f->latent_norm != MOEC_NO_TENSOR, says(r, "norm"));
    EXPECT(r, "latent_in", f->latent_in != MOEC_NO_TENSOR, says(r, "latent"));
    EXPECT(r, "latent_out", f->latent_out != MOEC_NO_TENSOR, says(r, "latent"));
    EXPECT(r, "input scale", f->input_scale != MOEC_NO_TENSOR, says(r, "rms"));
    EXPECT(r, "act", f->ffn.act, r->act);
    EXPECT(r, "gated", f->ffn.gated, r->act != MOEC_ACT_RELU2);
    EXPECT(r, "limit", f->ffn.limit,
           says(r, "limit7")    ? 7
           : says(r, "limit10") ? 10
                                : 0);
    EXPECT(r, "alpha", f->ffn.alpha, says(r, "alpha") ? 1.702 : 0);
    EXPECT(r, "beta", f->ffn.beta, says(r, "situ") ? 4 : 0);
    EXPECT(r, "linear_beta", f->ffn.linear_beta, says(r, "situ") ? 25 : 0);
    EXPECT(r, "weight_on_input", f->ffn.weight_on_input, says(r, "input"));
    if (f->shared_ffn.inter == 0)
        return;
    EXPECT(r, "shared act", f->shared_ffn.act, f->ffn.act);
    EXPECT(r, "shared limit", f->shared_ffn.limit, f->ffn.limit);
}

/* No back end refuses what the facts say. */
static void expect_router_made(const moec_kernels *k, const row *r,
                               const moec_moe_facts *f)
{
    moec_router *router = NULL;
    moec_error err = MOEC_ERROR_INIT;
    if (moec_router_create(&router, k, &f->route, &err) != MOEC_OK)
        fail_msg("%s: %s", r->tree, err.text);
    moec_router_destroy(router);
}

static void every_family_as_the_table_has_it(void **state)
{
    char path[600];
    moec_kernels *k = NULL;
    (void)state;
    snprintf(path, sizeof(path), "%s/trees/mixtral/config.json", trees.path);
    FILE *f = fopen(path, "rb");
    if (f == NULL)
        skip();
    fclose(f);
    assert_int_equal(moec_kernels_open(&k, NULL, NULL), MOEC_OK);
    for (size_t i = 0; i < sizeof(rows) / sizeof(*rows); i++) {
        const row *r = &rows[i];
        snprintf(path, sizeof(path), "%s/trees/%s", trees.path, r->tree);
        subject s = open_dir(path);
        moec_moe_facts m = facts_of(&s, 0); /* by table in DeepSeek-V4 */
        expect_router_made(k, r, &m);
        m = facts_of(&s, moec_model_n_layers(s.model) - 1);
        expect_router(&s, r, &m);
        expect_more(r, &m);
        expect_router_made(k, r, &m);
        if (m.router_weight == MOEC_NO_TENSOR)
            fail_msg("%s: no router weight", r->tree);
        close_subject(&s);
    }
    moec_kernels_close(k);
}

/* The first layer of the V4 tree is routed by table, its last is not. */
static void a_table_routes_the_first_layers(void **state)
{
    char path[600];
    (void)state;
    snprintf(path, sizeof(path), "%s/trees/deepseek_v4-mtp", trees.path);
    FILE *f = fopen(path, "rb");
    if (f == NULL)
        skip();
    fclose(f);
    subject s = open_dir(path);
    moec_moe_facts m = facts_of(&s, 0);
    assert_int_equal(m.route.choice, MOEC_CHOICE_HASH);
    assert_true(ends_in(name_of(&s, m.hash_table), ".ffn.gate.tid2eid"));
    assert_int_equal(m.route.norm, MOEC_NORM_SUM);
    assert_null(m.why_not);
    for (size_t i = 1; i < moec_model_n_layers(s.model); i++) {
        m = facts_of(&s, i);
        assert_int_equal(m.route.choice, MOEC_CHOICE_TOPK);
        assert_int_equal(m.hash_table, MOEC_NO_TENSOR);
    }
    close_subject(&s);
}

/* ----------------------------------------------- what a config may say */

#define NUMBERS                                                                \
  "\"hidden_size\": 64, \"moe_intermediate_size\": 32, "                       \
  "\"num_hidden_layers\": 2, \"num_experts_per_tok\": 2"

/* Two MoE layers of four experts below `prefix`, with a router weight. */
static hc_list made(const char *experts, const char *router)
{
    static const char *const parts[] = {"gate_proj", "up_proj", "down_proj"};
    static const uint64_t up[2] = {32, 64}, down[2] = {64, 32}, w[2] = {4, 64};
    hc_list l = {0, NULL};
    char name[160];
    for (unsigned i = 0; i < 2; i++) {
        for (unsigned e = 0; e < 4; e++)
            for (unsigned p = 0; p < 3; p++) {
                snprintf(name, sizeof(name), "model.layers.%u.%s.%u.%s.weight",
                         i, experts, e, parts[p]);
                hc_add(&l, name, MOEC_DTYPE_BF16, 2, p == 2 ? down : up);
            }
        snprintf(name, sizeof(name), "model.layers.%u.%s", i, router);
        hc_add(&l, name, MOEC_DTYPE_BF16, 2, w);
    }
    return l;
}

static void add_to_both(hc_list *l, const char *tail, moec_dtype dtype,
                        uint32_t rank, const uint64_t *shape)
{
    char name[160];
    for (unsigned i = 0; i < 2; i++) {
        snprintf(name, sizeof(name), "model.layers.%u.%s", i, tail);
        hc_add(l, name, dtype, rank, shape);
    }
}

static subject open_list(hc_list *l, const char *config)
{
    subject s = {hc_open(l), NULL};
    moec_error err = MOEC_ERROR_INIT;
    if (moec_model_create(&s.model, s.ckpt, families, config, strlen(config),
                          &err) != MOEC_OK)
        fail_msg("%s: %s", config, err.text);
    return s;
}

/* A DeepSeek-like checkpoint without shared experts. */
static subject open_deepseek(const char *type, const char *more, bool biased)
{
    static const uint64_t bias[1] = {4};
    char config[600];
    hc_list l = made("mlp.experts", "mlp.gate.weight");
    if (biased)
        add_to_both(&l, "mlp.gate.e_score_correction_bias", MOEC_DTYPE_F32, 1,
                    bias);
    snprintf(config, sizeof(config),
             "{\"model_type\": \"%s\", " NUMBERS ", \"n_routed_experts\": 4%s}",
             type, more);
    subject s = open_list(&l, config);
    free(l.t);
    return s;
}

static void v2_takes_its_groups_from_the_method(void **state)
{
    static const struct {
        const char *more;
        uint32_t n_group;
        moec_group_score score;
        const char *why;
    } cases[] = {
        {"", 2, MOEC_GROUP_MAX, NULL},
        {", \"topk_method\": \"greedy\"", 0, MOEC_GROUP_MAX, NULL},
        {", \"topk_method\": \"group_limited_greedy\"", 2, MOEC_GROUP_MAX,
         NULL},
        {", \"topk_method\": \"noaux_tc\"", 2, MOEC_GROUP_TOP2, NULL},
        {", \"topk_method\": \"best\"", 2, MOEC_GROUP_MAX, "rule 'best'"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        char more[200];
        snprintf(more, sizeof(more), ", \"n_group\": 2, \"topk_group\": 1%s",
                 cases[i].more);
        subject s = open_deepseek("deepseek_v2", more, false);
        moec_moe_facts f = facts_of(&s, 0);
        assert_int_equal(f.route.n_group, cases[i].n_group);
        assert_int_equal(f.route.group_score, cases[i].score);
        assert_int_equal(f.why_not != NULL, cases[i].why != NULL);
        if (cases[i].why != NULL)
            assert_non_null(strstr(f.why_not, cases[i].why));
        close_subject(&s);
    }
}

/* The library that made the goldens never renormalises V2. */
static void v2_is_never_renormalised(void **state)
{
    subject s =
        open_deepseek("deepseek_v2", ", \"norm_topk_prob\": true", false);
    (void)state;
    assert_int_equal(facts_of(&s, 0).route.norm, MOEC_NORM_NONE);
    close_subject(&s);
}

static void keys_decide_where_they_are_heeded(void **state)
{
    subject s = open_deepseek("deepseek_v3",
                              ", \"norm_topk_prob\": false, \"scoring_func\": "
                              "\"softmax\", \"routed_scaling_factor\": null",
                              true);
    moec_moe_facts f = facts_of(&s, 1);
    (void)state;
    assert_int_equal(f.route.norm, MOEC_NORM_NONE);
    assert_int_equal(f.route.score, MOEC_SCORE_SOFTMAX);
    assert_float_equal(f.route.rsf, 1.0, 0.0);
    assert_string_equal(name_of(&s, f.choice_bias),
                        "model.layers.1.mlp.gate.e_score_correction_bias");
    close_subject(&s);
    s = open_deepseek("deepseek_v3", ", \"scoring_func\": \"relu\"", true);
    f = facts_of(&s, 0);
    assert_string_equal(f.why_not, "router score 'relu' is not known");
    close_subject(&s);
    s = open_deepseek("deepseek_v3", ", \"hidden_act\": \"mish\"", true);
    f = facts_of(&s, 0);
    assert_string_equal(f.why_not, "activation 'mish' is not known");
    close_subject(&s);
}

static void one_chosen_expert_of_hunyuan_is_not_renormalised(void **state)
{
    static const struct {
        unsigned k;
        moec_route_norm norm;
    } cases[] = {{1, MOEC_NORM_NONE}, {2, MOEC_NORM_SUM}};
    (void)state;
    for (size_t i = 0; i < 2; i++) {
        char config[400];
        hc_list l = made("mlp.experts", "mlp.gate.wg.weight");
        snprintf(config, sizeof(config),
                 "{\"model_type\": \"hunyuan_v1_moe\", \"hidden_size\": 64, "
                 "\"intermediate_size\": 32, \"moe_intermediate_size\": 32, "
                 "\"num_hidden_layers\": 2, \"num_experts\": 4, "
                 "\"moe_topk\": %u}",
                 cases[i].k);
        subject s = open_list(&l, config);
        assert_int_equal(facts_of(&s, 0).route.norm, cases[i].norm);
        close_subject(&s);
        free(l.t);
    }
}

static void a_bias_that_the_config_denies_is_not_used(void **state)
{
    static const uint64_t bias[1] = {4};
    static const struct {
        const char *said;
        bool there, used;
        const char *why;
    } cases[] = {
        {"null", true, true, NULL},
        {"true", true, true, NULL},
        {"false", true, false, NULL},
        {"null", false, false, NULL},
        {"true", false, false, "says that the router has a bias"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        char config[400];
        hc_list l = made("feed_forward.experts", "feed_forward.gate.weight");
        for (size_t t = 0; t < l.n; t++) { /* LFM2 says w1, w3, w2 */
            char *p = strstr(l.t[t].name, "gate_proj");
            const char *to = "w1";
            if (p == NULL) {
                p = strstr(l.t[t].name, "up_proj");
                to = "w3";
            }
            if (p == NULL) {
                p = strstr(l.t[t].name, "down_proj");
                to = "w2";
            }
            if (p != NULL)
                snprintf(p, 12, "%s.weight", to);
        }
        if (cases[i].there)
            add_to_both(&l, "feed_forward.expert_bias", MOEC_DTYPE_F32, 1,
                        bias);
        snprintf(config, sizeof(config),
                 "{\"model_type\": \"lfm2_moe\", " NUMBERS
                 ", \"num_experts\": 4, \"num_dense_layers\": 0, "
                 "\"use_expert_bias\": %s}",
                 cases[i].said);
        subject s = open_list(&l, config);
        moec_moe_facts f = facts_of(&s, 0);
        assert_int_equal(f.choice_bias != MOEC_NO_TENSOR, cases[i].used);
        assert_int_equal(f.why_not != NULL, cases[i].why != NULL);
        if (cases[i].why != NULL)
            assert_non_null(strstr(f.why_not, cases[i].why));
        close_subject(&s);
        free(l.t);
    }
}

static void ernie_divides_by_no_less_than_its_floor(void **state)
{
    static const uint64_t bias[2] = {1, 4}, two[2] = {2, 4},
                          turned[2] = {64, 4};
    static const char config[] =
        "{\"model_type\": \"ernie4_5_moe\", \"hidden_size\": 64, "
        "\"moe_intermediate_size\": 32, \"num_hidden_layers\": 2, \"moe_k\": "
        "2, \"moe_num_experts\": 4, \"moe_layer_start_index\": 0, "
        "\"moe_layer_end_index\": 1, \"moe_layer_interval\": 1, "
        "\"moe_norm_min\": 0.5}";
    const char *tail = "mlp.moe_statics.e_score_correction_bias";
    hc_list l = made("mlp.experts", "mlp.gate.weight");
    (void)state;
    add_to_both(&l, tail, MOEC_DTYPE_F32, 2, bias);
    subject s = open_list(&l, config);
    moec_moe_facts f = facts_of(&s, 0);
    assert_null(f.why_not);
    assert_int_equal(f.route.norm, MOEC_NORM_FLOOR);
    assert_float_equal(f.route.norm_arg, 0.5, 0.0);
    close_subject(&s);
    /* the vision-language models: two biases, a transposed router */
    memcpy(hc_find(&l, "model.layers.0.mlp.moe_statics."
                       "e_score_correction_bias")
               ->shape,
           two, sizeof(two));
    memcpy(hc_find(&l, "model.layers.1.mlp.gate.weight")->shape, turned,
           sizeof(turned));
    s = open_list(&l, config);
    assert_non_null(strstr(facts_of(&s, 0).why_not, "is [2, 4], expected"));
    assert_non_null(strstr(facts_of(&s, 1).why_not, "is [64, 4], expected"));
    close_subject(&s);
    free(l.t);
}

static subject open_dbrx(const char *p)
{
    static const uint64_t w[2] = {128, 64}, router[2] = {4, 64};
    static const char *const names[] = {"w1", "v1", "w2"};
    hc_list l = {0, NULL};
    char name[100], text[500];
    for (unsigned i = 0; i < 3; i++) {
        snprintf(name, sizeof(name), "transformer.blocks.0.ffn.experts.mlp.%s",
                 names[i]);
        hc_add(&l, name, MOEC_DTYPE_BF16, 2, w);
    }
    hc_add(&l, "transformer.blocks.0.ffn.router.layer.weight", MOEC_DTYPE_BF16,
           2, router);
    snprintf(text, sizeof(text),
             "{\"model_type\": \"dbrx\", \"d_model\": 64, \"n_layers\": 1, "
             "\"ffn_config\": {\"moe_num_experts\": 4, \"moe_top_k\": 2, "
             "\"ffn_hidden_size\": 32, "
             "\"moe_normalize_expert_weights\": %s}}",
             p);
    subject s = open_list(&l, text);
    free(l.t);
    return s;
}

static void dbrx_divides_by_a_p_norm(void **state)
{
    (void)state;
    subject s = open_dbrx("2");
    moec_moe_facts f = facts_of(&s, 0);
    assert_int_equal(f.route.norm, MOEC_NORM_P);
    assert_float_equal(f.route.norm_arg, 2.0, 0.0);
    assert_null(f.why_not);
    close_subject(&s);
    s = open_dbrx("null");
    f = facts_of(&s, 0);
    assert_int_equal(f.route.norm, MOEC_NORM_NONE);
    assert_null(f.why_not);
    close_subject(&s);
    s = open_dbrx("3.0");
    f = facts_of(&s, 0);
    assert_non_null(strstr(f.why_not, "p = 3"));
    close_subject(&s);
}

/* Step-3.5: lists with a limit a layer, MTP behind; 0 is none. */
static subject open_step(const char *limits)
{
    static const char *const parts[] = {"gate", "up", "down"};
    static const uint64_t up[3] = {4, 32, 64}, down[3] = {4, 64, 32},
                          w[2] = {4, 64};
    hc_list l = {0, NULL};
    char name[60], text[600];
    for (unsigned p = 0; p < 3; p++) {
        snprintf(name, sizeof(name), "moe.%s_proj.weight", parts[p]);
        add_to_both(&l, name, MOEC_DTYPE_BF16, 3, p == 2 ? down : up);
        snprintf(name, sizeof(name), "share_expert.%s_proj.weight", parts[p]);
        add_to_both(&l, name, MOEC_DTYPE_BF16, 2, (p == 2 ? down : up) + 1);
    }
    add_to_both(&l, "moe.gate.weight", MOEC_DTYPE_BF16, 2, w);
    snprintf(text, sizeof(text),
             "{\"model_type\": \"step3p5\", \"hidden_size\": 64, "
             "\"moe_intermediate_size\": 32, \"num_hidden_layers\": 2, "
             "\"moe_num_experts\": 4, \"moe_top_k\": 2, \"share_expert_dim\": "
             "32, \"moe_layers_enum\": \"0,1\"%s}",
             limits);
    subject s = open_list(&l, text);
    free(l.t);
    return s;
}

static void step_clamps_layer_by_layer_after_the_activation(void **state)
{
    subject s = open_step(", \"swiglu_limits\": [0.0, 7.0, 9.0], "
                          "\"swiglu_limits_shared\": [0.0, 7.0]");
    moec_moe_facts f = facts_of(&s, 0);
    (void)state;
    assert_int_equal(f.ffn.act, MOEC_ACT_SILU);
    assert_int_equal(f.shared_ffn.act, MOEC_ACT_SILU);
    f = facts_of(&s, 1);
    assert_int_equal(f.ffn.act, MOEC_ACT_SILU_CLAMP_AFTER);
    assert_float_equal(f.ffn.limit, 7.0, 0.0);
    assert_int_equal(f.shared_ffn.act, MOEC_ACT_SILU_CLAMP_AFTER);
    assert_int_equal(f.route.rsf_on, MOEC_RSF_ON_OUTPUT);
    assert_int_equal(moec_model_facts(s.model)->shared_slots, 1);
    close_subject(&s);
}

/* Before this, a shared expert with a clamp of its own was put into slots that
 * the routed experts' activation runs. */
static void another_clamp_keeps_the_shared_expert_out_of_slots(void **state)
{
    subject s = open_step(", \"swiglu_limits\": [0.0, 7.0], "
                          "\"swiglu_limits_shared\": [0.0, 16.0]");
    const moec_facts *m = moec_model_facts(s.model);
    moec_moe_facts f = facts_of(&s, 1);
    (void)state;
    assert_int_equal(m->shared_slots, 0);
    assert_string_equal(m->no_fuse_why,
                        "layer main 1: the activation's limit is 16 in the "
                        "shared expert and 7 in the routed ones (0: none)");
    assert_int_equal(f.route.n_shared, 0);
    assert_float_equal(f.shared_ffn.limit, 16.0, 0.0);
    assert_int_equal(f.shared_ffn.inter, 32);
    close_subject(&s);
}

static void a_limit_of_the_wrong_type_is_refused(void **state)
{
    static const char config[] =
        "{\"model_type\": \"deepseek_v4\", " NUMBERS
        ", \"n_routed_experts\": 4, \"swiglu_limit\": \"10\"}";
    hc_list l = made("ffn.experts", "ffn.gate.weight");
    moec_error err = MOEC_ERROR_INIT;
    moec_model *m = NULL;
    (void)state;
    for (size_t i = 0; i < l.n; i++) { /* V4's names have no "model." */
        char *name = l.t[i].name, *p;
        memmove(name, name + 6, strlen(name + 6) + 1);
        if ((p = strstr(name, "gate_proj")) != NULL)
            snprintf(p, 12, "w1.weight");
        else if ((p = strstr(name, "up_proj")) != NULL)
            snprintf(p, 12, "w3.weight");
        else if ((p = strstr(name, "down_proj")) != NULL)
            snprintf(p, 12, "w2.weight");
    }
    moec_ckpt *ckpt = hc_open(&l);
    assert_int_equal(
        moec_model_create(&m, ckpt, families, config, strlen(config), &err),
        MOEC_E_FORMAT);
    assert_int_equal(err.rule, MOEC_RULE_C04);
    assert_null(m);
    moec_ckpt_close(ckpt);
    free(l.t);
}

/* A description of before: converts, and says why it does not run. */
static void a_family_without_a_router_converts_and_is_not_run(void **state)
{
    static const char family[] =
        "{\"schema\": \"moec.family/1\", \"family\": \"mine\", "
        "\"model_types\": [\"mine_moe\"], \"layers\": [{\"prefix\": "
        "\"model.layers.{L}.\"}], \"namespaces\": [\"mlp.experts\"], "
        "\"experts\": \"mlp.experts\", \"tensors\": [{\"name\": "
        "\"mlp.gate.weight\", \"role\": \"router\"}, {\"name\": "
        "\"mlp.experts.{E}.gate_proj.{suffix}\", \"role\": \"routed\", "
        "\"part\": \"gate\"}, {\"name\": \"mlp.experts.{E}.up_proj.{suffix}\", "
        "\"role\": \"routed\", \"part\": \"up\"}, {\"name\": "
        "\"mlp.experts.{E}.down_proj.{suffix}\", \"role\": \"routed\", "
        "\"part\": \"down\"}], \"config\": {\"n_experts\": {\"keys\": "
        "[\"E\"]}, \"top_k\": {\"keys\": [\"K\"]}, \"hidden\": {\"keys\": "
        "[\"H\"]}, \"inter\": {\"keys\": [\"I\"]}, \"n_layers\": {\"keys\": "
        "[\"N\"]}, \"score\": {\"default\": \"softmax\"}, \"activation\": "
        "{\"default\": \"silu\"}}, \"moe_layers\": [{\"kind\": \"all\"}]}";
    moec_error err = MOEC_ERROR_INIT;
    hc_list l = made("mlp.experts", "mlp.gate.weight");
    (void)state;
    if (moec_families_add(families, "mine.json", family, strlen(family),
                          &err) != MOEC_OK)
        fail_msg("%s", err.text);
    subject s = open_list(&l, "{\"model_type\": \"mine_moe\", \"E\": 4, \"K\": "
                              "2, \"H\": 64, \"I\": 32, \"N\": 2}");
    assert_string_equal(facts_of(&s, 0).why_not,
                        "the family 'mine' does not describe its router");
    close_subject(&s);
    free(l.t);
}

static void there_is_no_layer_behind_the_last(void **state)
{
    moec_moe_facts f;
    moec_error err = MOEC_ERROR_INIT;
    subject s = open_dir(CHECKPOINTS "mixtral");
    (void)state;
    assert_int_equal(moec_model_moe(s.model, 3, &f, &err), MOEC_E_ARG);
    close_subject(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(facts_are_those_of_the_goldens),
        cmocka_unit_test(gpt_oss_is_clamped_and_has_p_norms_beside_it),
        cmocka_unit_test(every_family_as_the_table_has_it),
        cmocka_unit_test(a_table_routes_the_first_layers),
        cmocka_unit_test(v2_takes_its_groups_from_the_method),
        cmocka_unit_test(v2_is_never_renormalised),
        cmocka_unit_test(keys_decide_where_they_are_heeded),
        cmocka_unit_test(one_chosen_expert_of_hunyuan_is_not_renormalised),
        cmocka_unit_test(a_bias_that_the_config_denies_is_not_used),
        cmocka_unit_test(ernie_divides_by_no_less_than_its_floor),
        cmocka_unit_test(dbrx_divides_by_a_p_norm),
        cmocka_unit_test(step_clamps_layer_by_layer_after_the_activation),
        cmocka_unit_test(another_clamp_keeps_the_shared_expert_out_of_slots),
        cmocka_unit_test(a_limit_of_the_wrong_type_is_refused),
        cmocka_unit_test(a_family_without_a_router_converts_and_is_not_run),
        cmocka_unit_test(there_is_no_layer_behind_the_last),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
