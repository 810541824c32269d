/* SPDX-License-Identifier: Apache-2.0 */

/*
 * HTTP by libcurl. See http.h.
 *
 * A try either fills the caller's buffer with exactly the bytes that were
 * asked for, or fails: a short body, a body of another range, an answer that
 * ignores the range are failures that may pass by themselves. What a server
 * says when it refuses is quoted, cut and escaped.
 */

#include <curl/curl.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>
#include <time.h>

#include "http.h"
#include "sigv4.h"

#define TRIES       6u
#define TIMEOUT_MS  30000u
#define CONNECT_MS  10000L
#define WAIT_MS     100u /* before the second try, at most; then doubled */
#define WAIT_MS_MAX 10000u
#define SAID_BYTES  512u /* of a refusal */

/* One try. */
typedef struct try_state {
    const moec_http_request *q;
    CURL *curl;
    size_t got;    /* into q->into */
    bool too_much; /* more than was asked for */
    char said[SAID_BYTES];
    size_t n_said;
    uint64_t range_first;
    bool has_range;
    uint32_t retry_after_ms;
    moec_http_answer *a;
} try_state;

static bool is_good(long status)
{
    return status >= 200 && status < 300;
}

/* ------------------------------------------------------------- callbacks */

static size_t take_body(char *data, size_t size, size_t n, void *ctx)
{
    try_state *t = ctx;
    long status = 0;

    n *= size;
    curl_easy_getinfo(t->curl, CURLINFO_RESPONSE_CODE, &status);
    if (!is_good(status)) {
        size_t k = moec_min_u64(n, SAID_BYTES - 1 - t->n_said);
        memcpy(t->said + t->n_said, data, k);
        t->n_said += k;
        return n;
    }
    if (t->q->text) {
        if (n > t->q->text_max - t->q->text->len) {
            t->too_much = true;
            return 0;
        }
        moec_buf_append(t->q->text, data, n);
        return t->q->text->oom ? 0 : n;
    }
    if (!t->q->into)
        return n;
    if (n > t->q->n - t->got) {
        t->too_much = true;
        return 0;
    }
    memcpy((char *)t->q->into + t->got, data, n);
    t->got += n;
    return n;
}

static bool starts(const char *line, size_t n, const char *name)
{
    return n > strlen(name) && strncasecmp(line, name, strlen(name)) == 0;
}

/* A header line is not NUL-terminated. Redirects begin a new set. */
static size_t take_header(char *line, size_t size, size_t n, void *ctx)
{
    try_state *t = ctx;
    char value[MOEC_HTTP_ETAG_BYTES];
    const char *colon = memchr(line, ':', n *= size);
    size_t k;

    if (starts(line, n, "HTTP/")) {
        t->has_range = t->a->has_length = false;
        t->a->etag[0] = '\0';
    }
    if (!colon)
        return n;
    k = n - (size_t)(++colon - line);
    while (k > 0 && (*colon == ' ' || *colon == '\t'))
        colon++, k--;
    while (k > 0 && (unsigned char)colon[k - 1] <= ' ')
        k--;
    if (k >= sizeof(value))
        return n;
    memcpy(value, colon, k);
    value[k] = '\0';
    if (starts(line, n, "etag:")) {
        memcpy(t->a->etag, value, k + 1);
    } else if (starts(line, n, MOEC_HTTP_DIGEST_NAME ":")) {
        (void)snprintf(t->a->digest, sizeof(t->a->digest), "%.71s", value);
    } else if (starts(line, n, "x-amz-checksum-sha256:")) {
        (void)snprintf(t->a->checksum, sizeof(t->a->checksum), "%.71s", value);
    } else if (starts(line, n, "content-length:")) {
        t->a->length = strtoull(value, NULL, 10);
        t->a->has_length = true;
    } else if (starts(line, n, "content-range:")) {
        const char *slash = strchr(value, '/');
        t->range_first =
            strtoull(value + strcspn(value, "0123456789"), NULL, 10);
        t->has_range = true;
        if (slash && slash[1] != '*') {
            t->a->length = strtoull(slash + 1, NULL, 10);
            t->a->has_length = true;
        }
    } else if (starts(line, n, "retry-after:")) {
        t->retry_after_ms =
            1000 * (uint32_t)moec_min_u64(strtoull(value, NULL, 10),
                                          3 * WAIT_MS_MAX / 1000);
    }
    return n;
}

