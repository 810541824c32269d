/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What differs. See compare.h. Contents of conversions are compared by the
 * SHA-256 of their leaves, as slots.bin has them: whether the files still have
 * these bytes is verify's question.
 */

#include "compare.h"

#include <inttypes.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#include "ckpt.h"
#include "conversion.h"
#include "inverse.h"

#define READ_BYTES ((size_t)4 << 20)

/* Experts of a slot tensor that are named before the rest is counted. */
enum { NAMED_MAX = 8 };

static char *text_of(moec_compare *c, const char *fmt, ...) MOEC_PRINTF(2, 3);

static char *text_of(moec_compare *c, const char *fmt, ...)
{
    moec_arena arena = {c->texts};
    char buf[512], *out;
    va_list ap;

    va_start(ap, fmt);
    (void)vsnprintf(buf, sizeof(buf), fmt, ap);
    va_end(ap);
    out = moec_arena_strdup(&arena, buf, strlen(buf));
    c->texts = arena.head;
    return out;
}

/* `a` or `b` is NULL where that side has nothing. */
static moec_status add(moec_compare *c, const char *about, const char *name,
                       const char *a, const char *b, moec_error *err)
{
    moec_difference d = {.about = about};

    d.name = text_of(c, "%s", name);
    d.a = a ? text_of(c, "%s", a) : NULL;
    d.b = b ? text_of(c, "%s", b) : NULL;
    if (!d.name || (a && !d.a) || (b && !d.b))
        return moec_fail_nomem(err, "a difference");
    if (!MOEC_GROW(c->list, c->n, c->cap))
        return moec_fail_nomem(err, "differences");
    c->list[c->n++] = d;
    return MOEC_OK;
}

void moec_compare_fini(moec_compare *c)
{
    moec_arena arena = {c->texts};

    moec_arena_fini(&arena);
    moec_free(c->list);
    memset(c, 0, sizeof(*c));
}

/* -------------------------------------------------------------- tensors */

/* "BF16 [256, 7168]" */
static void shape_text(const moec_tensor *t, char *buf, size_t n)
{
    size_t at =
        (size_t)snprintf(buf, n, "%s [", moec_dtype_name((moec_dtype)t->dtype));

    for (uint32_t i = 0; i < t->rank && at + 24 < n; i++)
        at += (size_t)snprintf(buf + at, n - at, "%s%" PRIu64, i ? ", " : "",
                               t->shape[i]);
    (void)snprintf(buf + at, n - at, "]");
}

static bool same_shape(const moec_tensor *a, const moec_tensor *b)
{
    return a->dtype == b->dtype && a->rank == b->rank &&
           (a->rank == 0 ||
            memcmp(a->shape, b->shape, a->rank * sizeof(*a->shape)) == 0);
}

moec_status moec_compare_tensors(moec_compare *c, const moec_ckpt *a,
                                 const moec_ckpt *b, moec_error *err)
{
    char x[256], y[256];

    for (size_t i = 0; i < moec_ckpt_n_tensors(a); i++) {
        const moec_tensor *t = moec_ckpt_tensor(a, i), *u;
        size_t k = moec_ckpt_find(b, t->name);

        c->n_compared++;
        shape_text(t, x, sizeof(x));
        if (k >= moec_ckpt_n_tensors(b)) {
            MOEC_TRY(add(c, "tensor", t->name, x, NULL, err));
            continue;
        }
        u = moec_ckpt_tensor(b, k);
        shape_text(u, y, sizeof(y));
        if (!same_shape(t, u))
            MOEC_TRY(add(c, "tensor", t->name, x, y, err));
    }
    for (size_t i = 0; i < moec_ckpt_n_tensors(b); i++) {
        const moec_tensor *t = moec_ckpt_tensor(b, i);

        if (moec_ckpt_find(a, t->name) < moec_ckpt_n_tensors(a))
            continue;
        shape_text(t, x, sizeof(x));
        MOEC_TRY(add(c, "tensor", t->name, NULL, x, err));
    }
    return MOEC_OK;
}

/* Bytes of two tensors that differ: *first_out is the first one. */
static moec_status count_bytes(const moec_ckpt *a, size_t i, const moec_ckpt *b,
                               size_t k, unsigned char *buf, uint64_t *n_out,
                               uint64_t *first_out, moec_error *err)
{
    uint64_t bytes = moec_ckpt_tensor(a, i)->bytes;

    *n_out = 0;
    for (uint64_t off = 0; off < bytes; off += READ_BYTES) {
        size_t n = (size_t)moec_min_u64(READ_BYTES, bytes - off);
        const unsigned char *x = buf, *y = buf + READ_BYTES;

        MOEC_TRY(moec_ckpt_read(a, i, off, buf, n, err));
        MOEC_TRY(moec_ckpt_read(b, k, off, buf + READ_BYTES, n, err));
        if (memcmp(x, y, n) == 0)
            continue;
        for (size_t j = 0; j < n; j++) {
            if (x[j] == y[j])
                continue;
            if (*n_out == 0)
                *first_out = off + j;
            ++*n_out;
        }
    }
    return MOEC_OK;
}

