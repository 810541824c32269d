/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What this is: placement files: which kind of file it is, by its content and
 *   never by its name, and what is true of all of them. The readers
 *   (placement_json.c, _yaml.c, _npy.c, _zip.c) give rows of integers; here
 *   rows become MoE layers: those that count decoder layers have rows of dense
 *   ones, which mean nothing; those that number layers may have none of an
 *   MTP layer; MTP layers without a row get the trivial map. P is the rows'
 *   length.
 * Refuses, naming layer, slot and value: other numbers of rows, a layer twice
 *   or that is no MoE layer (P02), ragged rows (P03), ids that are no integers
 *   in [0, E) (P04), experts without a slot (P05), another W than the file's
 *   (P06). A shared expert's id (from E on) among routed slots is refused like
 *   any other: SGLang keeps such experts out of the map, and a map that has
 *   them is meant for a server that counts otherwise.
 *   SGLang itself takes a map with a missing expert or too few rows without a
 *   word (seen by running 0.5.23): this is the place where it is noticed.
 */

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "placement_rows.h"

struct moec_placement_file {
    moec_placement *placement;
    moec_layer_key *keys;
    uint32_t *replica; /* NULL: ascending */
    moec_note *notes;
    size_t n_notes;
    moec_placement_form form;
    uint32_t n_ranks;
    int has_keys;
};

/* ----------------------------------------------------------------- rows */

void moec_rows_fini(moec_rows *r)
{
    moec_buf_fini(&r->ids);
    moec_buf_fini(&r->rows);
    moec_buf_fini(&r->replica);
}

size_t moec_rows_count(const moec_rows *r)
{
    return r->rows.len / sizeof(moec_rows_row);
}

const moec_rows_row *moec_rows_at(const moec_rows *r, size_t row)
{
    return (const moec_rows_row *)(const void *)r->rows.data + row;
}

void moec_rows_begin(moec_rows *r, uint64_t number)
{
    moec_rows_row row = {.first = r->ids.len / sizeof(int64_t),
                         .number = number};

    moec_buf_append(&r->rows, &row, sizeof(row));
}

void moec_rows_push(moec_rows *r, int64_t id)
{
    moec_rows_row *last;

    moec_buf_append(&r->ids, &id, sizeof(id));
    if (r->ids.oom || r->rows.oom)
        return;
    last = (moec_rows_row *)(void *)r->rows.data + moec_rows_count(r) - 1;
    last->n++;
}

void moec_rows_push_bad(moec_rows *r, const char *what)
{
    if (!r->bad && moec_rows_count(r) > 0) {
        r->bad = true;
        r->bad_row = moec_rows_count(r) - 1;
        r->bad_slot = moec_rows_at(r, r->bad_row)->n;
        snprintf(r->bad_what, sizeof(r->bad_what), "%s", what);
    }
    moec_rows_push(r, 0);
}

/* Decoder layers: as the target says, or up to its last MoE layer. */
static uint64_t n_decoder(const moec_rows *r)
{
    const moec_placement_target *t = r->target;
    uint64_t n = t->n_layers;

    for (size_t i = 0; i < t->n_keys && t->n_layers == 0; i++) {
        if (t->keys[i].space == MOEC_SPACE_MAIN)
            n = (uint64_t)t->keys[i].number + 1;
    }
    return n;
}

/* Layer of a decoder's number; main where nothing says how many there are. */
static moec_layer_key key_of(const moec_rows *r, uint64_t number)
{
    uint64_t n = n_decoder(r);
    moec_layer_key key = {MOEC_SPACE_MAIN, (uint32_t)number};

    if (n > 0 && number >= n)
        key = (moec_layer_key){MOEC_SPACE_MTP, (uint32_t)(number - n)};
    return key;
}

const char *moec_rows_text(const moec_rows *r, size_t row,
                           char buf[MOEC_ROWS_TEXT_BYTES])
{
    const moec_placement_target *t = r->target;
    char layer[MOEC_LAYER_TEXT_BYTES];
    uint64_t number = row;

    switch (r->kind) {
    case MOEC_ROWS_NUMBERED:
        if (row < moec_rows_count(r))
            number = moec_rows_at(r, row)->number;
        snprintf(buf, MOEC_ROWS_TEXT_BYTES, "%s",
                 moec_layer_text(key_of(r, number), layer));
        break;
    case MOEC_ROWS_DECODER:
        snprintf(buf, MOEC_ROWS_TEXT_BYTES, "%s",
                 moec_layer_text(key_of(r, number), layer));
        break;
    case MOEC_ROWS_MOE:
        if (row < t->n_keys)
            snprintf(buf, MOEC_ROWS_TEXT_BYTES, "%s (row %zu)",
                     moec_layer_text(t->keys[row], layer), row);
        else
            snprintf(buf, MOEC_ROWS_TEXT_BYTES, "row %zu", row);
        break;
    }
    return buf;
}

