/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Vector files as typed arrays: nested lists of JSON with their dimensions
 * checked, and tensors of the safetensors file beside them. Refuses, with file
 * and key (V01): lists of other lengths, numbers of other types, tensors of
 * other shapes.
 */
#include <math.h>
#include <string.h>

#include "selftest_parts.h"

/* ------------------------------------------------------------- numbers */

typedef enum number { KIND_I32, KIND_I64, KIND_F32 } number;

static const size_t kind_bytes[] = {4, 8, 4};

static moec_status read_number(const moec_json *v, number kind, char *out,
                               moec_error *err)
{
    int64_t i = 0;
    double d = (double)NAN;
    float f;

    switch (kind) {
    case KIND_I32:
        MOEC_TRY(moec_json_as_i64(v, INT32_MIN, INT32_MAX, &i, err));
        memcpy(out, &(int32_t){(int32_t)i}, 4);
        return MOEC_OK;
    case KIND_I64:
        MOEC_TRY(moec_json_as_i64(v, INT64_MIN, INT64_MAX, &i, err));
        memcpy(out, &i, 8);
        return MOEC_OK;
    case KIND_F32:
        if (!json_is_null(v->value))
            MOEC_TRY(moec_json_as_double(v, &d, err));
        f = (float)d;
        memcpy(out, &f, 4);
        return MOEC_OK;
    }
    return MOEC_OK;
}

/* Read nested lists to *at, or only check them where *at is NULL. */
/* NOLINTNEXTLINE(misc-no-recursion): as deep as `rank`, at most 3 */
static moec_status read_lists(const moec_json *v, const uint32_t *dims,
                              uint32_t rank, number kind, char **at,
                              moec_error *err)
{
    if (rank == 0) {
        char nowhere[8];

        MOEC_TRY(read_number(v, kind, *at ? *at : nowhere, err));
        *at += *at ? kind_bytes[kind] : 0;
        return MOEC_OK;
    }
    MOEC_TRY(moec_json_want_array(v, err));
    if (moec_json_len(v) != dims[0])
        return moec_json_fail(v, MOEC_RULE_V01, err,
                              "has %zu entries, must have %u", moec_json_len(v),
                              dims[0]);
    for (uint32_t i = 0; i < dims[0]; i++) {
        moec_json item = moec_json_item(v, i);

        MOEC_TRY(read_lists(&item, dims + 1, rank - 1, kind, at, err));
    }
    return MOEC_OK;
}

moec_status moec_vec_room(moec_arena *arena, uint64_t n, size_t bytes,
                          void *out, moec_error *err)
{
    uint64_t total;
    void *p = NULL;

    /* 64 bytes more: kernels may want their arrays aligned so. */
    if (moec_mul_u64(n, bytes, &total) && total < SIZE_MAX - 64)
        p = moec_arena_alloc(arena, (size_t)total + 64, 64);
    if (!p)
        return moec_fail_nomem(err, "vectors");
    memset(p, 0, (size_t)total + 64);
    memcpy(out, &p, sizeof(p));
    return MOEC_OK;
}

static moec_status read_array(const moec_json *v, const uint32_t *dims,
                              uint32_t rank, number kind, moec_arena *arena,
                              void *out, moec_error *err)
{
    uint64_t n = 1;
    char *room = NULL, *at = NULL;

    /* The numbers must be there before memory is taken for them. */
    MOEC_TRY(read_lists(v, dims, rank, kind, &at, err));
    for (uint32_t i = 0; i < rank; i++)
        n *= dims[i];
    MOEC_TRY(moec_vec_room(arena, n, kind_bytes[kind], &room, err));
    at = room;
    MOEC_TRY(read_lists(v, dims, rank, kind, &at, err));
    memcpy(out, &room, sizeof(room));
    return MOEC_OK;
}

