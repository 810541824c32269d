/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What all layers of level 3 share is opened here: the two kernels, the two
 * models, the files of both sides and how they are read, the source ranks'
 * tables, and the workers, as many as memory allows.
 */

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ckpt.h"
#include "level3.h"

/* Memory for all workers' experts and slots together; one worker may always
 * have its own. */
#define WORKER_BYTES (UINT64_C(1) << 30)

/* --------------------------------------------------------------- reading */

moec_status moec_l3_progress(moec_level3 *v, uint64_t bytes, moec_error *err)
{
    bool cancelled;

    pthread_mutex_lock(&v->lock);
    v->done += bytes;
    if (v->opts->progress != NULL && !v->cancelled)
        v->cancelled =
            v->opts->progress(v->opts->progress_ctx,
                              moec_min_u64(v->done, v->total), v->total) != 0;
    cancelled = v->cancelled;
    pthread_mutex_unlock(&v->lock);
    return cancelled ? moec_fail(err, MOEC_E_CANCELLED, MOEC_RULE_NONE,
                                 "stopped as asked")
                     : MOEC_OK;
}

moec_status moec_l3_read_source(void *worker, uint32_t tensor, uint64_t off,
                                void *buf, size_t n, moec_error *err)
{
    moec_l3_worker *w = worker;
    const moec_tensor *t = moec_ckpt_tensor(w->v->source, tensor);

    if (off > t->bytes || n > t->bytes - off)
        return moec_fail(err, MOEC_E_INTERNAL, MOEC_RULE_NONE,
                         "tensor '%s': a range outside it", t->name);
    return moec_io_read(&w->v->source_io[t->file], &w->io, t->off + off, buf, n,
                        err);
}

moec_status moec_l3_read_file(moec_l3_worker *w, size_t file, uint64_t off,
                              void *buf, size_t n, moec_error *err)
{
    MOEC_TRY(moec_io_read(&w->v->out_io[file], &w->io, off, buf, n, err));
    return moec_patches_apply(w->v->patches, file, off, buf, n, err);
}

moec_status moec_l3_read_common(void *worker, uint32_t tensor, uint64_t off,
                                void *buf, size_t n, moec_error *err)
{
    moec_l3_worker *w = worker;
    const moec_level3 *v = w->v;
    uint64_t at;
    size_t file;

    if (v->dir == NULL) {
        MOEC_TRY(moec_l3_read_source(w, tensor, off, buf, n, err));
        if (tensor == v->dropped)
            memset(buf, 0, n);
        return MOEC_OK;
    }
    if (!moec_layout_find_common(v->layout, tensor, &file, &at))
        return moec_fail(
            err, MOEC_E_MAPPING, MOEC_RULE_T1,
            "the conversion has no tensor '%s'",
            moec_ckpt_tensor(moec_model_ckpt(v->model[MOEC_LEVEL3_SERVED]),
                             tensor)
                ->name);
    return moec_l3_read_file(w, file, at + off, buf, n, err);
}

/* -------------------------------------------------------------- opening */

moec_status moec_l3_open_kernels(moec_level3 *v, moec_error *err)
{
    moec_kernels_opts o = MOEC_KERNELS_OPTS_INIT;

    o.isa = MOEC_ISA_SCALAR;
    MOEC_TRY(moec_kernels_open(&v->k[MOEC_LEVEL3_SOURCE], &o, err));
    v->device[MOEC_LEVEL3_SERVED] = v->opts->device;
    o.isa = v->opts->isa;
    return moec_kernels_open(&v->k[MOEC_LEVEL3_SERVED], &o, err);
}

/* The source's model, from its own headers and config.json; with the family
 * that the conversion was made with, where that was described by the user. */
