/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The findings of all processes of a validation in the report of each: packed,
 * gathered, and each thing told once. Texts of another process are looked at
 * like those of a file.
 */

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "exchange_calls.h"
#include "level3.h"

/* A finding as it travels: this, then five texts with their NULs. */
typedef struct packed {
    uint32_t bytes; /* all of it, a multiple of 4 */
    uint32_t rule, severity, has;
    uint32_t rank, slot, expert, space, number;
    uint32_t text[5]; /* bytes of each with its NUL; 0: NULL */
    uint64_t offset;
} packed;

enum { FINDINGS_MAX = 1000 }; /* of one process */

/* Findings of a report into `b`. */
static void pack_report(moec_buf *b, const moec_report *r)
{
    size_t n = moec_report_n_findings(r);

    for (size_t i = 0; i < n && i < FINDINGS_MAX; i++) {
        const moec_finding *f = moec_report_finding(r, i);
        const char *texts[5] = {f->message, f->file, f->tensor, f->expected,
                                f->found};
        packed p = {.rule = (uint32_t)f->rule,
                    .severity = (uint32_t)f->severity,
                    .has = f->has,
                    .rank = f->rank,
                    .slot = f->slot,
                    .expert = f->expert,
                    .space = (uint32_t)f->layer.space,
                    .number = f->layer.number,
                    .offset = f->offset};
        size_t bytes = sizeof(p);

        for (int k = 0; k < 5; k++) {
            p.text[k] = texts[k] != NULL ? (uint32_t)strlen(texts[k]) + 1 : 0;
            bytes += p.text[k];
        }
        p.bytes = (uint32_t)((bytes + 7) / 8 * 8);
        moec_buf_append(b, &p, sizeof(p));
        for (int k = 0; k < 5; k++)
            moec_buf_append(b, texts[k], p.text[k]);
        moec_buf_append(b, "\0\0\0\0\0\0\0", p.bytes - bytes);
    }
}

/* A finding with the process that has it. */
typedef struct told {
    moec_finding f;
    uint32_t process;
} told;

static bool unpack_one(const unsigned char *at, size_t left, told *out,
                       size_t *bytes)
{
    packed p;
    const char *texts[5] = {NULL};
    size_t off = sizeof(p);

    if (left < sizeof(p))
        return false;
    memcpy(&p, at, sizeof(p));
    for (int k = 0; k < 5; k++) {
        texts[k] = p.text[k] != 0 ? (const char *)at + off : NULL;
        if (p.text[k] > left - off)
            return false;
        off += p.text[k];
        if (p.text[k] != 0 && at[off - 1] != '\0')
            return false;
    }
    if (p.bytes < off || p.bytes > left || texts[0] == NULL)
        return false;
    out->f = (moec_finding){.rule = (moec_rule)p.rule,
                            .severity = (moec_severity)p.severity,
                            .has = p.has,
                            .rank = p.rank,
                            .slot = p.slot,
                            .expert = p.expert,
                            .layer = {(moec_space)p.space, p.number},
                            .offset = p.offset,
                            .message = texts[0],
                            .file = texts[1],
                            .tensor = texts[2],
                            .expected = texts[3],
                            .found = texts[4]};
    *bytes = p.bytes;
    return true;
}

static int by_u64(uint64_t a, uint64_t b)
{
    return (a > b) - (a < b);
}

/* What two processes found of one thing; then the process. */
static int by_thing(const told *a, const told *b)
{
    const moec_finding *f = &a->f, *g = &b->f;
    int c = by_u64((uint64_t)f->rule, (uint64_t)g->rule);

    if (c == 0)
        c = by_u64((uint64_t)f->severity, (uint64_t)g->severity);
    if (c == 0)
        c = by_u64(f->has & (MOEC_HAS_LAYER | MOEC_HAS_RANK | MOEC_HAS_SLOT),
                   g->has & (MOEC_HAS_LAYER | MOEC_HAS_RANK | MOEC_HAS_SLOT));
    if (c == 0 && (f->has & MOEC_HAS_LAYER) != 0)
        c = by_u64((uint64_t)f->layer.space << 32 | f->layer.number,
                   (uint64_t)g->layer.space << 32 | g->layer.number);
    if (c == 0 && (f->has & MOEC_HAS_RANK) != 0)
        c = by_u64(f->rank, g->rank);
    if (c == 0 && (f->has & MOEC_HAS_SLOT) != 0)
        c = by_u64(f->slot, g->slot);
    if (c == 0)
        c = strcmp(f->file != NULL ? f->file : "",
                   g->file != NULL ? g->file : "");
    return c;
}

static int by_process(const void *pa, const void *pb)
{
    const told *a = pa, *b = pb;
    int c = by_thing(a, b);

    return c != 0 ? c : by_u64(a->process, b->process);
}

