/* SPDX-License-Identifier: Apache-2.0
 *
 * The growing byte buffer. Failure is sticky and checked once, at the end. */

#include <string.h>

#include "base/base.h"

#define BUF_BYTES_FIRST ((size_t)256)

bool moec_buf_reserve(moec_buf *b, size_t more)
{
    size_t want, cap = b->cap ? b->cap : BUF_BYTES_FIRST;
    char *data;

    if (b->oom)
        return false;
    /* One more byte for the NUL. */
    if (__builtin_add_overflow(b->len, more, &want) || ++want == 0)
        goto fail;
    if (b->data && want <= b->cap)
        return true;
    while (cap < want)
        cap = cap > SIZE_MAX / 2 ? want : cap * 2;
    data = moec_realloc_array(b->data, cap, 1);
    if (!data)
        goto fail;
    b->data = data;
    b->cap = cap;
    b->data[b->len] = '\0';
    return true;

fail:
    b->oom = true;
    return false;
}

void moec_buf_append(moec_buf *b, const void *data, size_t n)
{
    if (n == 0 || !moec_buf_reserve(b, n))
        return;
    memcpy(b->data + b->len, data, n);
    b->len += n;
    b->data[b->len] = '\0';
}

void moec_buf_puts(moec_buf *b, const char *s)
{
    moec_buf_append(b, s, strlen(s));
}

void moec_buf_printf(moec_buf *b, const char *fmt, ...)
{
    va_list args;
    char small[256];
    int n;

    va_start(args, fmt);
    n = vsnprintf(small, sizeof(small), fmt, args);
    va_end(args);
    if (n < 0) { /* only a text beyond INT_MAX */
        b->oom = true;
        return;
    }
    if ((size_t)n < sizeof(small)) {
        moec_buf_append(b, small, (size_t)n);
        return;
    }
    if (!moec_buf_reserve(b, (size_t)n))
        return;
    va_start(args, fmt);
    (void)vsnprintf(b->data + b->len, (size_t)n + 1, fmt, args);
    va_end(args);
    b->len += (size_t)n;
}

void moec_buf_u32(moec_buf *b, uint32_t v)
{
    unsigned char le[4];

    for (unsigned i = 0; i < sizeof(le); i++)
        le[i] = (unsigned char)(v >> (8 * i) & 0xff);
    moec_buf_append(b, le, sizeof(le));
}

void moec_buf_u64(moec_buf *b, uint64_t v)
{
    unsigned char le[8];

    for (unsigned i = 0; i < sizeof(le); i++)
        le[i] = (unsigned char)(v >> (8 * i) & 0xff);
    moec_buf_append(b, le, sizeof(le));
}

static bool needs_escape(unsigned char c)
{
    return c < 0x20 || c == '"' || c == '\\' || c == 0x7f;
}

static void escape(moec_buf *b, unsigned char c)
{
    switch (c) {
    case '"':
        moec_buf_append(b, "\\\"", 2);
        break;
    case '\\':
        moec_buf_append(b, "\\\\", 2);
        break;
    case '\b':
        moec_buf_append(b, "\\b", 2);
        break;
    case '\f':
        moec_buf_append(b, "\\f", 2);
        break;
    case '\n':
        moec_buf_append(b, "\\n", 2);
        break;
    case '\r':
        moec_buf_append(b, "\\r", 2);
        break;
    case '\t':
        moec_buf_append(b, "\\t", 2);
        break;
    default:
        moec_buf_printf(b, "\\u%04x", (unsigned)c);
        break;
    }
}

/* `n` bytes of UTF-8. */
static void put_text(moec_buf *b, const char *s, size_t n)
{
    size_t from = 0;

    for (size_t i = 0; i < n; i++) {
        if (!needs_escape((unsigned char)s[i]))
            continue;
        moec_buf_append(b, s + from, i - from);
        escape(b, (unsigned char)s[i]);
        from = i + 1;
    }
    if (n > from)
        moec_buf_append(b, s + from, n - from);
}

void moec_buf_json_string(moec_buf *b, const char *s, size_t n)
{
    size_t bad = 0;

    moec_buf_append(b, "\"", 1);
    while (n > 0 && !moec_utf8_valid(s, n, &bad)) {
        put_text(b, s, bad);
        moec_buf_append(b, "\\ufffd", 6);
        s += bad + 1;
        n -= bad + 1;
    }
    put_text(b, s, n);
    moec_buf_append(b, "\"", 1);
}

void moec_buf_fini(moec_buf *b)
{
    moec_free(b->data);
    *b = (moec_buf){0};
}
