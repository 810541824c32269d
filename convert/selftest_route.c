/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The self-test of choice: routing.json with its tensors, and Expert Choice.
 * A case becomes a moec_route_config; what the documented keys cannot say
 * (floors, softcaps, the sparse mixer, joint normalisation, scales) is
 * understood under the names that models' configs use.
 */
#include <ctype.h>
#include <float.h>
#include <math.h>
#include <string.h>

#include "device_calls.h"
#include "selftest_parts.h"

/* -------------------------------------------------------------- words */

/* Does one of "a|b|c" stand in `word`, but for case and what is no letter or
 * digit? `whole`: as all of it. */
static bool mentions(const char *word, const char *words, bool whole)
{
    char plain[64];
    size_t n = 0;

    for (; *word && n < sizeof(plain) - 1; word++)
        if (isalnum((unsigned char)*word))
            plain[n++] = (char)tolower((unsigned char)*word);
    plain[n] = '\0';
    for (;; words++) {
        char one[32];
        size_t len = strcspn(words, "|");

        memcpy(one, words, len);
        one[len] = '\0';
        if (whole ? strcmp(plain, one) == 0 : strstr(plain, one) != NULL)
            return true;
        words += len;
        if (*words == '\0')
            return false;
    }
}

static bool is_word(const char *word, const char *words)
{
    return mentions(word, words, true);
}

static bool read_score(const char *word, moec_score *out)
{
    static const char *const words[] = {
        [MOEC_SCORE_SOFTMAX] = "softmax",
        [MOEC_SCORE_SIGMOID] = "sigmoid",
        [MOEC_SCORE_SQRT_SOFTPLUS] = "sqrtsoftplus",
        [MOEC_SCORE_LOGIT] = "logit|logits|none|identity|linear|raw"};

    for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
        if (!is_word(word, words[i]))
            continue;
        *out = (moec_score)i;
        return true;
    }
    return false;
}

/* What a variant says beyond its other keys. The shared vectors name nine;
 * of others the part that tells them apart is enough, whatever stands round
 * it. */
static bool read_variant(const char *word, moec_route_config *c)
{
    if (mentions(word, "hash", false)) {
        c->choice = MOEC_CHOICE_HASH;
    } else if (mentions(word, "mixer|phimoe", false)) {
        c->choice = MOEC_CHOICE_SPARSE_MIXER;
        c->score = MOEC_SCORE_LOGIT;
    } else if (mentions(word, "oninput|top1sigmoid|llama4", false)) {
        c->score = MOEC_SCORE_SIGMOID;
    } else if (mentions(word,
                        "topksoftmax|thensoftmax|softmaxafter|softmaxover|"
                        "softmaxtopkonly",
                        false)) {
        c->norm = MOEC_NORM_SOFTMAX;
    } else if (mentions(word, "joint|inkling", false)) {
        c->norm = MOEC_NORM_JOINT;
    } else if (mentions(word, "floor|normmin", false)) {
        c->norm = MOEC_NORM_FLOOR;
    } else if (mentions(word, "pnorm|normp", false)) {
        c->norm = MOEC_NORM_P;
        c->norm_arg = 1.0f;
    } else {
        return mentions(word,
                        "plain|topk|soft|sigmoid|bias|group|zero|scale|gate|"
                        "noaux|norm",
                        false);
    }
    return true;
}

/* ------------------------------------------------------ configuration */

/* A case: its configuration and inputs. */
typedef struct route_case {
    const char *id;
    moec_route_config cfg;
    moec_route_in in;
    uint32_t n_all; /* E + Z: the E of the file */
    bool wants_bias;
    bool renormalise;
    int32_t *ids;
    double *weights; /* NULL: not compared */
} route_case;

#define RENORMALISE "renormalize|norm_topk_prob|normalize"
#define N_MAX       65536u /* experts, columns: kernels refuse less */

