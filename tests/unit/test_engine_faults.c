/* SPDX-License-Identifier: Apache-2.0
 *
 * What the engine says when something is wrong: files, digests, callbacks,
 * memory, the kernel. And what it does for a sink that is not host memory. */

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine.h"
#include "late_sink.h"
#include "threads_left.h"
#include "tmpdir.h"

#define MIB      ((size_t)1 << 20)
#define N_BYTES  (6 * MIB + 777)
#define N_PIECES 3u /* of 2 MiB, the last one longer */

typedef struct bench {
    tmpdir dir;
    char path[600];
    unsigned char *content, *to;
    moec_leaf leaves[8];
    moec_engine_file file;
    moec_piece p[N_PIECES]; /* piece i is group i */
    uint32_t n_told;
    moec_status answer; /* of `ready`, from group 1 on */
    uint32_t n_read_at;
    uint32_t fail_from; /* call of read_at; 0: never */
    atomic_bool held;   /* read_at begins and does not end */
} bench;

static int set_up(void **state)
{
    bench *b = calloc(1, sizeof(*b));
    moec_error err = MOEC_ERROR_INIT;
    int fd;

    assert_non_null(b);
    b->dir = tmpdir_make();
    snprintf(b->path, sizeof(b->path), "%s/f", b->dir.path);
    b->content = malloc(N_BYTES);
    b->to = aligned_alloc(4096, 8 * MIB);
    assert_non_null(b->content);
    assert_non_null(b->to);
    for (size_t i = 0; i < N_BYTES; i++)
        b->content[i] = (unsigned char)(i * 31 + (i >> 12));
    fd = open(b->path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, b->content, N_BYTES), N_BYTES);
    assert_int_equal(fsync(fd), 0);
    b->file = (moec_engine_file){"f.safetensors", b->path, fd, N_BYTES};
    for (size_t i = 0, k; i * MIB < N_BYTES; i++) {
        k = N_BYTES - i * MIB < MIB ? N_BYTES - i * MIB : MIB;
        b->leaves[i].xxh128 = moec_xxh128_of(b->content + i * MIB, k);
        assert_int_equal(
            moec_sha256_of(b->content + i * MIB, k, &b->leaves[i].sha256, &err),
            MOEC_OK);
    }
    for (uint32_t i = 0; i < N_PIECES; i++)
        b->p[i] = (moec_piece){
            .group = i,
            .off = 2 * i * MIB,
            .dst = b->to + 2 * i * MIB,
            .elem_bytes = 1,
            .n_rows = 1,
            .n_cols = i + 1 < N_PIECES ? 2 * MIB : N_BYTES - 2 * i * MIB,
            .src_col = 1,
            .dst_col = 1,
            .leaves = &b->leaves[2 * i],
            .tag = 70 + i};
    *state = b;
    return 0;
}

static int tear_down(void **state)
{
    bench *b = *state;

    close(b->file.fd);
    tmpdir_remove(&b->dir);
    free(b->content);
    free(b->to);
    free(b);
    return 0;
}

static moec_status hear(void *ctx, uint32_t group, uint64_t ticket,
                        moec_error *err)
{
    bench *b = ctx;

    (void)ticket;
    assert_int_equal(group, b->n_told);
    b->n_told++;
    if (group >= 1 && b->answer != MOEC_OK)
        return moec_fail(err, b->answer, MOEC_RULE_NONE, "no room for it");
    return MOEC_OK;
}

static void name(void *ctx, const moec_piece *p, char *buf, size_t n)
{
    (void)ctx;
    snprintf(buf, n, "layer %u slot 5", p->tag);
}

static moec_status read_at(void *ctx, uint32_t file, uint64_t off, void *to,
                           size_t n, moec_error *err)
{
    bench *b = ctx;
    uint32_t call = __atomic_add_fetch(&b->n_read_at, 1, __ATOMIC_RELAXED);

    assert_int_equal(file, 0);
    assert_true(off + n <= N_BYTES);
    if (b->fail_from != 0 && call >= b->fail_from)
        return moec_fail_os(err, EIO, "bucket/f");
    while (atomic_load(&b->held))
        usleep(1000);
    memcpy(to, b->content + off, n);
    return MOEC_OK;
}

