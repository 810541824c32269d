/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What this is: the file of recorded routes: safetensors, as moec/record.h
 *   states it.
 * Refuses (R01): tensors of other names, types and shapes, metadata that is
 *   missing or no number, offsets and positions out of order, gaps that meet a
 *   row, two requests of one id and sample; (R03): ids that are no expert.
 */

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "jsonscan.h"
#include "routes.h"
#include "safetensors.h"

#define FORMAT     "moec.routes/1"
#define LAYERS_MAX 65536u
#define PREFIX     8u

/* A file on its way into a recording. */
typedef struct reader {
    const char *name;
    const unsigned char *data; /* the whole file */
    moec_header header;
    moec_arena arena; /* metadata */
    const char *format, *fingerprint, *layers, *request_ids;
    const char *n_experts, *n_zero, *n_decoder;
    const moec_tensor *topk_ids, *position, *request, *sample, *gap;
    moec_layer_key *keys;
    moec_routes_shape shape;
} reader;

static moec_status refuse(const reader *f, moec_error *err, const char *what)
{
    return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_R01, "%s: %s", f->name,
                     what);
}

/* ------------------------------------------------------------- metadata */

/* Read a string that is next into the arena. */
static moec_status read_string(moec_jsonscan *js, moec_arena *arena,
                               const char **out)
{
    /* Unescaped it is never longer than what is left. */
    size_t cap = (size_t)(js->end - js->p) + 1;
    moec_js_text t = {.buf = moec_alloc(cap), .cap = cap};
    char *copy = NULL;
    moec_status st;

    if (!t.buf)
        return moec_fail_nomem(js->err, "metadata of recorded routes");
    st = moec_js_string(js, &t);
    if (st == MOEC_OK && t.has_nul)
        st = moec_js_fail(js, MOEC_RULE_R01, "a NUL in a string");
    if (st == MOEC_OK) {
        copy = moec_arena_strdup(arena, t.s, (size_t)t.len);
        if (!copy)
            st = moec_fail_nomem(js->err, "metadata of recorded routes");
    }
    moec_free(t.buf);
    *out = copy;
    return st;
}

/* The member of __metadata__ that is next. */
static moec_status read_meta(reader *f, moec_jsonscan *js)
{
    const struct {
        const char *key;
        const char **to;
    } known[] = {
        {"format", &f->format},       {"fingerprint", &f->fingerprint},
        {"layers", &f->layers},       {"request_ids", &f->request_ids},
        {"n_experts", &f->n_experts}, {"n_zero", &f->n_zero},
        {"n_decoder", &f->n_decoder},
    };
    char key[64];
    moec_js_text t = {.buf = key, .cap = sizeof(key)};

    MOEC_TRY(moec_js_string(js, &t));
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (!moec_js_text_is(&t, known[i].key, strlen(known[i].key)))
            continue;
        MOEC_TRY(moec_js_expect(js, ':'));
        return read_string(js, &f->arena, known[i].to);
    }
    MOEC_TRY(moec_js_expect(js, ':'));
    return moec_js_skip(js);
}

/* moec_js_enter, behind whitespace. */
static moec_status enter_object(moec_jsonscan *js)
{
    int c = 0;

    MOEC_TRY(moec_js_peek(js, &c));
    if (c != '{')
        return moec_js_fail(js, MOEC_RULE_R01, "no object");
    return moec_js_enter(js);
}

/* The header was checked: only __metadata__ is looked for. */
static moec_status read_metadata(reader *f, moec_error *err)
{
    size_t n = (size_t)f->header.header_bytes - PREFIX;
    moec_jsonscan js =
        moec_js_over(f->data + PREFIX, n, f->name, MOEC_RULE_R01, err);
    bool more = true;
    moec_status st = enter_object(&js);

    for (bool first = true; st == MOEC_OK; first = false) {
        char key[64];
        moec_js_text t = {.buf = key, .cap = sizeof(key)};

        st = moec_js_member(&js, '}', first, &more);
        if (st != MOEC_OK || !more)
            break;
        st = moec_js_string(&js, &t);
        if (st == MOEC_OK)
            st = moec_js_expect(&js, ':');
        if (st != MOEC_OK)
            break;
        if (!moec_js_text_is(&t, "__metadata__", 12)) {
            st = moec_js_skip(&js);
            continue;
        }
        st = enter_object(&js);
        for (bool one = true; st == MOEC_OK; one = false) {
            st = moec_js_member(&js, '}', one, &more);
            if (st != MOEC_OK || !more)
                break;
            st = read_meta(f, &js);
        }
        moec_js_leave(&js);
    }
    moec_js_fini(&js);
    return st;
}

