/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Mutations at level 2: bytes that verify has read are replaced before it
 * looks at them. A replacement is made by moves from another place of the
 * output files (the executor that converts also lies for us here), so that a
 * mutation of any size needs no memory beyond one read. No file is written.
 */

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "execute.h"
#include "model.h"
#include "mutate.h"
#include "verify.h"

/* ------------------------------------------------------- what is replaced */

static moec_status add_name(moec_patches *p, const char *name, moec_error *err)
{
    for (size_t i = 0; i < p->n_names; i++)
        if (strcmp(p->names[i], name) == 0)
            return MOEC_OK;
    if (!MOEC_GROW(p->names, p->n_names, p->cap_names))
        return moec_fail_nomem(err, "names of changed files");
    (void)snprintf(p->names[p->n_names++], sizeof(*p->names), "%s", name);
    return MOEC_OK;
}

static moec_status add_patch(moec_patches *p, const moec_patch *k,
                             moec_error *err)
{
    if (!MOEC_GROW(p->items, p->n, p->cap))
        return moec_fail_nomem(err, "patches of a mutation");
    MOEC_TRY(add_name(p, moec_layout_file(p->layout, k->file)->name, err));
    p->items[p->n++] = *k;
    return MOEC_OK;
}

/* The move that copies `bytes` bytes as they are. */
static moec_move whole(uint64_t bytes)
{
    moec_move m = {.op = MOEC_OP_COPY,
                   .elem_bytes = 1,
                   .n_rows = 1,
                   .n_cols = bytes,
                   .src_row = bytes,
                   .src_col = 1,
                   .dst_row = bytes,
                   .dst_col = 1};

    return m;
}

/* A patch over row `row` of slot tensor (layer, t) on `rank`: zeros. */
static moec_patch over_slot(const moec_patches *p, size_t layer, size_t t,
                            uint32_t rank, uint32_t row)
{
    const moec_plan *plan = moec_layout_plan(p->layout);
    uint64_t bytes = moec_plan_slot_tensor(plan, layer, t)->slot_bytes;
    moec_patch k = {.bytes = bytes};

    moec_layout_find_slots(p->layout, rank, layer, t, &k.file, &k.off);
    k.off += row * bytes;
    return k;
}

/* Make `k` read what stands in another slot. */
static void from_slot(const moec_patches *p, moec_patch *k, size_t layer,
                      size_t t, uint32_t rank, uint32_t row)
{
    moec_patch from = over_slot(p, layer, t, rank, row);

    k->from_file = from.file;
    k->from_off = from.off;
    k->n_moves = 1;
    k->moves[0] = whole(k->bytes);
}

/* Rows of all slot tensors of a layer: (rank, row) reads what (from_layer,
 * from_rank, from_row) holds. */
static moec_status copy_row(moec_patches *p, size_t layer, uint32_t rank,
                            uint32_t row, size_t from_layer, uint32_t from_rank,
                            uint32_t from_row, moec_error *err)
{
    const moec_plan *plan = moec_layout_plan(p->layout);

    for (size_t t = 0; t < moec_plan_n_slot_tensors(plan, layer); t++) {
        moec_patch k = over_slot(p, layer, t, rank, row);
        if (moec_plan_slot_tensor(plan, layer, t)->all_slots)
            continue; /* its rows are no local ones */
        from_slot(p, &k, from_layer, t, from_rank, from_row);
        MOEC_TRY(add_patch(p, &k, err));
    }
    return MOEC_OK;
}

/* ------------------------------------------------------------- the kinds */

static moec_status swap_slots(moec_patches *p, moec_error *err)
{
    const moec_mutant *m = &p->mutant;

    MOEC_TRY(copy_row(p, m->layer, m->rank, m->row, m->layer, m->other_rank,
                      m->other_row, err));
    return copy_row(p, m->layer, m->other_rank, m->other_row, m->layer, m->rank,
                    m->row, err);
}

