/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From the slot tensors of a layer to the kernels' matrices: which tensors are
 * the numbers, which their scales, and how many features one scale covers.
 *
 * Names alone do not say the format (".weight_scale" is of blocks, rows and
 * whole tensors, of FP8 and of FP4), so dtypes and shapes decide together.
 * Every component of the layer must be understood: one that is not would be
 * left out of the product silently. Refused as UNSUPPORTED: what no format of
 * moec_wformat is.
 */

#include <string.h>

#include "base/base.h"
#include "model.h"
#include "slot_axes.h"

typedef enum part_of_matrix {
    DATA,
    SCALE,
    SCALE2,
    ZEROS,
    G_IDX,
    BIAS,
    DIVISOR,
    LEFT_OUT, /* nothing that a product with unrounded activations needs */
    N_PARTS
} part_of_matrix;

/* Components by name. */
static const struct {
    const char *name;
    part_of_matrix part;
} components[] = {
    {"weight", DATA},
    {"weight_packed", DATA},
    {"qweight", DATA},
    {"blocks", DATA},
    {"weight_scale_inv", SCALE},
    {"weight_scale", SCALE},
    {"scale", SCALE},
    {"scales", SCALE},
    {"weight_scale_2", SCALE2},
    {"weight_zero_point", ZEROS},
    {"qzeros", ZEROS},
    {"g_idx", G_IDX},
    {"weight_g_idx", G_IDX},
    {"bias", BIAS},
    {"weight_global_scale", DIVISOR},
    {"weight_shape", LEFT_OUT},
    {"input_scale", LEFT_OUT},
    {"input_global_scale", LEFT_OUT},
};

typedef struct maker {
    const moec_plan *plan;
    size_t layer;
    const moec_slot_tensor *part[N_PARTS];
    const void *data[N_PARTS];
    const moec_slice *scale; /* the slice that the scale is made of */
    uint32_t rows;           /* of `data` */
    uint32_t n_halves;
    uint64_t half_out; /* rows of gate, of up, or all */
    moec_matrix m;
    moec_error *err;
} maker;

static moec_status unknown(maker *k, const moec_slot_tensor *t, const char *why)
{
    char shape[64] = "[";
    size_t n = 1;
    for (uint32_t i = 0; i < t->rank && n + 24 < sizeof(shape); i++)
        n += (size_t)snprintf(shape + n, sizeof(shape) - n, "%s%ju",
                              i == 0 ? "" : ", ", (uintmax_t)t->shape[i]);
    return moec_fail(k->err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                     "slot tensor '%s' is %s %s]: %s", t->name,
                     moec_dtype_name(t->dtype), shape, why);
}

/* ---------------------------------------------------------- find parts */

/* "weight_scale" of "model.layers.3.mlp.experts.w13_weight_scale". */
static const char *component_of(const maker *k, const moec_slot_tensor *t)
{
    size_t model_layer = moec_plan_model_layer(k->plan, k->layer);
    const moec_moe_layer *l =
        moec_model_layer(moec_plan_model(k->plan), model_layer);
    return t->name + strlen(l->experts_prefix) +
           strlen(t->is_w2 ? ".w2_" : ".w13_");
}

static const moec_slice *slice_of(const maker *k, const char *component,
                                  bool w2)
{
    const moec_layer_slices *l = moec_model_slices(
        moec_plan_model(k->plan), moec_plan_model_layer(k->plan, k->layer));
    for (size_t i = 0; i < l->n_slices; i++) {
        const moec_slice *s = &l->slices[i];
        if (s->role == MOEC_ROLE_ROUTED && (s->part == MOEC_PART_DOWN) == w2 &&
            strcmp(s->component, component) == 0)
            return s;
    }
    return NULL;
}

