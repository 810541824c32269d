/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Every byte of the data files, read once by the loader's engine, against the
 * digests of slots.bin.
 * This pass follows slots.bin alone (whose tables are checked when decoded),
 * so that it also works where the layout cannot be decided again.
 */

#include <inttypes.h>
#include <string.h>

#include "engine.h"
#include "verify.h"

/* The engine's own choice where nobody asked is for reading; digests keep more
 * of them busy. */
#define THREADS_OF_LOAD 8u
/* 24 reads of 4 MiB under way, on two threads; less where memory is short. 8.8
 * GB cold, least of four beside each other, disk 3.2 s: 3.6 s; with half 3.8. */
#define RING_BYTES          (UINT64_C(128) << 20)
#define RING_BYTES_A_THREAD (UINT64_C(16) << 20)
#define RING_BYTES_LEAST    (UINT64_C(4) << 20)
#define STRETCH_BYTES       (UINT64_C(64) << 30)

/* What one piece of reading holds: a tensor of short rows, whole, or one row.
 * A long row comes in parts, in any order: the first byte or leaf that is wrong
 * is known when all have come. */
typedef struct item {
    size_t tensor;
    uint64_t row, n;
    bool bad;
    uint64_t bad_at; /* in the row */
    moec_sha256 found;
} item;

typedef struct pass {
    moec_verifier *v;
    item *items; /* of the files that are being read */
    size_t n, cap;
    size_t first, end;    /* these files */
    pthread_mutex_t lock; /* the items' `bad` */
} pass;

/* A tensor's slots; a filler is one slot. */
static uint64_t rows_of(const moec_ct_tensor *t)
{
    return t->kind == MOEC_CT_PAD ? 1 : t->n_slots;
}

static uint64_t block_of(const moec_ct_tensor *t)
{
    uint64_t rows = rows_of(t);

    return rows == 0 ? 0 : t->bytes / rows;
}

static moec_status add_item(pass *p, item it, moec_error *err)
{
    if (!MOEC_GROW(p->items, p->n, p->cap))
        return moec_fail_nomem(err, "list of work");
    p->items[p->n++] = it;
    return MOEC_OK;
}

static moec_status list_items(pass *p, moec_error *err)
{
    const moec_slots *s = &p->v->files->slots;
    size_t t = p->v->file_first[p->first];
    size_t end = p->end < s->n_files ? p->v->file_first[p->end] : s->n_tensors;

    p->n = 0;
    for (; t < end; t++) {
        const moec_ct_tensor *ct = &s->tensors[t];
        uint64_t rows = rows_of(ct), block = block_of(ct);
        uint64_t n = block > MOEC_LEAF_BYTES ? 1 : rows;

        if (block == 0 || p->v->io[ct->file].fd < 0 ||
            !moec_patches_concern(p->v->patches, ct->file))
            continue;
        for (uint64_t r = 0; r < rows; r += n)
            MOEC_TRY(add_item(p, (item){.tensor = t, .row = r, .n = n}, err));
    }
    return MOEC_OK;
}

/* First byte that is not zero, or n. */
static size_t first_set(const unsigned char *p, size_t n)
{
    size_t i = 0;

    if (n == 0 || (p[0] == 0 && memcmp(p, p + 1, n - 1) == 0))
        return n;
    while (p[i] == 0)
        i++;
    return i;
}

/* The digests of a row, or NULL where it must be zero. */
static const moec_ct_slot *slot_of(const pass *p, const moec_ct_tensor *t,
                                   uint64_t row)
{
    const moec_ct_slot *slot;

    if (t->kind == MOEC_CT_PAD)
        return NULL;
    slot = &p->v->files->slots.slots[t->first_slot + row];
    return slot->logical == MOEC_LOGICAL_EMPTY ? NULL : slot;
}

/* Bytes of a row from `from` on. Returns the first byte that is wrong, or that
 * of the first leaf that is, in *bad_out, or UINT64_MAX. */