static moec_status e_for_p(moec_patches *p, moec_error *err)
{
    const moec_plan *plan = moec_layout_plan(p->layout);
    moec_topology topo = moec_plan_topology(plan);
    uint32_t i = moec_model_facts(moec_plan_model(plan))->n_experts;

    for (; i < topo.n_physical; i++) {
        uint32_t rank = i / topo.n_local;
        MOEC_TRY(copy_row(p, p->mutant.layer, rank, i % topo.n_local,
                          p->mutant.layer, rank, topo.n_local, err));
    }
    return MOEC_OK;
}

static moec_status shared_first(moec_patches *p, moec_error *err)
{
    const moec_plan *plan = moec_layout_plan(p->layout);
    uint32_t shared = moec_plan_shared_rows(plan);
    uint32_t n = moec_plan_topology(plan).n_local + shared;

    for (uint32_t row = 0; row < n; row++)
        MOEC_TRY(copy_row(p, p->mutant.layer, 0, row, p->mutant.layer, 0,
                          (row + n - shared) % n, err));
    return MOEC_OK;
}

static moec_status shared_missing(moec_patches *p, moec_error *err)
{
    const moec_mutant *m = &p->mutant;
    const moec_plan *plan = moec_layout_plan(p->layout);

    for (size_t t = 0; t < moec_plan_n_slot_tensors(plan, m->layer); t++) {
        moec_patch k = over_slot(p, m->layer, t, m->rank, m->other_row);
        if (!moec_plan_slot_tensor(plan, m->layer, t)->all_slots)
            MOEC_TRY(add_patch(p, &k, err));
    }
    return MOEC_OK;
}

/* The slot from itself, its halves changed. A tensor that keeps [in, out] has
 * them side by side in every row, others one after the other. */
static moec_status gate_up_swapped(moec_patches *p, moec_error *err)
{
    const moec_mutant *m = &p->mutant;
    const moec_plan *plan = moec_layout_plan(p->layout);
    moec_patch k = over_slot(p, m->layer, m->t, m->rank, m->row);
    uint32_t unit =
        moec_plan_unit(plan, m->layer, m->rank, (moec_local_row){m->row});
    moec_move own[MOEC_BLOCK_MOVES_MAX];
    size_t n = moec_plan_block_moves(plan, m->layer, m->t, unit, own);
    uint64_t half = k.bytes / 2, rows = 1;

    if (n == 2 && own[0].dst_row > own[0].n_cols * own[0].dst_col) {
        rows = own[0].n_rows;
        half = k.bytes / rows / 2;
    }
    k.from_file = k.file;
    k.from_off = k.off;
    k.n_moves = 2;
    k.moves[0] = k.moves[1] = whole(half);
    for (uint32_t i = 0; i < 2; i++) {
        k.moves[i].n_rows = rows;
        k.moves[i].src_row = k.moves[i].dst_row = 2 * half;
        k.moves[i].src_off = i * half;
        k.moves[i].dst_off = half - i * half;
    }
    return add_patch(p, &k, err);
}

static moec_status transposed_down(moec_patches *p, moec_error *err)
{
    const moec_mutant *m = &p->mutant;
    const moec_plan *plan = moec_layout_plan(p->layout);
    moec_patch k = over_slot(p, m->layer, m->t, m->rank, m->row);
    uint32_t unit =
        moec_plan_unit(plan, m->layer, m->rank, (moec_local_row){m->row});
    moec_move own[MOEC_BLOCK_MOVES_MAX], *v = &k.moves[0];

    (void)moec_plan_block_moves(plan, m->layer, m->t, unit, own);
    *v = own[0];
    v->op = MOEC_OP_TRANSPOSE;
    v->tensor = 0;
    v->src_off = 0;
    v->src_row = v->elem_bytes;
    v->src_col = v->n_rows * v->elem_bytes;
    k.from_file = k.file;
    k.from_off = k.off;
    k.n_moves = 1;
    return add_patch(p, &k, err);
}

/* All slots of one tensor of one rank: zeros. */
static moec_status tensor_dropped(moec_patches *p, moec_error *err)
{
    const moec_mutant *m = &p->mutant;
    const moec_plan *plan = moec_layout_plan(p->layout);
    moec_patch k = over_slot(p, m->layer, m->t, m->rank, 0);

    k.bytes *= moec_plan_slot_tensor(plan, m->layer, m->t)->shape[0];
    return add_patch(p, &k, err);
}