static moec_status read_sizes(moec_self *s, const moec_json *c, route_case *x,
                              moec_error *err)
{
    moec_route_config *g = &x->cfg;
    uint32_t groups = 1;

    (void)s;
    MOEC_TRY(moec_json_get_u32(c, "E", N_MAX, &x->n_all, err));
    MOEC_TRY(moec_json_get_u32(c, "K", N_MAX, &g->top_k, err));
    MOEC_TRY(moec_json_get_u32(c, "T", UINT32_MAX / 2, &x->in.n_tokens, err));
    x->in.n_valid = x->in.n_tokens;
    MOEC_TRY(moec_vec_opt_u32(c, "non_padded|n_valid", x->in.n_tokens,
                              &x->in.n_valid, err));
    MOEC_TRY(moec_vec_opt_u32(c, "S|n_shared", N_MAX, &g->n_shared, err));
    MOEC_TRY(moec_vec_opt_u32(c, "groups|n_group", N_MAX, &groups, err));
    g->n_group = groups;
    g->topk_group = groups;
    MOEC_TRY(moec_vec_opt_u32(c, "topk_group", N_MAX, &g->topk_group, err));
    MOEC_TRY(moec_vec_opt_u32(c, "zero_experts|Z|n_zero|zero_expert_num",
                              x->n_all, &g->n_zero, err));
    g->n_experts = x->n_all - g->n_zero;
    MOEC_TRY(moec_vec_opt_u32(c, "n_shared_logits|shared_logits", N_MAX,
                              &g->n_shared_logits, err));
    return moec_vec_opt_u32(c, "shared_ranks", 1024, &g->shared_ranks, err);
}

/* Which rule of normalisation the keys name, in the order of their weight: a
 * key that says how stands above `renormalize`, which says that. */
static moec_status read_norm(moec_self *s, const moec_json *c, route_case *x,
                             moec_error *err)
{
    static const char *const names[] = {
        [MOEC_NORM_NONE] = "none",       [MOEC_NORM_SUM] = "sum",
        [MOEC_NORM_FLOOR] = "floor|max", [MOEC_NORM_P] = "p|pnorm",
        [MOEC_NORM_SOFTMAX] = "softmax", [MOEC_NORM_JOINT] = "joint"};
    const char floors[] = "norm_min|moe_norm_min|norm_floor|floor|min_sum";
    const char powers[] = "p|norm_p|p_norm|moe_normalize_expert_weights|"
                          "normalize_p|p_value";
    moec_route_config *g = &x->cfg;
    const char *word;
    bool joint = false;

    if (g->norm == MOEC_NORM_NONE && x->renormalise)
        g->norm = MOEC_NORM_SUM;
    if (moec_vec_key(c, floors) && x->renormalise)
        g->norm = MOEC_NORM_FLOOR;
    if (moec_vec_key(c, powers))
        g->norm = MOEC_NORM_P;
    MOEC_TRY(moec_vec_opt_bool(c, "joint", &joint, err));
    if (joint)
        g->norm = MOEC_NORM_JOINT;
    MOEC_TRY(moec_vec_opt_text(c, "norm", &word, err));
    for (size_t i = 0; word && i < sizeof(names) / sizeof(names[0]); i++)
        if (is_word(word, names[i]))
            g->norm = (moec_route_norm)i;
    MOEC_TRY(moec_vec_opt_f32(c, "norm_arg", &g->norm_arg, err));
    if (g->norm == MOEC_NORM_FLOOR)
        MOEC_TRY(moec_vec_opt_f32(c, floors, &g->norm_arg, err));
    if (g->norm == MOEC_NORM_P)
        MOEC_TRY(moec_vec_opt_f32(c, powers, &g->norm_arg, err));
    if (g->norm == MOEC_NORM_JOINT) {
        g->shared_kind = MOEC_SHARED_ROUTER;
        if (g->n_shared_logits == 0)
            g->n_shared_logits = g->n_shared;
    }
    (void)s;
    return MOEC_OK;
}

