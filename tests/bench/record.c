/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rows a second that a recorder takes: a row is one token of one layer, K = 8
 * of 256 experts, 58 layers. Every thread appends passes of its own requests,
 * as data-parallel ranks do; then the same with decode batches, where every
 * row of a call belongs to another request.
 *
 *   record [threads] [tokens of a pass] [passes]
 */

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <moec/record.h>

#define LAYERS  58u
#define K       8u
#define EXPERTS 256u

typedef struct job {
    moec_recorder *r;
    uint32_t number, n_tokens, n_passes;
    int decode;
    int failed;
} job;

static double now(clockid_t clock)
{
    struct timespec t;

    (void)clock_gettime(clock, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void *work(void *arg)
{
    job *j = arg;
    moec_route_key *keys = calloc(j->n_tokens, sizeof(*keys));
    int32_t *ids = calloc((size_t)j->n_tokens * K, sizeof(*ids));
    char name[32];

    j->failed = !keys || !ids;
    for (uint32_t t = 0; t < j->n_tokens && !j->failed; t++) {
        (void)snprintf(name, sizeof(name), "%u-%u", j->number,
                       j->decode ? t : 0);
        j->failed |= moec_recorder_request(j->r, name, 0, &keys[t].request,
                                           NULL) != MOEC_OK;
        for (uint32_t c = 0; c < K; c++)
            ids[t * K + c] = (int32_t)((t * 37 + c * 29) % EXPERTS);
    }
    for (uint32_t p = 0; p < j->n_passes && !j->failed; p++) {
        for (uint32_t t = 0; t < j->n_tokens; t++)
            keys[t].position = j->decode ? p : p * j->n_tokens + t;
        for (uint32_t l = 0; l < LAYERS; l++)
            j->failed |= moec_recorder_append(j->r, l, keys, ids, 0,
                                              j->n_tokens, NULL) != MOEC_OK;
    }
    free(keys);
    free(ids);
    return NULL;
}

static int run(uint32_t n_threads, uint32_t n_tokens, uint32_t n_passes,
               int decode)
{
    moec_recorder_opts o = MOEC_RECORDER_OPTS_INIT;
    moec_layer_key keys[LAYERS];
    moec_recorder *r = NULL;
    moec_routes *out = NULL;
    moec_error err = MOEC_ERROR_INIT;
    pthread_t threads[64];
    job jobs[64];
    double begin, end, cpu;
    uint64_t rows;
    int bad = 0;

    for (uint32_t l = 0; l < LAYERS; l++)
        keys[l] = (moec_layer_key){MOEC_SPACE_MAIN, l + 3};
    o.shape.n_experts = EXPERTS;
    o.shape.top_k = K;
    o.shape.n_layers = LAYERS;
    o.shape.keys = keys;
    if (moec_recorder_start(&r, &o, NULL) != MOEC_OK)
        return 1;
    begin = now(CLOCK_MONOTONIC);
    cpu = now(CLOCK_PROCESS_CPUTIME_ID);
    for (uint32_t i = 0; i < n_threads; i++) {
        jobs[i] = (job){r, i, n_tokens, n_passes, decode, 0};
        bad |= pthread_create(&threads[i], NULL, work, &jobs[i]) != 0;
    }
    for (uint32_t i = 0; i < n_threads && !bad; i++) {
        bad |= pthread_join(threads[i], NULL) != 0;
        bad |= jobs[i].failed;
    }
    end = now(CLOCK_MONOTONIC);
    cpu = now(CLOCK_PROCESS_CPUTIME_ID) - cpu;
    rows = moec_recorder_stats_of(r).rows;
    /* The second figure is what a machine that others use can say. */
    printf("%-8s %u threads, passes of %u tokens: %.1f million rows/s, %.1f "
           "per CPU second",
           decode ? "decode" : "prefill", n_threads, n_tokens,
           (double)rows / (end - begin) * 1e-6, (double)rows / cpu * 1e-6);
    begin = now(CLOCK_MONOTONIC);
    if (moec_recorder_stop(r, &out, &err) != MOEC_OK) {
        (void)fprintf(stderr, "%s\n", err.text);
        bad = 1;
    } else {
        bad |= moec_routes_n_tokens(out) * LAYERS != rows;
        printf(", stop %.1f million rows/s, %s\n",
               (double)rows / (now(CLOCK_MONOTONIC) - begin) * 1e-6,
               bad ? "ROWS LOST" : "none lost");
    }
    moec_routes_destroy(out);
    moec_recorder_destroy(r);
    return bad;
}

int main(int argc, char **argv)
{
    uint32_t n_threads = argc > 1 ? (uint32_t)atoi(argv[1]) : 2;
    uint32_t n_tokens = argc > 2 ? (uint32_t)atoi(argv[2]) : 4096;
    uint32_t n_passes = argc > 3 ? (uint32_t)atoi(argv[3]) : 16;
    int bad;

    if (n_threads == 0 || n_threads > 64 || n_tokens == 0)
        return 2;
    bad = run(n_threads, n_tokens, n_passes, 0);
    bad |= run(n_threads, n_tokens, n_passes, 1);
    return bad;
}
