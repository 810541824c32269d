/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How each MoE layer is run: the kernels' configurations and the tensors that
 * a router reads, from the family's description, the config and the names in
 * the layer.
 *
 * A layer that no kernel can run is no mistake of the checkpoint: it converts
 * and is proved by digest. So nothing is refused here but values of the config
 * that are of the wrong type; the first reason against running it is kept.
 */

#include "build.h"

#include <math.h>
#include <string.h>

/* Bounds of moec_router_create. */
#define EXPERTS_MAX       4096u
#define TOP_K_MAX         64u
#define SHARED_LOGITS_MAX 16u

/* One layer at hand. */
typedef struct maker {
    const moec_build *b;
    const moec_found_layer *found;
    const moec_layer_slices *slices;
    const moec_facts *facts;
    moec_moe_facts *out;
    moec_buf why; /* empty, or the first reason against running it */
    moec_error *err;
} maker;

/* Keep the first reason. */
static void stop(maker *k, const char *fmt, ...) MOEC_PRINTF(2, 3);
static void stop(maker *k, const char *fmt, ...)
{
    char text[MOEC_ERROR_TEXT_BYTES];
    va_list args;
    if (k->why.len != 0)
        return;
    va_start(args, fmt);
    (void)vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    moec_buf_puts(&k->why, text);
}

static moec_status number(const maker *k, moec_fact fact, double none,
                          float *out)
{
    double v;
    MOEC_TRY(moec_config_number(k->b->config, fact, 0, none, &v, k->err));
    *out = (float)v;
    return MOEC_OK;
}

/* Entry of a list with a value a layer: MTP layers stand behind the others. */
static uint32_t row_of(const moec_config *c, moec_layer_key key)
{
    return key.space == MOEC_SPACE_MTP ? c->facts.n_layers + key.number
                                       : key.number;
}

moec_status moec_read_limits(const moec_config *c, moec_layer_key key,
                             double *routed, double *shared, moec_error *err)
{
    uint32_t row = row_of(c, key);
    MOEC_TRY(moec_config_number(c, MOEC_FACT_LIMIT, row, 0.0, routed, err));
    MOEC_TRY(
        moec_config_number(c, MOEC_FACT_SHARED_LIMIT, row, 0.0, shared, err));
    if (*routed >= 0.0 && *shared >= 0.0)
        return MOEC_OK;
    return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_C06,
                     CONFIG_NAME ": %s: a limit of the activation is negative",
                     moec_layer_say(key).s);
}

/* ------------------------------------------------------------- tensors */

/* Where the index of a tensor of this use is kept, or NULL. */
static uint32_t *place_of(moec_moe_facts *f, moec_use use)
{
    switch (use) {
    case MOEC_USE_WEIGHT:
        return &f->router_weight;
    case MOEC_USE_LOGIT_BIAS:
        return &f->logit_bias;
    case MOEC_USE_CHOICE_BIAS:
        return &f->choice_bias;
    case MOEC_USE_EXPERT_SCALE:
        return &f->expert_scale;
    case MOEC_USE_GLOBAL_SCALE:
        return &f->global_scale;
    case MOEC_USE_HASH_TABLE:
        return &f->hash_table;
    case MOEC_USE_INPUT_SCALE:
        return &f->input_scale;
    case MOEC_USE_LATENT_IN:
        return &f->latent_in;
    case MOEC_USE_LATENT_OUT:
        return &f->latent_out;
    case MOEC_USE_LATENT_NORM:
        return &f->latent_norm;
    case MOEC_USE_SHARED_GATE:
        return &f->shared_gate;
    case MOEC_USE_NONE:
    case MOEC_USE_COUNT:
        break;
    }
    return NULL;
}

static const moec_tensor *tensor(const maker *k, uint32_t i)
{
    return moec_ckpt_tensor(k->b->ckpt, i);
}

