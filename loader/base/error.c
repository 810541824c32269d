/* SPDX-License-Identifier: Apache-2.0
 *
 * Error texts. Names inside them come from files that may be hostile, so a
 * text never carries bytes that steer a terminal: control characters (C0,
 * DEL, C1), line and bidi controls and bytes that are no UTF-8 become \xNN. */

#include <string.h>

#include "base/base.h"

/* Defined here, and wrapped by base.h. */
#undef moec_fail
#undef moec_fail_at
#undef moec_fail_os
#undef moec_fail_nomem

/* Longer than the longest path plus the longest tensor name. What a text has
 * beyond it is lost; the text of an error that fits is not. */
#define RAW_BYTES 6144

#define CUT_MARK  "..."

const char *moec_status_name(moec_status status)
{
    switch (status) {
    case MOEC_OK:
        return "OK";
    case MOEC_E_ARG:
        return "ARG";
    case MOEC_E_NOMEM:
        return "NOMEM";
    case MOEC_E_IO:
        return "IO";
    case MOEC_E_FORMAT:
        return "FORMAT";
    case MOEC_E_MAPPING:
        return "MAPPING";
    case MOEC_E_MIXED:
        return "MIXED";
    case MOEC_E_INTEGRITY:
        return "INTEGRITY";
    case MOEC_E_UNSUPPORTED:
        return "UNSUPPORTED";
    case MOEC_E_NO_DEVICE:
        return "NO_DEVICE";
    case MOEC_E_LOCKED:
        return "LOCKED";
    case MOEC_E_CANCELLED:
        return "CANCELLED";
    case MOEC_E_DURABILITY:
        return "DURABILITY";
    case MOEC_E_INTERNAL:
        return "INTERNAL";
    }
    return "UNKNOWN";
}

/* Characters that steer a terminal though they are no C0 control: C1, line
 * and paragraph separators, bidi embeddings and isolates. */
static bool steers(const unsigned char *u, size_t len)
{
    if (len == 2)
        return u[0] == 0xc2 && u[1] < 0xa0;
    if (len != 3 || u[0] != 0xe2)
        return false;
    return (u[1] == 0x80 && u[2] >= 0xa8 && u[2] <= 0xae) ||
           (u[1] == 0x81 && u[2] >= 0xa6 && u[2] <= 0xa9);
}

/* Write the printable form of the first character of s[0,n), n > 0, to
 * out[0,*len_out), at most 4 bytes. Returns the bytes of s that it stands
 * for: one byte at a time where it is escaped. */
static size_t print_unit(const char *s, size_t n, char *out, size_t *len_out)
{
    static const char hex[] = "0123456789abcdef";
    const unsigned char *u = (const unsigned char *)s;
    size_t len = 1;

    if (u[0] >= 0x80) {
        len = u[0] >= 0xf0 ? 4 : u[0] >= 0xe0 ? 3 : 2;
        if (len > n || !moec_utf8_valid(s, len, NULL) || steers(u, len))
            len = 0;
    } else if (u[0] < 0x20 || u[0] == 0x7f) {
        len = 0;
    }
    if (len > 0) {
        memcpy(out, s, len);
        *len_out = len;
        return len;
    }
    out[0] = '\\';
    out[1] = 'x';
    out[2] = hex[u[0] >> 4];
    out[3] = hex[u[0] & 15];
    *len_out = 4;
    return 1;
}

/* Fill err->text with the printable form of raw[0,n). A form too long keeps
 * its begin (which rule, which file) and its tail (which numbers). */
static void set_text(moec_error *err, const char *raw, size_t n)
{
    const size_t room = MOEC_ERROR_TEXT_BYTES - 1;
    const size_t head = (room - strlen(CUT_MARK)) / 2;
    const size_t tail = room - strlen(CUT_MARK) - head;
    size_t total = 0, done = 0, at = 0, len;
    bool marked = false;
    char unit[4];

    for (size_t i = 0; i < n; total += len)
        i += print_unit(raw + i, n - i, unit, &len);
    for (size_t i = 0; i < n; done += len) {
        i += print_unit(raw + i, n - i, unit, &len);
        if (total > room && (marked || done + len > head) &&
            total - done > tail) {
            if (!marked)
                memcpy(err->text + at, CUT_MARK, strlen(CUT_MARK));
            at += marked ? 0 : strlen(CUT_MARK);
            marked = true;
            continue;
        }
        memcpy(err->text + at, unit, len);
        at += len;
    }
    err->text[at] = '\0';
}