moec_status moec_l3_open_models(moec_level3 *v, moec_error *err)
{
    const char *text =
        v->c == NULL ? NULL : moec_conversion_files(v->c)->manifest.family_text;
    moec_families *own = NULL;
    const moec_families *families = v->opts->families;
    moec_status st = MOEC_OK;

    v->model[MOEC_LEVEL3_SERVED] = moec_plan_model(v->plan);
    v->model[MOEC_LEVEL3_SOURCE] = v->model[MOEC_LEVEL3_SERVED];
    if (v->dir == NULL)
        return MOEC_OK;
    if (families == NULL || text != NULL) {
        st = moec_families_create(&own, err);
        families = own;
    }
    if (st == MOEC_OK && text != NULL)
        st =
            moec_families_add(own, MOEC_MANIFEST_NAME, text, strlen(text), err);
    if (st == MOEC_OK)
        st = moec_model_open(&v->own_model, v->source, families, err);
    moec_families_destroy(own);
    v->model[MOEC_LEVEL3_SOURCE] = v->own_model;
    return st;
}

static moec_status open_replicas(moec_level3 *v, moec_error *err)
{
    moec_replicas_opts o = MOEC_REPLICAS_OPTS_INIT;
    uint32_t n = moec_plan_topology(v->plan).n_ranks;

    v->n_homes = (uint32_t)moec_min_u64(n, MOEC_L3_HOMES_MAX);
    if (v->opts->exchange != NULL) /* the others are other processes' */
        v->n_homes = 1;
    v->replicas = moec_calloc((size_t)v->n_homes + 1, sizeof(moec_replicas *));
    if (v->replicas == NULL)
        return moec_fail_nomem(err, "replicas");
    o.n_ranks = n;
    for (uint32_t h = 0; h < v->n_homes; h++) {
        o.rank = v->opts->exchange != NULL
                     ? moec_exchange_rank(v->opts->exchange)
                     : (uint32_t)((uint64_t)n * h / v->n_homes);
        MOEC_TRY(moec_replicas_create(&v->replicas[h],
                                      moec_plan_placement(v->plan), &o, err));
    }
    return MOEC_OK;
}

static moec_status open_source(moec_level3 *v, moec_error *err)
{
    const moec_ckpt *c = v->source;
    size_t n = moec_ckpt_n_files(c);

    v->source_io = moec_calloc(n + 1, sizeof(*v->source_io));
    if (v->source_io == NULL)
        return moec_fail_nomem(err, "table of source files");
    for (size_t i = 0; i < n; i++)
        moec_ckpt_io_open(c, i, false, &v->source_io[i]);
    return MOEC_OK;
}

/* In one process every rank's file is read; one of several reads those of its
 * own rank, and what belongs to none. */
static bool is_mine(const moec_level3 *v, const moec_out_file *f)
{
    return v->opts->exchange == NULL || f->kind != MOEC_FILE_RANK ||
           f->rank == moec_exchange_rank(v->opts->exchange);
}

/* The file whose header `found` is, or NULL: two that were swapped. */
static const char *whose_header(const moec_level3 *v, const void *found,
                                uint64_t bytes)
{
    for (size_t i = 0; i < moec_layout_n_files(v->layout); i++) {
        void *header = NULL;
        uint64_t n = 0;
        bool same =
            moec_layout_header(v->layout, i, &header, &n, NULL) == MOEC_OK &&
            n == bytes && memcmp(header, found, (size_t)n) == 0;

        free(header);
        if (same)
            return moec_layout_file(v->layout, i)->name;
    }
    return NULL;
}

/* A rank that sees no other rank's file cannot see that two were swapped but
 * by what they say of themselves: the header is the one that the layout gives
 * this file. `*right` is false where it is not, with a finding. */
