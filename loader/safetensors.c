/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The reader of shard headers. Owns every rule H01..H23, with header_entry.c,
 * which has those of one tensor's entry; the words behind each are in
 * rules.def. H24 (reserved names) is the model's: converted files hold such
 * tensors rightly.
 *
 * The text streams through a window and is digested on the way; only the table
 * stays: 40 bytes a tensor, its name, and its shape where the last few tensors
 * had another.
 */

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "header_parts.h"
#include "tiling.h"

/* Small enough to stay in a core's cache between the read, the digest and the
 * parse. */
#define WINDOW_BYTES (UINT64_C(1) << 18)
#define PREFIX_BYTES 8
#define ENTRY_BYTES  128 /* of an entry, from real headers */
/* What a header's length promises is a guess: believe 64,000 tensors. */
#define EXPECT_MAX   ((size_t)64000)
#define METADATA_KEY "__metadata__"

/* ----------------------------------------------------------- the entries */

static moec_status check_name(moec_header_parser *p, const moec_js_text *t,
                              uint64_t at)
{
    if (t->has_nul)
        return moec_fail_at(p->js.err, MOEC_E_FORMAT, MOEC_RULE_H08, at,
                            "%s: byte %" PRIu64 ": a tensor's name holds an "
                            "escaped NUL",
                            p->js.name, at);
    if (t->len == 0 || t->len > MOEC_NAME_BYTES_MAX)
        return moec_fail_at(p->js.err, MOEC_E_FORMAT, MOEC_RULE_H22, at,
                            "%s: byte %" PRIu64 ": a tensor's name of %" PRIu64
                            " bytes, outside 1 to %d",
                            p->js.name, at, t->len, MOEC_NAME_BYTES_MAX);
    if (p->h->n_tensors >= MOEC_TENSORS_PER_FILE_MAX)
        return moec_fail_at(p->js.err, MOEC_E_FORMAT, MOEC_RULE_H23, at,
                            "%s: byte %" PRIu64 ": more than %u tensors",
                            p->js.name, at, MOEC_TENSORS_PER_FILE_MAX);
    return MOEC_OK;
}

/* Tensor number `n` stands before the one that it follows in the header. */
static moec_status add_break(moec_header_parser *p, size_t n)
{
    moec_header *h = p->h;

    if (!MOEC_GROW(h->breaks, h->n_breaks, p->breaks_cap))
        return moec_fail_nomem(p->js.err, "the order of the tensors");
    h->breaks[h->n_breaks++] = (uint32_t)n;
    return MOEC_OK;
}

static moec_status grow_table(moec_header_parser *p)
{
    size_t cap = p->cap * 2;
    moec_tensor *more;

    if (p->cap == 0)
        cap = 64 + (size_t)moec_min_u64(p->names.expect, EXPECT_MAX);
    more = moec_realloc_array(p->h->tensors, cap, sizeof(*more));
    if (more == NULL)
        return moec_fail_nomem(p->js.err, "the tensor table");
    p->h->tensors = more;
    p->cap = cap;
    return MOEC_OK;
}

/* Add a tensor of this name to the table. */
static moec_status add_tensor(moec_header_parser *p, const moec_js_text *t,
                              uint64_t at)
{
    moec_header *h = p->h;
    size_t n = (size_t)t->len;
    moec_tensor *tensor;
    bool existed = false;

    MOEC_TRY(moec_nameset_add(&p->names, h->tensors, h->n_tensors, t->s, n,
                              &existed, p->js.err));
    if (existed)
        return moec_fail_at(p->js.err, MOEC_E_FORMAT, MOEC_RULE_H07, at,
                            "%s: tensor '%.*s': a second time (byte %" PRIu64
                            ")",
                            p->js.name, (int)n, t->s, at);
    if (h->n_tensors == p->cap)
        MOEC_TRY(grow_table(p));
    tensor = &h->tensors[h->n_tensors];
    memset(tensor, 0, sizeof(*tensor));
    tensor->name = moec_arena_strdup(p->arena, t->s, n);
    if (tensor->name == NULL)
        return moec_fail_nomem(p->js.err, "a tensor's name");
    if (h->n_tensors > 0 && strcmp(tensor[-1].name, tensor->name) > 0)
        MOEC_TRY(add_break(p, h->n_tensors));
    h->n_tensors++;
    return MOEC_OK;
}

