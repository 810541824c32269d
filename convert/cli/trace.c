/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Follows one expert along the plan's own moves, so that what explain shows is
 * what convert does. A stretch of the source is the hull of the moves that
 * read it: an expert's moves tile it (interleaved halves, columns of a split
 * shared expert taken together), so the hull holds nothing else.
 */
#include "trace.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "print.h"

static moec_status no_memory(moec_error *err)
{
    return moec_cli_error(err, MOEC_E_NOMEM, MOEC_RULE_NONE,
                          "no memory to follow the expert");
}

static const moec_plan *plan_of(const moec_trace *t)
{
    return moec_layout_plan(t->layout);
}

static const moec_model *model_of(const moec_trace *t)
{
    return moec_plan_model(plan_of(t));
}

/* ------------------------------------------------------------ regions */

/* Widen the region of `tensor` to hold [from, to), or begin one. */
static moec_status add_region(moec_trace *t, size_t tensor, uint64_t from,
                              uint64_t to, moec_error *err)
{
    moec_trace_region *r;
    for (size_t i = 0; i < t->n_regions; i++) {
        r = &t->regions[i];
        if (r->tensor != tensor)
            continue;
        uint64_t end = r->from + r->bytes;
        r->from = from < r->from ? from : r->from;
        r->bytes = (to > end ? to : end) - r->from;
        return MOEC_OK;
    }
    if (t->n_regions == t->cap_regions) {
        size_t cap = t->cap_regions * 2 + 8;
        r = reallocarray(t->regions, cap, sizeof(*r));
        if (r == NULL)
            return no_memory(err);
        t->regions = r;
        t->cap_regions = cap;
    }
    r = &t->regions[t->n_regions++];
    memset(r, 0, sizeof(*r));
    r->tensor = tensor;
    r->from = from;
    r->bytes = to - from;
    return MOEC_OK;
}

/* Regions of what fills a routed slot. */
static moec_status follow_moves(moec_trace *t, uint32_t unit, moec_error *err)
{
    moec_move moves[MOEC_BLOCK_MOVES_MAX];
    for (size_t k = 0; k < moec_trace_n_pieces(t); k++) {
        size_t n = moec_plan_block_moves(plan_of(t), t->layer, k, unit, moves);
        for (size_t i = 0; i < n; i++) {
            const moec_move *m = &moves[i];
            if (m->op == MOEC_OP_FILL || m->n_rows == 0 || m->n_cols == 0)
                continue;
            uint64_t to = m->src_off + (m->n_rows - 1) * m->src_row +
                          (m->n_cols - 1) * m->src_col + m->elem_bytes;
            moec_status st = add_region(t, m->tensor, m->src_off, to, err);
            if (st != MOEC_OK)
                return st;
        }
    }
    return MOEC_OK;
}

/* The shared expert is whole tensors, whether it takes slots or not. */
static moec_status follow_shared(moec_trace *t, moec_error *err)
{
    const moec_ckpt *ckpt = moec_model_ckpt(model_of(t));
    size_t layer = moec_plan_model_layer(plan_of(t), t->layer);
    for (size_t i = 0; i < moec_ckpt_n_tensors(ckpt); i++) {
        moec_tensor_use use = moec_model_use(model_of(t), i);
        if (use.role != MOEC_ROLE_SHARED || use.layer != layer)
            continue;
        moec_status st =
            add_region(t, i, 0, moec_ckpt_tensor(ckpt, i)->bytes, err);
        if (st != MOEC_OK)
            return st;
    }
    if (t->n_regions == 0)
        return moec_cli_error(err, MOEC_E_MAPPING, MOEC_RULE_NONE,
                              "%s: the layer has no shared expert", t->prefix);
    return MOEC_OK;
}