static moec_status read_scale(const moec_json *c, moec_route_config *g,
                              moec_error *err)
{
    bool on_weights = false;
    float more = 1.0f;
    const char *where;

    MOEC_TRY(moec_vec_opt_f32(c, "rsf|route_scale|routed_scaling_factor",
                              &g->rsf, err));
    MOEC_TRY(moec_vec_opt_f32(c, "global_scale", &more, err));
    g->rsf *= more;
    MOEC_TRY(
        moec_vec_opt_bool(c, "rsf_on_weights|rsf_folded", &on_weights, err));
    MOEC_TRY(moec_vec_opt_text(c, "rsf_on", &where, err));
    if (on_weights || (where && is_word(where, "weights|weight")))
        g->rsf_on = MOEC_RSF_ON_WEIGHTS;
    MOEC_TRY(moec_vec_opt_f32(c,
                              "softcap|soft_cap|logit_softcap|softcapping|"
                              "logit_softcapping|router_logit_softcapping|"
                              "router_softcap|cap",
                              &g->softcap, err));
    return moec_vec_opt_f32(c,
                            "mixer_eps|jitter_eps|router_jitter_noise|"
                            "jitter_noise|jitter|eps",
                            &g->mixer_eps, err);
}

static moec_status read_words(moec_self *s, const moec_json *c, route_case *x,
                              moec_error *err)
{
    moec_route_config *g = &x->cfg;
    const char *variant, *scoring, *group, *choice;

    MOEC_TRY(moec_json_get_string(c, "scoring", &scoring, err));
    if (!read_score(scoring, &g->score) && !read_variant(scoring, g))
        moec_self_skip(s, "scoring '%s' is not known", scoring);
    MOEC_TRY(moec_vec_opt_text(c, "variant", &variant, err));
    if (variant && !read_variant(variant, g))
        moec_self_skip(s, "variant '%s' is not known", variant);
    MOEC_TRY(moec_vec_opt_text(c, "choice", &choice, err));
    if (choice && !read_variant(choice, g))
        moec_self_skip(s, "choice '%s' is not known", choice);
    /* With a bias groups score by their best two, else by their best one. */
    g->group_score =
        x->wants_bias || (variant && is_word(variant, "biasedgrouped|noauxtc"))
            ? MOEC_GROUP_TOP2
            : MOEC_GROUP_MAX;
    MOEC_TRY(moec_vec_opt_text(c, "group_score", &group, err));
    if (group)
        g->group_score = is_word(group, "top2|sum2|toptwo|top2sum")
                             ? MOEC_GROUP_TOP2
                             : MOEC_GROUP_MAX;
    return MOEC_OK;
}

static moec_status read_config(moec_self *s, const moec_json *c, route_case *x,
                               moec_error *err)
{
    *x = (route_case){.cfg = MOEC_ROUTE_CONFIG_INIT, .in = MOEC_ROUTE_IN_INIT};
    x->renormalise = true;
    MOEC_TRY(moec_json_get_string(c, "id", &x->id, err));
    MOEC_TRY(read_sizes(s, c, x, err));
    if (json_is_array(moec_json_member(c, "bias").value))
        x->wants_bias = true;
    else
        MOEC_TRY(moec_vec_opt_bool(c, "bias", &x->wants_bias, err));
    MOEC_TRY(read_words(s, c, x, err));
    MOEC_TRY(moec_vec_opt_bool(c, RENORMALISE, &x->renormalise, err));
    MOEC_TRY(read_norm(s, c, x, err));
    return read_scale(c, &x->cfg, err);
}

/* ----------------------------------------------------------- one call */

/* The arrays that a call writes, and what it needs to write them. */
typedef struct route_room {
    moec_route_out out;
    moec_ec_stats ec;
    void *workspace;
    uint64_t workspace_bytes;
} route_room;