/* ------------------------------------------------------ number of rows */

static uint32_t n_main_keys(const moec_placement_target *t)
{
    uint32_t n = 0;

    for (size_t i = 0; i < t->n_keys; i++)
        n += t->keys[i].space == MOEC_SPACE_MAIN;
    return n;
}

/* MTP layers counted by their highest number. */
static uint32_t n_mtp_rows(const moec_placement_target *t)
{
    uint32_t n = 0;

    for (size_t i = 0; i < t->n_keys; i++) {
        uint32_t number = t->keys[i].number;

        if (t->keys[i].space == MOEC_SPACE_MTP && number >= n &&
            number < UINT32_MAX)
            n = number + 1;
    }
    return n;
}

static moec_status check_count(const moec_rows *r, moec_error *err)
{
    const moec_placement_target *t = r->target;
    bool decoder = r->kind == MOEC_ROWS_DECODER;
    size_t n = moec_rows_count(r);
    uint64_t n_main = n_main_keys(t), n_layers = n_decoder(r);
    uint64_t least = decoder ? n_layers : n_main;
    uint64_t mtp = decoder ? n_mtp_rows(t) : t->n_keys - n_main;
    uint64_t other = decoder ? n_main : n_layers;
    const char *hint = "";
    char most[64] = "";

    if (t->n_keys == 0 && n == 0)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P02,
                         "%s: 0 rows, must be one for each layer", r->name);
    if (t->n_keys == 0 || (n >= least && n - least <= mtp))
        return MOEC_OK;
    if (n == other)
        hint = decoder ? "; a file of MoE layers alone is a bare list "
                         "[moe_layers][slots]"
                       : "; a file of all decoder layers is "
                         "{\"physical_to_logical_map\": [layers][slots]}";
    if (mtp > 0)
        snprintf(most, sizeof(most), ", at most %" PRIu64 " with MTP layers",
                 least + mtp);
    return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P02,
                     "%s: %zu rows, must be %" PRIu64 ", one for each %s "
                     "layer%s%s",
                     r->name, n, least, decoder ? "decoder" : "MoE", most,
                     hint);
}

static size_t find_key(const moec_placement_target *t, moec_layer_key key)
{
    for (size_t i = 0; i < t->n_keys; i++) {
        if (t->keys[i].space == key.space && t->keys[i].number == key.number)
            return i;
    }
    return SIZE_MAX;
}

static int by_number(const void *a, const void *b)
{
    uint64_t x = ((const moec_rows_row *)a)->number;
    uint64_t y = ((const moec_rows_row *)b)->number;

    return (x > y) - (x < y);
}

/* Rows that name their layer: in order, each once, and each a MoE layer. */
static moec_status check_numbers(moec_rows *r, moec_error *err)
{
    const moec_placement_target *t = r->target;
    size_t n = moec_rows_count(r), n_main = 0;
    char at[MOEC_ROWS_TEXT_BYTES], layer[MOEC_LAYER_TEXT_BYTES];

    /* An id that is no integer is about a row, not about a place. */
    uint64_t bad = r->bad ? moec_rows_at(r, r->bad_row)->number : 0;

    if (n > 1)
        qsort(r->rows.data, n, sizeof(moec_rows_row), by_number);
    for (size_t i = 0; i < n; i++) {
        uint64_t number = moec_rows_at(r, i)->number;

        if (number > INT32_MAX)
            return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P02,
                             "%s: %" PRIu64 " is no number of a layer", r->name,
                             number);
        if (i > 0 && moec_rows_at(r, i - 1)->number == number)
            return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P02,
                             "%s: %s stands in the file twice", r->name,
                             moec_rows_text(r, i, at));
        if (r->bad && number == bad)
            r->bad_row = i;
        if (t->n_keys == 0)
            continue;
        if (find_key(t, key_of(r, number)) == SIZE_MAX)
            return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P02,
                             "%s: %s is no MoE layer of this model", r->name,
                             moec_rows_text(r, i, at));
        n_main += key_of(r, number).space == MOEC_SPACE_MAIN;
    }
    if (t->n_keys == 0 || n_main == n_main_keys(t))
        return t->n_keys == 0 ? check_count(r, err) : MOEC_OK;
    for (size_t i = 0, row = 0; i < t->n_keys; i++) {
        if (row < n && moec_rows_at(r, row)->number == t->keys[i].number) {
            row++;
            continue;
        }
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P02,
                         "%s: %s has no row; %zu of %" PRIu32
                         " MoE layers have one",
                         r->name, moec_layer_text(t->keys[i], layer), n_main,
                         n_main_keys(t));
    }
    return MOEC_OK;
}

