/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What this is: checks of recorded routes: rows and positions by themselves,
 *   sizes against a model, and replay against live logits.
 * Refuses: logits of other shapes; to replay layers whose choice needs what a
 *   recording does not have (token ids of hash routers), with a note.
 */

#include <inttypes.h>
#include <string.h>

#include <moec/record.h>

#include "report.h"

#define BATCH     1024u
#define TOP_K_MAX 64u
/* Findings of one kind that are told one by one. */
#define TOLD_MAX 16u

typedef struct checker {
    const moec_routes *routes;
    const moec_routes_shape *shape;
    const moec_routes_check_opts *opts;
    moec_routes_check_result result;
    moec_report *report;
} checker;

/* Request of a token. */
static moec_routes_request request_of(const moec_routes *r, uint64_t token)
{
    uint64_t lo = 0, n = moec_routes_n_requests(r);

    while (n > 1) {
        uint64_t half = n / 2;

        if (moec_routes_get_request(r, lo + half).first_token <= token)
            lo += half;
        n -= half;
    }
    return moec_routes_get_request(r, lo);
}

static void add(const checker *c, moec_rule rule, moec_severity severity,
                const moec_layer_key *layer, const char *text)
{
    moec_finding f = {.rule = rule, .severity = severity};

    if (layer) {
        f.has |= MOEC_HAS_LAYER;
        f.layer = *layer;
    }
    moec_report_add(c->report, &f, "%s", text);
}

/* ----------------------------------------------------------------- rows */

/* The id that a row has twice, or -1. */
static int32_t repeated(const int32_t *ids, uint32_t k)
{
    for (uint32_t i = 1; i < k; i++)
        for (uint32_t j = 0; j < i && ids[i] >= 0; j++)
            if (ids[i] == ids[j])
                return ids[i];
    return -1;
}

static void check_rows(checker *c)
{
    uint64_t n = moec_routes_n_tokens(c->routes), bad = 0;
    uint32_t k = c->shape->top_k;
    int32_t ids[TOP_K_MAX];
    char text[512];

    for (uint64_t t = 0; t < n; t++) {
        for (uint32_t l = 0; l < c->shape->n_layers; l++) {
            moec_routes_request q;
            int32_t twice;

            moec_routes_ids(c->routes, t, 1, l, ids);
            c->result.rows++;
            twice = repeated(ids, k);
            bad += twice >= 0;
            if (twice < 0 || bad > TOLD_MAX)
                continue;
            q = request_of(c->routes, t);
            snprintf(text, sizeof(text),
                     "request '%.256s', sample %" PRIu32 ", position %" PRIu32
                     ": expert %" PRId32 " twice in one row",
                     q.id, q.sample, moec_routes_positions(c->routes)[t],
                     twice);
            add(c, MOEC_RULE_R03, MOEC_SEVERITY_ERROR, &c->shape->keys[l],
                text);
        }
    }
    if (bad > TOLD_MAX) {
        snprintf(text, sizeof(text), "%" PRIu64 " rows have an expert twice",
                 bad);
        add(c, MOEC_RULE_R03, MOEC_SEVERITY_ERROR, NULL, text);
    }
}

/* Positions without row and gap up to the request's last row. */
static uint64_t holes_of(const checker *c, const moec_routes_request *q,
                         uint32_t *first_out)
{
    const uint32_t *p = moec_routes_positions(c->routes) + q->first_token;
    uint64_t n = 0, g = 0;
    uint32_t at = 0;

    for (uint64_t t = 0; t <= q->n_tokens; t++) {
        uint32_t upto = t < q->n_tokens ? p[t] : at;

        while (at < upto) {
            uint32_t stop = upto;

            while (g < q->n_gaps && q->gaps[g].end <= at)
                g++;
            if (g < q->n_gaps && q->gaps[g].first <= at) {
                at = q->gaps[g].end < upto ? q->gaps[g].end : upto;
                continue;
            }
            if (g < q->n_gaps && q->gaps[g].first < stop)
                stop = q->gaps[g].first;
            if (n == 0)
                *first_out = at;
            n += stop - at;
            at = stop;
        }
        at = upto + 1;
    }
    return n;
}

static void check_positions(checker *c)
{
    for (uint64_t i = 0; i < moec_routes_n_requests(c->routes); i++) {
        moec_routes_request q = moec_routes_get_request(c->routes, i);
        uint32_t first = 0;
        uint64_t holes = holes_of(c, &q, &first);
        char text[512];

        for (uint64_t g = 0; g < q.n_gaps; g++)
            c->result.gap_positions += q.gaps[g].end - q.gaps[g].first;
        if (holes == 0)
            continue;
        snprintf(text, sizeof(text),
                 "request '%.256s', sample %" PRIu32 ": %" PRIu64
                 " positions have neither row nor gap, the first is %" PRIu32,
                 q.id, q.sample, holes, first);
        add(c, MOEC_RULE_R04, MOEC_SEVERITY_ERROR, NULL, text);
    }
}