/* --------------------------------------------------------------- a try */

static moec_status add_line(struct curl_slist **list, const char *line,
                            moec_error *err)
{
    struct curl_slist *more = curl_slist_append(*list, line);

    if (!more)
        return moec_fail_nomem(err, "a header line");
    *list = more;
    return MOEC_OK;
}

/* Sign what the list has by now, and add that. */
static moec_status add_signature(const moec_http *h, const moec_http_request *q,
                                 struct curl_slist **list, moec_error *err)
{
    const char *lines[MOEC_SIGV4_LINES_MAX];
    char date[32], text[MOEC_HTTP_ETAG_BYTES], hex[65];
    moec_buf value = {0};
    moec_sigv4 s = {h->opts.key_id,
                    h->opts.secret,
                    h->opts.region,
                    q->method,
                    q->url,
                    date,
                    hex,
                    lines,
                    0};
    moec_sha256 sum;
    time_t now = time(NULL);
    struct tm utc;
    moec_status st;

    (void)strftime(date, sizeof(date), "%Y%m%dT%H%M%SZ", gmtime_r(&now, &utc));
    if (q->sha256_hex) {
        memcpy(hex, q->sha256_hex, sizeof(hex));
    } else {
        MOEC_TRY(moec_sha256_of(q->body, q->body_bytes, &sum, err));
        moec_hex(&sum, sizeof(sum), hex);
    }
    (void)snprintf(text, sizeof(text), "x-amz-content-sha256: %s", hex);
    MOEC_TRY(add_line(list, text, err));
    (void)snprintf(text, sizeof(text), "x-amz-date: %s", date);
    MOEC_TRY(add_line(list, text, err));
    if (h->opts.token) {
        moec_buf_printf(&value, "x-amz-security-token: %s", h->opts.token);
        st = value.oom ? moec_fail_nomem(err, "a header line")
                       : add_line(list, value.data, err);
        moec_buf_fini(&value);
        MOEC_TRY(st);
    }
    for (const struct curl_slist *l = *list;
         l && s.n_lines < MOEC_SIGV4_LINES_MAX; l = l->next)
        lines[s.n_lines++] = l->data;
    moec_buf_puts(&value, "Authorization: ");
    st = moec_sigv4_sign(&s, &value, err);
    if (st == MOEC_OK)
        st = add_line(list, value.data, err);
    moec_buf_fini(&value);
    return st;
}

/* Header lines of a request; the caller frees *out whatever comes. */
static moec_status header_lines(const moec_http *h, const moec_http_request *q,
                                struct curl_slist **out, moec_error *err)
{
    char line[2 * MOEC_HTTP_ETAG_BYTES];

    for (size_t i = 0; q->header && q->header[i]; i++)
        MOEC_TRY(add_line(out, q->header[i], err));
    if (q->body)
        MOEC_TRY(add_line(out, "Content-Type: application/octet-stream", err));
    if (q->n > 0) {
        (void)snprintf(line, sizeof(line), "Range: bytes=%llu-%llu",
                       (unsigned long long)q->off,
                       (unsigned long long)(q->off + q->n - 1));
        MOEC_TRY(add_line(out, line, err));
    }
    if (q->if_match) {
        (void)snprintf(line, sizeof(line), "If-Match: %s", q->if_match);
        MOEC_TRY(add_line(out, line, err));
    }
    if (q->fresh)
        MOEC_TRY(add_line(out, "If-None-Match: *", err));
    if (h->sign)
        MOEC_TRY(add_signature(h, q, out, err));
    return add_line(out, "Expect:", err); /* no extra round trip */
}

