/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The kernels' matrix of a layer's slots: which tensors are numbers and which
 * scales, and how many features a scale covers, for every published format.
 * Checkpoints are headers alone; expected values are typed from the formats.
 */

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <moec/moec.h>

#include "execute.h"
#include "header_ckpt.h"
#include "slot_axes.h"

#define N_EXPERTS 4u
#define SLOTS_MAX 16u

#define BF16      MOEC_DTYPE_BF16
#define F16       MOEC_DTYPE_F16
#define F32       MOEC_DTYPE_F32
#define F8        MOEC_DTYPE_F8_E4M3
#define E8M0      MOEC_DTYPE_F8_E8M0
#define I32       MOEC_DTYPE_I32
#define I8        MOEC_DTYPE_I8
#define U8        MOEC_DTYPE_U8

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

/* A tensor of gate (and up) and of down; 0 ends a shape. */
typedef struct kind {
    const char *suffix;
    moec_dtype dtype;
    uint64_t gate[3], down[3];
} kind;

/* What the matrix of w13 or w2 must say. */
typedef struct expected {
    uint32_t block_out, block_in;
    const char *data, *scale, *scale2, *zeros, *bias; /* components, or NULL */
} expected;

typedef struct format {
    const char *name;
    uint32_t hidden, inter;
    const char *config; /* members, or "" */
    kind c[6];
    moec_wformat format;
    expected w13, w2;
} format;

#define BLOCKS(a, b)                                                           \
  ", \"quantization_config\": {\"weight_block_size\": [" #a ", " #b "]}"