static void name_regions(moec_trace *t)
{
    const moec_ckpt *ckpt = moec_model_ckpt(model_of(t));
    for (size_t i = 0; i < t->n_regions; i++) {
        moec_trace_region *r = &t->regions[i];
        const moec_tensor *tensor = moec_ckpt_tensor(ckpt, r->tensor);
        size_t file = 0;
        uint64_t off = 0;
        r->name = tensor->name;
        r->file = moec_ckpt_file(ckpt, tensor->file)->name;
        r->off = tensor->off + r->from;
        if (moec_layout_find_common(t->layout, r->tensor, &file, &off) == 0)
            continue;
        r->kept_file = moec_layout_file(t->layout, file)->name;
        r->kept_off = off + r->from;
    }
}

/* -------------------------------------------------------------- slots */

size_t moec_trace_n_pieces(const moec_trace *t)
{
    return moec_plan_n_slot_tensors(plan_of(t), t->layer);
}

moec_trace_piece moec_trace_piece_of(const moec_trace *t,
                                     const moec_trace_slot *slot, size_t k)
{
    const moec_slot_tensor *st = moec_plan_slot_tensor(plan_of(t), t->layer, k);
    moec_trace_piece piece;
    size_t file = 0;
    uint64_t off = 0;
    moec_layout_find_slots(t->layout, slot->rank, t->layer, k, &file, &off);
    piece.tensor = st->name;
    piece.file = moec_layout_file(t->layout, file)->name;
    piece.off =
        off + moec_plan_row(plan_of(t), t->layer, k, slot->rank, slot->local) *
                  st->slot_bytes;
    piece.bytes = st->slot_bytes;
    return piece;
}

static moec_status add_slot(moec_trace *t, uint32_t rank, uint32_t row,
                            bool stored, moec_error *err)
{
    moec_topology topo = moec_plan_topology(plan_of(t));
    moec_trace_slot *s;
    if (t->n_slots == t->cap_slots) {
        size_t cap = t->cap_slots * 2 + 8;
        s = reallocarray(t->slots, cap, sizeof(*s));
        if (s == NULL)
            return no_memory(err);
        t->slots = s;
        t->cap_slots = cap;
    }
    s = &t->slots[t->n_slots++];
    memset(s, 0, sizeof(*s));
    s->rank = rank;
    s->local.v = row;
    if (row < topo.n_local) {
        s->slot =
            moec_physical_slot(topo, moec_local_physical(topo, rank, s->local));
    } else {
        s->part = row - topo.n_local;
        s->slot = moec_shared_slot(topo, rank, s->part);
    }
    if (stored) {
        moec_trace_piece piece = moec_trace_piece_of(t, s, 0);
        s->file = piece.file;
        s->off = piece.off;
    }
    return MOEC_OK;
}

static moec_status find_slots(moec_trace *t, moec_error *err)
{
    moec_topology topo = moec_plan_topology(plan_of(t));
    uint32_t stored = topo.n_local + moec_plan_shared_rows(plan_of(t));
    uint32_t rows = topo.n_local + topo.n_shared_slots;
    moec_status st = MOEC_OK;
    for (uint32_t rank = 0; rank < topo.n_ranks; rank++) {
        uint32_t row = t->shared ? topo.n_local : 0;
        uint32_t end = t->shared ? rows : topo.n_local;
        for (; row < end && st == MOEC_OK; row++) {
            moec_local_row local = {row};
            if (!t->shared &&
                moec_plan_unit(plan_of(t), t->layer, rank, local) != t->expert)
                continue;
            st = add_slot(t, rank, row, row < stored, err);
        }
    }
    return st;
}

/* ------------------------------------------------------------ digests */

static moec_status read_store(const moec_store *s, const char *file, void *buf,
                              size_t bytes, uint64_t off, moec_error *err)
{
    for (size_t i = 0; i < s->n_files; i++) {
        if (strcmp(s->files[i].name, file) == 0)
            return s->read_at(s->ctx, i, off, buf, bytes, err);
    }
    return moec_cli_error(err, MOEC_E_FORMAT, MOEC_RULE_M05,
                          "%s: %s is not there", s->name, file);
}

