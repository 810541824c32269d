/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A converted checkpoint opened as what it is: the source's tensor table (from
 * the headers in sources.bin), its model, and the plan and layout that made
 * the directory, decided once more by this program. What the manifest says
 * must be what comes out: where they differ, this program and the one that
 * converted disagree about the bytes, and nothing may be read by either's
 * word (M01).
 */

#include <inttypes.h>
#include <string.h>

#include "ckpt.h"
#include "conversion.h"

#define CONFIG_NAME "config.json"
#define PARAMS_NAME "params.json" /* Mistral's, where there is no config.json */

struct moec_conversion {
    moec_converted files;
    moec_ckpt *ckpt; /* headers alone */
    moec_model *model;
    moec_placement *placement;
    moec_plan *plan;
    moec_layout *layout;
};

/* ------------------------------------------------------------- the parts */

static moec_status make_ckpt(moec_conversion *c, moec_error *err)
{
    const moec_sources *s = &c->files.sources;
    moec_header_blob *blobs = moec_calloc(s->n_entries + 1, sizeof(*blobs));
    size_t n = 0;
    moec_status st;

    if (blobs == NULL)
        return moec_fail_nomem(err, "headers of the source");
    for (size_t i = 0; i < s->n_entries; i++) {
        const moec_source_entry *e = &s->entries[i];
        if (e->kind != MOEC_SRC_SHARD)
            continue;
        blobs[n].name = e->name;
        blobs[n].data = e->data;
        blobs[n].data_bytes = e->data_bytes;
        blobs[n++].file_bytes = e->file_bytes;
    }
    st = moec_ckpt_from_headers(&c->ckpt, c->files.dir, blobs, n, err);
    moec_free(blobs);
    return st;
}

static const moec_mf_copied *find_copied(const moec_manifest *m,
                                         const char *name)
{
    for (size_t i = 0; i < m->n_copied; i++)
        if (strcmp(m->copied[i].name, name) == 0)
            return &m->copied[i];
    return NULL;
}

/* config.json as the manifest has it: a changed one is another model. */
static moec_status read_config(const moec_conversion *c, moec_buf *out,
                               moec_error *err)
{
    const moec_manifest *m = &c->files.manifest;
    const moec_mf_copied *want = find_copied(m, CONFIG_NAME);

    if (want == NULL)
        want = find_copied(m, PARAMS_NAME);
    if (want == NULL || want->bytes > MOEC_JSON_BYTES_MAX)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_M01,
                         "%s/%s: copied: no %s", c->files.dir,
                         MOEC_MANIFEST_NAME, CONFIG_NAME);
    moec_status st =
        moec_converted_copied(&c->files, want, MOEC_RULE_M08, out, err);
    if (st != MOEC_OK)
        moec_error_prefix(err, "%s", c->files.dir);
    return st;
}

/* Built-in families and the description that the conversion was made with. */
static moec_status own_families(const moec_manifest *m, moec_families **out,
                                moec_error *err)
{
    moec_status st = moec_families_create(out, err);

    if (st != MOEC_OK || m->family_text == NULL)
        return st;
    st = moec_families_add(*out, MOEC_MANIFEST_NAME, m->family_text,
                           strlen(m->family_text), err);
    if (st != MOEC_OK) {
        moec_families_destroy(*out);
        *out = NULL;
    }
    return st;
}

static moec_status make_model(moec_conversion *c, const moec_families *families,
                              moec_error *err)
{
    const moec_manifest *m = &c->files.manifest;
    moec_families *own = NULL;
    moec_buf config = {0};
    moec_status st = read_config(c, &config, err);

    if (st == MOEC_OK && (families == NULL || m->family_text != NULL)) {
        st = own_families(m, &own, err);
        families = own;
    }
    if (st == MOEC_OK)
        st = moec_model_create(&c->model, c->ckpt, families, config.data,
                               config.len, err);
    moec_families_destroy(own);
    moec_buf_fini(&config);
    return st;
}

/* ------------------------------------------------ manifest against plan */

static moec_status differs(const char *key, moec_error *err)
{
    return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_M01,
                     "%s: %s is not what source, config and options give",
                     MOEC_MANIFEST_NAME, key);
}