/* Decimal digits, at most `max`. */
static bool to_u32(const char *s, uint32_t max, uint32_t *out)
{
    uint64_t v = 0;

    if (!s || !*s || strlen(s) > 9)
        return false;
    for (; *s; s++) {
        if (*s < '0' || *s > '9')
            return false;
        v = v * 10 + (uint64_t)(*s - '0');
    }
    *out = (uint32_t)v;
    return v <= max;
}

/* "3 4 mtp.0" */
static moec_status read_layers(reader *f, moec_error *err)
{
    const char *s = f->layers;
    uint32_t n = 0, most = f->shape.n_layers;

    f->keys = moec_calloc(most, sizeof(f->keys[0]));
    if (!f->keys)
        return moec_fail_nomem(err, "layers of recorded routes");
    while (*s && n < most) {
        char word[16];
        size_t len = strcspn(s, " ");
        bool mtp = strncmp(s, "mtp.", 4) == 0;
        const char *digits = s + (mtp ? 4 : 0);
        size_t n_digits = len - (mtp ? 4 : 0);

        if (n_digits == 0 || n_digits >= sizeof(word))
            break;
        memcpy(word, digits, n_digits);
        word[n_digits] = '\0';
        f->keys[n].space = mtp ? MOEC_SPACE_MTP : MOEC_SPACE_MAIN;
        if (!to_u32(word, LAYERS_MAX, &f->keys[n].number))
            break;
        n++;
        s += len;
        if (*s == ' ' && s[1])
            s++;
    }
    if (*s || n != most)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_R01,
                         "%s: metadata layers '%.64s' names not the %" PRIu32
                         " MoE layers of topk_ids",
                         f->name, f->layers, most);
    f->shape.keys = f->keys;
    return MOEC_OK;
}

/* -------------------------------------------------------------- tensors */

static moec_status find_tensors(reader *f, moec_error *err)
{
    const struct {
        const char *name;
        const moec_tensor **to;
        moec_dtype dtype;
        uint16_t rank;
    } known[] = {
        {"topk_ids", &f->topk_ids, MOEC_DTYPE_NONE, 3},
        {"position", &f->position, MOEC_DTYPE_I32, 1},
        {"request", &f->request, MOEC_DTYPE_I64, 1},
        {"sample", &f->sample, MOEC_DTYPE_I32, 1},
        {"gap", &f->gap, MOEC_DTYPE_I64, 2},
    };
    const size_t n_known = sizeof(known) / sizeof(known[0]);

    for (size_t i = 0; i < f->header.n_tensors; i++) {
        const moec_tensor *t = &f->header.tensors[i];
        size_t k = 0;

        while (k < n_known && strcmp(t->name, known[k].name) != 0)
            k++;
        if (k == n_known)
            return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_R01,
                             "%s: tensor '%s' is none of recorded routes",
                             f->name, t->name);
        if (t->rank != known[k].rank ||
            (known[k].dtype != MOEC_DTYPE_NONE && t->dtype != known[k].dtype))
            return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_R01,
                             "%s: tensor '%s' is %s of %u dimensions", f->name,
                             t->name, moec_dtype_name((moec_dtype)t->dtype),
                             (unsigned)t->rank);
        *known[k].to = t;
    }
    for (size_t k = 0; k < n_known; k++)
        if (!*known[k].to)
            return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_R01,
                             "%s: tensor '%s' is missing", f->name,
                             known[k].name);
    return MOEC_OK;
}

