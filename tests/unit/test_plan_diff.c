/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Moves of a re-placement, played out: every rank has memory whose rows hold
 * units; the moves of all ranks are made round by round, and in the end each
 * row must hold what the new plan says. Within a round ranks are not ordered,
 * so what a rank reads of another one may not be written in that round.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "header_ckpt.h"
#include "plan_fixture.h"

#define JUNK 0xdeadu /* what memory holds that nobody wrote */
enum { RANKS_MAX = 16, ROWS_MAX = 128, TABLE_MAX = 256 };

static uint64_t seed = 7;

static uint32_t draw(uint32_t n)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((seed >> 33) % n);
}

/* ----------------------------------------------------------- the models */

typedef struct subject {
    moec_ckpt *ckpt;
    moec_model *model;
    moec_families *families;
} subject;

static subject open_fixture(const char *name)
{
    moec_error err = MOEC_ERROR_INIT;
    subject s = {0};
    char path[512];

    plan_fixture_path(path, sizeof(path), name);
    if (moec_families_create(&s.families, &err) != MOEC_OK ||
        moec_ckpt_open(&s.ckpt, path, NULL, &err) != MOEC_OK ||
        moec_model_open(&s.model, s.ckpt, s.families, &err) != MOEC_OK)
        fail_msg("%s: %s", name, err.text);
    return s;
}

/* NVFP4: activation scales are tables over all slots. Headers alone. */
static subject open_nvfp4(void)
{
    static const char *const parts[] = {"w1", "w3", "w2"};
    static const struct {
        const char *suffix;
        moec_dtype dtype;
        uint32_t rank;
        uint64_t gate[2], down[2];
    } kinds[] = {
        {"weight", MOEC_DTYPE_U8, 2, {32, 32}, {64, 16}},
        {"weight_scale", MOEC_DTYPE_F8_E4M3, 2, {32, 4}, {64, 2}},
        {"weight_scale_2", MOEC_DTYPE_F32, 0, {0}, {0}},
        {"input_scale", MOEC_DTYPE_F32, 0, {0}, {0}},
    };
    static const char config[] =
        "{\"model_type\": \"mixtral\", \"num_local_experts\": 6, "
        "\"num_experts_per_tok\": 2, \"hidden_size\": 64, "
        "\"intermediate_size\": 32, \"num_hidden_layers\": 1}";
    static const uint64_t router[2] = {6, 64};
    moec_error err = MOEC_ERROR_INIT;
    hc_list l = {0, NULL};
    subject s = {0};
    char name[160];

    for (size_t k = 0; k < 4; k++) {
        for (unsigned e = 0; e < 6; e++) {
            for (size_t p = 0; p < 3; p++) {
                snprintf(name, sizeof(name),
                         "model.layers.0.block_sparse_moe.experts.%u.%s.%s", e,
                         parts[p], kinds[k].suffix);
                hc_add(&l, name, kinds[k].dtype, kinds[k].rank,
                       p == 2 ? kinds[k].down : kinds[k].gate);
            }
        }
    }
    hc_add(&l, "model.layers.0.block_sparse_moe.gate.weight", MOEC_DTYPE_BF16,
           2, router);
    s.ckpt = hc_open(&l);
    free(l.t);
    if (moec_families_create(&s.families, &err) != MOEC_OK ||
        moec_model_create(&s.model, s.ckpt, s.families, config, strlen(config),
                          &err) != MOEC_OK)
        fail_msg("%s", err.text);
    return s;
}

static void close_subject(subject *s)
{
    moec_model_destroy(s->model);
    moec_ckpt_close(s->ckpt);
    moec_families_destroy(s->families);
}

