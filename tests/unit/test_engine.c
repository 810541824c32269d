/* SPDX-License-Identifier: Apache-2.0
 *
 * The engine against plain loops: random pieces of random files, by every way
 * of reading that this machine has. */

#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine.h"
#include "late_sink.h"
#include "threads_left.h"

#define N_FILES     3u
#define PIECES_MAX  160u
#define ARENA_BYTES ((size_t)24 << 20)

static const uint64_t file_bytes[N_FILES] = {(5u << 20) + 4096, 1234567, 70001};

static char root[512];
static char paths[N_FILES][600];
static unsigned char *content[N_FILES];
static moec_engine_file files[N_FILES];
static unsigned char *arena, *expected;
static uint64_t seed = 88172645463325252u;

static uint64_t rnd(uint64_t n) /* [0, n) */
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed % n;
}

static int make_files(void **state)
{
    const char *tmp = getenv("TMPDIR");

    (void)state;
    snprintf(root, sizeof(root), "%s/moec-engine.XXXXXX", tmp ? tmp : P_tmpdir);
    assert_non_null(mkdtemp(root));
    for (uint32_t i = 0; i < N_FILES; i++) {
        int fd;

        snprintf(paths[i], sizeof(paths[i]), "%s/%u", root, i);
        content[i] = malloc(file_bytes[i]);
        assert_non_null(content[i]);
        for (uint64_t k = 0; k < file_bytes[i]; k++)
            content[i][k] = (unsigned char)rnd(256);
        fd = open(paths[i], O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        assert_true(fd >= 0);
        assert_int_equal(write(fd, content[i], file_bytes[i]), file_bytes[i]);
        assert_int_equal(fsync(fd), 0);
        files[i] = (moec_engine_file){paths[i], paths[i], fd, file_bytes[i]};
    }
    arena = aligned_alloc(4096, ARENA_BYTES);
    expected = malloc(ARENA_BYTES);
    assert_non_null(arena);
    assert_non_null(expected);
    return 0;
}

static int remove_files(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < N_FILES; i++) {
        close(files[i].fd);
        unlink(paths[i]);
        free(content[i]);
    }
    free(arena);
    free(expected);
    return rmdir(root);
}

static void evict(void)
{
    for (uint32_t i = 0; i < N_FILES; i++)
        (void)posix_fadvise(files[i].fd, 0, 0, POSIX_FADV_DONTNEED);
}

/* ------------------------------------------------------------ pieces */

typedef struct batch {
    moec_piece p[PIECES_MAX];
    size_t n;
    uint64_t used; /* of the arena */
    moec_leaf *leaves[PIECES_MAX];
} batch;

static void drop(batch *b)
{
    for (size_t i = 0; i < b->n; i++)
        free(b->leaves[i]);
    *b = (batch){.n = 0};
}

static uint64_t span(const moec_piece *p, bool dst)
{
    return (p->n_rows - 1) * (dst ? p->dst_row : p->src_row) +
           (p->n_cols - 1) * (dst ? p->dst_col : p->src_col) + p->elem_bytes;
}

/* Find a place for `bytes` in the arena; now and then directly behind the last
 * piece, and page aligned. */
static bool place(batch *b, moec_piece *p)
{
    uint64_t at = b->used, bytes = span(p, true);

    if (rnd(3) == 0)
        at += rnd(5000);
    if (rnd(3) == 0)
        at = (at + 4095) & ~UINT64_C(4095);
    if (at + bytes > ARENA_BYTES || b->n == PIECES_MAX)
        return false;
    p->dst = arena + at;
    b->used = at + bytes;
    return true;
}

static void add(batch *b, moec_piece p)
{
    if (p.off + span(&p, false) <= file_bytes[p.file] && place(b, &p))
        b->p[b->n++] = p;
}

static moec_piece flat(uint32_t file, uint64_t off, uint64_t n)
{
    moec_piece p = {.file = file,
                    .off = off,
                    .elem_bytes = 1,
                    .n_rows = 1,
                    .n_cols = n,
                    .src_row = n,
                    .src_col = 1,
                    .dst_row = n,
                    .dst_col = 1};
    return p;
}

