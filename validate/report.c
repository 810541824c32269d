/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The report: findings, sorted, and the six theorems.
 *
 * Findings arrive from many threads in any order. So that two runs give the
 * same report they are sorted by what they say, and a report that is too long
 * keeps the first MOEC_FINDINGS_MAX in that order, not the first to arrive:
 * when twice as many are held the later half by order is dropped, which never
 * drops one that the final cut would have kept.
 */

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "report.h"

#define HELD_MAX          ((size_t)2 * MOEC_FINDINGS_MAX)
#define MESSAGE_BYTES_MAX 1024u
#define N_THEOREMS        6u

/* One finding and its texts in one allocation, so that dropping it gives all
 * of it back. */
typedef struct entry {
    moec_finding f;
    char text[];
} entry;

struct moec_report {
    pthread_mutex_t lock;
    entry **entries;
    size_t n, cap;
    uint64_t n_added;
    bool has_error, oom;
    bool broken[N_THEOREMS]; /* has a finding, kept or not */
    moec_theorem theorems[N_THEOREMS];
    char *notes[N_THEOREMS];
};

moec_status moec_report_create(moec_report **out, moec_error *err)
{
    moec_report *r = moec_calloc(1, sizeof(*r));

    if (r == NULL)
        return moec_fail_nomem(err, "report");
    if (pthread_mutex_init(&r->lock, NULL) != 0) {
        moec_free(r);
        return moec_fail_nomem(err, "lock of the report");
    }
    for (uint32_t i = 0; i < N_THEOREMS; i++)
        r->theorems[i].rule = (moec_rule)((uint32_t)MOEC_RULE_T1 + i);
    *out = r;
    return MOEC_OK;
}

void moec_report_destroy(moec_report *r)
{
    if (r == NULL)
        return;
    for (size_t i = 0; i < r->n; i++)
        moec_free(r->entries[i]);
    for (size_t i = 0; i < N_THEOREMS; i++)
        moec_free(r->notes[i]);
    moec_free(r->entries);
    pthread_mutex_destroy(&r->lock);
    moec_free(r);
}

/* Index of the theorem, or N_THEOREMS for another rule. */
static uint32_t theorem_of(moec_rule rule)
{
    if (rule < MOEC_RULE_T1 || rule > MOEC_RULE_T6)
        return N_THEOREMS;
    return (uint32_t)rule - (uint32_t)MOEC_RULE_T1;
}

/* ------------------------------------------------------------- sorting */

static int by_u64(uint64_t a, uint64_t b)
{
    return (a > b) - (a < b);
}

/* Absent sorts before present: what is about more comes first. */
static int by_text(const char *a, const char *b)
{
    if (a == NULL || b == NULL)
        return (a != NULL) - (b != NULL);
    return strcmp(a, b);
}

static uint64_t layer_rank(const moec_finding *f)
{
    if ((f->has & MOEC_HAS_LAYER) == 0)
        return 0;
    return 1 + ((uint64_t)f->layer.space << 32) + f->layer.number;
}

static uint64_t field(const moec_finding *f, uint32_t bit, uint64_t v)
{
    return (f->has & bit) != 0 ? 1 + v : 0;
}

static int by_finding(const void *pa, const void *pb)
{
    const moec_finding *a = &(*(entry *const *)pa)->f;
    const moec_finding *b = &(*(entry *const *)pb)->f;
    int c = by_u64((uint64_t)a->rule, (uint64_t)b->rule);

    if (c == 0)
        c = by_u64(layer_rank(a), layer_rank(b));
    if (c == 0)
        c = by_u64(field(a, MOEC_HAS_RANK, a->rank),
                   field(b, MOEC_HAS_RANK, b->rank));
    if (c == 0)
        c = by_u64(field(a, MOEC_HAS_SLOT, a->slot),
                   field(b, MOEC_HAS_SLOT, b->slot));
    if (c == 0)
        c = by_text(a->file, b->file);
    if (c == 0)
        c = by_u64(field(a, MOEC_HAS_OFFSET, a->offset),
                   field(b, MOEC_HAS_OFFSET, b->offset));
    if (c == 0)
        c = by_text(a->message, b->message);
    if (c == 0)
        c = by_text(a->tensor, b->tensor);
    return c;
}