static moec_status check_part(const pass *p, const moec_ct_tensor *t,
                              uint64_t row, uint64_t from,
                              const unsigned char *data, size_t n,
                              uint64_t *bad_out, moec_sha256 *found_out,
                              moec_error *err)
{
    const moec_ct_slot *slot = slot_of(p, t, row);
    size_t bad;

    if (slot == NULL) {
        bad = first_set(data, n);
        *bad_out = bad == n ? UINT64_MAX : from + bad;
        return MOEC_OK;
    }
    MOEC_TRY(moec_verify_leaves(p->v, slot, from / MOEC_LEAF_BYTES, data, n,
                                &bad, found_out, err));
    *bad_out = bad == SIZE_MAX ? UINT64_MAX : bad * MOEC_LEAF_BYTES;
    return MOEC_OK;
}

/* One finding a row. */
static void tell(const pass *p, const moec_ct_tensor *t, uint64_t row,
                 uint64_t bad_at, const moec_sha256 *sha)
{
    const moec_slots *s = &p->v->files->slots;
    moec_rule rule = t->kind == MOEC_CT_SLOTS ? MOEC_RULE_T3 : MOEC_RULE_M07;
    moec_finding f = moec_verify_finding(p->v, rule, t, row, bad_at);
    const moec_ct_slot *slot = slot_of(p, t, row);
    uint64_t leaf = bad_at / MOEC_LEAF_BYTES;
    char expected[65], found[65];

    if (slot == NULL) {
        moec_report_add(p->v->r, &f, "byte %" PRIu64 " of %s is not zero",
                        bad_at,
                        t->kind == MOEC_CT_PAD ? "a filler" : "an empty slot");
        return;
    }
    moec_hex(s->leaves[slot->first_leaf + leaf].sha256.b, 32, expected);
    moec_hex(sha->b, 32, found);
    f.has |= MOEC_HAS_EXPECTED | MOEC_HAS_FOUND;
    f.expected = expected;
    f.found = found;
    moec_report_add(p->v->r, &f,
                    "leaf %" PRIu64
                    " of the %s does not have the digest of slots.bin",
                    leaf, t->kind == MOEC_CT_SLOTS ? "slot" : "tensor");
}

static moec_status visit_long(pass *p, item *it, const moec_ct_tensor *t,
                              uint64_t at, const unsigned char *data, size_t n,
                              moec_error *err)
{
    moec_sha256 sha = {{0}};
    uint64_t bad;

    MOEC_TRY(check_part(p, t, it->row, at, data, n, &bad, &sha, err));
    if (bad == UINT64_MAX)
        return MOEC_OK;
    pthread_mutex_lock(&p->lock);
    if (!it->bad || bad < it->bad_at) {
        it->bad = true;
        it->bad_at = bad;
        it->found = sha;
    }
    pthread_mutex_unlock(&p->lock);
    return MOEC_OK;
}

static moec_status visit(void *ctx, const moec_piece *piece, uint64_t at,
                         void *data, uint64_t n, moec_error *err)
{
    pass *p = ctx;
    item *it = &p->items[piece->tag];
    const moec_ct_tensor *t = &p->v->files->slots.tensors[it->tensor];
    uint64_t block = block_of(t);
    unsigned char *b = data;

    MOEC_TRY(moec_patches_apply(p->v->patches, t->file, piece->off + at, data,
                                (size_t)n, err));
    if (block > MOEC_LEAF_BYTES) {
        MOEC_TRY(visit_long(p, it, t, at, b, (size_t)n, err));
        return moec_verify_progress(p->v, n, err);
    }
    for (uint64_t k = 0; k < n; k += block) {
        uint64_t row = (at + k) / block, bad;
        moec_sha256 sha = {{0}};

        MOEC_TRY(
            check_part(p, t, row, 0, b + k, (size_t)block, &bad, &sha, err));
        if (bad != UINT64_MAX)
            tell(p, t, row, bad, &sha);
    }
    return moec_verify_progress(p->v, n, err);
}

/* --------------------------------------------------------------- reading */

static moec_status make_pieces(const pass *p, moec_piece **out, moec_error *err)
{
    moec_piece *pieces = moec_calloc(p->n + 1, sizeof(*pieces));

    if (pieces == NULL || p->n >= UINT32_MAX) {
        moec_free(pieces);
        return moec_fail_nomem(err, "list of work");
    }
    for (size_t i = 0; i < p->n; i++) {
        const item *it = &p->items[i];
        const moec_ct_tensor *t = &p->v->files->slots.tensors[it->tensor];
        uint64_t block = block_of(t);

        pieces[i] = (moec_piece){
            .file = t->file,
            .group = (uint32_t)(t->file - p->first),
            .off = t->off + it->row * block,
            .elem_bytes = 1,
            .n_rows = 1,
            .n_cols = it->n * block,
            .src_col = 1,
            .dst_col = 1,
            .tag = (uint32_t)i,
            .unit = (uint32_t)moec_min_u64(block, MOEC_LEAF_BYTES)};
    }
    *out = pieces;
    return MOEC_OK;
}