/* clang-format off */
static const format formats[] = {
    {"bf16", 64, 32, "", {{"weight", BF16, {32, 64}, {64, 32}}},
     MOEC_WFORMAT_BF16, {0, 0, "weight", 0, 0, 0, 0},
     {0, 0, "weight", 0, 0, 0, 0}},
    {"f16 with biases", 64, 32, "",
     {{"weight", F16, {32, 64}, {64, 32}}, {"bias", F32, {32}, {64}}},
     MOEC_WFORMAT_F16, {0, 0, "weight", 0, 0, 0, "bias"},
     {0, 0, "weight", 0, 0, 0, "bias"}},
    {"f32", 64, 32, "", {{"weight", F32, {32, 64}, {64, 32}}},
     MOEC_WFORMAT_F32, {0, 0, "weight", 0, 0, 0, 0},
     {0, 0, "weight", 0, 0, 0, 0}},
    {"fp8 blocks", 384, 256, BLOCKS(128, 128),
     {{"weight", F8, {256, 384}, {384, 256}},
      {"weight_scale_inv", F32, {2, 3}, {3, 2}}},
     MOEC_WFORMAT_FP8, {128, 128, "weight", "weight_scale_inv", 0, 0, 0},
     {128, 128, "weight", "weight_scale_inv", 0, 0, 0}},
    /* 192 = 128 + 64, stated and not stated */
    {"fp8 ragged blocks", 256, 192, BLOCKS(128, 128),
     {{"weight", F8, {192, 256}, {256, 192}},
      {"weight_scale_inv", F32, {2, 2}, {2, 2}}},
     MOEC_WFORMAT_FP8, {128, 128, "weight", "weight_scale_inv", 0, 0, 0},
     {128, 128, "weight", "weight_scale_inv", 0, 0, 0}},
    {"fp8 ragged blocks of no stated size", 256, 192, "",
     {{"weight", F8, {192, 256}, {256, 192}},
      {"weight_scale", BF16, {2, 2}, {2, 2}}},
     MOEC_WFORMAT_FP8, {128, 128, "weight", "weight_scale", 0, 0, 0},
     {128, 128, "weight", "weight_scale", 0, 0, 0}},
    {"fp8 oblong blocks", 96, 64, BLOCKS(32, 16),
     {{"weight", F8, {64, 96}, {96, 64}},
      {"weight_scale_inv", F32, {2, 6}, {3, 4}}},
     MOEC_WFORMAT_FP8, {32, 16, "weight", "weight_scale_inv", 0, 0, 0},
     {32, 16, "weight", "weight_scale_inv", 0, 0, 0}},
    {"fp8 blocks larger than the matrix", 64, 32, BLOCKS(128, 128),
     {{"weight", F8, {32, 64}, {64, 32}},
      {"weight_scale_inv", F32, {1, 1}, {1, 1}}},
     MOEC_WFORMAT_FP8, {32, 64, "weight", "weight_scale_inv", 0, 0, 0},
     {64, 32, "weight", "weight_scale_inv", 0, 0, 0}},
    {"fp8 blocks, e8m0", 384, 256, BLOCKS(128, 128),
     {{"weight", F8, {256, 384}, {384, 256}}, {"scale", E8M0, {2, 3}, {3, 2}}},
     MOEC_WFORMAT_FP8, {128, 128, "weight", "scale", 0, 0, 0},
     {128, 128, "weight", "scale", 0, 0, 0}},
    {"fp8 rows", 64, 32, "",
     {{"weight", F8, {32, 64}, {64, 32}},
      {"weight_scale", F32, {32, 1}, {64, 1}}},
     MOEC_WFORMAT_FP8, {1, 64, "weight", "weight_scale", 0, 0, 0},
     {1, 32, "weight", "weight_scale", 0, 0, 0}},
    {"fp8 rows without their axis", 64, 32, "",
     {{"weight", F8, {32, 64}, {64, 32}}, {"weight_scale", BF16, {32}, {64}}},
     MOEC_WFORMAT_FP8, {1, 64, "weight", "weight_scale", 0, 0, 0},
     {1, 32, "weight", "weight_scale", 0, 0, 0}},
    {"fp8 tensors", 64, 32, "",
     {{"weight", F8, {32, 64}, {64, 32}}, {"weight_scale", F32, {0}, {0}},
      {"input_scale", F32, {0}, {0}}},
     MOEC_WFORMAT_FP8, {32, 64, "weight", "weight_scale", 0, 0, 0},
     {64, 32, "weight", "weight_scale", 0, 0, 0}},
    {"mxfp8", 64, 32, BLOCKS(1, 32),
     {{"weight", F8, {32, 64}, {64, 32}},
      {"weight_scale_inv", U8, {32, 2}, {64, 1}}},
     MOEC_WFORMAT_FP8, {1, 32, "weight", "weight_scale_inv", 0, 0, 0},
     {1, 32, "weight", "weight_scale_inv", 0, 0, 0}},
    {"int4", 64, 32, "",
     {{"weight_packed", I32, {32, 8}, {64, 4}},
      {"weight_scale", BF16, {32, 2}, {64, 1}}, {"weight_shape", I32, {2}, {2}}},
     MOEC_WFORMAT_INT4, {1, 32, "weight_packed", "weight_scale", 0, 0, 0},
     {1, 32, "weight_packed", "weight_scale", 0, 0, 0}},
    {"int4 with zero points in group order", 64, 32, "",
     {{"weight_packed", I32, {32, 8}, {64, 4}},
      {"weight_scale", F16, {32, 4}, {64, 2}},
      {"weight_zero_point", I32, {4, 4}, {8, 2}},
      {"weight_g_idx", I32, {64}, {32}}, {"weight_shape", I32, {2}, {2}}},
     MOEC_WFORMAT_INT4,
     {1, 16, "weight_packed", "weight_scale", 0, "weight_zero_point", 0},
     {1, 16, "weight_packed", "weight_scale", 0, "weight_zero_point", 0}},
    {"awq", 64, 32, "",
     {{"qweight", I32, {64, 4}, {32, 8}}, {"qzeros", I32, {4, 4}, {2, 8}},
      {"scales", F16, {4, 32}, {2, 64}}},
     MOEC_WFORMAT_AWQ, {1, 16, "qweight", "scales", 0, "qzeros", 0},
     {1, 16, "qweight", "scales", 0, "qzeros", 0}},
    {"gptq", 64, 32, "",
     {{"qweight", I32, {8, 32}, {4, 64}}, {"qzeros", I32, {4, 4}, {2, 8}},
      {"scales", F16, {4, 32}, {2, 64}}, {"g_idx", I32, {64}, {32}},
      {"bias", F16, {32}, {64}}},
     MOEC_WFORMAT_GPTQ, {1, 16, "qweight", "scales", 0, "qzeros", "bias"},
     {1, 16, "qweight", "scales", 0, "qzeros", "bias"}},
    {"nvfp4", 64, 32, "",
     {{"weight", U8, {32, 32}, {64, 16}}, {"weight_scale", F8, {32, 4}, {64, 2}},
      {"weight_scale_2", F32, {0}, {0}}, {"input_scale", F32, {0}, {0}}},
     MOEC_WFORMAT_NVFP4,
     {1, 16, "weight", "weight_scale", "weight_scale_2", 0, 0},
     {1, 16, "weight", "weight_scale", "weight_scale_2", 0, 0}},
    {"mxfp4 of DeepSeek beside fp8", 128, 64, BLOCKS(128, 128),
     {{"weight", I8, {64, 64}, {128, 32}}, {"scale", E8M0, {64, 4}, {128, 2}}},
     MOEC_WFORMAT_MXFP4, {1, 32, "weight", "scale", 0, 0, 0},
     {1, 32, "weight", "scale", 0, 0, 0}},
    {"mxfp4 of compressed-tensors", 128, 64, "",
     {{"weight_packed", U8, {64, 64}, {128, 32}},
      {"weight_scale", U8, {64, 4}, {128, 2}}},
     MOEC_WFORMAT_MXFP4, {1, 32, "weight_packed", "weight_scale", 0, 0, 0},
     {1, 32, "weight_packed", "weight_scale", 0, 0, 0}},
};
/* clang-format on */