/* Sort and keep the first `max`. */
static void cut(moec_report *r, size_t max)
{
    if (r->n != 0)
        /* NOLINTNEXTLINE(bugprone-sizeof-expression): sorts pointers */
        qsort(r->entries, r->n, sizeof(*r->entries), by_finding);
    while (r->n > max)
        moec_free(r->entries[--r->n]);
}

/* -------------------------------------------------------------- adding */

/* Names come from files: keep terminals and logs safe from them. */
static void escape(char *dst, size_t cap, const char *src)
{
    static const char hex[] = "0123456789abcdef";
    size_t n = 0;

    for (; *src != '\0' && n + 5 < cap; src++) {
        unsigned char c = (unsigned char)*src;
        if (c >= 0x20 && c != 0x7f) {
            dst[n++] = *src;
            continue;
        }
        dst[n++] = '\\';
        dst[n++] = 'x';
        dst[n++] = hex[c >> 4];
        dst[n++] = hex[c & 15];
    }
    /* never end inside a UTF-8 sequence that was cut */
    if (*src != '\0')
        while (n > 0 && ((unsigned char)dst[n - 1] & 0x80) != 0)
            n--;
    dst[n] = '\0';
}

static const char *put(char **at, const char *s)
{
    size_t n = s == NULL ? 0 : strlen(s) + 1;
    char *here = *at;

    if (s == NULL)
        return NULL;
    memcpy(here, s, n);
    *at += n;
    return here;
}

static size_t room(const char *s)
{
    return s == NULL ? 0 : strlen(s) + 1;
}

static entry *entry_create(const moec_finding *like, const char *message)
{
    const char *file = like->has & MOEC_HAS_FILE ? like->file : NULL;
    const char *tensor = like->has & MOEC_HAS_TENSOR ? like->tensor : NULL;
    const char *want = like->has & MOEC_HAS_EXPECTED ? like->expected : NULL;
    const char *got = like->has & MOEC_HAS_FOUND ? like->found : NULL;
    entry *e = moec_alloc(sizeof(*e) + room(message) + room(file) +
                          room(tensor) + room(want) + room(got));
    char *at;

    if (e == NULL)
        return NULL;
    at = e->text;
    e->f = *like;
    e->f.message = put(&at, message);
    e->f.file = put(&at, file);
    e->f.tensor = put(&at, tensor);
    e->f.expected = put(&at, want);
    e->f.found = put(&at, got);
    return e;
}

/* Make room for one more; the lock is held. */
static bool make_room(moec_report *r)
{
    if (r->n < r->cap)
        return true;
    if (r->n == HELD_MAX) {
        cut(r, MOEC_FINDINGS_MAX + 1);
        return true;
    }
    size_t cap = r->cap == 0 ? 64 : r->cap * 2;
    if (cap > HELD_MAX)
        cap = HELD_MAX;
    /* NOLINTNEXTLINE(bugprone-sizeof-expression): an array of pointers */
    entry **grown = moec_realloc_array(r->entries, cap, sizeof(*grown));
    if (grown == NULL)
        return false;
    r->entries = grown;
    r->cap = cap;
    return true;
}

static void append(moec_report *r, const moec_finding *like,
                   const char *message)
{
    entry *e = entry_create(like, message);
    uint32_t t = theorem_of(like->rule);

    pthread_mutex_lock(&r->lock);
    r->n_added++;
    if (like->severity == MOEC_SEVERITY_ERROR) {
        r->has_error = true;
        if (t < N_THEOREMS)
            r->broken[t] = true;
    }
    if (e != NULL && make_room(r)) {
        r->entries[r->n++] = e;
        e = NULL;
    } else {
        r->oom = true;
    }
    pthread_mutex_unlock(&r->lock);
    moec_free(e);
}

void moec_report_add(moec_report *r, const moec_finding *like, const char *fmt,
                     ...)
{
    char raw[MESSAGE_BYTES_MAX], message[MESSAGE_BYTES_MAX];
    va_list ap;

    va_start(ap, fmt);
    if (vsnprintf(raw, sizeof(raw), fmt, ap) < 0)
        raw[0] = '\0';
    va_end(ap);
    escape(message, sizeof(message), raw);
    append(r, like, message);
}