static moec_engine_opts usual(bench *b)
{
    moec_engine_opts o = {.n_threads = 2,
                          .verify = MOEC_ENGINE_XXH3,
                          .read_at = read_at,
                          .read_ctx = b,
                          .ready = hear,
                          .describe = name,
                          .ctx = b};

    memset(b->to, 0x5a, 8 * MIB);
    b->n_told = 0;
    return o;
}

static moec_status run(bench *b, const moec_engine_opts *o, moec_error *err)
{
    moec_engine *e = NULL;
    moec_status st;

    *err = (moec_error)MOEC_ERROR_INIT;
    st = moec_engine_create(&e, &b->file, 1, b->p, N_PIECES, N_PIECES, o, err);
    if (st == MOEC_OK)
        st = moec_engine_start(e, err);
    if (st == MOEC_OK)
        st = moec_engine_wait(e, err);
    assert_int_equal(threads_left(), 0);
    assert_int_equal(err->status, st);
    moec_engine_destroy(e);
    return st;
}

static void evict(const bench *b)
{
    (void)posix_fadvise(b->file.fd, 0, 0, POSIX_FADV_DONTNEED);
}

/* ------------------------------------------------------------- digests */

static void names_the_leaf_that_is_wrong(void **state)
{
    bench *b = *state;
    moec_error err;

    for (int how = 0; how < 8; how++) {
        moec_engine_opts o = usual(b);
        char found[65];

        o.verify = how % 2 != 0 ? MOEC_ENGINE_SHA256 : MOEC_ENGINE_XXH3;
        o.no_uring = how >= 4;
        if (how & 2)
            evict(b);
        b->leaves[3].xxh128.b[0] ^= 1;
        b->leaves[3].sha256.b[31] ^= 1;
        b->p[1].leaf_rule = how & 2 ? MOEC_RULE_M07 : MOEC_RULE_NONE;
        assert_int_equal(run(b, &o, &err), MOEC_E_INTEGRITY);
        assert_int_equal(err.rule, how & 2 ? MOEC_RULE_M07 : MOEC_RULE_T3);
        assert_int_equal(err.file_off, 3 * MIB);
        assert_non_null(strstr(err.text, "f.safetensors: layer 71 slot 5: leaf "
                                         "1, from byte 3145728"));
        b->leaves[3].xxh128.b[0] ^= 1;
        b->leaves[3].sha256.b[31] ^= 1;
        moec_hex(how % 2 != 0 ? b->leaves[3].sha256.b : b->leaves[3].xxh128.b,
                 how % 2 != 0 ? 32 : 16, found);
        assert_non_null(strstr(err.text, found));
        assert_true(b->n_told <= 1);
        o.verify = MOEC_ENGINE_NONE;
        assert_int_equal(run(b, &o, &err), (b->n_told = 0, MOEC_OK));
        assert_memory_equal(b->to, b->content, N_BYTES);
    }
}

static void finds_a_changed_byte(void **state)
{
    bench *b = *state;
    moec_engine_opts o = usual(b);
    unsigned char other = (unsigned char)(b->content[N_BYTES - 1] ^ 4);
    moec_error err;

    assert_int_equal(pwrite(b->file.fd, &other, 1, N_BYTES - 1), 1);
    assert_int_equal(run(b, &o, &err), MOEC_E_INTEGRITY);
    assert_non_null(strstr(err.text, "layer 72 slot 5: leaf 2"));
    assert_true(b->n_told <= 2);
}

static moec_status run_sha256(bench *b, moec_engine_stats *stats,
                              moec_error *err)
{
    moec_engine_opts o = usual(b);
    moec_engine *e = NULL;
    moec_status st;

    b->n_told = 0;
    o.verify = MOEC_ENGINE_SHA256;
    st = moec_engine_create(&e, &b->file, 1, b->p, N_PIECES, N_PIECES, &o, err);
    if (st != MOEC_OK)
        return st;
    st = moec_engine_start(e, err);
    if (st == MOEC_OK)
        st = moec_engine_wait(e, err);
    moec_engine_poll(e, stats);
    moec_engine_destroy(e);
    return st;
}

