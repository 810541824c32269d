/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Every format of quantised experts, from source files to rank files and back.
 *
 * A format is a table: the tensors of one projection as the published
 * checkpoints have them, and the slot tensors as the layout contract has them,
 * both written by hand. A tiny checkpoint is made of it, converted, and each
 * slot's bytes are compared with the source's, joined by plain loops here that
 * share nothing with the library's moves.
 *
 * 4 experts and 2 redundant slots on 2 ranks: rank 0 holds experts 0 1 2,
 * rank 1 experts 3 0 1, and each the shared expert, in 1 or 2 parts, last.
 */

#include <sys/stat.h>

#include "tmpdir.h"

#include <moec/moec.h>

#include "convert.h"
#include "report.h"
#include "theorems.h"

#define N_EXPERTS 4u
#define N_RANKS   2u
#define N_LOCAL   3u
#define SHARED    N_EXPERTS /* unit of the shared expert's first part */

static const uint32_t placed[N_RANKS][N_LOCAL] = {{0, 1, 2}, {3, 0, 1}};

/* Dimensions; D0: a number without any. */
typedef struct dims {
    uint32_t n;
    uint64_t d[4];
} dims;
#define D(...)                                                                 \
  {                                                                            \
    sizeof((uint64_t[]){__VA_ARGS__}) / sizeof(uint64_t),                      \
    {                                                                          \
      __VA_ARGS__                                                              \
    }                                                                          \
  }
#define D0                                                                     \
  {                                                                            \
    0,                                                                         \
    {                                                                          \
      0                                                                        \
    }                                                                          \
  }

/* How gate and up become one slot, and where a wide shared expert is cut. */
typedef enum join {
    ROWS, /* [out, in]: rows of gate, then of up; down is cut by columns */
    LAST, /* [in, out] that stays so: joined and cut on the last axis, down cut
             on the first */
    ONE,  /* a number or record for each: one behind the other, never cut */
    ROW_SCALE /* as ROWS, but down's are repeated in each part */
} join;

/* One kind of tensor that each projection has. */
typedef struct component {
    const char *suffix; /* behind "gate_proj." */
    const char *slot;   /* behind "w13_" and "w2_" */
    moec_dtype dtype;
    join join;
    dims gate, down; /* of one projection; up is like gate */
    dims w13, w2;    /* of one slot */
    bool table;      /* rows for all slots of all ranks */
} component;

typedef struct format {
    const char *name;
    uint64_t hidden, inter;
    const char *quantisation; /* members of config.json, or "" */
    component components[6];
    bool ungated;
} format;

/* ------------------------------------------------------- the formats
 * Spellings: what compressed-tensors, ModelOpt, AutoAWQ, GPTQModel and the
 * models' own publishers write. */

#define F8   MOEC_DTYPE_F8_E4M3
#define E8M0 MOEC_DTYPE_F8_E8M0
#define BF16 MOEC_DTYPE_BF16
#define F16  MOEC_DTYPE_F16
#define F32  MOEC_DTYPE_F32
#define I32  MOEC_DTYPE_I32
#define U8   MOEC_DTYPE_U8
#define I8   MOEC_DTYPE_I8

#define BLOCKS_128                                                             \
  ", \"quantization_config\": {\"weight_block_size\": [128, 128]}"
#define BLOCKS_MX ", \"quantization_config\": {\"weight_block_size\": [1, 32]}"

#define PLAIN(dt)                                                              \
  {                                                                            \
    {                                                                          \
      "weight", "weight", dt, ROWS, D(32, 64), D(64, 32), D(64, 64),           \
          D(64, 32), false                                                     \
    }                                                                          \
  }

/* clang-format off */
static const format formats[] = {
    {"bf16", 64, 32, "", PLAIN(BF16), false},
    {"f16", 64, 32, "", PLAIN(F16), false},
    {"f32", 64, 32, "", PLAIN(F32), false},
    {"fp8 in blocks of 128", 384, 256, BLOCKS_128,
     {{"weight", "weight", F8, ROWS, D(256, 384), D(384, 256), D(512, 384),
       D(384, 256), false},
      {"weight_scale_inv", "weight_scale_inv", F32, ROWS, D(2, 3), D(3, 2),
       D(4, 3), D(3, 2), false}}, false},
    {"fp8 in blocks of 128, e8m0 scales", 384, 256, BLOCKS_128,
     {{"weight", "weight", F8, ROWS, D(256, 384), D(384, 256), D(512, 384),
       D(384, 256), false},
      {"scale", "scale", E8M0, ROWS, D(2, 3), D(3, 2), D(4, 3), D(3, 2),
       false}}, false},
    {"fp8, a scale a row", 64, 32, "",
     {{"weight", "weight", F8, ROWS, D(32, 64), D(64, 32), D(64, 64),
       D(64, 32), false},
      {"weight_scale", "weight_scale", F32, ROW_SCALE, D(32, 1), D(64, 1),
       D(64, 1), D(64, 1), false}}, false},
    {"fp8, a scale a row without an axis for it", 64, 32, "",
     {{"weight", "weight", F8, ROWS, D(32, 64), D(64, 32), D(64, 64),
       D(64, 32), false},
      {"weight_scale", "weight_scale", BF16, ROW_SCALE, D(32), D(64),
       D(64, 1), D(64, 1), false}}, false},
    {"fp8, a scale a tensor, static activations", 64, 32, "",
     {{"weight", "weight", F8, ROWS, D(32, 64), D(64, 32), D(64, 64),
       D(64, 32), false},
      {"weight_scale", "weight_scale", F32, ONE, D0, D0, D(2), D0, false},
      {"input_scale", "input_scale", F32, ONE, D(1), D(1), D(2), D0,
       false}}, false},
    {"fp8 as Mistral spells it", 64, 32, "",
     {{"weight", "weight", F8, ROWS, D(32, 64), D(64, 32), D(64, 64),
       D(64, 32), false},
      {"qscale_weight", "weight_scale", BF16, ONE, D0, D0, D(2), D0, false},
      {"qscale_act", "input_scale", BF16, ONE, D0, D0, D(2), D0,
       false}}, false},
    {"mxfp8", 64, 32, BLOCKS_MX,
     {{"weight", "weight", F8, ROWS, D(32, 64), D(64, 32), D(64, 64),
       D(64, 32), false},
      {"weight_scale_inv", "weight_scale_inv", U8, ROWS, D(32, 2), D(64, 1),
       D(64, 2), D(64, 1), false}}, false},
    {"mxfp4 of DeepSeek", 128, 64, BLOCKS_128,
     {{"weight", "weight", I8, ROWS, D(64, 64), D(128, 32), D(128, 64),
       D(128, 32), false},
      {"scale", "scale", E8M0, ROWS, D(64, 4), D(128, 2), D(128, 4),
       D(128, 2), false}}, false},
    {"mxfp4 of compressed-tensors", 128, 64, "",
     {{"weight_packed", "weight_packed", U8, ROWS, D(64, 64), D(128, 32),
       D(128, 64), D(128, 32), false},
      {"weight_scale", "weight_scale", U8, ROWS, D(64, 4), D(128, 2),
       D(128, 4), D(128, 2), false}}, false},
    {"nvfp4 of ModelOpt", 64, 32, "",
     {{"weight", "weight", U8, ROWS, D(32, 32), D(64, 16), D(64, 32),
       D(64, 16), false},
      {"weight_scale", "weight_scale", F8, ROWS, D(32, 4), D(64, 2), D(64, 4),
       D(64, 2), false},
      {"weight_scale_2", "weight_scale_2", F32, ONE, D0, D0, D(2), D0, false},
      {"input_scale", "input_scale", F32, ONE, D0, D0, D(2), D0, true}}, false},
    {"nvfp4 of compressed-tensors", 64, 32, "",
     {{"weight_packed", "weight_packed", U8, ROWS, D(32, 32), D(64, 16),
       D(64, 32), D(64, 16), false},
      {"weight_scale", "weight_scale", F8, ROWS, D(32, 4), D(64, 2), D(64, 4),
       D(64, 2), false},
      {"weight_global_scale", "weight_global_scale", F32, ONE, D(1), D(1),
       D(2), D0, false},
      {"input_global_scale", "input_global_scale", F32, ONE, D(1), D(1), D(2),
       D0, true}}, false},
    {"awq", 64, 32, "",
     {{"qweight", "qweight", I32, LAST, D(64, 4), D(32, 8), D(64, 8),
       D(32, 8), false},
      {"qzeros", "qzeros", I32, LAST, D(4, 4), D(2, 8), D(4, 8), D(2, 8),
       false},
      {"scales", "scales", F16, LAST, D(4, 32), D(2, 64), D(4, 64), D(2, 64),
       false}}, false},
    /* None of what follows can be cut. */
    {"gptq", 64, 32, "",
     {{"qweight", "qweight", I32, LAST, D(8, 32), D(4, 64), D(8, 64),
       D(4, 64), false},
      {"qzeros", "qzeros", I32, LAST, D(4, 4), D(2, 8), D(4, 8), D(2, 8),
       false},
      {"scales", "scales", F16, LAST, D(4, 32), D(2, 64), D(4, 64), D(2, 64),
       false},
      {"g_idx", "g_idx", I32, LAST, D(64), D(32), D(128), D(32), false},
      {"bias", "bias", F16, ROWS, D(32), D(64), D(64), D(64), false}}, false},
    {"int4 of compressed-tensors", 64, 32, "",
     {{"weight_packed", "weight_packed", I32, ROWS, D(32, 8), D(64, 4),
       D(64, 8), D(64, 4), false},
      {"weight_scale", "weight_scale", BF16, ROWS, D(32, 2), D(64, 1),
       D(64, 2), D(64, 1), false},
      {"weight_shape", "weight_shape", I32, ONE, D(2), D(2), D(2, 2), D(2),
       false},
      {"weight_zero_point", "weight_zero_point", I32, ROWS, D(4, 2), D(8, 1),
       D(8, 2), D(8, 1), false},
      {"weight_g_idx", "weight_g_idx", I32, LAST, D(64), D(32), D(128), D(32),
       false}}, false},
    {"bf16 with biases", 64, 32, "",
     {{"weight", "weight", BF16, ROWS, D(32, 64), D(64, 32), D(64, 64),
       D(64, 32), false},
      {"bias", "bias", BF16, ROWS, D(32), D(64), D(64), D(64), false}}, false},
    {"nvfp4 without a gate", 64, 32, "",
     {{"weight", "weight", U8, ROWS, D(32, 32), D(64, 16), D(32, 32),
       D(64, 16), false},
      {"weight_scale", "weight_scale", F8, ROWS, D(32, 4), D(64, 2), D(32, 4),
       D(64, 2), false},
      {"weight_scale_2", "weight_scale_2", F32, ONE, D0, D0, D(1), D0, false},
      {"weight_shape", "weight_shape", I32, ONE, D(2), D(2), D(1, 2), D(2),
       false},
      {"bias", "bias", BF16, ROWS, D(32), D(64), D(32), D(64), false},
      {"input_scale", "input_scale", F32, ONE, D0, D0, D(1), D0, true}}, true},
};
/* clang-format on */
#define N_FORMATS (sizeof(formats) / sizeof(*formats))