bool moec_report_is_damage(const moec_error *e)
{
    return e->status == MOEC_E_FORMAT ||
           (e->status == MOEC_E_IO &&
            (e->os_errno == ENOENT || e->os_errno == ELOOP ||
             e->os_errno == ENOTDIR || e->os_errno == EXDEV));
}

void moec_report_add_error(moec_report *r, const char *file, moec_rule rule,
                           const moec_error *e)
{
    moec_finding f = {.severity = MOEC_SEVERITY_ERROR};
    const char *text = e->text;

    f.rule = e->rule != MOEC_RULE_NONE ? e->rule : rule;
    if (file != NULL) {
        f.has |= MOEC_HAS_FILE;
        f.file = file;
    }
    if (file != NULL && e->has_off != 0) {
        f.has |= MOEC_HAS_OFFSET;
        f.offset = e->file_off;
    }
    /* the finding's own rule field says it */
    if (strncmp(text, "[MOE-", 5) == 0 && strchr(text, ']') != NULL) {
        text = strchr(text, ']') + 1;
        text += *text == ' ';
    }
    append(r, &f, text);
}

void moec_report_ran(moec_report *r, moec_rule rule, uint64_t checked)
{
    uint32_t t = theorem_of(rule);

    if (t == N_THEOREMS)
        return;
    pthread_mutex_lock(&r->lock);
    r->theorems[t].ran = 1;
    r->theorems[t].checked += checked;
    pthread_mutex_unlock(&r->lock);
}

bool moec_report_broken(const moec_report *r, moec_rule rule)
{
    uint32_t t = theorem_of(rule);

    return t < N_THEOREMS && r->broken[t];
}

void moec_report_note(moec_report *r, moec_rule rule, const char *fmt, ...)
{
    uint32_t t = theorem_of(rule);
    char raw[MESSAGE_BYTES_MAX];
    va_list ap;

    if (t == N_THEOREMS)
        return;
    va_start(ap, fmt);
    if (vsnprintf(raw, sizeof(raw), fmt, ap) < 0)
        raw[0] = '\0';
    va_end(ap);
    char *note = moec_alloc(MESSAGE_BYTES_MAX);
    if (note != NULL)
        escape(note, MESSAGE_BYTES_MAX, raw);

    pthread_mutex_lock(&r->lock);
    r->oom = r->oom || note == NULL;
    if (r->notes[t] == NULL) {
        r->notes[t] = note;
        note = NULL;
    }
    pthread_mutex_unlock(&r->lock);
    moec_free(note);
}

/* The last kept entry gives its place to a note that counts the others. */
static bool count_dropped(moec_report *r)
{
    char message[96];
    entry *last = r->entries[r->n - 1];
    moec_finding f = {.rule = last->f.rule, .severity = MOEC_SEVERITY_NOTE};

    (void)snprintf(message, sizeof(message),
                   "and %llu findings more: only the first %u are listed",
                   (unsigned long long)(r->n_added - MOEC_FINDINGS_MAX),
                   MOEC_FINDINGS_MAX);
    entry *e = entry_create(&f, message);
    if (e == NULL)
        return false;
    moec_free(last);
    r->entries[r->n - 1] = e;
    return true;
}

moec_status moec_report_finish(moec_report *r, moec_error *err)
{
    cut(r, MOEC_FINDINGS_MAX + 1);
    if (!r->oom && r->n > MOEC_FINDINGS_MAX)
        r->oom = !count_dropped(r);
    if (r->oom)
        return moec_fail_nomem(err, "findings of the report");
    for (uint32_t t = 0; t < N_THEOREMS; t++) {
        moec_theorem *th = &r->theorems[t];
        /* a finding is an answer, whoever gave it */
        th->ran = th->ran != 0 || r->broken[t];
        th->ok = th->ran != 0 && !r->broken[t];
        th->note = r->notes[t];
    }
    return MOEC_OK;
}

/* ------------------------------------------------------------- reading */

int moec_report_ok(const moec_report *report)
{
    return !report->has_error;
}

size_t moec_report_n_findings(const moec_report *report)
{
    return report->n;
}

const moec_finding *moec_report_finding(const moec_report *report, size_t i)
{
    return i < report->n ? &report->entries[i]->f : NULL;
}

const moec_theorem *moec_report_theorem(const moec_report *report, size_t i)
{
    return i < N_THEOREMS ? &report->theorems[i] : NULL;
}
