/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The executor against the definition of a move (types.h), written out here
 * element by element: any geometry that a family can have, any range.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/base.h"
#include "execute.h"

#define SRC_BYTES ((size_t)1 << 16)

static uint64_t seed = 88172645463325252u;

static uint32_t rnd(uint32_t n)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (uint32_t)((seed >> 11) % n);
}

typedef struct source {
    unsigned char data[SRC_BYTES];
    uint64_t bytes_read;
    uint64_t n_reads;
} source;

static moec_status read_memory(void *ctx, uint32_t tensor, uint64_t off,
                               void *buf, size_t n, moec_error *err)
{
    source *s = ctx;

    (void)tensor;
    if (off + n > SRC_BYTES)
        return moec_fail(err, MOEC_E_INTERNAL, MOEC_RULE_NONE,
                         "read of %zu at %llu", n, (unsigned long long)off);
    memcpy(buf, s->data + off, n);
    s->bytes_read += n;
    s->n_reads++;
    return MOEC_OK;
}

static source *new_source(void)
{
    source *s = calloc(1, sizeof(*s));

    assert_non_null(s);
    for (size_t i = 0; i < SRC_BYTES; i++)
        s->data[i] = (unsigned char)(i % 251 ^ (i >> 9));
    return s;
}

/* The definition. */
static void naive(const moec_move *m, const unsigned char *src,
                  unsigned char *dst)
{
    for (uint64_t r = 0; r < m->n_rows; r++)
        for (uint64_t c = 0; c < m->n_cols; c++)
            memcpy(dst + m->dst_off + r * m->dst_row + c * m->dst_col,
                   src + m->src_off + r * m->src_row + c * m->src_col,
                   m->elem_bytes);
}

enum shape {
    PLAIN,
    COLUMNS,
    TURNED,
    TURNED_ALTERNATING,
    ROWS_ALTERNATING,
    KEPT,
    N_SHAPES
};

/* Gate and up (or one matrix) of a random expert as moves that tile a block;
 * returns the block's bytes. */
static uint64_t make_block(enum shape shape, moec_move m[2], size_t *n_out)
{
    uint64_t out = 1 + rnd(24), in = 1 + rnd(24);
    uint16_t es = (uint16_t)(1u << rnd(4));
    uint64_t base = rnd(16) * 8u;

    memset(m, 0, 2 * sizeof(*m));
    *n_out = 2;
    for (uint64_t h = 0; h < 2; h++) {
        moec_move *v = &m[h];
        v->elem_bytes = es;
        v->n_rows = out;
        v->n_cols = in;
        v->dst_row = in * es;
        v->dst_col = es;
        v->dst_off = h * out * in * es;
        switch (shape) {
        case PLAIN:
            v->src_row = in * es;
            v->src_col = es;
            v->src_off = base + h * 9000;
            break;
        case COLUMNS: /* part of a wider matrix */
            v->src_row = (in + 5) * es;
            v->src_col = es;
            v->src_off = base + h * 20000 + 2u * es;
            break;
        case TURNED:
            v->op = MOEC_OP_TRANSPOSE;
            v->src_row = es;
            v->src_col = 2 * out * es;
            v->src_off = base + h * out * es;
            break;
        case TURNED_ALTERNATING:
            v->op = MOEC_OP_TRANSPOSE;
            v->src_row = 2u * es;
            v->src_col = 2 * out * es;
            v->src_off = base + h * es;
            break;
        case ROWS_ALTERNATING:
            v->op = MOEC_OP_DEINTERLEAVE;
            v->src_row = 2 * in * es;
            v->src_col = es;
            v->src_off = base + h * in * es;
            break;
        case KEPT: /* [in, out] both sides, joined on the last axis */
            v->n_rows = in;
            v->n_cols = out;
            v->src_row = out * es;
            v->src_col = es;
            v->src_off = base + h * 9000;
            v->dst_row = 2 * out * es;
            v->dst_off = h * out * es;
            break;
        case N_SHAPES:
            break;
        }
    }
    return 2 * out * in * es;
}

static void fills_any_range_as_defined(void **state)
{
    source *s = new_source();
    unsigned char want[1 << 14], got[1 << 14];
    moec_scratch scratch = {0};

    (void)state;
    for (int i = 0; i < 4000; i++) {
        moec_move m[2];
        size_t n;
        uint64_t bytes = make_block((enum shape)rnd(N_SHAPES), m, &n);
        uint64_t es = m[0].elem_bytes, units = bytes / es;
        uint64_t from = rnd((uint32_t)units + 1) * es;
        uint64_t to = from + rnd((uint32_t)((bytes - from) / es) + 1) * es;

        memset(want, 0xEE, sizeof(want));
        memset(got, 0xEE, sizeof(got));
        naive(&m[0], s->data, want);
        naive(&m[1], s->data, want);
        assert_int_equal(moec_block_read(m, n, from, to, got, read_memory, s,
                                         &scratch, NULL),
                         MOEC_OK);
        assert_memory_equal(got, want + from, to - from);
        /* not one byte behind the range */
        assert_int_equal(got[to - from], 0xEE);
    }
    moec_scratch_fini(&scratch);
    free(s);
}