static moec_status find_part(maker *k, size_t t, const void *const *data)
{
    const moec_slot_tensor *st = moec_plan_slot_tensor(k->plan, k->layer, t);
    const char *component = component_of(k, st);
    size_t i = 0, n = sizeof(components) / sizeof(*components);
    while (i < n && strcmp(components[i].name, component) != 0)
        i++;
    if (i == n)
        return unknown(k, st, "kernels do not know this component");
    part_of_matrix part = components[i].part;
    if (part == LEFT_OUT)
        return MOEC_OK;
    if (part == DIVISOR) /* NVFP4 of compressed-tensors */
        return unknown(k, st, "it divides, and kernels multiply");
    if (k->part[part] != NULL)
        return unknown(k, st, "the layer has another tensor of that kind");
    k->part[part] = st;
    k->data[part] = data[t];
    if (part == SCALE)
        k->scale = slice_of(k, component, st->is_w2);
    if (data[t] == NULL)
        return moec_fail(k->err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "moec_slot_matrix: data[%zu] ('%s') is NULL", t,
                         st->name);
    return MOEC_OK;
}

static moec_status find_parts(maker *k, bool w2, const void *const *data)
{
    for (size_t t = 0; t < moec_plan_n_slot_tensors(k->plan, k->layer); t++)
        if ((moec_plan_slot_tensor(k->plan, k->layer, t)->is_w2 != 0) == w2)
            MOEC_TRY(find_part(k, t, data));
    if (k->part[DATA] == NULL)
        return moec_fail(k->err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                         "layer %zu has no weights of %s that kernels know",
                         k->layer, w2 ? "w2" : "w13");
    return MOEC_OK;
}

/* --------------------------------------------------------------- blocks */

uint64_t moec_scale_block(uint64_t n, uint64_t whole)
{
    if (n == 0 || n > whole)
        return 0;
    if (n == 1)
        return whole;
    for (uint64_t b = 1; b < whole; b *= 2)
        if (moec_ceil_div(whole, b) == n)
            return b;
    return whole % n == 0 ? whole / n : 0;
}

/* Is `t` a row of [rows, out, in] with these sizes? Trailing axes count as one
 * (gpt-oss blocks are [out, in/32, 16]). */
static bool is_matrix(const moec_slot_tensor *t, uint64_t out, uint64_t in)
{
    uint64_t product = 1;
    if (t->rank < 3 || t->shape[1] != out)
        return false;
    for (uint32_t i = 2; i < t->rank; i++)
        if (!moec_mul_u64(product, t->shape[i], &product))
            return false;
    return product == in;
}

/* Scales [out blocks, in blocks] of each half, or one number a half. */
static moec_status set_blocks(maker *k)
{
    const moec_slot_tensor *t = k->part[SCALE];
    uint64_t out = 1, in = 1;
    if (t->rank == 3) {
        if (t->shape[1] % k->n_halves != 0)
            return unknown(k, t, "gate and up share a scale");
        out = t->shape[1] / k->n_halves;
        in = t->shape[2];
    } else if (t->rank > 3 || (t->rank == 2 && t->shape[1] != k->n_halves)) {
        return unknown(k, t, "scales are matrices, or one number a projection");
    }
    uint64_t block_out = moec_scale_block(out, k->half_out);
    uint64_t block_in = moec_scale_block(in, k->m.n_in);
    if (k->scale != NULL && k->scale->by_block) {
        block_out = k->scale->block[0];
        block_in = k->scale->block[1];
        if (moec_ceil_div(k->half_out, block_out) != out ||
            moec_ceil_div(k->m.n_in, block_in) != in)
            return unknown(k, t, "weight_block_size gives other blocks");
    }
    if (block_out == 0 || block_in == 0)
        return unknown(k, t, "the size of a block is not to be told");
    k->m.block_out = (uint32_t)moec_min_u64(block_out, k->half_out);
    k->m.block_in = (uint32_t)moec_min_u64(block_in, k->m.n_in);
    k->m.scale = k->data[SCALE];
    k->m.scale_stride = t->slot_bytes;
    k->m.scale_dtype = t->dtype;
    return MOEC_OK;
}

