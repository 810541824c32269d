/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What a config may say in several ways, and what it must not: lists, groups,
 * wrappers, model types that several families share. The models are headers
 * of two experts.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <moec/moec.h>

#include "config.h"
#include "header_ckpt.h"

#define H 16u
#define I 8u

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

static void put(hc_list *l, const char *block, const char *name, uint64_t rows,
                uint64_t cols)
{
    const uint64_t shape[2] = {rows, cols};
    char full[160];
    snprintf(full, sizeof(full), "%s%s", block, name);
    hc_add(l, full, MOEC_DTYPE_BF16, cols == 0 ? 1 : 2, shape);
}

/* gate, up and down of one MLP; `names` as "w1 w3 w2". */
static void put_mlp(hc_list *l, const char *block, const char *names,
                    uint64_t inter, uint64_t hidden)
{
    char words[3][24], name[96];
    assert_int_equal(
        sscanf(names, "%23s %23s %23s", words[0], words[1], words[2]), 3);
    for (size_t p = 0; p < 3; p++) {
        snprintf(name, sizeof(name), ".%s.weight", words[p]);
        put(l, block, name, p < 2 ? inter : hidden, p < 2 ? hidden : inter);
    }
}

#define GATE_UP_DOWN "gate_proj up_proj down_proj"

/* Experts 0 and 1 (of width I and `second`) of a layer "a.b." */
static void put_experts(hc_list *l, const char *layer, const char *block,
                        const char *names, uint64_t second)
{
    char at[120];
    for (unsigned e = 0; e < 2; e++) {
        snprintf(at, sizeof(at), "%s%s.experts.%u", layer, block, e);
        put_mlp(l, at, names, e == 0 ? I : second, H);
    }
}

/* Open the tensors with this config; frees the list. */
static moec_status open_model(hc_list *l, const char *config, moec_model **out,
                              moec_error *err)
{
    static moec_ckpt *ckpt; /* outlives the model until the next call */
    *out = NULL;
    *err = (moec_error)MOEC_ERROR_INIT;
    moec_ckpt_close(ckpt);
    ckpt = NULL;
    if (l == NULL)
        return MOEC_OK;
    ckpt = hc_open(l);
    free(l->t);
    return moec_model_create(out, ckpt, families, config, strlen(config), err);
}

/* The family that answers, or the text of the refusal. */
static const char *answer(hc_list *l, const char *config)
{
    static char text[MOEC_ERROR_TEXT_BYTES];
    moec_model *m;
    moec_error err;
    if (open_model(l, config, &m, &err) == MOEC_OK)
        snprintf(text, sizeof(text), "%s", moec_model_facts(m)->family);
    else
        snprintf(text, sizeof(text), "%s", err.text);
    moec_model_destroy(m);
    open_model(NULL, NULL, &m, &err);
    return text;
}

static void assert_said(const char *text, const char *want)
{
    if (strstr(text, want) == NULL)
        fail_msg("want '%s' in\n  %s", want, text);
}

/* ------------------------------------------------- which family it is */

static hc_list deepseek(const char *prefix, unsigned n_shared)
{
    hc_list l = {0, NULL};
    char layer[80], shared[120];
    snprintf(layer, sizeof(layer), "%slayers.0.", prefix);
    snprintf(shared, sizeof(shared), "%smlp.shared_experts", layer);
    put(&l, layer, "mlp.gate.weight", 2, H);
    put_experts(&l, layer, "mlp", GATE_UP_DOWN, I);
    if (n_shared != 0)
        put_mlp(&l, shared, GATE_UP_DOWN, (uint64_t)n_shared * I, H);
    return l;
}

#define SIZES                                                                  \
  "\"n_routed_experts\":2,\"num_experts_per_tok\":1,\"hidden_size\":16,"       \
  "\"moe_intermediate_size\":8,\"num_hidden_layers\":1"