/* ------------------------------------------------------- slots and ids */

/* All rows, dense layers' too, are of one length: P. */
static moec_status check_lengths(const moec_rows *r, uint32_t n_experts,
                                 uint32_t *n_physical, moec_error *err)
{
    const moec_placement_target *t = r->target;
    size_t first = moec_rows_at(r, 0)->n;
    char at[MOEC_ROWS_TEXT_BYTES], at0[MOEC_ROWS_TEXT_BYTES];

    for (size_t i = 0; i < moec_rows_count(r); i++) {
        size_t len = moec_rows_at(r, i)->n;

        if (t->n_physical > 0 && len != t->n_physical)
            return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P03,
                             "%s: %s has %zu slots, must have %" PRIu32,
                             r->name, moec_rows_text(r, i, at), len,
                             t->n_physical);
        if (len != first)
            return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P03,
                             "%s: %s has %zu slots, %s has %zu", r->name,
                             moec_rows_text(r, i, at), len,
                             moec_rows_text(r, 0, at0), first);
    }
    if (first == 0 || first < n_experts || first > MOEC_PLACEMENT_SLOTS_MAX)
        return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_P03,
                         "%s: rows of %zu slots, must have between %" PRIu32
                         " (the experts) and %u",
                         r->name, first, n_experts ? n_experts : 1,
                         MOEC_PLACEMENT_SLOTS_MAX);
    *n_physical = (uint32_t)first;
    return MOEC_OK;
}

static const int64_t *ids_of(const moec_rows *r, size_t row)
{
    return (const int64_t *)(const void *)r->ids.data +
           moec_rows_at(r, row)->first;
}

static moec_status fail_range(const moec_rows *r, size_t row, size_t slot,
                              uint32_t n_experts, moec_error *err)
{
    int64_t id = ids_of(r, row)[slot];
    char at[MOEC_ROWS_TEXT_BYTES];
    const char *hint = "";

    if (id == MOEC_EMPTY_SLOT)
        hint = ": empty slots are made by --allow-empty, not by a file";
    else if (id >= 0)
        hint = ": shared experts, with ids from there on, have slots of their "
               "own and never stand among the routed ones";
    return moec_fail(
        err, MOEC_E_FORMAT, MOEC_RULE_P04,
        "%s: %s, slot %zu: id %" PRId64 " is not in [0, %" PRIu32 ")%s",
        r->name, moec_rows_text(r, row, at), slot, id, n_experts, hint);
}

static moec_status fail_bad(const moec_rows *r, uint32_t n_experts,
                            moec_error *err)
{
    char at[MOEC_ROWS_TEXT_BYTES], range[32] = "";

    if (n_experts > 0)
        snprintf(range, sizeof(range), " in [0, %" PRIu32 ")", n_experts);
    return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P04,
                     "%s: %s, slot %zu: id is %s, must be an integer%s",
                     r->name, moec_rows_text(r, r->bad_row, at), r->bad_slot,
                     r->bad_what, range);
}

/* E of a file by itself: one more than its highest id. */
static moec_status count_experts(const moec_rows *r, uint32_t *out,
                                 moec_error *err)
{
    int64_t most = -1;

    if (r->target->n_experts > 0) {
        *out = r->target->n_experts;
        return MOEC_OK;
    }
    for (size_t row = 0; row < moec_rows_count(r); row++) {
        for (size_t i = 0; i < moec_rows_at(r, row)->n; i++) {
            int64_t id = ids_of(r, row)[i];

            if (id > most)
                most = id;
        }
    }
    if (r->bad && most < 0)
        return fail_bad(r, 0, err);
    /* Each expert needs a slot: an id from P on is none. */
    if (most >= MOEC_PLACEMENT_SLOTS_MAX ||
        (uint64_t)(most + 1) > moec_rows_at(r, 0)->n)
        most = (int64_t)moec_min_u64(moec_rows_at(r, 0)->n,
                                     MOEC_PLACEMENT_SLOTS_MAX) -
               1;
    *out = most < 0 ? 1 : (uint32_t)most + 1;
    return MOEC_OK;
}

