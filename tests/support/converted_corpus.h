/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_TESTS_CONVERTED_CORPUS_H
#define MOEC_TESTS_CONVERTED_CORPUS_H

/*
 * Seeds of fixtures/corpora, which make_converted.py writes: ok-* must decode
 * and encode to the same bytes, bad-* must be refused for the reason that a
 * table in the test gives. A seed without a reason, and a reason without a
 * seed, fail the test.
 */

#include <dirent.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/base.h"

typedef struct reason {
    const char *seed; /* without "bad-" */
    const char *text; /* part of the refusal */
} reason;

/* Decode the bytes; on success append what they encode to. */
typedef moec_status (*round_trip_fn)(const void *data, size_t n, moec_buf *out,
                                     moec_error *err);

/* The file in memory of its own size, so that a sanitizer sees the byte
 * behind it. */
static void *read_seed(const char *dir, const char *name, size_t *n_out)
{
    char path[1024];
    FILE *f;
    long n;
    void *data;

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    f = fopen(path, "rb");
    assert_non_null(f);
    assert_int_equal(fseek(f, 0, SEEK_END), 0);
    n = ftell(f);
    assert_true(n >= 0);
    rewind(f);
    data = malloc(n > 0 ? (size_t)n : 1);
    assert_non_null(data);
    assert_int_equal(fread(data, 1, (size_t)n, f), n);
    fclose(f);
    *n_out = (size_t)n;
    return data;
}

static void check_ok_seed(const char *name, const void *data, size_t n,
                          round_trip_fn fn)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_buf out = {0};

    if (fn(data, n, &out, &err) != MOEC_OK)
        fail_msg("%s: %s", name, err.text);
    if (out.len != n || memcmp(out.data, data, n) != 0)
        fail_msg("%s: encodes to other bytes", name);
    moec_buf_fini(&out);
}

static void check_bad_seed(const char *name, const void *data, size_t n,
                           round_trip_fn fn, const char *text)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_buf out = {0};

    if (fn(data, n, &out, &err) != MOEC_E_FORMAT)
        fail_msg("%s: is not refused", name);
    if (!strstr(err.text, text))
        fail_msg("%s: '%s' does not say '%s'", name, err.text, text);
    assert_null(out.data);
}

static void check_corpus(const char *corpus, round_trip_fn fn,
                         const reason *reasons, size_t n_reasons)
{
    char dir[512];
    size_t n, n_ok = 0, n_bad = 0;
    DIR *d;
    const struct dirent *e;

    snprintf(dir, sizeof(dir), MOEC_TEST_FIXTURES "/corpora/%s", corpus);
    d = opendir(dir);
    assert_non_null(d);
    while ((e = readdir(d))) {
        bool ok = strncmp(e->d_name, "ok-", 3) == 0;
        bool bad = strncmp(e->d_name, "bad-", 4) == 0;
        size_t i = 0;
        void *data;

        if (!ok && !bad)
            continue;
        data = read_seed(dir, e->d_name, &n);
        while (bad && i < n_reasons &&
               strcmp(e->d_name + 4, reasons[i].seed) != 0)
            i++;
        if (ok)
            check_ok_seed(e->d_name, data, n, fn);
        else if (i < n_reasons)
            check_bad_seed(e->d_name, data, n, fn, reasons[i].text);
        else
            fail_msg("%s: no reason is given for it", e->d_name);
        n_ok += ok;
        n_bad += bad;
        free(data);
    }
    closedir(d);
    assert_true(n_ok > 0);
    assert_int_equal(n_bad, n_reasons);
}

/* Fail each allocation in turn: NOMEM every time, until none is left to
 * fail; then the bytes come back. */
static void check_alloc_failures(const char *corpus, const char *seed,
                                 round_trip_fn fn)
{
    char dir[512];
    size_t n;
    uint64_t k;
    void *data;

    snprintf(dir, sizeof(dir), MOEC_TEST_FIXTURES "/corpora/%s", corpus);
    data = read_seed(dir, seed, &n);
    for (k = 1; k < 1000; k++) {
        moec_error err = MOEC_ERROR_INIT;
        moec_buf out = {0};
        moec_status st;

        moec_alloc_fail_at(k);
        st = fn(data, n, &out, &err);
        if (moec_alloc_fail_at(0) < k) {
            assert_int_equal(st, MOEC_OK);
            assert_int_equal(out.len, n);
            moec_buf_fini(&out);
            break;
        }
        assert_int_equal(st, MOEC_E_NOMEM);
        assert_int_equal(err.status, MOEC_E_NOMEM);
        moec_buf_fini(&out);
    }
    assert_in_range(k, 3, 999);
    free(data);
}

/* Every truncation by more than `spare` bytes is refused. */
static void check_truncations(const char *corpus, const char *seed,
                              size_t spare, round_trip_fn fn)
{
    char dir[512];
    size_t n;
    void *data;

    snprintf(dir, sizeof(dir), MOEC_TEST_FIXTURES "/corpora/%s", corpus);
    data = read_seed(dir, seed, &n);
    for (size_t cut = 0; cut + spare < n; cut++) {
        moec_buf out = {0};
        void *part = malloc(cut ? cut : 1);

        assert_non_null(part);
        memcpy(part, data, cut);
        if (fn(part, cut, &out, NULL) == MOEC_OK)
            fail_msg("%zu of %zu bytes are accepted", cut, n);
        free(part);
    }
    free(data);
}

#endif