/* Formats that no kernel has, each with words of the refusal. */
/* clang-format off */
static const struct {
    format f;
    const char *why;
} refused[] = {
    {{"nvfp4 of compressed-tensors", 64, 32, "",
      {{"weight_packed", U8, {32, 32}, {64, 16}},
       {"weight_scale", F8, {32, 4}, {64, 2}},
       {"weight_global_scale", F32, {1}, {1}}}, 0, {0}, {0}},
     "w13_weight_global_scale' is F32 [2, 2]: it divides"},
    {{"fp8 without scales", 64, 32, "",
      {{"weight", F8, {32, 64}, {64, 32}}}, 0, {0}, {0}},
     "FP8 without scales"},
    {{"e5m2", 64, 32, "",
      {{"weight", MOEC_DTYPE_F8_E5M2, {32, 64}, {64, 32}},
       {"weight_scale", F32, {0}, {0}}}, 0, {0}, {0}},
     "no such weights"},
    {{"bf16 with a scale", 64, 32, "",
      {{"weight", BF16, {32, 64}, {64, 32}}, {"weight_scale", F32, {0}, {0}}},
      0, {0}, {0}},
     "not beside weights of this format"},
    {{"gptq of 8 bits", 64, 32, "",
      {{"qweight", I32, {16, 32}, {8, 64}}, {"scales", F16, {4, 32}, {2, 64}}},
      0, {0}, {0}},
     "integers of 4 bits only"},
    {{"int8", 64, 32, "",
      {{"weight_packed", I32, {32, 16}, {64, 8}},
       {"weight_scale", BF16, {32, 2}, {64, 1}}}, 0, {0}, {0}},
     "integers of 4 bits only"},
};
/* clang-format on */

static uint32_t rank_of(const uint64_t *shape)
{
    uint32_t n = 0;
    while (n < 3 && shape[n] != 0)
        n++;
    return n;
}

/* A plan of one layer in this format, and memory for one rank's slots. */
typedef struct subject {
    moec_ckpt *ckpt;
    moec_model *model;
    moec_plan *plan;
    void *data[SLOTS_MAX];
} subject;