static void shared_model_types_are_told_apart_by_content(void **state)
{
    hc_list two = deepseek("model.", 2), grouped = deepseek("model.", 2),
            one = deepseek("model.", 1);
    (void)state;
    assert_string_equal(answer(&two, "{\"model_type\":\"deepseek_v3\"," SIZES
                                     ",\"n_shared_experts\":2,\"n_group\":1}"),
                        "moonlight");
    assert_string_equal(answer(&grouped,
                               "{\"model_type\":\"deepseek_v3\"," SIZES
                               ",\"n_shared_experts\":2,\"n_group\":2,"
                               "\"topk_group\":1}"),
                        "deepseek_v3");
    assert_string_equal(answer(&one, "{\"model_type\":\"deepseek_v3\"," SIZES
                                     ",\"n_shared_experts\":1,\"n_group\":1}"),
                        "deepseek_v3");
}

static void params_without_a_model_type_are_mistrals(void **state)
{
    static const char moe[] =
        "{\"dim\":16,\"n_layers\":1,\"moe\":{\"num_experts\":2,"
        "\"num_experts_per_tok\":1,\"expert_hidden_dim\":8}}";
    hc_list l = {0, NULL}, dense = {0, NULL};
    (void)state;
    put(&l, "layers.0.", "gate.weight", 2, H);
    for (unsigned e = 0; e < 2; e++)
        put_mlp(&l, e == 0 ? "layers.0.experts.0" : "layers.0.experts.1",
                "w1 w3 w2", I, H);
    put(&dense, "layers.0.", "gate.weight", 2, H);
    assert_string_equal(answer(&l, moe), "mistral_large_3");
    assert_said(answer(&dense, "{\"dim\":16,\"n_layers\":1}"), "[MOE-C11");
}

static void unknown_wrappers_of_a_known_model_are_opened(void **state)
{
    hc_list l = deepseek("language_model.model.", 0), bad = deepseek("x.", 0);
    (void)state;
    assert_string_equal(answer(&l,
                               "{\"model_type\":\"new_vl\",\"text_config\":{"
                               "\"model_type\":\"deepseek_v3\"," SIZES "}}"),
                        "deepseek_v3");
    assert_said(answer(&bad, "{\"model_type\":\"new_vl\",\"text_config\":{"
                             "\"model_type\":\"deepseek_v3\"," SIZES "}}"),
                "no tensor's name begins like a layer");
}

/* --------------------------------------------------- lists and groups */

/* `second`: width of the second expert, a vision one. */
static hc_list ernie(uint64_t second)
{
    hc_list l = {0, NULL};
    put(&l, "model.layers.0.", "mlp.gate.weight", H, 2); /* transposed */
    put(&l, "model.layers.0.", "mlp.gate.weight_1", H, 2);
    put(&l, "model.layers.0.", "mlp.moe_statics.e_score_correction_bias", 2, 1);
    put_experts(&l, "model.layers.0.", "mlp", GATE_UP_DOWN, second);
    return l;
}

#define ERNIE                                                                  \
  "{\"model_type\":\"ernie4_5_vl_moe\",\"moe_k\":1,\"hidden_size\":16,"        \
  "\"num_hidden_layers\":1,\"moe_num_experts\":[1,1],"                         \
  "\"moe_intermediate_size\":"

static void groups_of_unequal_width_are_mixed(void **state)
{
    hc_list by_config = ernie(4), by_tensors = ernie(4), equal = ernie(I);
    (void)state;
    const char *text = answer(&by_config, ERNIE "[8,4]}");
    assert_said(text, "[MOE-C12");
    assert_said(text, "moe_intermediate_size: 8 and 4");
    text = answer(&by_tensors, ERNIE "[8,8]}");
    assert_said(text, "[MOE-C12");
    assert_said(text, "experts.1.gate_proj.weight");
    assert_string_equal(answer(&equal, ERNIE "[8,8]}"), "ernie4_5_moe");
}

static hc_list hunyuan(void)
{
    hc_list l = {0, NULL};
    put(&l, "model.layers.0.", "mlp.gate_proj.weight", 2 * I, H); /* dense */
    put(&l, "model.layers.1.", "mlp.gate.wg.weight", 2, H);
    put_experts(&l, "model.layers.1.", "mlp", GATE_UP_DOWN, I);
    return l;
}