static void find_tensors(maker *k)
{
    const moec_family *f = k->b->family;
    for (int use = MOEC_USE_NONE + 1; use < MOEC_USE_COUNT; use++)
        *place_of(k->out, (moec_use)use) = MOEC_NO_TENSOR;
    for (size_t i = k->found->begin; i < k->found->end; i++) {
        if (k->b->entries[i] == MOEC_NO_ENTRY)
            continue;
        const moec_name_entry *e = &f->names.entries[k->b->entries[i]];
        const moec_kind *kind = &f->kinds[e->kind[__builtin_ctz(e->variants)]];
        uint32_t *place = place_of(k->out, (moec_use)kind->use);
        if (kind->why_not != NULL)
            stop(k, "%s", kind->why_not);
        if (place == NULL)
            continue;
        if (*place != MOEC_NO_TENSOR)
            stop(k, "tensors '%s' and '%s' are the same thing",
                 tensor(k, *place)->name, tensor(k, (uint32_t)i)->name);
        *place = (uint32_t)i;
    }
}

/* Is tensor `i`, where there is one, [rows][cols], or a vector where rows is
 * 1? 0 rows: any number. */
static void want_shape(maker *k, uint32_t i, uint64_t rows, uint64_t cols)
{
    if (i == MOEC_NO_TENSOR)
        return;
    const moec_tensor *t = tensor(k, i);
    bool vector = rows == 1 && t->rank == 1 && t->shape[0] == cols;
    bool matrix = t->rank == 2 && (rows == 0 || t->shape[0] == rows) &&
                  t->shape[1] == cols;
    if (!vector && !matrix)
        stop(k, "tensor '%s' is %s, expected [%ju, %ju]", t->name,
             moec_shape_say(t->rank, t->shape).s, (uintmax_t)rows,
             (uintmax_t)cols);
}

static bool is_float(moec_dtype d)
{
    return d == MOEC_DTYPE_F32 || d == MOEC_DTYPE_BF16 || d == MOEC_DTYPE_F16;
}

static void want_floats(maker *k, uint32_t i)
{
    if (i == MOEC_NO_TENSOR)
        return;
    const moec_tensor *t = tensor(k, i);
    if (!is_float((moec_dtype)t->dtype))
        stop(k, "tensor '%s' is %s: routers are F32, BF16 or F16", t->name,
             moec_dtype_name((moec_dtype)t->dtype));
}

static void check_tensors(maker *k)
{
    const moec_moe_facts *f = k->out;
    const moec_route_config *r = &f->route;
    uint64_t hidden = k->facts->hidden, columns = r->n_experts + r->n_zero;
    uint64_t latent = k->b->config->expert_hidden;
    const uint32_t floats[] = {
        f->router_weight, f->logit_bias,  f->choice_bias, f->expert_scale,
        f->global_scale,  f->input_scale, f->latent_in,   f->latent_out,
        f->latent_norm,   f->shared_gate};
    if (f->router_weight == MOEC_NO_TENSOR)
        stop(k, "the layer has no router weight that the family '%s' describes",
             k->b->family->name);
    want_shape(k, f->router_weight, columns + r->n_shared_logits, hidden);
    want_shape(k, f->logit_bias, 1, columns + r->n_shared_logits);
    want_shape(k, f->choice_bias, 1, columns);
    want_shape(k, f->expert_scale, 1, r->n_experts);
    want_shape(k, f->global_scale, 1, 1);
    want_shape(k, f->hash_table, 0, r->top_k);
    want_shape(k, f->shared_gate, 1, hidden);
    want_shape(k, f->input_scale, 1, hidden);
    want_shape(k, f->latent_in, latent, hidden);
    want_shape(k, f->latent_out, hidden, latent);
    want_shape(k, f->latent_norm, 1, latent);
    for (size_t i = 0; i < sizeof(floats) / sizeof(*floats); i++)
        want_floats(k, floats[i]);
    if (k->facts->shared_kind == MOEC_SHARED_SIGMOID &&
        f->shared_gate == MOEC_NO_TENSOR)
        stop(k, "the layer has no gate of its shared expert");
}

/* -------------------------------------------------------------- router */

static void set_score(maker *k)
{
    static const struct {
        const char *word;
        moec_score score;
    } words[] = {{"softmax", MOEC_SCORE_SOFTMAX},
                 {"sigmoid", MOEC_SCORE_SIGMOID},
                 {"sqrtsoftplus", MOEC_SCORE_SQRT_SOFTPLUS},
                 {"sqrt_softplus", MOEC_SCORE_SQRT_SOFTPLUS},
                 {"logit", MOEC_SCORE_LOGIT}};
    const moec_run_desc *run = &k->b->family->run;
    moec_route_config *r = &k->out->route;
    if (run->has_weight) {
        r->score = (moec_score)run->weight;
        return;
    }
    if (r->choice == MOEC_CHOICE_SPARSE_MIXER) /* has its own */
        return;
    for (size_t i = 0; i < sizeof(words) / sizeof(*words); i++) {
        if (strcmp(words[i].word, k->facts->score) == 0) {
            r->score = words[i].score;
            return;
        }
    }
    stop(k, "router score '%s' is not known", k->facts->score);
}

