/* SPDX-License-Identifier: Apache-2.0 */

/*
 * moec_verify: levels 1 and 2 over a converted directory, in passes:
 *   structure (verify_files.c), the plan's theorems (theorems.c), every byte
 *   against slots.bin (verify_bytes.c), against the source where there is one
 *   (verify_source.c), and the way back (verify_inverse.c).
 * Damage is never an error: it is a finding, and the passes that can still say
 * something go on.
 */

#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "ckpt.h"
#include "theorems.h"
#include "verify.h"

/* Tell the caller about progress at once, and then at most this often. */
#define TELL_BYTES  (UINT64_C(16) << 20)
#define WORKERS_MAX 256u

/* -------------------------------------------------------- small services */

uint64_t moec_verify_batch(uint64_t block_bytes)
{
    if (block_bytes == 0)
        return MOEC_VERIFY_RANGE_BYTES;
    return moec_max_u64(MOEC_VERIFY_RANGE_BYTES / block_bytes, 1);
}

moec_status moec_verify_progress(moec_verifier *v, uint64_t bytes,
                                 moec_error *err)
{
    bool cancelled;

    pthread_mutex_lock(&v->lock);
    v->done += bytes;
    if (v->opts->progress != NULL && !v->cancelled &&
        (v->told == 0 || v->done - v->told >= TELL_BYTES)) {
        v->told = v->done;
        v->cancelled =
            v->opts->progress(v->opts->progress_ctx,
                              moec_min_u64(v->done, v->total), v->total) != 0;
    }
    cancelled = v->cancelled;
    pthread_mutex_unlock(&v->lock);
    return cancelled ? moec_fail(err, MOEC_E_CANCELLED, MOEC_RULE_NONE,
                                 "stopped as asked")
                     : MOEC_OK;
}

/* The quick digest is what a load checks by default: it must not be wrong. */
static void check_quick(const moec_verifier *v, size_t leaf, const void *data,
                        size_t n)
{
    moec_xxh128 xxh = moec_xxh128_of(data, n);
    moec_finding f = {.rule = MOEC_RULE_M03,
                      .severity = MOEC_SEVERITY_ERROR,
                      .has = MOEC_HAS_FILE,
                      .file = MOEC_SLOTS_NAME};

    if (memcmp(xxh.b, v->files->slots.leaves[leaf].xxh128.b, sizeof(xxh.b)) !=
        0)
        moec_report_add(v->r, &f,
                        "leaf %zu: XXH3-128 and SHA-256 are of different "
                        "bytes",
                        leaf);
}

moec_status moec_verify_read(const moec_verifier *v, moec_verify_worker *w,
                             size_t file, uint64_t off, void *buf, size_t n,
                             moec_error *err)
{
    MOEC_TRY(moec_io_read(&v->io[file], &w->io, off, buf, n, err));
    return moec_patches_apply(v->patches, file, off, buf, n, err);
}

moec_status moec_verify_read_source(const moec_verifier *v,
                                    moec_verify_worker *w, size_t tensor,
                                    uint64_t off, void *buf, size_t n,
                                    moec_error *err)
{
    const moec_tensor *t = moec_ckpt_tensor(v->opts->source, tensor);

    if (off > t->bytes || n > t->bytes - off)
        return moec_fail(err, MOEC_E_INTERNAL, MOEC_RULE_NONE,
                         "tensor '%s': a range outside it", t->name);
    return moec_io_read(&v->source_io[t->file], &w->io, t->off + off, buf, n,
                        err);
}