/* Bytes of raw[0,cap) that a call of (v)snprintf with result n has filled. */
static size_t filled(int n, size_t cap)
{
    if (n < 0)
        return 0;
    return (size_t)n < cap ? (size_t)n : cap - 1;
}

/* "[MOE-H07 duplicate-key] ", or nothing without a rule. */
static size_t put_tag(char *out, size_t cap, moec_rule rule)
{
    const moec_rule_info *info = moec_rule_describe(rule);

    out[0] = '\0';
    if (!info)
        return 0;
    return filled(snprintf(out, cap, "[%s %s] ", info->id, info->name), cap);
}

static void MOEC_PRINTF(3, 0)
    set_error(moec_error *err, int os_errno, const char *fmt, va_list args)
{
    char raw[RAW_BYTES];
    size_t n = put_tag(raw, sizeof(raw), err->rule);

    n +=
        filled(vsnprintf(raw + n, sizeof(raw) - n, fmt, args), sizeof(raw) - n);
    if (os_errno != 0) {
        char why[128];
        const char *text = strerror_r(os_errno, why, sizeof(why));
        n += filled(snprintf(raw + n, sizeof(raw) - n, ": %s", text),
                    sizeof(raw) - n);
    }
    set_text(err, raw, n);
}

/* True where the error is to be written: the first one stays. */
static bool begin(moec_error *err, moec_status status, moec_rule rule)
{
    if (!err || err->status != MOEC_OK)
        return false;
    *err = (moec_error){.status = status, .rule = rule};
    return true;
}

moec_status moec_fail(moec_error *err, moec_status status, moec_rule rule,
                      const char *fmt, ...)
{
    va_list args;

    if (begin(err, status, rule)) {
        va_start(args, fmt);
        set_error(err, 0, fmt, args);
        va_end(args);
    }
    return status;
}

moec_status moec_fail_at(moec_error *err, moec_status status, moec_rule rule,
                         uint64_t file_off, const char *fmt, ...)
{
    va_list args;

    if (begin(err, status, rule)) {
        err->file_off = file_off;
        err->has_off = 1;
        va_start(args, fmt);
        set_error(err, 0, fmt, args);
        va_end(args);
    }
    return status;
}

moec_status moec_fail_os(moec_error *err, int os_errno, const char *fmt, ...)
{
    va_list args;

    if (begin(err, MOEC_E_IO, MOEC_RULE_NONE)) {
        err->os_errno = os_errno;
        va_start(args, fmt);
        set_error(err, os_errno, fmt, args);
        va_end(args);
    }
    return MOEC_E_IO;
}

moec_status moec_check_struct(const char *name, uint32_t struct_bytes,
                              size_t want, moec_error *err)
{
    if (struct_bytes >= want)
        return MOEC_OK;
    return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                     "%s.struct_bytes is %u, not %zu or more: begin "
                     "with its _INIT",
                     name, (unsigned)struct_bytes, want);
}

moec_status moec_fail_nomem(moec_error *err, const char *what)
{
    return moec_fail(err, MOEC_E_NOMEM, MOEC_RULE_NONE, "out of memory for %s",
                     what);
}

moec_status moec_hand_on(moec_error *err, moec_status status,
                         const moec_error *why)
{
    if (status != MOEC_OK && err && err->status == MOEC_OK)
        *err = *why;
    return status;
}

void moec_error_prefix(moec_error *err, const char *fmt, ...)
{
    char raw[RAW_BYTES];
    size_t tag, n;
    va_list args;

    if (!err || err->status == MOEC_OK)
        return;
    tag = put_tag(raw, sizeof(raw), err->rule);
    if (strncmp(err->text, raw, tag) != 0)
        tag = 0; /* a text that was not written here */
    n = tag;
    va_start(args, fmt);
    n +=
        filled(vsnprintf(raw + n, sizeof(raw) - n, fmt, args), sizeof(raw) - n);
    va_end(args);
    /* Escapes are plain ASCII: going through set_text twice keeps them. */
    n += filled(snprintf(raw + n, sizeof(raw) - n, ": %s", err->text + tag),
                sizeof(raw) - n);
    set_text(err, raw, n);
}