#define HUNYUAN(experts, inter)                                                \
  "{\"model_type\":\"hunyuan\",\"moe_topk\":[1,1],\"hidden_size\":16,"         \
  "\"num_hidden_layers\":2,\"moe_layer_num_skipped\":1,\"num_"                 \
  "experts\":" experts                                                         \
  ",\"intermediate_size\":99,\"moe_intermediate_size\":" inter "}"

static void lists_by_layer_must_be_equal_where_they_count(void **state)
{
    hc_list plain = hunyuan(), zero = hunyuan(), differ = hunyuan(),
            none = hunyuan();
    (void)state;
    assert_string_equal(answer(&plain, HUNYUAN("[2,2]", "[8,8]")),
                        "hunyuan_moe");
    assert_string_equal(answer(&zero, HUNYUAN("[0,2]", "[0,8]")),
                        "hunyuan_moe");
    assert_said(answer(&differ, HUNYUAN("[4,2]", "8")), "[MOE-C12");
    assert_said(answer(&none, HUNYUAN("[]", "8")), "is an empty list");
}

/* ------------------------------------------------------------ routers */

static hc_list longcat(uint64_t columns)
{
    hc_list l = {0, NULL};
    put(&l, "model.layers.0.", "mlp.router.classifier.weight", columns, H);
    put_experts(&l, "model.layers.0.", "mlp", GATE_UP_DOWN, I);
    return l;
}

#define LONGCAT                                                                \
  "{\"model_type\":\"longcat_flash\",\"n_routed_experts\":2,\"moe_topk\":4,"   \
  "\"hidden_size\":16,\"num_layers\":1,\"num_hidden_layers\":2,"               \
  "\"expert_ffn_hidden_size\":8,\"zero_expert_num\":"