/* ------------------------------------------------------- the placement */

/* The file on its way. */
typedef struct made {
    const moec_rows *r;
    uint32_t n_experts, n_physical;
    size_t n_layers;
    int32_t *p2l;
} made;

/* Index of the MoE layer that a row of the file is about, or SIZE_MAX. */
static size_t layer_of_row(const moec_rows *r, size_t row)
{
    const moec_placement_target *t = r->target;

    if (t->n_keys == 0 || r->kind == MOEC_ROWS_MOE)
        return row;
    return find_key(t, key_of(r, r->kind == MOEC_ROWS_DECODER
                                     ? row
                                     : moec_rows_at(r, row)->number));
}

static moec_status copy_row(const made *m, size_t row, moec_error *err)
{
    const moec_rows *r = m->r;
    const int64_t *ids = ids_of(r, row);
    size_t layer = layer_of_row(r, row);
    bool empty = r->target->allow_empty != 0;

    for (size_t i = 0; i < m->n_physical; i++) {
        if (r->bad && r->bad_row == row && r->bad_slot == i)
            return fail_bad(r, m->n_experts, err);
        if (layer == SIZE_MAX)
            continue;
        if ((ids[i] < 0 || ids[i] >= (int64_t)m->n_experts) &&
            !(empty && ids[i] == MOEC_EMPTY_SLOT))
            return fail_range(r, row, i, m->n_experts, err);
        m->p2l[layer * m->n_physical + i] = (int32_t)ids[i];
    }
    return MOEC_OK;
}

static moec_status copy_replica(const made *m, moec_placement_file *f,
                                moec_error *err)
{
    const moec_rows *r = m->r;
    const uint32_t *from = (const uint32_t *)(const void *)r->replica.data;
    uint32_t P = m->n_physical;

    if (r->replica.len == 0)
        return MOEC_OK;
    f->replica = moec_calloc(m->n_layers * P, sizeof(*f->replica));
    if (!f->replica)
        return moec_fail_nomem(err, "replicas");
    for (size_t i = 0; i < m->n_layers * P; i++)
        f->replica[i] = (uint32_t)(i % P / m->n_experts);
    for (size_t row = 0; row < moec_rows_count(r); row++) {
        size_t layer = layer_of_row(r, row);

        if (layer != SIZE_MAX)
            memcpy(f->replica + layer * P, from + moec_rows_at(r, row)->first,
                   P * sizeof(*from));
    }
    return MOEC_OK;
}

static moec_status copy_keys(const made *m, moec_placement_file *f,
                             moec_error *err)
{
    const moec_rows *r = m->r;

    f->keys = moec_calloc(m->n_layers, sizeof(*f->keys));
    if (!f->keys)
        return moec_fail_nomem(err, "layer keys");
    f->has_keys = r->target->n_keys > 0 || r->kind != MOEC_ROWS_MOE;
    for (size_t i = 0; i < m->n_layers; i++) {
        if (r->target->n_keys > 0)
            f->keys[i] = r->target->keys[i];
        else if (r->kind == MOEC_ROWS_NUMBERED)
            f->keys[i] = key_of(r, moec_rows_at(r, i)->number);
        else if (r->kind == MOEC_ROWS_DECODER)
            f->keys[i] = key_of(r, i);
        else
            f->keys[i].number = (uint32_t)i;
    }
    return MOEC_OK;
}

static moec_status add_note(moec_placement_file *f, moec_rule rule,
                            const char *text, moec_error *err)
{
    moec_note *more =
        moec_realloc_array(f->notes, f->n_notes + 1, sizeof(*more));

    if (!more)
        return moec_fail_nomem(err, "notes");
    f->notes = more;
    more[f->n_notes].rule = rule;
    snprintf(more[f->n_notes].text, sizeof(more[0].text), "%s", text);
    f->n_notes++;
    return MOEC_OK;
}