static moec_status read_member(const moec_json *obj, const char *key,
                               const uint32_t *dims, uint32_t rank, number kind,
                               moec_arena *arena, void *out, moec_error *err)
{
    moec_json v;

    MOEC_TRY(moec_json_get_array(obj, key, &v, err));
    return read_array(&v, dims, rank, kind, arena, out, err);
}

moec_status moec_vec_i32(const moec_json *obj, const char *key,
                         const uint32_t *dims, uint32_t rank, moec_arena *arena,
                         int32_t **out, moec_error *err)
{
    return read_member(obj, key, dims, rank, KIND_I32, arena, out, err);
}

moec_status moec_vec_f32(const moec_json *obj, const char *key,
                         const uint32_t *dims, uint32_t rank, moec_arena *arena,
                         float **out, moec_error *err)
{
    return read_member(obj, key, dims, rank, KIND_F32, arena, out, err);
}

moec_status moec_vec_i64(const moec_json *obj, const char *key,
                         const uint32_t *dims, uint32_t rank, moec_arena *arena,
                         int64_t **out, moec_error *err)
{
    return read_member(obj, key, dims, rank, KIND_I64, arena, out, err);
}

moec_status moec_vec_i32_of(const moec_json *v, const uint32_t *dims,
                            uint32_t rank, moec_arena *arena, int32_t **out,
                            moec_error *err)
{
    return read_array(v, dims, rank, KIND_I32, arena, out, err);
}

/* ---------------------------------------------------- optional members */

/* The next of "a|b|c" into word[64]; NULL at the end. */
static const char *next_word(const char *words, char word[64])
{
    size_t n = strcspn(words, "|");

    memcpy(word, words, n < 63 ? n : 63);
    word[n < 63 ? n : 63] = '\0';
    return words[n] ? words + n + 1 : NULL;
}

const char *moec_vec_key(const moec_json *obj, const char *keys)
{
    char word[64];

    while (keys) {
        const char *rest = next_word(keys, word);

        if (moec_json_has(obj, word)) /* the tree's own spelling outlives us */
            return json_object_iter_key(json_object_iter_at(obj->value, word));
        keys = rest;
    }
    return NULL;
}

moec_status moec_vec_opt_u32(const moec_json *obj, const char *keys,
                             uint32_t max, uint32_t *out, moec_error *err)
{
    const char *key = moec_vec_key(obj, keys);

    return key ? moec_json_get_u32(obj, key, max, out, err) : MOEC_OK;
}

moec_status moec_vec_opt_f32(const moec_json *obj, const char *keys, float *out,
                             moec_error *err)
{
    const char *key = moec_vec_key(obj, keys);
    double d;

    if (!key)
        return MOEC_OK;
    MOEC_TRY(moec_json_get_double(obj, key, &d, err));
    *out = (float)d;
    return MOEC_OK;
}

moec_status moec_vec_opt_bool(const moec_json *obj, const char *keys, bool *out,
                              moec_error *err)
{
    const char *key = moec_vec_key(obj, keys);
    moec_json v;
    uint32_t n;

    if (!key)
        return MOEC_OK;
    v = moec_json_member(obj, key);
    if (!json_is_integer(v.value))
        return moec_json_as_bool(&v, out, err);
    MOEC_TRY(moec_json_as_u32(&v, 1, &n, err));
    *out = n == 1;
    return MOEC_OK;
}

moec_status moec_vec_opt_text(const moec_json *obj, const char *keys,
                              const char **out, moec_error *err)
{
    const char *key = moec_vec_key(obj, keys);

    *out = NULL;
    return key ? moec_json_get_string(obj, key, out, err) : MOEC_OK;
}

/* ------------------------------------------------------------- tensors */

const moec_tensor *moec_vec_find(const moec_vec_tensors *t, const char *id,
                                 const char *names)
{
    size_t n = strlen(id);
    char word[64];

    while (names) {
        const char *rest = next_word(names, word);

        for (size_t i = 0; i < t->n_tensors; i++) {
            const char *name = t->tensors[i].name;

            if (strncmp(name, id, n) == 0 && name[n] == '.' &&
                strcmp(name + n + 1, word) == 0)
                return &t->tensors[i];
        }
        names = rest;
    }
    return NULL;
}