/* A matrix of n x m elements of `elem` bytes, by one of the ways that moves
 * have: as it is, padded rows on either side, transposed, alternating. */
static moec_piece matrix(uint32_t file, uint64_t off, uint64_t n, uint64_t m,
                         uint32_t elem)
{
    moec_piece p = {.file = file,
                    .off = off,
                    .elem_bytes = elem,
                    .n_rows = n,
                    .n_cols = m,
                    .src_row = m * elem,
                    .src_col = elem,
                    .dst_row = m * elem,
                    .dst_col = elem};

    switch (rnd(7)) {
    case 0:
        p.dst_row += rnd(100) * elem;
        break;
    case 1:
        p.src_row += rnd(100) * elem;
        break;
    case 2:
        p.src_row += rnd(60000);
        break;
    case 3:
        p.dst_row = elem;
        p.dst_col = n * elem;
        break;
    case 4:
        p.src_row = elem;
        p.src_col = n * elem;
        break;
    case 5: /* every second element */
        p.src_col = 2 * elem;
        p.src_row = 2 * m * elem;
        break;
    default: /* every second element in memory, rows padded */
        p.dst_col = 2 * elem;
        p.dst_row = 2 * m * elem + 7;
        break;
    }
    return p;
}

static void add_random(batch *b)
{
    static const uint32_t elems[] = {1, 2, 3, 4, 8, 12};
    uint32_t file = (uint32_t)rnd(N_FILES);
    uint64_t off = rnd(file_bytes[file]);
    moec_piece p;

    switch (rnd(5)) {
    case 0:
        p = flat(file, off, 1 + rnd(100));
        break;
    case 1:
        p = flat(file, off, 1 + rnd(file_bytes[file] - off));
        break;
    case 2:
        off &= ~UINT64_C(4095);
        p = flat(file, off, 1 + rnd(file_bytes[file] - off));
        break;
    default:
        p = matrix(file, off, 1 + rnd(300), 1 + rnd(300),
                   elems[rnd(sizeof(elems) / sizeof(elems[0]))]);
    }
    add(b, p);
    if (b->n == 0)
        return;
    p = b->p[b->n - 1];
    switch (rnd(6)) {
    case 0: /* the same to another place */
        add(b, p);
        break;
    case 1: /* what follows in the file, and in memory */
        off = p.off + span(&p, false);
        if (off < file_bytes[p.file])
            add(b, flat(p.file, off, 1 + rnd(file_bytes[p.file] - off)));
        break;
    case 2: /* the other half of alternating rows */
        p = matrix(p.file, p.off, 2 + rnd(40), 1 + rnd(200), 2);
        p.src_row = 2 * p.n_cols * 2;
        p.src_col = 2;
        add(b, p);
        p.off += p.n_cols * 2;
        add(b, p);
        break;
    default:
        break;
    }
}

static void copy_plainly(const moec_piece *p)
{
    unsigned char *to = expected + (p->dst - arena);

    for (uint64_t r = 0; r < p->n_rows; r++)
        for (uint64_t c = 0; c < p->n_cols; c++)
            memcpy(to + r * p->dst_row + c * p->dst_col,
                   content[p->file] + p->off + r * p->src_row + c * p->src_col,
                   p->elem_bytes);
}

/* Let leaves begin and end somewhere around the piece. */
static void widen(moec_piece *p, uint64_t bytes)
{
    uint64_t left = file_bytes[p->file] - p->off - bytes;

    p->lead = rnd(3) == 0 ? 0 : rnd(p->off / p->elem_bytes + 1);
    p->lead = p->lead % (MOEC_LEAF_BYTES / p->elem_bytes) * p->elem_bytes;
    p->trail = rnd(3) == 0 ? 0 : rnd(left + 1);
}

