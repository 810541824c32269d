/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What this is: a recording in memory: shapes, accessors, counts, merging.
 * Refuses: shapes out of range, recordings of different shape, rows of one key
 *   that differ.
 */

#include <inttypes.h>
#include <string.h>

#include "routes.h"

#define E_MAX 4096u
#define K_MAX 64u
#define N_MAX 65536u

/* -------------------------------------------------------------- shapes */

const char *moec_routes_key_text(moec_layer_key key, char buf[ROUTES_KEY_BYTES])
{
    snprintf(buf, ROUTES_KEY_BYTES, "%s%" PRIu32,
             key.space == MOEC_SPACE_MTP ? "mtp." : "", key.number);
    return buf;
}

bool moec_routes_id_ok(const char *id, size_t n)
{
    size_t bad;

    return n > 0 && n <= MOEC_ROUTE_ID_BYTES_MAX && memchr(id, 0, n) == NULL &&
           moec_utf8_valid(id, n, &bad);
}

static bool key_less(moec_layer_key a, moec_layer_key b)
{
    if (a.space != b.space)
        return a.space < b.space;
    return a.number < b.number;
}

static moec_status check_keys(const moec_routes_shape *s, moec_error *err)
{
    char name[ROUTES_KEY_BYTES];

    for (uint32_t i = 0; i < s->n_layers; i++) {
        moec_layer_key key = s->keys[i];

        if (i > 0 && !key_less(s->keys[i - 1], key))
            return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                             "routes: layer %s is not behind the one before it",
                             moec_routes_key_text(key, name));
        if (key.number >= N_MAX ||
            (s->n_decoder > 0 && key.space == MOEC_SPACE_MAIN &&
             key.number >= s->n_decoder))
            return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                             "routes: layer %s of %" PRIu32 " decoder layers",
                             moec_routes_key_text(key, name), s->n_decoder);
    }
    return MOEC_OK;
}

moec_status moec_routes_shape_check(const moec_routes_shape *s, moec_error *err)
{
    if (s->struct_bytes < sizeof(*s))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "routes: struct_bytes %" PRIu32 " of the shape, not "
                         "%zu",
                         s->struct_bytes, sizeof(*s));
    if (s->n_experts == 0 || s->n_experts > E_MAX ||
        s->n_zero > E_MAX - s->n_experts)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "routes: %" PRIu32 " experts and %" PRIu32
                         " zero experts, must be 1 to %u in all",
                         s->n_experts, s->n_zero, E_MAX);
    if (s->top_k == 0 || s->top_k > K_MAX ||
        s->top_k > s->n_experts + s->n_zero)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "routes: top-k %" PRIu32 " of %" PRIu32 " experts",
                         s->top_k, s->n_experts + s->n_zero);
    if (s->n_layers == 0 || s->n_layers > N_MAX || s->n_decoder > N_MAX ||
        !s->keys)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "routes: %" PRIu32 " MoE layers of %" PRIu32
                         " decoder layers",
                         s->n_layers, s->n_decoder);
    return check_keys(s, err);
}

moec_status moec_routes_shape_copy(moec_routes_shape *out,
                                   const moec_routes_shape *s, moec_error *err)
{
    size_t key_bytes = s->n_layers * sizeof(s->keys[0]);
    size_t text_bytes = s->fingerprint ? strlen(s->fingerprint) + 1 : 0;
    moec_layer_key *keys = moec_alloc(key_bytes);
    char *text = text_bytes ? moec_alloc(text_bytes) : NULL;

    if (!keys || (text_bytes && !text)) {
        moec_free(keys);
        moec_free(text);
        return moec_fail_nomem(err, "the shape of a recording");
    }
    memcpy(keys, s->keys, key_bytes);
    if (text)
        memcpy(text, s->fingerprint, text_bytes);
    *out = *s;
    out->struct_bytes = sizeof(*out);
    out->keys = keys;
    out->fingerprint = text;
    return MOEC_OK;
}

void moec_routes_shape_fini(moec_routes_shape *s)
{
    moec_free((void *)(uintptr_t)s->keys);
    moec_free((void *)(uintptr_t)s->fingerprint);
    s->keys = NULL;
    s->fingerprint = NULL;
}