moec_status moec_vec_want_shape(const moec_vec_tensors *t, const moec_tensor *x,
                                uint64_t rows, uint64_t cols, moec_error *err)
{
    if (rows == UINT64_MAX && x->rank == 1 && x->shape[0] == cols)
        return MOEC_OK;
    if (rows != UINT64_MAX && x->rank == 2 && x->shape[0] == rows &&
        x->shape[1] == cols)
        return MOEC_OK;
    if (rows == UINT64_MAX)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_V01,
                         "%s: tensor '%s' must have the shape [%ju]", t->name,
                         x->name, (uintmax_t)cols);
    return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_V01,
                     "%s: tensor '%s' must have the shape [%ju, %ju]", t->name,
                     x->name, (uintmax_t)rows, (uintmax_t)cols);
}

moec_status moec_vec_bytes(const moec_vec_tensors *t, const moec_tensor *x,
                           moec_arena *arena, void *out, moec_error *err)
{
    void *p = NULL;

    /* The header was checked against the file's size. */
    MOEC_TRY(moec_vec_room(arena, x->bytes, 1, &p, err));
    memcpy(p, t->data + x->off, (size_t)x->bytes);
    memcpy(out, &p, sizeof(p));
    return MOEC_OK;
}

static moec_status wrong_dtype(const moec_vec_tensors *t, const moec_tensor *x,
                               const char *must, moec_error *err)
{
    return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_V01,
                     "%s: tensor '%s' is %s, must be %s", t->name, x->name,
                     moec_dtype_name((moec_dtype)x->dtype), must);
}

moec_status moec_vec_tensor_i32(const moec_vec_tensors *t, const moec_tensor *x,
                                moec_arena *arena, int32_t **out,
                                moec_error *err)
{
    int64_t *wide = NULL;
    uint64_t n = x->bytes / 8;

    if (x->dtype == MOEC_DTYPE_I32)
        return moec_vec_bytes(t, x, arena, out, err);
    if (x->dtype != MOEC_DTYPE_I64)
        return wrong_dtype(t, x, "I32 or I64", err);
    MOEC_TRY(moec_vec_bytes(t, x, arena, &wide, err));
    MOEC_TRY(moec_vec_room(arena, n, sizeof(**out), out, err));
    for (uint64_t i = 0; i < n; i++) {
        if (wide[i] < INT32_MIN || wide[i] > INT32_MAX)
            return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_V01,
                             "%s: tensor '%s' holds %jd, which is no id",
                             t->name, x->name, (intmax_t)wide[i]);
        (*out)[i] = (int32_t)wide[i];
    }
    return MOEC_OK;
}

moec_status moec_vec_tensor_f64(const moec_vec_tensors *t, const moec_tensor *x,
                                moec_arena *arena, double **out,
                                moec_error *err)
{
    float *narrow = NULL;
    uint64_t n = x->bytes / 4;

    if (x->dtype == MOEC_DTYPE_F64)
        return moec_vec_bytes(t, x, arena, out, err);
    if (x->dtype != MOEC_DTYPE_F32)
        return wrong_dtype(t, x, "F32 or F64", err);
    MOEC_TRY(moec_vec_bytes(t, x, arena, &narrow, err));
    MOEC_TRY(moec_vec_room(arena, n, sizeof(**out), out, err));
    for (uint64_t i = 0; i < n; i++)
        (*out)[i] = (double)narrow[i];
    return MOEC_OK;
}

moec_status moec_vec_tensor_f32(const moec_vec_tensors *t, const moec_tensor *x,
                                moec_arena *arena, float **out, moec_error *err)
{
    if (x->dtype != MOEC_DTYPE_F32)
        return wrong_dtype(t, x, "F32", err);
    return moec_vec_bytes(t, x, arena, out, err);
}
