/* SPDX-License-Identifier: Apache-2.0
 *
 * manifest.json: any bytes are refused, or decode to a manifest whose text
 * decodes to a manifest of the same text. */

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

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_manifest m = {0}, again = {0};
    moec_buf text = {0}, text_again = {0};

    if (moec_manifest_decode(&m, (const char *)data, size, &err) != MOEC_OK) {
        MUST(err.status == MOEC_E_FORMAT && err.rule != MOEC_RULE_NONE);
        return 0;
    }
    MUST((uint64_t)m.n_local * m.n_ranks == m.n_physical);
    MUST(m.n_physical >= m.n_experts && m.n_mf_layers > 0);
    for (size_t i = 0; m.p2l && i < m.n_mf_layers * m.n_physical; i++)
        MUST(m.p2l[i] >= -1 && m.p2l[i] < (int64_t)m.n_experts);
    MUST(moec_manifest_encode(&m, &text, NULL) == MOEC_OK);
    MUST(moec_manifest_decode(&again, text.data, text.len, NULL) == MOEC_OK);
    MUST(moec_manifest_encode(&again, &text_again, NULL) == MOEC_OK);
    MUST(text.len == text_again.len &&
         memcmp(text.data, text_again.data, text.len) == 0);
    moec_buf_fini(&text_again);
    moec_buf_fini(&text);
    moec_manifest_fini(&again);
    moec_manifest_fini(&m);
    return 0;
}
