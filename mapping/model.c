/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A model: the facts of config.json, confirmed by the shard headers, and what
 * each tensor of the checkpoint is.
 *
 * Tensors are sorted by name, so all of a layer stand side by side: one pass
 * classifies them and cuts the table into layers. Refused: names inside the
 * expert name spaces that the family does not describe (T1), layers that the
 * config does not announce or that are not there (C07), and what slices.c
 * refuses of a layer.
 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "ckpt.h"

#include "build.h"

/* Use of a tensor in 8 bytes: K3 has half a million. */
typedef struct packed_use {
    uint32_t expert;
    uint32_t layer : 28;
    uint32_t role : 3;
    uint32_t is_mtp : 1;
} packed_use;
#define NO_LAYER ((1u << 28) - 1)

struct moec_model {
    const moec_ckpt *ckpt;
    moec_facts facts;
    size_t n_layers, n_main;
    moec_layer_slices *layers;
    moec_moe_facts *moe; /* by layer */
    packed_use *uses;
    const char *from[MOEC_FACT_COUNT]; /* where facts were found */
    moec_arena arena;
};

/* While the model is made. */
typedef struct maker {
    moec_model *m;
    moec_build b;
    moec_config config;
    size_t n_tensors;
    size_t n_found, cap_found;
    size_t n_mtp; /* MTP layers that the tensors number, dense ones too */
    moec_found_layer *found;
    uint8_t *moe; /* by decoder layer */
    moec_error *err;
} maker;

/* ------------------------------------------------------------ classify */

static moec_space space_of(const maker *k, uint32_t prefix, uint32_t layer)
{
    const moec_family *f = k->b.family;
    if (f->prefix_space[prefix] == MOEC_SPACE_MTP ||
        (f->mtp_after_main && layer >= k->config.facts.n_layers))
        return MOEC_SPACE_MTP;
    return MOEC_SPACE_MAIN;
}

static moec_status add_layer(maker *k, uint32_t prefix, uint32_t layer,
                             size_t tensor)
{
    if (!MOEC_GROW(k->found, k->n_found, k->cap_found))
        return moec_fail_nomem(k->err, "the layers of a model");
    moec_found_layer *l = &k->found[k->n_found++];
    l->key.space = space_of(k, prefix, layer);
    l->key.number = layer;
    if (l->key.space == MOEC_SPACE_MTP &&
        k->b.family->prefix_space[prefix] == MOEC_SPACE_MAIN)
        l->key.number -= k->config.facts.n_layers;
    l->number = layer;
    l->prefix = prefix;
    l->begin = tensor;
    l->end = tensor;
    return MOEC_OK;
}

/* True where a tensor outside of layers belongs to an MTP module. */
static bool in_mtp_module(const moec_family *f, const char *normalised)
{
    for (size_t i = 0; i < f->n_prefixes; i++)
        if (f->prefix_space[i] == MOEC_SPACE_MTP &&
            strncmp(normalised, f->prefix_module[i],
                    strlen(f->prefix_module[i])) == 0)
            return true;
    return false;
}

/* What a name says, before its neighbours are looked at. */
typedef struct name_place {
    uint32_t layer;
    uint16_t prefix;
    uint8_t what; /* moec_name_class */
    uint8_t in_mtp;
} name_place;

typedef struct name_job {
    maker *k;
    name_place *places; /* by tensor */
} name_job;

/* Tensors whose names one thread looks at, at a time. */
#define NAMES_A_PIECE ((size_t)8192)

static moec_status find_names(void *ctx, size_t piece, uint32_t worker,
                              moec_error *err)
{
    name_job *job = ctx;
    maker *k = job->k;
    size_t begin = piece * NAMES_A_PIECE, end = begin + NAMES_A_PIECE;
    moec_name_memo memo = {0};
    moec_norm norm;

    (void)worker;
    (void)err;
    for (size_t i = begin; i < end && i < k->n_tensors; i++) {
        const char *name = moec_ckpt_tensor(k->b.ckpt, i)->name;
        moec_name_found f =
            moec_names_recall(&k->b.family->names, &memo, name, &norm);
        name_place *p = &job->places[i];

        k->b.entries[i] = f.what == MOEC_NAME_KNOWN ? f.entry : MOEC_NO_ENTRY;
        k->b.experts[i] = f.expert;
        p->what = (uint8_t)f.what;
        p->prefix = (uint16_t)f.prefix;
        p->layer = f.layer;
        p->in_mtp =
            f.what == MOEC_NAME_OTHER && in_mtp_module(k->b.family, norm.text);
    }
    return MOEC_OK;
}