static void digests_cached_pairs_block_by_block(void **state)
{
    bench *b = *state;
    unsigned char other = (unsigned char)(b->content[3 * MIB] ^ 4);
    moec_error err = MOEC_ERROR_INIT;
    moec_engine_stats stats;
    moec_sha256_pair pair;
    bool cached = moec_io_is_cached(b->file.fd, 0, N_BYTES);

    assert_int_equal(run_sha256(b, &stats, &err), MOEC_OK);
    assert_memory_equal(b->to, b->content, N_BYTES);
    assert_int_equal(stats.bytes_verified, N_BYTES);
    if (cached && moec_sha256_pair_begin(&pair) &&
        moec_io_is_cached(b->file.fd, 0, N_BYTES))
        assert_int_equal(stats.bytes_ahead, 6 * MIB);
    assert_int_equal(pwrite(b->file.fd, &other, 1, 3 * MIB), 1);
    assert_int_equal(run_sha256(b, &stats, &err), MOEC_E_INTEGRITY);
    assert_non_null(strstr(err.text, "layer 71 slot 5: leaf 1"));
}

typedef struct shortener {
    bench *b;
    atomic_bool stop;
    bool ok;
} shortener;

static void *shorten_and_mend(void *arg)
{
    shortener *s = arg;

    for (useconds_t i = 0; s->ok && !atomic_load(&s->stop); i++) {
        s->ok = ftruncate(s->b->file.fd, 5) == 0 &&
                pwrite(s->b->file.fd, s->b->content + 5, N_BYTES - 5, 5) ==
                    (ssize_t)(N_BYTES - 5);
        (void)usleep(i * 37 % 5000); /* some loads begin meanwhile */
    }
    return NULL;
}

/* Pages vanish under the mapping that fetches ahead: a status, no SIGBUS. */
static void lives_with_a_file_that_is_cut_meanwhile(void **state)
{
    bench *b = *state;
    shortener s = {.b = b, .ok = true};
    moec_engine_stats stats;
    pthread_t thread;

    assert_int_equal(pthread_create(&thread, NULL, shorten_and_mend, &s), 0);
    for (int i = 0; i < 300; i++) {
        moec_error err = MOEC_ERROR_INIT;
        moec_status st = run_sha256(b, &stats, &err);

        assert_true(st == MOEC_OK || st == MOEC_E_FORMAT ||
                    st == MOEC_E_INTEGRITY);
    }
    atomic_store(&s.stop, true);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_true(s.ok);
}

/* Two columns of a matrix in the middle of the first piece's leaves: they are
 * checked whole, and what else is in them goes nowhere. */
static void checks_what_only_leaves_want(void **state)
{
    bench *b = *state;
    moec_engine_opts o = usual(b);
    moec_piece *p = &b->p[0];
    unsigned char other = (unsigned char)(b->content[MIB - 1] ^ 8);
    moec_error err;

    memset(b->to, 0, 2 * MIB);
    *p = (moec_piece){.off = 4096 + 100,
                      .dst = b->to,
                      .elem_bytes = 2,
                      .n_rows = MIB / 4096,
                      .n_cols = 2,
                      .src_row = 4096,
                      .src_col = 2,
                      .dst_row = 4,
                      .dst_col = 2,
                      .leaves = b->leaves,
                      .lead = 4096 + 100,
                      .tag = 70};
    p->trail = 2 * MIB - p->off - (p->n_rows - 1) * 4096 - 4;
    assert_int_equal(run(b, &o, &err), MOEC_OK);
    for (size_t r = 0; r < p->n_rows; r++)
        assert_memory_equal(b->to + 4 * r, b->content + p->off + 4096 * r, 4);
    for (size_t i = 4 * p->n_rows; i < 2 * MIB; i++)
        assert_int_equal(b->to[i], 0);
    assert_int_equal(pwrite(b->file.fd, &other, 1, MIB - 1), 1);
    b->n_told = 0;
    assert_int_equal(run(b, &o, &err), MOEC_E_INTEGRITY);
    assert_non_null(strstr(err.text, "layer 70 slot 5: leaf 0, from byte 0"));
    assert_int_equal(b->n_told, 0);
}

