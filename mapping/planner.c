/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What this is: a placement that balances better than EPLB's, and one that is
 *   reached by few moves from a given one.
 * Refuses: what EPLB refuses; a placement to start from that has other sizes,
 *   or empty slots.
 *
 * A layer starts as EPLB leaves it and is improved step by step. A step takes
 * from the rank with the most load: it swaps one of its slots with a lighter
 * one of another rank, or gives one of its experts another copy in the place
 * of a copy that is missed least. Only steps that make the most loaded rank
 * lighter and no other rank as heavy are taken, so the result is never worse
 * than EPLB's, and the sum of squares of the ranks' loads falls: it ends.
 * No step puts two copies of an expert on one rank, and those that EPLB put
 * there are parted where that costs nothing. Where EPLB packed groups onto
 * nodes, experts stay on their nodes.
 *
 * Ranks of equal contents are interchangeable: at the end they are numbered so
 * that most slots are as they were (`from`), or so that copies of an expert
 * stand on different nodes.
 */

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "placement.h"

/* A gain below this part of the load is none: other people's sums round
 * otherwise. */
#define LEAST_GAIN 1e-9

/* Above this many ranks they are matched greedily: the exact way takes their
 * third power. */
#define EXACT_RANKS 256u

/* One layer at work. */
typedef struct state {
    uint32_t n_experts, n_physical, n_ranks, n_local;
    uint32_t domain;     /* ranks among which experts may wander */
    const float *load;   /* [E] */
    int32_t *slot;       /* [P] */
    const int32_t *from; /* [P], or NULL */
    uint32_t *copies;    /* [E] */
    uint16_t *on;        /* [E][W] copies on each rank */
    double *rank_load;   /* [W] */
    double *weight;      /* [E] load of one copy */
    int32_t *undo;       /* [P] the slots as they were */
    uint64_t steps;      /* taken */
} state;

static double weight(const state *s, int32_t e)
{
    return s->weight[e];
}

static void weigh_expert(state *s, int32_t e)
{
    s->weight[e] = (double)s->load[e] / (double)s->copies[e];
}

static uint16_t *on(const state *s, int32_t e, uint32_t rank)
{
    return &s->on[(size_t)e * s->n_ranks + rank];
}

static uint32_t rank_of(const state *s, uint32_t slot)
{
    return slot / s->n_local;
}

static void weigh_rank(state *s, uint32_t rank)
{
    double sum = 0;

    for (uint32_t i = 0; i < s->n_local; i++)
        sum += weight(s, s->slot[rank * s->n_local + i]);
    s->rank_load[rank] = sum;
}

static void weigh_all(state *s)
{
    memset(s->copies, 0, s->n_experts * sizeof(*s->copies));
    memset(s->on, 0, (size_t)s->n_experts * s->n_ranks * sizeof(*s->on));
    for (uint32_t i = 0; i < s->n_physical; i++) {
        s->copies[s->slot[i]]++;
        (*on(s, s->slot[i], rank_of(s, i)))++;
    }
    for (uint32_t e = 0; e < s->n_experts; e++)
        weigh_expert(s, (int32_t)e);
    for (uint32_t r = 0; r < s->n_ranks; r++)
        weigh_rank(s, r);
}

static uint32_t heaviest(const state *s)
{
    uint32_t best = 0;

    for (uint32_t r = 1; r < s->n_ranks; r++) {
        if (s->rank_load[r] > s->rank_load[best])
            best = r;
    }
    return best;
}

static double most(const state *s)
{
    return s->rank_load[heaviest(s)];
}

/* A step: slots a and b swapped, or slot b given expert `expert`. */
typedef struct step {
    uint32_t a, b;
    int32_t expert; /* -1: a swap */
    double value;   /* most load of the ranks that it touches */
} step;

/* --------------------------------------------------------------- swaps */

/* May expert `e` come to `rank`, which gives `gone` away? */
static bool may_come(const state *s, int32_t e, int32_t gone, uint32_t rank)
{
    return e == gone || *on(s, e, rank) == 0;
}