/* A plan with a random placement; every expert has a slot. */
static moec_plan *random_plan(const subject *s, uint32_t n_ranks,
                              uint32_t n_redundant, moec_shared_mode shared)
{
    moec_plan_opts o = MOEC_PLAN_OPTS_INIT;
    moec_error err = MOEC_ERROR_INIT;
    moec_placement *p = NULL;
    moec_plan *plan = NULL;
    uint32_t n_layers = (uint32_t)moec_model_n_layers(s->model);
    uint32_t e = moec_model_facts(s->model)->n_experts, n = e + n_redundant;
    int32_t *rows = calloc((size_t)n_layers * n, sizeof(*rows));

    assert_non_null(rows);
    for (uint32_t i = 0; i < n_layers; i++) {
        int32_t *row = rows + (size_t)i * n;

        for (uint32_t k = 0; k < n; k++)
            row[k] = (int32_t)(k < e ? k : draw(e));
        for (uint32_t k = n; k-- > 1;) {
            uint32_t at = draw(k + 1);
            int32_t t = row[k];

            row[k] = row[at];
            row[at] = t;
        }
    }
    assert_int_equal(moec_placement_from_rows(&p, n_layers, e, n, rows, &err),
                     MOEC_OK);
    o.n_ranks = n_ranks;
    o.placement = p;
    o.shared = shared;
    o.allow_empty = 1;
    if (moec_plan_create(&plan, s->model, &o, &err) != MOEC_OK)
        fail_msg("%s", err.text);
    moec_placement_destroy(p);
    free(rows);
    return plan;
}

/* -------------------------------------------------------------- playing */

typedef struct memory {
    uint32_t rows[RANKS_MAX][ROWS_MAX], bounce[RANKS_MAX];
    uint32_t table[RANKS_MAX][TABLE_MAX], table_bounce[RANKS_MAX];
} memory;

typedef struct game {
    const moec_plan *old, *now;
    const moec_diff_opts *opts;
    moec_diff *diffs[RANKS_MAX];
    uint32_t n_ranks, n_old_ranks;
    memory m;
    uint32_t old_rank[RANKS_MAX]; /* of each new rank */
    uint32_t new_rank[RANKS_MAX]; /* of each old one */
    memory lost;                  /* of old ranks that are none now */
} game;

static uint32_t rows_of(const moec_plan *plan)
{
    return moec_plan_topology(plan).n_local + moec_plan_shared_rows(plan);
}

static bool is_lost(const game *g, uint32_t old_rank)
{
    return g->opts->lost && g->opts->lost[old_rank];
}

/* What the old plan put there. */
static void fill(game *g, size_t layer, uint32_t t)
{
    memset(&g->m, 0xee, sizeof(g->m));
    memset(&g->lost, 0xee, sizeof(g->lost));
    for (uint32_t r = 0; r < g->n_old_ranks; r++) {
        uint32_t to = g->new_rank[r];
        memory *m = to != MOEC_DIFF_NEW_RANK ? &g->m : &g->lost;

        to = to != MOEC_DIFF_NEW_RANK ? to : r;
        for (uint32_t i = 0; i < rows_of(g->old) && !is_lost(g, r); i++)
            m->rows[to][i] =
                moec_plan_unit(g->old, layer, r, (moec_local_row){i});
        if (t == MOEC_DIFF_ROWS || is_lost(g, r))
            continue;
        for (uint32_t i = 0;
             i < moec_plan_slot_tensor(g->old, layer, t)->shape[0]; i++)
            m->table[to][i] = moec_plan_row_unit(g->old, layer, t, r, i);
    }
}

static uint32_t *row_of(game *g, const moec_diff_move *m, uint32_t rank,
                        uint32_t row)
{
    if (m->tensor == MOEC_DIFF_ROWS)
        return row == MOEC_DIFF_BOUNCE ? &g->m.bounce[rank]
                                       : &g->m.rows[rank][row];
    return row == MOEC_DIFF_BOUNCE ? &g->m.table_bounce[rank]
                                   : &g->m.table[rank][row];
}