static void make_plan(subject *s, const moec_plan_opts *o)
{
    moec_error err = MOEC_ERROR_INIT;
    if (moec_plan_create(&s->plan, s->model, o, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    size_t n = moec_plan_n_slot_tensors(s->plan, 0);
    assert_true(n <= SLOTS_MAX);
    for (size_t t = 0; t < n; t++) {
        const moec_slot_tensor *st = moec_plan_slot_tensor(s->plan, 0, t);
        s->data[t] = calloc((size_t)st->shape[0], (size_t)st->slot_bytes);
        assert_non_null(s->data[t]);
    }
}

static void open_plan(subject *s, const hc_list *l, const char *config)
{
    moec_plan_opts o = MOEC_PLAN_OPTS_INIT;
    moec_error err = MOEC_ERROR_INIT;
    s->ckpt = hc_open(l);
    if (moec_model_create(&s->model, s->ckpt, families, config, strlen(config),
                          &err) != MOEC_OK)
        fail_msg("%s: %s", config, err.text);
    o.n_ranks = 2;
    make_plan(s, &o);
}

static void close_subject(subject *s)
{
    for (size_t t = 0; t < SLOTS_MAX; t++)
        free(s->data[t]);
    moec_plan_destroy(s->plan);
    moec_model_destroy(s->model);
    moec_ckpt_close(s->ckpt);
}

static void open_format(subject *s, const format *f)
{
    static const char *const parts[] = {"w1", "w3", "w2"};
    const uint64_t router[2] = {N_EXPERTS, f->hidden};
    hc_list l = {0, NULL};
    char name[160], text[400];
    memset(s, 0, sizeof(*s));
    for (size_t c = 0; c < 6 && f->c[c].suffix != NULL; c++)
        for (unsigned e = 0; e < N_EXPERTS; e++)
            for (size_t p = 0; p < 3; p++) {
                const uint64_t *d = p == 2 ? f->c[c].down : f->c[c].gate;
                (void)snprintf(name, sizeof(name),
                               "model.layers.0.block_sparse_moe.experts.%u."
                               "%s.%s",
                               e, parts[p], f->c[c].suffix);
                hc_add(&l, name, f->c[c].dtype, rank_of(d), d);
            }
    hc_add(&l, "model.layers.0.block_sparse_moe.gate.weight", BF16, 2, router);
    (void)snprintf(text, sizeof(text),
                   "{\"model_type\": \"mixtral\", \"num_local_experts\": %u, "
                   "\"num_experts_per_tok\": 2, \"hidden_size\": %u, "
                   "\"intermediate_size\": %u, \"num_hidden_layers\": 1%s}",
                   N_EXPERTS, f->hidden, f->inter, f->config);
    open_plan(s, &l, text);
    free(l.t);
}

/* The slot tensor of a component, which must be there. */
static size_t slot_of(const subject *s, bool w2, const char *component)
{
    char tail[64];
    (void)snprintf(tail, sizeof(tail), "%s_%s", w2 ? ".w2" : ".w13", component);
    for (size_t t = 0; t < moec_plan_n_slot_tensors(s->plan, 0); t++) {
        const char *name = moec_plan_slot_tensor(s->plan, 0, t)->name;
        size_t n = strlen(name), m = strlen(tail);
        if (n >= m && strcmp(name + n - m, tail) == 0)
            return t;
    }
    fail_msg("no slot tensor '%s'", tail);
    return 0;
}

/* Group numbers that count up, as without act-order. */
static void number_groups(subject *s, bool w2, const char *component,
                          uint32_t n_in, uint32_t group)
{
    size_t t = slot_of(s, w2, component);
    const moec_slot_tensor *st = moec_plan_slot_tensor(s->plan, 0, t);
    int32_t *g = s->data[t];
    uint64_t n = st->shape[0] * st->slot_bytes / sizeof(*g);
    for (uint64_t i = 0; i < n; i++)
        g[i] = (int32_t)(i % n_in / group);
}

static void expect_part(const subject *s, bool w2, const char *component,
                        const void *data, uint64_t stride, const char *what)
{
    if (component == NULL) {
        if (data != NULL)
            fail_msg("%s is there", what);
        return;
    }
    size_t t = slot_of(s, w2, component);
    if (data != s->data[t])
        fail_msg("%s is not '%s'", what, component);
    assert_int_equal(stride, moec_plan_slot_tensor(s->plan, 0, t)->slot_bytes);
}

static void expect_matrix(const subject *s, bool w2, uint32_t n_out,
                          uint32_t n_in, uint32_t n_halves,
                          moec_wformat wformat, const expected *x)
{
    moec_matrix m;
    moec_error err = MOEC_ERROR_INIT;
    memset(&m, 0xa5, sizeof(m));
    if (moec_slot_matrix(s->plan, 0, w2, (const void *const *)s->data, &m,
                         &err) != MOEC_OK)
        fail_msg("%s", err.text);
    assert_int_equal(m.struct_bytes, sizeof(m));
    assert_int_equal(m.format, wformat);
    assert_int_equal(m.n_out, n_out);
    assert_int_equal(m.n_in, n_in);
    assert_int_equal(m.row_bytes, 0);
    assert_int_equal(m.block_out, x->block_out);
    assert_int_equal(m.block_in, x->block_in);
    expect_part(s, w2, x->data, m.data, m.data_stride, "data");
    expect_part(s, w2, x->scale, m.scale, m.scale_stride, "scale");
    expect_part(s, w2, x->scale2, m.scale2, m.scale2_stride, "scale2");
    expect_part(s, w2, x->zeros, m.zeros, m.zeros_stride, "zeros");
    expect_part(s, w2, x->bias, m.bias, m.bias_stride, "bias");
    if (x->scale != NULL)
        assert_int_equal(
            m.scale_dtype,
            moec_plan_slot_tensor(s->plan, 0, slot_of(s, w2, x->scale))->dtype);
    if (x->bias != NULL)
        assert_int_equal(
            m.bias_dtype,
            moec_plan_slot_tensor(s->plan, 0, slot_of(s, w2, x->bias))->dtype);
    bool kept = wformat == MOEC_WFORMAT_AWQ || wformat == MOEC_WFORMAT_GPTQ;
    assert_int_equal(m.part_rows, n_halves == 2 && !kept ? n_out / 2 : 0);
    assert_int_equal(m.scale2_rows,
                     n_halves == 2 && x->scale2 != NULL ? n_out / 2 : 0);
}

static void every_format_gives_its_matrix(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(formats) / sizeof(*formats); i++) {
        const format *f = &formats[i];
        subject s;
        open_format(&s, f);
        for (size_t c = 0; c < 6 && f->c[c].suffix != NULL; c++) {
            if (strstr(f->c[c].suffix, "g_idx") == NULL)
                continue;
            number_groups(&s, false, f->c[c].suffix, f->hidden, 16);
            number_groups(&s, true, f->c[c].suffix, f->inter, 16);
        }
        expect_matrix(&s, false, 2 * f->inter, f->hidden, 2, f->format,
                      &f->w13);
        expect_matrix(&s, true, f->hidden, f->inter, 1, f->format, &f->w2);
        close_subject(&s);
    }
}

static void expect_refused(subject *s, bool w2, moec_status status,
                           const char *why)
{
    moec_matrix m = {.n_out = 77};
    moec_error err = MOEC_ERROR_INIT;
    moec_status st = moec_slot_matrix(s->plan, 0, w2,
                                      (const void *const *)s->data, &m, &err);
    if (st != status || strstr(err.text, why) == NULL)
        fail_msg("%d, \"%s\": expected %d, \"%s\"", st, err.text, status, why);
    assert_int_equal(m.n_out, 77);
}

static void other_formats_are_unsupported(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(refused) / sizeof(*refused); i++) {
        subject s;
        open_format(&s, &refused[i].f);
        expect_refused(&s, false, MOEC_E_UNSUPPORTED, refused[i].why);
        close_subject(&s);
    }
}

