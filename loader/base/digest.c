/* SPDX-License-Identifier: Apache-2.0
 *
 * The two digests: SHA-256 (libcrypto) proves, XXH3-128 finds damage fast.
 * The only file of the library that includes OpenSSL. */

#include <pthread.h>
#include <string.h>

#include <openssl/evp.h>
#include <xxhash.h>
/* libxxhash's plain entry uses the instructions that it was built for (SSE2);
 * this header chooses at run time: measured over 1 MiB in cache on an EPYC
 * with AVX-512, 45 GB/s against 20. A libxxhash built without DISPATCH=1 lacks
 * the symbols: define MOEC_NO_XXH_DISPATCH there. */
#if defined(__x86_64__) && !defined(MOEC_NO_XXH_DISPATCH)
#  if __has_include(<xxh_x86dispatch.h>)
#    include <xxh_x86dispatch.h>
#  endif
#endif

#include "base/base.h"

/* A fetched algorithm saves libcrypto a search under a lock for each digest.
 * It lives as long as the process. */
static EVP_MD *sha256;
static pthread_once_t sha256_once = PTHREAD_ONCE_INIT;

static void fetch_sha256(void)
{
    sha256 = EVP_MD_fetch(NULL, "SHA256", NULL);
}

static moec_status get_sha256(const EVP_MD **out, moec_error *err)
{
    pthread_once(&sha256_once, fetch_sha256);
    if (!sha256)
        return moec_fail(err, MOEC_E_UNSUPPORTED, MOEC_RULE_NONE,
                         "this libcrypto offers no SHA-256");
    *out = sha256;
    return MOEC_OK;
}

moec_status moec_sha256_of(const void *data, size_t n, moec_sha256 *out,
                           moec_error *err)
{
    const EVP_MD *md = NULL;
    moec_sha256 made;

    MOEC_TRY(get_sha256(&md, err));
    if (!EVP_Digest(n ? data : "", n, made.b, NULL, md, NULL))
        return moec_fail_nomem(err, "SHA-256 in libcrypto");
    *out = made;
    return MOEC_OK;
}

moec_xxh128 moec_xxh128_of(const void *data, size_t n)
{
    XXH128_canonical_t canonical;
    moec_xxh128 out;

    XXH128_canonicalFromHash(&canonical, XXH3_128bits(n ? data : "", n));
    memcpy(out.b, canonical.digest, sizeof(out.b));
    return out;
}

struct moec_hasher {
    EVP_MD_CTX *ctx;
};

moec_status moec_hasher_create(moec_hasher **out, moec_error *err)
{
    const EVP_MD *md = NULL;
    moec_hasher *h;

    MOEC_TRY(get_sha256(&md, err));
    h = moec_alloc(sizeof(*h));
    if (!h)
        return moec_fail_nomem(err, "a SHA-256 state");
    h->ctx = EVP_MD_CTX_new();
    if (!h->ctx || !EVP_DigestInit_ex2(h->ctx, md, NULL)) {
        moec_hasher_destroy(h);
        return moec_fail_nomem(err, "a SHA-256 state");
    }
    *out = h;
    return MOEC_OK;
}

moec_status moec_hasher_update(moec_hasher *h, const void *data, size_t n,
                               moec_error *err)
{
    if (n > 0 && !EVP_DigestUpdate(h->ctx, data, n))
        return moec_fail(err, MOEC_E_INTERNAL, MOEC_RULE_NONE,
                         "libcrypto refused to digest %zu bytes", n);
    return MOEC_OK;
}

moec_status moec_hasher_final(moec_hasher *h, moec_sha256 *out, moec_error *err)
{
    moec_sha256 made;
    int ok = EVP_DigestFinal_ex(h->ctx, made.b, NULL);

    moec_hasher_destroy(h);
    if (!ok)
        return moec_fail(err, MOEC_E_INTERNAL, MOEC_RULE_NONE,
                         "libcrypto refused to finish a digest");
    *out = made;
    return MOEC_OK;
}

void moec_hasher_destroy(moec_hasher *h)
{
    if (!h)
        return;
    EVP_MD_CTX_free(h->ctx);
    moec_free(h);
}

void moec_hex(const void *data, size_t n, char *out)
{
    static const char digits[] = "0123456789abcdef";
    const unsigned char *u = data;

    for (size_t i = 0; i < n; i++) {
        *out++ = digits[u[i] >> 4];
        *out++ = digits[u[i] & 15];
    }
    *out = '\0';
}

/* -1 where `c` is no lower-case hex digit. */
static int nibble(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

bool moec_unhex(const char *hex, void *out, size_t n)
{
    unsigned char *u = out;

    if (strlen(hex) != 2 * n)
        return false;
    for (size_t i = 0; i < 2 * n; i++) {
        if (nibble(hex[i]) < 0)
            return false;
    }
    for (size_t i = 0; i < n; i++)
        u[i] =
            (unsigned char)(nibble(hex[2 * i]) << 4 | nibble(hex[2 * i + 1]));
    return true;
}
