/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Where tensors lie in the output files. Every layout is held against the
 * rules of the format document, written out anew, and every file's header is
 * read back by the checkpoint reader, once from memory and once as a sparse
 * file. Models: the fixtures, and one made here whose tensors have odd sizes,
 * all widths, no bytes or no dimensions.
 */

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include <moec/moec.h>

#include "ckpt.h"

/* ------------------------------------------------------------- models */

typedef struct subject {
    moec_ckpt *ckpt;
    moec_model *model;
    moec_plan *plan;
    moec_layout *layout;
} subject;

static void close_layout(subject *s)
{
    moec_layout_destroy(s->layout);
    moec_plan_destroy(s->plan);
    s->layout = NULL;
    s->plan = NULL;
}

static void close_subject(subject *s)
{
    close_layout(s);
    moec_model_destroy(s->model);
    moec_ckpt_close(s->ckpt);
}

static moec_families *builtin_families(void)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_families *families = NULL;

    if (moec_families_create(&families, &err))
        fail_msg("%s", err.text);
    return families;
}

static subject open_fixture(const char *name)
{
    moec_families *families = builtin_families();
    moec_error err = MOEC_ERROR_INIT;
    subject s = {0};
    char path[512];

    snprintf(path, sizeof(path), "%s/checkpoints/%s", MOEC_TEST_FIXTURES, name);
    if (moec_ckpt_open(&s.ckpt, path, NULL, &err) ||
        moec_model_open(&s.model, s.ckpt, families, &err))
        fail_msg("%s", err.text);
    moec_families_destroy(families);
    return s;
}

/* Appends tensors to a shard's header. */
typedef struct shard {
    moec_buf json;
    uint64_t bytes;
} shard;

static void put_tensor(shard *s, const char *name, const char *dtype,
                       const char *shape, uint64_t bytes)
{
    moec_buf_printf(&s->json,
                    "%c\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],"
                    "\"data_offsets\":[%ju,%ju]}",
                    s->json.len ? ',' : '{', name, dtype, shape,
                    (uintmax_t)s->bytes, (uintmax_t)(s->bytes + bytes));
    s->bytes += bytes;
}

enum { ODD_E = 6, ODD_H = 10, ODD_I = 7, ODD_LAYERS = 3 };

static void put_odd_layer(shard *s, int layer)
{
    char name[128], shape[32];

    snprintf(name, sizeof(name), "model.layers.%d.block_sparse_moe.gate.weight",
             layer);
    snprintf(shape, sizeof(shape), "%d,%d", ODD_E, ODD_H);
    put_tensor(s, name, "BF16", shape, 2 * ODD_E * ODD_H);
    for (int e = 0; e < ODD_E; e++) {
        for (int w = 1; w <= 3; w++) {
            snprintf(name, sizeof(name),
                     "model.layers.%d.block_sparse_moe.experts.%d.w%d.weight",
                     layer, e, w);
            snprintf(shape, sizeof(shape), "%d,%d", w == 2 ? ODD_H : ODD_I,
                     w == 2 ? ODD_I : ODD_H);
            put_tensor(s, name, "BF16", shape, 2 * ODD_H * ODD_I);
        }
    }
}

/* Open shards of these headers and no data, and free them. */
static subject open_shards(shard *shards, size_t n, const char *config)
{
    moec_families *families = builtin_families();
    moec_error err = MOEC_ERROR_INIT;
    moec_buf headers[2] = {{0}, {0}};
    moec_header_blob blobs[2];
    char names[2][48];
    subject s = {0};

    assert_true(n <= 2);
    for (size_t i = 0; i < n; i++) {
        moec_buf_puts(&shards[i].json, "}");
        moec_buf_u64(&headers[i], shards[i].json.len);
        moec_buf_append(&headers[i], shards[i].json.data, shards[i].json.len);
        assert_false(headers[i].oom);
        snprintf(names[i], sizeof(names[i]), "model-%zu.safetensors", i + 1);
        blobs[i] =
            (moec_header_blob){.name = names[i],
                               .data = headers[i].data,
                               .data_bytes = headers[i].len,
                               .file_bytes = headers[i].len + shards[i].bytes};
    }
    if (moec_ckpt_from_headers(&s.ckpt, "made", blobs, n, &err) ||
        moec_model_create(&s.model, s.ckpt, families, config, strlen(config),
                          &err))
        fail_msg("%s", err.text);
    for (size_t i = 0; i < n; i++) {
        moec_buf_fini(&shards[i].json);
        moec_buf_fini(&headers[i]);
    }
    moec_families_destroy(families);
    return s;
}