static moec_status refuse_name(const maker *k, size_t i, const name_place *p)
{
    const moec_tensor *t = moec_ckpt_tensor(k->b.ckpt, i);

    if (p->what == MOEC_NAME_STRANGE)
        return moec_fail(k->err, MOEC_E_MAPPING, MOEC_RULE_T1,
                         "tensor '%s' lies among the experts, and no pattern "
                         "of the family '%s' names it",
                         t->name, k->b.family->name);
    return moec_fail(k->err, MOEC_E_FORMAT, MOEC_RULE_H24,
                     "%s: tensor '%s' has a name that the converted form "
                     "keeps for its fillers",
                     moec_ckpt_file(k->b.ckpt, t->file)->name, t->name);
}

/* Classify tensor `i`; `run` is the layer that the one before it was in, or
 * SIZE_MAX, and becomes its own. */
static moec_status classify(maker *k, size_t i, const name_place *p,
                            size_t *run)
{
    packed_use *u = &k->m->uses[i];
    moec_found_layer *l;

    u->expert = k->b.experts[i];
    u->layer = NO_LAYER;
    if (p->what == MOEC_NAME_STRANGE ||
        (p->what == MOEC_NAME_OTHER &&
         strncmp(moec_ckpt_tensor(k->b.ckpt, i)->name, "__pad.", 6) == 0))
        return refuse_name(k, i, p);
    if (p->what == MOEC_NAME_OTHER) {
        /* The run goes on: a name with a number such as 007 may stand in the
         * middle of a layer's. */
        u->is_mtp = p->in_mtp & 1u;
        return MOEC_OK;
    }
    if (*run == SIZE_MAX || k->found[*run].prefix != p->prefix ||
        k->found[*run].number != p->layer) {
        MOEC_TRY(add_layer(k, p->prefix, p->layer, i));
        *run = k->n_found - 1;
    }
    l = &k->found[*run];
    l->end = i + 1;
    u->is_mtp = l->key.space == MOEC_SPACE_MTP;
    if (p->what == MOEC_NAME_KNOWN) {
        const moec_name_entry *e = &k->b.family->names.entries[k->b.entries[i]];
        uint16_t kind = e->kind[__builtin_ctz(e->variants)];

        u->role = k->b.family->kinds[kind].role & 7u;
    }
    return MOEC_OK;
}

static moec_status classify_all(maker *k)
{
    name_job job = {.k = k};
    moec_status st = MOEC_OK;
    size_t run = SIZE_MAX;

    job.places = moec_calloc(k->n_tensors + 1, sizeof(*job.places));
    if (job.places == NULL)
        return moec_fail_nomem(k->err, "the names of a model");
    st = moec_parallel(0, (size_t)moec_ceil_div(k->n_tensors, NAMES_A_PIECE),
                       find_names, &job, k->err);
    for (size_t i = 0; st == MOEC_OK && i < k->n_tensors; i++)
        st = classify(k, i, &job.places[i], &run);
    moec_free(job.places);
    return st;
}

/* -------------------------------------------------------------- layers */

static int by_key(const void *a, const void *b)
{
    const moec_found_layer *x = a, *y = b;
    if (x->key.space != y->key.space)
        return x->key.space < y->key.space ? -1 : 1;
    if (x->key.number != y->key.number)
        return x->key.number < y->key.number ? -1 : 1;
    return (x->begin > y->begin) - (x->begin < y->begin);
}

static bool has_experts(const maker *k, const moec_found_layer *l)
{
    for (size_t i = l->begin; i < l->end; i++)
        if (k->b.entries[i] != MOEC_NO_ENTRY)
            return true;
    return false;
}

/* As many decoder layers as the config says? From here on n_layers is a
 * number that the headers have, too. */
static moec_status check_n_layers(maker *k)
{
    uint32_t n = k->config.facts.n_layers, last = 0;
    bool any = false;
    for (size_t i = 0; i < k->n_found; i++) {
        const moec_found_layer *l = &k->found[i];
        if (l->key.space != MOEC_SPACE_MAIN)
            continue;
        if (!any || l->key.number > last)
            last = l->key.number;
        any = true;
    }
    if (!any)
        return moec_fail(k->err, MOEC_E_FORMAT, MOEC_RULE_C07,
                         "no tensor's name begins like a layer of the family "
                         "'%s' (%s)",
                         k->b.family->name, k->b.family->prefixes[0]);
    if (last + 1 != n || n > k->n_tensors)
        return moec_fail(k->err, MOEC_E_FORMAT, MOEC_RULE_C07,
                         CONFIG_NAME " has %u layers, the last one of the "
                                     "tensors is number %u",
                         n, last);
    return MOEC_OK;
}