static void try_swaps(const state *s, uint32_t a, uint32_t to, step *best)
{
    uint32_t r = rank_of(s, a);
    int32_t ea = s->slot[a];
    double wa = weight(s, ea);

    for (uint32_t k = 0; k < s->n_local; k++) {
        uint32_t b = to * s->n_local + k;
        int32_t eb = s->slot[b];
        double gain = wa - weight(s, eb);
        double value = fmax(s->rank_load[r] - gain, s->rank_load[to] + gain);

        if (gain > 0 && value < best->value && may_come(s, ea, eb, to) &&
            may_come(s, eb, ea, r))
            *best = (step){a, b, -1, value};
    }
}

static void find_swap(const state *s, uint32_t r, step *best)
{
    uint32_t first = r / s->domain * s->domain;

    for (uint32_t i = 0; i < s->n_local; i++) {
        for (uint32_t to = first; to < first + s->domain; to++) {
            if (to != r)
                try_swaps(s, r * s->n_local + i, to, best);
        }
    }
}

/* -------------------------------------------------------------- copies */

/* Most load of all ranks once slot `at` holds `e`; at least `limit`: no
 * matter how much more. */
static double value_of_copy(const state *s, uint32_t at, int32_t e,
                            double limit)
{
    int32_t gone = s->slot[at];
    uint32_t q = rank_of(s, at);
    double less = (double)s->load[e] / (s->copies[e] + 1.0);
    double more = (double)s->load[gone] / (s->copies[gone] - 1.0);
    double d_e = less - weight(s, e), d_gone = more - weight(s, gone);
    double value = 0;

    for (uint32_t t = 0; t < s->n_ranks; t++) {
        double v =
            s->rank_load[t] + *on(s, e, t) * d_e + *on(s, gone, t) * d_gone;

        if (t == q)
            v += less - more;
        if (v > value)
            value = v;
        if (value >= limit)
            break;
    }
    return value;
}

static void try_copy(const state *s, uint32_t at, int32_t e, step *best)
{
    int32_t gone = s->slot[at];
    double value;

    if (gone == e || s->copies[gone] < 2 || *on(s, e, rank_of(s, at)) != 0)
        return;
    value = value_of_copy(s, at, e, best->value);
    if (value < best->value)
        *best = (step){at, at, e, value};
}

/* Another copy of an expert of the heaviest rank `r`, on another one; or on
 * `r` itself another expert in the place of one that has more copies. */
static void find_copy(const state *s, uint32_t r, step *best)
{
    uint32_t first = r / s->domain * s->domain * s->n_local;
    uint32_t end = first + s->domain * s->n_local;

    for (uint32_t i = r * s->n_local; i < (r + 1) * s->n_local; i++) {
        for (uint32_t b = first; b < end; b++) {
            try_copy(s, b, s->slot[i], best);
            if (rank_of(s, b) != r)
                try_copy(s, i, s->slot[b], best);
        }
    }
}

/* ---------------------------------------------------------------- steps */

static void take(state *s, const step *x)
{
    int32_t gone = s->slot[x->b];

    s->steps++;
    if (x->expert < 0) {
        uint32_t ra = rank_of(s, x->a), rb = rank_of(s, x->b);
        int32_t e = s->slot[x->a];

        (*on(s, e, ra))--;
        (*on(s, e, rb))++;
        (*on(s, gone, rb))--;
        (*on(s, gone, ra))++;
        s->slot[x->a] = gone;
        s->slot[x->b] = e;
        weigh_rank(s, ra);
        weigh_rank(s, rb);
        return;
    }
    (*on(s, gone, rank_of(s, x->b)))--;
    (*on(s, x->expert, rank_of(s, x->b)))++;
    s->copies[gone]--;
    s->copies[x->expert]++;
    weigh_expert(s, gone);
    weigh_expert(s, x->expert);
    s->slot[x->b] = x->expert;
    for (uint32_t r = 0; r < s->n_ranks; r++) {
        if (*on(s, gone, r) != 0 || *on(s, x->expert, r) != 0)
            weigh_rank(s, r);
    }
}

/* The best step from here; false where none makes the heaviest rank lighter.
 * Swaps first: a copy costs all ranks a look. */
static bool find_step(const state *s, step *out)
{
    uint32_t r = heaviest(s);
    double limit = s->rank_load[r] * (1 - LEAST_GAIN);
    step best = {.value = limit};

    find_swap(s, r, &best);
    if (!(best.value < limit))
        find_copy(s, r, &best);
    *out = best;
    return best.value < limit;
}

