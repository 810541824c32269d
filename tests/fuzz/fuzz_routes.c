/* SPDX-License-Identifier: Apache-2.0
 *
 * Recorded routes. The first byte says how the rest is read: as our file, or
 * as SGLang's or vLLM's form into a recorder. Any bytes are refused, or give a
 * recording that can be followed without a check, merged with itself, and
 * whose exports come back the same. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <moec/record.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MUST(x)                                                                \
  do {                                                                         \
    if (!(x))                                                                  \
      abort();                                                                 \
  } while (0)

static const moec_layer_key keys[] = {{MOEC_SPACE_MAIN, 1},
                                      {MOEC_SPACE_MAIN, 2}};

/* Reads through every index that the recording holds. */
static void follow(const moec_routes *r)
{
    const moec_routes_shape *s = moec_routes_shape_get(r);
    uint64_t tokens = 0;
    int32_t ids[64];

    for (uint64_t i = 0; i < moec_routes_n_requests(r); i++) {
        moec_routes_request q = moec_routes_get_request(r, i);

        MUST(q.first_token == tokens && strlen(q.id) > 0);
        tokens += q.n_tokens;
        for (uint64_t t = 1; t < q.n_tokens; t++)
            MUST(moec_routes_positions(r)[q.first_token + t] >
                 moec_routes_positions(r)[q.first_token + t - 1]);
        for (uint64_t g = 0; g < q.n_gaps; g++)
            MUST(q.gaps[g].first < q.gaps[g].end);
    }
    MUST(tokens == moec_routes_n_tokens(r));
    for (uint64_t t = 0; t < tokens; t++)
        for (uint32_t l = 0; l < s->n_layers; l++) {
            moec_routes_ids(r, t, 1, l, ids);
            for (uint32_t k = 0; k < s->top_k; k++)
                MUST(ids[k] >= -1 &&
                     ids[k] < (int32_t)(s->n_experts + s->n_zero));
        }
}

static void merge_with_itself(const moec_routes *r)
{
    const moec_routes *in[2] = {r, r};
    moec_routes *out = NULL;

    MUST(moec_routes_merge(&out, in, 2, NULL) == MOEC_OK);
    MUST(moec_routes_n_requests(out) == moec_routes_n_requests(r));
    MUST(moec_routes_n_tokens(out) == moec_routes_n_tokens(r));
    follow(out);
    moec_routes_destroy(out);
}

static moec_recorder *start(void)
{
    moec_recorder_opts o = MOEC_RECORDER_OPTS_INIT;
    moec_recorder *r = NULL;

    o.shape.n_experts = 256;
    o.shape.top_k = 2;
    o.shape.n_layers = 2;
    o.shape.n_decoder = 3;
    o.shape.keys = keys;
    o.max_bytes = 1 << 24;
    MUST(moec_recorder_start(&r, &o, NULL) == MOEC_OK);
    return r;
}

static void imported(const uint8_t *data, size_t size, int vllm)
{
    moec_routes_import_opts o = MOEC_ROUTES_IMPORT_OPTS_INIT;
    moec_recorder *r = start();
    moec_routes *out = NULL;
    moec_status st =
        vllm ? moec_routes_import_vllm(r, &o, "f", data, size, NULL)
             : moec_routes_import_sglang(r, &o, "f", data, size, NULL);

    if (st == MOEC_OK && moec_recorder_stop(r, &out, NULL) == MOEC_OK) {
        char *text = NULL;
        size_t n = 0;

        follow(out);
        if (moec_routes_n_requests(out) > 0 &&
            moec_routes_export_sglang(out, 0, &text, &n, NULL) == MOEC_OK)
            MUST(strlen(text) == n);
        free(text);
    }
    moec_routes_destroy(out);
    moec_recorder_destroy(r);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_routes *r = NULL;

    if (size == 0)
        return 0;
    if (data[0] == 'S' || data[0] == 'V') {
        imported(data + 1, size - 1, data[0] == 'V');
        return 0;
    }
    if (moec_routes_parse(&r, data + 1, size - 1, "f", &err) != MOEC_OK) {
        MUST(err.status == MOEC_E_FORMAT || err.status == MOEC_E_NOMEM);
        return 0;
    }
    follow(r);
    merge_with_itself(r);
    moec_routes_destroy(r);
    return 0;
}
