/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Level 3, driven: open both sides, take the layers one after the other, keep
 * what came of each. A layer whose router or format no kernel here computes is
 * a warning (K09) and not a failure: what was proved at levels 1 and 2 holds.
 */

#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "ckpt.h"
#include "exchange_calls.h"
#include "level3.h"

#define TOKENS_DEFAULT 64u
#define SEED_DEFAULT   UINT64_C(20250710)
/* -------------------------------------------------------------- one layer */

static void side_fini(moec_l3_side *s)
{
    moec_router_destroy(s->router);
    moec_free(s->logits);
    moec_free(s->bias);
    moec_free(s->scales);
    moec_free(s->gate);
    moec_free(s->shared_weights);
    moec_free(s->table);
    moec_free(s->ids);
    moec_free(s->weights);
    moec_free(s->identity);
    moec_free(s->y);
    moec_free(s->routed);
    moec_free(s->shared);
    moec_free(s->whole);
}

static void layer_fini(moec_l3_layer *l)
{
    for (int side = 0; side < 2; side++)
        side_fini(&l->side[side]);
    moec_batch_fini(&l->batch);
    moec_free(l->x);
    moec_free(l->token_ids);
    moec_free(l->slots);
    moec_free(l->home);
    moec_free(l->elsewhere);
    moec_free(l->slot);
    moec_free(l->run);
    moec_free(l->run_first);
    moec_free(l->expert_slot);
    moec_free(l->shared_bad);
    moec_free(l->effective);
}

/* Why no side can run the layer, or NULL. */
static const char *why_not(const moec_l3_layer *l)
{
    const moec_moe_facts *f = &l->side[MOEC_LEVEL3_SOURCE].facts;
    uint32_t known = MOEC_STEP_ROUTER_NORM | MOEC_STEP_LATENT;

    if (f->why_not != NULL && (f->steps == 0 || (f->steps & ~known) != 0))
        return f->why_not;
    if (f->route.shared_kind == MOEC_SHARED_ROUTER &&
        f->route.norm != MOEC_NORM_JOINT)
        return "the router weighs the shared experts, and not by the sum that "
               "they share with the routed ones";
    return NULL;
}

static moec_status describe(moec_l3_layer *l, moec_error *err)
{
    moec_level3 *v = l->v;
    const moec_moe_facts *f = &l->side[MOEC_LEVEL3_SOURCE].facts;
    const moec_facts *facts = moec_model_facts(v->model[MOEC_LEVEL3_SOURCE]);

    for (int side = 0; side < 2; side++) {
        memset(&l->side[side].facts, 0, sizeof(l->side[side].facts));
        l->side[side].facts.struct_bytes = sizeof(l->side[side].facts);
        MOEC_TRY(moec_model_moe(v->model[side], l->model_layer[side],
                                &l->side[side].facts, err));
    }
    l->experts = f->route.n_experts;
    l->zero = f->route.n_zero;
    l->top_k = f->route.top_k;
    l->n_logits = l->experts + l->zero + f->route.n_shared_logits;
    l->width = (uint32_t)facts->hidden;
    l->hidden = f->ffn.hidden;
    l->topo = moec_plan_topology(v->plan);
    l->shared = moec_plan_shared_rows(v->plan);
    l->shared_apart = l->shared == 0 && f->shared_ffn.inter != 0;
    l->n_rows = l->topo.n_local + l->shared;
    for (size_t t = 0; t < moec_plan_n_slot_tensors(v->plan, l->layer); t++)
        l->slot_bytes +=
            moec_plan_slot_tensor(v->plan, l->layer, t)->slot_bytes;
    return MOEC_OK;
}

/* The layer's number in a reference: MTP layers that the source numbers on
 * their own stand behind the main ones there, as those of DeepSeek do. */
static uint32_t number_of(const moec_l3_layer *l)
{
    uint32_t number = l->result->source_number;
    uint32_t n = moec_model_facts(l->v->model[MOEC_LEVEL3_SOURCE])->n_layers;
    bool behind = l->result->layer.space != MOEC_SPACE_MTP || number >= n;

    return behind ? number : n + number;
}