/* Every step lowers the sum of squares, but may do so by little. */
static void improve(state *s)
{
    step x;

    for (uint32_t i = 0; i < 8 * s->n_physical && find_step(s, &x); i++)
        take(s, &x);
}

/* The swap that takes the copy in slot `a` to a rank without one. */
static void find_parting_swap(const state *s, uint32_t a, step *best)
{
    uint32_t r = rank_of(s, a), first = r / s->domain * s->domain;
    int32_t e = s->slot[a];

    for (uint32_t b = first * s->n_local; b < (first + s->domain) * s->n_local;
         b++) {
        uint32_t q = rank_of(s, b);
        int32_t eb = s->slot[b];
        double d = weight(s, e) - weight(s, eb);
        double value = fmax(s->rank_load[r] - d, s->rank_load[q] + d);

        if (q != r && eb != e && *on(s, e, q) == 0 && *on(s, eb, r) == 0 &&
            value < best->value)
            *best = (step){a, b, -1, value};
    }
}

/* Swap copies of experts that have two on one rank to ranks without one, where
 * no rank becomes heavier than the heaviest. */
static void part_by_swaps(state *s)
{
    for (uint32_t a = 0; a < s->n_physical; a++) {
        double limit = nextafter(most(s), HUGE_VAL);
        step best = {.value = limit};

        if (*on(s, s->slot[a], rank_of(s, a)) < 2)
            continue;
        find_parting_swap(s, a, &best);
        if (best.value < limit)
            take(s, &best);
    }
}

/* Give slot `a` the expert of its domain that leaves the lightest load. */
static void replace_copy(state *s, uint32_t a)
{
    uint32_t first = rank_of(s, a) / s->domain * s->domain * s->n_local;
    step best = {.value = HUGE_VAL};

    for (uint32_t b = first; b < first + s->domain * s->n_local; b++)
        try_copy(s, a, s->slot[b], &best);
    if (best.value < HUGE_VAL)
        take(s, &best);
}

/* Leave each rank one copy of `e`, others in the place of the rest. One of them
 * gone makes the rest of them heavier, all of them gone often does not: so all
 * or none, by what the heaviest rank has then. */
static void part_by_copies(state *s, int32_t e)
{
    double limit = most(s);

    memcpy(s->undo, s->slot, s->n_physical * sizeof(*s->undo));
    for (uint32_t a = 0; a < s->n_physical; a++) {
        if (s->slot[a] == e && *on(s, e, rank_of(s, a)) > 1)
            replace_copy(s, a);
    }
    if (most(s) <= limit)
        return;
    memcpy(s->slot, s->undo, s->n_physical * sizeof(*s->undo));
    weigh_all(s);
}

/* Two copies on one rank, as EPLB may leave them, where parting them makes no
 * rank heavier than the heaviest. */
static void part_copies(state *s)
{
    part_by_swaps(s);
    for (uint32_t a = 0; a < s->n_physical; a++) {
        if (*on(s, s->slot[a], rank_of(s, a)) > 1)
            part_by_copies(s, s->slot[a]);
    }
}

/* ------------------------------------------------- numbers of the ranks */

/* Scratch of one layer, [W] and [W][W]. */
typedef struct matching {
    uint32_t n;
    int32_t *gain; /* [n][n]: what row i is worth in place j */
    uint32_t *place;
    int64_t *u, *v, *least; /* [n + 1] */
    uint32_t *match, *way;  /* [n + 1] */
    uint8_t *used;
    int32_t *rows;    /* [P]: the new order */
    uint32_t *counts; /* [E] */
} matching;

/* Greedy: the place where a row is worth most, row by row. */
static void match_greedy(matching *m)
{
    memset(m->used, 0, m->n + 1);
    for (uint32_t i = 0; i < m->n; i++) {
        uint32_t best = UINT32_MAX;

        for (uint32_t j = 0; j < m->n; j++) {
            if (!m->used[j] &&
                (best == UINT32_MAX || m->gain[(size_t)i * m->n + j] >
                                           m->gain[(size_t)i * m->n + best]))
                best = j;
        }
        m->used[best] = 1;
        m->place[i] = best;
    }
}