static moec_status check_number(const char *key, uint64_t said, uint64_t is,
                                moec_error *err)
{
    if (said == is)
        return MOEC_OK;
    return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_M01,
                     "%s: %s is %" PRIu64
                     ", source, config and options give %" PRIu64,
                     MOEC_MANIFEST_NAME, key, said, is);
}

static moec_status check_word(const char *key, const char *said, const char *is,
                              moec_error *err)
{
    return strcmp(said, is) == 0 ? MOEC_OK : differs(key, err);
}

/* Experts and redundant slots, padded where empty slots are allowed, are the
 * physical slots. Asked first: the plan would refuse them by another name. */
static moec_status check_slots(const moec_manifest *m, moec_error *err)
{
    uint64_t given = (uint64_t)m->n_experts + m->n_redundant, all = given;

    if (m->allow_empty)
        all = moec_ceil_div(given, m->n_ranks) * m->n_ranks;
    return check_number("topology.physical_slots", m->n_physical, all, err);
}

/* The rows as they were given: without the empty slots that --allow-empty
 * put behind them, which the plan adds again. */
static moec_status make_placement(moec_conversion *c, moec_error *err)
{
    const moec_manifest *m = &c->files.manifest;
    size_t n = m->n_mf_layers, given;
    int32_t *rows;
    moec_status st;

    MOEC_TRY(check_slots(m, err));
    if (m->p2l == NULL)
        return MOEC_OK;
    given = (size_t)m->n_experts + m->n_redundant;
    rows = moec_calloc(n, given * sizeof(*rows));
    if (rows == NULL)
        return moec_fail_nomem(err, "placement of the manifest");
    for (size_t i = 0; i < n; i++)
        memcpy(rows + i * given, m->p2l + i * m->n_physical,
               given * sizeof(*rows));
    st = moec_placement_from_rows(&c->placement, (uint32_t)n, m->n_experts,
                                  (uint32_t)given, rows, err);
    moec_free(rows);
    return st;
}

static moec_shared_mode shared_mode(const char *word)
{
    if (strcmp(word, "per-rank") == 0)
        return MOEC_SHARED_SLOTS_PER_RANK;
    if (strcmp(word, "global") == 0)
        return MOEC_SHARED_SLOTS_GLOBAL;
    return MOEC_SHARED_SLOTS_OFF;
}

static moec_status make_plan(moec_conversion *c, moec_error *err)
{
    const moec_manifest *m = &c->files.manifest;
    moec_plan_opts opts = MOEC_PLAN_OPTS_INIT;

    opts.n_ranks = m->n_ranks;
    opts.n_redundant = m->n_redundant;
    opts.shared = shared_mode(m->shared_slots);
    opts.w13_order = strcmp(m->w13_order, "up-gate") == 0 ? MOEC_W13_UP_GATE
                                                          : MOEC_W13_GATE_UP;
    opts.allow_empty = m->allow_empty;
    opts.shared_store_common = strcmp(m->shared_store, "common") == 0;
    opts.no_mtp = !m->mtp;
    opts.requantise_shared = m->requantize != NULL;
    opts.by_expert = strcmp(m->shard_by, "expert") == 0;
    opts.placement = c->placement;
    MOEC_TRY(moec_plan_create(&c->plan, c->model, &opts, err));
    return moec_layout_create(&c->layout, c->plan, m->max_part_bytes, err);
}

/* Decimal text gives a double back exactly; compare as bits of a number. */
static bool same_real(double a, double b)
{
    return !(a < b) && !(a > b);
}

