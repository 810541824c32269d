/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One call of web.h from the command line, for the tests in Python:
 *   store_driver URL list
 *   store_driver URL read NAME OFF N     bytes on stdout
 *   store_driver URL put NAME PATH [fresh]
 *   store_driver URL stat NAME           "same" or "other"
 *   store_driver URL bench NAME THREADS  GB/s of 8 MiB ranges
 * Options from the environment: STORE_ENDPOINT, STORE_REGION, STORE_KEY,
 * STORE_SECRET, STORE_TRIES, STORE_TIMEOUT_MS. Last line on stderr: statistics.
 * Exit status: minus the moec_status.
 */

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/base.h"
#include "web.h"

#define RANGE (UINT64_C(8) << 20)

static uint32_t number(const char *name)
{
    const char *v = getenv(name);

    return v ? (uint32_t)strtoul(v, NULL, 10) : 0;
}

typedef struct bench {
    const moec_store *s;
    size_t file;
    unsigned char *data[64];
} bench;

static moec_status bench_range(void *ctx, size_t item, uint32_t worker,
                               moec_error *err)
{
    bench *b = ctx;
    uint64_t off = item * RANGE, bytes = b->s->files[b->file].bytes;

    return b->s->read_at(b->s->ctx, b->file, off, b->data[worker],
                         (size_t)moec_min_u64(RANGE, bytes - off), err);
}

static moec_status run_bench(const moec_store *s, size_t file, uint32_t threads,
                             moec_error *err)
{
    bench b = {.s = s, .file = file};
    struct timespec t0, t1;
    moec_status st;

    for (uint32_t i = 0; i < threads; i++)
        b.data[i] = malloc(RANGE);
    clock_gettime(CLOCK_MONOTONIC, &t0);
    st = moec_parallel(threads,
                       (size_t)moec_ceil_div(s->files[file].bytes, RANGE),
                       bench_range, &b, err);
    clock_gettime(CLOCK_MONOTONIC, &t1);
    printf("%.3f GB/s\n", (double)s->files[file].bytes / 1e9 /
                              ((double)(t1.tv_sec - t0.tv_sec) +
                               1e-9 * (double)(t1.tv_nsec - t0.tv_nsec)));
    for (uint32_t i = 0; i < threads; i++)
        free(b.data[i]);
    return st;
}

static moec_status run_read(const moec_store *s, size_t file, char **argv,
                            moec_error *err)
{
    size_t n = strtoull(argv[5], NULL, 10);
    unsigned char *buf = malloc(n + 1);
    moec_status st =
        s->read_at(s->ctx, file, strtoull(argv[4], NULL, 10), buf, n, err);

    if (st == MOEC_OK)
        fwrite(buf, 1, n, stdout);
    free(buf);
    return st;
}

static moec_status run(moec_web *r, int argc, char **argv, moec_error *err)
{
    const moec_store *s = moec_web_store(r);
    size_t file = argc > 3 ? moec_web_find(r, argv[3]) : 0;

    if (strcmp(argv[2], "put") == 0)
        return moec_web_put(r, argv[3], argv[4], NULL, argc > 5, err);
    if (strcmp(argv[2], "list") == 0) {
        for (size_t i = 0; i < s->n_files; i++)
            printf("%s %llu %s\n", s->files[i].name,
                   (unsigned long long)s->files[i].bytes,
                   s->files[i].etag ? s->files[i].etag : "-");
        return MOEC_OK;
    }
    if (file == SIZE_MAX)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE, "no %s", argv[3]);
    if (strcmp(argv[2], "read") == 0)
        return run_read(s, file, argv, err);
    if (strcmp(argv[2], "bench") == 0)
        return run_bench(s, file, (uint32_t)strtoul(argv[4], NULL, 10), err);
    moec_store_file now;
    moec_status st = s->stat(s->ctx, file, &now, err);
    if (st == MOEC_OK)
        puts(now.bytes == s->files[file].bytes &&
                     (!now.etag || strcmp(now.etag, s->files[file].etag) == 0)
                 ? "same"
                 : "other");
    return st;
}

int main(int argc, char **argv)
{
    moec_web_opts opts = {.endpoint = getenv("STORE_ENDPOINT"),
                          .region = getenv("STORE_REGION"),
                          .key_id = getenv("STORE_KEY"),
                          .secret = getenv("STORE_SECRET"),
                          .tries = number("STORE_TRIES"),
                          .timeout_ms = number("STORE_TIMEOUT_MS"),
                          .wait_ms = 5};
    moec_error err = MOEC_ERROR_INIT;
    moec_web *r = NULL;
    moec_status st;

    if (argc < 3)
        return 64;
    st = strcmp(argv[2], "put") == 0 ? moec_web_create(&r, argv[1], &opts, &err)
                                     : moec_web_open(&r, argv[1], &opts, &err);
    if (st == MOEC_OK)
        st = run(r, argc, argv, &err);
    if (st != MOEC_OK)
        fprintf(stderr, "%s\n", err.text);
    if (r) {
        moec_web_stats n = moec_web_stats_of(r);
        fprintf(stderr, "requests %llu retries %llu read %llu written %llu\n",
                (unsigned long long)n.n_requests,
                (unsigned long long)n.n_retries,
                (unsigned long long)n.bytes_read,
                (unsigned long long)n.bytes_written);
    }
    moec_web_close(r);
    return -(int)st;
}
