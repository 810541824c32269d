/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What this is: what SGLang answers to return_routed_experts: base64 of int32
 *   [start_len .. seqlen - 1)[decoder layers][K], bare or as
 *   meta_info.routed_experts of its JSON. A text may be gigabytes: it is read
 *   by the scanner, never as a tree.
 * Refuses: what is no strict base64, rows that are no whole rows, a start that
 *   contradicts the token counts.
 */

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "jsonscan.h"
#include "routes_engines.h"

/* -------------------------------------------------------------- base64 */

static int base64_value(unsigned char c)
{
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    if (c == '+')
        return 62;
    return c == '/' ? 63 : -1;
}

/* Decode strictly (RFC 4648, padded, nothing between) into the caller's buffer
 * of n / 4 * 3 bytes. */
static bool base64_decode(const char *s, size_t n, unsigned char *out,
                          size_t *n_out)
{
    size_t at = 0;

    if (n % 4 != 0)
        return false;
    for (size_t i = 0; i < n; i += 4) {
        bool last = i + 4 == n;
        unsigned pad = last && s[i + 3] == '=' ? 1 + (s[i + 2] == '=') : 0;
        uint32_t v = 0;

        for (unsigned k = 0; k < 4; k++) {
            int x = k >= 4 - pad ? 0 : base64_value((unsigned char)s[i + k]);

            if (x < 0)
                return false;
            v = v << 6 | (uint32_t)x;
        }
        if ((pad == 1 && (v & 0xff) != 0) || (pad == 2 && (v & 0xffff) != 0))
            return false;
        out[at++] = (unsigned char)(v >> 16);
        if (pad < 2)
            out[at++] = (unsigned char)(v >> 8);
        if (pad < 1)
            out[at++] = (unsigned char)v;
    }
    *n_out = at;
    return true;
}

static void base64_encode(const unsigned char *data, size_t n, char *out)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                 "abcdefghijklmnopqrstuvwxyz0123456789+/";

    for (size_t i = 0; i < n; i += 3, out += 4) {
        uint32_t v = (uint32_t)data[i] << 16;

        v |= i + 1 < n ? (uint32_t)data[i + 1] << 8 : 0;
        v |= i + 2 < n ? (uint32_t)data[i + 2] : 0;
        for (unsigned k = 0; k < 4; k++)
            out[k] = digits[v >> (18 - 6 * k) & 63];
        if (i + 1 >= n)
            out[2] = '=';
        if (i + 2 >= n)
            out[3] = '=';
    }
    *out = '\0';
}

/* -------------------------------------------------------------- SGLang */

/* What one response says. */
typedef struct response {
    char *id;     /* or NULL; to be freed */
    char *routed; /* base64, or NULL; to be freed */
    size_t routed_bytes;
    uint64_t start, prompt, completion; /* UINT64_MAX: not said */
} response;

static void response_fini(response *x)
{
    moec_free(x->id);
    moec_free(x->routed);
}

/* Copy the string that is next. */
static moec_status copy_string(moec_jsonscan *js, char **out, size_t *n_out)
{
    size_t cap = (size_t)(js->end - js->p) + 1;
    moec_js_text t = {.buf = moec_alloc(cap), .cap = cap};
    char *copy = NULL;
    moec_status st;

    if (!t.buf)
        return moec_fail_nomem(js->err, js->name);
    st = moec_js_string(js, &t);
    if (st == MOEC_OK) {
        copy = moec_alloc((size_t)t.len + 1);
        if (copy) {
            memcpy(copy, t.s, (size_t)t.len);
            copy[t.len] = '\0';
            moec_free(*out);
            *out = copy;
            *n_out = (size_t)t.len;
        } else {
            st = moec_fail_nomem(js->err, js->name);
        }
    }
    moec_free(t.buf);
    return st;
}

static moec_status read_number(moec_jsonscan *js, uint64_t *out)
{
    bool is_u64 = false;
    int c = 0;

    MOEC_TRY(moec_js_peek(js, &c));
    if (c == 'n')
        return moec_js_skip(js);
    MOEC_TRY(moec_js_number(js, out, &is_u64));
    if (!is_u64)
        return moec_js_fail(js, MOEC_RULE_R01, "a count is no whole number");
    return MOEC_OK;
}

/* A member of meta_info. */
static moec_status read_info(moec_jsonscan *js, response *x)
{
    char key[64];
    moec_js_text t = {.buf = key, .cap = sizeof(key)};
    const struct {
        const char *key;
        uint64_t *to;
    } numbers[] = {
        {"prompt_tokens", &x->prompt},
        {"completion_tokens", &x->completion},
        {"routed_experts_start_len", &x->start},
    };
    size_t unused, k = 0;
    bool is_id, is_routed;
    int c = 0;

    MOEC_TRY(moec_js_string(js, &t));
    is_id = moec_js_text_is(&t, "id", 2);
    is_routed = moec_js_text_is(&t, "routed_experts", 14);
    while (k < 3 &&
           !moec_js_text_is(&t, numbers[k].key, strlen(numbers[k].key)))
        k++;
    MOEC_TRY(moec_js_expect(js, ':'));
    MOEC_TRY(moec_js_peek(js, &c));
    if (k < 3)
        return read_number(js, numbers[k].to);
    if (is_id && c == '"')
        return copy_string(js, &x->id, &unused);
    if (is_routed && c == '"')
        return copy_string(js, &x->routed, &x->routed_bytes);
    return moec_js_skip(js);
}