static moec_status read_shape(reader *f, moec_error *err)
{
    const uint64_t *s = f->topk_ids->shape;
    moec_error why = MOEC_ERROR_INIT;

    if (!f->format || strcmp(f->format, FORMAT) != 0)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_R01,
                         "%s: metadata format is '%.32s', must be '%s'",
                         f->name, f->format ? f->format : "", FORMAT);
    f->shape = (moec_routes_shape)MOEC_ROUTES_SHAPE_INIT;
    if (!to_u32(f->n_experts, 4096, &f->shape.n_experts) ||
        !to_u32(f->n_zero, 4096, &f->shape.n_zero) ||
        !to_u32(f->n_decoder, LAYERS_MAX, &f->shape.n_decoder) || !f->layers ||
        !f->request_ids)
        return refuse(f, err,
                      "metadata n_experts, n_zero, n_decoder, layers or "
                      "request_ids is missing or out of range");
    if (s[1] == 0 || s[1] > LAYERS_MAX || s[2] == 0 || s[2] > 64)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_R01,
                         "%s: topk_ids is [%" PRIu64 ", %" PRIu64 ", %" PRIu64
                         "], must be [tokens, MoE layers, top-k]",
                         f->name, s[0], s[1], s[2]);
    f->shape.n_layers = (uint32_t)s[1];
    f->shape.top_k = (uint32_t)s[2];
    if (f->fingerprint && *f->fingerprint)
        f->shape.fingerprint = f->fingerprint;
    MOEC_TRY(read_layers(f, err));
    if (moec_routes_shape_check(&f->shape, &why) != MOEC_OK)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_R01, "%s: %s", f->name,
                         why.text);
    if (f->topk_ids->dtype !=
        (moec_routes_id_bytes(&f->shape) == 1 ? MOEC_DTYPE_U8 : MOEC_DTYPE_U16))
        return moec_fail(
            err, MOEC_E_FORMAT, MOEC_RULE_R01,
            "%s: topk_ids is %s, must be %s for %" PRIu32 " experts", f->name,
            moec_dtype_name((moec_dtype)f->topk_ids->dtype),
            moec_routes_id_bytes(&f->shape) == 1 ? "U8" : "U16",
            f->shape.n_experts + f->shape.n_zero);
    return MOEC_OK;
}

static moec_status check_sizes(const reader *f, moec_error *err)
{
    uint64_t n_requests = f->sample->shape[0];

    if (f->position->shape[0] != f->topk_ids->shape[0] ||
        n_requests == UINT64_MAX || f->request->shape[0] != n_requests + 1 ||
        f->gap->shape[1] != 3)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_R01,
                         "%s: %" PRIu64 " tokens with %" PRIu64
                         " positions, %" PRIu64 " samples with %" PRIu64
                         " offsets, gaps of %" PRIu64 " numbers",
                         f->name, f->topk_ids->shape[0], f->position->shape[0],
                         n_requests, f->request->shape[0], f->gap->shape[1]);
    return MOEC_OK;
}

static uint32_t u32_at(const reader *f, const moec_tensor *t, uint64_t i)
{
    return moec_le32(f->data + t->off + i * 4);
}

static uint64_t u64_at(const reader *f, const moec_tensor *t, uint64_t i)
{
    return moec_le64(f->data + t->off + i * 8);
}

/* ------------------------------------------------------------ the parts */

static moec_status read_ids(const reader *f, moec_routes *r, moec_error *err)
{
    uint32_t limit = r->shape.n_experts + r->shape.n_zero;
    uint64_t n = r->n_tokens * r->shape.n_layers * r->shape.top_k;
    const unsigned char *from = f->data + f->topk_ids->off;
    uint64_t per_token = (uint64_t)r->shape.n_layers * r->shape.top_k;

    for (uint64_t i = 0; i < n; i++) {
        uint16_t v = from[i * r->width];

        if (r->width == 2) {
            v = (uint16_t)(v | from[2 * i + 1] << 8);
            memcpy(r->ids + 2 * i, &v, sizeof(v));
        } else {
            r->ids[i] = (uint8_t)v;
        }
        if (v >= limit && v != (r->width == 1 ? UINT8_MAX : UINT16_MAX))
            return moec_fail(
                err, MOEC_E_FORMAT, MOEC_RULE_R03,
                "%s: token %" PRIu64 ", MoE layer %" PRIu64 ", column %" PRIu64
                ": id %u of %" PRIu32 " experts",
                f->name, i / per_token, i % per_token / r->shape.top_k,
                i % r->shape.top_k, (unsigned)v, limit);
    }
    return MOEC_OK;
}