moec_status moec_compare_bytes(moec_compare *c, const moec_ckpt *a,
                               const moec_ckpt *b,
                               const volatile sig_atomic_t *stop,
                               moec_error *err)
{
    unsigned char *buf = moec_alloc(2 * READ_BYTES);
    moec_status st = MOEC_OK;
    char text[128];

    if (!buf)
        return moec_fail_nomem(err, "buffers to compare in");
    for (size_t i = 0; i < moec_ckpt_n_tensors(a) && st == MOEC_OK; i++) {
        const moec_tensor *t = moec_ckpt_tensor(a, i);
        size_t k = moec_ckpt_find(b, t->name);
        uint64_t n = 0, first = 0;

        if (k >= moec_ckpt_n_tensors(b) ||
            !same_shape(t, moec_ckpt_tensor(b, k)))
            continue;
        st = count_bytes(a, i, b, k, buf, &n, &first, err);
        c->bytes_compared += t->bytes;
        (void)snprintf(text, sizeof(text),
                       "%" PRIu64 " of %" PRIu64 " bytes differ, from byte "
                       "%" PRIu64 " on",
                       n, t->bytes, first);
        if (st == MOEC_OK && n > 0)
            st = add(c, "content", t->name, text, text, err);
        if (st == MOEC_OK && stop && *stop)
            st = moec_fail(err, MOEC_E_CANCELLED, MOEC_RULE_NONE,
                           "interrupted while tensors were compared");
    }
    moec_free(buf);
    return st;
}

moec_status moec_compare_source(moec_compare *c, const moec_ckpt *source,
                                const moec_conversion *conversion,
                                moec_error *err)
{
    const moec_manifest *m = &moec_conversion_files(conversion)->manifest;
    char x[128], y[128];

    for (size_t i = 0; i < m->n_sources; i++) {
        const moec_mf_source *s = &m->sources[i];
        const moec_file *f = NULL;

        for (size_t k = 0; k < moec_ckpt_n_files(source) && !f; k++) {
            if (strcmp(moec_ckpt_file(source, k)->name, s->name) == 0)
                f = moec_ckpt_file(source, k);
        }
        (void)snprintf(y, sizeof(y), "%" PRIu64 " bytes", s->bytes);
        if (!f) {
            MOEC_TRY(add(c, "file", s->name, NULL, y, err));
            continue;
        }
        (void)snprintf(x, sizeof(x), "%" PRIu64 " bytes", f->bytes);
        if (f->bytes != s->bytes)
            MOEC_TRY(add(c, "file", s->name, x, y, err));
        else if (memcmp(f->header_sha256, s->header_sha256.b, 32) != 0)
            MOEC_TRY(
                add(c, "file", s->name, "its header", "another header", err));
    }
    return MOEC_OK;
}

/* ---------------------------------------------------- files beside them */

/* A copied file: of a conversion as its manifest has it. */
typedef struct small {
    const char *name;
    moec_sha256 sha256;
} small;

static moec_status list_files(const moec_ckpt *ckpt,
                              const moec_conversion *conversion, small **out,
                              size_t *n_out, moec_error *err)
{
    const moec_manifest *m =
        conversion ? &moec_conversion_files(conversion)->manifest : NULL;
    size_t n = m ? m->n_copied : moec_ckpt_n_extra(ckpt);
    small *list = moec_calloc(n + 1, sizeof(*list));
    moec_status st = MOEC_OK;

    if (!list)
        return moec_fail_nomem(err, "a list of files");
    for (size_t i = 0; st == MOEC_OK && i < n; i++) {
        uint64_t bytes = 0;
        int fd = -1;

        list[i].name = m ? m->copied[i].name : moec_ckpt_extra(ckpt, i);
        if (m) {
            list[i].sha256 = m->copied[i].sha256;
            continue;
        }
        st = moec_ckpt_open_extra(ckpt, list[i].name, &fd, &bytes, err);
        if (st == MOEC_OK)
            st = moec_sha256_fd(fd, list[i].name, bytes, &list[i].sha256, err);
        if (fd >= 0)
            close(fd);
    }
    *out = list;
    *n_out = n;
    return st;
}