/* One row of the Hungarian method: an augmenting path from row i. */
static void match_row(matching *m, uint32_t i)
{
    uint32_t at = 0;

    m->match[0] = i;
    for (uint32_t j = 0; j <= m->n; j++) {
        m->least[j] = INT64_MAX;
        m->used[j] = 0;
    }
    do {
        uint32_t row = m->match[at], next = 0;
        int64_t delta = INT64_MAX;

        m->used[at] = 1;
        for (uint32_t j = 1; j <= m->n; j++) {
            int64_t cost;

            if (m->used[j])
                continue;
            cost = -(int64_t)m->gain[(size_t)(row - 1) * m->n + j - 1] -
                   m->u[row] - m->v[j];
            if (cost < m->least[j]) {
                m->least[j] = cost;
                m->way[j] = at;
            }
            if (m->least[j] < delta) {
                delta = m->least[j];
                next = j;
            }
        }
        for (uint32_t j = 0; j <= m->n; j++) {
            if (m->used[j]) {
                m->u[m->match[j]] += delta;
                m->v[j] -= delta;
            } else {
                m->least[j] -= delta;
            }
        }
        at = next;
    } while (m->match[at] != 0);
    for (; at != 0; at = m->way[at])
        m->match[at] = m->match[m->way[at]];
}

/* place[i] of each row, for the largest sum of gains. */
static void match(matching *m)
{
    if (m->n > EXACT_RANKS) {
        match_greedy(m);
        return;
    }
    memset(m->u, 0, (m->n + 1) * sizeof(*m->u));
    memset(m->v, 0, (m->n + 1) * sizeof(*m->v));
    memset(m->match, 0, (m->n + 1) * sizeof(*m->match));
    for (uint32_t i = 1; i <= m->n; i++)
        match_row(m, i);
    for (uint32_t j = 1; j <= m->n; j++)
        m->place[m->match[j] - 1] = j - 1;
}

/* Experts that two runs of n slots share, copies counted. */
static int32_t overlap(const matching *m, const int32_t *a, const int32_t *b,
                       uint32_t n)
{
    int32_t same = 0;

    for (uint32_t i = 0; i < n; i++)
        m->counts[b[i]]++;
    for (uint32_t i = 0; i < n; i++) {
        if (m->counts[a[i]] > 0) {
            m->counts[a[i]]--;
            same++;
        }
    }
    for (uint32_t i = 0; i < n; i++)
        m->counts[b[i]] = 0;
    return same;
}

/* Order n runs of `each` slots so that most of `from` stays where it is. */
static void order_runs(state *s, matching *m, uint32_t first, uint32_t n,
                       uint32_t each)
{
    int32_t *slots = s->slot + first;

    m->n = n;
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t j = 0; j < n; j++)
            m->gain[(size_t)i * n + j] =
                overlap(m, slots + (size_t)i * each,
                        s->from + first + (size_t)j * each, each);
    }
    match(m);
    for (uint32_t i = 0; i < n; i++)
        memcpy(m->rows + (size_t)m->place[i] * each, slots + (size_t)i * each,
               each * sizeof(*slots));
    memcpy(slots, m->rows, (size_t)n * each * sizeof(*slots));
}

/* Within a rank, what stays takes its old slot, the rest what is free. */
static void order_slots(state *s, matching *m, uint32_t rank)
{
    int32_t *slots = s->slot + (size_t)rank * s->n_local;
    const int32_t *from = s->from + (size_t)rank * s->n_local;
    uint32_t at = 0;

    for (uint32_t i = 0; i < s->n_local; i++)
        m->counts[slots[i]]++;
    for (uint32_t i = 0; i < s->n_local; i++) {
        m->rows[i] = -1;
        if (m->counts[from[i]] > 0) {
            m->counts[from[i]]--;
            m->rows[i] = from[i];
        }
    }
    for (uint32_t i = 0; i < s->n_local; i++) {
        int32_t e = slots[i];

        if (m->counts[e] == 0)
            continue;
        m->counts[e]--;
        while (m->rows[at] >= 0)
            at++;
        m->rows[at] = e;
    }
    memcpy(slots, m->rows, s->n_local * sizeof(*slots));
}