static const format *format_named(const char *name)
{
    for (size_t i = 0; i < N_FORMATS; i++)
        if (strcmp(formats[i].name, name) == 0)
            return &formats[i];
    fail_msg("no format '%s'", name);
    return NULL;
}

static size_t n_components(const format *f)
{
    size_t n = 0;
    while (n < 6 && f->components[n].suffix != NULL)
        n++;
    return n;
}

/* ------------------------------------------------- source checkpoints */

typedef struct tensor {
    char name[120];
    moec_dtype dtype;
    dims shape;
    size_t bytes;
    unsigned char *data;
} tensor;

typedef struct tree {
    tmpdir dir;
    char config[700];
    size_t n;
    tensor t[256];
} tree;

static uint64_t elements(const dims *d)
{
    uint64_t n = 1;
    for (uint32_t i = 0; i < d->n; i++)
        n *= d->d[i];
    return n;
}

static size_t elem_bytes(moec_dtype dtype)
{
    return moec_dtype_bits(dtype) / 8;
}

/* Bytes that are nobody else's: a step of a generator for each. */
static void add(tree *t, const char *name, moec_dtype dtype, const dims *shape)
{
    assert_true(t->n < sizeof(t->t) / sizeof(*t->t));
    tensor *x = &t->t[t->n++];
    uint32_t seed = (uint32_t)t->n * 2654435761u;
    assert_true(strlen(name) < sizeof(x->name));
    snprintf(x->name, sizeof(x->name), "%s", name);
    x->dtype = dtype;
    x->shape = *shape;
    x->bytes = (size_t)elements(shape) * elem_bytes(dtype);
    x->data = malloc(x->bytes);
    assert_non_null(x->data);
    for (size_t i = 0; i < x->bytes; i++) {
        seed = seed * 1664525u + 1013904223u;
        x->data[i] = (unsigned char)(seed >> 24);
    }
}

static tensor *find(tree *t, const char *name)
{
    for (size_t i = 0; i < t->n; i++)
        if (strcmp(t->t[i].name, name) == 0)
            return &t->t[i];
    fail_msg("no tensor '%s'", name);
    return NULL;
}

static void write_tree(const tree *t)
{
    char header[32768];
    size_t at = 0, end = 0;
    tmpdir_mkdir(&t->dir, "src");
    tmpdir_text(&t->dir, "src/config.json", t->config);
    at += (size_t)snprintf(header, sizeof(header), "{");
    for (size_t i = 0; i < t->n; i++) {
        const tensor *x = &t->t[i];
        at += (size_t)snprintf(header + at, sizeof(header) - at,
                               "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[",
                               i == 0 ? "" : ",", x->name,
                               moec_dtype_name(x->dtype));
        for (uint32_t d = 0; d < x->shape.n; d++)
            at += (size_t)snprintf(header + at, sizeof(header) - at, "%s%u",
                                   d == 0 ? "" : ",", (unsigned)x->shape.d[d]);
        at += (size_t)snprintf(header + at, sizeof(header) - at,
                               "],\"data_offsets\":[%zu,%zu]}", end,
                               end + x->bytes);
        end += x->bytes;
        assert_true(at < sizeof(header) - 1);
    }
    at += (size_t)snprintf(header + at, sizeof(header) - at, "}");
    FILE *f = fopen(tmpdir_path(&t->dir, "src/model.safetensors"), "wb");
    assert_non_null(f);
    for (unsigned i = 0; i < 8; i++)
        assert_int_not_equal(fputc((int)(at >> 8 * i & 0xff), f), EOF);
    assert_int_equal(fwrite(header, 1, at, f), at);
    for (size_t i = 0; i < t->n; i++)
        assert_int_equal(fwrite(t->t[i].data, 1, t->t[i].bytes, f),
                         t->t[i].bytes);
    assert_int_equal(fclose(f), 0);
}

static void free_tree(tree *t)
{
    for (size_t i = 0; i < t->n; i++)
        free(t->t[i].data);
    tmpdir_remove(&t->dir);
    free(t);
}

static const char *prefix_of(const format *f)
{
    return f->ungated ? "backbone.layers.0.mixer" : "model.layers.0.mlp";
}

/* "PREFIX.experts.3.gate_proj.weight", or the shared expert's. */
static const char *name_of(const format *f, uint32_t unit, const char *part,
                           const char *suffix)
{
    static char name[160];
    if (unit < N_EXPERTS)
        snprintf(name, sizeof(name), "%s.experts.%u.%s_proj.%s", prefix_of(f),
                 unit, part, suffix);
    else
        snprintf(name, sizeof(name), "%s.shared_experts.%s_proj.%s",
                 prefix_of(f), part, suffix);
    return name;
}

/* One projection's tensor of an expert that is `parts` times as wide. */
static void add_part(tree *t, const format *f, const component *c,
                     uint32_t unit, const char *part, uint64_t parts)
{
    bool down = strcmp(part, "down") == 0;
    dims shape = down ? c->down : c->gate;
    switch (c->join) {
    case ROWS:
        if (!down || shape.n > 1)
            shape.d[down] *= parts;
        break;
    case LAST:
        if (down || shape.n > 1) /* g_idx has an entry for each input */
            shape.d[down ? 0 : shape.n - 1] *= parts;
        break;
    case ONE:
        break;
    case ROW_SCALE:
        if (!down)
            shape.d[0] *= parts;
        break;
    }
    add(t, name_of(f, unit, part, c->suffix), c->dtype, &shape);
}

static void set_config(tree *t, const char *type, const format *f,
                       unsigned parts, const char *more)
{
    int n = snprintf(t->config, sizeof(t->config),
                     "{\"model_type\": \"%s\", \"n_routed_experts\": 4, "
                     "\"num_experts_per_tok\": 2, \"hidden_size\": %u, "
                     "\"moe_intermediate_size\": %u, "
                     "\"num_hidden_layers\": 1, \"n_shared_experts\": %u%s%s}",
                     type, (unsigned)f->hidden, (unsigned)f->inter, parts, more,
                     f->quantisation);
    assert_true(n > 0 && (size_t)n < sizeof(t->config));
}

