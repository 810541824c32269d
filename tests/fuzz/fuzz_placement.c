/* SPDX-License-Identifier: Apache-2.0
 *
 * Placement files of every engine, by themselves and for a model: any bytes
 * are refused, or are a placement that each form takes and gives back. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "placement.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MUST(x)                                                                \
  do {                                                                         \
    if (!(x))                                                                  \
      abort();                                                                 \
  } while (0)

/* The model of fixtures/corpora/placement. */
static const moec_layer_key keys[] = {
    {MOEC_SPACE_MAIN, 1}, {MOEC_SPACE_MAIN, 2}, {MOEC_SPACE_MTP, 0}};
static const moec_placement_target model = {.struct_bytes =
                                                sizeof(moec_placement_target),
                                            .n_experts = 16,
                                            .n_layers = 3,
                                            .keys = keys,
                                            .n_keys = 3};

static void check_rows(const moec_placement *p)
{
    uint32_t n = moec_placement_n_physical(p), E = moec_placement_n_experts(p);

    MUST(n >= E && E > 0 && moec_placement_n_layers(p) > 0);
    for (uint32_t i = 0; i < moec_placement_n_layers(p); i++) {
        for (uint32_t k = 0; k < n; k++)
            MUST(moec_placement_row(p, i)[k] >= 0 &&
                 moec_placement_row(p, i)[k] < (int64_t)E);
    }
}

/* Written as `form` and read for the same layers it is the same. */
static void check_form(const moec_placement_file *f, moec_placement_form form)
{
    const moec_placement *p = moec_placement_file_placement(f), *q;
    uint32_t n = moec_placement_n_layers(p), P = moec_placement_n_physical(p);
    moec_placement_write_opts o = MOEC_PLACEMENT_WRITE_OPTS_INIT;
    moec_placement_target t = MOEC_PLACEMENT_TARGET_INIT;
    moec_layer_key *of = calloc(n, sizeof(*of));
    moec_placement_file *again = NULL;
    void *text = NULL;
    size_t bytes;

    MUST(of);
    for (uint32_t i = 0; i < n; i++)
        of[i] = moec_placement_file_key(f, i);
    o.form = form;
    o.keys = t.keys = of;
    o.n_ranks = 1;
    o.replica = moec_placement_file_replica(f);
    t.n_keys = n;
    t.n_experts = moec_placement_n_experts(p);
    /* Refused: layers far apart, rows all of trivial MTP layers. */
    if (moec_placement_write(p, &o, &text, &bytes, NULL) == MOEC_OK) {
        MUST(moec_placement_file_read(&again, &t, "again", text, bytes, NULL) ==
             MOEC_OK);
        q = moec_placement_file_placement(again);
        MUST(moec_placement_n_physical(q) == P);
        for (uint32_t i = 0; i < n; i++)
            MUST(memcmp(moec_placement_row(p, i), moec_placement_row(q, i),
                        P * sizeof(int32_t)) == 0);
    }
    moec_placement_file_close(again);
    free(text);
    free(of);
}

static void check_one(const moec_placement_target *t, const uint8_t *data,
                      size_t size)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_placement_file *f = NULL;

    if (moec_placement_file_read(&f, t, "p", (const char *)data, size, &err)) {
        MUST(f == NULL && err.text[0] != '\0');
        MUST(err.status == MOEC_E_FORMAT || err.status == MOEC_E_MAPPING ||
             err.status == MOEC_E_UNSUPPORTED || err.status == MOEC_E_NOMEM);
        return;
    }
    check_rows(moec_placement_file_placement(f));
    check_form(f, MOEC_PLACEMENT_SGLANG);
    check_form(f, MOEC_PLACEMENT_TRTLLM);
    check_form(f, MOEC_PLACEMENT_VLLM_ASCEND);
    check_form(f, MOEC_PLACEMENT_EPLB);
    check_form(f, MOEC_PLACEMENT_LOG2PHY);
    moec_placement_file_close(f);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    check_one(&model, data, size);
    check_one(NULL, data, size);
    return 0;
}
