/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Where things go: what the caller placed, and the arena for the rest. One
 * request for all of it is the default: registering one region costs a server
 * a tenth of registering each tensor. Inside, slot tensors of a layer follow
 * each other as they do in a converted file, each at a multiple of 4096.
 */

#include <inttypes.h>
#include <string.h>

#include "job_parts.h"

static moec_status check_slots(const moec_job *j, size_t layer, size_t t,
                               moec_error *err)
{
    if (layer < j->n_layers && t < j->layers[layer].n)
        return MOEC_OK;
    return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                     "the plan has no slot tensor %zu of planned layer %zu", t,
                     layer);
}

static moec_status check_open(const moec_job *j, moec_error *err)
{
    MOEC_TRY(moec_job_check_process(j, err));
    if (!j->planned && j->expert == NULL)
        return MOEC_OK;
    return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                     "the job was started: its places are settled");
}

/* The dimension of the slot tensor that runs along the expert's width. */
static uint32_t cut_dimension(const moec_slot_axes *a,
                              const moec_slot_tensor *s)
{
    if (a->cut == MOEC_CUT_COLS)
        return s->is_w2 ? 2 : s->rank - 1;
    return 1;
}

moec_status moec_job_slot_tensor(const moec_job *j, size_t layer, size_t t,
                                 moec_slot_tensor *out, moec_error *err)
{
    moec_slot_tensor s;
    const moec_window *w;

    MOEC_TRY(check_slots(j, layer, t, err));
    s = *moec_plan_slot_tensor(j->plan, layer, t);
    w = &j->layers[layer].slots[t].w;
    if (w->n_rows != w->axes.n_rows || w->n_cols != w->axes.n_cols) {
        uint32_t d = cut_dimension(&w->axes, &s);
        if (d >= s.rank || s.shape[d] % j->ld.tp_size != 0)
            return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                             "'%s': dimension %" PRIu32 " does not divide by "
                             "%" PRIu32,
                             s.name, d, j->ld.tp_size);
        s.shape[d] /= j->ld.tp_size;
        s.slot_bytes = w->bytes;
    }
    *out = s;
    return MOEC_OK;
}

moec_status moec_job_slot_shape(const moec_job *j, size_t layer, size_t t,
                                moec_slot_shape *out, moec_error *err)
{
    const moec_window *w;

    MOEC_TRY(check_slots(j, layer, t, err));
    w = &j->layers[layer].slots[t].w;
    out->n_rows = w->n_rows;
    out->row_bytes = w->n_cols * w->axes.elem;
    out->n_halves = w->axes.n_halves;
    out->half_in_columns = w->axes.half_in_columns;
    return MOEC_OK;
}

/* Bytes from the first to behind the last of a slot. */
static bool slot_extent(const moec_window *w, uint64_t *out)
{
    uint64_t halves = 0, rows = 0;

    return moec_mul_u64(w->axes.n_halves - 1, w->half_stride, &halves) &&
           moec_mul_u64(w->n_rows - 1, w->row_stride, &rows) &&
           moec_add_u64(halves, rows, out) &&
           moec_add_u64(*out, w->n_cols * w->axes.elem, out);
}

/* Rows that are loaded: all, or at least those of the routed experts. */
static moec_status count_slots(const moec_job *j, size_t layer, size_t t,
                               const moec_slot_dst *dst, uint64_t *out,
                               moec_error *err)
{
    const moec_slot_tensor *s = moec_plan_slot_tensor(j->plan, layer, t);
    uint32_t least = moec_plan_topology(j->plan).n_local;

    *out = s->shape[0];
    if (dst->n_slots == 0 || dst->n_slots == *out)
        return MOEC_OK;
    if (s->all_slots || dst->n_slots < least || dst->n_slots > *out)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "'%s' has %" PRIu64 " rows, %" PRIu32
                         " of them for routed experts: %" PRIu64
                         " cannot be loaded alone",
                         s->name, *out, least, dst->n_slots);
    *out = dst->n_slots;
    return MOEC_OK;
}