static void set_options(const moec_http *h, const moec_http_request *q,
                        try_state *t, struct curl_slist *lines)
{
    CURL *c = t->curl;

    curl_easy_reset(c);
    curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(c, CURLOPT_URL, q->url);
    curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, "http,https");
    /* A store answers itself; a hub sends to where the bytes are, never from
     * https to http. */
    curl_easy_setopt(c, CURLOPT_FOLLOWLOCATION, h->sign ? 0L : 1L);
    curl_easy_setopt(c, CURLOPT_MAXREDIRS, 8L);
    curl_easy_setopt(c, CURLOPT_REDIR_PROTOCOLS_STR,
                     strncmp(q->url, "http:", 5) == 0 ? "http,https" : "https");
    curl_easy_setopt(c, CURLOPT_HTTPHEADER, lines);
    curl_easy_setopt(c, CURLOPT_HEADERFUNCTION, take_header);
    curl_easy_setopt(c, CURLOPT_HEADERDATA, t);
    curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, take_body);
    curl_easy_setopt(c, CURLOPT_WRITEDATA, t);
    curl_easy_setopt(c, CURLOPT_BUFFERSIZE, 512L * 1024);
    curl_easy_setopt(c, CURLOPT_CONNECTTIMEOUT_MS, CONNECT_MS);
    curl_easy_setopt(c, CURLOPT_LOW_SPEED_LIMIT, 1L);
    curl_easy_setopt(c, CURLOPT_LOW_SPEED_TIME,
                     (long)((h->opts.timeout_ms + 999) / 1000));
    if (strcmp(q->method, "HEAD") == 0)
        curl_easy_setopt(c, CURLOPT_NOBODY, 1L);
    else if (q->body || strcmp(q->method, "POST") == 0) {
        curl_easy_setopt(c, CURLOPT_POST, 1L);
        curl_easy_setopt(c, CURLOPT_POSTFIELDS, q->body ? q->body : "");
        curl_easy_setopt(c, CURLOPT_POSTFIELDSIZE_LARGE,
                         (curl_off_t)q->body_bytes);
    }
    if (strcmp(q->method, "GET") != 0 && strcmp(q->method, "HEAD") != 0)
        curl_easy_setopt(c, CURLOPT_CUSTOMREQUEST, q->method);
    if (!h->sign && h->opts.bearer) {
        curl_easy_setopt(c, CURLOPT_HTTPAUTH, (long)CURLAUTH_BEARER);
        curl_easy_setopt(c, CURLOPT_XOAUTH2_BEARER, h->opts.bearer);
    }
}

/* The text of an element of S3's refusals, to be found again and again: into
 * buf, "" where there is none. */
static const char *said_text(const try_state *t, const char *name, char *buf,
                             size_t n)
{
    char open[32];
    const char *p;
    size_t k = 0;

    (void)snprintf(open, sizeof(open), "<%s>", name);
    p = strstr(t->said, open);
    if (p)
        for (p += strlen(open); *p && *p != '<' && k + 1 < n; p++)
            buf[k++] = *p;
    buf[k] = '\0';
    return buf;
}

/* Bytes that were bent on their way are sent again. */
static bool is_bent(const try_state *t)
{
    char code[64];

    said_text(t, "Code", code, sizeof(code));
    return strcmp(code, "BadDigest") == 0 ||
           strcmp(code, "XAmzContentSHA256Mismatch") == 0 ||
           strcmp(code, "IncompleteBody") == 0 ||
           strcmp(code, "RequestTimeout") == 0;
}

static bool may_pass(CURLcode code, long status, const try_state *t)
{
    switch ((int)code) {
    case CURLE_OK:
        if (status == 400)
            return is_bent(t);
        return status == 408 || status == 429 || status == 500 ||
               status == 502 || status == 503 || status == 504;
    case CURLE_COULDNT_RESOLVE_HOST:
    case CURLE_COULDNT_CONNECT:
    case CURLE_OPERATION_TIMEDOUT:
    case CURLE_PARTIAL_FILE:
    case CURLE_GOT_NOTHING:
    case CURLE_SEND_ERROR:
    case CURLE_RECV_ERROR:
    case CURLE_HTTP2:
    case CURLE_HTTP2_STREAM:
    case CURLE_SSL_CONNECT_ERROR:
        return true;
    default:
        return false;
    }
}

