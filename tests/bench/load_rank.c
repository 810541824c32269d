/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One expert-parallel rank into stacked tensors, as peers/load_rank.py does it
 * with other programs: the clock starts with the directory's name and stops
 * when every byte is in its slot; the destination is touched before.
 *
 *   load_rank DIR --rank R --ep W [--verify none|xxh3|sha256] [--threads N]
 *             [--no-direct] [--no-uring] [--repeat N] [--cold]
 *   load_rank --sha256     our SHA-256 of leaves in memory, on all CPUs
 *
 * DIR is a checkpoint or a conversion (--ep is then what it was made for).
 * --cold evicts the directory's data files before each repetition. One JSON
 * line; with --repeat the fastest run's. crc32 is over w13, w2 and their
 * scales, layer by layer, without padding.
 */

#include <dirent.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <moec/load.h>

#include "converted.h"

typedef struct setting {
    const char *dir;
    uint32_t rank, ep, n_threads;
    moec_load_verify verify;
    int no_direct, no_uring, repeat, cold;
} setting;

typedef struct open_load {
    moec_families *families;
    moec_ckpt *ckpt;
    moec_conversion *conversion;
    moec_model *model;
    moec_plan *plan; /* ours */
    moec_job *job;
} open_load;

typedef struct arena {
    unsigned char *p;
    uint64_t bytes;
} arena;

static double now(void)
{
    struct timespec t;

    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static moec_status give(void *ctx, const moec_memory_request *want, void **out,
                        moec_error *err)
{
    const arena *a = ctx;

    (void)err;
    *out = a->p;
    return want->bytes <= a->bytes ? MOEC_OK : MOEC_E_NOMEM;
}

static void close_load(open_load *l)
{
    moec_job_destroy(l->job);
    moec_plan_destroy(l->plan);
    moec_model_destroy(l->model);
    moec_conversion_close(l->conversion);
    moec_ckpt_close(l->ckpt);
    moec_families_destroy(l->families);
    *l = (open_load){NULL};
}

/* From the directory's name to a job that could start. */
static moec_status open_load_of(open_load *l, const setting *s, arena *a,
                                moec_error *err)
{
    moec_ckpt_opts co = MOEC_CKPT_OPTS_INIT;
    moec_plan_opts po = MOEC_PLAN_OPTS_INIT;
    moec_job_opts jo = MOEC_JOB_OPTS_INIT;
    char manifest[4200];
    moec_status st = moec_families_create(&l->families, err);

    (void)snprintf(manifest, sizeof(manifest), "%s/manifest.json", s->dir);
    if (st == MOEC_OK && access(manifest, R_OK) == 0) {
        st = moec_conversion_open(&l->conversion, s->dir, l->families, err);
    } else if (st == MOEC_OK) {
        st = moec_ckpt_open(&l->ckpt, s->dir, &co, err);
        if (st == MOEC_OK)
            st = moec_model_open(&l->model, l->ckpt, l->families, err);
        po.n_ranks = s->ep;
        if (st == MOEC_OK)
            st = moec_plan_create(&l->plan, l->model, &po, err);
    }
    jo.n_threads = s->n_threads;
    jo.verify = s->verify;
    jo.no_direct = (uint8_t)s->no_direct;
    jo.no_uring = (uint8_t)s->no_uring;
    jo.memory = give;
    jo.ctx = a;
    if (st == MOEC_OK)
        st =
            moec_job_create(&l->job, l->plan, l->conversion, s->rank, &jo, err);
    return st;
}

/* A destination that a server would have: huge pages, touched. */
static int make_arena(arena *a, uint64_t bytes)
{
    void *p = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (p == MAP_FAILED)
        return -1;
    (void)madvise(p, (size_t)bytes, MADV_HUGEPAGE);
    memset(p, 1, (size_t)bytes);
    *a = (arena){p, bytes};
    return 0;
}

static void evict(const char *dir)
{
    DIR *d = opendir(dir);
    struct dirent *f;

    while (d != NULL && (f = readdir(d)) != NULL) {
        size_t n = strlen(f->d_name);
        int fd;

        if (n < 12 || strcmp(f->d_name + n - 12, ".safetensors") != 0)
            continue;
        fd = openat(dirfd(d), f->d_name, O_RDONLY | O_CLOEXEC);
        if (fd >= 0) {
            (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
            (void)close(fd);
        }
    }
    if (d != NULL)
        (void)closedir(d);
}

/* A number behind `key` in a small file of /proc. */
static uint64_t proc_number(const char *path, const char *key)
{
    FILE *f = fopen(path, "re");
    unsigned long long v = 0;
    char line[256];

    while (f != NULL && fgets(line, sizeof(line), f) != NULL)
        if (strncmp(line, key, strlen(key)) == 0)
            v = strtoull(line + strlen(key), NULL, 10);
    if (f != NULL)
        (void)fclose(f);
    return v;
}

/* --------------------------------------------------------------- CRC-32 */

static uint32_t table[8][256];

static void make_table(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int k = 0; k < 8; k++)
            c = c & 1 ? 0xedb88320u ^ c >> 1 : c >> 1;
        table[0][i] = c;
    }
    for (uint32_t i = 0; i < 256; i++)
        for (int k = 1; k < 8; k++)
            table[k][i] =
                table[k - 1][i] >> 8 ^ table[0][table[k - 1][i] & 255];
}