moec_status moec_verify_leaves(const moec_verifier *v, const moec_ct_slot *slot,
                               uint64_t leaf, const void *data, size_t n,
                               size_t *bad_out, moec_sha256 *found_out,
                               moec_error *err)
{
    const unsigned char *p = data;
    moec_sha256 sha[2]; /* two at once: see moec_sha256_leaves */

    *bad_out = SIZE_MAX;
    for (size_t at = 0; at < n; at += 2 * MOEC_LEAF_BYTES) {
        size_t pair = (size_t)moec_min_u64(2 * MOEC_LEAF_BYTES, n - at);

        MOEC_TRY(moec_sha256_leaves(p + at, pair, MOEC_LEAF_BYTES, sha, err));
        for (size_t k = 0; k * MOEC_LEAF_BYTES < pair; k++, leaf++) {
            size_t off = k * MOEC_LEAF_BYTES;
            size_t i = (size_t)(slot->first_leaf + leaf);

            if (leaf >= slot->n_leaves)
                return moec_fail(err, MOEC_E_INTERNAL, MOEC_RULE_NONE,
                                 "leaf %" PRIu64 " of %" PRIu32, leaf,
                                 slot->n_leaves);
            *found_out = sha[k];
            if (memcmp(sha[k].b, v->files->slots.leaves[i].sha256.b, 32) != 0) {
                *bad_out = (size_t)leaf;
                return MOEC_OK;
            }
            check_quick(v, i, p + at + off,
                        (size_t)moec_min_u64(MOEC_LEAF_BYTES, pair - off));
        }
    }
    return MOEC_OK;
}

moec_finding moec_verify_finding(const moec_verifier *v, moec_rule rule,
                                 const moec_ct_tensor *t, uint64_t row,
                                 uint64_t at)
{
    const moec_slots *s = &v->files->slots;
    moec_finding f = {.rule = rule,
                      .severity = MOEC_SEVERITY_ERROR,
                      .has = MOEC_HAS_FILE | MOEC_HAS_TENSOR | MOEC_HAS_OFFSET,
                      .file = s->files[t->file].name,
                      .tensor = t->name,
                      .offset = t->off + at};
    int32_t logical;

    if (t->kind != MOEC_CT_SLOTS)
        return f;
    f.offset += row * (t->bytes / t->n_slots);
    f.has |= MOEC_HAS_LAYER | MOEC_HAS_RANK | MOEC_HAS_SLOT;
    f.layer.space =
        t->space == MOEC_SPACE_MTP ? MOEC_SPACE_MTP : MOEC_SPACE_MAIN;
    f.layer.number = t->layer;
    f.rank = t->rank;
    f.slot = (uint32_t)row;
    logical = s->slots[t->first_slot + row].logical;
    if (logical >= 0) {
        f.has |= MOEC_HAS_EXPERT;
        f.expert = (uint32_t)logical;
    }
    return f;
}

void moec_verify_add_leaf(const moec_verifier *v, const moec_ct_tensor *t,
                          uint32_t row, size_t bad, const moec_sha256 *found,
                          const char *what)
{
    const moec_slots *s = &v->files->slots;
    const moec_ct_slot *slot = &s->slots[t->first_slot + row];
    char hex_expected[65], hex_found[65];
    moec_finding f =
        moec_verify_finding(v, MOEC_RULE_T3, t, row, bad * MOEC_LEAF_BYTES);

    moec_hex(found->b, 32, hex_expected);
    moec_hex(s->leaves[slot->first_leaf + bad].sha256.b, 32, hex_found);
    f.has |= MOEC_HAS_EXPECTED | MOEC_HAS_FOUND;
    f.expected = hex_expected;
    f.found = hex_found;
    moec_report_add(v->r, &f, "leaf %zu %s", bad, what);
}

const moec_ct_slot *moec_verify_first(const moec_verifier *v, size_t layer,
                                      size_t t, uint32_t unit,
                                      const moec_ct_tensor **tensor_out,
                                      uint32_t *row_out)
{
    const moec_slots *s = &v->files->slots;
    uint32_t at;
    size_t rank;

    if (unit >= v->n_units)
        return NULL;
    at = v->first_slot[layer * v->n_units + unit];
    if (at == UINT32_MAX)
        return NULL;
    rank = at / v->n_rows;
    *row_out = moec_plan_row(v->plan, layer, t, (uint32_t)rank,
                             (moec_local_row){at % v->n_rows});
    *tensor_out = &s->tensors[v->slot_tensor[rank * v->n_slot_tensors +
                                             v->layer_first[layer] + t]];
    return &s->slots[(*tensor_out)->first_slot + *row_out];
}