/* A peer's row, which nobody may write in this round. */
static uint32_t read_peer(game *g, const moec_diff_move *m, uint32_t rank)
{
    uint32_t to = g->new_rank[m->peer];

    assert_true(m->peer < g->n_old_ranks && !is_lost(g, m->peer));
    assert_int_equal(m->tensor, MOEC_DIFF_ROWS);
    if (to == MOEC_DIFF_NEW_RANK)
        return g->lost.rows[m->peer][m->src_row];
    assert_int_not_equal(to, rank);
    for (size_t i = 0; i < moec_diff_n_moves(g->diffs[to]); i++) {
        const moec_diff_move *x = moec_diff_get(g->diffs[to], i);

        if (x->layer == m->layer && x->tensor == m->tensor &&
            x->round == m->round && x->dst_row == m->src_row)
            fail_msg("rank %u writes row %u, which rank %u reads in round %u",
                     to, m->src_row, rank, m->round);
    }
    return g->m.rows[to][m->src_row];
}

static void make_move(game *g, const moec_diff_move *m, uint32_t rank)
{
    uint32_t unit = m->unit;

    switch ((moec_diff_source)m->source) {
    case MOEC_DIFF_LOCAL:
        unit = *row_of(g, m, rank, m->src_row);
        break;
    case MOEC_DIFF_PEER:
        unit = read_peer(g, m, rank);
        break;
    case MOEC_DIFF_HOST:
        assert_non_null(g->opts->in_host);
        break;
    case MOEC_DIFF_DISK:
        break;
    case MOEC_DIFF_ZEROS:
        assert_int_equal(m->unit, MOEC_UNIT_EMPTY);
        break;
    }
    if (unit != m->unit)
        fail_msg("rank %u, layer %u, round %u: row %u gets unit %u, not %u",
                 rank, m->layer, m->round, m->dst_row, unit, m->unit);
    *row_of(g, m, rank, m->dst_row) = unit;
}

static void play_round(game *g, size_t layer, uint32_t t, uint32_t round,
                       size_t *left)
{
    for (uint32_t i = 0; i < g->n_ranks; i++) {
        /* Ranks in no order of their own. */
        uint32_t r = (i * 5 + round) % g->n_ranks;

        if (g->n_ranks % 5 == 0)
            r = i;
        for (size_t k = 0; k < moec_diff_n_moves(g->diffs[r]); k++) {
            const moec_diff_move *m = moec_diff_get(g->diffs[r], k);

            if (m->layer != layer || m->tensor != t || m->round != round)
                continue;
            make_move(g, m, r);
            (*left)--;
        }
    }
}

static void play(game *g, size_t layer, uint32_t t)
{
    size_t left = 0;

    fill(g, layer, t);
    for (uint32_t r = 0; r < g->n_ranks; r++) {
        for (size_t k = 0; k < moec_diff_n_moves(g->diffs[r]); k++) {
            const moec_diff_move *m = moec_diff_get(g->diffs[r], k);
            left += m->layer == layer && m->tensor == t;
        }
    }
    for (uint32_t round = 0; left > 0; round++) {
        assert_true(round < 4096);
        play_round(g, layer, t, round, &left);
    }
    for (uint32_t r = 0; r < g->n_ranks; r++) {
        if (t == MOEC_DIFF_ROWS) {
            for (uint32_t i = 0; i < rows_of(g->now); i++)
                assert_int_equal(
                    g->m.rows[r][i],
                    moec_plan_unit(g->now, layer, r, (moec_local_row){i}));
            continue;
        }
        for (uint32_t i = 0;
             i < moec_plan_slot_tensor(g->now, layer, t)->shape[0]; i++)
            assert_int_equal(g->m.table[r][i],
                             moec_plan_row_unit(g->now, layer, t, r, i));
    }
}

static void number_ranks(game *g)
{
    for (uint32_t r = 0; r < RANKS_MAX; r++)
        g->new_rank[r] = MOEC_DIFF_NEW_RANK;
    for (uint32_t r = 0; r < g->n_ranks; r++) {
        g->old_rank[r] = g->opts->old_rank    ? g->opts->old_rank[r]
                         : r < g->n_old_ranks ? r
                                              : MOEC_DIFF_NEW_RANK;
        if (g->old_rank[r] != MOEC_DIFF_NEW_RANK)
            g->new_rank[g->old_rank[r]] = r;
    }
}