/* Outputs begin as what no kernel writes: what is left out shows. */
static moec_status make_room(const moec_router *r, const route_case *x,
                             moec_arena *arena, route_room *out,
                             moec_error *err)
{
    uint64_t n = (uint64_t)x->in.n_tokens * (x->cfg.top_k + x->cfg.n_shared);

    *out = (route_room){.out = {.struct_bytes = sizeof(moec_route_out)}};
    out->workspace_bytes = moec_route_workspace_bytes(r, x->in.n_tokens);
    MOEC_TRY(
        moec_vec_room(arena, out->workspace_bytes, 1, &out->workspace, err));
    MOEC_TRY(moec_vec_room(arena, n, 4, &out->out.ids, err));
    MOEC_TRY(moec_vec_room(arena, n, 4, &out->out.weights, err));
    for (uint64_t i = 0; i < n; i++) {
        out->out.ids[i] = -77;
        out->out.weights[i] = NAN;
    }
    return MOEC_OK;
}

/* Route on one back end; room->out has the answer where *ran. */
static moec_status route(moec_self *s, const moec_kernels *k,
                         const route_case *x, route_room *room, bool *ran,
                         moec_error *err)
{
    moec_error got = MOEC_ERROR_INIT;
    moec_router *r = NULL;
    moec_status st;

    *ran = false;
    st = moec_router_create(&r, k, &x->cfg, &got);
    if (st != MOEC_OK)
        return moec_self_refused(s, k, st, &got, err);
    st = make_room(r, x, s->arena, room, err);
    if (st != MOEC_OK)
        goto destroy;
    room->out.ec = &room->ec;
    if (s->opts->device)
        st = moec_on_device_route(s->opts->device, r, &x->in, &room->out, &got);
    else
        st = moec_route(r, &x->in, &room->out, room->workspace,
                        room->workspace_bytes, &got);
    *ran = st == MOEC_OK;
    if (st != MOEC_OK)
        st = moec_self_refused(s, k, st, &got, err);
destroy:
    moec_router_destroy(r);
    return st;
}

/* ------------------------------------------------------------- routing */

static moec_status must_have(moec_self *s, const char *id, const char *names,
                             const moec_tensor **out, moec_error *err)
{
    *out = moec_vec_find(s->tensors, id, names);
    if (*out)
        return MOEC_OK;
    return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_V01,
                     "%s: tensor '%s.%.*s' is missing", s->tensors->name, id,
                     (int)strcspn(names, "|"), names);
}

/* A [n] tensor of float32, NULL where there is none. */
static moec_status opt_floats(moec_self *s, const char *id, const char *names,
                              uint64_t n, const float **out, moec_error *err)
{
    const moec_tensor *t = moec_vec_find(s->tensors, id, names);
    float *v = NULL;

    *out = NULL;
    if (!t)
        return MOEC_OK;
    MOEC_TRY(moec_vec_want_shape(s->tensors, t, UINT64_MAX, n, err));
    MOEC_TRY(moec_vec_tensor_f32(s->tensors, t, s->arena, &v, err));
    *out = v;
    return MOEC_OK;
}

/* [T][E], with the columns of shared logits behind them, here or in a tensor
 * of their own. */