/* --------------------------------------------------------------- files */

static void refuses_a_file_that_changed(void **state)
{
    bench *b = *state;
    moec_error err = MOEC_ERROR_INIT;
    struct timespec then[2] = {{.tv_sec = 1}, {.tv_sec = 1}};
    moec_engine_opts o = usual(b);
    moec_engine *e = NULL;

    assert_int_equal(
        moec_engine_create(&e, &b->file, 1, b->p, N_PIECES, 3, &o, &err),
        MOEC_OK);
    assert_int_equal(futimens(b->file.fd, then), 0);
    assert_int_equal(moec_engine_start(e, &err), MOEC_OK);
    assert_int_equal(moec_engine_wait(e, &err), MOEC_E_FORMAT);
    assert_int_equal(err.rule, MOEC_RULE_I13);
    assert_int_equal(b->n_told, 0);
    assert_int_equal(moec_engine_wait(e, NULL), MOEC_E_FORMAT);
    moec_engine_destroy(e);
    b->file.bytes--; /* another size than when the caller opened it */
    b->p[2].n_cols--;
    assert_int_equal(run(b, &o, &err), MOEC_E_FORMAT);
    assert_int_equal(err.rule, MOEC_RULE_I13);
}

static void refuses_a_file_that_ends(void **state)
{
    bench *b = *state;

    for (int how = 0; how < 8; how++) {
        moec_error err = MOEC_ERROR_INIT;
        moec_engine_opts o = usual(b);
        moec_engine *e = NULL;

        o.no_direct = how % 3 == 0;
        o.no_uring = how % 3 == 1;
        if (how >= 3)
            o.verify = how >= 6 ? MOEC_ENGINE_SHA256 : MOEC_ENGINE_NONE;
        assert_int_equal(
            moec_engine_create(&e, &b->file, 1, b->p, N_PIECES, 3, &o, &err),
            MOEC_OK);
        if (how != 7)
            evict(b);
        assert_int_equal(ftruncate(b->file.fd, 5 * MIB + 5), 0);
        assert_int_equal(moec_engine_start(e, &err), MOEC_OK);
        assert_int_equal(moec_engine_wait(e, &err), MOEC_E_FORMAT);
        assert_true(err.rule == MOEC_RULE_H17 || err.rule == MOEC_RULE_I13);
        moec_engine_destroy(e);
        assert_int_equal(pwrite(b->file.fd, b->content, N_BYTES, 0), N_BYTES);
        assert_int_equal(fsync(b->file.fd), 0);
    }
}