/* This process's stretch of the batch's rows. */
static moec_status take_share(moec_l3_layer *l, moec_error *err)
{
    moec_exchange *x = l->v->opts->exchange;
    uint64_t n = l->batch.n_rows;

    l->all_tokens = l->tokens = l->rows = l->batch.n_rows;
    if (x == NULL)
        return MOEC_OK;
    if (n < moec_exchange_size(x))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "%" PRIu64 " tokens cannot be dealt out to %" PRIu32
                         " processes: each needs one",
                         n, moec_exchange_size(x));
    l->first = (uint32_t)(n * moec_exchange_rank(x) / moec_exchange_size(x));
    l->tokens = (uint32_t)(n * (moec_exchange_rank(x) + UINT64_C(1)) /
                           moec_exchange_size(x)) -
                l->first;
    l->rows = l->tokens;
    return MOEC_OK;
}

static moec_status make_rows(moec_l3_layer *l, moec_error *err)
{
    MOEC_TRY(moec_batch_make(&l->batch, &l->v->act, l->result->layer,
                             number_of(l), l->width, err));
    MOEC_TRY(take_share(l, err));
    l->rows_max = l->tokens + l->experts / l->top_k + 2;
    l->x = moec_calloc((size_t)l->rows_max, l->width * sizeof(*l->x));
    l->token_ids = moec_calloc((size_t)l->rows_max, sizeof(*l->token_ids));
    if (l->x == NULL || l->token_ids == NULL)
        return moec_fail_nomem(err, "hidden states");
    memcpy(l->x, l->batch.x + (size_t)l->first * l->width,
           (size_t)l->tokens * l->width * sizeof(*l->x));
    l->result->tokens = l->all_tokens;
    switch (l->batch.kind) {
    case MOEC_BATCH_SEEDED:
        l->result->inputs = MOEC_INPUTS_SEEDED;
        break;
    case MOEC_BATCH_RECORDED:
        l->result->inputs = MOEC_INPUTS_RECORDED;
        break;
    case MOEC_BATCH_GOLDEN:
        l->result->inputs = MOEC_INPUTS_GOLDEN;
        break;
    }
    return MOEC_OK;
}

static moec_status count_loads(moec_l3_layer *l, moec_error *err)
{
    const moec_l3_side *s = &l->side[MOEC_LEVEL3_SERVED];
    size_t n_slots = (size_t)l->topo.n_ranks * l->n_rows;
    uint32_t *experts = moec_calloc((size_t)l->experts + 1, sizeof(*experts));
    uint32_t *slots = moec_calloc(n_slots + 1, sizeof(*slots));
    uint32_t *ranks = moec_calloc((size_t)l->topo.n_ranks + 1, sizeof(*ranks));
    moec_status st = MOEC_OK;

    if (experts == NULL || slots == NULL || ranks == NULL)
        st = moec_fail_nomem(err, "loads of a layer");
    st = moec_l3_agree(l->v, st, err);
    for (size_t p = 0; st == MOEC_OK && p < (size_t)l->tokens * s->cols; p++) {
        uint32_t rank, row;

        if (s->ids[p] >= 0 && (uint32_t)s->ids[p] < l->experts &&
            p % s->cols < l->top_k)
            experts[s->ids[p]]++;
        if (l->slots[p] < 0)
            continue;
        moec_l3_place(l, (uint32_t)l->slots[p], l->home[p / s->cols], &rank,
                      &row);
        slots[(size_t)rank * l->n_rows + row]++;
        ranks[rank]++;
    }
    if (st == MOEC_OK)
        st = moec_l3_count_all(l, experts, l->experts, err);
    if (st == MOEC_OK)
        st = moec_l3_count_all(l, slots, n_slots, err);
    if (st == MOEC_OK)
        st = moec_l3_count_all(l, ranks, l->topo.n_ranks, err);
    if (st == MOEC_OK) {
        l->result->expert_load = moec_load_stats_of(experts, l->experts);
        l->result->slot_load = moec_load_stats_of(slots, n_slots);
        l->result->rank_load = moec_load_stats_of(ranks, l->topo.n_ranks);
    }
    moec_free(ranks);
    moec_free(slots);
    moec_free(experts);
    return st;
}

/* Hidden states to ids and weights, on both sides. */
static moec_status choose(moec_l3_layer *l, moec_error *err)
{
    MOEC_TRY(make_rows(l, err));
    MOEC_TRY(moec_l3_route(l, MOEC_LEVEL3_SOURCE, err));
    MOEC_TRY(moec_l3_route(l, MOEC_LEVEL3_SERVED, err));
    return moec_l3_compare_routing(l, err);
}

static moec_status compare(moec_l3_layer *l, moec_error *err)
{
    MOEC_TRY(moec_l3_compare(l, err));
    return moec_l3_compare_reference(l, err);
}

/* All of a layer. Between several processes each step is followed by an
 * agreement, or ends with one: see exchange.c. */