/* Keep the layers with experts, sorted; a layer must have one place. */
static moec_status sort_layers(maker *k)
{
    size_t n = 0;
    qsort(k->found, k->n_found, sizeof(*k->found), by_key);
    for (size_t i = 0; i < k->n_found; i++)
        if (k->found[i].key.space == MOEC_SPACE_MTP &&
            k->found[i].key.number == k->n_mtp)
            k->n_mtp++;
    for (size_t i = 0; i < k->n_found; i++) {
        const moec_found_layer *l = &k->found[i];
        if (!has_experts(k, l))
            continue;
        if (n > 0 && k->found[n - 1].key.space == l->key.space &&
            k->found[n - 1].key.number == l->key.number)
            return moec_fail(
                k->err, MOEC_E_FORMAT, MOEC_RULE_C07,
                "%s stands twice: tensors '%s' and '%s'",
                moec_layer_say(l->key).s,
                moec_ckpt_tensor(k->b.ckpt, k->found[n - 1].begin)->name,
                moec_ckpt_tensor(k->b.ckpt, l->begin)->name);
        k->found[n++] = *l;
    }
    k->n_found = n;
    return MOEC_OK;
}

/* The MoE layers found are those that the config's rule gives. */
static moec_status check_main(maker *k, size_t *n_main)
{
    uint32_t n = k->config.facts.n_layers;
    size_t at = 0;
    k->moe = moec_alloc(n);
    if (k->moe == NULL)
        return moec_fail_nomem(k->err, "the layers of a model");
    MOEC_TRY(moec_config_moe_layers(&k->config, k->moe, k->err));
    for (uint32_t i = 0; i < n; i++) {
        bool found = at < k->n_found &&
                     k->found[at].key.space == MOEC_SPACE_MAIN &&
                     k->found[at].key.number == i;
        if (found != (k->moe[i] != 0))
            return moec_fail(k->err, MOEC_E_FORMAT, MOEC_RULE_C07,
                             "layer main %u is %s by " CONFIG_NAME
                             ", and %s by its tensors",
                             i, k->moe[i] ? "a MoE layer" : "dense",
                             found ? "a MoE layer" : "dense or absent");
        at += found;
    }
    *n_main = at;
    return MOEC_OK;
}

/* MTP layers may have been left out by whoever saved the model; those that
 * are there count from 0, and are no more than announced. Where nothing is
 * announced none of them may be missing: dense ones (Nemotron's attention
 * block) have numbers too. */
static moec_status check_mtp(maker *k, size_t n_main)
{
    for (size_t i = n_main; i < k->n_found; i++) {
        uint32_t number = k->found[i].key.number;
        bool good =
            number < (k->config.mtp_known ? k->config.mtp_layers : k->n_mtp);
        if (good)
            continue;
        return moec_fail(
            k->err, MOEC_E_FORMAT, MOEC_RULE_C07,
            "tensor '%s' is of MTP layer %u, " CONFIG_NAME " has %u%s",
            moec_ckpt_tensor(k->b.ckpt, k->found[i].begin)->name, number,
            k->config.mtp_known ? k->config.mtp_layers : (uint32_t)k->n_mtp,
            k->config.mtp_known ? "" : " before it");
    }
    return MOEC_OK;
}

static moec_status find_layers(maker *k)
{
    MOEC_TRY(check_n_layers(k));
    MOEC_TRY(sort_layers(k));
    MOEC_TRY(check_main(k, &k->m->n_main));
    MOEC_TRY(check_mtp(k, k->m->n_main));
    if (k->m->n_main == 0)
        return moec_fail(k->err, MOEC_E_FORMAT, MOEC_RULE_C07,
                         "the model has no MoE layer");
    k->m->n_layers = k->n_found;
    return MOEC_OK;
}

/* -------------------------------------------------------------- slices */