moec_status moec_job_place_slots(moec_job *j, size_t layer, size_t t,
                                 const moec_slot_dst *dst, moec_error *err)
{
    const char *name;
    moec_job_slots s;

    MOEC_TRY(check_open(j, err));
    MOEC_TRY(check_slots(j, layer, t, err));
    name = moec_plan_slot_tensor(j->plan, layer, t)->name;
    s = j->layers[layer].slots[t];
    s.data = dst->data;
    s.skipped = dst->data == NULL;
    s.placed = !s.skipped;
    MOEC_TRY(moec_loading_window(&j->ld, layer, t, &s.w, err));
    if (s.w.n_rows > 0 && s.w.n_cols > 0) {
        MOEC_TRY(
            moec_window_stride(&s.w, dst->row_stride, dst->half_stride, err));
        if (!slot_extent(&s.w, &s.extent))
            return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                             "'%s': strides leave 64 bits", name);
    }
    MOEC_TRY(count_slots(j, layer, t, dst, &s.n_slots, err));
    s.slot_stride = dst->slot_stride;
    if (s.slot_stride == 0) /* a gap behind the last row as behind all */
        s.slot_stride = s.w.n_rows * s.w.row_stride +
                        (s.w.axes.half_in_columns ? 0 : s.w.axes.n_halves - 1) *
                            s.w.half_stride;
    if (s.slot_stride < s.extent)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "'%s': slots of %" PRIu64 " bytes overlap at a "
                         "stride of %" PRIu64,
                         name, s.extent, s.slot_stride);
    j->layers[layer].slots[t] = s;
    return MOEC_OK;
}

/* -------------------------------------------------------- source tensors */

static moec_job_tensor *find_tensor(const moec_job *j, size_t tensor)
{
    size_t lo = 0, hi = j->n_tensors;

    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (j->tensors[mid].tensor < tensor)
            lo = mid + 1;
        else
            hi = mid;
    }
    if (lo < j->n_tensors && j->tensors[lo].tensor == tensor)
        return &j->tensors[lo];
    return NULL;
}

/* Make room for `tensor`, in order. */
static moec_job_tensor *add_tensor(moec_job *j, size_t tensor, moec_error *err)
{
    size_t at = j->n_tensors;

    if (j->n_tensors == j->cap_tensors) {
        size_t cap = j->cap_tensors == 0 ? 64 : j->cap_tensors * 2;
        moec_job_tensor *v = moec_realloc_array(j->tensors, cap, sizeof(*v));
        if (v == NULL) {
            (void)moec_fail_nomem(err, "source tensors of a job");
            return NULL;
        }
        j->tensors = v;
        j->cap_tensors = cap;
    }
    for (; at > 0 && j->tensors[at - 1].tensor > tensor; at--)
        j->tensors[at] = j->tensors[at - 1];
    j->n_tensors++;
    j->tensors[at] = (moec_job_tensor){.tensor = tensor};
    return &j->tensors[at];
}

static moec_status check_tensor(const moec_job *j, size_t tensor,
                                moec_error *err)
{
    const moec_model *model = moec_plan_model(j->plan);
    const moec_plan *holder =
        j->ld.old != NULL ? moec_layout_plan(j->ld.old) : j->plan;
    moec_tensor_use use;

    if (tensor >= moec_ckpt_n_tensors(j->ckpt))
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "the checkpoint has no tensor %zu", tensor);
    use = moec_model_use(model, tensor);
    if (use.role == MOEC_ROLE_ROUTED)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "tensor '%s' is a routed expert's: ask for its slot",
                         moec_ckpt_tensor(j->ckpt, tensor)->name);
    if (j->ld.old != NULL &&
        moec_plan_fate(holder, tensor) == MOEC_FATE_SKIPPED)
        return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_M09,
                         "tensor '%s' was left out of this conversion "
                         "(--no-mtp): its bytes are not here",
                         moec_ckpt_tensor(j->ckpt, tensor)->name);
    return MOEC_OK;
}

/* Rows and columns in bytes. */
static moec_status make_view(const moec_tensor *t, const moec_tensor_dst *d,
                             moec_tensor_window *w, moec_error *err)
{
    uint32_t bits = moec_dtype_bits((moec_dtype)t->dtype);
    uint64_t cols, first, n;

    w->n_rows = t->rank >= 2 ? t->shape[0] : 1;
    w->row_bytes = w->n_rows == 0 ? 0 : t->bytes / w->n_rows;
    w->row_first = d != NULL ? d->row_first : 0;
    w->rows =
        d != NULL && d->n_rows != 0 ? d->n_rows : w->n_rows - w->row_first;
    cols = w->row_bytes * 8 / bits;
    first = d != NULL ? d->col_first : 0;
    n = d != NULL && d->n_cols != 0 ? d->n_cols : cols - first;
    if (w->row_first > w->n_rows || w->rows > w->n_rows - w->row_first ||
        first > cols || n > cols - first)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "tensor '%s': the view leaves its %" PRIu64
                         " rows of %" PRIu64,
                         t->name, w->n_rows, cols);
    if (first * bits % 8 != 0 || n * bits % 8 != 0)
        return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                         "tensor '%s': the view cuts a byte", t->name);
    w->col_first_bytes = first * bits / 8;
    w->col_bytes = n * bits / 8;
    w->row_stride =
        d != NULL && d->row_stride != 0 ? d->row_stride : w->col_bytes;
    if (w->row_stride < w->col_bytes)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "tensor '%s': rows of %" PRIu64 " bytes overlap at a "
                         "stride of %" PRIu64,
                         t->name, w->col_bytes, w->row_stride);
    return MOEC_OK;
}