moec_status moec_routes_same_shape(const moec_routes_shape *x,
                                   const moec_routes_shape *y, const char *a,
                                   const char *b, moec_error *err)
{
    const struct {
        const char *what;
        uint32_t x, y;
    } sizes[] = {
        {"routed experts", x->n_experts, y->n_experts},
        {"zero experts", x->n_zero, y->n_zero},
        {"columns (top-k)", x->top_k, y->top_k},
        {"MoE layers", x->n_layers, y->n_layers},
    };
    char k1[ROUTES_KEY_BYTES], k2[ROUTES_KEY_BYTES];

    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
        if (sizes[i].x != sizes[i].y)
            return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_R02,
                             "%s has %" PRIu32 " %s, %s has %" PRIu32, a,
                             sizes[i].x, sizes[i].what, b, sizes[i].y);
    for (uint32_t i = 0; i < x->n_layers; i++)
        if (x->keys[i].space != y->keys[i].space ||
            x->keys[i].number != y->keys[i].number)
            return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_R02,
                             "MoE layer %" PRIu32 " is layer %s in %s and "
                             "layer %s in %s",
                             i, moec_routes_key_text(x->keys[i], k1), a,
                             moec_routes_key_text(y->keys[i], k2), b);
    if (x->fingerprint && y->fingerprint &&
        strcmp(x->fingerprint, y->fingerprint) != 0)
        return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_R02,
                         "%s is of model %.64s, %s of model %.64s", a,
                         x->fingerprint, b, y->fingerprint);
    return MOEC_OK;
}

static void put_fingerprint(moec_buf *b, const moec_facts *f,
                            const moec_routes_shape *s)
{
    char name[ROUTES_KEY_BYTES];

    moec_buf_printf(b, "moec.routes %s E %" PRIu32 " K %" PRIu32 " Z %" PRIu32,
                    f->family, s->n_experts, s->top_k, s->n_zero);
    moec_buf_printf(b, " H %" PRIu64 " I %" PRIu64 " layers %" PRIu32 ":",
                    f->hidden, f->inter, f->n_layers);
    for (uint32_t i = 0; i < s->n_layers; i++)
        moec_buf_printf(b, " %s", moec_routes_key_text(s->keys[i], name));
}

moec_status moec_routes_shape_of(moec_routes_shape *out,
                                 const moec_model *model, char *hex,
                                 moec_error *err)
{
    const moec_facts *f = moec_model_facts(model);
    size_t n = moec_model_n_layers(model);
    moec_routes_shape s = MOEC_ROUTES_SHAPE_INIT;
    moec_moe_facts moe;
    moec_layer_key *keys;
    moec_sha256 digest = {{0}};
    moec_buf text = {0};
    moec_status st;

    if (n == 0)
        return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_R02,
                         "the model has no MoE layer");
    MOEC_TRY(moec_model_moe(model, 0, &moe, err));
    keys = moec_calloc(n, sizeof(keys[0]));
    if (!keys)
        return moec_fail_nomem(err, "the shape of a recording");
    for (size_t i = 0; i < n; i++)
        keys[i] = moec_model_layer(model, i)->key;
    s.n_experts = f->n_experts;
    s.n_zero = moe.route.n_zero;
    s.top_k = f->top_k;
    s.n_layers = (uint32_t)n;
    s.n_decoder = f->n_layers;
    s.keys = keys;
    put_fingerprint(&text, f, &s);
    st = text.oom ? moec_fail_nomem(err, "the fingerprint of a model")
                  : moec_sha256_of(text.data, text.len, &digest, err);
    moec_buf_fini(&text);
    if (st == MOEC_OK)
        st = moec_routes_shape_check(&s, err);
    if (st != MOEC_OK) {
        moec_free(keys);
        return st;
    }
    moec_hex(digest.b, sizeof(digest.b), hex);
    s.fingerprint = hex;
    *out = s;
    return MOEC_OK;
}

void moec_routes_shape_release(moec_routes_shape *shape)
{
    if (!shape)
        return;
    moec_free((void *)(uintptr_t)shape->keys);
    shape->keys = NULL;
}

/* ------------------------------------------------------------- objects */