static bool is_float(moec_dtype d)
{
    return d == MOEC_DTYPE_F32 || d == MOEC_DTYPE_BF16 || d == MOEC_DTYPE_F16;
}

static bool is_e8m0(moec_dtype d)
{
    return d == MOEC_DTYPE_F8_E8M0 || d == MOEC_DTYPE_U8;
}

/* A tensor that this format has no place for. */
static moec_status refuse_others(maker *k, uint32_t allowed)
{
    for (uint32_t p = 0; p < N_PARTS; p++)
        if (k->part[p] != NULL && (allowed & 1u << p) == 0)
            return unknown(k, k->part[p], "not beside weights of this format");
    return MOEC_OK;
}

#define BIT(part) (1u << (part))
#define ALWAYS    (BIT(DATA) | BIT(BIAS))

/* -------------------------------------------------------------- formats */

/* Act-order permutes inputs; a group of each input that only counts up says
 * nothing that the order of rows does not. An empty slot is all zeros. */
static moec_status check_order(maker *k)
{
    const moec_slot_tensor *t = k->part[G_IDX];
    const char *row = k->data[G_IDX];
    if (t == NULL)
        return MOEC_OK;
    uint64_t n = t->slot_bytes / sizeof(int32_t);
    if (t->dtype != MOEC_DTYPE_I32 || n % k->m.n_in != 0)
        return unknown(k, t, "a group of each input is an I32");
    for (uint32_t r = 0; r < k->rows; r++, row += t->slot_bytes) {
        uint32_t sorted = 1, zero = 1;
        for (uint64_t i = 0; i < n; i++) {
            uint32_t group = moec_le32(row + i * sizeof(int32_t));
            sorted &= group == i % k->m.n_in / k->m.block_in;
            zero &= group == 0;
        }
        if (!sorted && !zero)
            return unknown(k, t,
                           "groups are not in the order of the inputs "
                           "(act-order)");
    }
    return MOEC_OK;
}

static moec_status set_plain(maker *k)
{
    const moec_slot_tensor *t = k->part[DATA];
    k->m.format = t->dtype == MOEC_DTYPE_F32    ? MOEC_WFORMAT_F32
                  : t->dtype == MOEC_DTYPE_BF16 ? MOEC_WFORMAT_BF16
                                                : MOEC_WFORMAT_F16;
    if (!is_matrix(t, k->m.n_out, k->m.n_in))
        return unknown(k, t, "not [out, in]");
    return refuse_others(k, ALWAYS);
}

static moec_status set_fp8(maker *k)
{
    const moec_slot_tensor *t = k->part[DATA], *s = k->part[SCALE];
    k->m.format = MOEC_WFORMAT_FP8;
    if (!is_matrix(t, k->m.n_out, k->m.n_in))
        return unknown(k, t, "not [out, in]");
    if (s == NULL)
        return unknown(k, t, "FP8 without scales");
    if (!is_float(s->dtype) && !is_e8m0(s->dtype))
        return unknown(k, s, "scales of FP8 are F32, BF16, F16 or E8M0");
    MOEC_TRY(refuse_others(k, ALWAYS | BIT(SCALE)));
    return set_blocks(k);
}

/* Eight 4-bit integers in an I32, along the inputs. */
static moec_status set_int4(maker *k)
{
    const moec_slot_tensor *t = k->part[DATA], *s = k->part[SCALE],
                           *z = k->part[ZEROS];
    k->m.format = MOEC_WFORMAT_INT4;
    if (k->m.n_in % 8 != 0 || !is_matrix(t, k->m.n_out, k->m.n_in / 8))
        return unknown(k, t, "not [out, in/8]: integers of 4 bits only");
    if (s == NULL || !is_float(s->dtype))
        return unknown(k, s != NULL ? s : t,
                       "4-bit integers without scales "
                       "of floats");
    MOEC_TRY(refuse_others(k, ALWAYS | BIT(SCALE) | BIT(ZEROS) | BIT(G_IDX)));
    MOEC_TRY(set_blocks(k));
    if (k->m.block_out != 1 && k->half_out != 1)
        return unknown(k, s, "scales of 4-bit integers are [out, in/group]");
    if (z != NULL && (z->dtype != MOEC_DTYPE_I32 ||
                      !is_matrix(z, moec_ceil_div(k->half_out, 8) * k->n_halves,
                                 s->shape[2])))
        return unknown(k, z, "zero points are I32 [out/8, in/group]");
    if (z != NULL) {
        k->m.zeros = k->data[ZEROS];
        k->m.zeros_stride = z->slot_bytes;
    }
    return check_order(k);
}