/* Every layer and table of a re-placement. */
static moec_diff_figures replace(const moec_plan *old, const moec_plan *now,
                                 const moec_diff_opts *opts)
{
    static game g;
    moec_error err = MOEC_ERROR_INIT;
    moec_diff_figures all = {0};

    memset(&g, 0, sizeof(g));
    g.old = old;
    g.now = now;
    g.opts = opts;
    g.n_ranks = moec_plan_topology(now).n_ranks;
    g.n_old_ranks = moec_plan_topology(old).n_ranks;
    assert_true(g.n_ranks <= RANKS_MAX && rows_of(now) <= ROWS_MAX);
    number_ranks(&g);
    for (uint32_t r = 0; r < g.n_ranks; r++) {
        moec_diff_figures f;

        if (moec_plan_diff(&g.diffs[r], old, now, r, opts, &err) != MOEC_OK)
            fail_msg("%s", err.text);
        f = moec_diff_sums(g.diffs[r]);
        all.bytes_local += f.bytes_local;
        all.bytes_host += f.bytes_host;
        all.bytes_same_node += f.bytes_same_node;
        all.bytes_other_node += f.bytes_other_node;
        all.bytes_disk += f.bytes_disk;
        all.bounce_bytes |= f.bounce_bytes;
        all.n_rounds = f.n_rounds > all.n_rounds ? f.n_rounds : all.n_rounds;
    }
    for (size_t layer = 0; layer < moec_plan_n_layers(now); layer++) {
        play(&g, layer, MOEC_DIFF_ROWS);
        for (uint32_t t = 0; t < moec_plan_n_slot_tensors(now, layer); t++) {
            if (moec_plan_slot_tensor(now, layer, t)->all_slots)
                play(&g, layer, t);
        }
    }
    for (uint32_t r = 0; r < g.n_ranks; r++)
        moec_diff_destroy(g.diffs[r]);
    return all;
}

/* ---------------------------------------------------------------- tests */

static const moec_diff_opts plain = MOEC_DIFF_OPTS_INIT;

static void every_row_gets_its_unit(void **state)
{
    subject s = open_fixture("deepseek_v3");
    uint32_t rounds = 0;
    bool bounced = false;
    (void)state;

    for (unsigned i = 0; i < 60; i++) {
        static const uint32_t ranks[] = {1, 2, 4, 8, 16};
        uint32_t w = ranks[i % 5], extra = 16 * (i % 3);
        moec_plan *a = random_plan(&s, w, extra, MOEC_SHARED_SLOTS_AUTO);
        moec_plan *b = random_plan(&s, w, extra, MOEC_SHARED_SLOTS_AUTO);
        moec_diff_opts o = plain;
        moec_diff_figures f;

        o.ranks_per_node = i % 2 ? 2 : 0;
        f = replace(a, b, &o);
        rounds = f.n_rounds > rounds ? f.n_rounds : rounds;
        bounced = bounced || f.bounce_bytes > 0;
        assert_int_equal(f.bytes_disk, 0);
        assert_int_equal(f.bytes_host, 0);
        if (o.ranks_per_node == 0)
            assert_int_equal(f.bytes_other_node, 0);
        moec_plan_destroy(a);
        moec_plan_destroy(b);
    }
    /* There were rings, and chains over ranks. */
    assert_true(bounced);
    assert_true(rounds > 2);
    close_subject(&s);
}