static void order_like_from(state *s, matching *m)
{
    uint32_t n_domains = s->n_ranks / s->domain;
    uint32_t each = s->domain * s->n_local;

    if (n_domains > 1)
        order_runs(s, m, 0, n_domains, each);
    for (uint32_t d = 0; d < n_domains; d++)
        order_runs(s, m, d * each, s->domain, s->n_local);
    for (uint32_t r = 0; r < s->n_ranks; r++)
        order_slots(s, m, r);
}

/* Copies of experts that have another copy on the same node, if rank i and
 * rank j changed places: the change. */
static int32_t spread_gain(const state *s, uint32_t per_node, uint32_t i,
                           uint32_t j, const uint32_t *node_count)
{
    int32_t gain = 0;
    uint32_t ni = i / per_node, nj = j / per_node;
    uint32_t n_nodes = s->n_ranks / per_node;

    for (uint32_t k = 0; k < s->n_local; k++) {
        int32_t a = s->slot[(size_t)i * s->n_local + k];
        int32_t b = s->slot[(size_t)j * s->n_local + k];
        const uint32_t *ca = node_count + (size_t)a * n_nodes;
        const uint32_t *cb = node_count + (size_t)b * n_nodes;

        if (*on(s, a, j) == 0)
            gain += (ca[ni] > 1) - (ca[nj] > 0);
        if (*on(s, b, i) == 0)
            gain += (cb[nj] > 1) - (cb[ni] > 0);
    }
    return gain;
}

static void swap_ranks(state *s, uint32_t i, uint32_t j, uint32_t per_node,
                       uint32_t *node_count)
{
    uint32_t n_nodes = s->n_ranks / per_node;

    for (uint32_t k = 0; k < s->n_local; k++) {
        int32_t *a = &s->slot[(size_t)i * s->n_local + k];
        int32_t *b = &s->slot[(size_t)j * s->n_local + k], t = *a;

        node_count[(size_t)*a * n_nodes + i / per_node]--;
        node_count[(size_t)*a * n_nodes + j / per_node]++;
        node_count[(size_t)*b * n_nodes + j / per_node]--;
        node_count[(size_t)*b * n_nodes + i / per_node]++;
        *a = *b;
        *b = t;
    }
    weigh_all(s);
}

/* Number the ranks so that copies stand on different nodes. The loads of the
 * ranks stay what they are. `node_count` has [E][n_nodes] of scratch. */
static void spread_over_nodes(state *s, uint32_t n_nodes, uint32_t *node_count)
{
    uint32_t per_node = s->n_ranks / n_nodes;
    bool again = true;

    memset(node_count, 0, (size_t)s->n_experts * n_nodes * sizeof(*node_count));
    for (uint32_t i = 0; i < s->n_physical; i++)
        node_count[(size_t)s->slot[i] * n_nodes + rank_of(s, i) / per_node]++;
    for (uint32_t pass = 0; again && pass < 8; pass++) {
        again = false;
        for (uint32_t i = 0; i < s->n_ranks; i++) {
            for (uint32_t j = i + 1; j < s->n_ranks; j++) {
                if (i / per_node == j / per_node ||
                    spread_gain(s, per_node, i, j, node_count) <= 0)
                    continue;
                swap_ranks(s, i, j, per_node, node_count);
                again = true;
            }
        }
    }
}

/* ------------------------------------------------------------ the whole */

typedef struct planner {
    const moec_planner_opts *opts;
    uint32_t n_layers, n_experts, n_physical, n_ranks, n_nodes;
    bool by_node; /* experts stay on their nodes */
    const float *loads;
    int32_t *rows; /* [layers][P]: the result */
    state *states; /* one a layer where moves are counted, else one */
    matching m;
    int32_t *spare; /* [P] */
    uint32_t *node_count;
    moec_arena arena;
} planner;

static void *take_memory(planner *p, size_t n, size_t size)
{
    uint64_t bytes;

    if (!moec_mul_u64(n, size, &bytes) || bytes > SIZE_MAX)
        return NULL;
    return moec_arena_alloc(&p->arena, (size_t)bytes + 1, 16);
}