static moec_status check_model(const moec_conversion *c, moec_error *err)
{
    const moec_manifest *m = &c->files.manifest;
    const moec_facts *f = moec_model_facts(c->model);
    const struct {
        const char *key;
        uint64_t said, is;
    } numbers[] = {
        {"model.n_routed_experts", m->n_experts, f->n_experts},
        {"model.n_shared_experts", m->n_shared, f->n_shared},
        {"model.top_k", m->top_k, f->top_k},
        {"model.n_layers", m->n_layers, f->n_layers},
        {"model.hidden_size", m->hidden, f->hidden},
        {"model.moe_intermediate_size", m->inter, f->inter},
        {"model.shared_width", m->shared_width, f->shared_width},
        {"model.n_group", m->n_group, f->n_group},
        {"model.topk_group", m->topk_group, f->topk_group},
        {"model.expert_dtype", m->expert_dtype, f->expert_dtype},
    };

    MOEC_TRY(check_word("model.family", m->family, f->family, err));
    MOEC_TRY(check_word("model.model_type", m->model_type, f->model_type, err));
    MOEC_TRY(check_word("model.score", m->score, f->score, err));
    MOEC_TRY(check_word("model.activation", m->activation, f->activation, err));
    MOEC_TRY(check_word("model.shared_kind", m->shared_kind,
                        moec_shared_kind_name(f->shared_kind), err));
    for (size_t i = 0; i < sizeof(numbers) / sizeof(*numbers); i++)
        MOEC_TRY(
            check_number(numbers[i].key, numbers[i].said, numbers[i].is, err));
    if (m->norm_topk != f->norm_topk)
        return differs("model.norm_topk_prob", err);
    if (!same_real(m->routed_scale, f->routed_scale))
        return differs("model.routed_scaling_factor", err);
    return MOEC_OK;
}

static moec_status check_layers(const moec_conversion *c, moec_error *err)
{
    const moec_manifest *m = &c->files.manifest;
    size_t n = moec_model_n_layers(c->model);

    MOEC_TRY(check_number("model.layers' length", m->n_mf_layers, n, err));
    for (size_t i = 0; i < n; i++) {
        const moec_moe_layer *l = moec_model_layer(c->model, i);
        const moec_mf_layer *said = &m->layers[i];
        if (said->key.space != l->key.space ||
            said->key.number != l->key.number ||
            said->source_number != l->source_number)
            return differs("model.layers", err);
    }
    return MOEC_OK;
}

static moec_status check_topology(const moec_conversion *c, moec_error *err)
{
    const moec_manifest *m = &c->files.manifest;
    moec_topology t = moec_plan_topology(c->plan);
    const moec_plan_opts *o = moec_plan_options(c->plan);
    const char *numbering = t.n_shared_slots == 0 ? "none"
                            : t.shared_global     ? "global"
                                                  : "per-rank";
    moec_sha256 digest;

    MOEC_TRY(check_number("topology.ranks", m->n_ranks, t.n_ranks, err));
    MOEC_TRY(check_number("topology.redundant", m->n_redundant, o->n_redundant,
                          err));
    MOEC_TRY(check_number("topology.physical_slots", m->n_physical,
                          t.n_physical, err));
    MOEC_TRY(check_number("topology.local_slots", m->n_local, t.n_local, err));
    MOEC_TRY(check_number("topology.shared_slots", m->n_shared_slots,
                          t.n_shared_slots, err));
    MOEC_TRY(check_word("topology.shared_numbering", m->shared_slots, numbering,
                        err));
    MOEC_TRY(check_word("topology.shared_store", m->shared_store,
                        o->shared_store_common ? "common" : "rank", err));
    MOEC_TRY(check_number("options.requantize", m->requantize != NULL,
                          (uint64_t)moec_plan_requantises(c->plan), err));
    MOEC_TRY(
        moec_placement_digest(moec_plan_placement(c->plan), digest.b, err));
    if (memcmp(digest.b, m->placement_sha256.b, sizeof(digest.b)) != 0)
        return differs("placement.sha256", err);
    return MOEC_OK;
}

static moec_status check_files(const moec_conversion *c, moec_error *err)
{
    const moec_manifest *m = &c->files.manifest;
    size_t n = moec_layout_n_files(c->layout);

    MOEC_TRY(check_number("files' length", m->n_files, n, err));
    for (size_t i = 0; i < n; i++) {
        const moec_out_file *f = moec_layout_file(c->layout, i);

        MOEC_TRY(check_word("files.name", m->files[i].name, f->name, err));
        MOEC_TRY(check_number("files.bytes", m->files[i].bytes, f->bytes, err));
    }
    return MOEC_OK;
}

/* ------------------------------------------------------------ the object */