/* A Mixtral of two shards whose common tensors come narrow before wide. */
static subject open_odd_model(void)
{
    static const char config[] =
        "{\"architectures\":[\"MixtralForCausalLM\"],"
        "\"model_type\":\"mixtral\",\"num_local_experts\":6,"
        "\"num_experts_per_tok\":2,\"hidden_size\":10,"
        "\"intermediate_size\":7,\"num_hidden_layers\":3,"
        "\"hidden_act\":\"silu\",\"num_attention_heads\":1,"
        "\"vocab_size\":3,\"torch_dtype\":\"bfloat16\"}";
    shard shards[2] = {{{0}, 0}, {{0}, 0}};

    put_tensor(&shards[0], "model.a_bool", "BOOL", "3", 3);
    put_odd_layer(&shards[0], 0);
    put_tensor(&shards[0], "model.a_half", "BF16", "5", 10);
    put_tensor(&shards[0], "model.an_int", "I64", "1,2", 16);
    put_tensor(&shards[0], "model.none", "F32", "0,4", 0);
    put_odd_layer(&shards[0], 1);
    put_tensor(&shards[1], "model.a_float", "F32", "", 4);
    put_tensor(&shards[1], "model.f4", "F4", "6", 3);
    put_odd_layer(&shards[1], 2);
    put_tensor(&shards[1], "model.\\u00fc\\\"q", "U8", "5", 5);
    put_tensor(&shards[1], "model.norm", "F32", "9", 36);
    return open_shards(shards, 2, config);
}

enum { ROW_E = 4, ROW_H = 8, ROW_I = 4, ROW_PARTS = 2 };

/* gate, up and down of one MLP in FP8, with a scale for each row. */
static void put_row_scaled_mlp(shard *s, const char *prefix, int width)
{
    static const char *const parts[] = {"gate", "up", "down"};
    char name[128], shape[32];

    for (int i = 0; i < 3; i++) {
        int out = i == 2 ? ROW_H : width, in = i == 2 ? width : ROW_H;

        snprintf(name, sizeof(name), "%s.%s_proj.weight", prefix, parts[i]);
        snprintf(shape, sizeof(shape), "%d,%d", out, in);
        put_tensor(s, name, "F8_E4M3", shape, (uint64_t)(out * in));
        snprintf(name, sizeof(name), "%s.%s_proj.weight_scale", prefix,
                 parts[i]);
        snprintf(shape, sizeof(shape), "%d,1", out);
        put_tensor(s, name, "F32", shape, 4 * (uint64_t)out);
    }
}

/* A Qwen2-MoE whose shared expert fills two slots, which share the row scales
 * of its down projection. */
static subject open_row_scaled_model(void)
{
    static const char config[] =
        "{\"model_type\":\"qwen2_moe\",\"num_experts\":4,"
        "\"num_experts_per_tok\":2,\"hidden_size\":8,"
        "\"moe_intermediate_size\":4,\"num_hidden_layers\":1,"
        "\"shared_expert_intermediate_size\":8}";
    shard s = {{0}, 0};
    char prefix[64];

    put_tensor(&s, "model.layers.0.mlp.gate.weight", "BF16", "4,8",
               2 * ROW_E * ROW_H);
    put_tensor(&s, "model.layers.0.mlp.shared_expert_gate.weight", "BF16",
               "1,8", 2 * ROW_H);
    put_row_scaled_mlp(&s, "model.layers.0.mlp.shared_expert",
                       ROW_PARTS * ROW_I);
    for (int e = 0; e < ROW_E; e++) {
        snprintf(prefix, sizeof(prefix), "model.layers.0.mlp.experts.%d", e);
        put_row_scaled_mlp(&s, prefix, ROW_I);
    }
    return open_shards(&s, 1, config);
}