static void nothing_moves_between_equal_plans(void **state)
{
    subject s = open_fixture("qwen2_moe");
    moec_plan *a = random_plan(&s, 4, 4, MOEC_SHARED_SLOTS_AUTO);
    moec_diff *d = NULL;
    (void)state;

    for (uint32_t r = 0; r < 4; r++) {
        assert_int_equal(moec_plan_diff(&d, a, a, r, NULL, NULL), MOEC_OK);
        assert_int_equal(moec_diff_n_moves(d), 0);
        assert_int_equal(moec_diff_sums(d).n_rounds, 0);
        moec_diff_destroy(d);
    }
    moec_plan_destroy(a);
    close_subject(&s);
}

static void other_numbers_of_slots_and_ranks(void **state)
{
    subject s = open_fixture("deepseek_v3");
    (void)state;

    for (unsigned i = 0; i < 60; i++) {
        uint32_t w = 1 + draw(8), v = 1 + draw(8);
        moec_plan *a = random_plan(&s, w, draw(40), MOEC_SHARED_SLOTS_PER_RANK);
        moec_plan *b = random_plan(&s, v, draw(40), MOEC_SHARED_SLOTS_PER_RANK);

        (void)replace(a, b, &plain);
        moec_plan_destroy(a);
        moec_plan_destroy(b);
    }
    close_subject(&s);
}

static int host_has_even(void *ctx, size_t layer, uint32_t unit)
{
    (void)ctx;
    (void)layer;
    return unit % 2 == 0;
}

static void a_lost_rank_is_read_from_elsewhere(void **state)
{
    subject s = open_fixture("deepseek_v3");
    (void)state;

    for (unsigned i = 0; i < 40; i++) {
        /* Rank `dead` of four is gone; three go on, or a new one joins. */
        uint32_t dead = draw(4), n = 3 + i % 2, at = 0;
        uint8_t lost[4] = {0};
        uint32_t old_rank[4];
        moec_diff_opts o = plain;
        moec_plan *a = random_plan(&s, 4, 8, MOEC_SHARED_SLOTS_AUTO);
        moec_plan *b = random_plan(&s, n, 8, MOEC_SHARED_SLOTS_AUTO);
        moec_diff_figures f;

        lost[dead] = 1;
        for (uint32_t r = 0; r < 4; r++) {
            if (r != dead)
                old_rank[at++] = r;
        }
        old_rank[3] = MOEC_DIFF_NEW_RANK;
        o.lost = lost;
        o.old_rank = old_rank;
        if (i % 4 == 0)
            o.in_host = host_has_even;
        f = replace(a, b, &o);
        if (!o.in_host)
            assert_int_equal(f.bytes_host, 0);
        moec_plan_destroy(a);
        moec_plan_destroy(b);
    }
    close_subject(&s);
}

static void without_peers_the_rest_is_read_from_host_or_disk(void **state)
{
    subject s = open_fixture("deepseek_v3");
    (void)state;

    for (unsigned i = 0; i < 20; i++) {
        moec_diff_opts o = plain;
        moec_plan *a = random_plan(&s, 4, 8, MOEC_SHARED_SLOTS_AUTO);
        moec_plan *b = random_plan(&s, 4, 8, MOEC_SHARED_SLOTS_AUTO);
        moec_diff_figures f;

        o.no_peers = 1;
        o.in_host = i % 2 ? host_has_even : NULL;
        f = replace(a, b, &o);
        assert_int_equal(f.bytes_same_node + f.bytes_other_node, 0);
        assert_true(f.bytes_disk > 0);
        assert_true((f.bytes_host > 0) == (o.in_host != NULL));
        /* Nobody else reads: the list alone is the order. */
        assert_true(f.n_rounds <= 1);
        moec_plan_destroy(a);
        moec_plan_destroy(b);
    }
    close_subject(&s);
}

static void tables_over_all_slots_are_permuted(void **state)
{
    subject s = open_nvfp4();
    bool tables = false;
    (void)state;

    for (unsigned i = 0; i < 40; i++) {
        moec_plan *a = random_plan(&s, 2, draw(3) * 2, MOEC_SHARED_SLOTS_AUTO);
        moec_plan *b = random_plan(&s, 2 + i % 3, 6, MOEC_SHARED_SLOTS_AUTO);

        for (size_t t = 0; t < moec_plan_n_slot_tensors(a, 0); t++)
            tables = tables || moec_plan_slot_tensor(a, 0, t)->all_slots;
        (void)replace(a, b, &plain);
        moec_plan_destroy(a);
        moec_plan_destroy(b);
    }
    assert_true(tables);
    close_subject(&s);
}