static moec_status set_choice(maker *k)
{
    const moec_family *f = k->b->family;
    moec_route_config *r = &k->out->route;
    moec_layer_key key = k->slices->layer.key;
    uint32_t below;
    r->choice = (moec_choice)f->run.choice;
    MOEC_TRY(moec_config_count(k->b->config, MOEC_FACT_HASH_LAYERS, UINT32_MAX,
                               &below, k->err));
    bool table = k->out->hash_table != MOEC_NO_TENSOR;
    bool wanted = key.space == MOEC_SPACE_MAIN && key.number < below;
    /* Without the key, the table alone says it. */
    if (below != UINT32_MAX && table != wanted)
        stop(k,
             table ? "the layer has a table of experts, and %u layers are "
                     "routed by one"
                   : "the first %u layers are routed by a table of experts, "
                     "and this one has none",
             below);
    if (table)
        r->choice = MOEC_CHOICE_HASH;
    return number(k, MOEC_FACT_MIXER_EPS, 0.01, &r->mixer_eps);
}

static moec_status set_bias(maker *k)
{
    bool unless_said, if_said;
    MOEC_TRY(moec_config_flag(k->b->config, MOEC_FACT_USE_BIAS, true,
                              &unless_said, k->err));
    MOEC_TRY(moec_config_flag(k->b->config, MOEC_FACT_USE_BIAS, false, &if_said,
                              k->err));
    if (!unless_said)
        k->out->choice_bias = MOEC_NO_TENSOR;
    if (if_said && k->out->choice_bias == MOEC_NO_TENSOR &&
        k->out->hash_table == MOEC_NO_TENSOR)
        stop(k, "the config says that the router has a bias, and the layer has "
                "none");
    return MOEC_OK;
}

static moec_status set_groups(maker *k)
{
    moec_route_config *r = &k->out->route;
    const char *word;
    MOEC_TRY(
        moec_config_word(k->b->config, MOEC_FACT_GROUP_SCORE, &word, k->err));
    if (k->facts->n_group <= 1 || strcmp(word, "none") == 0)
        return MOEC_OK;
    r->n_group = k->facts->n_group;
    r->topk_group = k->facts->topk_group;
    if (strcmp(word, "max") == 0)
        r->group_score = MOEC_GROUP_MAX;
    else if (strcmp(word, "top2") == 0)
        r->group_score = MOEC_GROUP_TOP2;
    else
        stop(k, "rule '%s' for groups of experts is not known", word);
    if (r->group_score == MOEC_GROUP_TOP2 && r->n_group == r->n_experts)
        stop(k, "groups of one expert have no best two");
    if (r->choice != MOEC_CHOICE_TOPK || r->n_zero != 0)
        stop(k, "groups of experts without a choice among them");
    return MOEC_OK;
}

static moec_status set_norm(maker *k)
{
    const moec_run_desc *run = &k->b->family->run;
    moec_route_config *r = &k->out->route;
    bool wanted = run->norm_always || k->facts->norm_topk > 0;
    r->norm = MOEC_NORM_NONE;
    switch ((moec_route_norm)run->norm) {
    case MOEC_NORM_P: /* norm_topk knows p = 1 only */
        MOEC_TRY(number(k, MOEC_FACT_NORM_P, 0.0, &r->norm_arg));
        wanted = r->norm_arg != 0.0F;
        if (wanted && r->norm_arg != 1.0F && r->norm_arg != 2.0F)
            stop(k,
                 "weights divided by their p-norm with p = %g: 1 and 2 are "
                 "implemented",
                 (double)r->norm_arg);
        break;
    case MOEC_NORM_FLOOR:
        MOEC_TRY(number(k, MOEC_FACT_NORM_MIN, 0.0, &r->norm_arg));
        break;
    case MOEC_NORM_NONE:
    case MOEC_NORM_SUM:
    case MOEC_NORM_SOFTMAX:
    case MOEC_NORM_JOINT:
        break;
    }
    if (wanted && r->top_k >= run->norm_from_k)
        r->norm = (moec_route_norm)run->norm;
    return MOEC_OK;
}