/* The refusal of a server, on one line. */
static const char *refusal(try_state *t)
{
    t->said[t->n_said] = '\0';
    for (size_t i = 0; i < t->n_said; i++) {
        if (t->said[i] == '\n' || t->said[i] == '\r')
            t->said[i] = ' ';
    }
    return t->said;
}

/* "AccessDenied: what the store says", or its bare words. */
static void put_words(try_state *t, char *buf, size_t n)
{
    char code[64], message[256];

    (void)refusal(t);
    said_text(t, "Code", code, sizeof(code));
    said_text(t, "Message", message, sizeof(message));
    if (code[0] != '\0')
        (void)snprintf(buf, n, "%s%s%s", code, message[0] ? ": " : "", message);
    else
        (void)snprintf(buf, n, "%s", t->said);
}

static moec_status refuse(const moec_http_request *q, try_state *t,
                          CURLcode code, long status, uint32_t tries,
                          moec_error *err)
{
    char words[SAID_BYTES];
    int n = (int)strcspn(q->url, "?"); /* ids of uploads tell nobody anything */

    if (code != CURLE_OK)
        return moec_fail(err, MOEC_E_IO, MOEC_RULE_NONE,
                         "%s %.*s: %s, after %u tries", q->method, n, q->url,
                         curl_easy_strerror(code), tries);
    put_words(t, words, sizeof(words));
    if (status == 404)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_I01,
                         "%.*s: status 404: the server has no such object%s%s",
                         n, q->url, words[0] ? "; it says " : "", words);
    if (status == 412 && q->if_match)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_I13,
                         "%.*s changed since it was opened: it was %s", n,
                         q->url, q->if_match);
    if ((status == 412 || status == 409) && q->fresh)
        return moec_fail(err, MOEC_E_LOCKED, MOEC_RULE_NONE,
                         "%.*s is there already (status %ld)", n, q->url,
                         status);
    if (status == 401 || status == 403)
        return moec_fail(err, MOEC_E_IO, MOEC_RULE_NONE,
                         "%s %.*s: status %ld, access denied: check key, "
                         "region and rights; the server says '%s'",
                         q->method, n, q->url, status, words);
    return moec_fail(err, MOEC_E_IO, MOEC_RULE_NONE,
                     "%s %.*s: status %ld after %u tries; the server says '%s'",
                     q->method, n, q->url, status, tries, words);
}

/* Did the server send what was asked for? A server may ignore a range (200
 * with the whole), a proxy may cut a body. */
static bool is_complete(const moec_http_request *q, const try_state *t,
                        long status)
{
    if (!q->into)
        return true;
    if (t->got != q->n)
        return false;
    return status == 206 ? t->has_range && t->range_first == q->off
                         : q->off == 0 && t->a->length == q->n;
}

/* ---------------------------------------------------------- connections */

static CURL *take_handle(moec_http *h)
{
    CURL *c = NULL;

    pthread_mutex_lock(&h->lock);
    if (h->n_idle > 0)
        c = h->idle[--h->n_idle];
    pthread_mutex_unlock(&h->lock);
    return c ? c : curl_easy_init();
}

static void give_handle(moec_http *h, CURL *c)
{
    pthread_mutex_lock(&h->lock);
    if (MOEC_GROW(h->idle, h->n_idle, h->cap_idle)) {
        h->idle[h->n_idle++] = c;
        c = NULL;
    }
    pthread_mutex_unlock(&h->lock);
    if (c)
        curl_easy_cleanup(c);
}

static void count(moec_http *h, const moec_http_request *q, const try_state *t,
                  bool again)
{
    pthread_mutex_lock(&h->lock);
    h->stats.n_requests++;
    h->stats.n_retries += again;
    h->stats.bytes_read += t->got;
    h->stats.bytes_written += q->body_bytes;
    pthread_mutex_unlock(&h->lock);
}