/* The checkpoint of a format, with a shared expert of `parts` widths in the
 * same format (0: none). Not written yet. */
static tree *make_tree(const format *f, unsigned parts)
{
    tree *t = calloc(1, sizeof(*t));
    char name[120], more[160];
    dims router = D(N_EXPERTS, f->hidden), norm = D(f->hidden);
    assert_non_null(t);
    t->dir = tmpdir_make();
    snprintf(more, sizeof(more), ", \"hybrid_override_pattern\": \"E\"");
    if (parts != 0)
        snprintf(more, sizeof(more),
                 ", \"hybrid_override_pattern\": \"E\", "
                 "\"moe_shared_expert_intermediate_size\": %u",
                 (unsigned)f->inter * parts);
    if (f->ungated)
        set_config(t, "nemotron_h", f, parts != 0, more);
    else
        set_config(t, "deepseek_v3", f, parts, "");
    snprintf(name, sizeof(name), "%s.gate.weight", prefix_of(f));
    add(t, name, BF16, &router);
    for (size_t c = 0; c < n_components(f); c++)
        for (uint32_t unit = 0; unit <= (parts != 0 ? SHARED : SHARED - 1);
             unit++) {
            unsigned wide = unit == SHARED ? parts : 1;
            if (!f->ungated)
                add_part(t, f, &f->components[c], unit, "gate", wide);
            add_part(t, f, &f->components[c], unit, "up", wide);
            add_part(t, f, &f->components[c], unit, "down", wide);
        }
    add(t, "model.norm.weight", BF16, &norm);
    return t;
}

/* -------------------------------------------- what a slot must hold */

/* Rows [0, n) of `from`, each `bytes` of `pitch`, to the end of *out. */
static void take(unsigned char **out, const unsigned char *from, size_t n,
                 size_t bytes, size_t pitch)
{
    for (size_t i = 0; i < n; i++) {
        memcpy(*out, from + i * pitch, bytes);
        *out += bytes;
    }
}

/* Part `k` of `parts` of gate or up, as a half; `row` is a row of a tensor
 * that is joined on its last axis. */
static void take_half(unsigned char **out, tree *t, const format *f,
                      const component *c, uint32_t unit, const char *part,
                      uint64_t row)
{
    uint32_t k = unit < SHARED ? 0 : unit - SHARED;
    const tensor *x = find(t, name_of(f, unit, part, c->suffix));
    size_t want = (size_t)elements(&c->gate) * elem_bytes(c->dtype);
    if (c->join == LAST) { /* of one row */
        uint64_t wide = x->shape.d[x->shape.n - 1];
        uint64_t cols = c->gate.d[c->gate.n - 1];
        const unsigned char *from =
            x->data +
            (row * wide + (wide == cols ? 0 : k * cols)) * elem_bytes(c->dtype);
        take(out, from, 1, (size_t)cols * elem_bytes(c->dtype), 0);
        return;
    }
    take(out, x->data + (x->bytes == want ? 0 : k * want), 1, want, 0);
}

static void take_down(unsigned char **out, tree *t, const format *f,
                      const component *c, uint32_t unit)
{
    uint32_t k = unit < SHARED ? 0 : unit - SHARED;
    const tensor *x = find(t, name_of(f, unit, "down", c->suffix));
    size_t want = (size_t)elements(&c->down) * elem_bytes(c->dtype);
    if (x->bytes == want)
        take(out, x->data, 1, want, 0);
    else if (c->join == LAST)
        take(out, x->data + k * want, 1, want, 0);
    else { /* columns */
        size_t bytes = want / (size_t)c->down.d[0];
        take(out, x->data + k * bytes, (size_t)c->down.d[0], bytes,
             x->bytes / (size_t)c->down.d[0]);
    }
}

/* Bytes of a slot, allocated. */
static unsigned char *slot_of(tree *t, const format *f, const component *c,
                              uint32_t unit, bool w2, bool up_first,
                              size_t *bytes)
{
    size_t each = elem_bytes(c->dtype);
    unsigned char *slot = malloc(elements(w2 ? &c->w2 : &c->w13) * each);
    unsigned char *at = slot;
    uint64_t rows = c->join == LAST && c->gate.n > 1 ? c->gate.d[0] : 1;
    assert_non_null(slot);
    if (w2)
        take_down(&at, t, f, c, unit);
    for (uint64_t row = 0; !w2 && row < rows; row++) {
        if (!f->ungated)
            take_half(&at, t, f, c, unit, up_first ? "up" : "gate", row);
        take_half(&at, t, f, c, unit, !up_first || f->ungated ? "up" : "gate",
                  row);
    }
    *bytes = (size_t)(at - slot);
    assert_int_equal(*bytes, elements(w2 ? &c->w2 : &c->w13) * each);
    return slot;
}

/* ------------------------------------------------- through the library */

typedef struct subject {
    moec_ckpt *ckpt;
    moec_model *model;
    moec_plan *plan;
    moec_layout *layout;
} subject;

static moec_plan_opts opts_of(bool up_first)
{
    moec_plan_opts o = MOEC_PLAN_OPTS_INIT;
    o.n_ranks = N_RANKS;
    o.n_redundant = N_RANKS * N_LOCAL - N_EXPERTS;
    o.w13_order = up_first ? MOEC_W13_UP_GATE : MOEC_W13_GATE_UP;
    return o;
}

static moec_status open_model(subject *s, const tree *t, moec_error *err)
{
    moec_families *families = NULL;
    moec_status st = moec_families_create(&families, err);
    *s = (subject){NULL, NULL, NULL, NULL};
    if (st == MOEC_OK)
        st = moec_ckpt_open(&s->ckpt, tmpdir_path(&t->dir, "src"), NULL, err);
    if (st == MOEC_OK)
        st = moec_model_open(&s->model, s->ckpt, families, err);
    moec_families_destroy(families);
    return st;
}

static subject open_subject(const tree *t, const char *what,
                            const moec_plan_opts *opts)
{
    moec_error err = MOEC_ERROR_INIT;
    subject s;
    if (open_model(&s, t, &err) != MOEC_OK ||
        moec_plan_create(&s.plan, s.model, opts, &err) != MOEC_OK ||
        moec_layout_create(&s.layout, s.plan, 0, &err) != MOEC_OK)
        fail_msg("%s: %s", what, err.text);
    return s;
}

static void close_subject(subject *s)
{
    moec_layout_destroy(s->layout);
    moec_plan_destroy(s->plan);
    moec_model_destroy(s->model);
    moec_ckpt_close(s->ckpt);
}