static void add_leaves(batch *b)
{
    for (size_t i = 0; i < b->n; i++) {
        moec_piece *p = &b->p[i];
        uint64_t n = span(p, false), run = p->n_cols * p->elem_bytes;
        const unsigned char *at = content[p->file] + p->off;
        bool gaps = p->n_rows > 1 && p->src_row != run;
        moec_error err = MOEC_ERROR_INIT;
        moec_leaf *l;

        if ((p->n_cols > 1 && p->src_col != p->elem_bytes) || rnd(4) == 0 ||
            (gaps && (p->src_row < run || p->src_row % p->elem_bytes != 0)))
            continue;
        if (p->elem_bytes % 3 == 0 && (gaps || p->dst_col != p->elem_bytes))
            continue;
        if (p->elem_bytes % 3 != 0 && rnd(2) == 0)
            widen(p, n);
        n += p->lead + p->trail;
        at -= p->lead;
        l = calloc(n / MOEC_LEAF_BYTES + 1, sizeof(*l));
        assert_non_null(l);
        b->leaves[i] = l;
        p->leaves = l;
        for (uint64_t k; n > 0; n -= k, at += k, l++) {
            k = n < MOEC_LEAF_BYTES ? n : MOEC_LEAF_BYTES;
            l->xxh128 = moec_xxh128_of(at, k);
            assert_int_equal(moec_sha256_of(at, k, &l->sha256, &err), 0);
        }
    }
}

/* ------------------------------------------------------------- running */

typedef struct told {
    uint32_t n;
    uint32_t order[64];
} told;

static moec_status hear(void *ctx, uint32_t group, uint64_t ticket,
                        moec_error *err)
{
    told *t = ctx;

    (void)ticket;
    (void)err;
    assert_true(t->n < 64);
    t->order[t->n++] = group;
    return MOEC_OK;
}

/* A reader of a device that is host memory: now and then a read fails, every
 * seventh comes short. */
static atomic_uint n_reader;
static pthread_mutex_t device_lock = PTHREAD_MUTEX_INITIALIZER;

static moec_status own_copy(void *ctx, void *dst, uint64_t dst_row,
                            const void *src, uint64_t src_row,
                            uint64_t row_bytes, uint64_t rows,
                            uint64_t *ticket_out, moec_error *err)
{
    moec_status st;

    pthread_mutex_lock(&device_lock);
    st = late_sink_copy(ctx, dst, dst_row, src, src_row, row_bytes, rows,
                        ticket_out, err);
    pthread_mutex_unlock(&device_lock);
    return st;
}

static moec_status own_poll(void *ctx, uint64_t ticket, int block,
                            int *done_out, moec_error *err)
{
    moec_status st;

    pthread_mutex_lock(&device_lock);
    st = late_sink_poll(ctx, ticket, block, done_out, err);
    pthread_mutex_unlock(&device_lock);
    return st;
}

static moec_status own_open(void *ctx, int fd, void **out, moec_error *err)
{
    int *copy = malloc(sizeof(*copy));

    (void)ctx;
    (void)err;
    assert_non_null(copy);
    *copy = fd;
    *out = copy;
    return MOEC_OK;
}

static void own_close(void *ctx, void *file)
{
    (void)ctx;
    free(file);
}

static moec_status own_read(void *ctx, void *file, uint64_t off, void *dst,
                            uint64_t bytes, uint64_t *got_out, moec_error *err)
{
    unsigned n = atomic_fetch_add(&n_reader, 1);

    (void)ctx;
    if (n % 25 == 24 || off % 4096 != 0 || bytes % 4096 != 0 ||
        (uintptr_t)dst % 4096 != 0)
        return moec_fail(err, MOEC_E_IO, MOEC_RULE_NONE, "no");
    if (n % 7 == 6)
        bytes /= 2;
    *got_out = bytes;
    return moec_pread_full(*(int *)file, "own", dst, bytes, off, err);
}