/* The nearest of several: the rank itself, then its node. */
static void takes_the_nearest_copy(void **state)
{
    subject s = open_fixture("mixtral");
    moec_plan_opts o = MOEC_PLAN_OPTS_INIT;
    moec_diff_opts d = plain;
    moec_placement *p = NULL, *q = NULL;
    moec_plan *a = NULL, *b = NULL;
    moec_diff *diff = NULL;
    /* Four ranks of three slots; rank 0 gets expert 7, which ranks 1 and 3
     * have, and expert 2, which only rank 2 has. */
    static const int32_t was[] = {0, 1, 3, 7, 4, 5, 2, 6, 3, 7, 0, 1};
    static const int32_t is[] = {0, 7, 2, 7, 4, 5, 2, 6, 3, 7, 0, 1};
    int32_t rows[2][36];
    (void)state;

    for (size_t i = 0; i < 36; i++) {
        rows[0][i] = was[i % 12];
        rows[1][i] = i < 12 ? is[i] : was[i % 12];
    }
    o.n_ranks = 4;
    assert_int_equal(moec_placement_from_rows(&p, 3, 8, 12, rows[0], NULL),
                     MOEC_OK);
    assert_int_equal(moec_placement_from_rows(&q, 3, 8, 12, rows[1], NULL),
                     MOEC_OK);
    o.placement = p;
    assert_int_equal(moec_plan_create(&a, s.model, &o, NULL), MOEC_OK);
    o.placement = q;
    assert_int_equal(moec_plan_create(&b, s.model, &o, NULL), MOEC_OK);
    d.ranks_per_node = 2;
    assert_int_equal(moec_plan_diff(&diff, a, b, 0, &d, NULL), MOEC_OK);
    assert_int_equal(moec_diff_n_moves(diff), 2);
    for (size_t i = 0; i < 2; i++) {
        const moec_diff_move *m = moec_diff_get(diff, i);

        assert_int_equal(m->source, MOEC_DIFF_PEER);
        assert_int_equal(m->dst_row, m->unit == 7 ? 1 : 2);
        assert_int_equal(m->peer, m->unit == 7 ? 1 : 2);
        assert_int_equal(m->src_row, 0);
        assert_int_equal(m->same_node, m->unit == 7);
        assert_int_equal(m->round, 0);
    }
    assert_int_equal(moec_diff_sums(diff).bytes_same_node,
                     moec_diff_sums(diff).bytes_other_node);
    moec_diff_destroy(diff);
    moec_plan_destroy(a);
    moec_plan_destroy(b);
    moec_placement_destroy(p);
    moec_placement_destroy(q);
    close_subject(&s);
}

/* New rank 0 is the process that was old rank 3: on the second node, though
 * its memory is gone and its new number is one of the first node's. */
static void a_lost_rank_stays_on_its_node(void **state)
{
    subject s = open_fixture("mixtral");
    static const uint32_t old_rank[] = {3, 1, 2, 0};
    static const uint8_t lost[] = {0, 0, 0, 1};
    moec_plan_opts o = MOEC_PLAN_OPTS_INIT;
    moec_diff_opts d = plain;
    moec_plan *a = NULL;
    moec_diff *diff = NULL;
    (void)state;

    o.n_ranks = 4;
    assert_int_equal(moec_plan_create(&a, s.model, &o, NULL), MOEC_OK);
    d.ranks_per_node = 2;
    d.old_rank = old_rank;
    d.lost = lost;
    assert_int_equal(moec_plan_diff(&diff, a, a, 0, &d, NULL), MOEC_OK);
    assert_int_not_equal(moec_diff_n_moves(diff), 0);
    for (size_t i = 0; i < moec_diff_n_moves(diff); i++) {
        const moec_diff_move *m = moec_diff_get(diff, i);

        assert_int_equal(m->source, MOEC_DIFF_PEER);
        assert_int_equal(m->same_node, m->peer / 2 == 1);
    }
    assert_int_not_equal(moec_diff_sums(diff).bytes_other_node, 0);
    moec_diff_destroy(diff);
    moec_plan_destroy(a);
    close_subject(&s);
}