/* Pieces of one slot tensor, appended at `p` unless that is NULL; returns how
 * many. */
static size_t cut_pieces(const moec_verifier *v, size_t layer, size_t t,
                         moec_verify_piece *p)
{
    uint64_t batch =
        moec_verify_batch(moec_plan_slot_tensor(v->plan, layer, t)->slot_bytes);
    size_t n = 0;

    for (uint64_t u = 0; u < v->n_units; u += batch, n++)
        if (p != NULL)
            p[n] = (moec_verify_piece){layer, t, u,
                                       moec_min_u64(batch, v->n_units - u)};
    return n;
}

moec_status moec_verify_unit_pieces(const moec_verifier *v,
                                    moec_verify_piece **out, size_t *n_out,
                                    moec_error *err)
{
    size_t n = 0, n_layers = moec_plan_n_layers(v->plan);
    moec_verify_piece *p;

    for (size_t l = 0; l < n_layers; l++)
        for (size_t t = 0; t < moec_plan_n_slot_tensors(v->plan, l); t++)
            n += cut_pieces(v, l, t, NULL);
    p = moec_calloc(n + 1, sizeof(*p));
    if (p == NULL)
        return moec_fail_nomem(err, "list of work");
    n = 0;
    for (size_t l = 0; l < n_layers; l++)
        for (size_t t = 0; t < moec_plan_n_slot_tensors(v->plan, l); t++)
            n += cut_pieces(v, l, t, p + n);
    *out = p;
    *n_out = n;
    return MOEC_OK;
}

/* ---------------------------------------------------------------- set-up */

/* Memory ended with worker `i`, of a number that nobody asked for: half of
 * those before it do, and leave the rest room for stacks and all else. */
static void let_go(moec_verifier *v, uint32_t i)
{
    uint32_t kept = i / 2;

    for (uint32_t k = kept; k <= i; k++) {
        moec_free_aligned(v->workers[k].a);
        moec_free_aligned(v->workers[k].b);
        v->workers[k].a = v->workers[k].b = NULL;
    }
    v->n_workers = kept;
}

static moec_status make_workers(moec_verifier *v, moec_error *err)
{
    uint32_t n = v->opts->n_threads;

    /* They block in reads, and a disk ends the reads of all of them at once:
     * enough of them to keep it busy while two digest. 8.8 GB on 2 cores, cold,
     * disk 3.2 s: 4.2 s with 8 workers, 3.8 with 24, 3.7 with 32. */
    if (n == 0)
        n = (uint32_t)moec_max_u64(24, 2 * (uint64_t)moec_cpu_count());
    v->n_workers = (uint32_t)moec_min_u64(n, WORKERS_MAX);
    v->workers = moec_calloc(v->n_workers, sizeof(*v->workers));
    if (v->workers == NULL)
        return moec_fail_nomem(err, "workers");
    for (uint32_t i = 0; i < v->n_workers; i++) {
        v->workers[i].a =
            moec_alloc_aligned(MOEC_VERIFY_RANGE_BYTES, MOEC_ALIGN);
        v->workers[i].b =
            moec_alloc_aligned(MOEC_VERIFY_RANGE_BYTES, MOEC_ALIGN);
        if (v->workers[i].a != NULL && v->workers[i].b != NULL)
            continue;
        if (v->opts->n_threads != 0 || i < 2)
            return moec_fail_nomem(err, "buffers of the workers");
        let_go(v, i);
        break;
    }
    return MOEC_OK;
}

static moec_status open_source(moec_verifier *v, moec_error *err)
{
    const moec_ckpt *src = v->opts->source;
    size_t n = src == NULL ? 0 : moec_ckpt_n_files(src);

    v->source_io = moec_calloc(n + 1, sizeof(*v->source_io));
    if (v->source_io == NULL)
        return moec_fail_nomem(err, "table of source files");
    for (size_t i = 0; i < n; i++)
        moec_ckpt_io_open(src, i, false, &v->source_io[i]);
    return MOEC_OK;
}