/* The object that is next: a response, or its meta_info. */
static moec_status read_object(moec_jsonscan *js, response *x, bool inner)
{
    bool more = true;

    MOEC_TRY(moec_js_enter(js));
    for (bool first = true;; first = false) {
        char key[64];
        moec_js_text t = {.buf = key, .cap = sizeof(key)};

        MOEC_TRY(moec_js_member(js, '}', first, &more));
        if (!more)
            break;
        if (inner) {
            MOEC_TRY(read_info(js, x));
            continue;
        }
        MOEC_TRY(moec_js_string(js, &t));
        MOEC_TRY(moec_js_expect(js, ':'));
        if (moec_js_text_is(&t, "meta_info", 9)) {
            int c = 0;

            MOEC_TRY(moec_js_peek(js, &c));
            if (c != '{')
                return moec_js_fail(js, MOEC_RULE_R01,
                                    "meta_info is no object");
            MOEC_TRY(read_object(js, x, true));
        } else {
            MOEC_TRY(moec_js_skip(js));
        }
    }
    moec_js_leave(js);
    return MOEC_OK;
}

/* Position of the first row: what the response says, what its counts leave,
 * what the caller says. */
static moec_status start_of(const response *x, const char *name,
                            uint64_t n_rows, uint64_t asked, uint64_t *out,
                            moec_error *err)
{
    uint64_t left = UINT64_MAX, start = x->start;

    if (x->prompt != UINT64_MAX && x->completion != UINT64_MAX) {
        uint64_t seqlen = x->prompt + x->completion;

        if (seqlen < x->prompt || seqlen == 0 || n_rows > seqlen - 1)
            return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_R01,
                             "%s: %" PRIu64 " rows of %" PRIu64
                             " tokens: the last one is never routed",
                             name, n_rows, seqlen);
        left = seqlen - 1 - n_rows;
    }
    if (start == UINT64_MAX)
        start = asked;
    if (start == UINT64_MAX)
        start = left == UINT64_MAX ? 0 : left;
    if (left != UINT64_MAX && start != left)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_R01,
                         "%s: rows from position %" PRIu64 ", but %" PRIu64
                         " rows and the token counts leave %" PRIu64,
                         name, start, n_rows, left);
    *out = start;
    return MOEC_OK;
}

/* Import one base64 text. */
static moec_status import_base64(moec_recorder *r,
                                 const moec_routes_import_opts *opts,
                                 const char *name, const response *x,
                                 const char *id, uint32_t sample,
                                 moec_error *err)
{
    const moec_routes_shape *s = moec_recorder_shape(r);
    uint64_t layers = s->n_decoder ? s->n_decoder : moec_form_main_layers(s),
             start = 0;
    uint64_t row_bytes = layers * s->top_k * 4;
    moec_npy a = {.rank = 3, .dtype = MOEC_DTYPE_I32};
    unsigned char *data = moec_alloc(x->routed_bytes / 4 * 3 + 1);
    moec_status st;
    size_t n = 0;

    if (!data)
        return moec_fail_nomem(err, name);
    if (!base64_decode(x->routed, x->routed_bytes, data, &n)) {
        st = moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_R01,
                       "%s: routed experts are no base64", name);
    } else if (n % row_bytes != 0) {
        st = moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_R02,
                       "%s: %zu bytes of routed experts are no rows of %" PRIu64
                       " layers x %" PRIu32 " x int32",
                       name, n, layers, s->top_k);
    } else {
        a.shape[0] = n / row_bytes;
        a.shape[1] = layers;
        a.shape[2] = s->top_k;
        a.n = n / 4;
        a.data = data;
        st = start_of(x, name, a.shape[0], opts->start, &start, err);
        if (st == MOEC_OK)
            st = moec_form_import(r, opts, name, id, sample, start, &a, err);
    }
    moec_free(data);
    return st;
}

/* The response that is next. Responses of one id are samples of it. */
static moec_status import_response(moec_jsonscan *js, moec_recorder *r,
                                   const moec_routes_import_opts *opts,
                                   moec_strmap *samples, moec_arena *ids)
{
    response x = {NULL, NULL, 0, UINT64_MAX, UINT64_MAX, UINT64_MAX};
    uint64_t *count = NULL, held = 0;
    const char *id;
    bool existed = false;
    moec_status st = read_object(js, &x, false);

    id = x.id ? x.id : moec_form_id(opts);
    if (st == MOEC_OK && !x.routed)
        st = moec_fail(js->err, MOEC_E_FORMAT, MOEC_RULE_R01,
                       "%s: a response without meta_info.routed_experts",
                       js->name);
    if (st == MOEC_OK) {
        char *key = moec_arena_strdup(ids, id, strlen(id));

        count = moec_arena_alloc(ids, sizeof(*count), sizeof(*count));
        if (!key || !count)
            st = moec_fail_nomem(js->err, js->name);
        else
            st = moec_strmap_put(samples, key, strlen(key), (uintptr_t)count,
                                 &existed, js->err);
    }
    if (st == MOEC_OK) {
        if (existed) {
            (void)moec_strmap_get(samples, id, strlen(id), &held);
            count = (uint64_t *)(uintptr_t)held;
        } else {
            *count = opts->sample;
        }
        st = import_base64(r, opts, js->name, &x, id, (uint32_t)(*count)++,
                           js->err);
    }
    response_fini(&x);
    return st;
}