static bool state_init(planner *p, state *s)
{
    size_t e = p->n_experts, w = p->n_ranks;

    *s = (state){.n_experts = p->n_experts,
                 .n_physical = p->n_physical,
                 .n_ranks = p->n_ranks,
                 .n_local = p->n_physical / p->n_ranks,
                 .domain = p->by_node ? p->n_ranks / p->n_nodes : p->n_ranks};
    s->copies = take_memory(p, e, sizeof(*s->copies));
    s->on = take_memory(p, e * w, sizeof(*s->on));
    s->rank_load = take_memory(p, w, sizeof(*s->rank_load));
    s->weight = take_memory(p, e, sizeof(*s->weight));
    s->undo = take_memory(p, p->n_physical, sizeof(*s->undo));
    return s->copies && s->on && s->rank_load && s->weight && s->undo;
}

static bool scratch_init(planner *p)
{
    size_t w = p->n_ranks, n = w + 1, e = p->n_experts;
    matching *m = &p->m;

    p->spare = take_memory(p, p->n_physical, sizeof(*p->spare));
    p->node_count = take_memory(p, e * p->n_nodes, sizeof(*p->node_count));
    m->gain = take_memory(p, w * w, sizeof(*m->gain));
    m->place = take_memory(p, n, sizeof(*m->place));
    m->u = take_memory(p, n, sizeof(*m->u));
    m->v = take_memory(p, n, sizeof(*m->v));
    m->least = take_memory(p, n, sizeof(*m->least));
    m->match = take_memory(p, n, sizeof(*m->match));
    m->way = take_memory(p, n, sizeof(*m->way));
    m->used = take_memory(p, n, 1);
    m->rows = take_memory(p, p->n_physical, sizeof(*m->rows));
    m->counts = take_memory(p, e, sizeof(*m->counts));
    if (!m->counts)
        return false;
    memset(m->counts, 0, e * sizeof(*m->counts));
    return p->spare && p->node_count && m->gain && m->place && m->u && m->v &&
           m->least && m->match && m->way && m->used && m->rows;
}

/* Point the state at layer `layer`, whose slots stand in `slots`. */
static void aim(const planner *p, state *s, uint32_t layer, int32_t *slots)
{
    s->slot = slots;
    s->load = p->loads + (size_t)layer * p->n_experts;
    s->from = p->opts->from ? moec_placement_row(p->opts->from, layer) : NULL;
    s->steps = 0;
    weigh_all(s);
}

static uint64_t n_changed(const state *s)
{
    uint64_t n = 0;

    for (uint32_t i = 0; i < s->n_physical; i++)
        n += s->slot[i] != s->from[i];
    return n;
}

/* Are the experts of each group on one node in `from`? Else steps from there
 * would leave them spread. */
static bool groups_hold(const planner *p, const int32_t *from)
{
    uint32_t size = p->n_experts / p->opts->eplb.n_groups;
    uint32_t per_node = p->n_physical / p->n_nodes;

    for (uint32_t g = 0; g < p->opts->eplb.n_groups; g++)
        p->node_count[g] = UINT32_MAX;
    for (uint32_t i = 0; i < p->n_physical; i++) {
        uint32_t *node = &p->node_count[(uint32_t)from[i] / size];

        if (*node != UINT32_MAX && *node != i / per_node)
            return false;
        *node = i / per_node;
    }
    return true;
}

/* From `from`, by steps: taken where it is not worse than EPLB's answer and
 * changes fewer slots than the other. */
static void prefer_few_moves(planner *p, uint32_t layer, double eplb_most,
                             int32_t *row)
{
    size_t bytes = p->n_physical * sizeof(*row);
    uint64_t changed = n_changed(&p->states[0]);

    if (p->by_node && !groups_hold(p, p->states[0].from))
        return;

    memcpy(p->spare, moec_placement_row(p->opts->from, layer), bytes);
    aim(p, &p->states[0], layer, p->spare);
    for (step x; most(&p->states[0]) > eplb_most &&
                 p->states[0].steps < 8 * p->n_physical &&
                 find_step(&p->states[0], &x);)
        take(&p->states[0], &x);
    if (most(&p->states[0]) <= eplb_most && n_changed(&p->states[0]) < changed)
        memcpy(row, p->spare, bytes);
}

