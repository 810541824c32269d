/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Seeded inputs are the same on every machine: integers in, integers out, and
 * one exact conversion. The sum of twelve uniform numbers less six has mean 0
 * and deviation 1 and is near enough to a normal one here, where only the scale
 * counts: what reaches a MoE block is a normalised hidden state. Values are cut
 * to what bf16 can hold, so that a bf16 server sees the same ones.
 */

#include "activations.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "base/json.h"
#include "ckpt.h"

#define FIXTURE_NAME "fixture.json"

/* --------------------------------------------------------------- seeded */

uint64_t moec_next_random(uint64_t *state)
{
    uint64_t z = *state += UINT64_C(0x9e3779b97f4a7c15);

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static float normal(uint64_t *state)
{
    int64_t sum = 0;
    float f;
    uint32_t bits;

    for (int i = 0; i < 3; i++) {
        uint64_t r = moec_next_random(state);

        sum += (int64_t)(r & 0xffff) + (int64_t)(r >> 16 & 0xffff) +
               (int64_t)(r >> 32 & 0xffff) + (int64_t)(r >> 48);
    }
    f = (float)(sum - (INT64_C(12) * 0x8000 - 6)) / 65536.0f;
    memcpy(&bits, &f, sizeof(bits));
    bits &= 0xffff0000u;
    memcpy(&f, &bits, sizeof(f));
    return f;
}

static moec_status make_rows(moec_batch *b, uint64_t rows, uint64_t hidden,
                             moec_error *err)
{
    b->n_rows = (uint32_t)rows;
    b->hidden = hidden;
    b->x = moec_calloc((size_t)rows + 1, (size_t)hidden * sizeof(float));
    return b->x != NULL ? MOEC_OK : moec_fail_nomem(err, "hidden states");
}

static moec_status seeded(moec_batch *b, const moec_activations *a,
                          moec_layer_key key, uint64_t hidden, moec_error *err)
{
    uint64_t state = a->seed ^ ((uint64_t)key.space << 32 | key.number);

    MOEC_TRY(make_rows(b, a->n_tokens, hidden, err));
    (void)moec_next_random(&state);
    for (uint64_t i = 0; i < b->n_rows * hidden; i++)
        b->x[i] = normal(&state);
    return MOEC_OK;
}

/* ---------------------------------------------------------------- files */

static moec_status wrong(const moec_ckpt *c, size_t t, const char *why,
                         moec_error *err)
{
    return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_NONE, "%s: tensor '%s' %s",
                     moec_ckpt_file(c, 0)->name, moec_ckpt_tensor(c, t)->name,
                     why);
}

/* Rows [0, n) of a [rows][cols] tensor as float32. */
static moec_status read_floats(const moec_activations *a, const moec_ckpt *c,
                               size_t tensor, uint64_t n, uint64_t cols,
                               float *out, moec_error *err)
{
    const moec_tensor *t = moec_ckpt_tensor(c, tensor);
    uint64_t elem = moec_dtype_bits((moec_dtype)t->dtype) / 8;
    void *raw;
    moec_status st;

    if (t->dtype == MOEC_DTYPE_F32)
        return moec_ckpt_read(c, tensor, 0, out, (size_t)(n * cols * 4), err);
    if (t->dtype != MOEC_DTYPE_BF16 && t->dtype != MOEC_DTYPE_F16)
        return wrong(c, tensor, "is not F32, BF16 or F16", err);
    raw = moec_alloc((size_t)(n * cols * elem));
    if (raw == NULL)
        return moec_fail_nomem(err, "hidden states");
    st = moec_ckpt_read(c, tensor, 0, raw, (size_t)(n * cols * elem), err);
    if (st == MOEC_OK)
        st = moec_cast(a->k, raw, (moec_dtype)t->dtype, out, MOEC_DTYPE_F32,
                       n * cols, err);
    moec_free(raw);
    return st;
}

/* Is `name` "layers.N." + tag + "input"? The tag may be empty. */
static bool is_input(const char *name, uint32_t number, size_t *prefix_bytes)
{
    char prefix[32];
    size_t n = strlen(name), p;

    (void)snprintf(prefix, sizeof(prefix), "layers.%" PRIu32 ".", number);
    p = strlen(prefix);
    if (n < p + 5 || strncmp(name, prefix, p) != 0 ||
        strcmp(name + n - 5, "input") != 0 || name[n - 6] != '.')
        return false;
    *prefix_bytes = n - 5;
    return true;
}

/* Rows to use of an input tensor. */
static moec_status rows_of(const moec_ckpt *c, size_t tensor, uint64_t hidden,
                           uint64_t *rows, moec_error *err)
{
    const moec_tensor *t = moec_ckpt_tensor(c, tensor);

    if (t->rank != 2 || t->shape[1] != hidden || t->shape[0] == 0)
        return wrong(c, tensor,
                     "is not [tokens, hidden] of this model, or empty", err);
    *rows = t->shape[0];
    return MOEC_OK;
}