static void reads_what_a_new_path_does_not_mean(void **state)
{
    bench *b = *state;
    moec_engine_opts o = usual(b);
    moec_error err;
    int fd;

    /* the name leads to another file by now: only the descriptor counts */
    assert_int_equal(unlink(b->path), 0);
    fd = open(b->path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    assert_int_equal(ftruncate(fd, N_BYTES), 0);
    close(fd);
    evict(b);
    assert_int_equal(run(b, &o, &err), MOEC_OK);
    assert_memory_equal(b->to, b->content, N_BYTES);
}

static void refuses_pieces_outside(void **state)
{
    bench *b = *state;
    moec_engine_opts o = usual(b);
    moec_piece good = b->p[0];
    moec_error err;

    b->p[0].off = N_BYTES - 2 * MIB + 1;
    assert_int_equal(run(b, &o, &err), MOEC_E_ARG);
    b->p[0].off = UINT64_MAX - MIB;
    assert_int_equal(run(b, &o, &err), MOEC_E_ARG);
    b->p[0] = good;
    b->p[0].n_rows = UINT64_MAX / MIB;
    b->p[0].src_row = 2 * MIB;
    assert_int_equal(run(b, &o, &err), MOEC_E_ARG);
    b->p[0].n_rows = 2;
    b->p[0].dst_row = UINT64_MAX - 5;
    assert_int_equal(run(b, &o, &err), MOEC_E_ARG);
    b->p[0] = good;
    b->p[0].group = 3;
    assert_int_equal(run(b, &o, &err), MOEC_E_ARG);
    b->p[0] = good;
    b->p[0].file = 1;
    assert_int_equal(run(b, &o, &err), MOEC_E_ARG);
    b->p[0] = good;
    b->p[0].dst = NULL;
    assert_int_equal(run(b, &o, &err), MOEC_E_ARG);
    b->p[0] = good;
    b->p[0].n_cols = MIB; /* digests, and columns are not adjacent */
    b->p[0].src_col = 2;
    assert_int_equal(run(b, &o, &err), MOEC_E_ARG);
    b->p[0] = good;
    b->p[0].lead = 1; /* before the file */
    assert_int_equal(run(b, &o, &err), MOEC_E_ARG);
    b->p[0].lead = 0;
    b->p[0].trail = N_BYTES - 2 * MIB + 1;
    assert_int_equal(run(b, &o, &err), MOEC_E_ARG);
    b->p[0].trail = UINT64_MAX;
    assert_int_equal(run(b, &o, &err), MOEC_E_ARG);
    b->p[0] = good;
    assert_int_equal(run(b, &o, &err), MOEC_OK);
}

/* ----------------------------------------------------------- callbacks */

static void stops_where_a_callback_fails(void **state)
{
    bench *b = *state;
    moec_engine_opts o = usual(b);
    moec_error err;

    b->answer = MOEC_E_NO_DEVICE;
    assert_int_equal(run(b, &o, &err), MOEC_E_NO_DEVICE);
    assert_non_null(strstr(err.text, "no room for it"));
    assert_int_equal(b->n_told, 2);
}

static void reads_by_the_callers_function(void **state)
{
    bench *b = *state;
    moec_engine_opts o = usual(b);
    int fd = b->file.fd;
    moec_error err;

    b->file.fd = -1;
    assert_int_equal(run(b, &o, &err), MOEC_OK);
    assert_memory_equal(b->to, b->content, N_BYTES);
    b->n_read_at = 0;
    b->fail_from = 3;
    b->n_told = 0;
    assert_int_equal(run(b, &o, &err), MOEC_E_IO);
    assert_int_equal(err.os_errno, EIO);
    o.read_at = NULL;
    assert_int_equal(run(b, &o, &err), MOEC_E_ARG);
    b->file.fd = fd;
}

static void cancels_soon(void **state)
{
    bench *b = *state;
    moec_engine_opts o = usual(b);
    moec_engine_stats s;
    moec_error err = MOEC_ERROR_INIT;
    moec_engine *e = NULL;
    int fd = b->file.fd;
    uint32_t calls;

    b->file.fd = -1;
    atomic_store(&b->held, true);
    assert_int_equal(
        moec_engine_create(&e, &b->file, 1, b->p, N_PIECES, 3, &o, &err),
        MOEC_OK);
    assert_int_equal(moec_engine_start(e, &err), MOEC_OK);
    while (__atomic_load_n(&b->n_read_at, __ATOMIC_RELAXED) == 0)
        usleep(1000);
    moec_engine_poll(e, &s);
    assert_true(s.bytes_done < s.bytes_needed);
    moec_engine_cancel(e);
    calls = __atomic_load_n(&b->n_read_at, __ATOMIC_RELAXED);
    atomic_store(&b->held, false);
    assert_int_equal(moec_engine_wait(e, &err), MOEC_E_CANCELLED);
    /* each thread ends the read that it is in, and begins at most one */
    assert_true(b->n_read_at <= calls + 2 * 2);
    assert_true(b->n_told < 3);
    moec_engine_destroy(e);
    /* destroy alone does, too */
    assert_int_equal(
        moec_engine_create(&e, &b->file, 1, b->p, N_PIECES, 3, &o, &err),
        MOEC_OK);
    b->n_told = 0;
    assert_int_equal(moec_engine_start(e, &err), MOEC_OK);
    assert_int_equal(moec_engine_start(e, NULL), MOEC_E_ARG);
    moec_engine_destroy(e);
    b->file.fd = fd;
}

/* -------------------------------------------------------------- memory */

static void says_how_large_a_ring_must_be(void **state)
{
    bench *b = *state;
    moec_engine_opts o = usual(b);
    moec_error err;

    o.ring_bytes = MIB;
    assert_int_equal(run(b, &o, &err), MOEC_E_ARG);
    assert_non_null(strstr(err.text, "1048576 bytes is too small"));
    assert_non_null(strstr(err.text, "takes 1052672"));
    o.ring_bytes = 1052672;
    evict(b);
    assert_int_equal(run(b, &o, &err), MOEC_OK);
    assert_memory_equal(b->to, b->content, N_BYTES);
    o.verify = MOEC_ENGINE_NONE;
    o.ring_bytes = MIB / 8;
    memset(b->to, 0, N_BYTES);
    b->n_told = 0;
    evict(b);
    assert_int_equal(run(b, &o, &err), MOEC_OK);
    assert_memory_equal(b->to, b->content, N_BYTES);
}

static void says_when_memory_is_short(void **state)
{
    bench *b = *state;
    moec_status st = MOEC_E_NOMEM;

    for (uint64_t n = 1; st != MOEC_OK; n++) {
        moec_engine_opts o = usual(b);
        moec_error err;

        moec_alloc_fail_at(n);
        st = run(b, &o, &err);
        moec_alloc_fail_at(0);
        assert_true(st == MOEC_OK ? n > 8 : st == MOEC_E_NOMEM);
        assert_true(n < 100);
    }
}

/* -------------------------------------------------------------- kernels */

/* In a child: filters stay for good. */
static int load_without(bench *b, const struct sock_fprog *prog, bool ahead)
{
    moec_engine_opts o = usual(b);
    moec_engine_stats s = {.uses_uring = 1, .bytes_ahead = 1};
    moec_error err = MOEC_ERROR_INIT;
    moec_engine *e = NULL;

    o.n_threads = 0;
    if (ahead)
        o.verify = MOEC_ENGINE_SHA256;
    else
        evict(b);
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, prog) != 0)
        return 77;
    if (moec_engine_create(&e, &b->file, 1, b->p, N_PIECES, 3, &o, &err) !=
            MOEC_OK ||
        moec_engine_start(e, &err) != MOEC_OK ||
        moec_engine_wait(e, &err) != MOEC_OK)
        return 1;
    moec_engine_poll(e, &s);
    moec_engine_destroy(e);
    return (ahead ? s.bytes_ahead != 0 : s.uses_uring != 0) ||
           memcmp(b->to, b->content, N_BYTES) != 0;
}