static moec_status make_scratch(maker *k)
{
    const moec_family *f = k->b.family;
    size_t largest = 0;
    for (size_t i = 0; i < k->n_found; i++) {
        size_t n = k->found[i].end - k->found[i].begin;
        if (n > largest)
            largest = n;
    }
    k->b.counts = moec_calloc(moec_family_n_groups(f) + 1, sizeof(uint32_t));
    k->b.members = moec_calloc(largest, sizeof(uint32_t));
    k->b.seen = moec_calloc(f->n_patterns + 1, 1);
    k->b.components = moec_arena_alloc(
        k->b.arena, (f->n_components + 1) * sizeof(char *), _Alignof(char *));
    if (k->b.counts == NULL || k->b.members == NULL || k->b.seen == NULL ||
        k->b.components == NULL)
        return moec_fail_nomem(k->err, "the layers of a model");
    for (size_t i = 0; i < f->n_components; i++) {
        const char *name = f->components[i];
        k->b.components[i] = moec_arena_strdup(k->b.arena, name, strlen(name));
        if (k->b.components[i] == NULL)
            return moec_fail_nomem(k->err, "the layers of a model");
    }
    return MOEC_OK;
}

/* Element type of the weights, and whether there is a gate. */
static void weights_facts(const moec_layer_slices *l, moec_facts *facts)
{
    for (size_t i = l->n_slices; i-- > 0;) {
        const moec_slice *s = &l->slices[i];
        if (s->role != MOEC_ROLE_ROUTED)
            continue;
        if (s->geometry == MOEC_GEO_MATRIX ||
            s->geometry == MOEC_GEO_MATRIX_KEPT)
            facts->expert_dtype = (moec_dtype)s->dtype;
        if (s->part == MOEC_PART_GATE || s->part == MOEC_PART_GATE_UP)
            facts->gated = 1;
    }
}

static moec_status make_layers(maker *k)
{
    moec_model *m = k->m;
    MOEC_TRY(make_scratch(k));
    m->layers = moec_calloc(m->n_layers, sizeof(*m->layers));
    if (m->layers == NULL)
        return moec_fail_nomem(k->err, "the layers of a model");
    for (size_t i = 0; i < m->n_layers; i++) {
        MOEC_TRY(moec_build_slices(&k->b, &k->found[i], &m->layers[i], k->err));
        for (size_t t = k->found[i].begin; t < k->found[i].end; t++) {
            m->uses[t].layer = (uint32_t)i & NO_LAYER;
            m->uses[t].is_mtp = k->found[i].key.space == MOEC_SPACE_MTP;
        }
    }
    weights_facts(&m->layers[0], &m->facts);
    MOEC_TRY(
        moec_decide_fusion(&k->b, m->layers, m->n_layers, &m->facts, k->err));
    m->moe = moec_calloc(m->n_layers, sizeof(*m->moe));
    if (m->moe == NULL)
        return moec_fail_nomem(k->err, "the layers of a model");
    for (size_t i = 0; i < m->n_layers; i++)
        MOEC_TRY(moec_build_moe_facts(&k->b, &k->found[i], &m->layers[i],
                                      &m->facts, &m->moe[i], k->err));
    return MOEC_OK;
}

/* -------------------------------------------------------- make and open */

static moec_status make(maker *k, const moec_families *families,
                        const char *config, size_t n)
{
    moec_model *m = k->m;
    k->n_tensors = moec_ckpt_n_tensors(m->ckpt);
    if (k->n_tensors >= NO_LAYER)
        return moec_fail(k->err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                         "the checkpoint has %zu tensors, at most %u are "
                         "supported",
                         k->n_tensors, NO_LAYER - 1);
    MOEC_TRY(
        moec_config_read(&k->config, families, config, n, &m->arena, k->err));
    m->facts = k->config.facts;
    for (int i = 0; i < MOEC_FACT_COUNT; i++)
        MOEC_TRY(moec_config_origin(&k->config, (moec_fact)i, &m->arena,
                                    &m->from[i], k->err));
    k->b.ckpt = m->ckpt;
    k->b.family = k->config.family;
    k->b.config = &k->config;
    k->b.arena = &m->arena;
    m->uses = moec_calloc(k->n_tensors + 1, sizeof(*m->uses));
    k->b.entries = moec_calloc(k->n_tensors + 1, sizeof(uint32_t));
    k->b.experts = moec_calloc(k->n_tensors + 1, sizeof(uint32_t));
    if (m->uses == NULL || k->b.entries == NULL || k->b.experts == NULL)
        return moec_fail_nomem(k->err, "the uses of tensors");
    MOEC_TRY(classify_all(k));
    MOEC_TRY(find_layers(k));
    return make_layers(k);
}