moec_status moec_header_keep_shape(moec_header_parser *p, moec_header_entry *e)
{
    size_t bytes = e->t->rank * sizeof(*e->shape);
    uint64_t hash = e->t->rank;
    uint64_t *own;
    size_t i;

    for (uint32_t d = 0; d < e->t->rank; d++)
        hash = (hash ^ e->shape[d]) * UINT64_C(0x9e3779b97f4a7c15);
    i = (size_t)(hash >> 32) & (N_SHAPES_KEPT - 1);
    if (p->shapes[i] != NULL && p->shape_rank[i] == e->t->rank &&
        memcmp(p->shapes[i], e->shape, bytes) == 0) {
        e->t->shape = p->shapes[i];
        return MOEC_OK;
    }
    own =
        moec_arena_alloc(p->arena, bytes != 0 ? bytes : 1, _Alignof(uint64_t));
    if (own == NULL)
        return moec_fail_nomem(p->js.err, "a tensor's shape");
    memcpy(own, e->shape, bytes);
    e->t->shape = p->shapes[i] = own;
    p->shape_rank[i] = e->t->rank;
    return MOEC_OK;
}

/* -------------------------------------------------------------- metadata */

static moec_status refuse_metadata(moec_header_parser *p, const char *why)
{
    uint64_t at = moec_js_pos(&p->js);

    MOEC_TRY(moec_js_skip(&p->js));
    return moec_fail_at(p->js.err, MOEC_E_FORMAT, MOEC_RULE_H09, at,
                        "%s: byte %" PRIu64 ": %s", p->js.name, at, why);
}

/* Values are not kept: nothing in the library depends on them. */
static moec_status read_metadata(moec_header_parser *p)
{
    uint64_t serial = moec_keyset_open(&p->js.keys);
    bool more = true, first = true;
    int c;

    MOEC_TRY(moec_js_peek(&p->js, &c));
    if (c != '{')
        return refuse_metadata(p, METADATA_KEY " is not an object");
    MOEC_TRY(moec_js_enter(&p->js));
    p->js.too_many_keys = MOEC_RULE_H09;
    for (;; first = false) {
        MOEC_TRY(moec_js_member(&p->js, '}', first, &more));
        if (!more)
            break;
        MOEC_TRY(moec_js_key(&p->js, serial));
        MOEC_TRY(moec_js_expect(&p->js, ':'));
        MOEC_TRY(moec_js_peek(&p->js, &c));
        if (c != '"')
            return refuse_metadata(p, "a value of " METADATA_KEY
                                      " is not a string");
        MOEC_TRY(moec_js_skip(&p->js));
    }
    p->js.too_many_keys = MOEC_RULE_H10;
    moec_js_leave(&p->js);
    moec_keyset_clear(&p->js.keys);
    return MOEC_OK;
}

/* ------------------------------------------------------------ the object */

/* An entry of the usual form, in one go: *next is the byte behind it. NULL, and
 * nothing consumed, for any other. */
static moec_status read_usual(moec_header_parser *p, const unsigned char **next)
{
    moec_entry_scan *s = &p->scan;
    uint64_t at = moec_js_pos(&p->js);
    moec_header_entry e = {.has = HAS_DTYPE | HAS_SHAPE | HAS_OFFSETS};
    moec_js_text t;

    *next = moec_entry_read(s, p->js.p, p->js.end);
    if (*next == NULL)
        return MOEC_OK;
    t = (moec_js_text){.s = s->name, .len = s->name_bytes};
    if (moec_js_text_is(&t, METADATA_KEY, sizeof(METADATA_KEY) - 1)) {
        *next = NULL; /* no such thing belongs there */
        return MOEC_OK;
    }
    MOEC_TRY(check_name(p, &t, at));
    MOEC_TRY(add_tensor(p, &t, at));
    e.t = &p->h->tensors[p->h->n_tensors - 1];
    e.t->dtype = (uint8_t)s->dtype;
    e.t->rank = s->rank;
    e.begin = s->begin;
    e.end = s->end;
    memcpy(e.shape, s->shape, s->rank * sizeof(*e.shape));
    p->js.p = *next;
    return moec_header_check_entry(p, &e);
}

/* One "name": entry of the header. */
static moec_status read_member(moec_header_parser *p, bool *metadata_seen)
{
    moec_js_text t = {.buf = p->text, .cap = sizeof(p->text)};
    const unsigned char *next;
    uint64_t at;
    int c;

    MOEC_TRY(moec_js_peek(&p->js, &c));
    MOEC_TRY(read_usual(p, &next));
    if (next != NULL)
        return MOEC_OK;
    at = moec_js_pos(&p->js);
    MOEC_TRY(moec_js_string(&p->js, &t));
    if (moec_js_text_is(&t, METADATA_KEY, sizeof(METADATA_KEY) - 1)) {
        if (*metadata_seen)
            return moec_fail_at(p->js.err, MOEC_E_FORMAT, MOEC_RULE_H07, at,
                                "%s: byte %" PRIu64 ": " METADATA_KEY
                                " a second time",
                                p->js.name, at);
        *metadata_seen = true;
        MOEC_TRY(moec_js_expect(&p->js, ':'));
        return read_metadata(p);
    }
    MOEC_TRY(check_name(p, &t, at));
    MOEC_TRY(add_tensor(p, &t, at));
    MOEC_TRY(moec_js_expect(&p->js, ':'));
    return moec_header_read_entry(p, &p->h->tensors[p->h->n_tensors - 1]);
}