static void lay_out(subject *s, const moec_plan_opts *opts,
                    uint64_t max_part_bytes)
{
    moec_error err = MOEC_ERROR_INIT;

    if (moec_plan_create(&s->plan, s->model, opts, &err) ||
        moec_layout_create(&s->layout, s->plan, max_part_bytes, &err))
        fail_msg("%s", err.text);
}

/* ------------------------------------------------------- what must hold */

/* Data bytes of a planned layer in a rank file, fillers included. */
static uint64_t layer_bytes(const subject *s, size_t layer)
{
    size_t n = moec_plan_n_slot_tensors(s->plan, layer);
    uint64_t sum = 0;

    for (size_t t = 0; t < n; t++) {
        const moec_slot_tensor *slots =
            moec_plan_slot_tensor(s->plan, layer, t);

        sum += (slots->slot_bytes * slots->shape[0] + 4095) / 4096 * 4096;
    }
    return sum;
}

/* One rank (or store) file: layers [*layer, ...) whole and in order. */
static void check_slot_file(const subject *s, size_t index, size_t *layer)
{
    const moec_out_file *f = moec_layout_file(s->layout, index);
    uint64_t at = f->header_bytes, pad = 0;
    size_t i = 0, found;
    uint64_t off;

    assert_int_equal(f->bytes % 4096, 0);
    while (i < f->n_tensors) {
        size_t n = moec_plan_n_slot_tensors(s->plan, *layer);

        for (size_t t = 0; t < n; t++, i++) {
            const moec_slot_tensor *slots =
                moec_plan_slot_tensor(s->plan, *layer, t);
            const moec_out_tensor *o = &f->tensors[i];

            assert_true(i < f->n_tensors);
            assert_int_equal(o->kind, MOEC_OUT_SLOTS);
            assert_int_equal(o->layer, *layer);
            assert_int_equal(o->t, t);
            assert_int_equal(o->off, at);
            assert_int_equal(o->off % 4096, 0);
            assert_int_equal(o->bytes, slots->slot_bytes * slots->shape[0]);
            moec_layout_find_slots(s->layout, f->rank, *layer, t, &found, &off);
            assert_int_equal(found, index);
            assert_int_equal(off, o->off);
            at += o->bytes;
            if (at % 4096 == 0)
                continue;
            o = &f->tensors[++i];
            assert_true(i < f->n_tensors);
            assert_int_equal(o->kind, MOEC_OUT_PAD);
            assert_int_equal(o->source, pad++);
            assert_int_equal(o->off, at);
            assert_int_equal(o->bytes, 4096 - at % 4096);
            at += o->bytes;
        }
        (*layer)++;
    }
    assert_int_equal(at, f->bytes);
}

/* Parts are cut late but not too late. `from` and `to` are its layers. */
static void check_part_size(const subject *s, size_t from, size_t to)
{
    uint64_t max = moec_layout_max_part_bytes(s->layout), sum = 0;

    for (size_t i = from; i < to; i++)
        sum += layer_bytes(s, i);
    assert_true(to > from);
    assert_true(sum <= max || to == from + 1);
    if (to < moec_plan_n_layers(s->plan))
        assert_true(sum + layer_bytes(s, to) > max);
}

/* Rank files come first, by rank and part; each rank has every layer. */
static size_t check_rank_files(const subject *s)
{
    bool store = moec_plan_options(s->plan)->by_expert;
    uint32_t w = moec_plan_topology(s->plan).n_ranks;
    size_t n_layers = moec_plan_n_layers(s->plan), i = 0, n_parts = 0;
    char name[128];

    for (uint32_t rank = 0; rank < w; rank++) {
        size_t layer = 0, from, part = 0, n = 0;

        for (; layer < n_layers; i++) {
            const moec_out_file *f = moec_layout_file(s->layout, i);
            const moec_out_file *f0;

            assert_true(i < moec_layout_n_files(s->layout));
            assert_int_equal(f->kind, store ? MOEC_FILE_STORE : MOEC_FILE_RANK);
            assert_int_equal(f->rank, rank);
            from = layer;
            check_slot_file(s, i, &layer);
            check_part_size(s, from, layer);
            part++;
            n += f->n_tensors;
            if (!store) {
                snprintf(name, sizeof(name),
                         "experts-rank-%05u-of-%05u-part-%05zu.safetensors",
                         rank, w, part);
                assert_string_equal(f->name, name);
            }
            f0 = moec_layout_file(s->layout, part - 1);
            assert_int_equal(f->bytes, f0->bytes);
            assert_int_equal(f->header_bytes, f0->header_bytes);
        }
        assert_int_equal(layer, n_layers);
        assert_true(n > 0);
        n_parts = part;
    }
    for (size_t part = 0; store && part < n_parts; part++) {
        snprintf(name, sizeof(name), "experts-%05zu-of-%05zu.safetensors",
                 part + 1, n_parts);
        assert_string_equal(moec_layout_file(s->layout, part)->name, name);
    }
    return i;
}