static moec_report *verify(const tree *t, const moec_ckpt *source)
{
    moec_verify_opts o = MOEC_VERIFY_OPTS_INIT;
    moec_error err = MOEC_ERROR_INIT;
    moec_report *r = NULL;
    o.n_threads = 1;
    o.source = source;
    if (moec_verify(&r, tmpdir_path(&t->dir, "out"), &o, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    return r;
}

static void expect_clean(const tree *t, const char *what,
                         const moec_ckpt *source)
{
    moec_report *r = verify(t, source);
    if (moec_report_n_findings(r) != 0)
        fail_msg("%s: %s", what, moec_report_finding(r, 0)->message);
    for (size_t i = 0; i < 6; i++)
        assert_int_equal(moec_report_theorem(r, i)->ran, 1);
    moec_report_destroy(r);
}

static void convert(const tree *t, const subject *s, const char *what)
{
    moec_convert_opts o = {.n_threads = 1};
    moec_convert_stats stats = {0};
    moec_error err = MOEC_ERROR_INIT;
    if (moec_convert(s->layout, tmpdir_path(&t->dir, "out"), &o, &stats,
                     &err) != MOEC_OK)
        fail_msg("%s: %s", what, err.text);
}

static void read_all(const char *path, unsigned char **out, size_t *n)
{
    struct stat st;
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    assert_int_equal(fstat(fileno(f), &st), 0);
    *n = (size_t)st.st_size;
    *out = malloc(*n + 1);
    assert_non_null(*out);
    assert_int_equal(fread(*out, 1, *n, f), *n);
    fclose(f);
}

/* The way back gives the source's file. */
static void expect_back(const tree *t, const char *what)
{
    moec_convert_opts o = {.n_threads = 1};
    moec_convert_stats stats = {0};
    moec_error err = MOEC_ERROR_INIT;
    unsigned char *a, *b;
    size_t n_a, n_b;
    moec_conversion *c = NULL;
    moec_status st =
        moec_conversion_open(&c, tmpdir_path(&t->dir, "out"), NULL, &err);
    o.source = c;
    if (st == MOEC_OK)
        st = moec_unconvert(tmpdir_path(&t->dir, "back"), &o, &stats, &err);
    if (st != MOEC_OK)
        fail_msg("%s: %s", what, err.text);
    moec_conversion_close(c);
    read_all(tmpdir_path(&t->dir, "src/model.safetensors"), &a, &n_a);
    read_all(tmpdir_path(&t->dir, "back/model.safetensors"), &b, &n_b);
    if (n_a != n_b || memcmp(a, b, n_a) != 0)
        fail_msg("%s: another file came back", what);
    free(a);
    free(b);
}

/* The rank's file, opened as any reader of safetensors would. */
static moec_ckpt *open_rank(const tree *t, uint32_t rank)
{
    char name[96];
    moec_error err = MOEC_ERROR_INIT;
    moec_ckpt *ckpt = NULL;
    snprintf(name, sizeof(name),
             "out/experts-rank-%05u-of-%05u-part-00001.safetensors", rank,
             N_RANKS);
    if (moec_ckpt_open(&ckpt, tmpdir_path(&t->dir, name), NULL, &err) !=
        MOEC_OK)
        fail_msg("%s", err.text);
    return ckpt;
}

/* Units that the rows of a rank's tensor, or of a table, must hold. */
typedef struct row_units {
    uint32_t n;
    uint32_t unit[16];
} row_units;

static row_units rows_of_rank(uint32_t rank, uint32_t parts)
{
    row_units r = {0, {0}};
    for (uint32_t i = 0; i < N_LOCAL; i++)
        r.unit[r.n++] = placed[rank][i];
    for (uint32_t k = 0; k < parts; k++)
        r.unit[r.n++] = SHARED + k;
    return r;
}

/* Dispatch slots: rank 0's routed and shared ones, then rank 1's. */
static row_units rows_of_table(uint32_t parts)
{
    row_units r = rows_of_rank(0, parts), next = rows_of_rank(1, parts);
    for (uint32_t i = 0; i < next.n; i++)
        r.unit[r.n++] = next.unit[i];
    return r;
}

static void check_tensor(tree *t, const format *f, const component *c,
                         const moec_ckpt *file, bool w2, bool up_first,
                         const row_units *rows)
{
    char name[160];
    const dims *want = w2 ? &c->w2 : &c->w13;
    moec_error err = MOEC_ERROR_INIT;
    snprintf(name, sizeof(name), "%s.experts.%s_%s", prefix_of(f),
             w2 ? "w2" : "w13", c->slot);
    size_t i = moec_ckpt_find(file, name);
    if (i == SIZE_MAX)
        fail_msg("%s: no '%s'", f->name, name);
    const moec_tensor *x = moec_ckpt_tensor(file, i);
    if (x->dtype != c->dtype || x->rank != want->n + 1 ||
        x->shape[0] != rows->n ||
        memcmp(x->shape + 1, want->d, want->n * sizeof(*want->d)) != 0)
        fail_msg("%s: '%s' is %s with %u dimensions, %u rows", f->name, name,
                 moec_dtype_name((moec_dtype)x->dtype), (unsigned)x->rank,
                 (unsigned)x->shape[0]);
    for (uint32_t row = 0; row < rows->n; row++) {
        size_t n;
        unsigned char *slot =
            slot_of(t, f, c, rows->unit[row], w2, up_first, &n);
        unsigned char *found = malloc(n);
        assert_non_null(found);
        assert_int_equal(moec_ckpt_read(file, i, row * n, found, n, &err),
                         MOEC_OK);
        for (size_t b = 0; b < n; b++)
            if (slot[b] != found[b])
                fail_msg("%s: '%s', row %u of unit %u: byte %zu differs",
                         f->name, name, row, rows->unit[row], b);
        free(slot);
        free(found);
    }
}

static void check_rank_files(tree *t, const format *f, bool up_first,
                             uint32_t parts, const row_units *table)
{
    for (uint32_t rank = 0; rank < N_RANKS; rank++) {
        moec_ckpt *file = open_rank(t, rank);
        row_units own = rows_of_rank(rank, parts);
        size_t n = 0;
        for (size_t c = 0; c < n_components(f); c++)
            for (int w2 = 0; w2 < 2; w2++) {
                const component *x = &f->components[c];
                check_tensor(t, f, x, file, w2 != 0, up_first,
                             x->table ? table : &own);
            }
        for (size_t i = 0; i < moec_ckpt_n_tensors(file); i++)
            n += strncmp(moec_ckpt_tensor(file, i)->name, "__pad.", 6) != 0;
        assert_int_equal(n, 2 * n_components(f));
        moec_ckpt_close(file);
    }
}

/* Convert, look at every slot, verify, and back again. */
static void check_format(const format *f, bool up_first, uint32_t parts)
{
    tree *t = make_tree(f, parts);
    moec_plan_opts o = opts_of(up_first);
    row_units table = rows_of_table(parts);
    write_tree(t);
    subject s = open_subject(t, f->name, &o);
    if (moec_model_facts(s.model)->shared_slots != parts)
        fail_msg("%s: %s", f->name, moec_model_facts(s.model)->no_fuse_why);
    convert(t, &s, f->name);
    check_rank_files(t, f, up_first, parts, &table);
    expect_clean(t, f->name, s.ckpt);
    expect_back(t, f->name);
    close_subject(&s);
    free_tree(t);
}

static void every_format_gate_first(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_FORMATS; i++)
        check_format(&formats[i], false, 1);
}

static void every_format_up_first(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_FORMATS; i++)
        check_format(&formats[i], true, 1);
}

/* All before GPTQ have borders where a shared expert can be cut. */
static void a_shared_expert_of_two_widths_is_cut(void **state)
{
    const format *end = format_named("gptq");
    (void)state;
    for (const format *f = formats; f < end; f++)
        check_format(f, (f - formats) % 2 != 0, 2);
}

/* ------------------------------------------------- stacked checkpoints */

/* One stacked tensor a component: gate_up_proj and down_proj of all experts. */
typedef struct stack {
    const char *suffix; /* behind "gate_up_proj" */
    const char *slot;
    moec_dtype dtype;
    dims gate_up, down; /* of one expert, as the source has it */
    dims w13, w2;
    bool one;    /* a number: gate and up share it */
    bool vector; /* [out]: never transposed */
    bool table;
} stack;

typedef struct stacked {
    const char *name, *model_type, *prefix;
    uint64_t hidden, inter;
    const char *quantisation;
    bool in_out, interleaved;
    stack stacks[5];
} stacked;

/* clang-format off */
static const stacked stacked_formats[] = {
    {"transposed fp8 with transposed blocks", "llama4_text",
     "model.layers.0.feed_forward", 384, 256, BLOCKS_128, true, false,
     {{"", "weight", F8, D(384, 512), D(256, 384), D(512, 384), D(384, 256),
       false, false, false},
      {"_scale_inv", "weight_scale_inv", F32, D(3, 4), D(2, 3), D(4, 3),
       D(3, 2), false, false, false},
      {"_bias", "bias", BF16, D(512), D(384), D(512), D(384), false, true,
       false}}},
    {"transposed fp8, a scale a row and one a tensor", "llama4_text",
     "model.layers.0.feed_forward", 64, 32, "", true, false,
     {{"", "weight", F8, D(64, 64), D(32, 64), D(64, 64), D(64, 32), false,
       false, false},
      {"_scale", "weight_scale", F32, D(1, 64), D(1, 64), D(64, 1), D(64, 1),
       false, false, false},
      {"_input_scale", "input_scale", F32, D(1, 1), D(1, 1), D(2), D0, true,
       false, false}}},
    {"transposed nvfp4", "llama4_text",
     "model.layers.0.feed_forward", 64, 32, "", true, false,
     {{"", "weight", U8, D(32, 64), D(16, 64), D(64, 32), D(64, 16), false,
       false, false},
      {"_weight_scale", "weight_scale", F8, D(4, 64), D(2, 64), D(64, 4),
       D(64, 2), false, false, false},
      {"_weight_scale_2", "weight_scale_2", F32, D0, D0, D(2), D0, true,
       false, false},
      {"_input_scale", "input_scale", F32, D0, D0, D(2), D0, true, false, true}}},
    {"interleaved mxfp4", "gpt_oss",
     "model.layers.0.mlp", 64, 32, "", false, true,
     {{"_blocks", "blocks", U8, D(64, 2, 16), D(64, 1, 16), D(64, 2, 16),
       D(64, 1, 16), false, false, false},
      {"_scales", "scales", U8, D(64, 2), D(64, 1), D(64, 2), D(64, 1), false,
       false, false},
      {"_bias", "bias", BF16, D(64), D(64), D(64), D(64), false, true, false}}},
    {"interleaved and transposed bf16", "gpt_oss",
     "model.layers.0.mlp", 64, 32, "", true, true,
     {{"", "weight", BF16, D(64, 64), D(32, 64), D(64, 64), D(64, 32), false,
       false, false},
      {"_bias", "bias", BF16, D(64), D(64), D(64), D(64), false, true, false}}},
    {"stacked fp8, a scale an expert", "deepseek_v3",
     "model.layers.0.mlp", 64, 32, "", false, false,
     {{"", "weight", F8, D(64, 64), D(64, 32), D(64, 64), D(64, 32), false,
       false, false},
      {"_scale_inv", "weight_scale_inv", F32, D(1, 1), D(1, 1), D(2), D0,
       true, false, false}}},
};
/* clang-format on */
#define N_STACKED (sizeof(stacked_formats) / sizeof(*stacked_formats))