static moec_status read_logits(moec_self *s, const moec_json *c, route_case *x,
                               moec_error *err)
{
    const moec_tensor *t, *more;
    uint64_t n_shared = x->cfg.n_shared_logits, rows = x->in.n_tokens;
    uint64_t bytes, width = x->n_all * UINT64_C(1);
    const char *dtype;
    uint8_t *a = NULL, *b = NULL, *both = NULL;

    MOEC_TRY(must_have(s, x->id, "logits", &t, err));
    more = moec_vec_find(s->tensors, x->id, "shared_logits|logits_shared");
    MOEC_TRY(moec_vec_opt_text(c, "dtype", &dtype, err));
    if (dtype && moec_dtype_parse(dtype, strlen(dtype)) != t->dtype)
        return moec_json_fail(c, MOEC_RULE_V01, err,
                              "dtype is '%s', tensor '%s' is %s", dtype,
                              t->name, moec_dtype_name((moec_dtype)t->dtype));
    if (t->dtype != MOEC_DTYPE_F32 && t->dtype != MOEC_DTYPE_BF16 &&
        t->dtype != MOEC_DTYPE_F16)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_V01,
                         "%s: tensor '%s' is no F32, BF16 or F16",
                         s->tensors->name, t->name);
    x->in.logits_dtype = (moec_dtype)t->dtype;
    if (!more)
        width += n_shared;
    MOEC_TRY(moec_vec_want_shape(s->tensors, t, rows, width, err));
    MOEC_TRY(moec_vec_bytes(s->tensors, t, s->arena, &a, err));
    x->in.logits = a;
    if (!more)
        return MOEC_OK;
    MOEC_TRY(moec_vec_want_shape(s->tensors, more, rows, n_shared, err));
    if (more->dtype != t->dtype)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_V01,
                         "%s: tensors '%s' and '%s' differ in dtype",
                         s->tensors->name, t->name, more->name);
    bytes = t->dtype == MOEC_DTYPE_F32 ? 4 : 2;
    MOEC_TRY(moec_vec_bytes(s->tensors, more, s->arena, &b, err));
    MOEC_TRY(
        moec_vec_room(s->arena, rows * (width + n_shared), bytes, &both, err));
    for (uint64_t i = 0; i < rows; i++) {
        uint8_t *to = both + i * (width + n_shared) * bytes;

        memcpy(to, a + i * width * bytes, width * bytes);
        memcpy(to + width * bytes, b + i * n_shared * bytes, n_shared * bytes);
    }
    x->in.logits = both;
    return MOEC_OK;
}

static moec_status read_hash(moec_self *s, route_case *x, moec_error *err)
{
    const moec_tensor *table, *tokens;
    int32_t *a = NULL, *b = NULL;

    if (x->cfg.choice != MOEC_CHOICE_HASH)
        return MOEC_OK;
    MOEC_TRY(must_have(s, x->id, "tid2eid|hash_table", &table, err));
    MOEC_TRY(must_have(s, x->id, "tokens", &tokens, err));
    MOEC_TRY(moec_vec_want_shape(s->tensors, table,
                                 table->rank == 2 ? table->shape[0] : 0,
                                 x->cfg.top_k, err));
    MOEC_TRY(moec_vec_want_shape(s->tensors, tokens, UINT64_MAX, x->in.n_tokens,
                                 err));
    MOEC_TRY(moec_vec_tensor_i32(s->tensors, table, s->arena, &a, err));
    MOEC_TRY(moec_vec_tensor_i32(s->tensors, tokens, s->arena, &b, err));
    x->in.hash_table = a;
    x->in.tokens = b;
    x->in.vocab = (uint32_t)moec_min_u64(table->shape[0], UINT32_MAX);
    return MOEC_OK;
}

static moec_status read_inputs(moec_self *s, const moec_json *c, route_case *x,
                               moec_error *err)
{
    const moec_tensor *t;
    int32_t *forced = NULL;

    MOEC_TRY(read_logits(s, c, x, err));
    MOEC_TRY(read_hash(s, x, err));
    if (x->wants_bias) {
        MOEC_TRY(opt_floats(s, x->id,
                            "bias|correction_bias|e_score_correction_bias",
                            x->n_all, &x->in.bias, err));
        if (!x->in.bias)
            return must_have(s, x->id, "bias", &t, err);
    }
    MOEC_TRY(opt_floats(s, x->id, "expert_scale|per_expert_scale|scale",
                        x->cfg.n_experts, &x->in.expert_scale, err));
    MOEC_TRY(opt_floats(s, x->id, "shared_gate|gate", x->in.n_tokens,
                        &x->in.shared_gate, err));
    if (x->in.shared_gate)
        x->cfg.shared_kind = MOEC_SHARED_SIGMOID;
    t = moec_vec_find(s->tensors, x->id, "forced_ids");
    if (!t)
        return MOEC_OK;
    MOEC_TRY(
        moec_vec_want_shape(s->tensors, t, x->in.n_tokens, x->cfg.top_k, err));
    MOEC_TRY(moec_vec_tensor_i32(s->tensors, t, s->arena, &forced, err));
    x->in.forced_ids = forced;
    return MOEC_OK;
}