/* Files as the engine wants them; each is opened again through its
 * descriptor, and is surely the same. */
typedef struct open_files {
    moec_engine_file *f;
    char (*path)[32];
} open_files;

static moec_status make_files(const pass *p, open_files *o, moec_error *err)
{
    size_t n = p->v->files->slots.n_files;

    o->f = moec_calloc(n + 1, sizeof(*o->f));
    o->path = moec_calloc(n + 1, sizeof(*o->path));
    if (o->f == NULL || o->path == NULL)
        return moec_fail_nomem(err, "table of data files");
    for (size_t i = 0; i < n; i++) {
        const moec_ct_file *c = &p->v->files->slots.files[i];

        o->f[i] = (moec_engine_file){c->name, NULL, -1, c->bytes};
        if (p->v->io[i].read != NULL)
            continue;
        snprintf(o->path[i], sizeof(o->path[i]), "/proc/self/fd/%d",
                 p->v->io[i].fd);
        o->f[i].path = o->path[i];
        o->f[i].fd = p->v->io[i].fd;
    }
    return MOEC_OK;
}

/* Of a file behind a source. */
static moec_status read_at(void *ctx, uint32_t file, uint64_t off, void *buf,
                           size_t n, moec_error *err)
{
    const moec_io_file *f = &((const pass *)ctx)->v->io[file];

    return f->read(f->ctx, f->file, off, buf, n, err);
}

static moec_status run_engine(pass *p, const open_files *o,
                              const moec_piece *pieces, uint64_t ring,
                              uint32_t *ready_out, moec_error *err)
{
    moec_engine_opts opts = {.n_threads = p->v->opts->n_threads,
                             .ring_bytes = ring,
                             .read_at = read_at,
                             .read_ctx = p,
                             .visit = visit,
                             .ctx = p};
    moec_engine_stats stats;
    moec_engine *e = NULL;
    moec_status st;

    if (opts.n_threads == 0 && moec_cpu_count() > THREADS_OF_LOAD)
        opts.n_threads = moec_cpu_count(); /* they digest, too */
    st = moec_engine_create(&e, o->f, p->v->files->slots.n_files, pieces, p->n,
                            (uint32_t)(p->end - p->first), &opts, err);
    if (st == MOEC_OK)
        st = moec_engine_start(e, err);
    if (st == MOEC_OK)
        st = moec_engine_wait(e, err);
    if (e != NULL) {
        moec_engine_poll(e, &stats);
        *ready_out = stats.n_groups_ready;
    }
    moec_engine_destroy(e);
    return st;
}

/* Of files before `end`; those behind it are read again. (What their short
 * rows had to tell is told twice then.) */
static void tell_long(const pass *p, size_t end)
{
    for (size_t i = 0; i < p->n; i++) {
        const item *it = &p->items[i];
        const moec_ct_tensor *t = &p->v->files->slots.tensors[it->tensor];

        if (it->bad && t->file < end)
            tell(p, t, it->row, it->bad_at, &it->found);
    }
}

/* Read the pass's files; with less memory where there is not enough. */
static moec_status read_files(pass *p, const open_files *o, uint32_t *ready_out,
                              moec_error *err)
{
    uint64_t ring = moec_max_u64(RING_BYTES, RING_BYTES_A_THREAD *
                                                 (p->v->opts->n_threads != 0
                                                      ? p->v->opts->n_threads
                                                      : moec_cpu_count()));
    moec_piece *pieces = NULL;
    moec_error e = MOEC_ERROR_INIT;
    moec_status st;

    *ready_out = 0;
    MOEC_TRY(list_items(p, err));
    if (p->n == 0)
        return MOEC_OK;
    MOEC_TRY(make_pieces(p, &pieces, err));
    for (;; ring /= 2) {
        e = (moec_error)MOEC_ERROR_INIT;
        st = run_engine(p, o, pieces, ring, ready_out, &e);
        if (st != MOEC_E_NOMEM || ring / 2 < RING_BYTES_LEAST)
            break;
    }
    moec_free(pieces);
    tell_long(p, p->end - p->first > 1 && st != MOEC_OK ? p->first + *ready_out
                                                        : p->end);
    if (st != MOEC_OK && err != NULL)
        *err = e;
    return st;
}