/* Read a stretch of a file of the conversion. */
static moec_status read_out(const moec_trace *t, const char *file, void *buf,
                            size_t bytes, uint64_t off, moec_error *err)
{
    char *path = NULL, *at = buf;
    moec_status st = MOEC_OK;
    int why = 0; /* of a failed call; 0: the file ends */
    if (t->store != NULL)
        return read_store(t->store, file, buf, bytes, off, err);
    if (asprintf(&path, "%s/%s", t->dir, file) < 0)
        return no_memory(err);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        why = errno;
    while (fd >= 0 && bytes > 0) {
        ssize_t n = pread(fd, at, bytes, (off_t)off);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            why = n < 0 ? errno : 0;
            break;
        }
        at += n;
        off += (uint64_t)n;
        bytes -= (size_t)n;
    }
    if (fd < 0 || bytes > 0)
        st = moec_cli_error(
            err, why == 0 || why == ENOENT ? MOEC_E_FORMAT : MOEC_E_IO,
            MOEC_RULE_M05, "%s: cannot be read at %" PRIu64 ": %s", path, off,
            why != 0 ? strerror(why) : "the file ends");
    if (fd >= 0)
        (void)close(fd);
    free(path);
    return st;
}

/* Put what `m` took out of the region back into `region`: the move, swapped.
 * `block` is the slot's row. */
static void take_back(const moec_trace_region *r, const moec_move *m,
                      const char *block, char *region)
{
    bool whole_rows =
        m->src_col == m->elem_bytes && m->dst_col == m->elem_bytes;
    for (uint64_t row = 0; row < m->n_rows; row++) {
        char *to = region + (m->src_off - r->from) + row * m->src_row;
        const char *from = block + m->dst_off + row * m->dst_row;
        if (whole_rows) {
            memcpy(to, from, m->n_cols * m->elem_bytes);
            continue;
        }
        for (uint64_t c = 0; c < m->n_cols; c++)
            memcpy(to + c * m->src_col, from + c * m->dst_col, m->elem_bytes);
    }
}

/* Rebuild a region out of the slots that hold `unit`. */
static moec_status gather(const moec_trace *t, const moec_trace_region *r,
                          const moec_trace_slot *slot, uint32_t unit,
                          char *region, moec_error *err)
{
    moec_move moves[MOEC_BLOCK_MOVES_MAX];
    moec_status st = MOEC_OK;
    for (size_t k = 0; k < moec_trace_n_pieces(t) && st == MOEC_OK; k++) {
        size_t n = moec_plan_block_moves(plan_of(t), t->layer, k, unit, moves);
        bool needed = false;
        for (size_t i = 0; i < n; i++)
            needed = needed || (moves[i].op != MOEC_OP_FILL &&
                                moves[i].tensor == r->tensor);
        if (!needed)
            continue;
        moec_trace_piece piece = moec_trace_piece_of(t, slot, k);
        char *block = malloc(piece.bytes);
        if (block == NULL)
            return no_memory(err);
        st = read_out(t, piece.file, block, piece.bytes, piece.off, err);
        for (size_t i = 0; i < n && st == MOEC_OK; i++) {
            if (moves[i].op != MOEC_OP_FILL && moves[i].tensor == r->tensor)
                take_back(r, &moves[i], block, region);
        }
        free(block);
    }
    return st;
}

/* Digest of a region whose source is known by its header alone. */
static moec_status digest_converted(const moec_trace *t, moec_trace_region *r,
                                    moec_error *err)
{
    uint32_t n_experts = moec_model_facts(model_of(t))->n_experts;
    moec_status st = MOEC_OK;
    char *region = calloc(1, r->bytes > 0 ? r->bytes : 1);
    if (region == NULL)
        return no_memory(err);
    if (r->kept_file != NULL)
        st = read_out(t, r->kept_file, region, r->bytes, r->kept_off, err);
    for (size_t i = 0; r->kept_file == NULL && i < t->n_slots && st == MOEC_OK;
         i++) {
        const moec_trace_slot *s = &t->slots[i];
        /* The first replica is enough; of the shared expert, the first
         * rank's parts. */
        if (i > 0 && (!t->shared || s->rank != t->slots[0].rank))
            break;
        uint32_t unit = t->shared ? n_experts + s->part : t->expert;
        st = gather(t, r, s, unit, region, err);
    }
    if (st == MOEC_OK)
        st = moec_digest_memory(region, r->bytes, r->sha256, err);
    free(region);
    return st;
}