/* All inputs that a file has for a layer, one behind the other. */
static moec_status recorded(moec_batch *b, const moec_activations *a,
                            const moec_ckpt *c, uint32_t number,
                            uint64_t hidden, moec_error *err)
{
    size_t tensors[MOEC_ACTIVATION_PARTS_MAX], n = 0, bytes = 0;
    uint64_t total = 0, rows = 0;

    for (size_t i = 0; i < moec_ckpt_n_tensors(c); i++) {
        const char *name = moec_ckpt_tensor(c, i)->name;
        moec_reference *p = &b->parts[n];

        if (!is_input(name, number, &bytes) || bytes >= sizeof(p->prefix) ||
            n == MOEC_ACTIVATION_PARTS_MAX)
            continue;
        MOEC_TRY(rows_of(c, i, hidden, &rows, err));
        b->n_left_out += rows;
        rows = moec_min_u64(rows, MOEC_ACTIVATION_ROWS_MAX - total);
        b->n_left_out -= rows;
        if (rows == 0)
            continue;
        memcpy(p->prefix, name, bytes);
        p->prefix[bytes] = '\0';
        p->first = (uint32_t)total;
        p->n = (uint32_t)rows;
        total += rows;
        tensors[n++] = i;
    }
    b->n_parts = n;
    if (n == 0)
        return MOEC_OK;
    MOEC_TRY(make_rows(b, total, hidden, err));
    for (size_t i = 0; i < n; i++)
        MOEC_TRY(read_floats(a, c, tensors[i], b->parts[i].n, hidden,
                             b->x + b->parts[i].first * hidden, err));
    return MOEC_OK;
}

moec_status moec_batch_make(moec_batch *out, const moec_activations *a,
                            moec_layer_key key, uint32_t number,
                            uint64_t hidden, moec_error *err)
{
    moec_batch b = {.kind = MOEC_BATCH_GOLDEN};
    moec_status st = MOEC_OK;

    if (a->golden != NULL)
        st = recorded(&b, a, a->golden, number, hidden, err);
    if (st == MOEC_OK && b.x == NULL && a->inputs != NULL) {
        b.kind = MOEC_BATCH_RECORDED;
        st = recorded(&b, a, a->inputs, number, hidden, err);
    }
    if (st == MOEC_OK && b.x == NULL) {
        b.kind = MOEC_BATCH_SEEDED;
        st = seeded(&b, a, key, hidden, err);
    }
    if (b.kind != MOEC_BATCH_GOLDEN)
        b.n_parts = 0;
    if (st != MOEC_OK) {
        moec_batch_fini(&b);
        return st;
    }
    *out = b;
    return MOEC_OK;
}

void moec_batch_fini(moec_batch *b)
{
    moec_free(b->x);
    b->x = NULL;
}

/* -------------------------------------------------------------- answers */

moec_status moec_reference_read(const moec_activations *a,
                                const moec_reference *part, const char *what,
                                uint64_t n_cols, bool ids, void *out,
                                bool *found_out, moec_error *err)
{
    char name[160];
    const moec_tensor *t;
    size_t at;

    (void)snprintf(name, sizeof(name), "%s%s", part->prefix, what);
    at = moec_ckpt_find(a->golden, name);
    *found_out = at != SIZE_MAX;
    if (at == SIZE_MAX)
        return MOEC_OK;
    t = moec_ckpt_tensor(a->golden, at);
    if (t->rank != 2 || t->shape[0] < part->n || t->shape[1] != n_cols)
        return wrong(a->golden, at, "has another shape than this model gives",
                     err);
    if (!ids)
        return read_floats(a, a->golden, at, part->n, n_cols, out, err);
    if (t->dtype != MOEC_DTYPE_I32)
        return wrong(a->golden, at, "is not I32", err);
    return moec_ckpt_read(a->golden, at, 0, out, (size_t)(part->n * n_cols * 4),
                          err);
}

uint64_t moec_reference_cols(const moec_activations *a,
                             const moec_reference *part, const char *what)
{
    char name[160];
    size_t at;

    (void)snprintf(name, sizeof(name), "%s%s", part->prefix, what);
    at = moec_ckpt_find(a->golden, name);
    if (at == SIZE_MAX || moec_ckpt_tensor(a->golden, at)->rank != 2)
        return 0;
    return moec_ckpt_tensor(a->golden, at)->shape[1];
}

static uint64_t count(const moec_tensor *t)
{
    uint32_t bits = moec_dtype_bits((moec_dtype)t->dtype);

    return bits == 0 ? 0 : t->bytes * 8 / bits;
}