static size_t n_stacks(const stacked *f)
{
    size_t n = 0;
    while (n < 5 && f->stacks[n].suffix != NULL)
        n++;
    return n;
}

static void add_stack(tree *t, const stacked *f, const stack *s,
                      const char *part, const dims *one)
{
    char name[120];
    dims shape = {one->n + 1, {N_EXPERTS}};
    memcpy(shape.d + 1, one->d, one->n * sizeof(*one->d));
    snprintf(name, sizeof(name), "%s.experts.%s%s", f->prefix, part, s->suffix);
    add(t, name, s->dtype, &shape);
}

static tree *make_stacked_tree(const stacked *f)
{
    tree *t = calloc(1, sizeof(*t));
    char name[120];
    bool llama = strcmp(f->model_type, "llama4_text") == 0;
    bool oss = strcmp(f->model_type, "gpt_oss") == 0;
    dims router = D(N_EXPERTS, f->hidden), bias = D(N_EXPERTS);
    dims wide = D(f->inter, f->hidden), tall = D(f->hidden, f->inter);
    assert_non_null(t);
    t->dir = tmpdir_make();
    snprintf(t->config, sizeof(t->config),
             "{\"model_type\": \"%s\", \"num_local_experts\": 4, "
             "\"num_experts_per_tok\": 1, \"hidden_size\": %u, "
             "\"%sintermediate_size\": %u, \"num_hidden_layers\": 1, "
             "\"moe_layers\": [0], \"first_k_dense_replace\": 0%s}",
             f->model_type, (unsigned)f->hidden, llama || oss ? "" : "moe_",
             (unsigned)f->inter, f->quantisation);
    snprintf(name, sizeof(name), "%s.%s.weight", f->prefix,
             llama || oss ? "router" : "gate");
    add(t, name, BF16, &router);
    snprintf(name, sizeof(name), "%s.router.bias", f->prefix);
    if (oss)
        add(t, name, BF16, &bias);
    for (size_t i = 0; llama && i < 3; i++) {
        static const char *const parts[] = {"gate", "up", "down"};
        snprintf(name, sizeof(name), "%s.shared_expert.%s_proj.weight",
                 f->prefix, parts[i]);
        add(t, name, BF16, i < 2 ? &wide : &tall);
    }
    for (size_t c = 0; c < n_stacks(f); c++) {
        add_stack(t, f, &f->stacks[c], "gate_up_proj", &f->stacks[c].gate_up);
        add_stack(t, f, &f->stacks[c], "down_proj", &f->stacks[c].down);
    }
    return t;
}

/* Element (output o, rest i) of an expert's [out, in...] or [in, out]. */
static const unsigned char *element(const stacked *f, const stack *s,
                                    const dims *shape,
                                    const unsigned char *expert, uint64_t o,
                                    uint64_t i)
{
    bool turned = f->in_out && !s->vector;
    uint64_t out = shape->d[turned ? shape->n - 1 : 0];
    uint64_t rest = elements(shape) / out;
    uint64_t at = turned ? i * out + o : o * rest + i;
    return expert + at * elem_bytes(s->dtype);
}

static unsigned char *stacked_slot(tree *t, const stacked *f, const stack *s,
                                   uint32_t unit, bool w2, bool up_first)
{
    char name[120];
    size_t each = elem_bytes(s->dtype);
    const dims *shape = w2 ? &s->down : &s->gate_up;
    unsigned char *slot = malloc(elements(w2 ? &s->w2 : &s->w13) * each);
    unsigned char *at = slot;
    assert_non_null(slot);
    snprintf(name, sizeof(name), "%s.experts.%s%s", f->prefix,
             w2 ? "down_proj" : "gate_up_proj", s->suffix);
    const tensor *x = find(t, name);
    const unsigned char *expert = x->data + unit * (x->bytes / N_EXPERTS);
    if (s->one) {
        take(&at, expert, w2 ? 1 : 2, each, 0);
        return slot;
    }
    uint64_t out =
        shape->d[f->in_out && !s->vector ? shape->n - 1 : 0] / (w2 ? 1 : 2);
    uint64_t rest = elements(shape) / out / (w2 ? 1 : 2);
    for (uint64_t half = 0; half < (w2 ? 1 : 2); half++)
        for (uint64_t o = 0; o < out; o++)
            for (uint64_t i = 0; i < rest; i++) {
                uint64_t up = half ^ (up_first && !w2);
                uint64_t from =
                    f->interleaved && !w2 ? 2 * o + up : up * out + o;
                take(&at, element(f, s, shape, expert, from, i), 1, each, 0);
            }
    return slot;
}

static void check_stack(tree *t, const stacked *f, const stack *s,
                        const moec_ckpt *file, bool w2, bool up_first,
                        const row_units *rows)
{
    char name[120];
    const dims *want = w2 ? &s->w2 : &s->w13;
    size_t n = (size_t)elements(want) * elem_bytes(s->dtype);
    unsigned char *found = malloc(n);
    moec_error err = MOEC_ERROR_INIT;
    snprintf(name, sizeof(name), "%s.experts.%s_%s", f->prefix,
             w2 ? "w2" : "w13", s->slot);
    size_t i = moec_ckpt_find(file, name);
    if (i == SIZE_MAX)
        fail_msg("%s: no '%s'", f->name, name);
    const moec_tensor *x = moec_ckpt_tensor(file, i);
    if (x->dtype != s->dtype || x->rank != want->n + 1 ||
        x->shape[0] != rows->n ||
        memcmp(x->shape + 1, want->d, want->n * sizeof(*want->d)) != 0)
        fail_msg("%s: '%s' has another form", f->name, name);
    for (uint32_t row = 0; row < rows->n; row++) {
        unsigned char *slot =
            stacked_slot(t, f, s, rows->unit[row], w2, up_first);
        assert_int_equal(moec_ckpt_read(file, i, row * n, found, n, &err),
                         MOEC_OK);
        if (memcmp(slot, found, n) != 0)
            fail_msg("%s: '%s', row %u of unit %u differs", f->name, name, row,
                     rows->unit[row]);
        free(slot);
    }
    free(found);
}

static void check_stacked(const stacked *f, bool up_first)
{
    tree *t = make_stacked_tree(f);
    moec_plan_opts o = opts_of(up_first);
    row_units table = rows_of_table(0);
    write_tree(t);
    subject s = open_subject(t, f->name, &o);
    convert(t, &s, f->name);
    for (uint32_t rank = 0; rank < N_RANKS; rank++) {
        moec_ckpt *file = open_rank(t, rank);
        row_units own = rows_of_rank(rank, 0);
        for (size_t c = 0; c < n_stacks(f); c++)
            for (int w2 = 0; w2 < 2; w2++)
                check_stack(t, f, &f->stacks[c], file, w2 != 0, up_first,
                            f->stacks[c].table ? &table : &own);
        moec_ckpt_close(file);
    }
    expect_clean(t, f->name, s.ckpt);
    expect_back(t, f->name);
    close_subject(&s);
    free_tree(t);
}

static void every_stacked_format(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_STACKED; i++) {
        check_stacked(&stacked_formats[i], false);
        check_stacked(&stacked_formats[i], true);
    }
}

/* ------------------------------------------- tables over all slots */