/* EPLB's row of `eplb`, improved. */
static void do_layer(planner *p, uint32_t layer, const moec_placement *eplb)
{
    int32_t *row = p->rows + (size_t)layer * p->n_physical;
    state *s = &p->states[0];
    double eplb_most;

    memcpy(row, moec_placement_row(eplb, layer), p->n_physical * sizeof(*row));
    aim(p, s, layer, row);
    eplb_most = most(s);
    part_copies(s);
    improve(s);
    part_copies(s);
    if (p->opts->from) {
        order_like_from(s, &p->m);
        weigh_all(s);
        prefer_few_moves(p, layer, eplb_most, row);
    } else if (!p->by_node && p->n_nodes > 1) {
        spread_over_nodes(s, p->n_nodes, p->node_count);
    }
}

/* The layer that is most out of balance and can be mended within the budget,
 * one step at a time. `stuck` marks layers without a step. */
static bool do_one_step(planner *p, uint8_t *stuck, uint64_t *changed)
{
    uint32_t worst = UINT32_MAX;
    double ratio = 0;
    uint64_t before, after;
    state *s;
    step x;

    for (uint32_t i = 0; i < p->n_layers; i++) {
        double sum = 0, r;

        for (uint32_t k = 0; k < p->n_ranks; k++)
            sum += p->states[i].rank_load[k];
        r = sum > 0 ? most(&p->states[i]) / sum : 0;
        if (!stuck[i] && r > ratio) {
            ratio = r;
            worst = i;
        }
    }
    if (worst == UINT32_MAX)
        return false;
    s = &p->states[worst];
    before = n_changed(s);
    if (s->steps >= 8 * p->n_physical || !find_step(s, &x)) {
        stuck[worst] = 1;
        return true;
    }
    memcpy(p->spare, s->slot, p->n_physical * sizeof(*p->spare));
    take(s, &x);
    after = n_changed(s);
    if (*changed - before + after > p->opts->max_moves) {
        memcpy(s->slot, p->spare, p->n_physical * sizeof(*p->spare));
        weigh_all(s);
        stuck[worst] = 1;
        return true;
    }
    *changed += after - before;
    return true;
}

static moec_status do_within_budget(planner *p, moec_error *err)
{
    uint8_t *stuck = take_memory(p, p->n_layers, 1);
    uint64_t changed = 0;

    if (!stuck)
        return moec_fail_nomem(err, "layers of the planner");
    memset(stuck, 0, p->n_layers);
    for (uint32_t i = 0; i < p->n_layers; i++) {
        int32_t *row = p->rows + (size_t)i * p->n_physical;

        memcpy(row, moec_placement_row(p->opts->from, i),
               p->n_physical * sizeof(*row));
        aim(p, &p->states[i], i, row);
    }
    while (do_one_step(p, stuck, &changed)) {
    }
    return MOEC_OK;
}

static moec_status check_from(const planner *p, moec_error *err)
{
    const moec_placement *from = p->opts->from;

    if (moec_placement_n_layers(from) != p->n_layers ||
        moec_placement_n_experts(from) != p->n_experts ||
        moec_placement_n_physical(from) != p->n_physical)
        return moec_fail(
            err, MOEC_E_MAPPING, MOEC_RULE_P03,
            "the placement to start from has %" PRIu32 " layers of %" PRIu32
            " experts on %" PRIu32 " slots, wanted are %" PRIu32 ", %" PRIu32
            " and %" PRIu32,
            moec_placement_n_layers(from), moec_placement_n_experts(from),
            moec_placement_n_physical(from), p->n_layers, p->n_experts,
            p->n_physical);
    for (uint32_t i = 0; i < p->n_layers; i++) {
        const int32_t *row = moec_placement_row(from, i);

        for (uint32_t k = 0; k < p->n_physical; k++) {
            if (row[k] < 0)
                return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_P04,
                                 "the placement to start from: row %" PRIu32
                                 ", slot %" PRIu32 " is empty",
                                 i, k);
        }
    }
    return MOEC_OK;
}

static moec_status run(planner *p, const moec_placement *eplb, moec_error *err)
{
    bool budget = p->opts->from && p->opts->max_moves != MOEC_MOVES_ANY;
    uint32_t n_states = budget ? p->n_layers : 1;
    bool ok;

    if (p->opts->from)
        MOEC_TRY(check_from(p, err));
    p->rows =
        take_memory(p, (size_t)p->n_layers * p->n_physical, sizeof(*p->rows));
    p->states = take_memory(p, n_states, sizeof(*p->states));
    ok = p->rows && p->states && scratch_init(p);
    for (uint32_t i = 0; ok && i < n_states; i++)
        ok = state_init(p, &p->states[i]);
    if (!ok)
        return moec_fail_nomem(err, "a planner");
    if (budget)
        return do_within_budget(p, err);
    for (uint32_t i = 0; i < p->n_layers; i++)
        do_layer(p, i, eplb);
    return MOEC_OK;
}