static void check_bounds(maker *k)
{
    const moec_route_config *r = &k->out->route;
    if ((uint64_t)r->n_experts + r->n_zero > EXPERTS_MAX)
        stop(k, "a router of %ju columns, at most %u are implemented",
             (uintmax_t)r->n_experts + r->n_zero, EXPERTS_MAX);
    if (r->top_k > TOP_K_MAX)
        stop(k, "top %u, at most %u are implemented", r->top_k, TOP_K_MAX);
    if (r->n_shared > SHARED_LOGITS_MAX ||
        r->n_shared_logits > SHARED_LOGITS_MAX)
        stop(k, "%u shared columns, at most %u are implemented", r->n_shared,
             SHARED_LOGITS_MAX);
}

static moec_status set_router(maker *k)
{
    const moec_facts *f = k->facts;
    moec_route_config *r = &k->out->route;
    *r = (moec_route_config)MOEC_ROUTE_CONFIG_INIT;
    if (!k->b->family->run.given)
        stop(k, "the family '%s' does not describe its router",
             k->b->family->name);
    if (k->b->family->run.why_not != NULL)
        stop(k, "%s", k->b->family->run.why_not);
    r->n_experts = f->n_experts;
    r->n_zero = k->b->config->zero_experts;
    r->top_k = f->top_k;
    r->n_shared = f->shared_slots;
    r->shared_kind = f->shared_kind;
    if (f->shared_kind == MOEC_SHARED_ROUTER)
        r->n_shared = r->n_shared_logits = f->n_shared;
    r->rsf = (float)f->routed_scale;
    r->rsf_on = (moec_rsf_on)k->b->family->run.rsf_on;
    MOEC_TRY(set_choice(k));
    set_score(k);
    MOEC_TRY(set_bias(k));
    MOEC_TRY(set_groups(k));
    MOEC_TRY(set_norm(k));
    check_bounds(k);
    return number(k, MOEC_FACT_SOFTCAP, 0.0, &r->softcap);
}

/* ------------------------------------------------------------- experts */

static void set_act(maker *k, moec_ffn_config *c)
{
    static const struct {
        const char *word;
        moec_act act;
    } words[] = {{"silu", MOEC_ACT_SILU},
                 {"swish", MOEC_ACT_SILU},
                 {"swigluoai", MOEC_ACT_SWIGLU_OAI},
                 {"swiglu_oai", MOEC_ACT_SWIGLU_OAI},
                 {"relu2", MOEC_ACT_RELU2},
                 {"relu_squared", MOEC_ACT_RELU2},
                 {"gelu_pytorch_tanh", MOEC_ACT_GELU_TANH},
                 {"gelu_tanh", MOEC_ACT_GELU_TANH},
                 {"gelu_new", MOEC_ACT_GELU_TANH},
                 {"gelu", MOEC_ACT_GELU},
                 {"situ", MOEC_ACT_SITU}};
    const char *word = k->facts->activation;
    size_t i = 0, n = sizeof(words) / sizeof(*words);
    while (i < n && strcmp(words[i].word, word) != 0)
        i++;
    if (i == n) {
        stop(k, "activation '%s' is not known", word);
        return;
    }
    c->act = words[i].act;
    if ((c->act == MOEC_ACT_RELU2) == (c->gated != 0))
        stop(k, "activation '%s' of experts %s a gate", word,
             c->gated ? "with" : "without");
    if (c->limit <= 0.0F || c->act == MOEC_ACT_SWIGLU_OAI)
        return;
    if (c->act == MOEC_ACT_SILU)
        c->act = k->b->family->run.clamp ? MOEC_ACT_SILU_CLAMP_AFTER
                                         : MOEC_ACT_SILU_CLAMP_BEFORE;
    else
        stop(k, "activation '%s' with a limit", word);
}