/* Where a reference keeps its token ids, or SIZE_MAX. */
static size_t find_tokens(const moec_activations *a, const moec_reference *part)
{
    static const char *const words[] = {"tokens", "token_ids", "input_ids"};
    const char *number = strchr(part->prefix, '.');
    const char *rest = number != NULL ? strchr(number + 1, '.') : NULL;
    const char *prefixes[] = {part->prefix, rest != NULL ? rest + 1 : "", ""};
    char name[160];

    for (size_t p = 0; p < 3; p++)
        for (size_t w = 0; w < 3; w++) {
            size_t at;

            (void)snprintf(name, sizeof(name), "%s%s", prefixes[p], words[w]);
            at = moec_ckpt_find(a->golden, name);
            /* one list for all layers must be of these very rows */
            if (at != SIZE_MAX &&
                (p == 0 || count(moec_ckpt_tensor(a->golden, at)) == part->n))
                return at;
        }
    return SIZE_MAX;
}

moec_status moec_reference_tokens(const moec_activations *a,
                                  const moec_reference *part, int32_t *out,
                                  bool *found_out, moec_error *err)
{
    size_t at = find_tokens(a, part);
    const moec_tensor *t;
    uint64_t n = part->n, size;
    unsigned char *raw;
    moec_status st;

    *found_out = at != SIZE_MAX;
    if (at == SIZE_MAX)
        return MOEC_OK;
    t = moec_ckpt_tensor(a->golden, at);
    size = t->dtype == MOEC_DTYPE_I64 ? 8 : 4;
    if ((t->dtype != MOEC_DTYPE_I64 && t->dtype != MOEC_DTYPE_I32) ||
        t->bytes < n * size)
        return wrong(a->golden, at, "is no I32 or I64 for every token", err);
    raw = moec_alloc((size_t)(n * size));
    if (raw == NULL)
        return moec_fail_nomem(err, "token ids");
    st = moec_ckpt_read(a->golden, at, 0, raw, (size_t)(n * size), err);
    for (uint64_t i = 0; st == MOEC_OK && i < n; i++) {
        uint64_t id =
            size == 8 ? moec_le64(raw + i * 8) : moec_le32(raw + i * 4);

        if (id > INT32_MAX)
            st = wrong(a->golden, at, "has a token id that is none", err);
        out[i] = (int32_t)id;
    }
    moec_free(raw);
    return st;
}

double moec_reference_tolerance(const moec_activations *a, const float *v,
                                uint64_t n)
{
    double most = 0.0;

    if (a->has_tolerance)
        return a->tolerance;
    for (uint64_t i = 0; i < n; i++)
        most = fmax(most, fabs((double)v[i]));
    return most * 1e-5; /* about 84 float32 steps at the greatest value */
}

/* tolerance_abs of the fixture.json beside the reference, where there is one. */
static moec_status read_tolerance(moec_activations *a, moec_error *err)
{
    static const moec_json_doc doc = {.name = FIXTURE_NAME};
    moec_buf text = {0};
    moec_error e = MOEC_ERROR_INIT;
    json_t *tree = NULL;
    moec_status st = moec_read_file(moec_ckpt_dirfd(a->golden), FIXTURE_NAME,
                                    MOEC_JSON_BYTES_MAX, &text, &e);

    if (st != MOEC_OK) {
        moec_buf_fini(&text);
        return MOEC_OK; /* none: the caller's tolerance is by size */
    }
    st = moec_json_parse(text.data, text.len, FIXTURE_NAME, MOEC_RULE_NONE,
                         MOEC_RULE_NONE, &tree, err);
    if (st == MOEC_OK) {
        moec_json root = moec_json_root(tree, &doc);
        moec_json v = moec_json_member(&root, "tolerance_abs");

        if (v.value != NULL) {
            st = moec_json_as_double(&v, &a->tolerance, err);
            a->has_tolerance = st == MOEC_OK && a->tolerance >= 0.0;
        }
        json_decref(tree);
    }
    moec_buf_fini(&text);
    return st;
}

moec_status moec_activations_open(moec_activations *a, const char *inputs,
                                  const char *golden, moec_error *err)
{
    if (inputs != NULL)
        MOEC_TRY(moec_ckpt_open(&a->inputs, inputs, NULL, err));
    if (golden == NULL)
        return MOEC_OK;
    MOEC_TRY(moec_ckpt_open(&a->golden, golden, NULL, err));
    return read_tolerance(a, err);
}

void moec_activations_close(moec_activations *a)
{
    moec_ckpt_close(a->inputs);
    moec_ckpt_close(a->golden);
    a->inputs = a->golden = NULL;
}