static moec_status digest_regions(moec_trace *t, moec_error *err)
{
    const moec_ckpt *ckpt = moec_model_ckpt(model_of(t));
    moec_status st = MOEC_OK;
    for (size_t i = 0; i < t->n_regions && st == MOEC_OK; i++) {
        moec_trace_region *r = &t->regions[i];
        if (t->dir != NULL)
            st = digest_converted(t, r, err);
        else
            st = moec_ckpt_digest(ckpt, r->tensor, r->from, r->bytes, r->sha256,
                                  err);
    }
    return st;
}

/* ---------------------------------------------------------------- run */

static moec_status no_such_layer(const moec_trace *t, moec_error *err)
{
    char name[24], main_layers[200], mtp[80] = "";
    size_t n_mtp = 0;
    for (size_t i = 0; i < moec_model_n_layers(model_of(t)); i++)
        n_mtp += moec_model_layer(model_of(t), i)->key.space == MOEC_SPACE_MTP;
    moec_cli_layer_ranges(main_layers, sizeof(main_layers), model_of(t),
                          MOEC_SPACE_MAIN);
    if (n_mtp > 0)
        (void)snprintf(mtp, sizeof(mtp), ", %s%zu%s",
                       n_mtp > 1 ? "mtp.0 to mtp." : "mtp.", n_mtp - 1,
                       moec_plan_options(plan_of(t))->no_mtp
                           ? " (left out by --no-mtp)"
                           : "");
    return moec_cli_error(err, MOEC_E_MAPPING, MOEC_RULE_NONE,
                          "layer %s is no MoE layer of this model; it has %s%s",
                          moec_cli_layer_name(name, t->key), main_layers, mtp);
}

static moec_status find_layer(moec_trace *t, moec_error *err)
{
    const moec_plan *plan = plan_of(t);
    for (size_t i = 0; i < moec_plan_n_layers(plan); i++) {
        const moec_moe_layer *l =
            moec_model_layer(model_of(t), moec_plan_model_layer(plan, i));
        if (l->key.space == t->key.space && l->key.number == t->key.number) {
            t->layer = i;
            t->prefix = l->experts_prefix;
            return MOEC_OK;
        }
    }
    return no_such_layer(t, err);
}

moec_status moec_trace_run(moec_trace *t, const moec_layout *layout,
                           const char *dir, moec_error *err)
{
    t->layout = layout;
    t->dir = dir;
    uint32_t n_experts = moec_model_facts(model_of(t))->n_experts;
    moec_status st = find_layer(t, err);
    if (st == MOEC_OK && !t->shared && t->expert >= n_experts)
        st = moec_cli_error(err, MOEC_E_MAPPING, MOEC_RULE_NONE,
                            "expert %" PRIu32 " is none of the %" PRIu32
                            " of this model: give 0 to %" PRIu32 " or shared",
                            t->expert, n_experts, n_experts - 1);
    if (st == MOEC_OK)
        st =
            t->shared ? follow_shared(t, err) : follow_moves(t, t->expert, err);
    if (st != MOEC_OK)
        return st;
    name_regions(t);
    st = find_slots(t, err);
    return st == MOEC_OK ? digest_regions(t, err) : st;
}

void moec_trace_fini(moec_trace *t)
{
    free(t->regions);
    free(t->slots);
    t->regions = NULL;
    t->slots = NULL;
}