static moec_status read_object(moec_header_parser *p)
{
    bool more = true, first = true, metadata_seen = false;
    int c;

    MOEC_TRY(moec_js_peek(&p->js, &c));
    p->h->leading_space = moec_js_pos(&p->js) != PREFIX_BYTES;
    if (c != '{')
        return moec_js_fail(&p->js, MOEC_RULE_H02,
                            "the header is not a JSON object");
    MOEC_TRY(moec_js_enter(&p->js));
    for (;; first = false) {
        MOEC_TRY(moec_js_member(&p->js, '}', first, &more));
        if (!more)
            break;
        MOEC_TRY(read_member(p, &metadata_seen));
    }
    moec_js_leave(&p->js);
    MOEC_TRY(moec_js_peek(&p->js, &c));
    if (c >= 0)
        return moec_js_fail(&p->js, MOEC_RULE_H06,
                            "something follows the header's object");
    return MOEC_OK;
}

/* -------------------------------------------------------------- sources */

/* Check where the tensors lie, and make offsets count from the file. */
static moec_status place(moec_header_parser *p, uint64_t file_bytes)
{
    moec_header *h = p->h;

    MOEC_TRY(moec_tiling_check(h->tensors, h->n_tensors, h->header_bytes,
                               file_bytes, p->js.name, p->js.err));
    h->data_bytes = file_bytes - h->header_bytes;
    for (size_t i = 0; i < h->n_tensors; i++)
        h->tensors[i].off += h->header_bytes;
    return MOEC_OK;
}

/* H01. */
static moec_status check_length(const unsigned char prefix[PREFIX_BYTES],
                                uint64_t file_bytes, const char *name,
                                uint64_t *header_bytes_out, moec_error *err)
{
    uint64_t n = moec_le64(prefix);

    if (n > MOEC_HEADER_BYTES_MAX)
        return moec_fail_at(err, MOEC_E_FORMAT, MOEC_RULE_H01, 0,
                            "%s: byte 0: a header of %" PRIu64
                            " bytes, the limit is %" PRIu64,
                            name, n, MOEC_HEADER_BYTES_MAX);
    if (n > file_bytes - PREFIX_BYTES)
        return moec_fail_at(err, MOEC_E_FORMAT, MOEC_RULE_H01, 0,
                            "%s: byte 0: a header of %" PRIu64
                            " bytes in a file of %" PRIu64,
                            name, n, file_bytes);
    *header_bytes_out = PREFIX_BYTES + n;
    return MOEC_OK;
}

static moec_status too_small(const char *name, uint64_t bytes, moec_error *err)
{
    return moec_fail_at(err, MOEC_E_FORMAT, MOEC_RULE_H01, 0,
                        "%s: byte 0: %" PRIu64
                        " bytes, too small for a header's length",
                        name, bytes);
}

static moec_status refill(void *ctx, const void **data_out, size_t *n_out,
                          moec_error *err)
{
    moec_header_parser *p = ctx;
    size_t n = (size_t)moec_min_u64(p->limit - p->next, WINDOW_BYTES);

    *n_out = n;
    if (n == 0)
        return MOEC_OK;
    MOEC_TRY(moec_pread_full(p->fd, p->js.name, p->window, n, p->next, err));
    MOEC_TRY(moec_hasher_update(p->hasher, p->window, n, err));
    p->next += n;
    *data_out = p->window;
    return MOEC_OK;
}

static void parser_init(moec_header_parser *p, moec_header *h, const char *name,
                        moec_error *err)
{
    static const moec_header no_header;

    memset(p, 0, sizeof(*p));
    *h = no_header;
    p->h = h;
    p->arena = &h->arena;
    p->fd = -1;
    p->js.name = name;
    p->js.err = err;
    p->js.base = PREFIX_BYTES;
    p->js.n_keys_max = MOEC_JSON_KEYS_MAX;
    p->js.json = MOEC_RULE_H04;
    p->js.utf8 = MOEC_RULE_H03;
    p->js.too_deep = MOEC_RULE_H05;
    p->js.duplicate = MOEC_RULE_H07;
    p->js.too_many_keys = MOEC_RULE_H10;
}

/* Put the table, which is complete, beside its names. */
static moec_status lend_table(moec_header_parser *p)
{
    moec_header *h = p->h;
    size_t bytes = h->n_tensors * sizeof(*h->tensors);
    moec_tensor *copy =
        moec_arena_alloc(p->arena, bytes + 1, _Alignof(moec_tensor));

    if (copy == NULL)
        return moec_fail_nomem(p->js.err, "the tensor table");
    if (bytes > 0)
        memcpy(copy, h->tensors, bytes);
    moec_free(h->tensors);
    h->tensors = copy;
    h->lent = true;
    return MOEC_OK;
}