/* Two E2M1 in a byte, with the scales of MXFP4 or NVFP4. */
static moec_status set_fp4(maker *k)
{
    const moec_slot_tensor *t = k->part[DATA], *s = k->part[SCALE],
                           *s2 = k->part[SCALE2];
    uint64_t in = t->dtype == MOEC_DTYPE_F4 ? k->m.n_in : k->m.n_in / 2;
    bool mx = s != NULL && is_e8m0(s->dtype);
    if (k->m.n_in % 2 != 0 || !is_matrix(t, k->m.n_out, in))
        return unknown(k, t, "not two numbers in a byte [out, in/2]");
    if (!mx && (s == NULL || s->dtype != MOEC_DTYPE_F8_E4M3))
        return unknown(k, s != NULL ? s : t,
                       "FP4 has scales of E8M0 (MXFP4) or E4M3 (NVFP4)");
    k->m.format = mx ? MOEC_WFORMAT_MXFP4 : MOEC_WFORMAT_NVFP4;
    MOEC_TRY(refuse_others(k, ALWAYS | BIT(SCALE) | (mx ? 0 : BIT(SCALE2))));
    MOEC_TRY(set_blocks(k));
    if (k->m.block_out != 1 && k->half_out != 1)
        return unknown(k, s, "scales of FP4 are [out, in/group]");
    if (s2 == NULL)
        return MOEC_OK;
    uint32_t halves = s2->rank > 1 ? (uint32_t)s2->shape[1] : 1;
    if (s2->dtype != MOEC_DTYPE_F32 || s2->rank > 2 || halves != k->n_halves)
        return unknown(k, s2, "a scale of scales is one F32 a projection");
    k->m.scale2 = (const float *)k->data[SCALE2];
    k->m.scale2_stride = s2->slot_bytes;
    k->m.scale2_rows = k->n_halves == 1 ? 0 : (uint32_t)k->half_out;
    return MOEC_OK;
}

/* [in, out], eight integers of 4 bits in an I32: along the outputs (AWQ) or
 * along the inputs (GPTQ). */
static moec_status set_kept(maker *k)
{
    const moec_slot_tensor *t = k->part[DATA], *s = k->part[SCALE],
                           *z = k->part[ZEROS];
    uint64_t out = k->m.n_out, in = k->m.n_in;
    bool awq = is_matrix(t, in, out / 8), gptq = is_matrix(t, in / 8, out);
    if (t->dtype != MOEC_DTYPE_I32 || out % 8 != 0 || awq == gptq ||
        (gptq && in % 8 != 0))
        return unknown(k, t,
                       "neither [in, out/8] (AWQ) nor [in/8, out] "
                       "(GPTQ): integers of 4 bits only");
    k->m.format = awq ? MOEC_WFORMAT_AWQ : MOEC_WFORMAT_GPTQ;
    MOEC_TRY(refuse_others(k, ALWAYS | BIT(SCALE) | BIT(ZEROS) | BIT(G_IDX)));
    if (s == NULL || !is_float(s->dtype) || s->rank != 3 || s->shape[2] != out)
        return unknown(k, s != NULL ? s : t,
                       "scales are floats [in/group, "
                       "out]");
    if (z != NULL &&
        (z->dtype != MOEC_DTYPE_I32 || !is_matrix(z, s->shape[1], out / 8)))
        return unknown(k, z, "zero points are I32 [in/group, out/8]");
    uint64_t group = moec_scale_block(s->shape[1], in);
    if (group == 0)
        return unknown(k, s, "the size of a group is not to be told");
    k->m.block_out = 1;
    k->m.block_in = (uint32_t)group;
    k->m.scale = k->data[SCALE];
    k->m.scale_stride = s->slot_bytes;
    k->m.scale_dtype = s->dtype;
    k->m.part_rows = 0;
    if (z != NULL) {
        k->m.zeros = k->data[ZEROS];
        k->m.zeros_stride = z->slot_bytes;
    }
    return check_order(k);
}