static void expect_table(const format *f, const moec_plan_opts *o,
                         uint32_t parts_in_rows, const row_units *table)
{
    tree *t = make_tree(f, 1);
    write_tree(t);
    subject s = open_subject(t, f->name, o);
    convert(t, &s, f->name);
    check_rank_files(t, f, false, parts_in_rows, table);
    expect_clean(t, f->name, NULL);
    expect_clean(t, f->name, s.ckpt);
    expect_back(t, f->name);
    close_subject(&s);
    free_tree(t);
}

static void a_table_numbers_global_shared_slots_once(void **state)
{
    const row_units table = {7, {0, 1, 2, 3, 0, 1, SHARED}};
    moec_plan_opts o = opts_of(false);
    (void)state;
    o.shared = MOEC_SHARED_SLOTS_GLOBAL;
    expect_table(format_named("nvfp4 of ModelOpt"), &o, 1, &table);
}

static void a_table_has_no_rows_for_shared_experts_elsewhere(void **state)
{
    const row_units table = {6, {0, 1, 2, 3, 0, 1}};
    moec_plan_opts o = opts_of(false);
    (void)state;
    o.shared = MOEC_SHARED_SLOTS_OFF;
    expect_table(format_named("nvfp4 of ModelOpt"), &o, 0, &table);
    o.shared = MOEC_SHARED_SLOTS_AUTO;
    o.shared_store_common = 1;
    expect_table(format_named("nvfp4 of ModelOpt"), &o, 0, &table);
}

/* An empty slot's rows are zeros on every rank. */
static void a_table_has_rows_for_empty_slots(void **state)
{
    const format *f = format_named("nvfp4 of ModelOpt");
    tree *t = make_tree(f, 1);
    moec_plan_opts o = opts_of(false);
    moec_error err = MOEC_ERROR_INIT;
    unsigned char row[8], zeros[8] = {0};
    (void)state;
    o.n_redundant = 1; /* 5 slots on 2 ranks: physical slot 5 is empty */
    o.allow_empty = 1;
    write_tree(t);
    subject s = open_subject(t, f->name, &o);
    convert(t, &s, f->name);
    for (uint32_t rank = 0; rank < N_RANKS; rank++) {
        moec_ckpt *file = open_rank(t, rank);
        size_t i =
            moec_ckpt_find(file, "model.layers.0.mlp.experts.w13_input_scale");
        assert_int_not_equal(i, SIZE_MAX);
        assert_int_equal(moec_ckpt_tensor(file, i)->shape[0], 8);
        /* rank 1: experts 3, 0, none, shared */
        assert_int_equal(moec_ckpt_read(file, i, 6 * 8, row, 8, &err), MOEC_OK);
        assert_memory_equal(row, zeros, 8);
        assert_int_equal(moec_ckpt_read(file, i, 5 * 8, row, 8, &err), MOEC_OK);
        assert_memory_equal(
            row, find(t, name_of(f, 0, "gate", "input_scale"))->data, 4);
        assert_int_equal(moec_ckpt_read(file, i, 7 * 8, row, 8, &err), MOEC_OK);
        assert_memory_equal(
            row + 4, find(t, name_of(f, SHARED, "up", "input_scale"))->data, 4);
        moec_ckpt_close(file);
    }
    expect_clean(t, f->name, s.ckpt);
    close_subject(&s);
    free_tree(t);
}

/* Figures count a table's rows: 8 of them a rank, of 5 experts' numbers. */
static void figures_count_a_table(void **state)
{
    const format *f = format_named("nvfp4 of ModelOpt");
    tree *t = make_tree(f, 1);
    moec_plan_opts o = opts_of(false);
    uint64_t own = 0, table = 0;
    (void)state;
    write_tree(t);
    subject s = open_subject(t, f->name, &o);
    for (size_t c = 0; c < n_components(f); c++) {
        const component *x = &f->components[c];
        uint64_t bytes =
            (elements(&x->w13) + elements(&x->w2)) * elem_bytes(x->dtype);
        *(x->table ? &table : &own) += bytes;
    }
    for (uint32_t rank = 0; rank < N_RANKS; rank++) {
        moec_rank_figures g = moec_layout_figures(s.layout, rank);
        /* gate, up, down a slot; own rows: 3 routed and 1 shared */
        assert_int_equal(g.n_moves, 3 * (3 * 4) + 3 * 8);
        assert_int_equal(g.bytes_read, 4 * own + 5 * table);
    }
    close_subject(&s);
    free_tree(t);
}

/* ------------------------------------------------- what does not fuse */

