/* SPDX-License-Identifier: Apache-2.0
 *
 * slots.bin: any bytes are refused, or decode to a table that can be followed
 * without a check and that encodes to these very bytes. */

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

/* Reads through every index and range that the table holds. */
static uint64_t follow(const moec_slots *s)
{
    uint64_t sum = 0;

    for (size_t i = 0; i < s->n_tensors; i++) {
        const moec_ct_tensor *t = &s->tensors[i];

        sum += strlen(s->files[t->file].name) + strlen(t->name);
        MUST(t->off + t->bytes <= s->files[t->file].bytes);
        for (uint32_t k = 0; k < t->n_slots; k++) {
            const moec_ct_slot *slot = &s->slots[t->first_slot + k];

            for (uint32_t leaf = 0; leaf < slot->n_leaves; leaf++)
                sum += s->leaves[slot->first_leaf + leaf].sha256.b[0];
        }
    }
    return sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    moec_error err = MOEC_ERROR_INIT;
    volatile uint64_t sum;
    moec_slots s = {0};
    moec_buf out = {0};

    if (moec_slots_decode(&s, data, size, &err) != MOEC_OK) {
        MUST(err.status == MOEC_E_FORMAT && err.rule == MOEC_RULE_M03);
        return 0;
    }
    sum = follow(&s);
    (void)sum;
    MUST(moec_slots_encode(&s, &out, NULL) == MOEC_OK);
    MUST(out.len == size && memcmp(out.data, data, size) == 0);
    moec_buf_fini(&out);
    moec_slots_fini(&s);
    return 0;
}