static moec_status prove(moec_l3_layer *l, moec_error *err)
{
    moec_level3 *v = l->v;

    MOEC_TRY(moec_l3_agree(v, choose(l, err), err));
    MOEC_TRY(moec_l3_share_chosen(l, err));
    MOEC_TRY(moec_l3_agree(v, moec_l3_forward(l, err), err));
    MOEC_TRY(moec_l3_serve(l, err));
    MOEC_TRY(moec_l3_agree(v, compare(l, err), err));
    MOEC_TRY(moec_l3_share_slots(l, err));
    MOEC_TRY(count_loads(l, err));
    MOEC_TRY(moec_l3_agree(v, moec_l3_choices(l, err), err));
    if (v->opts->exchange == NULL) /* the choice depends on the whole batch */
        MOEC_TRY(moec_l3_expert_choice(l, err));
    l->result->validated = 1;
    for (uint32_t t = l->tokens; t < l->rows; t++)
        for (uint32_t c = 0; c < l->top_k; c++)
            l->result->forced +=
                l->side[0].ids[(size_t)t * l->side[0].cols + c] >= 0;
    for (size_t i = 0; i < (size_t)l->topo.n_ranks * l->n_rows; i++)
        l->result->slots += l->slot[i].read;
    return moec_l3_share_result(
        l, v->traffic == NULL ? NULL : v->traffic + l->layer * l->topo.n_ranks,
        err);
}

/* The layer stays as levels 1 and 2 left it. Told once for equal reasons. An
 * error where a kernel refused what it says to do. */
static moec_status not_validated(moec_l3_layer *l, moec_validation *out,
                                 size_t i, const char *why,
                                 moec_severity severity, moec_error *err)
{
    moec_finding f = moec_l3_finding(l, MOEC_RULE_K09, severity);
    bool told = false;

    for (size_t k = 0; k < i; k++)
        told = told ||
               (out->why_not[k] != NULL && strcmp(out->why_not[k], why) == 0);
    out->why_not[i] = moec_arena_strdup(&out->arena, why, strlen(why));
    if (out->why_not[i] == NULL)
        return moec_fail_nomem(err, "result of a layer");
    l->result->why_not = out->why_not[i];
    l->result->validated = 0;
    if (!told)
        moec_report_add(
            l->v->r, &f, "not validated: %s%s",
            severity == MOEC_SEVERITY_ERROR ? "a kernel refused: " : "", why);
    return MOEC_OK;
}

static moec_status run_layer(moec_level3 *v, moec_validation *out, size_t i,
                             moec_error *err)
{
    moec_l3_layer l = {.v = v, .layer = i, .result = &out->layers[i]};
    moec_error e = MOEC_ERROR_INIT;
    moec_status st;

    for (int side = 0; side < 2; side++) {
        l.model_layer[side] =
            side == MOEC_LEVEL3_SERVED
                ? moec_plan_model_layer(v->plan, i)
                : moec_model_find_layer(v->model[side], l.result->layer);
        l.slices[side] = moec_model_slices(v->model[side], l.model_layer[side]);
    }
    st = moec_l3_agree(v, describe(&l, &e), &e);
    if (st == MOEC_OK && why_not(&l) != NULL) {
        st = not_validated(&l, out, i, why_not(&l), MOEC_SEVERITY_WARNING, err);
    } else {
        if (st == MOEC_OK)
            st = prove(&l, &e);
        if (st == MOEC_E_UNSUPPORTED)
            st = not_validated(&l, out, i, e.text,
                               e.rule == MOEC_RULE_K09 ? MOEC_SEVERITY_WARNING
                                                       : MOEC_SEVERITY_ERROR,
                               err);
        else
            (void)moec_hand_on(err, st, &e);
    }
    if (st == MOEC_OK && l.not_finite)
        moec_validation_add_limit(
            out, "some outputs are infinite or no numbers: those compare "
                 "as equal");
    if (st == MOEC_OK && l.guessed)
        moec_validation_add_limit(
            out, "the reference has no token ids: where a table names "
                 "the experts, tokens were chosen by its experts");
    if (st == MOEC_OK && l.no_ec != NULL)
        moec_validation_add_limit(out, "Expert Choice was not tried: %s",
                                  l.no_ec);
    if (st == MOEC_OK && l.batch.n_left_out != 0)
        moec_validation_add_limit(
            out,
            "of recorded hidden states the first %u rows a layer are "
            "used",
            MOEC_ACTIVATION_ROWS_MAX);
    if (st == MOEC_OK && v->act.golden != NULL && l.result->validated &&
        !l.result->has_golden)
        moec_validation_add_limit(
            out, "the reference has no %slayer %" PRIu32,
            l.result->layer.space == MOEC_SPACE_MTP ? "mtp " : "",
            number_of(&l));
    layer_fini(&l);
    return st;
}