static void close_source(moec_verifier *v)
{
    const moec_ckpt *src = v->opts->source;

    for (size_t i = 0;
         v->source_io != NULL && src != NULL && i < moec_ckpt_n_files(src); i++)
        moec_io_close(&v->source_io[i]);
    moec_free(v->source_io);
}

static moec_status index_files(moec_verifier *v, moec_error *err)
{
    const moec_slots *s = &v->files->slots;

    v->io = moec_calloc(s->n_files + 1, sizeof(*v->io));
    v->file_first = moec_calloc(s->n_files + 1, sizeof(*v->file_first));
    if (v->io == NULL || v->file_first == NULL)
        return moec_fail_nomem(err, "table of data files");
    for (size_t i = 0; i < s->n_files; i++) {
        v->io[i].fd = v->io[i].direct_fd = -1;
        v->file_first[i] = s->n_tensors;
    }
    for (size_t t = s->n_tensors; t > 0; t--)
        v->file_first[s->tensors[t - 1].file] = t - 1;
    /* a file without tensors begins where the next one does */
    for (size_t i = s->n_files; i > 1; i--)
        v->file_first[i - 2] =
            (size_t)moec_min_u64(v->file_first[i - 2], v->file_first[i - 1]);
    return MOEC_OK;
}

/* The first slot of each unit, in physical order. */
static void find_first_slots(moec_verifier *v, size_t layer)
{
    uint32_t n_ranks = moec_plan_topology(v->plan).n_ranks;
    uint32_t *first = v->first_slot + layer * v->n_units;

    for (uint32_t u = 0; u < v->n_units; u++)
        first[u] = UINT32_MAX;
    for (uint32_t rank = 0; rank < n_ranks; rank++)
        for (uint32_t row = 0; row < v->n_rows; row++) {
            uint32_t u =
                moec_plan_unit(v->plan, layer, rank, (moec_local_row){row});
            if (u < v->n_units && first[u] == UINT32_MAX)
                first[u] = rank * v->n_rows + row;
        }
}

static moec_status index_slots(moec_verifier *v, moec_error *err)
{
    moec_topology topo = moec_plan_topology(v->plan);
    size_t n_layers = moec_plan_n_layers(v->plan);
    const moec_model *model = moec_plan_model(v->plan);

    v->n_rows = topo.n_local + moec_plan_shared_rows(v->plan);
    v->n_units =
        moec_model_facts(model)->n_experts + moec_plan_shared_rows(v->plan);
    v->layer_first = moec_calloc(n_layers + 1, sizeof(*v->layer_first));
    v->first_slot =
        moec_calloc(n_layers + 1, v->n_units * sizeof(*v->first_slot));
    if (v->layer_first == NULL || v->first_slot == NULL)
        return moec_fail_nomem(err, "table of layers");
    for (size_t l = 0; l < n_layers; l++) {
        v->layer_first[l] = v->n_slot_tensors;
        v->n_slot_tensors += moec_plan_n_slot_tensors(v->plan, l);
        find_first_slots(v, l);
    }
    v->slot_tensor = moec_calloc((size_t)topo.n_ranks * v->n_slot_tensors + 1,
                                 sizeof(*v->slot_tensor));
    if (v->slot_tensor == NULL)
        return moec_fail_nomem(err, "table of slot tensors");
    for (size_t i = 0; i < moec_ckpt_n_tensors(moec_model_ckpt(model)); i++)
        v->n_skipped += moec_plan_fate(v->plan, i) == MOEC_FATE_SKIPPED;
    return MOEC_OK;
}

/* Decide the layout again. What prevents it is a finding: the manifest could
 * be read, and the bytes can still be digested. */