/* ---------------------------------------------------------------- model */

/* Every recorded layer is the model's, and every main one was recorded. */
static bool check_shape(checker *c, const moec_routes_shape *model)
{
    const moec_routes_shape *s = c->shape;
    char text[256] = "";
    uint32_t i = 0;

    if (s->n_experts != model->n_experts || s->n_zero != model->n_zero ||
        s->top_k != model->top_k)
        snprintf(text, sizeof(text),
                 "the recording has %" PRIu32 " experts and top-%" PRIu32
                 ", the model %" PRIu32 " and top-%" PRIu32,
                 s->n_experts + s->n_zero, s->top_k,
                 model->n_experts + model->n_zero, model->top_k);
    for (uint32_t l = 0; l < model->n_layers && !text[0]; l++) {
        moec_layer_key key = model->keys[l];

        if (i < s->n_layers && s->keys[i].space == key.space &&
            s->keys[i].number == key.number)
            i++;
        else if (key.space == MOEC_SPACE_MAIN)
            snprintf(text, sizeof(text),
                     "the recording lacks MoE layer %" PRIu32 " of the model",
                     key.number);
    }
    if (!text[0] && i < s->n_layers)
        snprintf(text, sizeof(text),
                 "the recording's MoE layer %" PRIu32 " is none of the model",
                 s->keys[i].number);
    if (!text[0] && s->fingerprint &&
        strcmp(s->fingerprint, model->fingerprint) != 0)
        snprintf(text, sizeof(text), "the recording is of model %.64s, not %s",
                 s->fingerprint, model->fingerprint);
    if (text[0])
        add(c, MOEC_RULE_R02, MOEC_SEVERITY_ERROR, NULL, text);
    return !text[0];
}

/* --------------------------------------------------------------- replay */

/* One layer on its way through the router. */
typedef struct replay_layer {
    moec_moe_facts facts;
    moec_router *router;
    uint32_t layer; /* of the recording */
    size_t logits;  /* tensor */
    uint64_t n_cols;
    float *bias;
    unsigned char *buf; /* logits of BATCH rows */
    uint64_t *tokens;
    int32_t *ids;
    float *weights;
    void *workspace;
    uint64_t workspace_bytes;
} replay_layer;

static void free_layer(replay_layer *x)
{
    moec_router_destroy(x->router);
    moec_free(x->bias);
    moec_free(x->buf);
    moec_free(x->tokens);
    moec_free(x->ids);
    moec_free(x->weights);
    moec_free_aligned(x->workspace);
}

static bool ends_with(const char *s, const char *tail)
{
    size_t n = strlen(s), k = strlen(tail);

    return n >= k && strcmp(s + n - k, tail) == 0;
}

/* The layer's logits: "layers.N.router_logits", or of the one PART that has
 * as many rows as there are tokens. */
static size_t find_logits(const moec_ckpt *file, uint32_t number,
                          uint64_t n_tokens)
{
    char prefix[64], exact[96];
    size_t found = SIZE_MAX;

    snprintf(prefix, sizeof(prefix), "layers.%" PRIu32 ".", number);
    snprintf(exact, sizeof(exact), "%srouter_logits", prefix);
    if (moec_ckpt_find(file, exact) != SIZE_MAX)
        return moec_ckpt_find(file, exact);
    for (size_t i = 0; i < moec_ckpt_n_tensors(file); i++) {
        const moec_tensor *t = moec_ckpt_tensor(file, i);

        if (strncmp(t->name, prefix, strlen(prefix)) != 0 ||
            !ends_with(t->name, ".router_logits") || t->rank != 2 ||
            t->shape[0] != n_tokens)
            continue;
        if (found != SIZE_MAX)
            return SIZE_MAX;
        found = i;
    }
    return found;
}

