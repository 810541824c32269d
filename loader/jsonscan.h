/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_JSONSCAN_H
#define MOEC_JSONSCAN_H

/*
 * What this is: a strict JSON tokenizer (RFC 8259, UTF-8, no byte order mark)
 *   over a window of bytes that is refilled: shard headers and index.json are
 *   read through it. It builds no tree and stores nothing that its caller did
 *   not ask for, so its memory does not depend on the text.
 * Lifetime: as each block says. Threads: one thread at a time.
 * Errors: FORMAT with the rule that the caller named for the kind of fault,
 *   the file's name and the byte; NOMEM; whatever refill returns.
 */

#include <string.h>

#include "base/base.h"
#include "keyset.h"

/* Deepest nesting: a header needs 3, an index 2. Also the bits of a stack. */
#define MOEC_JSON_DEPTH_MAX 64

/* Most keys that one metadata object or one unknown value may hold: they are
 * told apart by digests, 16 bytes each, and a real file has a handful. */
#define MOEC_JSON_KEYS_MAX 65536u

/* Give the bytes behind the last window: *n_out 0 at the end. The window
 * before may be overwritten. */
typedef moec_status (*moec_js_refill_fn)(void *ctx, const void **data_out,
                                         size_t *n_out, moec_error *err);

typedef struct moec_jsonscan {
    const unsigned char *p, *end; /* what is left of the window */
    const unsigned char *start;   /* of the window */
    uint64_t base;                /* byte in the file of `start` */
    moec_js_refill_fn refill;     /* NULL: the first window is all */
    void *ctx;
    const char *name; /* file, for messages */
    moec_error *err;
    moec_keyset keys; /* of objects that are skipped */
    uint32_t depth;   /* containers that the caller is in */
    uint32_t n_keys_max;
    moec_rule json, utf8, too_deep, duplicate, too_many_keys;
} moec_jsonscan;

/* A string as it was read. `s` is `len` bytes, unescaped, not terminated; it
 * points into the window or to `buf` and is good until the next call. Of a
 * string longer than `cap` only the length is right. */
typedef struct moec_js_text {
    const char *s;
    uint64_t len;
    bool has_nul; /* an escaped NUL is in it */
    char *buf;    /* the caller's, `cap` bytes */
    size_t cap;
} moec_js_text;

/* A scanner over `n` bytes that are all there, every fault of them one rule's.
 * Free it with moec_js_fini. */
static inline moec_jsonscan moec_js_over(const void *text, size_t n,
                                         const char *name, moec_rule rule,
                                         moec_error *err)
{
    const unsigned char *p = (const unsigned char *)text;

    return (moec_jsonscan){.p = p,
                           .end = p + n,
                           .start = p,
                           .name = name,
                           .err = err,
                           .n_keys_max = MOEC_JSON_KEYS_MAX,
                           .json = rule,
                           .utf8 = rule,
                           .too_deep = rule,
                           .duplicate = rule,
                           .too_many_keys = rule};
}

/* Byte in the file that is read next. */
static inline uint64_t moec_js_pos(const moec_jsonscan *s)
{
    return s->base + (uint64_t)(s->p - s->start);
}

/* End of the run of plain ASCII that begins at p: no quote, no backslash, no
 * control character. */
const unsigned char *moec_js_plain_run(const unsigned char *p,
                                       const unsigned char *end);

/* Fail with what is wrong at the next byte. */
moec_status moec_js_fail(moec_jsonscan *s, moec_rule rule, const char *what);
#define moec_js_fail(...) moec_refused((moec_js_fail)(__VA_ARGS__))

/* Free what the scanner holds (the keys). */
void moec_js_fini(moec_jsonscan *s);

/* Pass over whitespace. *c_out is the byte behind it, not consumed, or -1 at
 * the end. */
moec_status moec_js_peek_slow(moec_jsonscan *s, int *c_out);
static inline moec_status moec_js_peek(moec_jsonscan *s, int *c_out)
{
    if (s->p<s->end && * s->p> ' ') {
        *c_out = *s->p;
        return MOEC_OK;
    }
    return moec_js_peek_slow(s, c_out);
}

/* Consume `want` behind whitespace, or fail. */
moec_status moec_js_expect_slow(moec_jsonscan *s, char want);
static inline moec_status moec_js_expect(moec_jsonscan *s, char want)
{
    if (s->p < s->end && *s->p == (unsigned char)want) {
        s->p++;
        return MOEC_OK;
    }
    return moec_js_expect_slow(s, want);
}

/* Consume what stands between members: *more_out is false where `close` came
 * (consumed), true behind a comma or, for the first member, where anything
 * but `close` stands. */
moec_status moec_js_member(moec_jsonscan *s, char close, bool first,
                           bool *more_out);

/* Count one container in, or fail where that is too deep. The opening bracket
 * is the next byte and is consumed. moec_js_member takes the closing one; the
 * caller then counts it out with moec_js_leave. */
moec_status moec_js_enter(moec_jsonscan *s);
static inline void moec_js_leave(moec_jsonscan *s)
{
    s->depth--;
}

/* True where the string is `n` bytes, those of `word`. */
static inline bool moec_js_text_is(const moec_js_text *t, const char *word,
                                   size_t n)
{
    return t->len == n && memcmp(t->s, word, n) == 0;
}

/* Read a string behind whitespace. */
moec_status moec_js_string(moec_jsonscan *s, moec_js_text *t);

/* Read an object's key of any length into its set; a duplicate is refused. */
moec_status moec_js_key(moec_jsonscan *s, uint64_t serial);

/* Read the number that is next. *is_u64_out: it was written as an integer
 * without sign, fraction or exponent and is below 2^64. */
moec_status moec_js_number(moec_jsonscan *s, uint64_t *value_out,
                           bool *is_u64_out);

/* Pass over one value of any kind. Duplicate keys in it are refused; all its
 * objects together hold at most n_keys_max keys. */
moec_status moec_js_skip(moec_jsonscan *s);

#endif