static bool has_gate(const moec_layer_slices *l, moec_role role)
{
    for (size_t i = 0; i < l->n_slices; i++)
        if (l->slices[i].role == role &&
            (l->slices[i].part == MOEC_PART_GATE ||
             l->slices[i].part == MOEC_PART_GATE_UP))
            return true;
    return false;
}

static moec_status set_experts(maker *k)
{
    const moec_facts *f = k->facts;
    moec_ffn_config *r = &k->out->ffn, *s = &k->out->shared_ffn;
    double limit, shared_limit;
    *r = (moec_ffn_config)MOEC_FFN_CONFIG_INIT;
    MOEC_TRY(moec_read_limits(k->b->config, k->slices->layer.key, &limit,
                              &shared_limit, k->err));
    MOEC_TRY(number(k, MOEC_FACT_ALPHA, 0.0, &r->alpha));
    MOEC_TRY(number(k, MOEC_FACT_BETA, 0.0, &r->beta));
    MOEC_TRY(number(k, MOEC_FACT_LINEAR_BETA, 0.0, &r->linear_beta));
    r->hidden = (uint32_t)k->b->config->expert_hidden;
    r->inter = (uint32_t)f->inter;
    r->gated = has_gate(k->slices, MOEC_ROLE_ROUTED);
    *s = *r;
    r->limit = (float)limit;
    r->weight_on_input = k->b->family->run.weight_on_input;
    set_act(k, r);
    s->hidden = (uint32_t)f->hidden;
    s->inter = f->shared_width <= UINT32_MAX ? (uint32_t)f->shared_width : 0;
    s->limit = (float)shared_limit;
    if (f->shared_width == 0)
        return MOEC_OK;
    s->gated = has_gate(k->slices, MOEC_ROLE_SHARED);
    set_act(k, s);
    return MOEC_OK;
}

/* What a caller must do beside router and experts. */
static moec_status set_steps(maker *k)
{
    moec_moe_facts *f = k->out;
    bool norm;
    MOEC_TRY(number(k, MOEC_FACT_NORM_EPS, 0.0, &f->norm_eps));
    MOEC_TRY(moec_config_flag(k->b->config, MOEC_FACT_LATENT_NORM, true, &norm,
                              k->err));
    bool latent = k->b->config->expert_hidden != k->facts->hidden;
    if (!norm || !latent)
        f->latent_norm = MOEC_NO_TENSOR;
    if (latent &&
        (f->latent_in == MOEC_NO_TENSOR || f->latent_out == MOEC_NO_TENSOR))
        stop(k,
             "experts work on %ju features, and no tensors lead there and "
             "back",
             (uintmax_t)k->b->config->expert_hidden);
    if (k->b->family->run.input_rms && f->input_scale == MOEC_NO_TENSOR)
        stop(k, "the layer has no scale of the router's input");
    if (k->why.len != 0)
        return MOEC_OK;
    if (k->b->family->run.input_rms) {
        f->steps |= MOEC_STEP_ROUTER_NORM;
        stop(k, "the router sees a normalised input of its own");
    }
    if (latent) {
        f->steps |= MOEC_STEP_LATENT;
        stop(k, "experts work on %ju latent features",
             (uintmax_t)k->b->config->expert_hidden);
    }
    return MOEC_OK;
}

static moec_status make(maker *k)
{
    k->out->struct_bytes = sizeof(*k->out);
    find_tensors(k);
    MOEC_TRY(set_router(k));
    MOEC_TRY(set_experts(k));
    check_tensors(k);
    MOEC_TRY(set_steps(k));
    if (k->why.oom)
        return moec_fail_nomem(k->err, "facts of a layer");
    if (k->why.len == 0)
        return MOEC_OK;
    k->out->why_not = moec_arena_strdup(k->b->arena, k->why.data, k->why.len);
    return k->out->why_not != NULL
               ? MOEC_OK
               : moec_fail_nomem(k->err, "facts of a layer");
}

moec_status moec_build_moe_facts(const moec_build *b,
                                 const moec_found_layer *found,
                                 const moec_layer_slices *slices,
                                 const moec_facts *facts, moec_moe_facts *out,
                                 moec_error *err)
{
    maker k = {.b = b,
               .found = found,
               .slices = slices,
               .facts = facts,
               .out = out,
               .err = err};
    moec_status st = make(&k);
    moec_buf_fini(&k.why);
    return st;
}