static const format *format_named(const char *name)
{
    for (size_t i = 0; i < sizeof(formats) / sizeof(*formats); i++)
        if (strcmp(formats[i].name, name) == 0)
            return &formats[i];
    fail_msg("no format '%s'", name);
    return NULL;
}

static void groups_out_of_order_are_unsupported(void **state)
{
    subject s;
    (void)state;
    open_format(&s, format_named("gptq"));
    size_t t = slot_of(&s, true, "g_idx");
    number_groups(&s, true, "g_idx", 32, 16);
    int32_t *last_row = (int32_t *)s.data[t] + 32;
    assert_int_equal(moec_plan_slot_tensor(s.plan, 0, t)->slot_bytes, 128);
    last_row[31] = 0;
    expect_refused(&s, true, MOEC_E_UNSUPPORTED, "act-order");
    moec_matrix first; /* who holds the first row alone has no second */
    assert_int_equal(moec_slot_matrix_rows(s.plan, 0, true, 1,
                                           (const void *const *)s.data, &first,
                                           NULL),
                     MOEC_OK);
    /* an empty slot holds zeros */
    memset(last_row, 0, 32 * sizeof(*last_row));
    expect_matrix(&s, true, 64, 32, 1, MOEC_WFORMAT_GPTQ,
                  &format_named("gptq")->w2);
    close_subject(&s);
}