static moec_status note_same_rank(moec_placement_file *f, uint32_t n_ranks,
                                  moec_error *err)
{
    const moec_placement *p = f->placement;
    char layer[MOEC_LAYER_TEXT_BYTES], text[192];

    for (uint32_t i = 0; i < moec_placement_n_layers(p); i++) {
        moec_same_rank s;

        MOEC_TRY(moec_placement_same_rank(p, i, n_ranks, &s, err));
        if (s.n_slots == 0)
            continue;
        snprintf(text, sizeof(text),
                 "%s: %u slots repeat an expert of their own rank; first: "
                 "rank %u holds expert %u in physical slots %u and %u",
                 moec_layer_text(f->keys[i], layer), s.n_slots, s.rank,
                 s.expert.v, s.first.v, s.second.v);
        MOEC_TRY(add_note(f, MOEC_RULE_P09, text, err));
    }
    return MOEC_OK;
}

static moec_status check_ranks(const moec_rows *r, moec_placement_file *f,
                               moec_error *err)
{
    uint32_t W = r->target->n_ranks ? r->target->n_ranks : r->n_ranks;
    uint32_t P = moec_placement_n_physical(f->placement);

    if (r->n_ranks > 0 && r->n_ranks != W)
        return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_P06,
                         "%s: the file is for %" PRIu32
                         " devices, the job has %" PRIu32 " ranks",
                         r->name, r->n_ranks, W);
    if (W == 0)
        return MOEC_OK;
    f->n_ranks = r->n_ranks;
    if (r->target->allow_empty == 0 || W > P) {
        moec_status st =
            moec_placement_fits(f->placement, W, f->keys,
                                moec_placement_n_layers(f->placement), err);

        if (st != MOEC_OK) {
            moec_error_prefix(err, "%s", r->name);
            return st;
        }
    }
    return P % W == 0 ? note_same_rank(f, W, err) : MOEC_OK;
}

static moec_status fill(made *m, moec_placement_file *f, moec_error *err)
{
    const moec_rows *r = m->r;
    moec_status st;

    /* Trivial where the file has no row: MTP layers only, by check_count. */
    for (size_t i = 0; i < m->n_layers * m->n_physical; i++)
        m->p2l[i] = (int32_t)(i % m->n_physical % m->n_experts);
    for (size_t row = 0; row < moec_rows_count(r); row++)
        MOEC_TRY(copy_row(m, row, err));
    MOEC_TRY(copy_keys(m, f, err));
    MOEC_TRY(copy_replica(m, f, err));
    st = moec_placement_make(&f->placement, m->n_experts, m->n_physical, m->p2l,
                             f->has_keys ? f->keys : NULL, m->n_layers, err);
    if (st != MOEC_OK) {
        moec_error_prefix(err, "%s", r->name);
        return st;
    }
    if (r->note[0] != '\0')
        MOEC_TRY(add_note(f, MOEC_RULE_NONE, r->note, err));
    return check_ranks(r, f, err);
}

static moec_status make_file(moec_placement_file *f, moec_rows *r,
                             moec_error *err)
{
    made m = {.r = r};
    moec_status st;
    size_t n;

    if (r->rows.oom || r->ids.oom || r->replica.oom)
        return moec_fail_nomem(err, "placement rows");
    MOEC_TRY(r->kind == MOEC_ROWS_NUMBERED ? check_numbers(r, err)
                                           : check_count(r, err));
    MOEC_TRY(count_experts(r, &m.n_experts, err));
    MOEC_TRY(check_lengths(r, m.n_experts, &m.n_physical, err));
    m.n_layers = r->target->n_keys > 0 ? r->target->n_keys : moec_rows_count(r);
    if (m.n_layers > UINT32_MAX ||
        __builtin_mul_overflow(m.n_layers, m.n_physical, &n))
        return moec_fail_nomem(err, "placement rows");
    m.p2l = moec_calloc(n, sizeof(*m.p2l));
    if (!m.p2l)
        return moec_fail_nomem(err, "placement rows");
    f->form = r->form;
    st = fill(&m, f, err);
    moec_free(m.p2l);
    return st;
}

/* -------------------------------------------------------- what it is */

/* Is the key there without quotes, as YAML has it and JSON never? It begins a
 * line, or stands in a mapping in braces. */
static bool has_bare_key(const char *text, size_t n, const char *key)
{
    const char *at = memmem(text, n, key, strlen(key));

    return at && (at == text || memchr("\n {,", at[-1], 4));
}