static moec_status scale_of_neighbour(moec_patches *p, moec_error *err)
{
    const moec_mutant *m = &p->mutant;
    moec_patch k = over_slot(p, m->layer, m->t, m->rank, m->row);

    from_slot(p, &k, m->layer, m->t, m->other_rank, m->other_row);
    return add_patch(p, &k, err);
}

static moec_status router_bias_dropped(moec_patches *p, moec_error *err)
{
    const moec_model *model = moec_plan_model(moec_layout_plan(p->layout));
    moec_patch k = {0};

    k.bytes = moec_ckpt_tensor(moec_model_ckpt(model), p->mutant.source)->bytes;
    if (!moec_layout_find_common(p->layout, p->mutant.source, &k.file, &k.off))
        return moec_mutant_refuse(p->mutant.kind, "its bias has no file", err);
    return add_patch(p, &k, err);
}

/* All slots of the layer on rank 0 from those of the other layer. */
static moec_status other_layer(moec_patches *p, moec_error *err)
{
    const moec_mutant *m = &p->mutant;
    const moec_plan *plan = moec_layout_plan(p->layout);
    uint32_t n = moec_plan_topology(plan).n_local + moec_plan_shared_rows(plan);

    for (uint32_t row = 0; row < n; row++)
        MOEC_TRY(copy_row(p, m->layer, 0, row, m->other_layer, 0, row, err));
    return MOEC_OK;
}

static moec_status swap_files(moec_patches *p, moec_error *err)
{
    const moec_mutant *m = &p->mutant;
    size_t file[2];
    uint64_t off, bytes;

    moec_layout_find_slots(p->layout, m->rank, m->layer, 0, &file[0], &off);
    moec_layout_find_slots(p->layout, m->other_rank, m->layer, 0, &file[1],
                           &off);
    bytes = moec_min_u64(moec_layout_file(p->layout, file[0])->bytes,
                         moec_layout_file(p->layout, file[1])->bytes);
    for (uint32_t i = 0; i < 2; i++) {
        moec_patch k = {.file = file[i],
                        .bytes = bytes,
                        .from_file = file[1 - i],
                        .n_moves = 1,
                        .moves = {whole(bytes)}};
        MOEC_TRY(add_patch(p, &k, err));
    }
    return MOEC_OK;
}

/* The header with one dtype changed: "F16" and a space for "BF16". */
static moec_status bf16_as_f16(moec_patches *p, moec_error *err)
{
    static const char f16[6] = {'"', 'F', '1', '6', '"', ' '};
    const moec_mutant *m = &p->mutant;
    const moec_plan *plan = moec_layout_plan(p->layout);
    const char *name = moec_plan_slot_tensor(plan, m->layer, m->t)->name;
    moec_patch k = over_slot(p, m->layer, m->t, m->rank, 0);
    char *entry, *dtype = NULL;
    moec_status st;

    k.off = 0;
    MOEC_TRY(moec_layout_header(p->layout, k.file, &k.data, &k.bytes, err));
    entry = memmem(k.data, (size_t)k.bytes, name, strlen(name));
    if (entry != NULL)
        dtype =
            memmem(entry, (size_t)(k.bytes - (size_t)(entry - (char *)k.data)),
                   "\"BF16\"", 6);
    if (dtype == NULL) {
        st = moec_fail(err, MOEC_E_INTERNAL, MOEC_RULE_NONE,
                       "'%s' is not BF16 in its header", name);
        free(k.data);
        return st;
    }
    memcpy(dtype, f16, sizeof(f16));
    st = add_patch(p, &k, err);
    if (st != MOEC_OK)
        free(k.data);
    return st;
}

