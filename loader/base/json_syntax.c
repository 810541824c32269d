/* SPDX-License-Identifier: Apache-2.0
 *
 * Whether a text is JSON, in constant memory. Only asked after jansson has
 * refused it, to tell a malformed text from a lack of memory, which jansson
 * often reports in the same words. */

#include "base/json.h"

#include <string.h>

/* jansson's own bound. */
#define DEPTH_MAX 2048u

typedef struct scan {
    const char *p, *end;
    unsigned depth;
    unsigned char in_object[DEPTH_MAX / 8]; /* a bit a level */
} scan;

static void skip_space(scan *s)
{
    while (s->p < s->end && strchr(" \t\r\n", *s->p) != NULL && *s->p != '\0')
        s->p++;
}

static bool take(scan *s, char c)
{
    if (s->p == s->end || *s->p != c)
        return false;
    s->p++;
    return true;
}

static bool is_digit(const scan *s)
{
    return s->p < s->end && *s->p >= '0' && *s->p <= '9';
}

static bool digits(scan *s)
{
    if (!is_digit(s))
        return false;
    while (is_digit(s))
        s->p++;
    return true;
}

static bool number(scan *s)
{
    (void)take(s, '-');
    if (!take(s, '0') && !digits(s))
        return false;
    if (take(s, '.') && !digits(s))
        return false;
    if (!take(s, 'e') && !take(s, 'E'))
        return true;
    if (!take(s, '+'))
        (void)take(s, '-');
    return digits(s);
}

/* Four hexadecimal digits; -1 where they are none. */
static int hex4(scan *s)
{
    int v = 0;

    for (int i = 0; i < 4; i++) {
        static const char all[] = "0123456789abcdefABCDEF";
        const char *at =
            s->p < s->end && *s->p != '\0' ? strchr(all, *s->p) : NULL;
        if (at == NULL)
            return -1;
        int d = (int)(at - all);
        v = v * 16 + (d > 15 ? d - 6 : d);
        s->p++;
    }
    return v;
}

/* Behind a backslash. Surrogates come in pairs. */
static bool escape(scan *s)
{
    if (s->p == s->end || *s->p == '\0')
        return false;
    char c = *s->p++;
    if (c != 'u')
        return strchr("\"\\/bfnrt", c) != NULL;
    int v = hex4(s);
    if (v >= 0xd800 && v < 0xdc00) {
        if (!take(s, '\\') || !take(s, 'u'))
            return false;
        v = hex4(s);
        return v >= 0xdc00 && v < 0xe000;
    }
    return v >= 0 && (v < 0xdc00 || v >= 0xe000);
}

static bool string(scan *s)
{
    if (!take(s, '"'))
        return false;
    while (s->p < s->end) {
        unsigned char c = (unsigned char)*s->p++;
        if (c == '"')
            return true;
        if (c < 0x20 || (c == '\\' && !escape(s)))
            return false;
    }
    return false;
}

static bool word(scan *s, const char *w)
{
    size_t n = strlen(w);

    if ((size_t)(s->end - s->p) < n || memcmp(s->p, w, n) != 0)
        return false;
    s->p += n;
    return true;
}

static bool push(scan *s, bool object)
{
    unsigned bit = 1u << (s->depth % 8);

    if (s->depth == DEPTH_MAX)
        return false;
    unsigned char *at = &s->in_object[s->depth / 8];
    *at = (unsigned char)(object ? *at | bit : *at & ~bit);
    s->depth++;
    return true;
}

static bool inside_object(const scan *s)
{
    unsigned i = s->depth - 1;

    return s->depth > 0 && (s->in_object[i / 8] >> (i % 8) & 1) != 0;
}

/* A key and its colon, where the level has them. */
static bool key(scan *s)
{
    skip_space(s);
    if (!inside_object(s))
        return true;
    if (!string(s))
        return false;
    skip_space(s);
    if (!take(s, ':'))
        return false;
    skip_space(s);
    return true;
}

static bool scalar(scan *s)
{
    if (s->p == s->end)
        return false;
    switch (*s->p) {
    case '"':
        return string(s);
    case 't':
        return word(s, "true");
    case 'f':
        return word(s, "false");
    case 'n':
        return word(s, "null");
    default:
        return number(s);
    }
}

/* Behind a value: close what ends here. *more: another value follows. */
static bool after_value(scan *s, bool *more)
{
    *more = false;
    for (;;) {
        skip_space(s);
        if (s->depth == 0)
            return s->p == s->end;
        if (take(s, ',')) {
            *more = true;
            return key(s);
        }
        if (!take(s, inside_object(s) ? '}' : ']'))
            return false;
        s->depth--;
    }
}

bool moec_json_is_well_formed(const char *text, size_t n)
{
    scan s = {.p = text, .end = text + n};
    bool more = true;

    skip_space(&s);
    if (s.p == s.end || (*s.p != '{' && *s.p != '['))
        return false;
    while (more) {
        bool object = s.p < s.end && *s.p == '{';
        if (take(&s, object ? '{' : '[')) {
            if (!push(&s, object))
                return false;
            skip_space(&s);
            if (s.p < s.end && *s.p == (object ? '}' : ']')) {
                if (!after_value(&s, &more))
                    return false;
            } else if (!key(&s)) {
                return false;
            }
        } else if (!scalar(&s) || !after_value(&s, &more)) {
            return false;
        }
    }
    return true;
}