static void data_that_is_needed_must_be_there(void **state)
{
    subject s;
    (void)state;
    open_format(&s, format_named("fp8 tensors"));
    size_t input = slot_of(&s, false, "input_scale");
    size_t scale = slot_of(&s, false, "weight_scale");
    free(s.data[input]);
    s.data[input] = NULL; /* not needed */
    expect_matrix(&s, false, 64, 64, 2, MOEC_WFORMAT_FP8,
                  &format_named("fp8 tensors")->w13);
    free(s.data[scale]);
    s.data[scale] = NULL;
    expect_refused(&s, false, MOEC_E_ARG, "w13_weight_scale') is NULL");
    close_subject(&s);
}

/* relu2: w13 is up alone, and numbers a projection are one. */
static void ungated_experts_have_one_part(void **state)
{
    static const struct {
        const char *suffix;
        moec_dtype dtype;
        uint64_t up[3], down[3];
    } c[] = {{"weight", U8, {32, 32}, {64, 16}},
             {"weight_scale", F8, {32, 4}, {64, 2}},
             {"weight_scale_2", F32, {0}, {0}}};
    static const uint64_t router[2] = {N_EXPERTS, 64};
    static const expected x = {
        1, 16, "weight", "weight_scale", "weight_scale_2", NULL, NULL};
    hc_list l = {0, NULL};
    subject s = {0};
    char name[160];
    (void)state;
    for (size_t i = 0; i < 3; i++)
        for (unsigned e = 0; e < N_EXPERTS; e++)
            for (unsigned p = 0; p < 2; p++) {
                const uint64_t *d = p ? c[i].down : c[i].up;
                (void)snprintf(name, sizeof(name),
                               "backbone.layers.0.mixer.experts.%u.%s_proj.%s",
                               e, p ? "down" : "up", c[i].suffix);
                hc_add(&l, name, c[i].dtype, rank_of(d), d);
            }
    hc_add(&l, "backbone.layers.0.mixer.gate.weight", BF16, 2, router);
    open_plan(&s, &l,
              "{\"model_type\": \"nemotron_h\", \"n_routed_experts\": 4, "
              "\"num_experts_per_tok\": 2, \"hidden_size\": 64, "
              "\"moe_intermediate_size\": 32, \"num_hidden_layers\": 1, "
              "\"hybrid_override_pattern\": \"E\"}");
    free(l.t);
    expect_matrix(&s, false, 32, 64, 1, MOEC_WFORMAT_NVFP4, &x);
    expect_matrix(&s, true, 64, 32, 1, MOEC_WFORMAT_NVFP4, &x);
    close_subject(&s);
}

