/* SPDX-License-Identifier: Apache-2.0 */
/*
 * manifest.json written: keys in the table's order, two spaces of indentation,
 * one line for each file and each row of the placement, and the same bytes for
 * the same manifest in every locale. Refuses texts that are not UTF-8, numbers
 * that JSON readers would round, and a text beyond the reader's cap.
 */

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include <moec/loader.h>

#include "base/base.h"
#include "manifest_fields.h"

typedef struct writer {
    moec_buf *out;
    const moec_manifest *m;
    moec_error *err;
} writer;

/* Our own texts keep to the format; names and config values need not. */
static moec_status refuse(const writer *w, const moec_mf_field *f,
                          const char *why)
{
    return moec_fail(w->err, MOEC_E_UNSUPPORTED, MOEC_RULE_M01, "'%s': %s",
                     f->key, why);
}

static moec_status put_text(writer *w, const moec_mf_field *f, const char *s)
{
    size_t n = s ? strlen(s) : 0;
    size_t bad;

    if (!s)
        return refuse(w, f, "there is no text");
    if (!moec_utf8_valid(s, n, &bad))
        return refuse(w, f, "the text is not UTF-8");
    if (f->kind == MOEC_MF_NAME && !moec_plain_name(s, n))
        return refuse(w, f, "this is not a plain file name");
    moec_buf_json_string(w->out, s, n);
    return MOEC_OK;
}

static moec_status put_u64(writer *w, const moec_mf_field *f, uint64_t v)
{
    if (v > MOEC_MF_INTEGER_MAX)
        return refuse(w, f, "the number exceeds 2^63 - 1");
    moec_buf_printf(w->out, "%" PRIu64, v);
    return MOEC_OK;
}

/* 17 digits give every double back. Always with a point or an exponent, so
 * that a reader takes it for what it is; and with a point in every locale. */
static moec_status put_real(writer *w, const moec_mf_field *f, double v)
{
    char text[40];
    char *end = text;
    bool radix = false;

    if (!isfinite(v))
        return refuse(w, f, "the number is not finite");
    snprintf(text, sizeof(text), "%.17g", v);
    for (const char *p = text; *p; p++) {
        bool digit = strchr("+-0123456789e", *p) != NULL;

        if (digit || !radix) /* a locale's point may have several bytes */
            *end++ = (char)(digit ? *p : '.');
        radix = !digit;
    }
    *end = '\0';
    if (!strpbrk(text, ".e"))
        memcpy(end, ".0", 3);
    moec_buf_puts(w->out, text);
    return MOEC_OK;
}

static void put_line(writer *w, unsigned indent)
{
    moec_buf_printf(w->out, "\n%*s", (int)indent, "");
}

static moec_status put_texts(writer *w, const moec_mf_field *f,
                             const char *const *texts, size_t n,
                             unsigned indent)
{
    moec_buf_puts(w->out, "[");
    for (size_t i = 0; i < n; i++) {
        put_line(w, indent + 2);
        MOEC_TRY(put_text(w, f, texts[i]));
        moec_buf_puts(w->out, i + 1 < n ? "," : "");
    }
    if (n > 0)
        put_line(w, indent);
    moec_buf_puts(w->out, "]");
    return MOEC_OK;
}

static void put_rows(writer *w, unsigned indent)
{
    const int32_t *id = w->m->p2l;

    if (id == NULL) /* trivial: no rows are written */
        return;
    moec_buf_puts(w->out, "[");
    for (size_t row = 0; row < w->m->n_mf_layers; row++) {
        moec_buf_puts(w->out, row ? "," : "");
        put_line(w, indent + 2);
        moec_buf_puts(w->out, "[");
        for (uint32_t p = 0; p < w->m->n_physical; p++)
            moec_buf_printf(w->out, p ? ", %" PRId32 : "%" PRId32, *id++);
        moec_buf_puts(w->out, "]");
    }
    put_line(w, indent);
    moec_buf_puts(w->out, "]");
}

static void put_sha256(writer *w, const moec_sha256 *sha)
{
    char hex[2 * sizeof(sha->b) + 1];

    moec_hex(sha->b, sizeof(sha->b), hex);
    moec_buf_printf(w->out, "\"%s\"", hex);
}

/* True where the field points at something and that is NULL. */
static bool is_null(const moec_mf_field *f, const void *p)
{
    return f->flags != 0 && *(const void *const *)p == NULL;
}