static moec_status make(moec_patches *p, moec_error *err)
{
    const moec_mutant *m = &p->mutant;

    switch (m->kind) {
    case MOEC_MUTATION_SWAP_SLOTS:
        return swap_slots(p, err);
    case MOEC_MUTATION_E_FOR_P:
        return e_for_p(p, err);
    case MOEC_MUTATION_SHARED_FIRST:
        return shared_first(p, err);
    case MOEC_MUTATION_SHARED_MISSING:
        return shared_missing(p, err);
    case MOEC_MUTATION_GATE_UP_SWAPPED:
        return gate_up_swapped(p, err);
    case MOEC_MUTATION_TRANSPOSED_DOWN:
        return transposed_down(p, err);
    case MOEC_MUTATION_REPLICA_STALE:
        return copy_row(p, m->layer, m->rank, m->row, m->other_layer,
                        m->other_rank, m->other_row, err);
    case MOEC_MUTATION_SCALE_DROPPED:
    case MOEC_MUTATION_BIAS_DROPPED:
        return tensor_dropped(p, err);
    case MOEC_MUTATION_SCALE_OF_NEIGHBOUR:
        return scale_of_neighbour(p, err);
    case MOEC_MUTATION_ROUTER_BIAS_DROPPED:
        return router_bias_dropped(p, err);
    case MOEC_MUTATION_LAYER_OFF_BY_ONE:
    case MOEC_MUTATION_MTP_AS_MAIN:
        return other_layer(p, err);
    case MOEC_MUTATION_RANK_FILES_SWAPPED:
        return swap_files(p, err);
    case MOEC_MUTATION_BF16_AS_F16:
        return bf16_as_f16(p, err);
    case MOEC_MUTATION_WRONG_NORM_TOPK:
    case MOEC_MUTATION_RSF_TWICE:
    case MOEC_MUTATION_RSF_MISSING:
    case MOEC_MUTATION_SHARED_WEIGHT_RENORMALISED:
    case MOEC_MUTATION_COUNT:
        break;
    }
    return moec_mutant_refuse(m->kind, "it needs level kernels", err);
}

moec_status moec_patches_make(moec_patches *p, const moec_layout *layout,
                              int dirfd, moec_error *err)
{
    p->layout = layout;
    p->dirfd = dirfd;
    MOEC_TRY(moec_mutant_find(&p->mutant, layout, p->mutant.kind, err));
    return make(p, err);
}

void moec_patches_fini(moec_patches *p)
{
    for (size_t i = 0; i < p->n; i++)
        free(p->items[i].data);
    moec_free(p->items);
    moec_free(p->names);
    p->items = NULL;
    p->names = NULL;
    p->n = p->cap = p->n_names = p->cap_names = 0;
}

/* ------------------------------------------------------------ the reading */

bool moec_patches_concern(const moec_patches *p, size_t file)
{
    if (p == NULL)
        return true;
    for (size_t i = 0; i < p->n; i++)
        if (p->items[i].file == file)
            return true;
    return false;
}

/* Where a patch's moves read. */
typedef struct origin {
    int fd;
    const char *name;
    uint64_t off;
} origin;

static moec_status read_origin(void *ctx, uint32_t tensor, uint64_t off,
                               void *buf, size_t n, moec_error *err)
{
    const origin *o = ctx;

    (void)tensor;
    return moec_pread_full(o->fd, o->name, buf, n, o->off + off, err);
}

/* Bytes [from, to) of the patch. */
static moec_status make_bytes(const moec_patches *p, const moec_patch *k,
                              uint64_t from, uint64_t to, unsigned char *dst,
                              moec_error *err)
{
    origin o = {.fd = -1,
                .name = moec_layout_file(p->layout, k->from_file)->name,
                .off = k->from_off};
    moec_scratch scratch = {0};
    uint64_t bytes;
    moec_status st;

    if (k->data != NULL) {
        memcpy(dst, (const unsigned char *)k->data + from, (size_t)(to - from));
        return MOEC_OK;
    }
    memset(dst, 0, (size_t)(to - from));
    if (k->n_moves == 0)
        return MOEC_OK;
    MOEC_TRY(moec_open_regular(p->dirfd, o.name, &o.fd, &bytes, err));
    st = moec_block_read(k->moves, k->n_moves, from, to, dst, read_origin, &o,
                         &scratch, err);
    moec_scratch_fini(&scratch);
    close(o.fd);
    return st;
}