moec_status moec_planner(moec_placement **out, const moec_planner_opts *opts,
                         const float *loads, uint32_t n_layers,
                         uint32_t n_experts, moec_error *err)
{
    const moec_eplb_opts *e = &opts->eplb;
    planner p = {.opts = opts, .n_layers = n_layers, .n_experts = n_experts};
    moec_placement *eplb = NULL;
    uint32_t groups;
    moec_status st;

    MOEC_TRY(moec_check_struct("moec_planner_opts", opts->struct_bytes,
                               sizeof(*opts), err));
    groups = e->n_groups ? e->n_groups : 1;
    /* It refuses what is wrong with the sizes and the loads. */
    MOEC_TRY(moec_eplb(&eplb, NULL, e, loads, n_layers, n_experts, err));
    p.loads = loads;
    p.n_physical = moec_placement_n_physical(eplb);
    p.n_ranks = e->n_ranks;
    p.n_nodes = e->n_nodes ? e->n_nodes : 1;
    if (e->n_ranks % p.n_nodes != 0) /* the global policy does not ask */
        p.n_nodes = 1;
    p.by_node = e->policy != MOEC_EPLB_GLOBAL && p.n_nodes > 1 &&
                groups % p.n_nodes == 0;
    st = run(&p, eplb, err);
    if (st == MOEC_OK)
        st = moec_placement_from_rows(out, n_layers, n_experts, p.n_physical,
                                      p.rows, err);
    moec_arena_fini(&p.arena);
    moec_placement_destroy(eplb);
    return st;
}

/* -------------------------------------------------------------- balance */

/* Copies of each expert of a row into `copies` [E]. */
static void count_copies(const moec_placement *p, const int32_t *row,
                         uint32_t *copies)
{
    memset(copies, 0, moec_placement_n_experts(p) * sizeof(*copies));
    for (uint32_t i = 0; i < moec_placement_n_physical(p); i++) {
        if (row[i] >= 0)
            copies[row[i]]++;
    }
}

moec_status moec_placement_balance(const moec_placement *p, uint32_t layer,
                                   uint32_t n_ranks, const float *load,
                                   moec_balance *out, moec_error *err)
{
    uint32_t n = moec_placement_n_physical(p);
    const int32_t *row = moec_placement_row(p, layer);
    uint32_t *copies =
        moec_calloc(moec_placement_n_experts(p), sizeof(*copies));
    moec_balance b = {.least = HUGE_VAL};

    if (!copies)
        return moec_fail_nomem(err, "copies of the experts");
    if (n_ranks == 0 || n % n_ranks != 0) {
        moec_free(copies);
        return moec_fail(err, MOEC_E_MAPPING, MOEC_RULE_P06,
                         "%" PRIu32 " slots do not divide by %" PRIu32 " ranks",
                         n, n_ranks);
    }
    count_copies(p, row, copies);
    for (uint32_t r = 0; r < n_ranks; r++) {
        double sum = 0;

        for (uint32_t i = r * (n / n_ranks); i < (r + 1) * (n / n_ranks); i++) {
            if (row[i] >= 0)
                sum += (double)load[row[i]] / copies[row[i]];
        }
        b.mean += sum / n_ranks;
        b.most = fmax(b.most, sum);
        b.least = fmin(b.least, sum);
    }
    b.ratio = b.mean > 0 ? b.most / b.mean : 1;
    moec_free(copies);
    *out = b;
    return MOEC_OK;
}

uint64_t moec_placement_moves(const moec_placement *a, const moec_placement *b,
                              uint32_t layer)
{
    const int32_t *x = moec_placement_row(a, layer);
    const int32_t *y = moec_placement_row(b, layer);
    uint64_t n = 0;

    for (uint32_t i = 0; i < moec_placement_n_physical(b); i++)
        n += y[i] >= 0 && (i >= moec_placement_n_physical(a) || x[i] != y[i]);
    return n;
}
