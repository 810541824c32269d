/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The tokenizer under safetensors.c and index.c. Refuses everything that RFC
 * 8259 does not have (comments, single quotes, trailing commas, raw control
 * characters, leading zeros, lone surrogates), bytes that are not strict
 * UTF-8, nesting beyond MOEC_JSON_DEPTH_MAX and, in values that nobody reads,
 * duplicate keys.
 *
 * A token may straddle two windows. Long runs (string bodies, whitespace) are
 * scanned eight bytes at a time inside the window; all else goes byte by byte
 * through peek_raw, which refills.
 */

#include "jsonscan.h"

#include <string.h>
#if defined(__SSE2__)
#  include <emmintrin.h>
#endif

/* Defined here, and wrapped by the header. */
#undef moec_js_fail

/* --------------------------------------------------------------- windows */

/* Next byte, not consumed; -1 at the end. */
static moec_status peek_slow(moec_jsonscan *s, int *c_out)
{
    const void *data = NULL;
    size_t n = 0;

    *c_out = -1;
    if (s->refill == NULL)
        return MOEC_OK;
    MOEC_TRY(s->refill(s->ctx, &data, &n, s->err));
    if (n == 0)
        return MOEC_OK;
    s->base += (uint64_t)(s->end - s->start);
    s->start = data;
    s->p = s->start;
    s->end = s->start + n;
    *c_out = *s->p;
    return MOEC_OK;
}

static inline moec_status peek_raw(moec_jsonscan *s, int *c_out)
{
    if (s->p < s->end) {
        *c_out = *s->p;
        return MOEC_OK;
    }
    return peek_slow(s, c_out);
}

void moec_js_fini(moec_jsonscan *s)
{
    moec_keyset_fini(&s->keys);
}

/* Fail with what is wrong at byte `at`, where `c` stands. */
static moec_status fail_at(moec_jsonscan *s, moec_rule rule, uint64_t at, int c,
                           const char *what)
{
    if (c < 0)
        return moec_fail_at(s->err, MOEC_E_FORMAT, rule, at,
                            "%s: byte %llu: %s, but the text ends here",
                            s->name, (unsigned long long)at, what);
    if (c > 0x20 && c < 0x7f)
        return moec_fail_at(s->err, MOEC_E_FORMAT, rule, at,
                            "%s: byte %llu: %s, found '%c'", s->name,
                            (unsigned long long)at, what, c);
    return moec_fail_at(s->err, MOEC_E_FORMAT, rule, at,
                        "%s: byte %llu: %s, found byte 0x%02x", s->name,
                        (unsigned long long)at, what, (unsigned)c);
}

/* Consume one UTF-8 sequence of two to four bytes, strictly: no overlong
 * form, no surrogate, nothing above U+10FFFF (Unicode table 3-7). */
static moec_status utf8_sequence(moec_jsonscan *s, char out[4], size_t *n_out)
{
    int lead = *s->p;
    int low = 0x80, high = 0xbf;
    size_t n = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;

    if (lead < 0xc2 || lead > 0xf4)
        return fail_at(s, s->utf8, moec_js_pos(s), lead, "expected UTF-8");
    if (lead == 0xe0)
        low = 0xa0;
    else if (lead == 0xed)
        high = 0x9f;
    else if (lead == 0xf0)
        low = 0x90;
    else if (lead == 0xf4)
        high = 0x8f;
    out[0] = (char)lead;
    s->p++;
    for (size_t i = 1; i < n; i++) {
        int c;
        MOEC_TRY(peek_raw(s, &c));
        if (c < low || c > high)
            return fail_at(s, s->utf8, moec_js_pos(s), c,
                           "expected the rest of a UTF-8 sequence");
        out[i] = (char)c;
        s->p++;
        low = 0x80;
        high = 0xbf;
    }
    *n_out = n;
    return MOEC_OK;
}

moec_status moec_js_fail(moec_jsonscan *s, moec_rule rule, const char *what)
{
    uint64_t at = moec_js_pos(s);
    char bytes[4];
    size_t n;
    int c = -1;

    MOEC_TRY(peek_raw(s, &c));
    /* A byte that is no text at all is the simpler thing to say. */
    if (c >= 0x80)
        MOEC_TRY(utf8_sequence(s, bytes, &n));
    return fail_at(s, rule, at, c, what);
}