static moec_status set_format(maker *k)
{
    const moec_slot_tensor *t = k->part[DATA];
    bool kept = strcmp(component_of(k, t), "qweight") == 0;
    if (kept)
        return set_kept(k);
    switch (t->dtype) {
    case MOEC_DTYPE_F32:
    case MOEC_DTYPE_BF16:
    case MOEC_DTYPE_F16:
        return set_plain(k);
    case MOEC_DTYPE_F8_E4M3:
        return set_fp8(k);
    case MOEC_DTYPE_I32:
        return set_int4(k);
    case MOEC_DTYPE_U8:
    case MOEC_DTYPE_I8:
    case MOEC_DTYPE_F4:
        return set_fp4(k);
    default:
        return unknown(k, t, "kernels have no such weights");
    }
}

static moec_status set_bias(maker *k)
{
    const moec_slot_tensor *t = k->part[BIAS];
    if (t == NULL)
        return MOEC_OK;
    if (!is_float(t->dtype) || t->rank != 2 || t->shape[1] != k->m.n_out)
        return unknown(k, t, "a bias is floats [out]");
    k->m.bias = k->data[BIAS];
    k->m.bias_stride = t->slot_bytes;
    k->m.bias_dtype = t->dtype;
    return MOEC_OK;
}

moec_status moec_slot_matrix_rows(const moec_plan *plan, size_t layer,
                                  int is_w2, uint32_t n_rows,
                                  const void *const *data, moec_matrix *out,
                                  moec_error *err)
{
    maker k = {.plan = plan, .layer = layer, .rows = n_rows, .err = err};
    moec_moe_facts facts;
    if (layer >= moec_plan_n_layers(plan))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "moec_slot_matrix: there is no layer %zu of %zu",
                         layer, moec_plan_n_layers(plan));
    MOEC_TRY(moec_model_moe(moec_plan_model(plan),
                            moec_plan_model_layer(plan, layer), &facts, err));
    k.n_halves = !is_w2 && facts.ffn.gated ? 2 : 1;
    k.half_out = is_w2 ? facts.ffn.hidden : facts.ffn.inter;
    if (k.half_out > UINT32_MAX / 2)
        return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                         "experts of %ju features", (uintmax_t)k.half_out);
    k.m.struct_bytes = sizeof(k.m);
    k.m.n_out = k.n_halves * (uint32_t)k.half_out;
    k.m.n_in = is_w2 ? facts.ffn.inter : facts.ffn.hidden;
    k.m.part_rows = k.n_halves == 2 ? (uint32_t)k.half_out : 0;
    k.m.scale_dtype = k.m.bias_dtype = MOEC_DTYPE_F32;
    MOEC_TRY(find_parts(&k, is_w2 != 0, data));
    MOEC_TRY(set_format(&k));
    MOEC_TRY(set_bias(&k));
    k.m.data = k.data[DATA];
    k.m.data_stride = k.part[DATA]->slot_bytes;
    *out = k.m;
    return MOEC_OK;
}

moec_status moec_slot_matrix(const moec_plan *plan, size_t layer, int is_w2,
                             const void *const *data, moec_matrix *out,
                             moec_error *err)
{
    uint32_t rows = moec_plan_topology(plan).n_local;
    return moec_slot_matrix_rows(
        plan, layer, is_w2, rows + moec_plan_shared_rows(plan), data, out, err);
}
