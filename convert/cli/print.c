/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lines and JSON, as moe-convert writes them. Names and messages come from
 * files that may be hostile: nothing reaches the terminal or the JSON document
 * unescaped. What a command says of an error or a finding is print_errors.c's.
 */
#include "print.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* --------------------------------------------------------------- text */

size_t moec_cli_utf8(const char *s)
{
    const unsigned char *byte = (const unsigned char *)s;
    unsigned char lo = 0x80, hi = 0xbf;
    size_t n;
    if (byte[0] < 0x80)
        return byte[0] != 0;
    if (byte[0] < 0xc2 || byte[0] > 0xf4)
        return 0;
    n = byte[0] < 0xe0 ? 2 : byte[0] < 0xf0 ? 3 : 4;
    if (byte[0] == 0xe0)
        lo = 0xa0;
    else if (byte[0] == 0xed)
        hi = 0x9f;
    else if (byte[0] == 0xf0)
        lo = 0x90;
    else if (byte[0] == 0xf4)
        hi = 0x8f;
    for (size_t i = 1; i < n; i++) {
        if (byte[i] < lo || byte[i] > hi)
            return 0;
        lo = 0x80;
        hi = 0xbf;
    }
    return n;
}

bool moec_cli_is_control(const char *text)
{
    const unsigned char *s = (const unsigned char *)text;
    /* C1 begins with 0xc2 in UTF-8 */
    return s[0] < 0x20 || s[0] == 0x7f || (s[0] == 0xc2 && s[1] < 0xa0);
}

static void put_escaped(FILE *f, const char *s)
{
    while (*s != '\0') {
        size_t n = moec_cli_utf8(s);
        if (n != 0 && !moec_cli_is_control(s)) {
            (void)fwrite(s, 1, n, f);
            s += n;
            continue;
        }
        for (n = n != 0 ? n : 1; n > 0; n--)
            (void)fprintf(f, "\\x%02x", (unsigned)(unsigned char)*s++);
    }
}

bool moec_cli_put_odd(FILE *f, const char **s)
{
    size_t n = moec_cli_utf8(*s);
    if (n == 0) {
        (void)fputs("\xef\xbf\xbd", f);
        ++*s;
        return true;
    }
    if (!moec_cli_is_control(*s))
        return false;
    for (; n > 0; n--)
        (void)fprintf(f, "\\\\x%02x", (unsigned)(unsigned char)*(*s)++);
    return true;
}

static bool cut;

void moec_cli_cut(void)
{
    cut = true;
}

bool moec_cli_is_cut(void)
{
    return cut;
}

void moec_cli_line(FILE *f, const char *fmt, ...)
{
    char room[512], *longer = NULL;
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(room, sizeof(room), fmt, ap);
    va_end(ap);
    if (n < 0 || (size_t)n >= sizeof(room)) {
        va_start(ap, fmt);
        n = vasprintf(&longer, fmt, ap);
        va_end(ap);
        if (n < 0) {
            longer = NULL;
            cut |= f != stderr;
        }
    }
    put_escaped(f, longer != NULL ? longer : room);
    (void)fputc('\n', f);
    free(longer);
}

char *moec_cli_size(char buf[24], uint64_t bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    double v = (double)bytes;
    size_t u = 0;
    while (v >= 1024.0 && u + 1 < sizeof(units) / sizeof(units[0])) {
        v /= 1024.0;
        u++;
    }
    if (u == 0)
        (void)snprintf(buf, 24, "%" PRIu64 " B", bytes);
    else
        (void)snprintf(buf, 24, "%.*f %s", v < 10.0 ? 2 : 1, v, units[u]);
    return buf;
}

char *moec_cli_layer_name(char buf[24], moec_layer_key key)
{
    (void)snprintf(buf, 24, "%s%" PRIu32,
                   key.space == MOEC_SPACE_MTP ? "mtp." : "", key.number);
    return buf;
}

void moec_cli_layer_ranges(char *buf, size_t n, const moec_model *model,
                           moec_space space)
{
    size_t at = 0, n_layers = moec_model_n_layers(model);
    buf[0] = '\0';
    for (size_t i = 0; i < n_layers && at + 32 < n; i++) {
        const moec_moe_layer *first = moec_model_layer(model, i);
        if (first->key.space != space)
            continue;
        uint32_t last = first->source_number;
        while (i + 1 < n_layers) {
            const moec_moe_layer *next = moec_model_layer(model, i + 1);
            if (next->key.space != space || next->source_number != last + 1)
                break;
            last++;
            i++;
        }
        int got = snprintf(buf + at, n - at, "%s%" PRIu32, at > 0 ? ", " : "",
                           first->source_number);
        at += got > 0 ? (size_t)got : 0;
        if (last != first->source_number) {
            got = snprintf(buf + at, n - at, "-%" PRIu32, last);
            at += got > 0 ? (size_t)got : 0;
        }
    }
}

/* --------------------------------------------------------------- JSON */

void moec_cli_put_json_string(FILE *f, const char *text)
{
    (void)fputc('"', f);
    while (*text != '\0') {
        size_t n = moec_cli_utf8(text);
        if (n == 0) {
            (void)fputs("\\ufffd", f);
            text++;
        } else if (*text == '"' || *text == '\\') {
            (void)fprintf(f, "\\%c", *text++);
        } else if (moec_cli_is_control(text)) {
            (void)fprintf(f, "\\u%04x", (unsigned)(unsigned char)text[n - 1]);
            text += n;
        } else {
            (void)fwrite(text, 1, n, f);
            text += n;
        }
    }
    (void)fputc('"', f);
}

