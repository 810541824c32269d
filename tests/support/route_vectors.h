/* SPDX-License-Identifier: Apache-2.0
 *
 * Test vectors: a JSON document, and a safetensors file read without the
 * library. Everything asserts; freed at exit of the test program. */
#ifndef TESTS_ROUTE_VECTORS_H
#define TESTS_ROUTE_VECTORS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include <moec/kernels.h>

#include <moec/types.h>

struct route_vectors {
    json_t *doc;    /* the JSON document */
    json_t *header; /* of the safetensors file, or NULL */
    char *bytes;    /* of the safetensors file */
    const char *payload;
};

static inline char *route_vectors_read(const char *path, size_t *n)
{
    FILE *f = fopen(path, "rb");
    char *p;
    long size;

    assert_non_null(f);
    assert_int_equal(fseek(f, 0, SEEK_END), 0);
    size = ftell(f);
    assert_true(size >= 0);
    rewind(f);
    p = malloc((size_t)size + 1);
    assert_non_null(p);
    assert_int_equal(fread(p, 1, (size_t)size, f), size);
    assert_int_equal(fclose(f), 0);
    p[size] = '\0';
    *n = (size_t)size;
    return p;
}

/* NAME.json and, where `tensors`, NAME.safetensors. */
static inline struct route_vectors
route_vectors_open(const char *dir, const char *name, int tensors)
{
    struct route_vectors v = {0};
    char path[512];
    uint64_t head;
    size_t n;
    char *text;

    (void)snprintf(path, sizeof(path), "%s/%s.json", dir, name);
    text = route_vectors_read(path, &n);
    v.doc = json_loadb(text, n, 0, NULL);
    assert_non_null(v.doc);
    free(text);
    if (!tensors)
        return v;
    (void)snprintf(path, sizeof(path), "%s/%s.safetensors", dir, name);
    v.bytes = route_vectors_read(path, &n);
    memcpy(&head, v.bytes, 8);
    v.header = json_loadb(v.bytes + 8, head, 0, NULL);
    assert_non_null(v.header);
    v.payload = v.bytes + 8 + head;
    return v;
}

static inline void route_vectors_close(struct route_vectors *v)
{
    json_decref(v->doc);
    json_decref(v->header);
    free(v->bytes);
}

/* Tensor ID.PART, or NULL. It may be unaligned: copy it. */
static inline const void *route_vectors_tensor(const struct route_vectors *v,
                                               const char *id, const char *part,
                                               size_t *bytes)
{
    char name[64];
    json_t *t, *off;
    json_int_t begin;

    (void)snprintf(name, sizeof(name), "%s.%s", id, part);
    t = json_object_get(v->header, name);
    if (!t)
        return NULL;
    off = json_object_get(t, "data_offsets");
    begin = json_integer_value(json_array_get(off, 0));
    *bytes = (size_t)(json_integer_value(json_array_get(off, 1)) - begin);
    return v->payload + begin;
}

/* The same as a copy of its own, so that reading past it is seen. */
static inline void *route_vectors_copy(const struct route_vectors *v,
                                       const char *id, const char *part)
{
    size_t n = 0;
    const void *p = route_vectors_tensor(v, id, part, &n);
    void *copy;

    if (!p)
        return NULL;
    copy = malloc(n ? n : 1);
    assert_non_null(copy);
    memcpy(copy, p, n);
    return copy;
}

static inline uint32_t case_uint(const json_t *c, const char *key)
{
    return (uint32_t)json_integer_value(json_object_get(c, key));
}

static inline const char *case_text(const json_t *c, const char *key)
{
    const char *s = json_string_value(json_object_get(c, key));

    return s ? s : "";
}

/* What routing.json says of one case, as the kernels take it. */
static inline moec_route_config case_config(const json_t *c)
{
    moec_route_config cfg = MOEC_ROUTE_CONFIG_INIT;
    const char *variant = case_text(c, "variant");
    const char *scoring = case_text(c, "scoring");

    cfg.n_zero = case_uint(c, "zero_experts");
    cfg.n_experts = case_uint(c, "E") - cfg.n_zero;
    cfg.top_k = case_uint(c, "K");
    cfg.n_shared = case_uint(c, "S");
    cfg.n_group = case_uint(c, "groups");
    cfg.topk_group = case_uint(c, "topk_group");
    cfg.rsf = (float)json_number_value(json_object_get(c, "rsf"));
    if (json_is_true(json_object_get(c, "rsf_on_weights")))
        cfg.rsf_on = MOEC_RSF_ON_WEIGHTS;
    if (json_is_true(json_object_get(c, "renormalize")))
        cfg.norm = MOEC_NORM_SUM;
    if (strcmp(variant, "biased_grouped") == 0)
        cfg.group_score = MOEC_GROUP_TOP2;
    if (strcmp(variant, "hash") == 0)
        cfg.choice = MOEC_CHOICE_HASH;
    if (strcmp(scoring, "sigmoid") == 0)
        cfg.score = MOEC_SCORE_SIGMOID;
    else if (strcmp(scoring, "sqrtsoftplus") == 0)
        cfg.score = MOEC_SCORE_SQRT_SOFTPLUS;
    return cfg;
}

static inline moec_dtype case_dtype(const json_t *c)
{
    const char *name = case_text(c, "dtype");

    if (strcmp(name, "BF16") == 0)
        return MOEC_DTYPE_BF16;
    return strcmp(name, "F16") == 0 ? MOEC_DTYPE_F16 : MOEC_DTYPE_F32;
}

#endif
