/* SPDX-License-Identifier: Apache-2.0 */

/*
 * AWS Signature Version 4. See sigv4.h. Refuses a URL without a path, and more
 * header lines than it sorts.
 */

#include <ctype.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <string.h>

#include "sigv4.h"

/* A header line as the canonical request has it. */
typedef struct line {
    char name[64]; /* lower case */
    const char *value;
    size_t value_bytes;
} line;

static moec_status hmac(const void *key, size_t key_bytes, const char *text,
                        size_t n, moec_sha256 *out, moec_error *err)
{
    unsigned int bytes = sizeof(out->b);

    if (!HMAC(EVP_sha256(), key, (int)key_bytes, (const unsigned char *)text, n,
              out->b, &bytes))
        return moec_fail_nomem(err, "a signature");
    return MOEC_OK;
}

static moec_status take_line(line *out, const char *text, moec_error *err)
{
    size_t n = strcspn(text, ":"), k;

    if (text[n] != ':' || n >= sizeof(out->name))
        return moec_fail(err, MOEC_E_INTERNAL, MOEC_RULE_NONE,
                         "'%s' is no header line", text);
    for (size_t i = 0; i < n; i++)
        out->name[i] = (char)tolower((unsigned char)text[i]);
    out->name[n] = '\0';
    text += n + 1;
    text += strspn(text, " \t");
    for (k = strlen(text); k > 0 && strchr(" \t", text[k - 1]); k--)
        ;
    out->value = text;
    out->value_bytes = k;
    return MOEC_OK;
}

static void sort_lines(line *lines, size_t n)
{
    for (size_t i = 1; i < n; i++) {
        line one = lines[i];
        size_t j;
        for (j = i; j > 0 && strcmp(lines[j - 1].name, one.name) > 0; j--)
            lines[j] = lines[j - 1];
        lines[j] = one;
    }
}

static void put_names(moec_buf *to, const line *lines, size_t n)
{
    for (size_t i = 0; i < n; i++)
        moec_buf_printf(to, "%s%s", i > 0 ? ";" : "", lines[i].name);
}

/* The request in the form that both sides digest. */
static void put_request(moec_buf *to, const moec_sigv4 *s, const char *path,
                        const line *lines, size_t n)
{
    size_t k = strcspn(path, "?");

    moec_buf_printf(to, "%s\n%.*s\n%s\n", s->method, (int)k, path,
                    path[k] == '?' ? path + k + 1 : "");
    for (size_t i = 0; i < n; i++)
        moec_buf_printf(to, "%s:%.*s\n", lines[i].name,
                        (int)lines[i].value_bytes, lines[i].value);
    moec_buf_puts(to, "\n");
    put_names(to, lines, n);
    moec_buf_printf(to, "\n%s", s->sha256_hex);
}

/* The day's key: of secret, date, region and service. */
static moec_status make_key(const moec_sigv4 *s, moec_sha256 *key,
                            moec_error *err)
{
    moec_buf secret = {0};
    moec_status st;

    moec_buf_printf(&secret, "AWS4%s", s->secret);
    st = secret.oom ? moec_fail_nomem(err, "a key")
                    : hmac(secret.data, secret.len, s->date, 8, key, err);
    if (st == MOEC_OK)
        st = hmac(key, sizeof(*key), s->region, strlen(s->region), key, err);
    if (st == MOEC_OK)
        st = hmac(key, sizeof(*key), "s3", 2, key, err);
    if (st == MOEC_OK)
        st = hmac(key, sizeof(*key), "aws4_request", 12, key, err);
    if (secret.data)
        memset(secret.data, 0, secret.len);
    moec_buf_fini(&secret);
    return st;
}

static moec_status sign(const moec_sigv4 *s, const char *path,
                        const line *lines, size_t n, moec_buf *out,
                        moec_error *err)
{
    moec_buf request = {0}, text = {0};
    moec_sha256 digest = {{0}}, key;
    char hex[65];
    moec_status st = MOEC_OK;

    put_request(&request, s, path, lines, n);
    if (!request.oom)
        st = moec_sha256_of(request.data, request.len, &digest, err);
    moec_hex(&digest, sizeof(digest), hex);
    moec_buf_printf(&text, "AWS4-HMAC-SHA256\n%s\n%.8s/%s/s3/aws4_request\n%s",
                    s->date, s->date, s->region, hex);
    if (st == MOEC_OK && (request.oom || text.oom))
        st = moec_fail_nomem(err, "a request");
    if (st == MOEC_OK)
        st = make_key(s, &key, err);
    if (st == MOEC_OK)
        st = hmac(&key, sizeof(key), text.data, text.len, &digest, err);
    if (st == MOEC_OK) {
        moec_hex(&digest, sizeof(digest), hex);
        moec_buf_printf(out,
                        "AWS4-HMAC-SHA256 Credential=%s/%.8s/%s/s3/"
                        "aws4_request, SignedHeaders=",
                        s->key_id, s->date, s->region);
        put_names(out, lines, n);
        moec_buf_printf(out, ", Signature=%s", hex);
        if (out->oom)
            st = moec_fail_nomem(err, "a header line");
    }
    moec_buf_fini(&request);
    moec_buf_fini(&text);
    return st;
}

moec_status moec_sigv4_sign(const moec_sigv4 *s, moec_buf *out, moec_error *err)
{
    line lines[MOEC_SIGV4_LINES_MAX + 1];
    const char *host = strstr(s->url, "://");
    const char *path = host ? strchr(host += 3, '/') : NULL;

    if (!path || s->n_lines > MOEC_SIGV4_LINES_MAX)
        return moec_fail(err, MOEC_E_INTERNAL, MOEC_RULE_NONE,
                         "%s cannot be signed", s->url);
    lines[0] = (line){
        .name = "host", .value = host, .value_bytes = (size_t)(path - host)};
    for (size_t i = 0; i < s->n_lines; i++)
        MOEC_TRY(take_line(&lines[i + 1], s->lines[i], err));
    sort_lines(lines, s->n_lines + 1);
    return sign(s, path, lines, s->n_lines + 1, out, err);
}