static moec_status rebuild(moec_verifier *v, moec_error *err)
{
    moec_error e = MOEC_ERROR_INIT;
    moec_status st = moec_conversion_rebuild(v->c, v->opts->families, &e);

    switch (st) {
    case MOEC_OK:
        v->layout = moec_conversion_layout(v->c);
        v->plan = moec_layout_plan(v->layout);
        return index_slots(v, err);
    case MOEC_E_IO:
    case MOEC_E_INTEGRITY: /* a changed config.json has its finding already */
    case MOEC_E_FORMAT:
    case MOEC_E_MAPPING:
    case MOEC_E_MIXED:
    case MOEC_E_UNSUPPORTED:
        break;
    case MOEC_E_ARG:
    case MOEC_E_NOMEM:
    case MOEC_E_NO_DEVICE:
    case MOEC_E_LOCKED:
    case MOEC_E_CANCELLED:
    case MOEC_E_DURABILITY:
    case MOEC_E_INTERNAL:
        return moec_hand_on(err, st, &e);
    }
    if (st == MOEC_E_IO && !moec_report_is_damage(&e))
        return moec_hand_on(err, st, &e);
    if (e.rule != MOEC_RULE_M08 && st != MOEC_E_IO)
        moec_report_add_error(v->r, MOEC_MANIFEST_NAME, MOEC_RULE_M01, &e);
    for (uint32_t r = 0; r < 6; r++)
        moec_report_note(v->r, (moec_rule)((uint32_t)MOEC_RULE_T1 + r),
                         "the layout could not be decided again from the "
                         "directory's own files");
    return MOEC_OK;
}

static void estimate(moec_verifier *v)
{
    const moec_slots *s = &v->files->slots;
    uint64_t all = 0;

    for (size_t i = 0; i < s->n_tensors; i++)
        all += s->tensors[i].bytes;
    /* the way back reads little where T3 holds */
    v->total = all * (v->source_ok ? 2 : 1);
}

/* ------------------------------------------------------------ the passes */

static void note_headers_only(const moec_verifier *v)
{
    moec_report_note(v->r, MOEC_RULE_T3,
                     "names and offsets were compared, no "
                     "byte of a weight was read");
    moec_report_note(v->r, MOEC_RULE_T6, "needs level digests");
}

/* A mutation is made of the layout, once that is decided. */
static moec_status make_patches(moec_verifier *v, moec_error *err)
{
    if (v->patches == NULL)
        return MOEC_OK;
    moec_patches_fini(v->patches);
    if (v->layout == NULL)
        return moec_fail(err, MOEC_E_INTEGRITY, MOEC_RULE_M01,
                         "%s: the layout could not be decided again",
                         v->files->dir);
    return moec_patches_make(v->patches, v->layout, v->files->dirfd, err);
}

static moec_status run_passes(moec_verifier *v, moec_error *err)
{
    MOEC_TRY(moec_verify_copied(v, err));
    MOEC_TRY(rebuild(v, err));
    MOEC_TRY(make_patches(v, err));
    MOEC_TRY(index_files(v, err));
    MOEC_TRY(open_source(v, err));
    MOEC_TRY(moec_verify_files(v, err));
    MOEC_TRY(moec_verify_table(v, err));
    if (v->plan != NULL)
        MOEC_TRY(moec_prove_into(v->r, v->plan, v->layout, err));
    if (v->level == MOEC_LEVEL_HEADERS) {
        note_headers_only(v);
        return MOEC_OK;
    }
    MOEC_TRY(moec_verify_identity(v, err));
    estimate(v);
    MOEC_TRY(moec_verify_bytes(v, err));
    if (v->patches != NULL)
        return MOEC_OK;
    MOEC_TRY(make_workers(v, err));
    if (v->table_ok && v->source_ok)
        MOEC_TRY(moec_verify_source(v, err));
    if (v->table_ok)
        MOEC_TRY(moec_verify_requantised(v, err));
    if (v->table_ok)
        MOEC_TRY(moec_verify_inverse(v, err));
    else
        moec_report_note(v->r, MOEC_RULE_T6,
                         "not tried: slots.bin and the layout disagree");
    if (v->opts->progress != NULL)
        v->opts->progress(v->opts->progress_ctx, v->total, v->total);
    return MOEC_OK;
}

static void free_worker(moec_verify_worker *w)
{
    moec_free_aligned(w->a);
    moec_free_aligned(w->b);
    moec_io_buf_fini(&w->io);
    moec_scratch_fini(&w->scratch);
    moec_scratch_fini(&w->inner);
    for (uint32_t i = 0; i < MOEC_VERIFY_KEPT; i++)
        moec_free(w->kept[i].data);
}