/* Offsets, samples, positions. */
static moec_status read_requests(const reader *f, moec_routes *r,
                                 moec_error *err)
{
    uint64_t before = 0;

    for (uint64_t i = 0; i <= r->n_requests; i++) {
        uint64_t at = u64_at(f, f->request, i);

        if (at > r->n_tokens || at < before || (i == 0 && at != 0) ||
            (i == r->n_requests && at != r->n_tokens))
            return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_R01,
                             "%s: request[%" PRIu64 "] is %" PRIu64
                             " of %" PRIu64 " tokens, behind %" PRIu64,
                             f->name, i, at, r->n_tokens, before);
        r->requests[i].first_token = before = at;
        if (i < r->n_requests) {
            r->requests[i].sample = u32_at(f, f->sample, i);
            if (r->requests[i].sample > INT32_MAX)
                return refuse(f, err, "a sample is negative");
        }
    }
    for (uint64_t i = 0; i < r->n_requests; i++) {
        uint64_t t = r->requests[i].first_token;

        for (; t < r->requests[i + 1].first_token; t++) {
            r->positions[t] = u32_at(f, f->position, t);
            if (r->positions[t] > MOEC_ROUTE_POSITION_MAX ||
                (t > r->requests[i].first_token &&
                 r->positions[t] <= r->positions[t - 1]))
                return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_R01,
                                 "%s: position[%" PRIu64 "] is %" PRIu32
                                 ", not above the one before it",
                                 f->name, t, r->positions[t]);
        }
    }
    return MOEC_OK;
}

