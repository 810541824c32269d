/* SPDX-License-Identifier: Apache-2.0 */

/*
 * How the numbers of one projection are coded, told from its components' names,
 * dtypes and shapes and from nothing else: what a block of scales covers is
 * found by counting. A block length that nobody states is a power of two: 192
 * rows in 2 blocks are 128 + 64, not 96 + 96. Every size is checked against
 * `out` and `in` before a kernel follows it. Refuses activation-only formats,
 * 8-bit packed integers, act-order GPTQ.
 */

#include <inttypes.h>
#include <string.h>

#include "forward.h"

static moec_component *find(moec_projection *p, const char *name)
{
    for (size_t i = 0; i < p->n; i++)
        if (strcmp(p->part[i].name, name) == 0)
            return &p->part[i];
    return NULL;
}

/* The first of several spellings. */
static moec_component *find_any(moec_projection *p, const char *const *names)
{
    moec_component *c = NULL;

    for (; c == NULL && *names != NULL; names++)
        c = find(p, *names);
    return c;
}

static moec_status refuse(const moec_component *c, const char *why,
                          moec_error *err)
{
    return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                     "component '%s' (%s [%" PRIu64 ", %" PRIu64 "]) %s",
                     c->name, moec_dtype_name(c->dtype), c->dim[0], c->dim[1],
                     why);
}

/* How many features one of `n` blocks over `whole` covers; 0: cannot be. */
static uint64_t block_of(uint64_t whole, uint64_t n)
{
    if (n == 0 || n > whole)
        return 0;
    if (n == 1)
        return whole;
    for (uint64_t b = 1; b <= whole; b *= 2)
        if (moec_ceil_div(whole, b) == n)
            return b;
    return whole % n == 0 ? whole / n : 0;
}

static bool holds(const moec_component *c, uint64_t n, uint32_t bits)
{
    return moec_dtype_bits(c->dtype) == bits && c->bytes == n * bits / 8;
}

/* The scale of an [out][in] matrix in blocks. */
static moec_status take_scale(const moec_projection *p, moec_component *c,
                              moec_matrix *m, moec_error *err)
{
    uint64_t outs = c->dim[0], ins = c->dim[1] * c->dim[2], bo, bi;

    if (c->geometry == MOEC_GEO_SCALAR)
        outs = ins = 1;
    bo = block_of(p->out, outs);
    bi = block_of(p->in, ins);
    if (bo == 0 || bi == 0 || !holds(c, outs * ins, moec_dtype_bits(c->dtype)))
        return refuse(c, "does not divide its projection into blocks", err);
    m->scale = c->data;
    m->scale_dtype = c->dtype;
    m->scale_stride = c->bytes;
    m->block_out = (uint32_t)bo;
    m->block_in = (uint32_t)bi;
    return MOEC_OK;
}

static moec_status take_bias(moec_projection *p, moec_matrix *m,
                             moec_error *err)
{
    moec_component *c = find(p, "bias");

    if (c == NULL)
        return MOEC_OK;
    if (c->dtype != MOEC_DTYPE_F32 && c->dtype != MOEC_DTYPE_BF16 &&
        c->dtype != MOEC_DTYPE_F16)
        return refuse(c, "is no bias that can be added", err);
    if (!holds(c, p->out, moec_dtype_bits(c->dtype)))
        return refuse(c, "is no bias of its projection", err);
    m->bias = c->data;
    m->bias_dtype = c->dtype;
    m->bias_stride = c->bytes;
    return MOEC_OK;
}

/* ---------------------------------------------------------- the formats */

static const char *const scale_names[] = {"weight_scale_inv", "weight_scale",
                                          "scale", "scales", NULL};

static moec_status plain(const moec_projection *p, const moec_component *c,
                         moec_wformat format, moec_matrix *m, moec_error *err)
{
    m->format = format;
    if (!holds(c, p->out * p->in, moec_dtype_bits(c->dtype)))
        return refuse(c, "has another number of elements than its projection",
                      err);
    return MOEC_OK;
}

static moec_status fp8(moec_projection *p, const moec_component *c,
                       moec_matrix *m, moec_error *err)
{
    moec_component *scale = find_any(p, scale_names);

    m->format = MOEC_WFORMAT_FP8;
    if (!holds(c, p->out * p->in, 8))
        return refuse(c, "has another number of elements than its projection",
                      err);
    if (scale == NULL)
        return refuse(c, "has no scale", err);
    return take_scale(p, scale, m, err);
}

/* Two numbers a byte: MXFP4, or NVFP4 where the scales are numbers. */
static moec_status fp4(moec_projection *p, const moec_component *c,
                       moec_matrix *m, moec_error *err)
{
    moec_component *scale = find_any(p, scale_names);
    moec_component *direct = find(p, "weight_scale_2");
    moec_component *inverse = find(p, "weight_global_scale");
    moec_component *second = direct != NULL ? direct : inverse;

    m->format = MOEC_WFORMAT_MXFP4;
    if (p->in % 2 != 0 || !holds(c, p->out * p->in / 2, 8))
        return refuse(c, "has another number of elements than its projection",
                      err);
    if (scale == NULL)
        return refuse(c, "has no scale", err);
    MOEC_TRY(take_scale(p, scale, m, err));
    if (scale->dtype != MOEC_DTYPE_F8_E4M3)
        return m->block_out == 1 && m->block_in == 32
                   ? MOEC_OK
                   : refuse(scale, "is no scale of 32 numbers", err);
    m->format = MOEC_WFORMAT_NVFP4;
    if (m->block_out != 1 || m->block_in != 16)
        return refuse(scale, "is no scale of 16 numbers", err);
    if (second == NULL || second->dtype != MOEC_DTYPE_F32 || second->bytes != 4)
        return refuse(scale, "has no scale of its own", err);
    memcpy(&p->scale2, second->data, 4);
    if (second == inverse) /* compressed-tensors: it divides */
        p->scale2 = 1.0f / p->scale2;
    m->scale2 = &p->scale2;
    m->scale2_stride = 4;
    return MOEC_OK;
}