/* The findings that came, each thing once: what the lowest rank says of it.
 * Tokens have the numbers of its share. */
static void merge(moec_report *to, told *all, size_t n)
{
    uint32_t keep = 0;

    if (n != 0)
        qsort(all, n, sizeof(*all), by_process);
    for (size_t i = 0; i < n; i++) {
        const moec_finding *f = &all[i].f;

        if (i == 0 || by_thing(&all[i - 1], &all[i]) != 0)
            keep = all[i].process;
        if (all[i].process != keep)
            continue;
        if ((f->has & MOEC_HAS_LAYER) != 0 && f->rule != MOEC_RULE_K09 &&
            f->rule != MOEC_RULE_K06)
            moec_report_add(to, f, "tokens of rank %" PRIu32 ": %s", keep,
                            f->message);
        else
            moec_report_add(to, f, "%s", f->message);
    }
}

/* Take `all` apart; first[p] is in words. *out is the caller's. */
static moec_status unpack_all(const uint32_t *all, const uint64_t *first,
                              uint32_t size, told **out, size_t *n_out,
                              moec_error *err)
{
    size_t most = (size_t)first[size] * 4 / sizeof(packed) + 1, n = 0;
    told *list = moec_calloc(most, sizeof(*list));

    if (list == NULL)
        return moec_fail_nomem(err, "findings of all processes");
    for (uint32_t p = 0; p < size; p++) {
        const unsigned char *at = (const unsigned char *)(all + first[p]);
        size_t left = (size_t)(first[p + 1] - first[p]) * 4, bytes = 0;

        for (; left != 0; at += bytes, left -= bytes) {
            if (!unpack_one(at, left, &list[n], &bytes)) {
                moec_free(list);
                return moec_fail(err, MOEC_E_INTERNAL, MOEC_RULE_NONE,
                                 "findings of rank %" PRIu32 " came broken", p);
            }
            list[n++].process = p;
        }
    }
    *out = list;
    *n_out = n;
    return MOEC_OK;
}

static moec_status make_report(const uint32_t *all, const uint64_t *first,
                               uint32_t size, moec_report **out,
                               moec_error *err)
{
    moec_report *r = NULL;
    told *list = NULL;
    size_t n = 0;
    moec_status st = unpack_all(all, first, size, &list, &n, err);

    if (st == MOEC_OK)
        st = moec_report_create(&r, err);
    if (st == MOEC_OK)
        merge(r, list, n);
    if (st == MOEC_OK)
        st = moec_report_finish(r, err);
    moec_free(list);
    if (st != MOEC_OK) {
        moec_report_destroy(r);
        return st;
    }
    *out = r;
    return MOEC_OK;
}

/* How long the findings of each process are, as places in words. */
static moec_status share_places(moec_exchange *x, uint64_t words,
                                uint64_t *first, moec_error *err)
{
    uint32_t n = moec_exchange_size(x);

    MOEC_TRY(moec_exchange_gather_equal(x, &words, sizeof(words) / 4, first + 1,
                                        err));
    first[0] = 0;
    for (uint32_t p = 0; p < n; p++)
        first[p + 1] += first[p];
    return MOEC_OK;
}

moec_status moec_l3_share_report(moec_level3 *v, moec_report **r,
                                 moec_error *err)
{
    moec_exchange *x = v->opts->exchange;
    uint32_t size;
    uint64_t *first;
    uint32_t *all = NULL;
    moec_report *whole = NULL;
    moec_buf b = {0};
    moec_status st = MOEC_OK;

    if (x == NULL)
        return MOEC_OK;
    size = moec_exchange_size(x);
    first = moec_calloc((size_t)size + 1, sizeof(*first));
    pack_report(&b, *r);
    if (b.oom || first == NULL)
        st = moec_fail_nomem(err, "findings of all processes");
    st = moec_l3_agree(v, st, err);
    if (st == MOEC_OK)
        st = share_places(x, b.len / 4, first, err);
    if (st == MOEC_OK) {
        all = moec_calloc((size_t)first[size] + 1, sizeof(*all));
        if (all == NULL)
            st = moec_fail_nomem(err, "findings of all processes");
        st = moec_l3_agree(v, st, err);
    }
    if (st == MOEC_OK)
        st = moec_exchange_gather(x, b.data, b.len / 4, all, first, err);
    if (st == MOEC_OK)
        st = moec_l3_agree(v, make_report(all, first, size, &whole, err), err);
    if (st == MOEC_OK) {
        moec_report_destroy(*r);
        *r = whole;
        whole = NULL;
    }
    moec_report_destroy(whole);
    moec_buf_fini(&b);
    moec_free(all);
    moec_free(first);
    return st;
}