/* Run the parse, free what the parser holds, and the table if it failed. */
static moec_status parser_run(moec_header_parser *p, uint64_t file_bytes)
{
    moec_status st;

    p->names.expect = (size_t)(p->h->header_bytes / ENTRY_BYTES);
    st = read_object(p);
    p->h->names_sum = p->names.sum;
    moec_js_fini(&p->js);
    moec_nameset_fini(&p->names);
    if (st == MOEC_OK)
        st = place(p, file_bytes);
    if (st == MOEC_OK && p->arena != &p->h->arena)
        st = lend_table(p);
    if (st != MOEC_OK)
        moec_header_fini(p->h);
    return st;
}

moec_status moec_header_read(moec_header *out, int fd, uint64_t file_bytes,
                             const char *name, const uint64_t secret[2],
                             moec_arena *arena, moec_error *err)
{
    unsigned char prefix[PREFIX_BYTES];
    moec_header_parser p;
    moec_header h;
    moec_status st;

    if (file_bytes < PREFIX_BYTES)
        return too_small(name, file_bytes, err);
    parser_init(&p, &h, name, err);
    MOEC_TRY(moec_pread_full(fd, name, prefix, sizeof(prefix), 0, err));
    MOEC_TRY(check_length(prefix, file_bytes, name, &h.header_bytes, err));
    if (secret != NULL)
        memcpy(p.names.secret, secret, sizeof(p.names.secret));
    if (arena != NULL)
        p.arena = arena;
    p.fd = fd;
    p.next = PREFIX_BYTES;
    p.limit = h.header_bytes;
    p.js.refill = refill;
    p.js.ctx = &p;
    p.window = moec_alloc((size_t)moec_min_u64(h.header_bytes, WINDOW_BYTES));
    if (p.window == NULL)
        return moec_fail_nomem(err, "a window on a header");
    st = moec_hasher_create(&p.hasher, err);
    if (st != MOEC_OK)
        goto free_window;
    st = moec_hasher_update(p.hasher, prefix, sizeof(prefix), err);
    if (st == MOEC_OK)
        st = parser_run(&p, file_bytes);
    if (st != MOEC_OK) {
        moec_hasher_destroy(p.hasher);
        goto free_window;
    }
    st = moec_hasher_final(p.hasher, &h.sha256, err); /* frees it */
    if (st != MOEC_OK)
        moec_header_fini(&h);
    else
        *out = h;
free_window:
    moec_free(p.window);
    return st;
}

moec_status moec_header_parse(moec_header *out, const void *data, size_t n,
                              uint64_t file_bytes, const char *name,
                              moec_error *err)
{
    const unsigned char *bytes = data;
    moec_header_parser p;
    moec_header h;

    if (file_bytes < PREFIX_BYTES || n < PREFIX_BYTES)
        return too_small(name, moec_min_u64(file_bytes, n), err);
    parser_init(&p, &h, name, err);
    MOEC_TRY(check_length(bytes, file_bytes, name, &h.header_bytes, err));
    if (h.header_bytes > n)
        return moec_fail_at(err, MOEC_E_FORMAT, MOEC_RULE_H01, 0,
                            "%s: byte 0: a header of %" PRIu64
                            " bytes, %zu are there",
                            name, h.header_bytes - PREFIX_BYTES, n);
    p.js.start = bytes + PREFIX_BYTES;
    p.js.p = p.js.start;
    p.js.end = bytes + h.header_bytes;
    MOEC_TRY(moec_sha256_of(data, (size_t)h.header_bytes, &h.sha256, err));
    MOEC_TRY(parser_run(&p, file_bytes));
    *out = h;
    return MOEC_OK;
}

void moec_header_fini(moec_header *h)
{
    static const moec_header no_header;

    moec_arena_fini(&h->arena);
    if (!h->lent)
        moec_free(h->tensors);
    moec_free(h->breaks);
    *h = no_header;
}

size_t moec_header_n_runs(const moec_header *h)
{
    return h->n_tensors > 0 ? h->n_breaks + 1 : 0;
}

size_t moec_header_runs(const moec_header *h, moec_run *out)
{
    size_t n = moec_header_n_runs(h);

    for (size_t i = 0; i < n; i++) {
        size_t begin = i > 0 ? h->breaks[i - 1] : 0;
        size_t end = i + 1 < n ? h->breaks[i] : h->n_tensors;
        out[i] = (moec_run){h->tensors + begin, h->tensors + end};
    }
    return n;
}
