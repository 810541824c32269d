/* SPDX-License-Identifier: Apache-2.0
 *
 * The two digests: SHA-256 (libcrypto, and two leaves at a time by the CPU's
 * SHA extensions) proves, XXH3-128 finds damage fast.
 * Keys and certificates are in sign_keys.c. */

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include <openssl/crypto.h>
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

#if defined(__x86_64__)
#  include <cpuid.h>
#endif

#include "base/base.h"
#include "base/sha256_shani.h"

#define FILE_BYTES ((size_t)1 << 20) /* of a file, at a time */

/* What vzeroupper touches, as far as a compiler without AVX can name it. */
#define XMM_CLOBBERS                                                           \
  "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",      \
      "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"

/* libxxhash's AVX-512 returns with the upper halves of the vector registers in
 * use. From then on every SSE instruction of the thread must keep them: SHA-256
 * by the SHA extensions, which have no other form, fell from 3.4 GB/s to 1.2 on
 * an EPYC, libcrypto's from 1.8 to 1.35. So: cleared after XXH3, and before
 * SHA-256, whoever ran before. */
static void clear_uppers(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx"))
        __asm__ volatile("vzeroupper" ::: XMM_CLOBBERS);
#endif
}

/* A fetched algorithm saves libcrypto a search under a lock for each digest.
 * It lives as long as the process. */
static _Atomic(EVP_MD *) sha256;
static pthread_mutex_t sha256_lock = PTHREAD_MUTEX_INITIALIZER;

/* From a context of our own: libcrypto 3.0 goes on with its default one where
 * memory was too little to make it, and crashes. */
static EVP_MD *fetch_sha256(void)
{
    OSSL_LIB_CTX *own = OSSL_LIB_CTX_new();
    EVP_MD *md = own ? EVP_MD_fetch(own, "SHA256", NULL) : NULL;

    if (!md)
        OSSL_LIB_CTX_free(own); /* NULL is fine */
    return md;
}

/* Not pthread_once: a process that was short of memory for a moment must not
 * be without digests for ever. libcrypto does not say which of the two it
 * was. */
static moec_status get_sha256(const EVP_MD **out, moec_error *err)
{
    EVP_MD *md = atomic_load_explicit(&sha256, memory_order_acquire);

    if (!md) {
        pthread_mutex_lock(&sha256_lock);
        md = atomic_load_explicit(&sha256, memory_order_relaxed);
        if (!md)
            md = fetch_sha256();
        atomic_store_explicit(&sha256, md, memory_order_release);
        pthread_mutex_unlock(&sha256_lock);
    }
    if (!md)
        return moec_fail(err, MOEC_E_NOMEM, MOEC_RULE_NONE,
                         "libcrypto gives no SHA-256: there is no memory for "
                         "it, or it has none");
    *out = md;
    return MOEC_OK;
}

moec_status moec_sha256_of(const void *data, size_t n, moec_sha256 *out,
                           moec_error *err)
{
    const EVP_MD *md = NULL;
    moec_sha256 made;

    MOEC_TRY(get_sha256(&md, err));
    clear_uppers();
    if (!EVP_Digest(n ? data : "", n, made.b, NULL, md, NULL))
        return moec_fail_nomem(err, "SHA-256 in libcrypto");
    *out = made;
    return MOEC_OK;
}

/* --------------------------------------------- leaves, two at a time */

static bool have_shani;
static pthread_once_t shani_once = PTHREAD_ONCE_INIT;

static void ask_shani(void)
{
#if defined(__x86_64__)
    unsigned a, b, c, d;

    if (!moec_sha256_shani_built() || !__get_cpuid(1, &a, &b, &c, &d) ||
        !(c & bit_SSSE3) || !(c & bit_SSE4_1))
        return;
    have_shani = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_SHA);
#endif
}