static int source_before(const moec_tensor *a, const moec_tensor *b)
{
    return a->file != b->file ? a->file < b->file : a->off <= b->off;
}

/* Tensors of whole pages first, then by width of the element, then as the
 * source has them. */
static void check_stored_order(const moec_tensor *a, const moec_tensor *b)
{
    bool a_ragged = a->bytes % 4096 != 0, b_ragged = b->bytes % 4096 != 0;
    uint32_t a_bits = moec_dtype_bits((moec_dtype)a->dtype);
    uint32_t b_bits = moec_dtype_bits((moec_dtype)b->dtype);

    if (a_ragged != b_ragged)
        assert_true(b_ragged);
    else if (a_bits != b_bits)
        assert_true(a_bits > b_bits);
    else
        assert_true(source_before(a, b));
}

/* A common or shared file: ordered so that all tensors are aligned to their
 * elements, whole pages even to pages, without fillers. */
static void check_stored_file(const subject *s, size_t index, moec_fate fate,
                              uint8_t *seen)
{
    const moec_out_file *f = moec_layout_file(s->layout, index);
    uint64_t at = f->header_bytes, sum = 0;
    const moec_tensor *before = NULL;
    size_t found;
    uint64_t off;

    assert_true(f->n_tensors > 0);
    for (size_t i = 0; i < f->n_tensors; i++) {
        const moec_out_tensor *o = &f->tensors[i];
        const moec_tensor *t;
        uint32_t bits;

        assert_int_equal(o->kind, MOEC_OUT_COMMON);
        assert_true(o->source < moec_ckpt_n_tensors(s->ckpt));
        assert_int_equal(moec_plan_fate(s->plan, (size_t)o->source), fate);
        assert_int_equal(seen[o->source]++, 0);
        t = moec_ckpt_tensor(s->ckpt, (size_t)o->source);
        bits = moec_dtype_bits((moec_dtype)t->dtype);
        assert_int_equal(o->off, at);
        assert_int_equal(o->bytes, t->bytes);
        if (bits > 8)
            assert_int_equal(o->off % (bits / 8), 0);
        if (o->bytes % 4096 == 0)
            assert_int_equal(o->off % 4096, 0);
        if (before)
            check_stored_order(before, t);
        assert_int_equal(
            moec_layout_find_common(s->layout, (size_t)o->source, &found, &off),
            1);
        assert_int_equal(found, index);
        assert_int_equal(off, o->off);
        before = t;
        at += o->bytes;
        sum += o->bytes;
    }
    assert_int_equal(at, f->bytes);
    assert_true(sum <= moec_layout_max_part_bytes(s->layout) ||
                f->n_tensors == 1 || before->bytes == 0);
}

/* Files of one kind from index *i on; every tensor of that fate is in one. */
static void check_stored_files(const subject *s, moec_out_file_kind kind,
                               moec_fate fate, size_t *i)
{
    size_t n = moec_ckpt_n_tensors(s->ckpt), first = *i, end = *i;
    uint8_t *seen = calloc(n, 1);
    char name[128];

    assert_non_null(seen);
    while (end < moec_layout_n_files(s->layout) &&
           moec_layout_file(s->layout, end)->kind == kind)
        end++;
    for (; *i < end; (*i)++) {
        check_stored_file(s, *i, fate, seen);
        snprintf(name, sizeof(name), "%s-%05zu-of-%05zu.safetensors",
                 kind == MOEC_FILE_SHARED ? "shared" : "common", *i - first + 1,
                 end - first);
        assert_string_equal(moec_layout_file(s->layout, *i)->name, name);
    }
    for (size_t t = 0; t < n; t++)
        assert_int_equal(seen[t], moec_plan_fate(s->plan, t) == fate);
    free(seen);
}

