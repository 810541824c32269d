/* SPDX-License-Identifier: Apache-2.0 */
/*
 * SHA-256 of a stretch of a tensor, and of memory: for those who show digests
 * beside offsets. Memory does not grow with the stretch.
 */
#include <moec/loader.h>

#include <string.h>

#include "base/base.h"

/* Large enough for sequential reads to be efficient, small enough for a
 * caller with many threads. */
#define CHUNK_BYTES ((size_t)1 << 20)

moec_status moec_ckpt_digest(const moec_ckpt *ckpt, size_t tensor, uint64_t off,
                             uint64_t bytes, uint8_t out[32], moec_error *err)
{
    moec_hasher *h = NULL;
    moec_sha256 digest;
    moec_status st;
    uint64_t done = 0;
    void *buf = moec_alloc(CHUNK_BYTES);
    if (buf == NULL)
        return moec_fail_nomem(err, "a read buffer");
    st = moec_hasher_create(&h, err);
    while (st == MOEC_OK && done < bytes) {
        size_t n = (size_t)moec_min_u64(bytes - done, CHUNK_BYTES);
        uint64_t at = 0;
        if (!moec_add_u64(off, done, &at))
            st = moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                           "offset %llu leaves 64 bits",
                           (unsigned long long)off);
        else
            st = moec_ckpt_read(ckpt, tensor, at, buf, n, err);
        if (st == MOEC_OK)
            st = moec_hasher_update(h, buf, n, err);
        done += n;
    }
    if (st == MOEC_OK) {
        st = moec_hasher_final(h, &digest, err);
        h = NULL; /* final frees */
    }
    moec_hasher_destroy(h);
    moec_free(buf);
    if (st == MOEC_OK)
        memcpy(out, digest.b, sizeof(digest.b));
    return st;
}

moec_status moec_digest_memory(const void *data, size_t n, uint8_t out[32],
                               moec_error *err)
{
    moec_sha256 digest;
    MOEC_TRY(moec_sha256_of(data, n, &digest, err));
    memcpy(out, digest.b, sizeof(digest.b));
    return MOEC_OK;
}