/* gpt-oss: [E, 2I, H/32, 16], interleaved in the source, halves in slots. */
static void stacked_blocks_are_mxfp4(void **state)
{
    static const struct {
        const char *name;
        moec_dtype dtype;
        uint32_t rank;
        uint64_t shape[4];
    } t[] = {{"experts.gate_up_proj_blocks", U8, 4, {4, 192, 2, 16}},
             {"experts.gate_up_proj_scales", U8, 3, {4, 192, 2}},
             {"experts.gate_up_proj_bias", BF16, 2, {4, 192}},
             {"experts.down_proj_blocks", U8, 4, {4, 64, 3, 16}},
             {"experts.down_proj_scales", U8, 3, {4, 64, 3}},
             {"experts.down_proj_bias", BF16, 2, {4, 64}},
             {"router.weight", BF16, 2, {4, 64}},
             {"router.bias", BF16, 1, {4}}};
    static const expected x = {1, 32, "blocks", "scales", NULL, NULL, "bias"};
    hc_list l = {0, NULL};
    subject s = {0};
    char name[160];
    (void)state;
    for (size_t i = 0; i < sizeof(t) / sizeof(*t); i++) {
        (void)snprintf(name, sizeof(name), "model.layers.0.mlp.%s", t[i].name);
        hc_add(&l, name, t[i].dtype, t[i].rank, t[i].shape);
    }
    open_plan(&s, &l,
              "{\"model_type\": \"gpt_oss\", \"num_local_experts\": 4, "
              "\"num_experts_per_tok\": 2, \"hidden_size\": 64, "
              "\"intermediate_size\": 96, \"num_hidden_layers\": 1}");
    free(l.t);
    expect_matrix(&s, false, 192, 64, 2, MOEC_WFORMAT_MXFP4, &x);
    expect_matrix(&s, true, 64, 96, 1, MOEC_WFORMAT_MXFP4, &x);
    close_subject(&s);
}

/* -------------------------------------------------------------- values
 * Blocks of 128 over widths of 192: those of up begin anew behind gate's. */

#define FIXTURE MOEC_TEST_FIXTURES "/checkpoints/deepseek_v3_fp8_ragged"
#define H       256u
#define I       192u

static double e4m3(uint8_t code)
{
    int exponent = code >> 3 & 15, mantissa = code & 7;
    double v = exponent == 0 ? ldexp(mantissa, -9)
                             : ldexp(8 + mantissa, exponent - 10);
    return code & 0x80 ? -v : v;
}