static moec_status apply_one(moec_patches *p, const moec_patch *k, uint64_t off,
                             unsigned char *buf, size_t n, moec_error *err)
{
    uint64_t from = moec_max_u64(off, k->off);
    uint64_t to = moec_min_u64(off + n, k->off + k->bytes);
    unsigned char *made;
    moec_status st;

    if (from >= to)
        return MOEC_OK;
    made = moec_alloc((size_t)(to - from));
    if (made == NULL)
        return moec_fail_nomem(err, "bytes of a mutation");
    st = make_bytes(p, k, from - k->off, to - k->off, made, err);
    if (st == MOEC_OK) {
        unsigned char *at = buf + (from - off);
        if (memcmp(at, made, (size_t)(to - from)) != 0)
            atomic_store(&p->changed, true);
        memcpy(at, made, (size_t)(to - from));
    }
    moec_free(made);
    return st;
}

moec_status moec_patches_apply(moec_patches *p, size_t file, uint64_t off,
                               void *buf, size_t n, moec_error *err)
{
    if (p == NULL || !p->on)
        return MOEC_OK;
    for (size_t i = 0; i < p->n; i++)
        if (p->items[i].file == file)
            MOEC_TRY(apply_one(p, &p->items[i], off, buf, n, err));
    return MOEC_OK;
}

/* ------------------------------------------------------------- the entry */

static bool is_named(const moec_patches *p, const moec_report *r,
                     moec_rule rule)
{
    for (size_t i = 0; i < moec_report_n_findings(r); i++) {
        const moec_finding *f = moec_report_finding(r, i);
        if (f->rule != rule || f->severity != MOEC_SEVERITY_ERROR ||
            (f->has & MOEC_HAS_FILE) == 0)
            continue;
        for (size_t k = 0; k < p->n_names; k++)
            if (strcmp(p->names[k], f->file) == 0)
                return true;
    }
    return false;
}

/* The files that will be changed must be good as they are. */
static moec_status verify_clean(moec_patches *p, const char *dir,
                                const moec_verify_opts *opts, moec_error *err)
{
    moec_report *r;
    moec_status st = MOEC_OK;

    p->on = false;
    MOEC_TRY(moec_verify_patched(&r, dir, opts, p, err));
    for (size_t i = 0; st == MOEC_OK && i < moec_report_n_findings(r); i++) {
        const moec_finding *f = moec_report_finding(r, i);
        if (f->severity == MOEC_SEVERITY_ERROR)
            st = moec_fail(err, MOEC_E_INTEGRITY, f->rule,
                           "%s: the conversion is wrong before it is changed: "
                           "%s",
                           dir, f->message);
    }
    moec_report_destroy(r);
    return st;
}

moec_status moec_verify_mutation(moec_report **out, int *found_out,
                                 const char *dir, moec_mutation kind,
                                 const moec_verify_opts *opts, moec_error *err)
{
    const moec_mutation_info *info = moec_mutation_describe(kind);
    moec_verify_opts own = MOEC_VERIFY_OPTS_INIT;
    moec_patches p = {.mutant = {.kind = kind}};
    moec_report *r = NULL;
    moec_status st;

    if (opts != NULL) {
        own.n_threads = opts->n_threads;
        own.families = opts->families;
        own.progress = opts->progress;
        own.progress_ctx = opts->progress_ctx;
    }
    if (info == NULL)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "no kind of mutation has number %d", (int)kind);
    st = verify_clean(&p, dir, &own, err);
    if (st == MOEC_OK) {
        p.on = true;
        st = moec_verify_patched(&r, dir, &own, &p, err);
    }
    if (st == MOEC_OK && !atomic_load(&p.changed)) {
        moec_report_destroy(r);
        st = moec_mutant_refuse(kind,
                                "the bytes are alike, so nothing is "
                                "changed by it",
                                err);
    }
    if (st == MOEC_OK) {
        *found_out = is_named(&p, r, info->digests_rule);
        *out = r;
    }
    moec_patches_fini(&p);
    return st;
}