moec_status moec_job_place_tensor(moec_job *j, size_t tensor,
                                  const moec_tensor_dst *dst, moec_error *err)
{
    moec_tensor_window w = {0};
    moec_job_tensor *at;

    MOEC_TRY(check_open(j, err));
    MOEC_TRY(check_tensor(j, tensor, err));
    MOEC_TRY(make_view(moec_ckpt_tensor(j->ckpt, tensor), dst, &w, err));
    if (dst != NULL && dst->data == NULL)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "tensor '%s': no place is given",
                         moec_ckpt_tensor(j->ckpt, tensor)->name);
    at = find_tensor(j, tensor);
    if (at == NULL)
        at = add_tensor(j, tensor, err);
    if (at == NULL)
        return MOEC_E_NOMEM;
    at->w = w;
    at->placed = dst != NULL;
    at->data = dst != NULL ? dst->data : NULL;
    return MOEC_OK;
}

/* ----------------------------------------------------------------- sizes */

static uint64_t aligned(uint64_t v)
{
    return (v + MOEC_JOB_ALIGN - 1) & ~(MOEC_JOB_ALIGN - 1);
}

/* Offsets of one layer's tensors from `at` on; returns where it ends. */
static uint64_t arena_of_layer(moec_job *j, uint32_t layer, uint64_t at)
{
    moec_job_layer *y = &j->layers[layer];

    for (size_t t = 0; t < y->n; t++) {
        moec_job_slots *s = &y->slots[t];
        if (s->skipped || s->placed)
            continue;
        s->arena_off = at;
        at += aligned(s->w.bytes *
                      moec_plan_slot_tensor(j->plan, layer, t)->shape[0]);
    }
    return at;
}

static uint64_t arena_of_common(moec_job *j, uint64_t at)
{
    for (size_t i = 0; i < j->n_tensors; i++) {
        moec_job_tensor *t = &j->tensors[i];
        if (t->placed)
            continue;
        t->arena_off = at;
        at += aligned(t->w.rows * t->w.row_stride);
    }
    return at;
}

static bool shares_common(const moec_job *j)
{
    return j->o.local_size > 1;
}

uint64_t moec_job_arena_bytes(const moec_job *job)
{
    moec_job *j = (moec_job *)(uintptr_t)job; /* offsets are found again */
    uint64_t bytes = shares_common(j) ? 0 : arena_of_common(j, 0);

    for (uint32_t i = 0; i < j->n_order; i++)
        bytes = arena_of_layer(j, j->order[i], bytes);
    return bytes;
}

uint64_t moec_job_common_bytes(const moec_job *job)
{
    moec_job *j = (moec_job *)(uintptr_t)job;

    /* a page for what the processes tell each other */
    return arena_of_common(j, MOEC_JOB_ALIGN);
}

/* Pieces that the layers have at most: one a row and half. */
static uint64_t count_pieces(const moec_job *j)
{
    uint64_t n = j->n_tensors;

    for (uint32_t i = 0; i < j->n_order; i++) {
        const moec_job_layer *y = &j->layers[j->order[i]];
        for (size_t t = 0; t < y->n; t++)
            if (!y->slots[t].skipped)
                n += moec_plan_slot_tensor(j->plan, j->order[i], t)->shape[0] *
                     y->slots[t].w.axes.n_halves;
    }
    return n;
}

/* Beside the ring. */
static uint64_t list_bytes(const moec_job *j)
{
    return (j->o.sink == NULL ? moec_job_bounce_bytes(j) : 0) +
           count_pieces(j) * (MOEC_JOB_PIECE_BYTES + sizeof(moec_piece) +
                              sizeof(moec_job_tag)) +
           moec_job_threads(j) *
               (MOEC_SLOW_BYTES + moec_requant_memory(j->requant));
}

uint64_t moec_job_memory_bytes(const moec_job *j)
{
    uint64_t ring =
        j->o.ring_bytes != 0 ? j->o.ring_bytes : MOEC_JOB_RING_BYTES;

    return list_bytes(j) + (j->o.sink != NULL ? 0 : ring);
}