moec_status moec_routes_alloc(moec_routes **out, const moec_routes_shape *shape,
                              uint64_t n_requests, uint64_t n_tokens,
                              uint64_t n_gaps, moec_error *err)
{
    moec_routes *r = moec_calloc(1, sizeof(*r));
    uint64_t id_bytes = 0;
    moec_status st;

    if (!r)
        return moec_fail_nomem(err, "a recording");
    st = moec_routes_shape_copy(&r->shape, shape, err);
    if (st != MOEC_OK) {
        moec_free(r);
        return st;
    }
    r->width = moec_routes_id_bytes(shape);
    r->token_bytes = (uint64_t)shape->n_layers * shape->top_k * r->width;
    r->n_requests = n_requests;
    r->n_tokens = n_tokens;
    r->n_gaps = n_gaps;
    if (moec_mul_u64(n_tokens, r->token_bytes, &id_bytes) &&
        n_requests < SIZE_MAX / sizeof(r->requests[0]) - 1) {
        r->requests =
            moec_calloc((size_t)n_requests + 1, sizeof(r->requests[0]));
        r->positions = moec_calloc((size_t)n_tokens, sizeof(r->positions[0]));
        r->gaps = moec_calloc((size_t)n_gaps, sizeof(r->gaps[0]));
        r->ids = moec_alloc((size_t)id_bytes);
    }
    if (!r->requests || !r->positions || !r->gaps || !r->ids) {
        moec_routes_destroy(r);
        return moec_fail_nomem(err, "a recording");
    }
    memset(r->ids, 0xff, (size_t)id_bytes);
    r->requests[n_requests].first_token = n_tokens;
    r->requests[n_requests].first_gap = n_gaps;
    *out = r;
    return MOEC_OK;
}

void moec_routes_destroy(moec_routes *r)
{
    if (!r)
        return;
    for (uint64_t i = 0; r->requests && i < r->n_requests; i++)
        moec_free(r->requests[i].id);
    moec_routes_shape_fini(&r->shape);
    moec_free(r->requests);
    moec_free(r->positions);
    moec_free(r->gaps);
    moec_free(r->ids);
    moec_free(r);
}

const moec_routes_shape *moec_routes_shape_get(const moec_routes *r)
{
    return &r->shape;
}

uint64_t moec_routes_n_requests(const moec_routes *r)
{
    return r->n_requests;
}

moec_routes_request moec_routes_get_request(const moec_routes *r, uint64_t i)
{
    const routes_request *q = &r->requests[i];

    return (moec_routes_request){
        .id = q->id,
        .sample = q->sample,
        .first_token = q->first_token,
        .n_tokens = q[1].first_token - q->first_token,
        .gaps = r->gaps + q->first_gap,
        .n_gaps = q[1].first_gap - q->first_gap,
    };
}

uint64_t moec_routes_n_tokens(const moec_routes *r)
{
    return r->n_tokens;
}

const uint32_t *moec_routes_positions(const moec_routes *r)
{
    return r->positions;
}

uint32_t moec_routes_width(const moec_routes *r)
{
    return r->width;
}

const void *moec_routes_data(const moec_routes *r)
{
    return r->ids;
}

void moec_routes_ids(const moec_routes *r, uint64_t token, uint64_t n,
                     uint32_t layer, int32_t *out)
{
    uint32_t k = r->shape.top_k;
    const uint8_t *from =
        r->ids + token * r->token_bytes + (uint64_t)layer * k * r->width;

    for (uint64_t t = 0; t < n; t++, from += r->token_bytes, out += k) {
        for (uint32_t c = 0; c < k; c++) {
            uint16_t v = from[c];

            if (r->width == 2)
                memcpy(&v, from + 2 * (size_t)c, sizeof(v));
            out[c] = v == (r->width == 1 ? UINT8_MAX : UINT16_MAX) ? -1 : v;
        }
    }
}

#define BATCH 256u

void moec_routes_counts(const moec_routes *r, uint64_t *counts)
{
    uint32_t E = r->shape.n_experts, k = r->shape.top_k;
    int32_t ids[BATCH * K_MAX];

    memset(counts, 0, (size_t)r->shape.n_layers * E * sizeof(counts[0]));
    for (uint64_t t = 0; t < r->n_tokens; t += BATCH) {
        uint64_t n = moec_min_u64(BATCH, r->n_tokens - t);

        for (uint32_t l = 0; l < r->shape.n_layers; l++) {
            moec_routes_ids(r, t, n, l, ids);
            for (uint64_t i = 0; i < n * k; i++)
                if (ids[i] >= 0 && (uint32_t)ids[i] < E)
                    counts[(size_t)l * E + (uint32_t)ids[i]]++;
        }
    }
}
