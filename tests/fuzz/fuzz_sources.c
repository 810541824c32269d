/* SPDX-License-Identifier: Apache-2.0
 *
 * sources.bin: any bytes are refused, or decode to entries that encode to
 * these very bytes. A fuzzer finds no SHA-256: each input is tried as it is
 * and again with the digests of its entries put right. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "converted.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MUST(x)                                                                \
  do {                                                                         \
    if (!(x))                                                                  \
      abort();                                                                 \
  } while (0)

enum { HEAD_BYTES = 32, ENTRY_BYTES = 72 };

/* Put into each entry the digest of the data that it names, where it does. */
static void mend_digests(uint8_t *data, size_t size)
{
    uint32_t n = size < HEAD_BYTES ? 0 : moec_le32(data + 12);

    for (uint32_t i = 0; i < n && i < (size - HEAD_BYTES) / ENTRY_BYTES; i++) {
        uint8_t *entry = data + HEAD_BYTES + (size_t)i * ENTRY_BYTES;
        uint64_t off = moec_le64(entry + 16), bytes = moec_le64(entry + 24);
        moec_sha256 sha;

        if (off > size || bytes > size - off)
            continue;
        MUST(moec_sha256_of(data + off, (size_t)bytes, &sha, NULL) == MOEC_OK);
        memcpy(entry + 40, sha.b, sizeof(sha.b));
    }
}

static void try_one(const uint8_t *data, size_t size)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_sources s = {0};
    moec_buf out = {0};

    if (moec_sources_decode(&s, data, size, &err) != MOEC_OK) {
        MUST(err.status == MOEC_E_FORMAT && err.rule == MOEC_RULE_M04);
        return;
    }
    for (size_t i = 0; i < s.n_entries; i++)
        MUST(moec_plain_name(s.entries[i].name, strlen(s.entries[i].name)));
    MUST(moec_sources_encode(&s, &out, NULL) == MOEC_OK);
    MUST(out.len == size && memcmp(out.data, data, size) == 0);
    moec_buf_fini(&out);
    moec_sources_fini(&s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *mended = malloc(size ? size : 1);

    try_one(data, size);
    MUST(mended);
    if (size > 0)
        memcpy(mended, data, size);
    mend_digests(mended, size);
    try_one(mended, size);
    free(mended);
    return 0;
}