static void check_sources_are_found(const subject *s)
{
    size_t n = moec_ckpt_n_tensors(s->ckpt), file;
    uint64_t off;

    for (size_t t = 0; t < n; t++) {
        moec_fate fate = moec_plan_fate(s->plan, t);
        int want = fate == MOEC_FATE_COMMON || fate == MOEC_FATE_SHARED;

        assert_int_equal(moec_layout_find_common(s->layout, t, &file, &off),
                         want);
    }
}

/* The tensors that a reader finds in a file, held against the layout. */
static void check_read_back(const subject *s, const moec_out_file *f,
                            const moec_ckpt *read)
{
    char buf[32];

    assert_int_equal(moec_ckpt_n_tensors(read), f->n_tensors);
    assert_int_equal(moec_ckpt_file(read, 0)->header_bytes, f->header_bytes);
    assert_int_equal(moec_ckpt_file(read, 0)->bytes, f->bytes);
    for (size_t i = 0; i < f->n_tensors; i++) {
        const moec_out_tensor *o = &f->tensors[i];
        size_t at = moec_ckpt_find(read, moec_layout_name(s->layout, o, buf));
        const moec_slot_tensor *slots;
        const moec_tensor *t, *source;

        assert_true(at != SIZE_MAX);
        t = moec_ckpt_tensor(read, at);
        assert_int_equal(t->off, o->off);
        assert_int_equal(t->bytes, o->bytes);
        if (o->kind == MOEC_OUT_SLOTS) {
            slots = moec_plan_slot_tensor(s->plan, o->layer, o->t);
            assert_int_equal(t->dtype, slots->dtype);
            assert_int_equal(t->rank, slots->rank);
            assert_memory_equal(t->shape, slots->shape,
                                t->rank * sizeof(*t->shape));
        } else if (o->kind == MOEC_OUT_COMMON) {
            source = moec_ckpt_tensor(s->ckpt, (size_t)o->source);
            assert_int_equal(t->dtype, source->dtype);
            assert_int_equal(t->rank, source->rank);
            for (uint32_t d = 0; d < t->rank; d++)
                assert_int_equal(t->shape[d], source->shape[d]);
        } else {
            assert_int_equal(t->dtype, MOEC_DTYPE_U8);
            assert_int_equal(t->rank, 1);
            assert_int_equal(t->shape[0], o->bytes);
        }
    }
}

/* The header begins with exactly this __metadata__. */
static void check_metadata(const subject *s, const moec_out_file *f,
                           const char *header)
{
    char want[512], hex[65];
    uint8_t digest[32];

    switch (f->kind) {
    case MOEC_FILE_RANK:
        assert_int_equal(
            moec_placement_digest(moec_plan_placement(s->plan), digest, NULL),
            MOEC_OK);
        moec_hex(digest, 32, hex);
        snprintf(want, sizeof(want),
                 "{\"__metadata__\":{\"format\":\"pt\","
                 "\"moec_format_version\":\"1\",\"moec_placement\":\"%s\","
                 "\"moec_rank\":\"%u\",\"moec_w13_order\":\"gate-up\","
                 "\"moec_world\":\"%u\"},\"",
                 hex, f->rank, moec_plan_topology(s->plan).n_ranks);
        break;
    case MOEC_FILE_STORE:
        snprintf(want, sizeof(want),
                 "{\"__metadata__\":{\"format\":\"pt\","
                 "\"moec_format_version\":\"1\","
                 "\"moec_layout\":\"expert-store\","
                 "\"moec_w13_order\":\"gate-up\"},\"");
        break;
    case MOEC_FILE_COMMON:
    case MOEC_FILE_SHARED:
        snprintf(want, sizeof(want),
                 "{\"__metadata__\":{\"format\":\"pt\"},\"");
        break;
    }
    assert_memory_equal(header + 8, want, strlen(want));
}