static void inverse_gives_the_source_back(void **state)
{
    source *s = new_source(), *slot = new_source();
    unsigned char back[1 << 15];
    moec_scratch scratch = {0};

    (void)state;
    for (int i = 0; i < 2000; i++) {
        static const enum shape whole[] = {TURNED, TURNED_ALTERNATING,
                                           ROWS_ALTERNATING};
        moec_move m[2], v[2];
        size_t n;
        uint64_t off, bytes = make_block(whole[rnd(3)], m, &n);
        uint64_t base = moec_min_u64(m[0].src_off, m[1].src_off);

        assert_int_equal(moec_block_read(m, n, 0, bytes, slot->data,
                                         read_memory, s, &scratch, NULL),
                         MOEC_OK);
        v[0] = moec_move_inverse(&m[0], 0, base);
        v[1] = moec_move_inverse(&m[1], 0, base);
        assert_true(moec_moves_tile(v, n, bytes, &off));
        memset(back, 0xEE, sizeof(back));
        assert_int_equal(moec_block_read(v, n, 0, bytes, back, read_memory,
                                         slot, &scratch, NULL),
                         MOEC_OK);
        assert_memory_equal(back, s->data + base, bytes);
    }
    moec_scratch_fini(&scratch);
    free(s);
    free(slot);
}

static void alternating_halves_are_read_once(void **state)
{
    static const enum shape twins[] = {TURNED_ALTERNATING, ROWS_ALTERNATING};
    source *s = new_source();
    unsigned char got[1 << 14];
    moec_scratch scratch = {0};

    (void)state;
    for (int i = 0; i < 500; i++) {
        moec_move m[2];
        size_t n;
        uint64_t bytes = make_block(twins[i % 2], m, &n);

        s->bytes_read = 0;
        assert_int_equal(moec_block_read(m, n, 0, bytes, got, read_memory, s,
                                         &scratch, NULL),
                         MOEC_OK);
        assert_int_equal(s->bytes_read, bytes);
    }
    moec_scratch_fini(&scratch);
    free(s);
}

static void plain_copies_are_one_read(void **state)
{
    source *s = new_source();
    unsigned char got[64];
    moec_scratch scratch = {0};
    moec_move m = {.elem_bytes = 2,
                   .n_rows = 8,
                   .n_cols = 4,
                   .src_row = 8,
                   .src_col = 2,
                   .dst_row = 8,
                   .dst_col = 2,
                   .src_off = 10};

    (void)state;
    assert_int_equal(
        moec_block_read(&m, 1, 6, 50, got, read_memory, s, &scratch, NULL),
        MOEC_OK);
    assert_int_equal(s->n_reads, 1);
    assert_int_equal(s->bytes_read, 44);
    assert_memory_equal(got, s->data + 16, 44);
    free(s);
}

static void fill_writes_zeros(void **state)
{
    unsigned char got[64];
    moec_scratch scratch = {0};
    moec_move m = {.tensor = UINT32_MAX,
                   .op = MOEC_OP_FILL,
                   .elem_bytes = 1,
                   .n_rows = 1,
                   .n_cols = 40,
                   .dst_row = 40,
                   .dst_col = 1,
                   .src_row = 40,
                   .src_col = 1};

    (void)state;
    memset(got, 0xEE, sizeof(got));
    assert_int_equal(
        moec_block_read(&m, 1, 8, 40, got, NULL, NULL, &scratch, NULL),
        MOEC_OK);
    for (int i = 0; i < 32; i++)
        assert_int_equal(got[i], 0);
    assert_int_equal(got[32], 0xEE);
}

static void failed_read_is_reported(void **state)
{
    source *s = new_source();
    unsigned char got[16];
    moec_scratch scratch = {0};
    moec_error err = MOEC_ERROR_INIT;
    moec_move m = {.elem_bytes = 1,
                   .n_rows = 1,
                   .n_cols = 16,
                   .src_row = 16,
                   .src_col = 1,
                   .dst_row = 16,
                   .dst_col = 1,
                   .src_off = SRC_BYTES - 8};

    (void)state;
    assert_int_equal(
        moec_block_read(&m, 1, 0, 16, got, read_memory, s, &scratch, &err),
        MOEC_E_INTERNAL);
    assert_non_null(strstr(err.text, "read of 16"));
    free(s);
}

static void whole_blocks_tile(void **state)
{
    (void)state;
    for (int i = 0; i < 2000; i++) {
        moec_move m[2];
        size_t n;
        uint64_t off, bytes = make_block((enum shape)rnd(N_SHAPES), m, &n);

        assert_true(moec_moves_tile(m, n, bytes, &off));
        assert_int_equal(off, bytes);
    }
}

static void gaps_and_overlaps_do_not_tile(void **state)
{
    (void)state;
    for (int i = 0; i < 2000; i++) {
        moec_move m[2];
        size_t n;
        uint64_t off, bytes = make_block((enum shape)rnd(N_SHAPES), m, &n);
        uint64_t es = m[0].elem_bytes;

        assert_false(moec_moves_tile(m, n, bytes + es, &off));
        assert_false(moec_moves_tile(m, n, bytes - es, &off));
        assert_false(moec_moves_tile(m, 1, bytes, &off));
        m[1].dst_off += es;
        assert_false(moec_moves_tile(m, n, bytes, &off));
        m[1].dst_off = m[0].dst_off;
        assert_false(moec_moves_tile(m, n, bytes, &off));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(fills_any_range_as_defined),
        cmocka_unit_test(inverse_gives_the_source_back),
        cmocka_unit_test(alternating_halves_are_read_once),
        cmocka_unit_test(plain_copies_are_one_read),
        cmocka_unit_test(fill_writes_zeros),
        cmocka_unit_test(failed_read_is_reported),
        cmocka_unit_test(whole_blocks_tile),
        cmocka_unit_test(gaps_and_overlaps_do_not_tile),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