static moec_status check_header(moec_level3 *v, size_t i, int fd, bool *right,
                                moec_error *err)
{
    const moec_out_file *f = moec_layout_file(v->layout, i);
    moec_finding x = {.rule = MOEC_RULE_M06,
                      .severity = MOEC_SEVERITY_ERROR,
                      .has = MOEC_HAS_FILE | MOEC_HAS_RANK,
                      .file = f->name,
                      .rank = f->rank};
    void *want = NULL, *found = moec_calloc(1, (size_t)f->header_bytes + 1);
    uint64_t n = 0;
    const char *whose;
    moec_status st = found == NULL
                         ? moec_fail_nomem(err, "header of a data file")
                         : moec_layout_header(v->layout, i, &want, &n, err);

    if (st == MOEC_OK)
        st = moec_pread_full(fd, f->name, found, (size_t)n, 0, err);
    *right = st == MOEC_OK && memcmp(want, found, (size_t)n) == 0;
    if (st == MOEC_OK && !*right) {
        whose = whose_header(v, found, n);
        moec_report_add(v->r, &x,
                        whose != NULL ? "by its header it is '%s': swapped or "
                                        "renamed"
                                      : "its header is not the one that the "
                                        "layout gives%s",
                        whose != NULL ? whose : "");
    }
    free(want);
    moec_free(found);
    return st;
}

static void close_io(moec_io_file *f)
{
    moec_io_close(f);
    if (f->fd >= 0)
        close(f->fd);
}

/* Is the file there, with its size and, where others are not seen, its header?
 * Damage is a finding; the descriptor of *io_out stays -1 then. */
static moec_status look_at(moec_level3 *v, size_t i, moec_io_file *io_out,
                           moec_error *err)
{
    const moec_out_file *f = moec_layout_file(v->layout, i);
    bool ranked = v->opts->exchange != NULL && f->kind == MOEC_FILE_RANK;
    moec_finding finding = {.rule = MOEC_RULE_M05,
                            .severity = MOEC_SEVERITY_ERROR,
                            .has = MOEC_HAS_FILE |
                                   (ranked ? (uint32_t)MOEC_HAS_RANK : 0u),
                            .file = f->name,
                            .rank = f->rank};
    moec_io_file io = {.fd = -1, .direct_fd = -1};
    bool right = true;
    moec_error e = MOEC_ERROR_INIT;
    moec_status st =
        moec_converted_io(moec_conversion_files(v->c), f->name, false, &io, &e);

    if (st != MOEC_OK && !moec_report_is_damage(&e))
        return moec_hand_on(err, st, &e);
    if (st == MOEC_OK && ranked && io.bytes >= f->header_bytes)
        st = check_header(v, i, io.fd, &right, err);
    else
        st = MOEC_OK;
    if (st == MOEC_OK && right && (io.fd < 0 || io.bytes != f->bytes)) {
        moec_report_add(v->r, &finding, "%s",
                        io.fd < 0 ? "cannot be opened" : "has another size");
        right = false;
    }
    if (st == MOEC_OK && right)
        *io_out = io;
    else
        close_io(&io);
    return st;
}

/* Open the files of the conversion; a missing one is a finding. */
moec_status moec_l3_open_files(moec_level3 *v, bool *all_out, moec_error *err)
{
    size_t n = moec_layout_n_files(v->layout);

    *all_out = true;
    if (v->dir == NULL)
        return MOEC_OK;
    v->out_io = moec_calloc(n + 1, sizeof(*v->out_io));
    if (v->out_io == NULL)
        return moec_fail_nomem(err, "table of data files");
    for (size_t i = 0; i < n; i++)
        v->out_io[i].fd = v->out_io[i].direct_fd = -1;
    for (size_t i = 0; i < n; i++) {
        const moec_out_file *f = moec_layout_file(v->layout, i);

        if (!is_mine(v, f))
            continue;
        MOEC_TRY(look_at(v, i, &v->out_io[i], err));
        *all_out = *all_out && v->out_io[i].fd >= 0;
    }
    return MOEC_OK;
}

/* What one worker needs at most, of any layer. */
static uint64_t worker_bytes(const moec_level3 *v)
{
    const moec_facts *f = moec_model_facts(v->model[MOEC_LEVEL3_SOURCE]);
    uint64_t most = 1;

    for (size_t i = 0; i < moec_plan_n_layers(v->plan); i++) {
        const moec_layer_slices *s = moec_model_slices(
            v->model[MOEC_LEVEL3_SERVED], moec_plan_model_layer(v->plan, i));
        uint64_t bytes =
            moec_plain_bytes(s, MOEC_ROLE_ROUTED, f->hidden, f->inter);

        for (size_t t = 0; t < moec_plan_n_slot_tensors(v->plan, i); t++)
            bytes += moec_plan_slot_tensor(v->plan, i, t)->slot_bytes;
        most = moec_max_u64(most, bytes);
    }
    return most;
}