/* A router's float tensor as float32. */
static moec_status read_floats(const moec_ckpt *ckpt, size_t tensor, uint64_t n,
                               float **out, moec_error *err)
{
    const moec_tensor *t = moec_ckpt_tensor(ckpt, tensor);
    float *v = moec_calloc((size_t)n, sizeof(v[0]));
    unsigned char *raw = moec_alloc((size_t)t->bytes + 1);
    moec_status st = MOEC_OK;

    if (!v || !raw)
        st = moec_fail_nomem(err, t->name);
    else if (t->bytes * 8 != n * moec_dtype_bits((moec_dtype)t->dtype) ||
             (t->dtype != MOEC_DTYPE_F32 && t->dtype != MOEC_DTYPE_BF16))
        st = moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_K09,
                       "%s: a bias of %s", t->name,
                       moec_dtype_name((moec_dtype)t->dtype));
    else
        st = moec_ckpt_read(ckpt, tensor, 0, raw, (size_t)t->bytes, err);
    for (uint64_t i = 0; st == MOEC_OK && i < n; i++) {
        uint32_t bits = t->dtype == MOEC_DTYPE_F32
                            ? moec_le32(raw + 4 * i)
                            : (uint32_t)(raw[2 * i] | raw[2 * i + 1] << 8)
                                  << 16;

        memcpy(&v[i], &bits, sizeof(bits));
    }
    moec_free(raw);
    if (st == MOEC_OK)
        *out = v;
    else
        moec_free(v);
    return st;
}

/* The router as it chooses: shared columns play no part in that. */
static moec_status open_router(checker *c, replay_layer *x,
                               const moec_kernels *kernels, moec_error *err)
{
    moec_route_config route = x->facts.route;
    size_t cols;

    if (route.norm != MOEC_NORM_JOINT) {
        route.n_shared = 0;
        route.shared_kind = MOEC_SHARED_NONE;
    }
    cols = route.top_k + route.n_shared;
    MOEC_TRY(moec_router_create(&x->router, kernels, &route, err));
    if (x->facts.choice_bias != MOEC_NO_TENSOR)
        MOEC_TRY(read_floats(moec_model_ckpt(c->opts->model),
                             x->facts.choice_bias,
                             route.n_experts + route.n_zero, &x->bias, err));
    x->workspace_bytes = moec_replay_workspace_bytes(x->router, BATCH);
    x->workspace = moec_alloc_aligned((size_t)x->workspace_bytes, 64);
    x->buf = moec_calloc((size_t)BATCH * x->n_cols, sizeof(float));
    x->tokens = moec_calloc(BATCH, sizeof(x->tokens[0]));
    x->ids = moec_calloc(BATCH * cols, sizeof(x->ids[0]));
    x->weights = moec_calloc(BATCH * cols, sizeof(float));
    if (!x->workspace || !x->buf || !x->tokens || !x->ids || !x->weights)
        return moec_fail_nomem(err, "replay");
    return MOEC_OK;
}

static void tell_difference(checker *c, const replay_layer *x, uint64_t differ,
                            uint64_t token, const moec_replay_stats *first)
{
    uint64_t n = moec_routes_n_tokens(c->routes);
    moec_routes_request q = request_of(c->routes, token);
    char text[512];

    snprintf(text, sizeof(text),
             "%" PRIu64 " of %" PRIu64
             " rows: the live logits choose other experts; first request "
             "'%.128s', sample %" PRIu32 ", position %" PRIu32
             ": recorded expert %" PRId32 ", live %" PRId32,
             differ, n, q.id, q.sample, moec_routes_positions(c->routes)[token],
             first->first_recorded, first->first_live);
    add(c, MOEC_RULE_R07, MOEC_SEVERITY_WARNING, &c->shape->keys[x->layer],
        text);
}

/* MTP layers run on some tokens only: a row of nothing is no row there. */
static bool is_absent(const checker *c, uint32_t layer, uint64_t token)
{
    int32_t ids[TOP_K_MAX];
    bool none = c->shape->keys[layer].space == MOEC_SPACE_MTP;

    if (none)
        moec_routes_ids(c->routes, token, 1, layer, ids);
    for (uint32_t k = 0; k < c->shape->top_k && none; k++)
        none = ids[k] < 0;
    return none;
}

static moec_status replay_rows(checker *c, replay_layer *x,
                               const moec_ckpt *file, moec_error *err)
{
    const moec_tensor *t = moec_ckpt_tensor(file, x->logits);
    uint64_t n = moec_routes_n_tokens(c->routes), differ = 0, first_token = 0;
    size_t row_bytes = (size_t)(t->shape[0] ? t->bytes / t->shape[0] : 0);
    moec_replay_stats first = {0}, s;

    for (uint64_t at = 0; at < n; at += BATCH) {
        uint32_t rows = (uint32_t)moec_min_u64(BATCH, n - at);
        moec_route_in in = MOEC_ROUTE_IN_INIT;
        moec_route_out out = {
            .struct_bytes = sizeof(out), .ids = x->ids, .weights = x->weights};

        MOEC_TRY(moec_ckpt_read(file, x->logits, at * row_bytes, x->buf,
                                rows * row_bytes, err));
        for (uint32_t i = 0; i < rows; i++)
            x->tokens[i] =
                is_absent(c, x->layer, at + i) ? MOEC_NO_TOKEN : at + i;
        in.n_tokens = in.n_valid = rows;
        in.logits_dtype = (moec_dtype)t->dtype;
        in.logits = x->buf;
        in.bias = x->bias;
        MOEC_TRY(moec_replay(x->router, &in, c->routes, x->layer, x->tokens,
                             &out, &s, x->workspace, x->workspace_bytes, err));
        if (s.rows_differ > 0 && differ == 0) {
            first = s;
            first_token = at + s.first_row;
        }
        differ += s.rows_differ;
        c->result.rows_replayed += s.rows;
    }
    c->result.rows_differ += differ;
    c->result.layers_replayed++;
    if (differ > 0)
        tell_difference(c, x, differ, first_token, &first);
    return MOEC_OK;
}