/* Of `store` where that is given; `begun` is a manifest's name or NULL. */
static moec_status read_files(moec_conversion **out, const char *dir,
                              const moec_store *store, const char *begun,
                              moec_error *err)
{
    moec_conversion *c = moec_calloc(1, sizeof(*c));
    moec_status st;

    if (c == NULL)
        return moec_fail_nomem(err, "conversion");
    if (store != NULL)
        st = moec_converted_open_source(&c->files, store, begun, err);
    else if (begun != NULL)
        st = moec_converted_open_begun(&c->files, dir, begun, err);
    else
        st = moec_converted_open(&c->files, dir, err);
    if (st != MOEC_OK) {
        moec_free(c);
        return st;
    }
    *out = c;
    return MOEC_OK;
}

moec_status moec_conversion_read(moec_conversion **out, const char *dir,
                                 const moec_store *store, moec_error *err)
{
    return read_files(out, dir, store, NULL, err);
}

moec_status moec_conversion_read_begun(moec_conversion **out, const char *dir,
                                       const moec_store *store,
                                       const char *manifest, moec_error *err)
{
    return read_files(out, dir, store, manifest, err);
}

moec_status moec_conversion_rebuild(moec_conversion *c,
                                    const moec_families *families,
                                    moec_error *err)
{
    MOEC_TRY(make_ckpt(c, err));
    MOEC_TRY(make_model(c, families, err));
    MOEC_TRY(check_model(c, err));
    MOEC_TRY(check_layers(c, err));
    MOEC_TRY(make_placement(c, err));
    MOEC_TRY(make_plan(c, err));
    MOEC_TRY(check_topology(c, err));
    return check_files(c, err);
}

moec_status moec_conversion_open_at(moec_conversion **out, const char *dir,
                                    const moec_store *store,
                                    const moec_families *families,
                                    moec_error *err)
{
    moec_conversion *c;
    moec_status st;

    MOEC_TRY(moec_conversion_read(&c, dir, store, err));
    st = moec_conversion_rebuild(c, families, err);
    if (st != MOEC_OK) {
        moec_conversion_close(c);
        return st;
    }
    *out = c;
    return MOEC_OK;
}

moec_status moec_conversion_open(moec_conversion **out, const char *dir,
                                 const moec_families *families, moec_error *err)
{
    return moec_conversion_open_at(out, dir, NULL, families, err);
}

moec_status moec_conversion_open_source(moec_conversion **out,
                                        const moec_store *store,
                                        const moec_families *families,
                                        moec_error *err)
{
    static const moec_store none = {0};

    return moec_conversion_open_at(out, NULL, store != NULL ? store : &none,
                                   families, err);
}

void moec_conversion_close(moec_conversion *c)
{
    if (c == NULL)
        return;
    moec_layout_destroy(c->layout);
    moec_plan_destroy(c->plan);
    moec_placement_destroy(c->placement);
    moec_model_destroy(c->model);
    moec_ckpt_close(c->ckpt);
    moec_converted_close(&c->files);
    moec_free(c);
}

const moec_layout *moec_conversion_layout(const moec_conversion *c)
{
    return c->layout;
}

uint64_t moec_conversion_manifest_digest(const moec_conversion *c,
                                         uint8_t sha256[32])
{
    memcpy(sha256, c->files.manifest_sha256.b, 32);
    return c->files.manifest_bytes;
}

const moec_converted *moec_conversion_files(const moec_conversion *c)
{
    return &c->files;
}

const char *moec_conversion_other_source(const moec_converted *files,
                                         const moec_ckpt *src)
{
    const moec_manifest *m = &files->manifest;

    if (moec_ckpt_n_files(src) != m->n_sources)
        return "another number of shards";
    for (size_t i = 0; i < m->n_sources; i++) {
        const moec_mf_source *want = &m->sources[i];
        size_t k = 0;

        /* both lists are sorted alike; a bare file may bear another name */
        for (; k < m->n_sources; k++)
            if (strcmp(moec_ckpt_file(src, k)->name, want->name) == 0)
                break;
        if (k == m->n_sources)
            return want->name;
        if (moec_ckpt_file(src, k)->bytes != want->bytes ||
            memcmp(moec_ckpt_file(src, k)->header_sha256, want->header_sha256.b,
                   32) != 0)
            return want->name;
    }
    return NULL;
}