static void check_headers(const subject *s)
{
    for (size_t i = 0; i < moec_layout_n_files(s->layout); i++) {
        const moec_out_file *f = moec_layout_file(s->layout, i);
        moec_error err = MOEC_ERROR_INIT;
        moec_header_blob blob = {.name = f->name, .file_bytes = f->bytes};
        moec_ckpt *read = NULL;
        void *header = NULL;

        if (moec_layout_header(s->layout, i, &header, &blob.data_bytes, &err))
            fail_msg("%s", err.text);
        assert_int_equal(blob.data_bytes, f->header_bytes);
        assert_int_equal(blob.data_bytes % 4096, 0);
        assert_int_equal(moec_le64(header), blob.data_bytes - 8);
        check_metadata(s, f, header);
        blob.data = header;
        if (moec_ckpt_from_headers(&read, "out", &blob, 1, &err))
            fail_msg("%s", err.text);
        check_read_back(s, f, read);
        moec_ckpt_close(read);
        free(header);
    }
}

/* ---------------------------------------------------------- figures */

/* Source bytes that a rank's moves name, marked one by one. */
typedef struct marks {
    uint8_t **bytes; /* [source tensor] */
    uint64_t n_marked, n_moves;
} marks;

static void mark_move(const subject *s, marks *m, const moec_move *v)
{
    const moec_tensor *t;

    m->n_moves++;
    if (v->op == MOEC_OP_FILL)
        return;
    t = moec_ckpt_tensor(s->ckpt, v->tensor);
    if (!m->bytes[v->tensor])
        m->bytes[v->tensor] = calloc(t->bytes, 1);
    for (uint64_t r = 0; r < v->n_rows; r++) {
        for (uint64_t c = 0; c < v->n_cols; c++) {
            uint64_t at = v->src_off + r * v->src_row + c * v->src_col;

            assert_true(at + v->elem_bytes <= t->bytes);
            for (uint64_t b = at; b < at + v->elem_bytes; b++) {
                m->n_marked += m->bytes[v->tensor][b] == 0;
                m->bytes[v->tensor][b] = 1;
            }
        }
    }
}

static void mark_layer(const subject *s, marks *m, uint32_t rank, size_t layer)
{
    size_t n = moec_plan_n_slot_tensors(s->plan, layer);
    moec_move moves[MOEC_BLOCK_MOVES_MAX];

    for (size_t t = 0; t < n; t++) {
        const moec_slot_tensor *slots =
            moec_plan_slot_tensor(s->plan, layer, t);

        for (uint32_t row = 0; row < slots->shape[0]; row++) {
            uint32_t unit =
                moec_plan_unit(s->plan, layer, rank, (moec_local_row){row});
            size_t k = moec_plan_block_moves(s->plan, layer, t, unit, moves);

            for (size_t i = 0; i < k; i++)
                mark_move(s, m, &moves[i]);
        }
    }
}

static void check_figures(const subject *s)
{
    uint32_t w = moec_plan_topology(s->plan).n_ranks;
    size_t n = moec_ckpt_n_tensors(s->ckpt);

    for (uint32_t rank = 0; rank < w; rank++) {
        moec_rank_figures f = moec_layout_figures(s->layout, rank);
        marks m = {.bytes = calloc(n, sizeof(*m.bytes))};
        uint64_t written = 0;

        assert_non_null(m.bytes);
        for (size_t layer = 0; layer < moec_plan_n_layers(s->plan); layer++)
            mark_layer(s, &m, rank, layer);
        for (size_t i = 0; i < moec_layout_n_files(s->layout); i++) {
            const moec_out_file *file = moec_layout_file(s->layout, i);

            if ((file->kind == MOEC_FILE_RANK ||
                 file->kind == MOEC_FILE_STORE) &&
                file->rank == rank)
                written += file->bytes;
        }
        assert_int_equal(f.bytes_written, written);
        assert_int_equal(f.n_moves, m.n_moves);
        assert_int_equal(f.bytes_read, m.n_marked);
        for (size_t i = 0; i < n; i++)
            free(m.bytes[i]);
        free(m.bytes);
    }
}