/* Why the layer cannot be replayed, or NULL. */
static const char *why_not(const checker *c, const replay_layer *x,
                           const moec_ckpt *file)
{
    const moec_tensor *t;

    if (x->facts.why_not && x->facts.steps == 0)
        return x->facts.why_not;
    if (x->facts.route.choice == MOEC_CHOICE_HASH)
        return "its experts are chosen by token ids, which are not recorded";
    if (x->logits == SIZE_MAX)
        return "the file has no logits of it";
    t = moec_ckpt_tensor(file, x->logits);
    if (t->rank != 2 || t->shape[0] != moec_routes_n_tokens(c->routes) ||
        t->shape[1] != x->n_cols ||
        (t->dtype != MOEC_DTYPE_F32 && t->dtype != MOEC_DTYPE_BF16 &&
         t->dtype != MOEC_DTYPE_F16))
        return "its logits are not [tokens, experts] of F32, BF16 or F16";
    return NULL;
}

static moec_status replay_layer_of(checker *c, uint32_t layer, uint32_t index,
                                   const moec_ckpt *file,
                                   const moec_kernels *kernels, moec_error *err)
{
    replay_layer x = {.layer = layer};
    const char *why;
    moec_status st;

    MOEC_TRY(moec_model_moe(c->opts->model, index, &x.facts, err));
    x.n_cols = (uint64_t)x.facts.route.n_experts + x.facts.route.n_zero +
               x.facts.route.n_shared_logits;
    x.logits = find_logits(
        file, moec_model_layer(c->opts->model, index)->source_number,
        moec_routes_n_tokens(c->routes));
    why = why_not(c, &x, file);
    if (why) {
        char text[512];

        snprintf(text, sizeof(text), "not replayed: %.400s", why);
        add(c, MOEC_RULE_K09, MOEC_SEVERITY_NOTE, &c->shape->keys[layer], text);
        return MOEC_OK;
    }
    st = open_router(c, &x, kernels, err);
    if (st == MOEC_OK)
        st = replay_rows(c, &x, file, err);
    free_layer(&x);
    return st;
}

static moec_status replay(checker *c, moec_error *err)
{
    moec_ckpt *file = NULL;
    moec_kernels *kernels = NULL;
    moec_status st = moec_ckpt_open(&file, c->opts->logits, NULL, err);

    if (st == MOEC_OK)
        st = moec_kernels_open(&kernels, NULL, err);
    for (uint32_t l = 0; st == MOEC_OK && l < c->shape->n_layers; l++) {
        uint32_t index =
            moec_model_find_layer(c->opts->model, c->shape->keys[l]);

        st = replay_layer_of(c, l, index, file, kernels, err);
    }
    moec_kernels_close(kernels);
    moec_ckpt_close(file);
    return st;
}

/* ----------------------------------------------------------------- call */

static moec_status check_model(checker *c, moec_error *err)
{
    moec_routes_shape model;
    char hex[65];
    bool same;

    MOEC_TRY(moec_routes_shape_of(&model, c->opts->model, hex, err));
    same = check_shape(c, &model);
    moec_routes_shape_release(&model);
    return same && c->opts->logits ? replay(c, err) : MOEC_OK;
}

moec_status moec_routes_check(moec_report **out, const moec_routes *routes,
                              const moec_routes_check_opts *opts,
                              moec_routes_check_result *result, moec_error *err)
{
    checker c = {.routes = routes, .opts = opts};
    moec_status st;

    if (!out || !routes || !opts || opts->struct_bytes < sizeof(*opts) ||
        (opts->logits && !opts->model))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "routes check: NULL, or logits without a model");
    c.shape = moec_routes_shape_get(routes);
    MOEC_TRY(moec_report_create(&c.report, err));
    check_rows(&c);
    check_positions(&c);
    st = opts->model ? check_model(&c, err) : MOEC_OK;
    if (st == MOEC_OK)
        st = moec_report_finish(c.report, err);
    if (st != MOEC_OK) {
        moec_report_destroy(c.report);
        return st;
    }
    if (result)
        *result = c.result;
    *out = c.report;
    return MOEC_OK;
}