/* First token of the request at or past `position`. */
static uint64_t token_from(const moec_routes *r, uint64_t request,
                           uint64_t position)
{
    uint64_t lo = r->requests[request].first_token;
    uint64_t hi = r->requests[request + 1].first_token;

    while (lo < hi) {
        uint64_t mid = lo + (hi - lo) / 2;

        if (r->positions[mid] < position)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

static moec_status read_gaps(const reader *f, moec_routes *r, moec_error *err)
{
    uint64_t q = 0, before = 0, end_before = 0;

    for (uint64_t g = 0; g < r->n_gaps; g++) {
        uint64_t request = u64_at(f, f->gap, g * 3);
        uint64_t first = u64_at(f, f->gap, g * 3 + 1);
        uint64_t end = u64_at(f, f->gap, g * 3 + 2);
        uint64_t token;

        if (request >= r->n_requests || first >= end ||
            end > MOEC_ROUTE_POSITION_MAX ||
            (g > 0 &&
             (request < before || (request == before && first <= end_before))))
            return moec_fail(
                err, MOEC_E_FORMAT, MOEC_RULE_R01,
                "%s: gap[%" PRIu64 "] is request %" PRId64 ", %" PRId64
                " to %" PRId64 ": out of range or of order",
                f->name, g, (int64_t)request, (int64_t)first, (int64_t)end);
        token = token_from(r, request, first);
        if (token < r->requests[request + 1].first_token &&
            r->positions[token] < end)
            return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_R01,
                             "%s: gap[%" PRIu64 "] holds position %" PRIu32
                             ", which has a row",
                             f->name, g, r->positions[token]);
        for (; q <= request; q++)
            r->requests[q].first_gap = g;
        r->gaps[g] = (moec_route_gap){(uint32_t)first, (uint32_t)end};
        before = request;
        end_before = end;
    }
    for (; q < r->n_requests; q++)
        r->requests[q].first_gap = r->n_gaps;
    return MOEC_OK;
}

/* The next id of the list into request i; `seen` has those before. */
static moec_status read_id(const reader *f, moec_jsonscan *js, moec_routes *r,
                           uint64_t i, moec_strmap *seen, moec_arena *keys)
{
    char buf[MOEC_ROUTE_ID_BYTES_MAX + 1];
    moec_js_text t = {.buf = buf, .cap = sizeof(buf)};
    uint32_t sample = r->requests[i].sample;
    bool existed = false;
    char *key, *id;

    MOEC_TRY(moec_js_string(js, &t));
    if (t.len > MOEC_ROUTE_ID_BYTES_MAX || t.has_nul ||
        !moec_routes_id_ok(t.s, (size_t)t.len))
        return moec_js_fail(js, MOEC_RULE_R01,
                            "a request id is empty, too long or no text");
    id = moec_alloc((size_t)t.len + 1);
    key = moec_arena_alloc(keys, (size_t)t.len + sizeof(sample), 1);
    if (!id || !key) {
        moec_free(id);
        return moec_fail_nomem(js->err, "request ids");
    }
    memcpy(id, t.s, (size_t)t.len);
    id[t.len] = '\0';
    r->requests[i].id = id;
    memcpy(key, &sample, sizeof(sample));
    memcpy(key + sizeof(sample), t.s, (size_t)t.len);
    MOEC_TRY(moec_strmap_put(seen, key, (size_t)t.len + sizeof(sample), i,
                             &existed, js->err));
    if (existed)
        return moec_fail(js->err, MOEC_E_FORMAT, MOEC_RULE_R01,
                         "%s: request '%s', sample %" PRIu32 " comes twice",
                         f->name, id, sample);
    return MOEC_OK;
}

static moec_status read_names(const reader *f, moec_routes *r, moec_error *err)
{
    moec_jsonscan js = moec_js_over(f->request_ids, strlen(f->request_ids),
                                    "request_ids", MOEC_RULE_R01, err);
    moec_strmap seen = {0};
    moec_arena keys = {0};
    bool more = true;
    uint64_t i = 0;
    int c = 0;
    moec_status st = moec_strmap_init(&seen, (size_t)r->n_requests, err);

    if (st == MOEC_OK)
        st = moec_js_peek(&js, &c);
    if (st == MOEC_OK && c != '[')
        st = refuse(f, err, "metadata request_ids is no JSON array");
    if (st == MOEC_OK)
        st = moec_js_enter(&js);
    while (st == MOEC_OK) {
        st = moec_js_member(&js, ']', i == 0, &more);
        if (st != MOEC_OK || !more)
            break;
        if (i == r->n_requests)
            st = refuse(f, err, "more request ids than requests");
        else
            st = read_id(f, &js, r, i++, &seen, &keys);
    }
    if (st == MOEC_OK && i != r->n_requests)
        st = refuse(f, err, "fewer request ids than requests");
    if (st == MOEC_OK)
        st = moec_js_peek(&js, &c);
    if (st == MOEC_OK && c != -1)
        st = refuse(f, err, "bytes behind request_ids");
    moec_js_fini(&js);
    moec_strmap_fini(&seen);
    moec_arena_fini(&keys);
    return st;
}

static moec_status read_all(reader *f, moec_routes **out, moec_error *err)
{
    moec_routes *r = NULL;
    moec_status st;

    MOEC_TRY(find_tensors(f, err));
    MOEC_TRY(read_metadata(f, err));
    MOEC_TRY(read_shape(f, err));
    MOEC_TRY(check_sizes(f, err));
    MOEC_TRY(moec_routes_alloc(&r, &f->shape, f->sample->shape[0],
                               f->topk_ids->shape[0], f->gap->shape[0], err));
    st = read_ids(f, r, err);
    if (st == MOEC_OK)
        st = read_requests(f, r, err);
    if (st == MOEC_OK)
        st = read_gaps(f, r, err);
    if (st == MOEC_OK)
        st = read_names(f, r, err);
    if (st == MOEC_OK)
        *out = r;
    else
        moec_routes_destroy(r);
    return st;
}

moec_status moec_routes_parse(moec_routes **out, const void *data, size_t n,
                              const char *name, moec_error *err)
{
    reader f = {.name = name, .data = data};
    moec_status st;

    MOEC_TRY(moec_header_parse(&f.header, data, n, n, name, err));
    st = read_all(&f, out, err);
    moec_free(f.keys);
    moec_arena_fini(&f.arena);
    moec_header_fini(&f.header);
    return st;
}

/* Open what the caller names, links included; a FIFO is not waited for. */
static moec_status open_named(const char *path, int *fd_out, uint64_t *bytes,
                              moec_error *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    struct stat sb;

    if (fd < 0 && (errno == ENOENT || errno == ENOTDIR))
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_R01, "%s: %s", path,
                         strerror(errno));
    if (fd < 0)
        return moec_fail_os(err, errno, "%s: cannot open", path);
    if (fstat(fd, &sb) != 0) {
        int why = errno;

        (void)close(fd);
        return moec_fail_os(err, why, "%s: cannot look at it", path);
    }
    if (!S_ISREG(sb.st_mode)) {
        (void)close(fd);
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_I03,
                         "%s: is no regular file", path);
    }
    *fd_out = fd;
    *bytes = (uint64_t)sb.st_size;
    return MOEC_OK;
}

moec_status moec_routes_open(moec_routes **out, const char *path,
                             moec_error *err)
{
    moec_status st;
    uint64_t bytes = 0;
    void *data = NULL;
    int fd = -1;

    MOEC_TRY(open_named(path, &fd, &bytes, err));
    if (bytes < SIZE_MAX)
        data = moec_alloc((size_t)bytes);
    if (!data)
        st = moec_fail_nomem(err, path);
    else
        st = moec_pread_full(fd, path, data, (size_t)bytes, 0, err);
    (void)close(fd);
    if (st == MOEC_OK)
        st = moec_routes_parse(out, data, (size_t)bytes, path, err);
    moec_free(data);
    return st;
}