/* ----------------------------------------------------------- the tests */

static void check_layout(const subject *s)
{
    size_t i = check_rank_files(s);

    check_stored_files(s, MOEC_FILE_SHARED, MOEC_FATE_SHARED, &i);
    check_stored_files(s, MOEC_FILE_COMMON, MOEC_FATE_COMMON, &i);
    assert_int_equal(i, moec_layout_n_files(s->layout));
    check_sources_are_found(s);
    check_headers(s);
}

static void check_topologies(subject *s)
{
    static const uint64_t parts[] = {0, 1, 20000, 70000, 300000};

    for (uint32_t w = 1; w <= 8; w *= 2) {
        moec_plan_opts opts = MOEC_PLAN_OPTS_INIT;

        opts.n_ranks = w;
        opts.n_redundant = 2;
        opts.allow_empty = 1;
        for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
            lay_out(s, &opts, parts[i]);
            assert_int_equal(moec_layout_max_part_bytes(s->layout),
                             parts[i] ? parts[i] : MOEC_MAX_PART_BYTES_DEFAULT);
            check_layout(s);
            close_layout(s);
        }
    }
}

static void odd_sizes_obey_the_layout(void **state)
{
    subject s = open_odd_model();

    (void)state;
    check_topologies(&s);
    close_subject(&s);
}

static void fixtures_obey_the_layout(void **state)
{
    static const char *const names[] = {"qwen2_moe", "deepseek_v3",
                                        "deepseek_v3_fp8_ragged", "gpt_oss",
                                        "dbrx"};

    (void)state;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        subject s = open_fixture(names[i]);

        check_topologies(&s);
        close_subject(&s);
    }
}

static void shared_store_has_its_own_files(void **state)
{
    subject s = open_fixture("qwen2_moe");
    moec_plan_opts opts = MOEC_PLAN_OPTS_INIT;
    size_t n_shared = 0;

    (void)state;
    opts.n_ranks = 4;
    opts.shared_store_common = 1;
    lay_out(&s, &opts, 20000);
    check_layout(&s);
    for (size_t i = 0; i < moec_layout_n_files(s.layout); i++)
        n_shared += moec_layout_file(s.layout, i)->kind == MOEC_FILE_SHARED;
    assert_true(n_shared > 1);
    close_subject(&s);
}

static void expert_store_is_one_set_of_files(void **state)
{
    subject s = open_fixture("deepseek_v3");
    moec_plan_opts opts = MOEC_PLAN_OPTS_INIT;

    (void)state;
    opts.by_expert = 1;
    for (uint64_t max = 1; max < 10000000; max *= 50) {
        lay_out(&s, &opts, max);
        check_layout(&s);
        check_figures(&s);
        close_layout(&s);
    }
    close_subject(&s);
}

/* Replicas on one rank are read once, and so are the scales that the parts of
 * a split shared expert repeat. */
static void figures_count_distinct_bytes(void **state)
{
    static const char *const names[] = {"qwen2_moe", "gpt_oss",
                                        "deepseek_v3_fp8_ragged", NULL};

    (void)state;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        subject s = names[i] ? open_fixture(names[i]) : open_row_scaled_model();

        for (uint32_t w = 1; w <= 4; w *= 2) {
            moec_plan_opts opts = MOEC_PLAN_OPTS_INIT;

            opts.n_ranks = w;
            opts.n_redundant = 7;
            opts.allow_empty = 1;
            lay_out(&s, &opts, 0);
            check_figures(&s);
            close_layout(&s);
        }
        close_subject(&s);
    }
}

static void split_shared_expert_takes_its_slots(void **state)
{
    subject s = open_row_scaled_model();
    moec_plan_opts opts = MOEC_PLAN_OPTS_INIT;

    (void)state;
    opts.n_ranks = 2;
    lay_out(&s, &opts, 0);
    assert_int_equal(moec_plan_shared_rows(s.plan), ROW_PARTS);
    check_layout(&s);
    close_subject(&s);
}

/* Ranks of one and of several digits: the header's length is the same, what
 * stands in it is not. */