moec_status moec_job_choose_ring(moec_job *j, moec_error *err)
{
    uint64_t lists = list_bytes(j), cap = j->o.memory_bytes, least = lists;

    j->ring_bytes =
        j->o.ring_bytes != 0 ? j->o.ring_bytes : MOEC_JOB_RING_BYTES;
    if (j->o.sink != NULL || cap == 0)
        return MOEC_OK;
    least += j->o.ring_bytes != 0 ? j->o.ring_bytes : MOEC_JOB_RING_MINIMUM;
    if (cap < least)
        return moec_fail(err, MOEC_E_NOMEM, MOEC_RULE_NONE,
                         "the load takes %" PRIu64 " bytes of memory beside "
                         "the destination, the cap is %" PRIu64,
                         least, cap);
    if (j->o.ring_bytes == 0)
        j->ring_bytes = moec_min_u64(MOEC_JOB_RING_BYTES, cap - lists);
    return MOEC_OK;
}

/* ---------------------------------------------------------------- memory */

moec_status moec_job_ask(moec_job *j, uint64_t bytes, uint32_t layer,
                         unsigned char **out, moec_error *err)
{
    moec_memory_request want = {.struct_bytes = sizeof(want),
                                .kind = j->o.memory_kind,
                                .bytes = bytes,
                                .alignment = MOEC_JOB_ALIGN,
                                .numa_node = j->o.numa_node,
                                .layer = layer};
    void *p = NULL;

    *out = NULL;
    if (bytes == 0)
        return MOEC_OK;
    if (j->o.memory == NULL)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "%" PRIu64 " bytes have no place, and no memory "
                         "callback is given",
                         bytes);
    MOEC_TRY(j->o.memory(j->o.ctx, &want, &p, err));
    if (p == NULL)
        return moec_fail(err, MOEC_E_NOMEM, MOEC_RULE_NONE,
                         "the memory callback gave none of %" PRIu64 " bytes",
                         bytes);
    *out = p;
    return moec_job_add_region(j, p, bytes, err);
}

static void settle_layer(moec_job *j, uint32_t layer, unsigned char *base)
{
    moec_job_layer *y = &j->layers[layer];

    for (size_t t = 0; t < y->n; t++)
        if (!y->slots[t].skipped && !y->slots[t].placed)
            y->slots[t].data = base + y->slots[t].arena_off;
}

static void settle_common(moec_job *j, unsigned char *base)
{
    for (size_t i = 0; i < j->n_tensors; i++)
        if (!j->tensors[i].placed)
            j->tensors[i].data = base + j->tensors[i].arena_off;
}

static moec_status place_common(moec_job *j, moec_error *err)
{
    unsigned char *base;

    if (shares_common(j))
        return moec_job_common_map(j, err);
    MOEC_TRY(moec_job_ask(j, arena_of_common(j, 0), MOEC_NO_LAYER, &base, err));
    if (base != NULL)
        settle_common(j, base);
    return MOEC_OK;
}

static moec_status ask_all(moec_job *j, moec_error *err)
{
    unsigned char *base;

    if (j->o.layer_arenas || shares_common(j)) {
        MOEC_TRY(place_common(j, err));
    } else { /* one request for everything */
        MOEC_TRY(moec_job_ask(j, moec_job_arena_bytes(j), MOEC_NO_LAYER, &base,
                              err));
        if (base == NULL)
            return MOEC_OK;
        settle_common(j, base);
        for (uint32_t i = 0; i < j->n_order; i++)
            settle_layer(j, j->order[i], base);
        return MOEC_OK;
    }
    if (!j->o.layer_arenas) {
        MOEC_TRY(moec_job_ask(j, moec_job_arena_bytes(j), MOEC_NO_LAYER, &base,
                              err));
        for (uint32_t i = 0; base != NULL && i < j->n_order; i++)
            settle_layer(j, j->order[i], base);
        return MOEC_OK;
    }
    for (uint32_t i = 0; i < j->n_order; i++) {
        uint32_t layer = j->order[i];
        MOEC_TRY(
            moec_job_ask(j, arena_of_layer(j, layer, 0), layer, &base, err));
        if (base != NULL)
            settle_layer(j, layer, base);
    }
    return MOEC_OK;
}

moec_status moec_job_place_all(moec_job *j, moec_error *err)
{
    MOEC_TRY(ask_all(j, err));
    return moec_job_tell_regions(j, err);
}

void *moec_job_slots_data(const moec_job *j, size_t layer, size_t t)
{
    if (layer >= j->n_layers || t >= j->layers[layer].n)
        return NULL;
    return j->layers[layer].slots[t].data;
}

void *moec_job_tensor_data(const moec_job *j, size_t tensor)
{
    const moec_job_tensor *t = find_tensor(j, tensor);

    return t != NULL ? t->data : NULL;
}