static void expect_apart(tree *t, const char *text)
{
    subject s;
    moec_error err = MOEC_ERROR_INIT;
    write_tree(t);
    if (open_model(&s, t, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    const moec_facts *f = moec_model_facts(s.model);
    assert_int_equal(f->shared_slots, 0);
    assert_non_null(f->no_fuse_why);
    if (strstr(f->no_fuse_why, text) == NULL)
        fail_msg("want %s\nhave %s", text, f->no_fuse_why);
    close_subject(&s);
    free_tree(t);
}

static void formats_that_cannot_be_cut_say_why(void **state)
{
    (void)state;
    expect_apart(make_tree(format_named("gptq"), 2),
                 "layer main 0: 'g_idx' of the shared expert numbers groups of "
                 "the whole projection and cannot be cut");
    expect_apart(make_tree(format_named("int4 of compressed-tensors"), 2),
                 "layer main 0: 'weight_shape' of the shared expert is about "
                 "the whole projection and cannot be cut");
    expect_apart(make_tree(format_named("bf16 with biases"), 2),
                 "layer main 0: 'bias' of the shared expert would be added "
                 "once for each part");
}

/* Apart they are common tensors, once and with a note; slots that were asked
 * for by name are refused. */
static void shared_experts_apart_take_no_slots(void **state)
{
    tree *t = make_tree(format_named("bf16 with biases"), 2);
    moec_error err = MOEC_ERROR_INIT;
    moec_plan_opts o = opts_of(false);
    (void)state;
    write_tree(t);
    o.shared_store_common = 1;
    subject s = open_subject(t, "stored once", &o);
    assert_int_equal(moec_plan_n_notes(s.plan), 1);
    assert_int_equal(moec_plan_note(s.plan, 0)->rule, MOEC_RULE_P10);
    for (size_t i = 0; i < moec_ckpt_n_tensors(s.ckpt); i++)
        assert_int_not_equal(moec_plan_fate(s.plan, i), MOEC_FATE_SHARED);
    moec_plan_destroy(s.plan);
    s.plan = NULL;
    o.shared = MOEC_SHARED_SLOTS_PER_RANK;
    assert_int_equal(moec_plan_create(&s.plan, s.model, &o, &err),
                     MOEC_E_MAPPING);
    assert_int_equal(err.rule, MOEC_RULE_P10);
    close_subject(&s);
    free_tree(t);
}

/* The format with another width of the experts and of its tensors. */
static format widened(const char *name, uint64_t inter)
{
    format f = *format_named(name);
    f.inter = inter;
    return f;
}

static void set_dim(dims *a, uint32_t i, uint64_t v)
{
    a->d[i] = v;
}

/* 320 features are 128, 128 and 64; 24 are one group of 32 and not whole. */
static void half_a_block_is_not_cut(void **state)
{
    format f = widened("fp8 in blocks of 128", 320);
    (void)state;
    set_dim(&f.components[0].gate, 0, 320);
    set_dim(&f.components[0].down, 1, 320);
    set_dim(&f.components[1].gate, 0, 3);
    set_dim(&f.components[1].down, 1, 3);
    tree *t = make_tree(&f, 2);
    /* twice 320 features are 5 blocks */
    for (size_t i = 0; i < t->n; i++)
        if (strstr(t->t[i].name, "shared_experts") != NULL &&
            strstr(t->t[i].name, "scale") != NULL) {
            tensor *x = &t->t[i];
            set_dim(&x->shape, strstr(x->name, "down") != NULL, 5);
            x->bytes = (size_t)elements(&x->shape) * 4;
        }
    expect_apart(t, "'weight_scale_inv' of the shared expert is not cut at "
                    "borders of its blocks");
    f = widened("mxfp4 of compressed-tensors", 48);
    set_dim(&f.components[0].gate, 0, 48);
    set_dim(&f.components[0].down, 1, 24);
    set_dim(&f.components[1].gate, 0, 48);
    set_dim(&f.components[1].down, 1, 2);
    t = make_tree(&f, 2);
    find(t, name_of(&f, SHARED, "down", "weight_scale"))->shape.d[1] = 3;
    find(t, name_of(&f, SHARED, "down", "weight_scale"))->bytes = 128 * 3;
    expect_apart(t, "'weight_scale' of the shared expert is not cut at borders "
                    "of its blocks");
}

/* DeepSeek-V4 and Kimi-K2.5: routed experts in 4 bits, the shared one not. */
static void other_formats_stay_apart(void **state)
{
    const format *f = format_named("mxfp4 of DeepSeek");
    tree *t = make_tree(f, 0);
    dims wide = D(64, 128), tall = D(128, 64), block = D(1, 1);
    (void)state;
    set_config(t, "deepseek_v3", f, 1, "");
    for (int scale = 0; scale < 2; scale++)
        for (int i = 0; i < 3; i++) {
            static const char *const parts[] = {"gate", "up", "down"};
            add(t, name_of(f, SHARED, parts[i], scale ? "scale" : "weight"),
                scale ? E8M0 : F8,
                scale   ? &block
                : i < 2 ? &wide
                        : &tall);
        }
    expect_apart(t, "'weight' of the shared expert is of another dtype");
    f = format_named("int4 of compressed-tensors");
    dims w = D(32, 64), d = D(64, 32);
    t = make_tree(f, 0);
    set_config(t, "deepseek_v3", f, 1, "");
    add(t, name_of(f, SHARED, "gate", "weight"), BF16, &w);
    add(t, name_of(f, SHARED, "up", "weight"), BF16, &w);
    add(t, name_of(f, SHARED, "down", "weight"), BF16, &d);
    expect_apart(t, "the routed experts have 'weight_packed', the shared have "
                    "none");
}

/* --------------------------------------------------------- refusals */

static void expect_refused(tree *t, moec_status status, const char *text)
{
    subject s;
    moec_error err = MOEC_ERROR_INIT;
    write_tree(t);
    assert_int_equal(open_model(&s, t, &err), status);
    if (strstr(err.text, text) == NULL)
        fail_msg("want %s\nhave %s", text, err.text);
    close_subject(&s);
    free_tree(t);
}

/* A tree of `name` in which `suffix` of every gate and up is `shape`. */
static tree *bent(const char *name, const char *suffix, dims shape)
{
    format f = *format_named(name);
    for (size_t c = 0; c < n_components(&f); c++)
        if (strcmp(f.components[c].suffix, suffix) == 0)
            f.components[c].gate = shape;
    return make_tree(&f, 0);
}

static void scales_of_no_blocks_are_refused(void **state)
{
    (void)state;
    /* 60 numbers cannot be blocks of 64 features */
    expect_refused(bent("fp8, a scale a row", "weight_scale", (dims)D(32, 60)),
                   MOEC_E_FORMAT, "which is no weight_scale of a projection");
    /* [in, out] where the family says [out, in] */
    expect_refused(bent("nvfp4 of ModelOpt", "weight_scale", (dims)D(4, 32)),
                   MOEC_E_FORMAT, "which is no weight_scale of a projection");
    /* blocks of 64, where the config says 128 */
    expect_refused(
        bent("fp8 in blocks of 128, e8m0 scales", "scale", (dims)D(4, 6)),
        MOEC_E_FORMAT, "which is no scale of a projection");
    expect_refused(bent("awq", "qzeros", (dims)D(4, 3)), MOEC_E_FORMAT,
                   "which is no qzeros of a projection");
    expect_refused(bent("gptq", "g_idx", (dims)D(32)), MOEC_E_FORMAT,
                   "which is no g_idx of a projection");
}

/* A stacked source whose middle block is of gate and up both. */
static void a_block_of_gate_and_up_is_refused(void **state)
{
    stacked f = stacked_formats[0];
    (void)state;
    f.in_out = false;
    f.model_type = "deepseek_v3";
    f.prefix = "model.layers.0.mlp";
    f.inter = 224; /* 448 features are 4 blocks, gate ends within the second */
    f.quantisation = "";
    f.stacks[0].gate_up = (dims)D(448, 384);
    f.stacks[0].down = (dims)D(384, 224);
    f.stacks[1].gate_up = (dims)D(4, 3);
    f.stacks[1].down = (dims)D(3, 2);
    f.stacks[2].suffix = NULL;
    expect_refused(make_stacked_tree(&f), MOEC_E_UNSUPPORTED,
                   "cannot be told apart");
    f.quantisation = BLOCKS_128;
    expect_refused(make_stacked_tree(&f), MOEC_E_UNSUPPORTED,
                   "cannot be told apart");
}

/* A family whose stacked experts are packed as AWQ does. */
#define AWQ_STACK(interleaved)                                                 \
  "{\"schema\": \"moec.family/1\", \"family\": \"packed\","                    \
  "\"model_types\": [\"packed\"],"                                             \
  "\"layers\": [{\"prefix\": \"model.layers.{L}.\"}],"                         \
  "\"namespaces\": [\"mlp.experts\"], \"experts\": \"mlp.experts\","           \
  "\"tensors\": [{\"name\": \"mlp.experts.gate_up_proj\", \"role\": "          \
  "\"routed\", \"part\": \"gate_up\", \"stack\": \"experts\", "                \
  "\"component\": \"qweight\", \"geometry\": \"kept\", "                       \
  "\"interleaved\": " interleaved "}, "                                        \
  "{\"name\": \"mlp.experts.down_proj\", \"role\": \"routed\", "               \
  "\"part\": \"down\", \"stack\": \"experts\", \"component\": "                \
  "\"qweight\", \"geometry\": \"kept\"}],"                                     \
  "\"config\": {\"n_experts\": {\"default\": 4}, \"top_k\": {\"default\": "    \
  "1}, \"hidden\": {\"default\": 64}, \"inter\": {\"default\": 32}, "          \
  "\"n_layers\": {\"default\": 1}, \"norm_topk\": {\"default\": true}, "       \
  "\"score\": {\"default\": \"softmax\"}, \"activation\": {\"default\": "      \
  "\"silu\"}}, \"moe_layers\": [{\"kind\": \"all\"}]}"

/* Several elements share a word along the axis on which gate and up join:
 * alternating ones cannot be parted without packing them again. */
static void packed_gate_and_up_that_alternate_are_refused(void **state)
{
    static const char *const texts[] = {AWQ_STACK("false"), AWQ_STACK("true")};
    dims both = D(N_EXPERTS, 64, 8), down = D(N_EXPERTS, 32, 8);
    (void)state;
    for (int i = 0; i < 2; i++) {
        tree *t = calloc(1, sizeof(*t));
        moec_families *families = NULL;
        moec_error err = MOEC_ERROR_INIT;
        subject s = {NULL, NULL, NULL, NULL};
        assert_non_null(t);
        t->dir = tmpdir_make();
        snprintf(t->config, sizeof(t->config), "{\"model_type\": \"packed\"}");
        add(t, "model.layers.0.mlp.experts.gate_up_proj", I32, &both);
        add(t, "model.layers.0.mlp.experts.down_proj", I32, &down);
        write_tree(t);
        assert_int_equal(moec_families_create(&families, &err), MOEC_OK);
        if (moec_families_add(families, "packed.json", texts[i],
                              strlen(texts[i]), &err) != MOEC_OK ||
            moec_ckpt_open(&s.ckpt, tmpdir_path(&t->dir, "src"), NULL, &err) !=
                MOEC_OK)
            fail_msg("%s", err.text);
        moec_status st = moec_model_open(&s.model, s.ckpt, families, &err);
        if (st != (i == 0 ? MOEC_OK : MOEC_E_UNSUPPORTED))
            fail_msg("%d: %s", i, err.text);
        moec_families_destroy(families);
        close_subject(&s);
        free_tree(t);
    }
}

static void a_kind_of_scale_that_nobody_knows_is_refused(void **state)
{
    tree *t = make_tree(format_named("bf16"), 0);
    dims one = D0;
    (void)state;
    add(t, "model.layers.0.mlp.experts.0.gate_proj.weight_scale_3", F32, &one);
    expect_refused(t, MOEC_E_MAPPING, "weight_scale_3");
}

/* ------------------------------------------------- proofs can fail */

typedef struct proved {
    tree *t;
    subject s;
    moec_proof p;
    moec_proof_layer l;
} proved;

static proved open_proof(const char *name)
{
    moec_plan_opts o = opts_of(true);
    moec_error err = MOEC_ERROR_INIT;
    proved x = {.t = make_tree(format_named(name), 1)};
    write_tree(x.t);
    x.s = open_subject(x.t, name, &o);
    if (moec_proof_open(&x.p, x.s.plan, &err) != MOEC_OK ||
        moec_proof_layer_open(&x.l, x.s.plan, 0, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    return x;
}

static size_t slots_named(const proved *x, const char *tail)
{
    for (size_t i = 0; i < x->l.n_tensors; i++)
        if (strcmp(x->l.tensors[i].name + strlen("model.layers.0.mlp.experts."),
                   tail) == 0)
            return i;
    fail_msg("no '%s'", tail);
    return 0;
}

/* Move `i` of an expert's block. */
static moec_move *move(proved *x, size_t t, uint32_t unit, size_t i)
{
    const moec_proof_block *b = &x->l.blocks[t * (x->l.n_units + 1) + unit];
    assert_true(i < b->n);
    return &x->l.moves[b->first + i];
}

/* The mutated proof finds `rule` (NONE: nothing) about `tensor`. */
static void close_proof(proved *x, moec_rule rule, const char *about)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_report *r = NULL;
    bool found = false;
    if (moec_report_create(&r, &err) != MOEC_OK ||
        moec_prove_layer(r, &x->p, &x->l, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    moec_prove_sources(r, &x->p);
    if (moec_report_finish(r, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    for (size_t i = 0; i < moec_report_n_findings(r); i++) {
        const moec_finding *f = moec_report_finding(r, i);
        if (f->severity != MOEC_SEVERITY_ERROR)
            continue;
        if (rule == MOEC_RULE_NONE)
            fail_msg("%s", f->message);
        found = found || (f->rule == rule && f->tensor != NULL &&
                          strstr(f->tensor, about) != NULL);
    }
    if (rule != MOEC_RULE_NONE && !found)
        fail_msg("no %s about %s", moec_rule_describe(rule)->id, about);
    moec_report_destroy(r);
    moec_proof_layer_close(&x->l);
    moec_proof_close(&x->p);
    close_subject(&x->s);
    free_tree(x->t);
}

static void every_format_is_proved(void **state)
{
    (void)state;
    for (size_t i = 0; i < N_FORMATS; i++) {
        proved x = open_proof(formats[i].name);
        close_proof(&x, MOEC_RULE_NONE, "");
    }
}

static void t5_sees_other_dtypes_and_shapes(void **state)
{
    proved x = open_proof("nvfp4 of ModelOpt");
    (void)state;
    x.l.tensors[slots_named(&x, "w13_weight_scale")].dtype = U8;
    close_proof(&x, MOEC_RULE_T5, "w13_weight_scale");
    x = open_proof("awq");
    moec_slot_tensor *s = &x.l.tensors[slots_named(&x, "w13_qzeros")];
    s->shape[1] = 8; /* the same bytes as [out, in] */
    s->shape[2] = 4;
    close_proof(&x, MOEC_RULE_T5, "w13_qzeros");
    x = open_proof("int4 of compressed-tensors");
    s = &x.l.tensors[slots_named(&x, "w13_weight_shape")];
    s->shape[1] = 4;
    s->shape[2] = 1;
    close_proof(&x, MOEC_RULE_T5, "w13_weight_shape");
}

static void t2_sees_gaps_and_overlaps(void **state)
{
    proved x = open_proof("gptq");
    (void)state;
    move(&x, slots_named(&x, "w13_scales"), 2, 1)->dst_off += 2;
    close_proof(&x, MOEC_RULE_T2, "w13_scales");
    x = open_proof("mxfp8");
    move(&x, slots_named(&x, "w13_weight_scale_inv"), SHARED, 1)->dst_off = 0;
    close_proof(&x, MOEC_RULE_T2, "w13_weight_scale_inv");
    x = open_proof("nvfp4 of ModelOpt");
    move(&x, slots_named(&x, "w13_input_scale"), 1, 0)->dst_off = 4;
    close_proof(&x, MOEC_RULE_T2, "w13_input_scale");
}

static void t3_sees_gate_for_up_and_another_experts_scale(void **state)
{
    proved x = open_proof("int4 of compressed-tensors");
    (void)state;
    size_t t = slots_named(&x, "w13_weight_zero_point");
    uint32_t gate = move(&x, t, 1, 0)->tensor;
    move(&x, t, 1, 0)->tensor = move(&x, t, 1, 1)->tensor;
    move(&x, t, 1, 1)->tensor = gate;
    close_proof(&x, MOEC_RULE_T3, "w13_weight_zero_point");
    x = open_proof("nvfp4 of ModelOpt");
    t = slots_named(&x, "w2_input_scale");
    move(&x, t, 1, 0)->tensor = move(&x, t, 2, 0)->tensor;
    close_proof(&x, MOEC_RULE_T3, "w2_input_scale");
}

static void t4_sees_a_table_in_another_order(void **state)
{
    proved x = open_proof("nvfp4 of ModelOpt");
    size_t t = slots_named(&x, "w13_input_scale");
    (void)state;
    assert_int_equal(x.l.tensors[t].all_slots, 1);
    assert_int_equal(x.l.n_table_units, 2 * 8);
    assert_int_equal(x.l.table_units[3], SHARED);
    /* P for P + S*W: routed slots without the gaps for shared ones */
    x.l.table_units[3] = 3;
    close_proof(&x, MOEC_RULE_T4, "w13_input_scale");
    x = open_proof("nvfp4 of ModelOpt");
    x.l.tensors[slots_named(&x, "w2_input_scale")].shape[0] = 4;
    close_proof(&x, MOEC_RULE_T4, "w2_input_scale");
}

/* A number of a table that only another rank reads is damage all the same. */
static void a_damaged_table_is_found(void **state)
{
    const format *f = format_named("nvfp4 of ModelOpt");
    tree *t = make_tree(f, 1);
    moec_plan_opts o = opts_of(false);
    size_t file, k = 0;
    uint64_t off;
    (void)state;
    write_tree(t);
    subject s = open_subject(t, f->name, &o);
    convert(t, &s, f->name);
    while (strstr(moec_plan_slot_tensor(s.plan, 0, k)->name,
                  "w2_input_scale") == NULL)
        k++;
    moec_layout_find_slots(s.layout, 1, 0, k, &file, &off);
    char name[128];
    snprintf(name, sizeof(name), "out/%s",
             moec_layout_file(s.layout, file)->name);
    FILE *d = fopen(tmpdir_path(&t->dir, name), "r+b");
    assert_non_null(d);
    assert_int_equal(fseek(d, (long)off + 2 * 4, SEEK_SET), 0);
    int c = fgetc(d);
    assert_int_equal(fseek(d, (long)off + 2 * 4, SEEK_SET), 0);
    assert_int_not_equal(fputc(c ^ 1, d), EOF);
    assert_int_equal(fclose(d), 0);
    moec_report *r = verify(t, s.ckpt);
    assert_int_equal(moec_report_ok(r), 0);
    const moec_finding *g = moec_report_finding(r, 0);
    assert_int_equal(g->rule, MOEC_RULE_T3);
    assert_int_equal(g->rank, 1);
    assert_int_equal(g->slot, 2);
    assert_int_equal(g->expert, 2); /* which rank 1 does not hold */
    assert_non_null(strstr(g->tensor, "w2_input_scale"));
    moec_report_destroy(r);
    close_subject(&s);
    free_tree(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_format_gate_first),
        cmocka_unit_test(every_format_up_first),
        cmocka_unit_test(a_shared_expert_of_two_widths_is_cut),
        cmocka_unit_test(every_stacked_format),
        cmocka_unit_test(a_table_numbers_global_shared_slots_once),
        cmocka_unit_test(a_table_has_no_rows_for_shared_experts_elsewhere),
        cmocka_unit_test(a_table_has_rows_for_empty_slots),
        cmocka_unit_test(figures_count_a_table),
        cmocka_unit_test(formats_that_cannot_be_cut_say_why),
        cmocka_unit_test(shared_experts_apart_take_no_slots),
        cmocka_unit_test(half_a_block_is_not_cut),
        cmocka_unit_test(other_formats_stay_apart),
        cmocka_unit_test(scales_of_no_blocks_are_refused),
        cmocka_unit_test(a_block_of_gate_and_up_is_refused),
        cmocka_unit_test(packed_gate_and_up_that_alternate_are_refused),
        cmocka_unit_test(a_kind_of_scale_that_nobody_knows_is_refused),
        cmocka_unit_test(every_format_is_proved),
        cmocka_unit_test(t5_sees_other_dtypes_and_shapes),
        cmocka_unit_test(t2_sees_gaps_and_overlaps),
        cmocka_unit_test(t3_sees_gate_for_up_and_another_experts_scale),
        cmocka_unit_test(t4_sees_a_table_in_another_order),
        cmocka_unit_test(a_damaged_table_is_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