static moec_status own_digest(void *ctx, int sha256, const void *const *data,
                              const uint64_t *bytes, size_t n, uint8_t *out,
                              moec_error *err)
{
    late_sink *d = ctx;

    pthread_mutex_lock(&device_lock);
    late_sink_catch_up(d, d->n);
    pthread_mutex_unlock(&device_lock);
    for (size_t i = 0; i < n; i++) {
        moec_xxh128 x = moec_xxh128_of(data[i], bytes[i]);
        moec_sha256 s;

        assert_int_equal(moec_sha256_of(data[i], bytes[i], &s, err), MOEC_OK);
        memcpy(out + i * (sha256 ? sizeof(s) : sizeof(x)), sha256 ? s.b : x.b,
               sha256 ? sizeof(s) : sizeof(x));
    }
    return MOEC_OK;
}

static moec_status run(const moec_engine_file *f, const batch *b,
                       uint32_t n_groups, const moec_engine_opts *o,
                       moec_engine_stats *stats, moec_error *err)
{
    moec_engine *e = NULL;
    moec_status st =
        moec_engine_create(&e, f, N_FILES, b->p, b->n, n_groups, o, err);

    if (st != MOEC_OK) {
        assert_null(e);
        return st;
    }
    st = moec_engine_start(e, err);
    if (st == MOEC_OK)
        st = moec_engine_wait(e, err);
    assert_int_equal(threads_left(), 0);
    moec_engine_poll(e, stats);
    moec_engine_destroy(e);
    return st;
}

static void fills_every_kind_of_piece(void **state)
{
    static batch b;
    static late_sink device;
    moec_engine_reader own = {.ctx = &device,
                              .always = true,
                              .open = own_open,
                              .close = own_close,
                              .read = own_read,
                              .digest = own_digest};
    moec_engine_sink sink = {.ctx = &device,
                             .ring = aligned_alloc(4096, 8u << 20),
                             .copy = own_copy,
                             .poll = own_poll};
    uint64_t by_reader = 0;
    static const uint64_t rings[] = {0, (uint64_t)2 << 20, (uint64_t)5 << 20};

    (void)state;
    for (int round = 0; round < 24; round++) {
        moec_error err = MOEC_ERROR_INIT;
        moec_engine_stats s;
        uint32_t n_groups = 1 + (uint32_t)rnd(4);
        told t = {.n = 0};
        moec_engine_opts o = {.n_threads = (uint32_t)(round % 4 + 1),
                              .ring_bytes = rings[rnd(3)],
                              .verify = (moec_engine_verify)(round % 3),
                              .no_direct = round % 4 == 3,
                              .no_uring = round % 8 >= 4,
                              .ready = hear,
                              .ctx = &t};

        if (round % 2 == 1) {
            sink.reader = rnd(3) != 0 ? &own : NULL;
            sink.copies_within = rnd(2) == 0;
            o.sink = &sink;
            o.ring_bytes = 8u << 20;
        }
        for (uint64_t n = rnd(80) + 1; n > 0; n--)
            add_random(&b);
        for (size_t i = 0; i < b.n; i++)
            b.p[i].group = (uint32_t)rnd(n_groups);
        add_leaves(&b);
        memset(arena, 0xa5, b.used);
        memset(expected, 0xa5, b.used);
        for (size_t i = 0; i < b.n; i++)
            copy_plainly(&b.p[i]);
        if (rnd(4) != 0)
            evict();
        assert_int_equal(run(files, &b, n_groups, &o, &s, &err), MOEC_OK);
        for (uint64_t i = 0; memcmp(arena, expected, b.used) != 0 && i < b.used;
             i++)
            if (arena[i] != expected[i])
                fail_msg("round %d: byte %zu of %zu", round, (size_t)i,
                         (size_t)b.used);
        by_reader += s.bytes_by_reader;
        assert_int_equal(t.n, n_groups);
        for (uint32_t g = 0; g < n_groups; g++)
            assert_int_equal(t.order[g], g);
        assert_int_equal(s.bytes_done, s.bytes_needed);
        assert_false(s.uses_direct && o.no_direct);
        assert_false(s.uses_uring && o.no_uring);
        assert_true(s.bytes_ahead == 0 || o.verify == MOEC_ENGINE_SHA256);
        assert_int_equal(s.n_groups_ready, n_groups);
        drop(&b);
    }
    printf("%zu bytes by the sink's reader\n", (size_t)by_reader);
    free(sink.ring);
}