static const small *find_file(const small *list, size_t n, const char *name)
{
    for (size_t i = 0; i < n; i++) {
        if (strcmp(list[i].name, name) == 0)
            return &list[i];
    }
    return NULL;
}

static moec_status add_file(moec_compare *c, const small *a, const small *b,
                            moec_error *err)
{
    char x[65], y[65];

    if (a)
        moec_hex(a->sha256.b, sizeof(a->sha256), x);
    if (b)
        moec_hex(b->sha256.b, sizeof(b->sha256), y);
    if (a && b && strcmp(x, y) == 0)
        return MOEC_OK;
    return add(c, "file", a ? a->name : b->name, a ? x : NULL, b ? y : NULL,
               err);
}

moec_status moec_compare_files(moec_compare *c, moec_compared a,
                               moec_compared b, moec_error *err)
{
    small *x = NULL, *y = NULL;
    size_t nx = 0, ny = 0;
    moec_status st = list_files(a.ckpt, a.conversion, &x, &nx, err);

    if (st == MOEC_OK)
        st = list_files(b.ckpt, b.conversion, &y, &ny, err);
    for (size_t i = 0; st == MOEC_OK && i < nx; i++)
        st = add_file(c, &x[i], find_file(y, ny, x[i].name), err);
    for (size_t i = 0; st == MOEC_OK && i < ny; i++) {
        if (!find_file(x, nx, y[i].name))
            st = add_file(c, NULL, &y[i], err);
    }
    moec_free(x);
    moec_free(y);
    return st;
}

/* ---------------------------------------------------------- conversions */

static moec_status add_option(moec_compare *c, const char *name, const char *a,
                              const char *b, moec_error *err)
{
    return strcmp(a, b) == 0 ? MOEC_OK : add(c, "option", name, a, b, err);
}

static moec_status add_number(moec_compare *c, const char *name, uint64_t a,
                              uint64_t b, moec_error *err)
{
    char x[24], y[24];

    (void)snprintf(x, sizeof(x), "%" PRIu64, a);
    (void)snprintf(y, sizeof(y), "%" PRIu64, b);
    return add_option(c, name, x, y, err);
}

static moec_status compare_options(moec_compare *c, const moec_manifest *a,
                                   const moec_manifest *b, moec_error *err)
{
    char x[65], y[65];

    MOEC_TRY(add_option(c, "family", a->family, b->family, err));
    MOEC_TRY(add_option(c, "--shard-by", a->shard_by, b->shard_by, err));
    MOEC_TRY(add_number(c, "--ep", a->n_ranks, b->n_ranks, err));
    MOEC_TRY(add_number(c, "--redundant", a->n_redundant, b->n_redundant, err));
    MOEC_TRY(
        add_option(c, "--shared-slots", a->shared_slots, b->shared_slots, err));
    MOEC_TRY(
        add_option(c, "--shared-store", a->shared_store, b->shared_store, err));
    MOEC_TRY(add_option(c, "--w13-order", a->w13_order, b->w13_order, err));
    MOEC_TRY(add_option(c, "--no-mtp", a->mtp ? "no" : "yes",
                        b->mtp ? "no" : "yes", err));
    MOEC_TRY(add_option(c, "--allow-empty", a->allow_empty ? "yes" : "no",
                        b->allow_empty ? "yes" : "no", err));
    MOEC_TRY(add_option(c, "--requantize-shared", a->requantize ? "yes" : "no",
                        b->requantize ? "yes" : "no", err));
    MOEC_TRY(add_number(c, "--max-part-bytes", a->max_part_bytes,
                        b->max_part_bytes, err));
    moec_hex(&a->placement_sha256, sizeof(a->placement_sha256), x);
    moec_hex(&b->placement_sha256, sizeof(b->placement_sha256), y);
    return add_option(c, "--placement", x, y, err);
}

typedef struct side {
    const moec_conversion *conv;
    const moec_layout *layout;
    const moec_plan *plan;
    const moec_ckpt *ckpt;
    const moec_slots *slots;
} side;

static side side_of(const moec_conversion *conv)
{
    side s = {.conv = conv, .layout = moec_conversion_layout(conv)};

    s.plan = moec_layout_plan(s.layout);
    s.ckpt = moec_model_ckpt(moec_plan_model(s.plan));
    s.slots = &moec_conversion_files(conv)->slots;
    return s;
}

static const moec_ct_slot *slot_at(const side *s, size_t file, uint64_t off)
{
    uint64_t slot = 0;

    return moec_slots_find(s->slots, file, off, &slot) ? &s->slots->slots[slot]
                                                       : NULL;
}