static void refuses_plans_of_another_kind(void **state)
{
    subject s = open_fixture("mixtral");
    moec_plan_opts o = MOEC_PLAN_OPTS_INIT;
    moec_diff_opts d = plain;
    static const uint32_t twice[] = {1, 1}, far[] = {0, 9};
    moec_plan *a = NULL, *b = NULL, *c = NULL;
    moec_diff *diff = NULL;
    (void)state;

    o.n_ranks = 2;
    assert_int_equal(moec_plan_create(&a, s.model, &o, NULL), MOEC_OK);
    o.w13_order = MOEC_W13_UP_GATE;
    assert_int_equal(moec_plan_create(&b, s.model, &o, NULL), MOEC_OK);
    o = (moec_plan_opts)MOEC_PLAN_OPTS_INIT;
    o.by_expert = 1;
    assert_int_equal(moec_plan_create(&c, s.model, &o, NULL), MOEC_OK);
    assert_int_equal(moec_plan_diff(&diff, a, b, 0, NULL, NULL),
                     MOEC_E_MAPPING);
    assert_int_equal(moec_plan_diff(&diff, c, a, 0, NULL, NULL),
                     MOEC_E_MAPPING);
    assert_int_equal(moec_plan_diff(&diff, a, a, 2, NULL, NULL), MOEC_E_ARG);
    d.old_rank = twice;
    assert_int_equal(moec_plan_diff(&diff, a, a, 0, &d, NULL), MOEC_E_ARG);
    d.old_rank = far;
    assert_int_equal(moec_plan_diff(&diff, a, a, 0, &d, NULL), MOEC_E_ARG);
    assert_null(diff);
    moec_plan_destroy(a);
    moec_plan_destroy(b);
    moec_plan_destroy(c);
    close_subject(&s);
}

static void every_allocation_may_fail(void **state)
{
    subject s = open_fixture("mixtral");
    moec_plan *a = random_plan(&s, 4, 4, MOEC_SHARED_SLOTS_AUTO);
    moec_plan *b = random_plan(&s, 4, 4, MOEC_SHARED_SLOTS_AUTO);
    moec_diff *diff = NULL;
    moec_status st = MOEC_E_NOMEM;
    (void)state;

    for (uint64_t n = 1; st != MOEC_OK; n++) {
        moec_alloc_fail_at(n);
        st = moec_plan_diff(&diff, a, b, 1, NULL, NULL);
        moec_alloc_fail_at(0);
        assert_true(st == MOEC_OK || st == MOEC_E_NOMEM);
        assert_true(n < 200);
    }
    moec_diff_destroy(diff);
    moec_plan_destroy(a);
    moec_plan_destroy(b);
    close_subject(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_row_gets_its_unit),
        cmocka_unit_test(nothing_moves_between_equal_plans),
        cmocka_unit_test(other_numbers_of_slots_and_ranks),
        cmocka_unit_test(a_lost_rank_is_read_from_elsewhere),
        cmocka_unit_test(without_peers_the_rest_is_read_from_host_or_disk),
        cmocka_unit_test(tables_over_all_slots_are_permuted),
        cmocka_unit_test(takes_the_nearest_copy),
        cmocka_unit_test(a_lost_rank_stays_on_its_node),
        cmocka_unit_test(refuses_plans_of_another_kind),
        cmocka_unit_test(every_allocation_may_fail),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