static moec_status int4(moec_projection *p, const moec_component *c,
                        moec_matrix *m, moec_error *err)
{
    moec_component *scale = find_any(p, scale_names);
    moec_component *zeros = find(p, "weight_zero_point");

    m->format = MOEC_WFORMAT_INT4;
    if (p->in % 8 != 0 || !holds(c, p->out * p->in / 8, 32))
        return refuse(c, "does not hold 4 bits a number", err);
    if (scale == NULL)
        return refuse(c, "has no scale", err);
    MOEC_TRY(take_scale(p, scale, m, err));
    if (m->block_out != 1)
        return refuse(scale, "is no scale of a group of inputs", err);
    if (zeros == NULL)
        return MOEC_OK;
    if (!holds(zeros,
               moec_ceil_div(p->out, 8) * moec_ceil_div(p->in, m->block_in),
               32))
        return refuse(zeros, "does not hold a zero point for each scale", err);
    m->zeros = zeros->data;
    m->zeros_stride = zeros->bytes;
    return MOEC_OK;
}

/* Groups in the order of the inputs, or act-order, which no kernel does. */
static moec_status check_order(const moec_projection *p,
                               const moec_component *c, uint64_t group,
                               moec_error *err)
{
    if (!holds(c, p->in, 32))
        return refuse(c, "is not one group for each input", err);
    for (uint64_t i = 0; i < p->in; i++)
        if (moec_le32(c->data + i * 4) != i / group)
            return refuse(c, "is not in order: act-order is not implemented",
                          err);
    return MOEC_OK;
}

/* AWQ [in][out/8] and GPTQ [in/8][out], with zeros and scales [in/g][..]. */
static moec_status kept(moec_projection *p, const moec_component *c,
                        moec_matrix *m, moec_error *err)
{
    moec_component *scale = find(p, "scales"), *zeros = find(p, "qzeros");
    moec_component *order = find(p, "g_idx");
    uint64_t groups, group;

    if (p->out % 8 != 0 || p->in % 8 != 0 || !holds(c, p->out * p->in / 8, 32))
        return refuse(c, "does not hold 4 bits a number", err);
    if (c->dim[0] == p->in && c->dim[1] == p->out / 8)
        m->format = MOEC_WFORMAT_AWQ;
    else if (c->dim[0] == p->in / 8 && c->dim[1] == p->out)
        m->format = MOEC_WFORMAT_GPTQ;
    else
        return refuse(c, "is packed neither as AWQ nor as GPTQ does", err);
    if (scale == NULL || scale->dim[1] != p->out)
        return refuse(c, "has no scale for each output", err);
    groups = scale->dim[0];
    group = block_of(p->in, groups);
    if (group == 0 ||
        !holds(scale, groups * p->out, moec_dtype_bits(scale->dtype)))
        return refuse(scale, "does not divide the inputs into groups", err);
    if (zeros == NULL || !holds(zeros, groups * (p->out / 8), 32))
        return refuse(c, "has no zero point for each scale", err);
    if (order != NULL)
        MOEC_TRY(check_order(p, order, group, err));
    m->scale = scale->data;
    m->scale_dtype = scale->dtype;
    m->scale_stride = scale->bytes;
    m->block_out = 1;
    m->block_in = (uint32_t)group;
    m->zeros = zeros->data;
    m->zeros_stride = zeros->bytes;
    return MOEC_OK;
}

/* The numbers called "weight": the dtype says what they are. */
static moec_status weight(moec_projection *p, const moec_component *c,
                          moec_matrix *m, moec_error *err)
{
    if (c->dtype == MOEC_DTYPE_F32)
        return plain(p, c, MOEC_WFORMAT_F32, m, err);
    if (c->dtype == MOEC_DTYPE_BF16)
        return plain(p, c, MOEC_WFORMAT_BF16, m, err);
    if (c->dtype == MOEC_DTYPE_F16)
        return plain(p, c, MOEC_WFORMAT_F16, m, err);
    if (c->dtype == MOEC_DTYPE_F8_E4M3)
        return fp8(p, c, m, err);
    if (c->dtype == MOEC_DTYPE_U8 || c->dtype == MOEC_DTYPE_I8)
        return fp4(p, c, m, err);
    if (c->dtype == MOEC_DTYPE_I32)
        return int4(p, c, m, err);
    return refuse(c, "is of a dtype that no kernel here multiplies", err);
}

moec_status moec_projection_matrix(moec_projection *p, moec_matrix *out,
                                   moec_error *err)
{
    static const char *const names[] = {"weight", "weight_packed", "blocks",
                                        NULL};
    moec_component *c = find_any(p, names), *q = find(p, "qweight");
    moec_component *order = find(p, "weight_g_idx");
    moec_matrix m;
    moec_status st;

    memset(&m, 0, sizeof(m));
    m.struct_bytes = sizeof(m);
    m.n_out = (uint32_t)p->out;
    m.n_in = (uint32_t)p->in;
    if (c == NULL && q == NULL)
        return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                         "a projection has no weights that are known");
    st = c != NULL ? weight(p, c, &m, err) : kept(p, q, &m, err);
    if (st != MOEC_OK)
        return st;
    if (order != NULL)
        MOEC_TRY(check_order(p, order, m.block_in, err));
    m.data = c != NULL ? c->data : q->data;
    m.data_stride = c != NULL ? c->bytes : q->bytes;
    MOEC_TRY(take_bias(p, &m, err));
    *out = m;
    return MOEC_OK;
}
