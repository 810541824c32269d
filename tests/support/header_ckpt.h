/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_TESTS_HEADER_CKPT_H
#define MOEC_TESTS_HEADER_CKPT_H

/*
 * Checkpoints made of headers alone, from a list of tensors that a test has
 * edited. Use with cmocka.
 */

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "ckpt.h"

typedef struct hc_tensor {
    char name[160];
    moec_dtype dtype;
    uint32_t rank;
    uint64_t shape[4];
} hc_tensor;

typedef struct hc_list {
    size_t n;
    hc_tensor *t;
} hc_list;

static inline void hc_add(hc_list *l, const char *name, moec_dtype dtype,
                          uint32_t rank, const uint64_t *shape)
{
    l->t = realloc(l->t, (l->n + 1) * sizeof(*l->t));
    assert_non_null(l->t);
    hc_tensor *t = &l->t[l->n++];
    memset(t, 0, sizeof(*t));
    snprintf(t->name, sizeof(t->name), "%s", name);
    t->dtype = dtype;
    t->rank = rank;
    memcpy(t->shape, shape, rank * sizeof(*shape));
}

/* The tensors of an opened checkpoint. */
static inline hc_list hc_copy(const moec_ckpt *ckpt)
{
    hc_list l = {0, NULL};
    for (size_t i = 0; i < moec_ckpt_n_tensors(ckpt); i++) {
        const moec_tensor *t = moec_ckpt_tensor(ckpt, i);
        assert_true(t->rank <= 4);
        hc_add(&l, t->name, (moec_dtype)t->dtype, t->rank, t->shape);
    }
    return l;
}

/* The tensor with this name; it must be there. */
static inline hc_tensor *hc_find(hc_list *l, const char *name)
{
    size_t i = 0;
    while (i < l->n && strcmp(l->t[i].name, name) != 0)
        i++;
    if (i == l->n)
        fail_msg("no tensor '%s'", name);
    return &l->t[i];
}

static inline void hc_drop(hc_list *l, const char *name)
{
    hc_tensor *t = hc_find(l, name);
    l->n--;
    memmove(t, t + 1, (l->n - (size_t)(t - l->t)) * sizeof(*t));
}

static inline moec_ckpt *hc_open(const hc_list *l)
{
    moec_buf b = {0};
    moec_error err = MOEC_ERROR_INIT;
    moec_ckpt *ckpt = NULL;
    uint64_t off = 0;
    moec_buf_u64(&b, 0);
    moec_buf_puts(&b, "{");
    for (size_t i = 0; i < l->n; i++) {
        const hc_tensor *t = &l->t[i];
        uint64_t bits = moec_dtype_bits(t->dtype);
        moec_buf_printf(&b, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[",
                        i == 0 ? "" : ",", t->name, moec_dtype_name(t->dtype));
        for (uint32_t d = 0; d < t->rank; d++) {
            moec_buf_printf(&b, "%s%" PRIu64, d == 0 ? "" : ",", t->shape[d]);
            bits *= t->shape[d];
        }
        moec_buf_printf(&b, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}",
                        off, off + bits / 8);
        off += bits / 8;
    }
    moec_buf_puts(&b, "}");
    assert_false(b.oom);
    for (unsigned i = 0; i < 8; i++)
        b.data[i] = (char)(uint8_t)((uint64_t)(b.len - 8) >> 8 * i);
    moec_header_blob blob = {"model.safetensors", b.data, b.len, b.len + off};
    if (moec_ckpt_from_headers(&ckpt, "made", &blob, 1, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    moec_buf_fini(&b);
    return ckpt;
}

#endif