static void verifier_fini(moec_verifier *v)
{
    for (size_t i = 0; v->io != NULL && i < v->files->slots.n_files; i++) {
        moec_io_close(&v->io[i]);
        if (v->io[i].fd >= 0)
            close(v->io[i].fd);
    }
    for (uint32_t i = 0; v->workers != NULL && i < v->n_workers; i++)
        free_worker(&v->workers[i]);
    moec_free(v->workers);
    moec_free(v->io);
    close_source(v);
    moec_free(v->file_first);
    moec_free(v->layer_first);
    moec_free(v->slot_tensor);
    moec_free(v->first_slot);
    moec_conversion_close(v->c);
    pthread_mutex_destroy(&v->lock);
}

/* Callers of before there were sources have none. */
static const moec_store *store_of(const moec_verify_opts *opts)
{
    return opts->struct_bytes >=
                   offsetof(moec_verify_opts, store) + sizeof(opts->store)
               ? opts->store
               : NULL;
}

/* sources.bin is read with manifest.json and slots.bin; its loss alone is
 * damage like any other. */
static moec_status verify_into(moec_verifier *v, const char *dir,
                               moec_error *err)
{
    moec_error e = MOEC_ERROR_INIT;
    moec_status st = moec_conversion_read(&v->c, dir, store_of(v->opts), &e);

    if (st == MOEC_OK) {
        v->files = moec_conversion_files(v->c);
        return run_passes(v, err);
    }
    if ((st == MOEC_E_FORMAT || st == MOEC_E_INTEGRITY) &&
        e.rule == MOEC_RULE_M04) {
        moec_report_add_error(v->r, MOEC_SOURCES_NAME, MOEC_RULE_M04, &e);
        return MOEC_OK;
    }
    if (st == MOEC_E_INTEGRITY) /* digests are what verify is about: without
                                   those of slots.bin there is no verdict */
        st = e.status = MOEC_E_FORMAT;
    return moec_hand_on(err, st, &e);
}

/* The level asked for; callers of before it could be asked for mean both. */
static moec_status level_of(const moec_verify_opts *opts, moec_level *out,
                            moec_error *err)
{
    *out = MOEC_LEVEL_DIGESTS;
    if (opts->struct_bytes >
        offsetof(moec_verify_opts, level) + sizeof(opts->level) - 1)
        *out = opts->level;
    if (*out == MOEC_LEVEL_HEADERS || *out == MOEC_LEVEL_DIGESTS)
        return MOEC_OK;
    return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                     "level %d is not one that this version proves", (int)*out);
}

moec_status moec_verify_patched(moec_report **out, const char *dir,
                                const moec_verify_opts *opts,
                                moec_patches *patches, moec_error *err)
{
    static const moec_verify_opts defaults = MOEC_VERIFY_OPTS_INIT;
    moec_verifier v = {.opts = opts != NULL ? opts : &defaults,
                       .patches = patches};
    moec_status st;

    MOEC_TRY(moec_check_struct("moec_verify_opts", v.opts->struct_bytes,
                               offsetof(moec_verify_opts, level), err));
    MOEC_TRY(level_of(v.opts, &v.level, err));
    MOEC_TRY(moec_report_create(&v.r, err));
    if (pthread_mutex_init(&v.lock, NULL) != 0) {
        moec_report_destroy(v.r);
        return moec_fail_nomem(err, "a lock");
    }
    st = verify_into(&v, dir, err);
    if (st == MOEC_OK)
        st = moec_report_finish(v.r, err);
    verifier_fini(&v);
    if (st != MOEC_OK) {
        moec_report_destroy(v.r);
        return st;
    }
    *out = v.r;
    return MOEC_OK;
}

moec_status moec_verify(moec_report **out, const char *dir,
                        const moec_verify_opts *opts, moec_error *err)
{
    return moec_verify_patched(out, dir, opts, NULL, err);
}