static uint32_t crc32_of(uint32_t crc, const unsigned char *p, uint64_t n)
{
    crc = ~crc;
    for (; n >= 8; n -= 8, p += 8) {
        crc ^= (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 |
               (uint32_t)p[3] << 24;
        crc = table[7][crc & 255] ^ table[6][crc >> 8 & 255] ^
              table[5][crc >> 16 & 255] ^ table[4][crc >> 24] ^ table[3][p[4]] ^
              table[2][p[5]] ^ table[1][p[6]] ^ table[0][p[7]];
    }
    for (; n > 0; n--, p++)
        crc = crc >> 8 ^ table[0][(crc ^ *p) & 255];
    return ~crc;
}

static uint32_t crc_of(const moec_job *job)
{
    static const char *const kinds[] = {"w13_weight", "w2_weight",
                                        "w13_weight_scale_inv",
                                        "w2_weight_scale_inv"};
    const moec_plan *plan = moec_job_plan(job);
    uint32_t crc = 0;

    make_table();
    for (size_t layer = 0; layer < moec_plan_n_layers(plan); layer++)
        for (size_t k = 0; k < 4; k++)
            for (size_t t = 0; t < moec_plan_n_slot_tensors(plan, layer); t++) {
                moec_slot_tensor s;
                const char *dot;

                if (moec_job_slot_tensor(job, layer, t, &s, NULL) != MOEC_OK)
                    continue;
                dot = strrchr(s.name, '.');
                if (dot != NULL && strcmp(dot + 1, kinds[k]) == 0)
                    crc = crc32_of(crc, moec_job_slots_data(job, layer, t),
                                   s.shape[0] * s.slot_bytes);
            }
    return crc;
}

/* ----------------------------------------------------------------- runs */

static int say(const moec_error *err)
{
    (void)fprintf(stderr, "load_rank: %s\n", err->text);
    return 1;
}

static int run(const setting *s)
{
    open_load l = {NULL};
    moec_error err = MOEC_ERROR_INIT;
    moec_job_stats best = {0}, stats;
    arena a = {NULL, UINT64_MAX};
    double least = 1e30, open_s = 0;
    uint64_t before_rss, read_bytes = 0;
    uint32_t crc = 0;

    if (open_load_of(&l, s, &a, &err) != MOEC_OK)
        return say(&err);
    if (make_arena(&a, moec_job_arena_bytes(l.job)) != 0)
        return 1;
    close_load(&l);
    before_rss = proc_number("/proc/self/status", "VmRSS:") * 1024;
    for (int i = 0; i < s->repeat; i++) {
        uint64_t read0 = proc_number("/proc/self/io", "read_bytes: ");
        double t, opened;

        if (s->cold)
            evict(s->dir);
        t = now();
        if (open_load_of(&l, s, &a, &err) != MOEC_OK)
            return say(&err);
        opened = now() - t;
        if (moec_job_start(l.job, &err) != MOEC_OK ||
            moec_job_wait(l.job, &err) != MOEC_OK)
            return say(&err);
        t = now() - t;
        moec_job_poll(l.job, &stats);
        if (t < least) {
            least = t;
            open_s = opened;
            best = stats;
            read_bytes = proc_number("/proc/self/io", "read_bytes: ") - read0;
        }
        if (i + 1 == s->repeat)
            crc = crc_of(l.job);
        close_load(&l);
    }
    (void)printf(
        "{\"seconds\": %.4f, \"crc32\": \"%08x\", \"read_bytes\": %llu, "
        "\"peak_rss\": %llu, \"beyond_destination\": %llu, "
        "\"bytes_needed\": %llu, \"asked\": %llu, \"verified\": %llu, "
        "\"open_seconds\": %.4f, \"first_layer_seconds\": %.4f, "
        "\"digest_seconds\": %.4f, \"uring\": %d, \"direct\": %d}\n",
        least, crc, (unsigned long long)read_bytes,
        (unsigned long long)proc_number("/proc/self/status", "VmHWM:") * 1024,
        (unsigned long long)(proc_number("/proc/self/status", "VmHWM:") * 1024 -
                             before_rss),
        (unsigned long long)best.bytes_needed,
        (unsigned long long)best.bytes_read,
        (unsigned long long)best.bytes_verified, open_s,
        open_s + best.seconds_first, best.seconds_digest, best.uses_uring,
        best.uses_direct);
    return 0;
}

static int usage(void)
{
    (void)fprintf(stderr,
                  "load_rank DIR --rank R --ep W [--verify none|xxh3|sha256] "
                  "[--threads N] [--no-direct] [--no-uring] [--repeat N] "
                  "[--cold] | --sha256\n");
    return 2;
}

/* --------------------------------------------------------------- SHA-256 */

#define PAIRS      256u
#define PAIR_BYTES (2 * MOEC_LEAF_BYTES)

static moec_status digest_pair(void *ctx, size_t i, uint32_t worker,
                               moec_error *err)
{
    moec_sha256 out[2];

    (void)worker;
    return moec_sha256_leaves((const unsigned char *)ctx + i * PAIR_BYTES,
                              PAIR_BYTES, MOEC_LEAF_BYTES, out, err);
}

/* What a load with digests is measured against. */
static int sha256_rate(void)
{
    moec_error err = MOEC_ERROR_INIT;
    double least = 1e30;
    arena a;

    if (make_arena(&a, PAIRS * PAIR_BYTES) != 0)
        return 1;
    for (int i = 0; i < 3; i++) {
        double t = now();

        if (moec_parallel(0, PAIRS, digest_pair, a.p, &err) != MOEC_OK)
            return say(&err);
        t = now() - t;
        least = t < least ? t : least;
    }
    (void)printf("{\"figure\": \"sha256\", \"bytes\": %llu, "
                 "\"seconds\": %.4f}\n",
                 (unsigned long long)(PAIRS * PAIR_BYTES), least);
    return 0;
}

int main(int argc, char **argv)
{
    setting s = {.repeat = 1};

    if (argc == 2 && strcmp(argv[1], "--sha256") == 0)
        return sha256_rate();
    for (int i = 1; i < argc; i++) {
        const char *v = i + 1 < argc ? argv[i + 1] : NULL;

        if (strcmp(argv[i], "--cold") == 0)
            s.cold = 1;
        else if (strcmp(argv[i], "--no-direct") == 0)
            s.no_direct = 1;
        else if (strcmp(argv[i], "--no-uring") == 0)
            s.no_uring = 1;
        else if (argv[i][0] != '-' && s.dir == NULL)
            s.dir = argv[i];
        else if (v == NULL)
            return usage();
        else if (strcmp(argv[i], "--verify") == 0)
            s.verify = strcmp(argv[++i], "none") == 0 ? MOEC_LOAD_VERIFY_NONE
                       : strcmp(argv[i], "sha256") == 0
                           ? MOEC_LOAD_VERIFY_SHA256
                           : MOEC_LOAD_VERIFY_XXH3;
        else if (strcmp(argv[i], "--rank") == 0)
            s.rank = (uint32_t)strtoul(argv[++i], NULL, 10);
        else if (strcmp(argv[i], "--ep") == 0)
            s.ep = (uint32_t)strtoul(argv[++i], NULL, 10);
        else if (strcmp(argv[i], "--threads") == 0)
            s.n_threads = (uint32_t)strtoul(argv[++i], NULL, 10);
        else if (strcmp(argv[i], "--repeat") == 0)
            s.repeat = (int)strtol(argv[++i], NULL, 10);
        else
            return usage();
    }
    return s.dir == NULL || s.ep == 0 || s.repeat < 1 ? usage() : run(&s);
}