/* -------------------------------------------------------------- visits */

typedef struct seen {
    const batch *b;
    pthread_mutex_t lock;
    uint64_t bytes;
} seen;

static moec_status see(void *ctx, const moec_piece *p, uint64_t at, void *data,
                       uint64_t n, moec_error *err)
{
    seen *s = ctx;
    const moec_piece *in = &s->b->p[p->tag];

    if (at % in->unit != 0 || at + n > in->n_cols ||
        (n % in->unit != 0 && at + n != in->n_cols) ||
        memcmp(data, content[in->file] + in->off + at, n) != 0)
        return moec_fail(err, MOEC_E_INTERNAL, MOEC_RULE_NONE,
                         "piece %u at %ju", p->tag, (uintmax_t)at);
    memset(data, 0, n); /* it is ours until we return */
    memset(expected + (in->dst_row + at), 1, n);
    pthread_mutex_lock(&s->lock);
    s->bytes += n;
    pthread_mutex_unlock(&s->lock);
    return MOEC_OK;
}

/* dst_row stands for a place in `expected` here: pieces have none. */
static void visits_each_byte_once_in_whole_units(void **state)
{
    static batch b;

    (void)state;
    for (int round = 0; round < 12; round++) {
        moec_error err = MOEC_ERROR_INIT;
        seen s = {.b = &b};
        moec_engine_stats stats;
        moec_engine_opts o = {.n_threads = (uint32_t)(round % 3 + 1),
                              .ring_bytes = (uint64_t)(2 + rnd(9)) << 20,
                              .no_uring = round % 4 == 3,
                              .visit = see,
                              .ctx = &s};
        uint64_t at = 0;

        pthread_mutex_init(&s.lock, NULL);
        for (uint32_t i = 0; i < N_FILES; i++)
            for (uint64_t off = rnd(9000), n; b.n < PIECES_MAX; off += n) {
                n = rnd(3) == 0 ? rnd(3 << 20) + 1 : rnd(5000) + 1;
                if (off + n > file_bytes[i] || at + n > ARENA_BYTES)
                    break;
                b.p[b.n] = flat(i, off, n);
                b.p[b.n].tag = (uint32_t)b.n;
                b.p[b.n].unit = (uint32_t)rnd(MOEC_LEAF_BYTES) + 1;
                b.p[b.n++].dst_row = at;
                at += n;
            }
        memset(expected, 0, at);
        if (round % 2 == 0)
            evict();
        assert_int_equal(run(files, &b, 1, &o, &stats, &err), MOEC_OK);
        assert_int_equal(stats.bytes_done, at);
        assert_int_equal(s.bytes, at);
        for (uint64_t k = 0; k < at; k++)
            assert_int_equal(expected[k], 1);
        pthread_mutex_destroy(&s.lock);
        drop(&b);
    }
}

static void refuses_units_and_places_of_visits(void **state)
{
    static batch b;
    seen s = {.b = &b};
    moec_engine_opts o = {.visit = see, .ctx = &s};
    moec_engine *e = NULL;

    (void)state;
    for (int k = 0; k < 3; k++) {
        moec_error err = MOEC_ERROR_INIT;

        b.p[0] = flat(0, 0, 100);
        b.p[0].unit = k == 0 ? 0 : k == 1 ? MOEC_LEAF_BYTES + 1 : 100;
        b.p[0].dst = k == 2 ? arena : NULL;
        assert_int_equal(
            moec_engine_create(&e, files, N_FILES, b.p, 1, 1, &o, &err),
            MOEC_E_ARG);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fills_every_kind_of_piece),
        cmocka_unit_test(visits_each_byte_once_in_whole_units),
        cmocka_unit_test(refuses_units_and_places_of_visits),
    };

    return cmocka_run_group_tests(tests, make_files, remove_files);
}