/* Comma, line break and key in front of the next value. */
static void json_next(moec_cli_json *j, const char *key)
{
    if (j->depth == 0)
        return;
    bool one_line = j->line_from != 0 && j->depth >= j->line_from;
    if (j->filled[j->depth])
        (void)fputs(one_line ? ", " : ",", j->f);
    if (!one_line)
        (void)fprintf(j->f, "\n%*s", (int)(2 * j->depth), "");
    j->filled[j->depth] = true;
    if (key != NULL) {
        moec_cli_put_json_string(j->f, key);
        (void)fputs(": ", j->f);
    }
}

static void json_open(moec_cli_json *j, const char *key, char open, char close,
                      bool row)
{
    json_next(j, key);
    (void)fputc(open, j->f);
    /* Our own documents are less deep; a mistake here is ours. */
    if (j->depth + 1 >= MOEC_CLI_JSON_DEPTH)
        return;
    j->depth++;
    j->close[j->depth] = close;
    j->filled[j->depth] = false;
    if (row && j->line_from == 0)
        j->line_from = j->depth;
}

void moec_cli_json_object(moec_cli_json *j, const char *key)
{
    json_open(j, key, '{', '}', false);
}

void moec_cli_json_array(moec_cli_json *j, const char *key)
{
    json_open(j, key, '[', ']', false);
}

void moec_cli_json_object_row(moec_cli_json *j, const char *key)
{
    json_open(j, key, '{', '}', true);
}

void moec_cli_json_array_row(moec_cli_json *j, const char *key)
{
    json_open(j, key, '[', ']', true);
}

void moec_cli_json_end(moec_cli_json *j)
{
    bool one_line = j->line_from != 0 && j->depth >= j->line_from;
    unsigned d = j->depth--;
    if (j->filled[d] && !one_line)
        (void)fprintf(j->f, "\n%*s", (int)(2 * j->depth), "");
    (void)fputc(j->close[d], j->f);
    if (j->depth < j->line_from)
        j->line_from = 0;
}

void moec_cli_json_str(moec_cli_json *j, const char *key, const char *s)
{
    json_next(j, key);
    if (s == NULL)
        (void)fputs("null", j->f);
    else
        moec_cli_put_json_string(j->f, s);
}

void moec_cli_json_u64(moec_cli_json *j, const char *key, uint64_t v)
{
    json_next(j, key);
    (void)fprintf(j->f, "%" PRIu64, v);
}

void moec_cli_json_f64(moec_cli_json *j, const char *key, double v)
{
    char text[40];
    json_next(j, key);
    if (!isfinite(v)) { /* JSON has no word for it */
        (void)fputs("null", j->f);
        return;
    }
    /* The shorter form where it reads back as the same number. */
    (void)snprintf(text, sizeof(text), "%.15g", v);
    double back = strtod(text, NULL);
    if (back < v || back > v)
        (void)snprintf(text, sizeof(text), "%.17g", v);
    (void)fputs(text, j->f);
}

void moec_cli_json_bool(moec_cli_json *j, const char *key, bool v)
{
    json_next(j, key);
    (void)fputs(v ? "true" : "false", j->f);
}

void moec_cli_json_layer(moec_cli_json *j, const char *key, moec_layer_key k)
{
    char name[24];
    if (k.space == MOEC_SPACE_MTP)
        moec_cli_json_str(j, key, moec_cli_layer_name(name, k));
    else
        moec_cli_json_u64(j, key, k.number);
}

void moec_cli_json_hex(moec_cli_json *j, const char *key,
                       const uint8_t digest[32])
{
    char text[65];
    for (size_t i = 0; i < 32; i++)
        (void)snprintf(text + 2 * i, 3, "%02x", digest[i]);
    moec_cli_json_str(j, key, text);
}

static bool has_document;

bool moec_cli_json_begun(void)
{
    return has_document;
}

void moec_cli_json_begin(moec_cli_json *j, const moec_cli *cli, bool ok)
{
    has_document = true;
    moec_cli_json_begin_in(j, stdout, cli, ok);
}

void moec_cli_json_begin_in(moec_cli_json *j, FILE *f, const moec_cli *cli,
                            bool ok)
{
    char schema[64];
    memset(j, 0, sizeof(*j));
    j->f = f;
    const char *name = cli->cmd->name;
    size_t word = strcspn(name, " ");
    (void)snprintf(schema, sizeof(schema), "moec.%.*s/1", (int)word, name);
    moec_cli_json_object(j, NULL);
    moec_cli_json_str(j, "schema", schema);
    moec_cli_json_bool(j, "ok", ok);
    if (name[word] != '\0')
        moec_cli_json_str(j, "action", name + word + 1);
}

void moec_cli_json_finish(moec_cli_json *j)
{
    while (j->depth > 0)
        moec_cli_json_end(j);
    (void)fputc('\n', j->f);
}

int moec_cli_flush(int code)
{
    int bad = ferror(stdout);
    if (cut && code != MOEC_EXIT_SYSTEM) {
        moec_cli_line(stderr, "moe-convert: no memory for all of the output");
        code = MOEC_EXIT_SYSTEM;
    }
    errno = 0;
    if (fflush(stdout) != 0 || bad != 0) {
        moec_cli_line(stderr, "moe-convert: stdout: %s",
                      errno != 0 ? strerror(errno) : "a write failed");
        return MOEC_EXIT_SYSTEM;
    }
    return code;
}