/* What float32 leaves open beyond a formula's last bits: a sum of K numbers in
 * rank order, and a softcap, whose logit is up to `softcap` large and half an
 * ulp off, as is, relatively, e to the power of it. */
static double tolerance_of(const route_case *x)
{
    double steps = fmax(x->cfg.top_k + 8.0, 4.0 * (double)x->cfg.softcap);

    return fmax(MOEC_SELFTEST_TOLERANCE, steps * (double)FLT_EPSILON / 2.0);
}

/* `exact` is the same formula in float64 and judges; else `weights`. */
static moec_status read_expected(moec_self *s, route_case *x, moec_error *err)
{
    uint64_t cols = x->cfg.top_k + (uint64_t)x->cfg.n_shared;
    const moec_tensor *t;

    MOEC_TRY(must_have(s, x->id, "ids", &t, err));
    MOEC_TRY(moec_vec_want_shape(s->tensors, t, x->in.n_tokens, cols, err));
    MOEC_TRY(moec_vec_tensor_i32(s->tensors, t, s->arena, &x->ids, err));
    MOEC_TRY(must_have(s, x->id, "exact|weights", &t, err));
    MOEC_TRY(moec_vec_want_shape(s->tensors, t, x->in.n_tokens, cols, err));
    return moec_vec_tensor_f64(s->tensors, t, s->arena, &x->weights, err);
}

moec_status moec_self_routing(moec_self *s, const moec_json *c, moec_error *err)
{
    route_case x;
    uint32_t cols;

    if (!moec_vec_key(c, RENORMALISE "|norm")) {
        bool there;

        return moec_json_get_bool(c, "renormalize", &there, err);
    }
    MOEC_TRY(read_config(s, c, &x, err));
    if (s->result != MOEC_CASE_PASSED)
        return MOEC_OK;
    MOEC_TRY(read_inputs(s, c, &x, err));
    MOEC_TRY(read_expected(s, &x, err));
    cols = x.cfg.top_k + x.cfg.n_shared;
    for (size_t i = 0; i < s->opts->n_backends; i++) {
        const moec_kernels *k = s->opts->backends[i];
        route_room room;
        bool ran;

        MOEC_TRY(route(s, k, &x, &room, &ran, err));
        if (!ran || !moec_self_same_ids(s, k, "id", room.out.ids, x.ids,
                                        x.in.n_tokens, cols))
            return MOEC_OK;
        if (!moec_self_same_weights(s, k, room.out.weights, x.weights, x.ids,
                                    x.in.n_tokens, cols, tolerance_of(&x)))
            return MOEC_OK;
    }
    return MOEC_OK;
}

/* ------------------------------------------------------- expert choice */

typedef struct ec_mode {
    const char *words; /* of the file */
    moec_ec_fill fill;
    bool hard; /* capacity is C_hard */
} ec_mode;

static const ec_mode ec_modes[] = {
    {"fillmissing", MOEC_EC_FILL_MISSING, false},
    {"fullrow", MOEC_EC_FULL_ROW, false},
    {"pad", MOEC_EC_PAD, true},
    {"balanced", MOEC_EC_BALANCED, true},
};

/* The rows of a mode; a string names the mode that has the same. */
static moec_status ec_rows(moec_self *s, const moec_json *ids, const char *mode,
                           const route_case *x, int32_t **out, moec_error *err)
{
    const uint32_t dims[] = {x->in.n_tokens, x->cfg.top_k};
    moec_json v = moec_json_member(ids, mode);

    for (int i = 0; i < 4 && json_is_string(v.value); i++)
        v = moec_json_member(ids, json_string_value(v.value));
    return moec_vec_i32_of(&v, dims, 2, s->arena, out, err);
}