/* ----------------------------------------------------------- the driver */

/* The two models must be of one size; a finding where they are not. */
static bool same_model(const moec_level3 *v)
{
    const moec_facts *a = moec_model_facts(v->model[MOEC_LEVEL3_SOURCE]);
    const moec_facts *b = moec_model_facts(v->model[MOEC_LEVEL3_SERVED]);
    moec_finding f = {.rule = MOEC_RULE_K10, .severity = MOEC_SEVERITY_ERROR};
    bool same = a->n_experts == b->n_experts && a->top_k == b->top_k &&
                a->hidden == b->hidden && a->inter == b->inter &&
                a->shared_width == b->shared_width &&
                strcmp(a->family, b->family) == 0;

    for (size_t i = 0; same && i < moec_plan_n_layers(v->plan); i++) {
        const moec_moe_layer *l = moec_model_layer(
            v->model[MOEC_LEVEL3_SERVED], moec_plan_model_layer(v->plan, i));

        same = moec_model_find_layer(v->model[MOEC_LEVEL3_SOURCE], l->key) !=
               MOEC_NO_LAYER;
    }
    if (!same)
        moec_report_add(
            v->r, &f,
            "another source: %s with %" PRIu32 " experts of width %" PRIu64
            ", the conversion is of %s with %" PRIu32 " of width %" PRIu64,
            a->family, a->n_experts, a->inter, b->family, b->n_experts,
            b->inter);
    return same;
}

static moec_status name_layers(moec_level3 *v, moec_validation *out,
                               moec_error *err)
{
    size_t n = moec_plan_n_layers(v->plan);

    out->layers = moec_calloc(n + 1, sizeof(*out->layers));
    out->why_not = moec_calloc(n + 1, sizeof(char *));
    if (out->layers == NULL || out->why_not == NULL)
        return moec_fail_nomem(err, "results of layers");
    out->n_layers = n;
    for (size_t i = 0; i < n; i++) {
        const moec_moe_layer *l = moec_model_layer(
            v->model[MOEC_LEVEL3_SERVED], moec_plan_model_layer(v->plan, i));
        uint32_t rows = moec_plan_topology(v->plan).n_local +
                        moec_plan_shared_rows(v->plan);
        uint64_t bytes = 0;

        out->layers[i].layer = l->key;
        out->layers[i].source_number = l->source_number;
        for (size_t t = 0; t < moec_plan_n_slot_tensors(v->plan, i); t++)
            bytes += moec_plan_slot_tensor(v->plan, i, t)->slot_bytes;
        v->total += bytes * (moec_model_facts(v->model[0])->n_experts +
                             (uint64_t)rows *
                                 (v->opts->exchange != NULL
                                      ? 1
                                      : moec_plan_topology(v->plan).n_ranks));
    }
    return MOEC_OK;
}

/* A reference that no layer was compared with is another model's. */
static void check_reference(const moec_level3 *v, const moec_validation *out)
{
    moec_finding f = {.rule = MOEC_RULE_K07, .severity = MOEC_SEVERITY_ERROR};
    size_t n_run = 0, n_golden = 0;

    for (size_t i = 0; i < out->n_layers; i++) {
        n_run += out->layers[i].validated;
        n_golden += out->layers[i].golden_answers != 0;
    }
    if (v->act.golden != NULL && n_run != 0 && n_golden == 0)
        moec_report_add(v->r, &f,
                        "the reference has answers for none of the layers");
}

/* One process a rank: as many as the conversion has, and what none of them
 * can do alone. */
static moec_status open_exchange(moec_level3 *v, moec_validation *out,
                                 moec_error *err)
{
    moec_exchange *x = v->opts->exchange;
    uint32_t n = moec_plan_topology(v->plan).n_ranks;

    if (x == NULL)
        return MOEC_OK;
    if (moec_exchange_size(x) != n)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "%s has %" PRIu32 " ranks, and there are %" PRIu32
                         " processes: start %" PRIu32 ", one a rank",
                         v->dir != NULL ? v->dir : "the layout", n,
                         moec_exchange_size(x), n);
    if (v->opts->golden != NULL || v->opts->device != NULL)
        return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                         "a reference and a device are for one process");
    out->traffic =
        moec_calloc((size_t)n * out->n_layers + 1, sizeof(*out->traffic));
    if (out->traffic == NULL)
        return moec_fail_nomem(err, "figures of all ranks");
    out->n_ranks = n;
    v->traffic = out->traffic;
    return MOEC_OK;
}