static void reads_where_calls_are_forbidden(void **state)
{
    static const struct {
        unsigned nr, arg, op, value;
        bool ahead;
    } calls[] = {{425, 0, BPF_JGE, 0, false}, /* io_uring_setup, _enter */
                 {426, 0, BPF_JGE, 0, false},
                 {SYS_mmap, 3, BPF_JEQ, MAP_SHARED, true},
                 {SYS_madvise, 2, BPF_JEQ, 22, true}}; /* POPULATE_READ */
    bench *b = *state;

    for (size_t i = 0; i < sizeof(calls) / sizeof(*calls); i++) {
        struct sock_filter code[] = {
            BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
                     offsetof(struct seccomp_data, nr)),
            BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, calls[i].nr, 0, 3),
            BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
                     offsetof(struct seccomp_data, args) + 8 * calls[i].arg),
            BPF_JUMP(BPF_JMP | calls[i].op | BPF_K, calls[i].value, 0, 1),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
            BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
        struct sock_fprog prog = {.len = 6, .filter = code};
        int status = -1;
        pid_t pid = fork();

        assert_true(pid >= 0);
        if (pid == 0)
            _exit(load_without(b, &prog, calls[i].ahead));
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(WIFEXITED(status));
        if (WEXITSTATUS(status) == 77)
            skip();
        assert_int_equal(WEXITSTATUS(status), 0);
    }
}

/* ---------------------------------------------------------------- sinks */

static uint64_t last_ticket;

static moec_status keep_ticket(void *ctx, uint32_t group, uint64_t ticket,
                               moec_error *err)
{
    (void)ctx;
    (void)group;
    (void)err;
    last_ticket = ticket;
    return MOEC_OK;
}