static void zero_experts_are_columns_of_the_router_alone(void **state)
{
    hc_list good = longcat(5), without = longcat(2), greedy = longcat(3);
    moec_model *m;
    moec_error err;
    (void)state;
    if (open_model(&good, LONGCAT "3}", &m, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    assert_int_equal(moec_model_facts(m)->n_experts, 2);
    moec_model_destroy(m);
    assert_said(answer(&without, LONGCAT "3}"), "is [2, 16], must be [5, 16]");
    assert_said(answer(&greedy, LONGCAT "1}"), "[MOE-C06");
}

/* ------------------------------------------------------------ MTP */

/* Nemotron: MTP layer 0 is attention, 1 has the experts. */
static hc_list nemotron(bool with_attention)
{
    hc_list l = {0, NULL};
    static const char *const layers[] = {"backbone.layers.0.mixer.",
                                         "mtp.layers.1.mixer."};
    for (size_t i = 0; i < 2; i++) {
        put(&l, layers[i], "gate.weight", 2, H);
        for (unsigned e = 0; e < 2; e++) {
            char at[80];
            snprintf(at, sizeof(at), "%sexperts.%u", layers[i], e);
            put(&l, at, ".up_proj.weight", I, H);
            put(&l, at, ".down_proj.weight", H, I);
        }
    }
    if (with_attention)
        put(&l, "mtp.layers.0.", "mixer.q_proj.weight", H, H);
    return l;
}

static void mtp_layers_must_be_there_up_to_the_last(void **state)
{
    static const char config[] = "{\"model_type\":\"nemotron_h\",\"hybrid_"
                                 "override_pattern\":\"E\"," SIZES "}";
    hc_list whole = nemotron(true), cut = nemotron(false);
    moec_model *m;
    moec_error err;
    (void)state;
    if (open_model(&whole, config, &m, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    assert_int_equal(moec_model_n_layers(m), 2);
    assert_int_equal(moec_model_layer(m, 1)->key.number, 1);
    assert_int_equal(moec_model_facts(m)->gated, 0);
    moec_model_destroy(m);
    assert_said(answer(&cut, config), "is of MTP layer 1");
}

/* ----------------------------------------------------- configs by themselves */

#define SIZED(experts, inter, more)                                            \
  "\"num_experts\":" experts ",\"num_experts_per_tok\":2,\"hidden_size\":16,"  \
  "\"moe_intermediate_size\":" inter ",\"num_hidden_layers\":4" more "}"
#define TYPED(type, experts, inter, more)                                      \
  "{\"model_type\":\"" type "\"," SIZED(experts, inter, more)
#define OF(type, more) TYPED(type, "4", "8", more)

/* A letter a layer, 1 where it has experts; or the text of the refusal. */
static const char *layers_of(const char *config)
{
    static char text[MOEC_ERROR_TEXT_BYTES];
    moec_error err = MOEC_ERROR_INIT;
    moec_arena arena = {0};
    moec_config c;
    uint8_t moe[8] = {0};
    double limit;
    moec_status st =
        moec_config_read(&c, families, config, strlen(config), &arena, &err);

    if (st == MOEC_OK)
        st = moec_config_number(&c, MOEC_FACT_LIMIT, 1, 0.5, &limit, &err);
    if (st == MOEC_OK)
        st = moec_config_moe_layers(&c, moe, &err);
    (void)snprintf(text, sizeof(text), "%s", err.text);
    for (uint32_t i = 0; st == MOEC_OK && i < c.facts.n_layers; i++) {
        text[i] = (char)('0' + moe[i]);
        text[i + 1] = '\0';
    }
    moec_config_fini(&c);
    moec_arena_fini(&arena);
    return text;
}

static void layers_with_experts_are_said_in_many_ways(void **state)
{
    static const struct {
        const char *config, *want;
    } cases[] = {
        {OF("qwen3_moe", ""), "1111"},
        {OF("qwen3_moe", ",\"decoder_sparse_step\":2"), "0101"},
        {OF("qwen3_moe", ",\"mlp_only_layers\":[0,3]"), "0110"},
        {OF("qwen3_moe", ",\"mlp_only_layers\":[4]"), "names layer 4 of 4"},
        {OF("qwen3_moe", ",\"mlp_only_layers\":[\"0\"]"), "is a string"},
        {OF("qwen3_moe", ",\"mlp_only_layers\":7"),
         "is not a list of layer numbers"},
        {OF("qwen3_moe", ",\"decoder_sparse_step\":0"), "is 0, must be"},
        {OF("qwen3_moe", ",\"decoder_sparse_step\":\"2\""), "is a string"},
        {OF("deepseek_v3", ",\"first_k_dense_replace\":2"), "0011"},
        {OF("deepseek_v3", ",\"first_k_dense_replace\":true"), "is a boolean"},
        {OF("deepseek_v3",
            ",\"first_k_dense_replace\":1,\"moe_layer_freq\":[1,1,0,1,1]"),
         "0101"},
        {OF("deepseek_v3", ",\"moe_layer_freq\":[1,1]"), "is about 2 layers"},
        {OF("deepseek_v3", ",\"moe_layer_freq\":[1,1,2,1]"),
         "is 2, must be 0 or 1"},
        {OF("deepseek_v3", ",\"moe_layer_freq\":[1,1,true,1]"), "is a boolean"},
        {OF("jamba", ",\"intermediate_size\":8"), "0101"},
        {OF("jamba", ",\"intermediate_size\":8,\"expert_layer_offset\":[]"),
         "must be"},
        {OF("ernie4_5_moe", ",\"moe_layer_end_index\":2"), "1110"},
        {OF("ernie4_5_moe", ",\"moe_layer_end_index\":-1"), "1111"},
        {OF("ernie4_5_moe", ",\"moe_layer_end_index\":-2"), "is -2, must be"},
        {OF("step3_text", ",\"moe_layers_enum\":\"1,3\""), "0101"},
        {OF("step3_text", ",\"moe_layers_enum\":[2]"), "0010"},
        {OF("step3_text", ",\"moe_layers_enum\":\"1;3\""),
         "is not a list of layer numbers"},
        {OF("step3_text", ",\"moe_layers_enum\":\",\""),
         "is not a list of layer numbers"},
        {OF("step3_text", ",\"moe_layers_enum\":\"1111111111\""),
         "is not a list of layer numbers"},
        {OF("step3_text", ",\"moe_layers_enum\":\"9\""), "names layer 9 of 4"},
        {OF("step3_text", ",\"moe_layers_enum\":{}"),
         "is not a list of layer numbers"},
        {OF("step3_text",
            ",\"mlp_layer_types\":[\"sparse\",\"dense\",\"moe\",\"x\"]"),
         "1010"},
        {OF("step3_text", ",\"mlp_layer_types\":[\"sparse\"]"),
         "is about 1 layers"},
        {OF("step3_text", ",\"mlp_layer_types\":[1,1,1,1]"), "is an integer"},
        {OF("exaone_moe", ",\"is_moe_layer\":[false,true,true,false]"), "0110"},
        {OF("nemotron_h", ",\"hybrid_override_pattern\":\"ME*E\""), "0101"},
        {OF("nemotron_h", ",\"hybrid_override_pattern\":\"ME\""),
         "is about 2 layers"},
        {OF("nemotron_h", ",\"hybrid_override_pattern\":4"), "is an integer"},
        {OF("nemotron_h", ""), "none of the keys that say which layers"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const char *text = layers_of(cases[i].config);

        if (!strstr(text, cases[i].want))
            fail_msg("%s\n  want '%s': %s", cases[i].config, cases[i].want,
                     text);
    }
}

static void facts_of_other_kinds_are_refused(void **state)
{
    static const struct {
        const char *config, *want;
    } cases[] = {
        {TYPED("qwen3_moe", "-1", "8", ""), "is -1, must be between 0 and"},
        {TYPED("qwen3_moe", "2147483648", "8", ""), "must be between 0 and"},
        {TYPED("qwen3_moe", "4.0", "8", ""), "is a fraction"},
        {TYPED("qwen3_moe", "0", "8", ""), "is 0, must be at least 1"},
        {TYPED("qwen3_moe", "1", "8", ""), "is more than"},
        {TYPED("qwen3_moe", "null", "8", ""), "num_experts: is missing"},
        {OF("qwen3_moe", ",\"num_local_experts\":5"), "differs from"},
        {OF("qwen3_moe", ",\"norm_topk_prob\":1"), "must be a boolean"},
        {OF("qwen3_moe", ",\"hidden_act\":1"), "must be a string"},
        {TYPED("hunyuan", "[4,4]", "[8,0]", ""), "1111"},
        {TYPED("hunyuan", "[4,\"4\"]", "8", ""), "is a string"},
        {TYPED("hunyuan", "[]", "8", ""), "is an empty list"},
        {TYPED("hunyuan", "[4,5]", "8", ""), "unequal number or width"},
        {TYPED("ernie4_5_moe", "[2,2]", "[8,8]", ""), "1111"},
        {TYPED("ernie4_5_moe", "[2,-2]", "8", ""), "is -2"},
        {TYPED("ernie4_5_moe", "[2147483647,1]", "8", ""), "adds up to more"},
        {OF("deepseek_v3", ",\"routed_scaling_factor\":0"), "1111"},
        {OF("deepseek_v3", ",\"routed_scaling_factor\":-1.5"),
         "must not be negative"},
        {OF("deepseek_v3", ",\"routed_scaling_factor\":\"1\""), "is a string"},
        {OF("deepseek_v3", ",\"routed_scaling_factor\":1e999"), "C04"},
        {OF("deepseek_v3", ",\"routed_scaling_factor\":NaN"), "C04"},
        {OF("deepseek_v3", ",\"routed_scaling_factor\":-Infinity"), "C04"},
        {OF("deepseek_v3", ",\"seed\":99999999999999999999"), "C03"},
        {OF("deepseek_v3", ",\"n_group\":3"), "does not divide"},
        {OF("deepseek_v3", ",\"n_group\":2,\"topk_group\":0"), "between 1 and"},
        {OF("deepseek_v3", ",\"n_group\":2,\"topk_group\":3"), "between 1 and"},
        {OF("deepseek_v3", ",\"n_group\":4,\"topk_group\":1"),
         "more than the 1 experts of the kept groups"},
        {OF("deepseek_v3", ",\"n_shared_experts\":1.5"), "is a fraction"},
        {OF("deepseek_v3",
            ",\"quantization_config\":{\"weight_block_size\":4}"),
         "a list of two integers"},
        {OF("deepseek_v3",
            ",\"quantization_config\":{\"weight_block_size\":[4]}"),
         "a list of two integers"},
        {OF("deepseek_v3",
            ",\"quantization_config\":{\"weight_block_size\":[4,\"4\"]}"),
         "is a string"},
        {OF("deepseek_v3",
            ",\"quantization_config\":{\"weight_block_size\":[4,0]}"),
         "is 0"},
        {OF("nemotron_h", ",\"moe_latent_size\":\"x\""), "is a string"},
        {OF("nemotron_h", ",\"hidden_act\":\"a\",\"mlp_hidden_act\":\"b\""),
         "differs from"},
        {OF("step3_text",
            ",\"share_expert_dim\":8,\"share_expert_dims\":[8,9]"),
         "differs from"},
        {OF("longcat_flash", ",\"zero_expert_num\":\"x\""), ""},
        {"{\"model_type\":\"mistral4\",\"moe\":{\"first_k_dense_replace\":1},"
         "\"first_k_dense_replace\":2," SIZED("4", "8", ""),
         ""},
        {"{\"model_type\":\"dbrx\",\"d_model\":16,\"n_layers\":2,"
         "\"ffn_config\":{\"moe_num_experts\":4,\"moe_top_k\":2,"
         "\"ffn_hidden_size\":8,\"moe_normalize_expert_weights\":\"x\"}}",
         "is a string"},
        {"{\"model_type\":\"dbrx\",\"d_model\":16,\"n_layers\":2,"
         "\"ffn_config\":{\"moe_num_experts\":4,\"moe_top_k\":2,"
         "\"ffn_hidden_size\":8,\"moe_normalize_expert_weights\":0.5}}",
         "11"},
        {"{\"model_type\":\"dbrx\",\"d_model\":16,\"n_layers\":2,"
         "\"ffn_config\":{\"moe_num_experts\":4,\"moe_top_k\":2,"
         "\"ffn_hidden_size\":8,\"moe_normalize_expert_weights\":2}}",
         "11"},
        {OF("step3_text", ",\"use_moe_router_bias\":true"), "0111"},
        {OF("step3_text", ",\"use_moe_router_bias\":false"), "0111"},
        {OF("step3_text", ",\"moe_router_activation\":3"), "must be a string"},
        {OF("step3_text", ",\"swiglu_limits\":[1,null,2,3]"), "0111"},
        {OF("step3_text", ",\"swiglu_limits\":[1,2.5]"), "0111"},
        {OF("step3_text", ",\"swiglu_limits\":[1]"), "0111"},
        {OF("step3_text", ",\"swiglu_limits\":[1,\"2\"]"), "is a string"},
        {OF("step3_text", ",\"swiglu_limits\":7"), "0111"},
        {"{\"model_type\":3}", "is an integer"},
        {"{\"model_type\":\"no such\",\"text_config\":{\"model_type\":3}}",
         "is an integer"},
        {"{\"model_type\":\"no such\",\"text_config\":{\"model_type\":\"x\"}}",
         "'no such' is in no family"},
        {"{\"text_config\":{\"model_type\":\"no such\"}}",
         "'no such' is in no family"},
        {"{\"text_config\":{\"model_type\":\"qwen3_moe\"," SIZED("4", "8",
                                                                 "") "}",
         "1111"},
        {"{\"text_config\":3}", "model_type: is missing"},
        {"[]", "must be an object"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const char *text = layers_of(cases[i].config);

        if (!strstr(text, cases[i].want))
            fail_msg("%s\n  want '%s': %s", cases[i].config, cases[i].want,
                     text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shared_model_types_are_told_apart_by_content),
        cmocka_unit_test(params_without_a_model_type_are_mistrals),
        cmocka_unit_test(unknown_wrappers_of_a_known_model_are_opened),
        cmocka_unit_test(groups_of_unequal_width_are_mixed),
        cmocka_unit_test(lists_by_layer_must_be_equal_where_they_count),
        cmocka_unit_test(zero_experts_are_columns_of_the_router_alone),
        cmocka_unit_test(mtp_layers_must_be_there_up_to_the_last),
        cmocka_unit_test(layers_with_experts_are_said_in_many_ways),
        cmocka_unit_test(facts_of_other_kinds_are_refused),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