static const moec_ct_slot *slot_of(const side *s, size_t layer, size_t t,
                                   uint32_t unit)
{
    moec_inverse_from from;

    if (!moec_inverse_slot(s->layout, layer, t, unit, &from))
        return NULL;
    return slot_at(s, from.file, from.off);
}

/* The slot tensor of that name in the same planned layer of `s`. */
static bool find_tensor(const side *s, const char *name, size_t *layer_out,
                        size_t *t_out)
{
    for (size_t i = 0; i < moec_plan_n_layers(s->plan); i++) {
        for (size_t t = 0; t < moec_plan_n_slot_tensors(s->plan, i); t++) {
            if (strcmp(moec_plan_slot_tensor(s->plan, i, t)->name, name) != 0)
                continue;
            *layer_out = i;
            *t_out = t;
            return true;
        }
    }
    return false;
}

static moec_status compare_units(moec_compare *c, const side *a, const side *b,
                                 size_t layer, size_t t, moec_error *err)
{
    const moec_slot_tensor *s = moec_plan_slot_tensor(a->plan, layer, t);
    uint32_t n = moec_model_facts(moec_plan_model(a->plan))->n_experts +
                 moec_plan_shared_rows(a->plan);
    uint32_t n_bad = 0;
    char list[256] = "", text[320];
    size_t lb = layer, tb = t, at = 0;

    /* Most often it has the same place in both. */
    if (lb >= moec_plan_n_layers(b->plan) ||
        tb >= moec_plan_n_slot_tensors(b->plan, lb) ||
        strcmp(moec_plan_slot_tensor(b->plan, lb, tb)->name, s->name) != 0) {
        if (!find_tensor(b, s->name, &lb, &tb))
            return add(c, "tensor", s->name, "a slot tensor", NULL, err);
    }
    for (uint32_t u = 0; u < n; u++) {
        const moec_ct_slot *x = slot_of(a, layer, t, u);
        const moec_ct_slot *y = slot_of(b, lb, tb, u);

        if (!x || !y)
            continue;
        c->n_compared++;
        c->bytes_compared += s->slot_bytes;
        if (memcmp(&x->sha256, &y->sha256, sizeof(x->sha256)) == 0)
            continue;
        if (n_bad++ < NAMED_MAX)
            at += (size_t)snprintf(list + at, sizeof(list) - at, "%s%u",
                                   at ? ", " : "", u);
    }
    if (n_bad == 0)
        return MOEC_OK;
    (void)snprintf(text, sizeof(text), "experts %s%s differ, %u of %u", list,
                   n_bad > NAMED_MAX ? ", ..." : "", n_bad, n);
    return add(c, "content", s->name, text, text, err);
}

static moec_status compare_common(moec_compare *c, const side *a, const side *b,
                                  moec_error *err)
{
    for (size_t i = 0; i < moec_ckpt_n_tensors(a->ckpt); i++) {
        const moec_tensor *t = moec_ckpt_tensor(a->ckpt, i);
        size_t k = moec_ckpt_find(b->ckpt, t->name), fa = 0, fb = 0;
        const moec_ct_slot *x, *y;
        uint64_t oa = 0, ob = 0;

        if (k >= moec_ckpt_n_tensors(b->ckpt) || t->bytes == 0 ||
            !moec_layout_find_common(a->layout, i, &fa, &oa) ||
            !moec_layout_find_common(b->layout, k, &fb, &ob))
            continue;
        x = slot_at(a, fa, oa);
        y = slot_at(b, fb, ob);
        if (!x || !y)
            continue;
        c->n_compared++;
        c->bytes_compared += t->bytes;
        if (memcmp(&x->sha256, &y->sha256, sizeof(x->sha256)) != 0)
            MOEC_TRY(
                add(c, "content", t->name, "other bytes", "other bytes", err));
    }
    return MOEC_OK;
}

moec_status moec_compare_conversions(moec_compare *c, const moec_conversion *a,
                                     const moec_conversion *b, moec_error *err)
{
    side x = side_of(a), y = side_of(b);

    MOEC_TRY(compare_options(c, &moec_conversion_files(a)->manifest,
                             &moec_conversion_files(b)->manifest, err));
    MOEC_TRY(moec_compare_tensors(c, x.ckpt, y.ckpt, err));
    for (size_t i = 0; i < moec_plan_n_layers(x.plan); i++) {
        for (size_t t = 0; t < moec_plan_n_slot_tensors(x.plan, i); t++)
            MOEC_TRY(compare_units(c, &x, &y, i, t, err));
    }
    return compare_common(c, &x, &y, err);
}