bool moec_sha256_pair_begin(moec_sha256_pair *h)
{
    static const uint32_t begin[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372,
                                      0xa54ff53a, 0x510e527f, 0x9b05688c,
                                      0x1f83d9ab, 0x5be0cd19};

    pthread_once(&shani_once, ask_shani);
    memcpy(h->state[0], begin, sizeof(begin));
    memcpy(h->state[1], begin, sizeof(begin));
    h->bytes = 0;
    return have_shani;
}

void moec_sha256_pair_update(moec_sha256_pair *h, const moec_sha256_block b[2],
                             size_t n)
{
    clear_uppers();
    if (b[0].to != NULL)
        moec_sha256_shani_copy_x2(h->state[0], h->state[1], b, n / 64);
    else
        moec_sha256_shani_x2(h->state[0], b[0].from, h->state[1], b[1].from,
                             n / 64);
    h->bytes += n;
}

void moec_sha256_pair_final(const moec_sha256_pair *h, moec_sha256 out[2])
{
    unsigned char tail[64] = {0x80};
    uint32_t s[2][8];

    memcpy(s, h->state, sizeof(s));
    for (int i = 0; i < 8; i++)
        tail[56 + i] = (unsigned char)(h->bytes * 8 >> (56 - 8 * i));
    moec_sha256_shani_x2(s[0], tail, s[1], tail, 1);
    for (int m = 0; m < 2; m++)
        for (int i = 0; i < 32; i++)
            out[m].b[i] = (uint8_t)(s[m][i / 4] >> (24 - 8 * (i % 4)));
}

moec_status moec_sha256_leaves(const void *data, size_t n, size_t leaf_bytes,
                               moec_sha256 *out, moec_error *err)
{
    const unsigned char *p = data, *end = p + n;
    moec_sha256_pair h;

    while ((size_t)(end - p) / 2 >= leaf_bytes && leaf_bytes % 64 == 0 &&
           moec_sha256_pair_begin(&h)) {
        const moec_sha256_block b[2] = {{p, p, NULL},
                                        {p + leaf_bytes, p + leaf_bytes, NULL}};

        moec_sha256_pair_update(&h, b, leaf_bytes);
        moec_sha256_pair_final(&h, out);
        p += 2 * leaf_bytes;
        out += 2;
    }
    for (size_t k; p < end; p += k, out++) {
        k = (size_t)moec_min_u64((uint64_t)(end - p), leaf_bytes);
        MOEC_TRY(moec_sha256_of(p, k, out, err));
    }
    return MOEC_OK;
}

moec_xxh128 moec_xxh128_of(const void *data, size_t n)
{
    XXH128_canonical_t canonical;
    moec_xxh128 out;

    XXH128_canonicalFromHash(&canonical, XXH3_128bits(n ? data : "", n));
    clear_uppers();
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
    clear_uppers();
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
        u[i] = (unsigned char)((unsigned)nibble(hex[2 * i]) << 4 |
                               (unsigned)nibble(hex[2 * i + 1]));
    return true;
}

moec_status moec_sha256_fd(int fd, const char *name, uint64_t bytes,
                           moec_sha256 *out, moec_error *err)
{
    unsigned char *buf = moec_alloc(FILE_BYTES);
    moec_hasher *h = NULL;
    moec_status st;

    if (!buf)
        return moec_fail_nomem(err, "a buffer");
    st = moec_hasher_create(&h, err);
    for (uint64_t off = 0; st == MOEC_OK && off < bytes; off += FILE_BYTES) {
        size_t n = (size_t)moec_min_u64(FILE_BYTES, bytes - off);

        st = moec_pread_full(fd, name, buf, n, off, err);
        if (st == MOEC_OK)
            st = moec_hasher_update(h, buf, n, err);
    }
    if (st == MOEC_OK) {
        st = moec_hasher_final(h, out, err);
        h = NULL;
    }
    moec_hasher_destroy(h);
    moec_free(buf);
    return st;
}