static void feeds_a_sink_from_its_own_ring(void **state)
{
    bench *b = *state;
    late_sink *d = calloc(1, sizeof(*d));
    unsigned char *ring = aligned_alloc(4096, 8 * MIB);

    assert_non_null(d);
    assert_non_null(ring);
    for (int how = 0; how < 7; how++) {
        moec_engine_sink sink = {.ctx = d,
                                 .ring = ring,
                                 .copy = late_sink_copy,
                                 .poll = late_sink_poll};
        moec_engine_opts o = usual(b);
        moec_error err;

        *d = (late_sink){.fail_at = how == 6 ? 2 : 0};
        o.sink = &sink;
        o.ring_bytes = 8 * MIB;
        o.n_threads = 1 + (uint32_t)how % 2;
        o.no_uring = how == 2;
        o.ready = keep_ticket;
        if (how != 1)
            evict(b);
        memset(b->to, 0x5a, 8 * MIB);
        if (how == 3) { /* transposed: 4-byte elements */
            b->p[1].n_rows = 1024;
            b->p[1].n_cols = 512;
            b->p[1].elem_bytes = 4;
            b->p[1].src_row = 2048;
            b->p[1].src_col = 4;
            b->p[1].dst_row = 4;
            b->p[1].dst_col = 4096;
        }
        if (how == 4) { /* gaps on both axes */
            b->p[1] = (moec_piece){.group = 1,
                                   .off = 2 * MIB,
                                   .dst = b->to + 2 * MIB,
                                   .elem_bytes = 2,
                                   .n_rows = 40,
                                   .n_cols = 50,
                                   .src_row = 100,
                                   .src_col = 2,
                                   .dst_row = 403,
                                   .dst_col = 8};
        }
        if (how == 5) { /* a part of what its leaves cover */
            b->p[1] = (moec_piece){.group = 1,
                                   .off = 2 * MIB + 64,
                                   .dst = b->to + 2 * MIB,
                                   .elem_bytes = 2,
                                   .n_rows = 2 * MIB / 1024,
                                   .n_cols = 100,
                                   .src_row = 1024,
                                   .src_col = 2,
                                   .dst_row = 203,
                                   .dst_col = 2,
                                   .leaves = &b->leaves[2],
                                   .lead = 64,
                                   .trail = 1024 - 200 - 64};
        }
        assert_int_equal(run(b, &o, &err),
                         how == 6 ? MOEC_E_NO_DEVICE : MOEC_OK);
        assert_int_equal(d->done, d->n); /* nothing reads the ring any more */
        if (how == 6)
            break;
        assert_int_equal(last_ticket <= d->n, 1);
        assert_memory_equal(b->to, b->content, 2 * MIB);
        assert_memory_equal(b->to + 4 * MIB, b->content + 4 * MIB,
                            N_BYTES - 4 * MIB);
        const moec_piece *p = &b->p[1];
        for (uint64_t r = 0; how >= 3 && r < p->n_rows; r++)
            for (uint64_t c = 0; c < p->n_cols; c++)
                assert_memory_equal(p->dst + r * p->dst_row + c * p->dst_col,
                                    b->content + p->off + r * p->src_row +
                                        c * p->src_col,
                                    p->elem_bytes);
        if (how < 3)
            assert_memory_equal(b->to, b->content, N_BYTES);
    }
    free(ring);
    free(d);
}

#define CASE(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(names_the_leaf_that_is_wrong),
        CASE(finds_a_changed_byte),
        CASE(digests_cached_pairs_block_by_block),
        CASE(lives_with_a_file_that_is_cut_meanwhile),
        CASE(checks_what_only_leaves_want),
        CASE(refuses_a_file_that_changed),
        CASE(refuses_a_file_that_ends),
        CASE(reads_what_a_new_path_does_not_mean),
        CASE(refuses_pieces_outside),
        CASE(stops_where_a_callback_fails),
        CASE(reads_by_the_callers_function),
        CASE(cancels_soon),
        CASE(says_how_large_a_ring_must_be),
        CASE(says_when_memory_is_short),
        CASE(reads_where_calls_are_forbidden),
        CASE(feeds_a_sink_from_its_own_ring),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