static moec_status put_scalar(writer *w, const moec_mf_field *f, const void *p)
{
    moec_buf *b = w->out;

    switch (f->kind) {
    case MOEC_MF_SCHEMA:
        moec_buf_puts(b, "\"" MOEC_MANIFEST_SCHEMA "\"");
        return MOEC_OK;
    case MOEC_MF_TEXT:
    case MOEC_MF_NAME:
    case MOEC_MF_WORD:
        return put_text(w, f, *(const char *const *)p);
    case MOEC_MF_U32:
    case MOEC_MF_VERSION:
        return put_u64(w, f, *(const uint32_t *)p);
    case MOEC_MF_U64:
        return put_u64(w, f, *(const uint64_t *)p);
    case MOEC_MF_BOOL:
        moec_buf_puts(b, *(const bool *)p ? "true" : "false");
        return MOEC_OK;
    case MOEC_MF_TRISTATE:
        moec_buf_puts(b, *(const int *)p < 0   ? "null"
                         : *(const int *)p > 0 ? "true"
                                               : "false");
        return MOEC_OK;
    case MOEC_MF_REAL:
        return put_real(w, f, *(const double *)p);
    case MOEC_MF_DTYPE:
        return put_text(w, f, moec_dtype_name(*(const moec_dtype *)p));
    case MOEC_MF_SPACE:
        return put_text(
            w, f, moec_mf_spaces[*(const moec_space *)p == MOEC_SPACE_MTP]);
    case MOEC_MF_SHA256:
        put_sha256(w, p);
        return MOEC_OK;
    case MOEC_MF_TRIVIAL:
        moec_buf_puts(b, w->m->p2l ? "\"explicit\"" : "\"trivial\"");
        return MOEC_OK;
    case MOEC_MF_OBJECT:
    case MOEC_MF_OBJECTS:
    case MOEC_MF_TEXTS:
    case MOEC_MF_ROWS:
        break;
    }
    return refuse(w, f, "this is no single value");
}

/* An array's element: all on one line. */
static moec_status put_inline(writer *w, const moec_mf_table *t,
                              const void *base)
{
    const char *before = "{";

    for (size_t i = 0; i < t->n; i++) {
        const moec_mf_field *f = &t->fields[i];
        const void *p = moec_mf_at(base, f->off);

        if (is_null(f, p))
            continue;
        moec_buf_printf(w->out, "%s\"%s\": ", before, f->key);
        MOEC_TRY(put_scalar(w, f, p));
        before = ", ";
    }
    moec_buf_puts(w->out, "}");
    return MOEC_OK;
}

static moec_status put_objects(writer *w, const moec_mf_field *f,
                               const void *base, unsigned indent)
{
    const char *element = *(const char *const *)moec_mf_at(base, f->off);
    size_t n = *(const size_t *)moec_mf_at(base, f->count_off);

    moec_buf_puts(w->out, "[");
    for (size_t i = 0; i < n; i++, element += f->bytes) {
        put_line(w, indent + 2);
        MOEC_TRY(put_inline(w, f->sub, element));
        moec_buf_puts(w->out, i + 1 < n ? "," : "");
    }
    if (n > 0)
        put_line(w, indent);
    moec_buf_puts(w->out, "]");
    return MOEC_OK;
}

static moec_status put_object(writer *w, const moec_mf_table *t,
                              const void *base, unsigned indent);

/* NOLINTNEXTLINE(misc-no-recursion): ends with the tables, two deep */
static moec_status put_field(writer *w, const moec_mf_field *f,
                             const void *base, unsigned indent)
{
    const void *p = moec_mf_at(base, f->off);

    if (is_null(f, p)) {
        moec_buf_puts(w->out, "null");
        return MOEC_OK;
    }
    if (f->kind == MOEC_MF_OBJECT)
        return put_object(w, f->sub, p, indent);
    if (f->kind == MOEC_MF_OBJECTS)
        return put_objects(w, f, base, indent);
    if (f->kind == MOEC_MF_TEXTS)
        return put_texts(w, f, *(const char *const *const *)p,
                         *(const size_t *)moec_mf_at(base, f->count_off),
                         indent);
    if (f->kind == MOEC_MF_ROWS) {
        put_rows(w, indent);
        return MOEC_OK;
    }
    return put_scalar(w, f, p);
}

/* Recursion ends with the tables: two deep. */
/* NOLINTNEXTLINE(misc-no-recursion): ends with the tables, two deep */
static moec_status put_object(writer *w, const moec_mf_table *t,
                              const void *base, unsigned indent)
{
    const char *before = "{";

    for (size_t i = 0; i < t->n; i++) {
        const moec_mf_field *f = &t->fields[i];

        if ((f->flags & MOEC_MF_ABSENT_OK) != 0 &&
            is_null(f, moec_mf_at(base, f->off)))
            continue;
        moec_buf_puts(w->out, before);
        put_line(w, indent + 2);
        moec_buf_printf(w->out, "\"%s\": ", f->key);
        MOEC_TRY(put_field(w, f, base, indent + 2));
        before = ",";
    }
    put_line(w, indent);
    moec_buf_puts(w->out, "}");
    return MOEC_OK;
}

moec_status moec_manifest_encode(const moec_manifest *m, moec_buf *out,
                                 moec_error *err)
{
    writer w = {.out = out, .m = m, .err = err};
    size_t before = out->len;

    MOEC_TRY(put_object(&w, &moec_mf_manifest, m, 0));
    moec_buf_puts(out, "\n");
    if (out->oom)
        return moec_fail_nomem(err, MOEC_MANIFEST_NAME);
    /* The cap that the reader has: better refused now than never opened. */
    if (out->len - before > MOEC_JSON_BYTES_MAX)
        return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_M01,
                         MOEC_MANIFEST_NAME " would have %zu bytes, the limit "
                                            "is %" PRIu64,
                         out->len - before, MOEC_JSON_BYTES_MAX);
    return MOEC_OK;
}