/* ------------------------------------------------------------ whitespace */

static inline bool is_space(int c)
{
    return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

moec_status moec_js_peek_slow(moec_jsonscan *s, int *c_out)
{
    static const char spaces[9] = "        ";

    for (;;) {
        /* Headers are padded with spaces, hostile ones with 100 MB. */
        while (s->end - s->p >= 8 && memcmp(s->p, spaces, 8) == 0)
            s->p += 8;
        MOEC_TRY(peek_raw(s, c_out));
        if (!is_space(*c_out))
            return MOEC_OK;
        s->p++;
    }
}

moec_status moec_js_expect_slow(moec_jsonscan *s, char want)
{
    char what[16];
    int c;

    MOEC_TRY(moec_js_peek(s, &c));
    if (c == want) {
        s->p++;
        return MOEC_OK;
    }
    (void)snprintf(what, sizeof(what), "expected '%c'", want);
    return moec_js_fail(s, s->json, what);
}

moec_status moec_js_member(moec_jsonscan *s, char close, bool first,
                           bool *more_out)
{
    int c;

    MOEC_TRY(moec_js_peek(s, &c));
    *more_out = c != close;
    if (c == close) {
        s->p++;
        return MOEC_OK;
    }
    if (first)
        return MOEC_OK;
    if (c != ',')
        return moec_js_fail(s, s->json,
                            close == '}' ? "expected ',' or '}'"
                                         : "expected ',' or ']'");
    s->p++;
    /* A close behind the comma is no value and no key: it fails there. */
    return MOEC_OK;
}

static moec_status too_deep(moec_jsonscan *s)
{
    uint64_t at = moec_js_pos(s);

    return moec_fail_at(s->err, MOEC_E_FORMAT, s->too_deep, at,
                        "%s: byte %llu: nested deeper than %d levels", s->name,
                        (unsigned long long)at, MOEC_JSON_DEPTH_MAX);
}

moec_status moec_js_enter(moec_jsonscan *s)
{
    if (s->depth >= MOEC_JSON_DEPTH_MAX)
        return too_deep(s);
    s->depth++;
    s->p++;
    return MOEC_OK;
}

/* --------------------------------------------------------------- strings */

/* Where the bytes of a string go. */
typedef struct sink {
    moec_js_text *text; /* stored up to its cap, or NULL */
    moec_siphash *hash; /* digested, or NULL */
} sink;

static inline void sink_add(sink *k, const void *data, size_t n)
{
    moec_js_text *t = k->text;

    if (k->hash != NULL)
        moec_siphash_add(k->hash, data, n);
    if (t == NULL)
        return;
    if (t->len < t->cap) {
        size_t room = t->cap - (size_t)t->len;
        memcpy(t->buf + t->len, data, n < room ? n : room);
    }
    t->len += n;
}

#define BYTES(x) (UINT64_C(0x0101010101010101) * (x))

/* Sixteen bytes at a time where the CPU always can (bytes from 0x80 are below
 * 0x20 as signed ones), else eight: there the high bit of a lane says that it
 * is special. A lane may be reported falsely only above a true one (borrows),
 * and the lowest is what counts. */
const unsigned char *moec_js_plain_run(const unsigned char *p,
                                       const unsigned char *end)
{
#if defined(__SSE2__)
    while (end - p >= 16) {
        __m128i v = _mm_loadu_si128((const __m128i *)(const void *)p);
        __m128i hit =
            _mm_or_si128(_mm_cmplt_epi8(v, _mm_set1_epi8(0x20)),
                         _mm_or_si128(_mm_cmpeq_epi8(v, _mm_set1_epi8('"')),
                                      _mm_cmpeq_epi8(v, _mm_set1_epi8('\\'))));
        unsigned mask = (unsigned)_mm_movemask_epi8(hit);
        if (mask != 0)
            return p + __builtin_ctz(mask);
        p += 16;
    }
#endif
    while (end - p >= 8) {
        uint64_t w = moec_le64(p);
        uint64_t quote = w ^ BYTES('"');
        uint64_t slash = w ^ BYTES('\\');
        uint64_t hit = (w | (w - BYTES(0x20)) | ((quote - BYTES(1)) & ~quote) |
                        ((slash - BYTES(1)) & ~slash)) &
                       BYTES(0x80);
        if (hit != 0)
            return p + (__builtin_ctzll(hit) >> 3);
        p += 8;
    }
    while (p < end && *p >= 0x20 && *p < 0x80 && *p != '"' && *p != '\\')
        p++;
    return p;
}

static moec_status hex4(moec_jsonscan *s, uint32_t *out)
{
    uint32_t v = 0;

    for (int i = 0; i < 4; i++) {
        int c;
        MOEC_TRY(peek_raw(s, &c));
        if (c >= '0' && c <= '9')
            v = v << 4 | (uint32_t)(c - '0');
        else if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f')
            v = v << 4 | (uint32_t)((c | 0x20) - 'a' + 10);
        else
            return moec_js_fail(s, s->json, "expected a hexadecimal digit");
        s->p++;
    }
    *out = v;
    return MOEC_OK;
}

static size_t utf8_encode(uint32_t u, char out[4])
{
    if (u < 0x80) {
        out[0] = (char)u;
        return 1;
    }
    if (u < 0x800) {
        out[0] = (char)(0xc0 | u >> 6);
        out[1] = (char)(0x80 | (u & 0x3f));
        return 2;
    }
    if (u < 0x10000) {
        out[0] = (char)(0xe0 | u >> 12);
        out[1] = (char)(0x80 | (u >> 6 & 0x3f));
        out[2] = (char)(0x80 | (u & 0x3f));
        return 3;
    }
    out[0] = (char)(0xf0 | u >> 18);
    out[1] = (char)(0x80 | (u >> 12 & 0x3f));
    out[2] = (char)(0x80 | (u >> 6 & 0x3f));
    out[3] = (char)(0x80 | (u & 0x3f));
    return 4;
}

/* The escape behind "\u"; a high surrogate takes its low one with it. */
static moec_status escape_unicode(moec_jsonscan *s, char out[4], size_t *n_out)
{
    uint32_t u = 0, low = 0;
    int c = 0;

    MOEC_TRY(hex4(s, &u));
    if (u >= 0xdc00 && u < 0xe000)
        return moec_js_fail(s, s->json, "a low surrogate stands alone");
    if (u >= 0xd800 && u < 0xdc00) {
        for (int i = 0; i < 2; i++) {
            MOEC_TRY(peek_raw(s, &c));
            if (c != "\\u"[i])
                return moec_js_fail(s, s->json,
                                    "a high surrogate stands alone");
            s->p++;
        }
        MOEC_TRY(hex4(s, &low));
        if (low < 0xdc00 || low >= 0xe000)
            return moec_js_fail(s, s->json, "a high surrogate stands alone");
        u = 0x10000 + ((u - 0xd800) << 10) + (low - 0xdc00);
    }
    *n_out = utf8_encode(u, out);
    return MOEC_OK;
}

/* The escape behind a backslash, which is consumed. */
static moec_status escape(moec_jsonscan *s, char out[4], size_t *n_out)
{
    static const char from[] = "\"\\/bfnrt";
    static const char to[] = "\"\\/\b\f\n\r\t";
    const char *at;
    int c;

    MOEC_TRY(peek_raw(s, &c));
    if (c == 'u') {
        s->p++;
        return escape_unicode(s, out, n_out);
    }
    at = c > 0 ? strchr(from, c) : NULL;
    if (at == NULL)
        return moec_js_fail(s, s->json, "no such escape in a string");
    s->p++;
    out[0] = to[at - from];
    *n_out = 1;
    return MOEC_OK;
}

/* Rest of a string behind its first run, to the closing quote. */
static moec_status string_rest(moec_jsonscan *s, sink *k)
{
    for (;;) {
        const unsigned char *run;
        char out[4];
        size_t n = 0;
        int c;

        MOEC_TRY(peek_raw(s, &c));
        run = s->p;
        if (c == '"') {
            s->p++;
            return MOEC_OK;
        }
        if (c == '\\') {
            s->p++;
            MOEC_TRY(escape(s, out, &n));
            if (k->text != NULL && n == 1 && out[0] == '\0')
                k->text->has_nul = true;
            sink_add(k, out, n);
        } else if (c >= 0x80) {
            MOEC_TRY(utf8_sequence(s, out, &n));
            sink_add(k, out, n);
        } else if (c < 0x20) {
            return moec_js_fail(s, s->json,
                                c < 0 ? "a string is not closed"
                                      : "a control character in a string");
        } else {
            s->p = moec_js_plain_run(run, s->end);
            sink_add(k, run, (size_t)(s->p - run));
        }
    }
}

moec_status moec_js_string(moec_jsonscan *s, moec_js_text *t)
{
    sink k = {t, NULL};
    const unsigned char *run;

    MOEC_TRY(moec_js_expect(s, '"'));
    run = s->p;
    t->has_nul = false;
    s->p = moec_js_plain_run(run, s->end);
    if (s->p < s->end && *s->p == '"') {
        t->s = (const char *)run;
        t->len = (uint64_t)(s->p - run);
        s->p++;
        return MOEC_OK;
    }
    t->s = t->buf;
    t->len = 0;
    sink_add(&k, run, (size_t)(s->p - run));
    return string_rest(s, &k);
}

static moec_status string_to(moec_jsonscan *s, moec_siphash *h)
{
    sink k = {NULL, h};

    MOEC_TRY(moec_js_expect(s, '"'));
    return string_rest(s, &k);
}

moec_status moec_js_key(moec_jsonscan *s, uint64_t serial)
{
    moec_siphash h;
    bool existed = false;
    uint64_t at = moec_js_pos(s);

    if (s->keys.n >= s->n_keys_max)
        return moec_fail_at(s->err, MOEC_E_FORMAT, s->too_many_keys, at,
                            "%s: byte %llu: more than %u keys", s->name,
                            (unsigned long long)at, s->n_keys_max);
    moec_keyset_begin(&s->keys, &h, serial);
    MOEC_TRY(string_to(s, &h));
    MOEC_TRY(moec_keyset_end(&s->keys, &h, &existed, s->err));
    if (existed)
        return moec_fail_at(s->err, MOEC_E_FORMAT, s->duplicate, at,
                            "%s: byte %llu: a key that the object has already",
                            s->name, (unsigned long long)at);
    return MOEC_OK;
}

/* --------------------------------------------------------------- numbers */

static inline bool is_digit(int c)
{
    return c >= '0' && c <= '9';
}

/* Consume one or more digits; *v is their value until *fits turns false. */
static moec_status digits(moec_jsonscan *s, uint64_t *v, bool *fits)
{
    int c;

    MOEC_TRY(peek_raw(s, &c));
    if (!is_digit(c))
        return moec_js_fail(s, s->json, "expected a digit");
    while (is_digit(c)) {
        *fits = *fits && moec_mul_u64(*v, 10, v) &&
                moec_add_u64(*v, (uint64_t)(c - '0'), v);
        s->p++;
        MOEC_TRY(peek_raw(s, &c));
    }
    return MOEC_OK;
}

/* Fraction and exponent, either of which may be absent. */
static moec_status fraction(moec_jsonscan *s, bool *plain)
{
    uint64_t v = 0;
    bool fits = false; /* nobody wants the value */
    int c;

    MOEC_TRY(peek_raw(s, &c));
    if (c == '.') {
        *plain = false;
        s->p++;
        MOEC_TRY(digits(s, &v, &fits));
        MOEC_TRY(peek_raw(s, &c));
    }
    if (c == 'e' || c == 'E') {
        *plain = false;
        s->p++;
        MOEC_TRY(peek_raw(s, &c));
        if (c == '+' || c == '-')
            s->p++;
        MOEC_TRY(digits(s, &v, &fits));
    }
    return MOEC_OK;
}

/* Consume an integer of up to 18 digits that ends inside the window, as nearly
 * all do. False, and nothing consumed, for anything else. */
static inline bool short_integer(moec_jsonscan *s, uint64_t *out)
{
    const unsigned char *p = s->p;
    const unsigned char *stop = s->end - p > 18 ? p + 18 : s->end;
    uint64_t v = 0;

    if (p == stop || *p == '0')
        return false;
    for (; p < stop && is_digit(*p); p++)
        v = v * 10 + (uint64_t)(*p - '0');
    if (p == stop || p == s->p || (*p != ',' && *p != ']'))
        return false;
    s->p = p;
    *out = v;
    return true;
}

moec_status moec_js_number(moec_jsonscan *s, uint64_t *value_out,
                           bool *is_u64_out)
{
    uint64_t v = 0;
    bool plain = true, fits = true;
    int c;

    MOEC_TRY(moec_js_peek(s, &c));
    if (short_integer(s, value_out)) {
        *is_u64_out = true;
        return MOEC_OK;
    }
    if (c == '-') {
        plain = false;
        s->p++;
        MOEC_TRY(peek_raw(s, &c));
    }
    if (c == '0') {
        s->p++;
        MOEC_TRY(peek_raw(s, &c));
        if (is_digit(c))
            return moec_js_fail(s, s->json, "a number with a leading zero");
    } else {
        MOEC_TRY(digits(s, &v, &fits));
    }
    MOEC_TRY(fraction(s, &plain));
    *value_out = v;
    *is_u64_out = plain && fits;
    return MOEC_OK;
}

/* -------------------------------------------------------------- skipping */

static moec_status literal(moec_jsonscan *s, const char *word)
{
    for (; *word != '\0'; word++) {
        int c;
        MOEC_TRY(peek_raw(s, &c));
        if (c != *word)
            return moec_js_fail(s, s->json, "expected true, false or null");
        s->p++;
    }
    return MOEC_OK;
}

/* A value that holds no others. */
static moec_status skip_scalar(moec_jsonscan *s, int c)
{
    uint64_t v;
    bool is_u64;

    if (c == '"')
        return string_to(s, NULL);
    if (c == '-' || is_digit(c))
        return moec_js_number(s, &v, &is_u64);
    if (c == 't')
        return literal(s, "true");
    if (c == 'f')
        return literal(s, "false");
    if (c == 'n')
        return literal(s, "null");
    return moec_js_fail(s, s->json, "expected a value");
}

/* Containers that are open while a value is skipped: no recursion. */
typedef struct open_stack {
    uint64_t serial[MOEC_JSON_DEPTH_MAX]; /* 0 for an array */
    uint32_t n;
    bool first; /* nothing in the innermost one yet */
} open_stack;

/* Step to the next value: past commas, keys and closing brackets. *done_out
 * once the outermost container is closed. */
static moec_status skip_to_value(moec_jsonscan *s, open_stack *o,
                                 bool *done_out)
{
    bool more = false;

    while (o->n > 0 && !more) {
        uint64_t serial = o->serial[o->n - 1];
        MOEC_TRY(moec_js_member(s, serial != 0 ? '}' : ']', o->first, &more));
        o->first = false;
        if (!more)
            o->n--;
        else if (serial != 0) {
            MOEC_TRY(moec_js_key(s, serial));
            MOEC_TRY(moec_js_expect(s, ':'));
        }
    }
    *done_out = o->n == 0;
    return MOEC_OK;
}

moec_status moec_js_skip(moec_jsonscan *s)
{
    open_stack o;
    bool done = false;

    o.n = 0;
    o.first = false;
    while (!done) {
        int c;
        MOEC_TRY(moec_js_peek(s, &c));
        if (c == '{' || c == '[') {
            if (s->depth + o.n >= MOEC_JSON_DEPTH_MAX)
                return too_deep(s);
            s->p++;
            o.serial[o.n++] = c == '{' ? moec_keyset_open(&s->keys) : 0;
            o.first = true;
        } else {
            MOEC_TRY(skip_scalar(s, c));
        }
        MOEC_TRY(skip_to_value(s, &o, &done));
    }
    return MOEC_OK;
}