static moec_status ec_capacities(const moec_json *c, uint32_t out[2],
                                 moec_error *err)
{
    MOEC_TRY(moec_json_get_u32(c, "C", UINT32_MAX, &out[0], err));
    out[1] = out[0];
    return moec_vec_opt_u32(c, "C_hard", UINT32_MAX, &out[1], err);
}

/* One mode on all back ends. */
static moec_status ec_run(moec_self *s, const moec_json *c, route_case *x,
                          const ec_mode *mode, const char *name,
                          moec_error *err)
{
    uint32_t want[2], c_now, n_short = UINT32_MAX;

    MOEC_TRY(ec_capacities(c, want, err));
    MOEC_TRY(moec_vec_opt_u32(c, "short_tokens", UINT32_MAX, &n_short, err));
    x->cfg.ec.fill = mode->fill;
    c_now = moec_ec_capacity(&x->cfg, x->in.n_valid);
    if (c_now != want[mode->hard])
        moec_self_differs(s, NULL, "%s: capacity %u, must be %u", name, c_now,
                          want[mode->hard]);
    for (size_t i = 0; i < s->opts->n_backends; i++) {
        const moec_kernels *k = s->opts->backends[i];
        route_room room;
        bool ran;

        MOEC_TRY(route(s, k, x, &room, &ran, err));
        if (!ran || !moec_self_same_ids(s, k, name, room.out.ids, x->ids,
                                        x->in.n_tokens, x->cfg.top_k))
            return MOEC_OK;
        if (!mode->hard && n_short != UINT32_MAX &&
            room.ec.short_tokens != n_short)
            moec_self_differs(s, k, "%s: %ju short tokens, must be %u", name,
                              (uintmax_t)room.ec.short_tokens, n_short);
    }
    return MOEC_OK;
}

static moec_status ec_arrays(moec_self *s, const moec_json *c, route_case *x,
                             moec_error *err)
{
    const uint32_t dims[] = {x->in.n_tokens, x->n_all};
    float *logits = NULL, *bias = NULL;

    MOEC_TRY(moec_vec_f32(c, "logits", dims, 2, s->arena, &logits, err));
    x->in.logits = logits;
    if (!x->wants_bias)
        return MOEC_OK;
    MOEC_TRY(moec_vec_f32(c, "bias", dims + 1, 1, s->arena, &bias, err));
    x->in.bias = bias;
    return MOEC_OK;
}

moec_status moec_self_expert_choice(moec_self *s, const moec_json *c,
                                    moec_error *err)
{
    route_case x;
    moec_json ids;
    size_t n_known = 0;

    MOEC_TRY(read_config(s, c, &x, err));
    MOEC_TRY(moec_json_get_u32(c, "capacity_ppm", UINT32_MAX,
                               &x.cfg.ec.capacity_ppm, err));
    x.cfg.ec.mode = MOEC_EC_ON;
    MOEC_TRY(ec_arrays(s, c, &x, err));
    MOEC_TRY(moec_json_get_object(c, "ids", &ids, err));
    for (void *it = json_object_iter(ids.value); it;
         it = json_object_iter_next(ids.value, it)) {
        const char *name = json_object_iter_key(it);

        for (size_t m = 0; m < sizeof(ec_modes) / sizeof(ec_modes[0]); m++) {
            if (!is_word(name, ec_modes[m].words))
                continue;
            n_known++;
            MOEC_TRY(ec_rows(s, &ids, name, &x, &x.ids, err));
            MOEC_TRY(ec_run(s, c, &x, &ec_modes[m], name, err));
        }
    }
    if (n_known < moec_json_len(&ids))
        moec_self_skip(s, "a mode of 'ids' is not known");
    return MOEC_OK;
}