moec_status moec_model_create(moec_model **out, const moec_ckpt *ckpt,
                              const moec_families *families, const char *config,
                              size_t n, moec_error *err)
{
    maker k = {.err = err};
    if (out == NULL || ckpt == NULL || families == NULL || config == NULL)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "moec_model_create: no argument but err may be "
                         "NULL");
    k.m = moec_calloc(1, sizeof(*k.m));
    if (k.m == NULL)
        return moec_fail_nomem(err, "a model");
    k.m->ckpt = ckpt;
    moec_status st = make(&k, families, config, n);
    moec_config_fini(&k.config);
    moec_free(k.b.entries);
    moec_free(k.b.experts);
    moec_free(k.b.counts);
    moec_free(k.b.members);
    moec_free(k.b.seen);
    moec_free(k.found);
    moec_free(k.moe);
    if (st != MOEC_OK) {
        moec_model_destroy(k.m);
        return st;
    }
    *out = k.m;
    return MOEC_OK;
}

moec_status moec_model_open(moec_model **out, const moec_ckpt *ckpt,
                            const moec_families *families, moec_error *err)
{
    moec_buf text = {0};
    moec_error local = MOEC_ERROR_INIT;
    moec_status st = moec_ckpt_read_extra(ckpt, CONFIG_NAME,
                                          MOEC_JSON_BYTES_MAX, &text, &local);
    if (st == MOEC_E_IO && local.os_errno == ENOENT) {
        /* Mistral's own releases. Its facts stand under "moe". */
        local = (moec_error)MOEC_ERROR_INIT;
        st = moec_ckpt_read_extra(ckpt, PARAMS_NAME, MOEC_JSON_BYTES_MAX, &text,
                                  &local);
    }
    if (st == MOEC_E_IO && local.os_errno == ENOENT)
        st = moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_C01,
                       "%s has no " CONFIG_NAME, moec_ckpt_dir(ckpt));
    else
        (void)moec_hand_on(err, st, &local);
    if (st == MOEC_OK)
        st = moec_model_create(out, ckpt, families,
                               text.data != NULL ? text.data : "", text.len,
                               err);
    moec_buf_fini(&text);
    return st;
}

void moec_model_destroy(moec_model *model)
{
    if (model == NULL)
        return;
    moec_free(model->layers);
    moec_free(model->moe);
    moec_free(model->uses);
    moec_arena_fini(&model->arena);
    moec_free(model);
}

/* ----------------------------------------------------------- questions */

const char *moec_shared_kind_name(moec_shared_kind kind)
{
    switch (kind) {
    case MOEC_SHARED_NONE:
        return "none";
    case MOEC_SHARED_PLAIN:
        return "plain";
    case MOEC_SHARED_SIGMOID:
        return "sigmoid";
    case MOEC_SHARED_ROUTER:
        break;
    }
    return "router";
}

const char *moec_model_origin(const moec_model *model, uint32_t fact)
{
    return model->from[fact];
}

const moec_facts *moec_model_facts(const moec_model *model)
{
    return &model->facts;
}

const moec_ckpt *moec_model_ckpt(const moec_model *model)
{
    return model->ckpt;
}

size_t moec_model_n_layers(const moec_model *model)
{
    return model->n_layers;
}

const moec_moe_layer *moec_model_layer(const moec_model *model, size_t i)
{
    return &model->layers[i].layer;
}

moec_status moec_model_moe(const moec_model *model, size_t layer,
                           moec_moe_facts *out, moec_error *err)
{
    if (layer >= model->n_layers)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "moec_model_moe: there is no MoE layer %zu of %zu",
                         layer, model->n_layers);
    *out = model->moe[layer];
    return MOEC_OK;
}

const moec_layer_slices *moec_model_slices(const moec_model *model, size_t i)
{
    return &model->layers[i];
}

uint32_t moec_model_find_layer(const moec_model *model, moec_layer_key key)
{
    bool mtp = key.space == MOEC_SPACE_MTP;
    size_t low = mtp ? model->n_main : 0;
    size_t high = mtp ? model->n_layers : model->n_main;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        uint32_t number = model->layers[middle].layer.key.number;
        if (number == key.number)
            return (uint32_t)middle;
        if (number < key.number)
            low = middle + 1;
        else
            high = middle;
    }
    return MOEC_NO_LAYER;
}

moec_tensor_use moec_model_use(const moec_model *model, size_t tensor)
{
    const packed_use *p = &model->uses[tensor];
    moec_tensor_use u = {(moec_role)p->role, p->layer, p->expert, p->is_mtp};
    if (p->layer == NO_LAYER)
        u.layer = MOEC_NO_LAYER;
    return u;
}