/* A random part of a time that doubles, or what the server asks for. */
static void wait_before(uint32_t first_ms, uint32_t nth,
                        uint32_t retry_after_ms)
{
    uint64_t most =
        moec_min_u64((uint64_t)first_ms << moec_min_u64(nth, 16), WAIT_MS_MAX);
    uint32_t dice = 0;
    uint64_t ms;

    if (getrandom(&dice, sizeof(dice), GRND_NONBLOCK) < 0)
        dice = (uint32_t)clock();
    ms = retry_after_ms + dice % (most + 1);
    nanosleep(&(struct timespec){.tv_sec = (time_t)(ms / 1000),
                                 .tv_nsec = (long)(ms % 1000) * 1000000},
              NULL);
}

/* -------------------------------------------------------------- requests */

moec_status moec_http_do(moec_http *h, const moec_http_request *q,
                         moec_http_answer *a, moec_error *err)
{
    struct curl_slist *lines = NULL;
    try_state t = {.q = q, .a = a};
    moec_status st;
    size_t text_before = q->text ? q->text->len : 0;

    st = header_lines(h, q, &lines, err);
    t.curl = st == MOEC_OK ? take_handle(h) : NULL;
    if (st == MOEC_OK && !t.curl)
        st = moec_fail_nomem(err, "a connection");
    for (uint32_t nth = 1; st == MOEC_OK; nth++) {
        CURLcode code;
        long status = 0;
        bool complete, again;

        t.got = t.n_said = 0;
        t.too_much = t.has_range = false;
        t.retry_after_ms = 0;
        memset(a, 0, sizeof(*a));
        if (q->text)
            q->text->len = text_before;
        set_options(h, q, &t, lines);
        code = curl_easy_perform(t.curl);
        curl_easy_getinfo(t.curl, CURLINFO_RESPONSE_CODE, &status);
        a->status = status;
        count(h, q, &t, nth > 1);
        complete = is_complete(q, &t, status);
        if (code == CURLE_OK && is_good(status) && complete)
            break;
        t.said[t.n_said] = '\0';
        again = may_pass(code, status, &t) ||
                (code == CURLE_OK && is_good(status) && !complete);
        if (q->text && q->text->oom)
            st = moec_fail_nomem(err, "an answer");
        else if (t.too_much)
            st = moec_fail(err, MOEC_E_IO, MOEC_RULE_NONE,
                           "%s: the server sends more than was asked for: it "
                           "may not know byte ranges",
                           q->url);
        else if (!again || nth >= h->opts.tries)
            st = is_good(status) && code == CURLE_OK
                     ? moec_fail(err, MOEC_E_IO, MOEC_RULE_NONE,
                                 "%s: %zu of %llu bytes, after %u tries",
                                 q->url, t.got, (unsigned long long)q->n, nth)
                     : refuse(q, &t, code, status, nth, err);
        else
            wait_before(h->opts.wait_ms, nth, t.retry_after_ms);
    }
    if (t.curl)
        give_handle(h, t.curl);
    curl_slist_free_all(lines);
    return st;
}

moec_status moec_http_init(moec_http *h, const moec_web_opts *opts,
                           moec_error *err)
{
    if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK)
        return moec_fail(err, MOEC_E_IO, MOEC_RULE_NONE,
                         "libcurl does not start");
    memset(h, 0, sizeof(*h));
    h->opts = *opts;
    if (h->opts.tries == 0)
        h->opts.tries = TRIES;
    if (h->opts.wait_ms == 0)
        h->opts.wait_ms = WAIT_MS;
    if (h->opts.timeout_ms == 0)
        h->opts.timeout_ms = TIMEOUT_MS;
    if (!h->opts.region)
        h->opts.region = "us-east-1";
    pthread_mutex_init(&h->lock, NULL);
    return MOEC_OK;
}

void moec_http_fini(moec_http *h)
{
    for (size_t i = 0; i < h->n_idle; i++)
        curl_easy_cleanup(h->idle[i]);
    moec_free(h->idle);
    pthread_mutex_destroy(&h->lock);
    curl_global_cleanup();
}
