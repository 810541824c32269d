/* SPDX-License-Identifier: Apache-2.0 */
/*
 * AWS Signature Version 4 against the four examples of Amazon S3's API
 * reference ("Authenticating Requests: Using the Authorization Header").
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "sigv4.h"

#define EMPTY "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
#define DATE  "20130524T000000Z"

static void check(const char *method, const char *path, const char *body_sha256,
                  const char *const *more, size_t n_more, const char *names,
                  const char *signature)
{
    char sum[128], url[256];
    const char *lines[MOEC_SIGV4_LINES_MAX] = {"X-Amz-Date: " DATE, sum};
    moec_sigv4 s = {
        .key_id = "AKIAIOSFODNN7EXAMPLE",
        .secret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        .region = "us-east-1",
        .method = method,
        .url = url,
        .date = DATE,
        .sha256_hex = body_sha256,
        .lines = lines,
        .n_lines = 2 + n_more,
    };
    moec_error err = MOEC_ERROR_INIT;
    moec_buf out = {0}, want = {0};

    (void)snprintf(sum, sizeof(sum), "x-amz-content-sha256: %s", body_sha256);
    (void)snprintf(url, sizeof(url), "https://examplebucket.s3.amazonaws.com%s",
                   path);
    for (size_t i = 0; i < n_more; i++)
        lines[2 + i] = more[i];
    assert_int_equal(moec_sigv4_sign(&s, &out, &err), MOEC_OK);
    moec_buf_printf(&want,
                    "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/"
                    "us-east-1/s3/aws4_request, SignedHeaders=%s, Signature=%s",
                    names, signature);
    assert_string_equal(out.data, want.data);
    moec_buf_fini(&out);
    moec_buf_fini(&want);
}

static void signs_a_range(void **state)
{
    static const char *const more[] = {"Range: bytes=0-9"};

    (void)state;
    check("GET", "/test.txt", EMPTY, more, 1,
          "host;range;x-amz-content-sha256;x-amz-date",
          "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41");
}

static void signs_a_body(void **state)
{
    static const char *const more[] = {
        "Date: Fri, 24 May 2013 00:00:00 GMT",
        "x-amz-storage-class:   REDUCED_REDUNDANCY "};

    (void)state;
    check("PUT", "/test%24file.text",
          "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
          more, 2,
          "date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class",
          "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd");
}

static void signs_queries(void **state)
{
    (void)state;
    check("GET", "/?lifecycle=", EMPTY, NULL, 0,
          "host;x-amz-content-sha256;x-amz-date",
          "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543");
    check("GET", "/?max-keys=2&prefix=J", EMPTY, NULL, 0,
          "host;x-amz-content-sha256;x-amz-date",
          "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7");
}

static void refuses_what_it_cannot_sign(void **state)
{
    const char *lines[] = {"no colon"};
    moec_sigv4 s = {"k",  "s",   "r",   "GET", "https://host",
                    DATE, EMPTY, lines, 1};
    moec_buf out = {0};

    (void)state;
    assert_int_equal(moec_sigv4_sign(&s, &out, NULL), MOEC_E_INTERNAL);
    s.url = "https://host/";
    assert_int_equal(moec_sigv4_sign(&s, &out, NULL), MOEC_E_INTERNAL);
    s.n_lines = MOEC_SIGV4_LINES_MAX + 1;
    assert_int_equal(moec_sigv4_sign(&s, &out, NULL), MOEC_E_INTERNAL);
    moec_buf_fini(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(signs_a_range),
        cmocka_unit_test(signs_a_body),
        cmocka_unit_test(signs_queries),
        cmocka_unit_test(refuses_what_it_cannot_sign),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