static moec_status hire(moec_level3 *v, moec_error *err)
{
    uint32_t n = v->opts->n_threads;
    uint64_t fit = moec_max_u64(WORKER_BYTES / worker_bytes(v), 1);

    /* they block in reads: enough of them to keep disk and CPUs busy */
    if (n == 0)
        n = (uint32_t)moec_max_u64(4, 2 * (uint64_t)moec_cpu_count());
    v->n_workers = (uint32_t)moec_min_u64(n, fit);
    if (v->opts->device != NULL)
        v->n_workers = 1; /* one stream */
    v->workers = moec_calloc(v->n_workers, sizeof(*v->workers));
    if (v->workers == NULL)
        return moec_fail_nomem(err, "workers");
    for (uint32_t i = 0; i < v->n_workers; i++)
        v->workers[i].v = v;
    return MOEC_OK;
}

moec_status moec_l3_open_workers(moec_level3 *v, moec_error *err)
{
    MOEC_TRY(open_source(v, err));
    MOEC_TRY(open_replicas(v, err));
    return hire(v, err);
}

void moec_l3_close(moec_level3 *v)
{
    for (uint32_t i = 0; v->workers != NULL && i < v->n_workers; i++) {
        moec_l3_worker *w = &v->workers[i];

        moec_io_buf_fini(&w->io);
        moec_plain_fini(&w->plain);
        moec_scratch_fini(&w->scratch);
        moec_room_fini(&w->slot);
        moec_room_fini(&w->work);
    }
    moec_free(v->workers);
    for (size_t i = 0; v->out_io != NULL && i < moec_layout_n_files(v->layout);
         i++) {
        close_io(&v->out_io[i]);
    }
    moec_free(v->out_io);
    for (size_t i = 0; v->source_io != NULL && i < moec_ckpt_n_files(v->source);
         i++)
        moec_io_close(&v->source_io[i]);
    moec_free(v->source_io);
    for (uint32_t h = 0; v->replicas != NULL && h < v->n_homes; h++)
        moec_replicas_destroy(v->replicas[h]);
    moec_free(v->replicas);
    moec_activations_close(&v->act);
    moec_kernels_close(v->k[0]);
    moec_kernels_close(v->k[1]);
    moec_model_destroy(v->own_model);
    moec_conversion_close(v->c);
    pthread_mutex_destroy(&v->lock);
}

moec_status moec_l3_open(moec_level3 *v, moec_error *err)
{
    const moec_validate_opts *o = v->opts;

    if (v->dir != NULL && o->source == NULL)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "a conversion is validated against its source, which "
                         "is missing");
    if (v->dir == NULL && o->layout == NULL)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "neither a directory nor a layout");
    if (v->dir != NULL) {
        MOEC_TRY(
            moec_conversion_open_at(&v->c, v->dir, v->store, o->families, err));
        v->layout = moec_conversion_layout(v->c);
        v->source = o->source;
    } else {
        v->layout = o->layout;
        v->source =
            moec_model_ckpt(moec_plan_model(moec_layout_plan(o->layout)));
    }
    v->plan = moec_layout_plan(v->layout);
    if (v->mutation == MOEC_MUTATION_ROUTER_BIAS_DROPPED && v->dir == NULL) {
        moec_mutant m;

        MOEC_TRY(moec_mutant_find(&m, v->layout, v->mutation, err));
        v->dropped = m.source;
    }
    if (v->patches == NULL || v->dir == NULL)
        return MOEC_OK;
    return moec_patches_make(v->patches, v->layout,
                             moec_conversion_files(v->c)->dirfd, err);
}