static void headers_of_all_ranks_are_equally_long(void **state)
{
    subject s = open_odd_model();
    moec_plan_opts opts = MOEC_PLAN_OPTS_INIT;
    void *first = NULL, *last = NULL;
    uint64_t first_bytes = 0, last_bytes = 0;

    (void)state;
    opts.n_ranks = 126;
    opts.n_redundant = 120;
    lay_out(&s, &opts, 0);
    check_layout(&s);
    assert_int_equal(
        moec_layout_header(s.layout, 0, &first, &first_bytes, NULL), MOEC_OK);
    assert_int_equal(
        moec_layout_header(s.layout, 125, &last, &last_bytes, NULL), MOEC_OK);
    assert_int_equal(first_bytes, last_bytes);
    assert_memory_not_equal(first, last, first_bytes);
    /* One table of tensors serves all ranks. */
    assert_ptr_equal(moec_layout_file(s.layout, 0)->tensors,
                     moec_layout_file(s.layout, 125)->tensors);
    free(first);
    free(last);
    close_subject(&s);
}

/* The same through the file system: header and a hole. */
static void files_open_with_the_reader(void **state)
{
    subject s = open_fixture("deepseek_v3_fp8");
    moec_plan_opts opts = MOEC_PLAN_OPTS_INIT;
    const char *tmp = getenv("TMPDIR");
    char dir[256], path[512];

    (void)state;
    snprintf(dir, sizeof(dir), "%s/moec-layout.XXXXXX", tmp ? tmp : P_tmpdir);
    assert_non_null(mkdtemp(dir));
    opts.n_ranks = 2;
    lay_out(&s, &opts, 300000);
    for (size_t i = 0; i < moec_layout_n_files(s.layout); i++) {
        const moec_out_file *f = moec_layout_file(s.layout, i);
        moec_error err = MOEC_ERROR_INIT;
        moec_ckpt *read = NULL;
        void *header = NULL;
        uint64_t bytes = 0;
        int fd;

        assert_int_equal(moec_layout_header(s.layout, i, &header, &bytes, NULL),
                         MOEC_OK);
        snprintf(path, sizeof(path), "%s/%s", dir, f->name);
        fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        assert_true(fd >= 0);
        assert_int_equal(write(fd, header, bytes), bytes);
        assert_int_equal(ftruncate(fd, (off_t)f->bytes), 0);
        assert_int_equal(close(fd), 0);
        if (moec_ckpt_open(&read, path, NULL, &err))
            fail_msg("%s", err.text);
        check_read_back(&s, f, read);
        moec_ckpt_close(read);
        free(header);
        assert_int_equal(unlink(path), 0);
    }
    assert_int_equal(rmdir(dir), 0);
    close_subject(&s);
}

static void survives_failing_allocations(void **state)
{
    subject s = open_odd_model();
    moec_plan_opts opts = MOEC_PLAN_OPTS_INIT;
    moec_status st = MOEC_E_NOMEM;
    int n;

    (void)state;
    opts.n_ranks = 3;
    lay_out(&s, &opts, 1);
    for (n = 1; st != MOEC_OK && n < 2000; n++) {
        moec_layout *l = NULL;
        void *header = NULL;
        uint64_t bytes;

        moec_alloc_fail_at((uint64_t)n);
        st = moec_layout_create(&l, s.plan, 1, NULL);
        if (st == MOEC_OK)
            st = moec_layout_header(l, 0, &header, &bytes, NULL);
        moec_alloc_fail_at(0);
        if (st != MOEC_OK)
            assert_int_equal(st, MOEC_E_NOMEM);
        moec_layout_destroy(l);
        free(header);
    }
    assert_int_equal(st, MOEC_OK);
    assert_true(n > 10);
    close_subject(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(odd_sizes_obey_the_layout),
        cmocka_unit_test(fixtures_obey_the_layout),
        cmocka_unit_test(shared_store_has_its_own_files),
        cmocka_unit_test(expert_store_is_one_set_of_files),
        cmocka_unit_test(figures_count_distinct_bytes),
        cmocka_unit_test(split_shared_expert_takes_its_slots),
        cmocka_unit_test(headers_of_all_ranks_are_equally_long),
        cmocka_unit_test(files_open_with_the_reader),
        cmocka_unit_test(survives_failing_allocations),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