static moec_status open_all(moec_level3 *v, moec_validation *out, bool *go,
                            moec_error *err)
{
    *go = false;
    MOEC_TRY(moec_l3_open_kernels(v, err));
    v->act.k = v->k[MOEC_LEVEL3_SOURCE];
    v->act.seed = v->opts->seed != 0 ? v->opts->seed : SEED_DEFAULT;
    v->act.n_tokens =
        v->opts->n_tokens != 0 ? v->opts->n_tokens : TOKENS_DEFAULT;
    MOEC_TRY(
        moec_activations_open(&v->act, v->opts->inputs, v->opts->golden, err));
    MOEC_TRY(moec_l3_open_models(v, err));
    MOEC_TRY(name_layers(v, out, err));
    MOEC_TRY(open_exchange(v, out, err));
    if (!same_model(v))
        return MOEC_OK;
    MOEC_TRY(moec_l3_open_files(v, go, err));
    return *go ? moec_l3_open_workers(v, err) : MOEC_OK;
}

static moec_status run_layers(moec_level3 *v, moec_validation *out,
                              moec_error *err)
{
    uint64_t stays = 0;
    bool go;

    MOEC_TRY(moec_l3_agree(v, open_all(v, out, &go, err), err));
    stays = !go;
    if (v->opts->exchange != NULL)
        MOEC_TRY(moec_exchange_reduce(v->opts->exchange, &stays, 1,
                                      MOEC_REDUCE_MAX, err));
    if (stays != 0)
        return MOEC_OK;
    for (size_t i = 0; i < out->n_layers; i++)
        MOEC_TRY(run_layer(v, out, i, err));
    check_reference(v, out);
    moec_validation_say_limits(v, out);
    if (out->starved)
        return moec_l3_agree(v, moec_fail_nomem(err, "what was not proved"),
                             err);
    return moec_l3_agree(v, moec_l3_progress(v, v->total, err), err);
}

moec_status moec_validate_patched(moec_validation **out, const char *dir,
                                  const moec_validate_opts *opts,
                                  moec_mutation mutation, moec_patches *patches,
                                  moec_error *err)
{
    static const moec_validate_opts defaults = MOEC_VALIDATE_OPTS_INIT;
    moec_level3 v = {.opts = opts != NULL ? opts : &defaults,
                     .dir = dir,
                     .mutation = mutation,
                     .patches = patches,
                     .dropped = SIZE_MAX};
    moec_validation *x;
    moec_status st;

    MOEC_TRY(moec_check_struct("moec_validate_opts", v.opts->struct_bytes,
                               offsetof(moec_validate_opts, store), err));
    x = moec_calloc(1, sizeof(*x));
    if (x == NULL)
        return moec_fail_nomem(err, "validation");
    if (v.opts->struct_bytes >=
        offsetof(moec_validate_opts, store) + sizeof(v.opts->store))
        v.store = v.opts->store;
    if (v.store != NULL)
        v.dir = v.store->name;
    st = moec_report_create(&x->report, err);
    if (st == MOEC_OK && pthread_mutex_init(&v.lock, NULL) != 0)
        st = moec_fail_nomem(err, "a lock");
    if (st != MOEC_OK) {
        moec_validation_destroy(x);
        return st;
    }
    v.r = x->report;
    st = moec_l3_agree(&v, moec_l3_open(&v, err), err);
    if (st == MOEC_OK)
        st = run_layers(&v, x, err);
    if (st == MOEC_OK)
        st = moec_l3_agree(&v, moec_report_finish(x->report, err), err);
    if (st == MOEC_OK)
        st = moec_l3_share_report(&v, &x->report, err);
    if (st == MOEC_OK && v.opts->exchange != NULL)
        moec_validation_count_errors(x);
    moec_l3_close(&v);
    if (st != MOEC_OK) {
        moec_validation_destroy(x);
        return st;
    }
    *out = x;
    return MOEC_OK;
}

moec_status moec_validate(moec_validation **out, const char *dir,
                          const moec_validate_opts *opts, moec_error *err)
{
    return moec_validate_patched(out, dir, opts, MOEC_MUTATION_COUNT, NULL,
                                 err);
}