static moec_status read_rows(moec_rows *r, const char *text, size_t n,
                             moec_error *err)
{
    if (moec_begins(text, n, "PK\3\4", 4))
        return moec_rows_read_zip(r, text, n, err);
    if (moec_begins(text, n, "\x93NUMPY", 6))
        return moec_rows_read_npy(r, text, n, err);
    if (n >= 2 && text[0] == '\x80' && text[1] >= 2 && text[1] <= 5)
        return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_P01,
                         "%s: a pickle, which runs code when read: write its "
                         "maps as JSON, {\"physical_to_logical_map\": "
                         "[layers][slots]}",
                         r->name);
    if (has_bare_key(text, n, "num_slots:") ||
        has_bare_key(text, n, "initial_global_assignments:"))
        return moec_rows_read_yaml(r, text, n, err);
    return moec_rows_read_json(r, text, n, err);
}

static moec_status check_target(const moec_placement_target *t,
                                const char *name, moec_error *err)
{
    if (t->n_keys > UINT32_MAX)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "%s: a placement for a model of %zu MoE layers", name,
                         t->n_keys);
    return MOEC_OK;
}

moec_status moec_placement_file_read(moec_placement_file **out,
                                     const moec_placement_target *target,
                                     const char *name, const char *text,
                                     size_t n, moec_error *err)
{
    static const moec_placement_target none = MOEC_PLACEMENT_TARGET_INIT;
    moec_rows r = {.target = target ? target : &none, .name = name};
    moec_placement_file *f;
    moec_status st;

    MOEC_TRY(check_target(r.target, name, err));
    f = moec_calloc(1, sizeof(*f));
    if (!f)
        return moec_fail_nomem(err, "placement file");
    st = read_rows(&r, text, n, err);
    if (st == MOEC_OK)
        st = make_file(f, &r, err);
    moec_rows_fini(&r);
    if (st != MOEC_OK) {
        moec_placement_file_close(f);
        return st;
    }
    *out = f;
    return MOEC_OK;
}

void moec_placement_file_close(moec_placement_file *f)
{
    if (!f)
        return;
    moec_placement_destroy(f->placement);
    moec_free(f->keys);
    moec_free(f->replica);
    moec_free(f->notes);
    moec_free(f);
}

/* ---------------------------------------------------------- what it has */

moec_placement_form moec_placement_file_form(const moec_placement_file *file)
{
    return file->form;
}

const moec_placement *
moec_placement_file_placement(const moec_placement_file *file)
{
    return file->placement;
}

moec_placement *moec_placement_file_take(moec_placement_file *file)
{
    moec_placement *p = file->placement;

    file->placement = NULL;
    return p;
}

moec_layer_key moec_placement_file_key(const moec_placement_file *file,
                                       uint32_t i)
{
    return file->keys[i];
}

int moec_placement_file_has_keys(const moec_placement_file *file)
{
    return file->has_keys;
}

uint32_t moec_placement_file_n_ranks(const moec_placement_file *file)
{
    return file->n_ranks;
}

const uint32_t *moec_placement_file_replica(const moec_placement_file *file)
{
    return file->replica;
}

size_t moec_placement_file_n_notes(const moec_placement_file *file)
{
    return file->n_notes;
}

const moec_note *moec_placement_file_note(const moec_placement_file *file,
                                          size_t i)
{
    return i < file->n_notes ? &file->notes[i] : NULL;
}

/* ------------------------------------------------------------ for a model */

moec_status moec_placement_parse_for(moec_placement **out,
                                     const moec_placement_target *target,
                                     const char *name, const char *text,
                                     size_t n, moec_error *err)
{
    moec_placement_file *f = NULL;

    if (target->n_keys == 0)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "%s: a placement for a model of 0 MoE layers", name);
    MOEC_TRY(moec_placement_file_read(&f, target, name, text, n, err));
    *out = moec_placement_file_take(f);
    moec_placement_file_close(f);
    return MOEC_OK;
}

moec_status moec_placement_parse(moec_placement **out, const moec_model *model,
                                 const char *name, const char *text, size_t n,
                                 moec_error *err)
{
    const moec_facts *facts = moec_model_facts(model);
    moec_placement_target target = {.struct_bytes = sizeof(target),
                                    .n_experts = facts->n_experts,
                                    .n_layers = facts->n_layers,
                                    .n_keys = moec_model_n_layers(model)};
    moec_layer_key *keys = moec_calloc(target.n_keys, sizeof(*keys));
    moec_status st;

    if (!keys)
        return moec_fail_nomem(err, "layer keys");
    for (size_t i = 0; i < target.n_keys; i++)
        keys[i] = moec_model_layer(model, i)->key;
    target.keys = keys;
    st = moec_placement_parse_for(out, &target, name, text, n, err);
    moec_free(keys);
    return st;
}