static moec_status import_json(moec_jsonscan *js, moec_recorder *r,
                               const moec_routes_import_opts *opts, int c,
                               moec_strmap *samples, moec_arena *ids)
{
    bool more = true;

    if (c == '{') {
        MOEC_TRY(import_response(js, r, opts, samples, ids));
    } else {
        MOEC_TRY(moec_js_enter(js));
        for (bool first = true;; first = false) {
            MOEC_TRY(moec_js_member(js, ']', first, &more));
            if (!more)
                break;
            MOEC_TRY(moec_js_peek(js, &c));
            if (c != '{')
                return moec_js_fail(js, MOEC_RULE_R01,
                                    "a response is no object");
            MOEC_TRY(import_response(js, r, opts, samples, ids));
        }
        moec_js_leave(js);
    }
    MOEC_TRY(moec_js_peek(js, &c));
    if (c != -1)
        return moec_js_fail(js, MOEC_RULE_R01, "bytes behind the responses");
    return MOEC_OK;
}

static bool is_space(char c)
{
    return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

static moec_status import_bare(moec_recorder *r,
                               const moec_routes_import_opts *opts,
                               const char *name, const char *text, size_t n,
                               moec_error *err)
{
    response x = {NULL, NULL, 0, UINT64_MAX, UINT64_MAX, UINT64_MAX};
    moec_status st;

    while (n > 0 && is_space(text[n - 1]))
        n--;
    x.routed = moec_alloc(n + 1);
    if (!x.routed)
        return moec_fail_nomem(err, name);
    memcpy(x.routed, text, n);
    x.routed_bytes = n;
    st =
        import_base64(r, opts, name, &x, moec_form_id(opts), opts->sample, err);
    response_fini(&x);
    return st;
}

moec_status moec_routes_import_sglang(moec_recorder *r,
                                      const moec_routes_import_opts *opts,
                                      const char *name, const void *text,
                                      size_t n, moec_error *err)
{
    moec_jsonscan js = moec_js_over(text, n, name, MOEC_RULE_R01, err);
    moec_strmap samples = {0};
    moec_arena ids = {0};
    moec_status st;
    size_t at = 0;

    MOEC_TRY(moec_form_check(r, opts, name, text, err));
    while (at < n && is_space(((const char *)text)[at]))
        at++;
    if (at == n || (js.p[at] != '{' && js.p[at] != '['))
        return import_bare(r, opts, name, (const char *)text + at, n - at, err);
    js.p += at;
    st = moec_strmap_init(&samples, 16, err);
    if (st == MOEC_OK)
        st = import_json(&js, r, opts, *js.p, &samples, &ids);
    moec_js_fini(&js);
    moec_strmap_fini(&samples);
    moec_arena_fini(&ids);
    return st;
}

/* -------------------------------------------------------------- export */

moec_status moec_routes_export_sglang(const moec_routes *r, uint64_t request,
                                      char **out, size_t *bytes_out,
                                      moec_error *err)
{
    moec_routes_request q;
    int32_t ids[ROUTES_K_MAX], *data;
    size_t n = 0;
    uint32_t k;
    char *text;

    MOEC_TRY(moec_form_exportable(r, request, &q, err));
    k = r->shape.top_k;
    data = moec_form_room(0, r, &q, sizeof(ids[0]), &n);
    text = data ? malloc(n / 3 * 4 + 8) : NULL;
    if (!text) {
        free(data);
        return moec_fail_nomem(err, "an export");
    }
    for (uint64_t t = 0; t < q.n_tokens; t++) {
        for (uint32_t l = 0; l < moec_form_main_layers(&r->shape); l++) {
            uint64_t at =
                (t * r->shape.n_decoder + r->shape.keys[l].number) * k;

            moec_routes_ids(r, q.first_token + t, 1, l, ids);
            for (uint32_t c = 0; c < k; c++) {
                uint32_t v = (uint32_t)ids[c];
                unsigned char *b = (unsigned char *)(data + at + c);

                b[0] = (unsigned char)v;
                b[1] = (unsigned char)(v >> 8);
                b[2] = (unsigned char)(v >> 16);
                b[3] = (unsigned char)(v >> 24);
            }
        }
    }
    base64_encode((const unsigned char *)data, n, text);
    free(data);
    *out = text;
    *bytes_out = (n + 2) / 3 * 4;
    return MOEC_OK;
}