/* A file that became shorter, or another, while it was read. */
static moec_status settle(const pass *p, size_t file, moec_error *e,
                          moec_error *err)
{
    if (e->status != MOEC_E_FORMAT)
        return moec_hand_on(err, e->status, e);
    e->rule = MOEC_RULE_M05;
    moec_report_add_error(p->v->r, p->v->files->slots.files[file].name,
                          MOEC_RULE_M05, e);
    return MOEC_OK;
}

/* Files [first, end). Where one of them changes the others are read alone, but
 * for those that were done. */
static moec_status read_range(pass *p, const open_files *o, size_t first,
                              size_t end, moec_error *err)
{
    moec_error e = MOEC_ERROR_INIT;
    uint32_t ready = 0;
    moec_status st;

    p->first = first;
    p->end = end;
    st = read_files(p, o, &ready, &e);
    if (st == MOEC_OK)
        return st;
    if (st != MOEC_E_FORMAT || end - first == 1)
        return settle(p, first, &e, err);
    for (size_t i = first + ready; i < end; i++)
        MOEC_TRY(read_range(p, o, i, i + 1, err));
    return MOEC_OK;
}

/* In stretches whose lists stay small beside the buffers. */
static moec_status read_all(pass *p, moec_error *err)
{
    const moec_slots *s = &p->v->files->slots;
    open_files o = {NULL, NULL};
    moec_status st = make_files(p, &o, err);

    for (size_t i = 0, end; st == MOEC_OK && i < s->n_files; i = end) {
        uint64_t bytes = s->files[i].bytes;

        for (end = i + 1; end < s->n_files && bytes < STRETCH_BYTES; end++)
            bytes += moec_min_u64(s->files[end].bytes, STRETCH_BYTES);
        st = read_range(p, &o, i, end, err);
    }
    moec_free(o.path);
    moec_free(o.f);
    return st;
}

/* ------------------------------------------------------------- slots.bin */

/* The slot's own digest is over its leaves' digests: slots.bin against
 * itself. */
static moec_status check_slot_digests(const pass *p, moec_error *err)
{
    const moec_slots *s = &p->v->files->slots;
    moec_buf all = {0};
    moec_status st = MOEC_OK;

    for (size_t i = 0; st == MOEC_OK && i < s->n_slots; i++) {
        const moec_ct_slot *slot = &s->slots[i];
        moec_finding f = {.rule = MOEC_RULE_M03,
                          .severity = MOEC_SEVERITY_ERROR,
                          .has = MOEC_HAS_FILE,
                          .file = MOEC_SLOTS_NAME};
        moec_sha256 sha;

        all.len = 0;
        for (uint32_t l = 0; l < slot->n_leaves; l++)
            moec_buf_append(&all, s->leaves[slot->first_leaf + l].sha256.b, 32);
        if (all.oom)
            st = moec_fail_nomem(err, "digests of a slot");
        else
            st = moec_sha256_of(all.data, all.len, &sha, err);
        if (st == MOEC_OK && memcmp(sha.b, slot->sha256.b, 32) != 0)
            moec_report_add(p->v->r, &f,
                            "slot %zu: its digest is not that of its leaves",
                            i);
    }
    moec_buf_fini(&all);
    return st;
}

moec_status moec_verify_bytes(moec_verifier *v, moec_error *err)
{
    pass p = {.v = v};
    moec_status st = check_slot_digests(&p, err);

    if (st != MOEC_OK)
        return st;
    if (pthread_mutex_init(&p.lock, NULL) != 0)
        return moec_fail_nomem(err, "a lock");
    st = read_all(&p, err);
    if (st == MOEC_OK)
        moec_report_ran(v->r, MOEC_RULE_T3, v->files->slots.n_slots);
    pthread_mutex_destroy(&p.lock);
    moec_free(p.items);
    return st;
}