/* The whole of a tensor; the caller's. */
static void *bytes_of(const moec_ckpt *ckpt, const char *name)
{
    moec_error err = MOEC_ERROR_INIT;
    const moec_tensor *t = NULL;
    size_t i;
    for (i = 0; i < moec_ckpt_n_tensors(ckpt) && t == NULL; i++)
        if (strcmp(moec_ckpt_tensor(ckpt, i)->name, name) == 0)
            t = moec_ckpt_tensor(ckpt, i);
    if (t == NULL)
        fail_msg("no tensor '%s'", name);
    void *data = malloc((size_t)t->bytes);
    assert_non_null(data);
    if (moec_ckpt_read(ckpt, i - 1, 0, data, (size_t)t->bytes, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    return data;
}

static moec_status read_source(void *ctx, uint32_t tensor, uint64_t off,
                               void *buf, size_t n, moec_error *err)
{
    return moec_ckpt_read(ctx, tensor, off, buf, n, err);
}

/* Put expert `e` into row `e` of every slot tensor. */
static void fill_rows(subject *s)
{
    moec_scratch scratch = {0};
    moec_error err = MOEC_ERROR_INIT;
    for (size_t t = 0; t < moec_plan_n_slot_tensors(s->plan, 0); t++) {
        const moec_slot_tensor *st = moec_plan_slot_tensor(s->plan, 0, t);
        for (uint32_t e = 0; e < st->shape[0]; e++) {
            moec_move m[MOEC_BLOCK_MOVES_MAX];
            size_t n = moec_plan_block_moves(s->plan, 0, t, e, m);
            if (moec_block_read(m, n, 0, st->slot_bytes,
                                (char *)s->data[t] + e * st->slot_bytes,
                                read_source, s->ckpt, &scratch,
                                &err) != MOEC_OK)
                fail_msg("%s", err.text);
        }
    }
    moec_scratch_fini(&scratch);
}

/* Rows of one projection of an expert against the source's own tensors. */
static void expect_rows(const subject *s, uint32_t e, const char *projection,
                        const float *rows, uint32_t n_out, uint32_t n_in)
{
    char name[120];
    snprintf(name, sizeof(name), "model.layers.1.mlp.experts.%u.%s.weight", e,
             projection);
    uint8_t *w = bytes_of(s->ckpt, name);
    snprintf(name, sizeof(name),
             "model.layers.1.mlp.experts.%u.%s.weight_scale_inv", e,
             projection);
    float *scale = bytes_of(s->ckpt, name);
    for (uint32_t o = 0; o < n_out; o++)
        for (uint32_t i = 0; i < n_in; i++) {
            double want =
                e4m3(w[o * n_in + i]) *
                (double)scale[o / 128 * ((n_in + 127) / 128) + i / 128];
            if ((float)want < rows[o * n_in + i] ||
                (float)want > rows[o * n_in + i])
                fail_msg("%s[%u][%u] is %g, expected %g", name, o, i,
                         (double)rows[o * n_in + i], want);
        }
    free(w);
    free(scale);
}

static void values_are_those_of_the_source(void **state)
{
    static float out[2 * I * H];
    moec_kernels *k = NULL;
    moec_error err = MOEC_ERROR_INIT;
    (void)state;
    assert_int_equal(moec_kernels_open(&k, NULL, &err), MOEC_OK);
    for (int swap = 0; swap < 2; swap++) {
        moec_plan_opts o = MOEC_PLAN_OPTS_INIT;
        subject s = {0};
        moec_matrix w13, w2;
        o.w13_order = swap ? MOEC_W13_UP_GATE : MOEC_W13_GATE_UP;
        if (moec_ckpt_open(&s.ckpt, FIXTURE, NULL, &err) != MOEC_OK ||
            moec_model_open(&s.model, s.ckpt, families, &err) != MOEC_OK)
            fail_msg("%s", err.text);
        make_plan(&s, &o);
        fill_rows(&s);
        const void *const *data = (const void *const *)s.data;
        if (moec_slot_matrix(s.plan, 0, 0, data, &w13, &err) != MOEC_OK ||
            moec_slot_matrix(s.plan, 0, 1, data, &w2, &err) != MOEC_OK)
            fail_msg("%s", err.text);
        for (uint32_t e = 0; e < 8; e++) {
            assert_int_equal(moec_dequantize(k, &w13, e, 0, 2 * I, out, &err),
                             MOEC_OK);
            expect_rows(&s, e, "gate_proj", out + (swap ? I * H : 0), I, H);
            expect_rows(&s, e, "up_proj", out + (swap ? 0 : I * H), I, H);
            assert_int_equal(moec_dequantize(k, &w2, e, 0, H, out, &err),
                             MOEC_OK);
            expect_rows(&s, e, "down_proj", out, H, I);
        }
        close_subject(&s);
    }
    moec_kernels_close(k);
}

static void there_is_no_layer_behind_the_last(void **state)
{
    moec_matrix m;
    moec_error err = MOEC_ERROR_INIT;
    subject s;
    (void)state;
    open_format(&s, format_named("bf16"));
    assert_int_equal(
        moec_slot_matrix(s.plan, 1, 0, (const void *const *)s.data, &m, &err),
        MOEC_E_ARG);
    close_subject(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_format_gives_its_matrix),
        cmocka_unit_test(other_formats_are_unsupported),
        cmocka_unit_test(groups_out_of_order_are_unsupported),
        cmocka_unit_test(data_that_is_needed_must_be_there),
        cmocka_unit_test(ungated_experts_have_one_part),
        cmocka_unit_test(stacked_blocks_are_mxfp4),
        cmocka_unit_test(values_are_those_of_the_source),
        cmocka_unit_test(there_is_no_layer_behind_the_last),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
