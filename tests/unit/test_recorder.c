/* SPDX-License-Identifier: Apache-2.0 */

#include "route_recording.h"

#include <pthread.h>

#include "base/base.h"

#define E 16u
#define K 3u

/* ----------------------------------------------------------------- rows */

static void gives_back_every_row(void **state)
{
    moec_recorder *r = rr_start(E, K, 3);
    uint64_t a = rr_request(r, "a", 0), b = rr_request(r, "b", 0);
    moec_routes *out = NULL;

    (void)state;
    rr_fill(r, b, 2, 0, 200, E, K);
    rr_fill(r, a, 1, 0, 5, E, K);
    assert_int_equal(moec_recorder_stats_of(r).rows, 3 * 205);
    assert_int_equal(moec_recorder_stop(r, &out, NULL), MOEC_OK);
    assert_int_equal(moec_routes_n_requests(out), 2);
    assert_int_equal(moec_routes_n_tokens(out), 205);
    assert_string_equal(moec_routes_get_request(out, 0).id, "a");
    for (uint32_t p = 0; p < 5; p++)
        rr_expect(out, 0, p, 1, p);
    for (uint32_t p = 0; p < 200; p++)
        rr_expect(out, 1, p, 2, p);
    assert_int_equal(moec_recorder_stats_of(r).requests, 0);
    assert_int_equal(moec_recorder_stats_of(r).bytes, 0);
    assert_int_equal(moec_recorder_stop(r, &out, NULL), MOEC_E_ARG);
    moec_routes_destroy(out);
    moec_recorder_destroy(r);
}

static void samples_of_a_request_are_apart(void **state)
{
    moec_recorder *r = rr_start(E, K, 3);
    uint64_t a = rr_request(r, "a", 0), b = rr_request(r, "a", 1);
    moec_routes *out = NULL;

    (void)state;
    assert_true(a != b);
    assert_true(rr_request(r, "a", 1) == b);
    rr_fill(r, a, 1, 0, 2, E, K);
    rr_fill(r, b, 2, 0, 3, E, K);
    assert_int_equal(moec_recorder_take(r, b, &out, NULL), MOEC_OK);
    assert_int_equal(moec_routes_n_tokens(out), 3);
    assert_int_equal(moec_routes_get_request(out, 0).sample, 1);
    rr_expect(out, 0, 2, 2, 2);
    moec_routes_destroy(out);
    moec_recorder_destroy(r);
}

static void padding_rows_are_passed_over(void **state)
{
    moec_recorder *r = rr_start(E, K, 3);
    uint64_t a = rr_request(r, "a", 0);
    moec_route_key keys[3] = {{.request = 0, .position = 9},
                              {.request = a, .position = 0},
                              {.request = 0, .position = 1}};
    int32_t ids[9] = {99, 99, 99, 1, 2, -7, 99, 99, 99}, got[K];
    moec_routes *out = NULL;

    (void)state;
    for (uint32_t l = 0; l < 3; l++)
        assert_int_equal(moec_recorder_append(r, l, keys, ids, 0, 3, NULL),
                         MOEC_OK);
    assert_int_equal(moec_recorder_stats_of(r).rows, 3);
    assert_int_equal(moec_recorder_take(r, a, &out, NULL), MOEC_OK);
    assert_int_equal(moec_routes_n_tokens(out), 1);
    moec_routes_ids(out, 0, 1, 2, got);
    assert_int_equal(got[0], 1);
    assert_int_equal(got[1], 2);
    assert_int_equal(got[2], -1);
    moec_routes_destroy(out);
    moec_recorder_destroy(r);
}

/* E = 255: ids up to 254 and the sentinel 255. E = 256: id 255 is an expert. */
static void sentinel_is_never_an_expert(void **state)
{
    const uint32_t experts[] = {255, 256, 4096};
    const uint32_t width[] = {1, 2, 2};

    (void)state;
    for (int i = 0; i < 3; i++) {
        moec_recorder *r = rr_start(experts[i], 2, 3);
        uint64_t a = rr_request(r, "a", 0);
        moec_route_key key = {.request = a};
        int32_t ids[2] = {(int32_t)experts[i] - 1, -1}, got[2];
        int32_t bad[2] = {0, (int32_t)experts[i]};
        moec_routes *out = NULL;

        for (uint32_t l = 0; l < 3; l++)
            assert_int_equal(moec_recorder_append(r, l, &key, ids, 0, 1, NULL),
                             MOEC_OK);
        assert_int_equal(moec_recorder_append(r, 0, &key, bad, 0, 1, NULL),
                         MOEC_E_ARG);
        assert_int_equal(moec_recorder_stop(r, &out, NULL), MOEC_OK);
        assert_int_equal(moec_routes_width(out), width[i]);
        moec_routes_ids(out, 0, 1, 0, got);
        assert_int_equal(got[0], ids[0]);
        assert_int_equal(got[1], -1);
        moec_routes_destroy(out);
        moec_recorder_destroy(r);
    }
}

/* --------------------------------------------------------------- losses */

static void names_the_first_missing_row(void **state)
{
    moec_recorder *r = rr_start(E, K, 3);
    uint64_t a = rr_request(r, "req", 7);
    moec_error err = MOEC_ERROR_INIT;
    moec_routes *out = NULL;

    (void)state;
    rr_fill(r, a, 1, 0, 80, E, K);
    rr_fill(r, a, 1, 81, 90, E, K);
    assert_int_equal(rr_append(r, 0, a, 1, 80, E, K), MOEC_OK);
    assert_int_equal(rr_append(r, 2, a, 1, 80, E, K), MOEC_OK);
    assert_int_equal(moec_recorder_take(r, a, &out, &err), MOEC_E_INTEGRITY);
    assert_null(out);
    assert_int_equal(err.rule, MOEC_RULE_R04);
    assert_non_null(strstr(err.text, "'req', sample 7: 1 positions"));
    assert_non_null(strstr(err.text, "first is 80, in layer 2"));
    /* Nothing was taken: the row can still come. */
    assert_int_equal(rr_append(r, 1, a, 1, 80, E, K), MOEC_OK);
    assert_int_equal(moec_recorder_take(r, a, &out, NULL), MOEC_OK);
    rr_expect(out, 0, 80, 1, 80);
    moec_routes_destroy(out);
    moec_recorder_destroy(r);
}

static void a_position_never_seen_is_missing(void **state)
{
    moec_recorder *r = rr_start(E, K, 3);
    uint64_t a = rr_request(r, "a", 0);
    moec_error err = MOEC_ERROR_INIT;
    moec_routes *out = NULL;

    (void)state;
    rr_fill(r, a, 1, 500, 501, E, K);
    assert_int_equal(moec_recorder_stop(r, &out, &err), MOEC_E_INTEGRITY);
    assert_non_null(strstr(err.text, "500 positions lack rows"));
    moec_recorder_destroy(r);
}

static void a_call_that_fails_stores_nothing(void **state)
{
    moec_recorder *r = rr_start(E, K, 3);
    uint64_t a = rr_request(r, "a", 0);
    moec_route_key keys[2] = {{.request = a, .position = 0},
                              {.request = a, .position = 1}};
    int32_t ids[6] = {0, 1, 2, 3, 4, 99};
    moec_error err = MOEC_ERROR_INIT;

    (void)state;
    assert_int_equal(moec_recorder_append(r, 0, keys, ids, 0, 2, &err),
                     MOEC_E_ARG);
    assert_int_equal(err.rule, MOEC_RULE_R03);
    assert_non_null(strstr(err.text, "row 1, column 2: id 99 of 16"));
    keys[1].request = a + 1; /* another request's */
    ids[5] = 5;
    assert_int_equal(moec_recorder_append(r, 0, keys, ids, 0, 2, NULL),
                     MOEC_E_ARG);
    keys[1].request = a;
    keys[1].position = MOEC_ROUTE_POSITION_MAX + 1;
    assert_int_equal(moec_recorder_append(r, 0, keys, ids, 0, 2, NULL),
                     MOEC_E_ARG);
    assert_int_equal(moec_recorder_append(r, 3, keys, ids, 0, 2, NULL),
                     MOEC_E_ARG);
    assert_int_equal(moec_recorder_append(r, 0, keys, ids, K - 1, 2, NULL),
                     MOEC_E_ARG);
    assert_int_equal(moec_recorder_stats_of(r).rows, 0);
    moec_recorder_destroy(r);
}

/* The cap is back-pressure: after a take the same call goes through. */
static void a_full_recorder_says_so_and_goes_on(void **state)
{
    moec_recorder_opts o = rr_opts(E, K, 3);
    moec_recorder *r = NULL;
    moec_routes *out = NULL;
    moec_error err = MOEC_ERROR_INIT;
    uint64_t a, b;

    (void)state;
    o.max_bytes = 1500; /* one chunk and its directory */
    assert_int_equal(moec_recorder_start(&r, &o, NULL), MOEC_OK);
    a = rr_request(r, "a", 0);
    b = rr_request(r, "b", 0);
    rr_fill(r, a, 1, 0, 10, E, K);
    assert_int_equal(rr_append(r, 0, b, 2, 0, E, K), MOEC_E_NOMEM);
    assert_int_equal(moec_recorder_take(r, a, &out, &err), MOEC_OK);
    rr_fill(r, b, 2, 0, 1, E, K);
    moec_routes_destroy(out);
    moec_recorder_destroy(r);
}

static void handles_end_with_take(void **state)
{
    moec_recorder *r = rr_start(E, K, 3);
    uint64_t a = rr_request(r, "a", 0), again;
    moec_routes *out = NULL;

    (void)state;
    rr_fill(r, a, 1, 0, 1, E, K);
    assert_int_equal(moec_recorder_take(r, a, &out, NULL), MOEC_OK);
    assert_int_equal(rr_append(r, 0, a, 1, 1, E, K), MOEC_E_ARG);
    assert_int_equal(moec_recorder_take(r, a, &out, NULL), MOEC_E_ARG);
    assert_int_equal(moec_recorder_gap(r, a, 0, 1, NULL), MOEC_E_ARG);
    again = rr_request(r, "a", 0);
    assert_true(again != a);
    assert_int_equal(rr_append(r, 0, a, 1, 1, E, K), MOEC_E_ARG);
    moec_routes_destroy(out);
    moec_recorder_destroy(r);
}

static void refuses_ids_that_are_no_text(void **state)
{
    moec_recorder *r = rr_start(E, K, 3);
    char longest[MOEC_ROUTE_ID_BYTES_MAX + 2];
    uint64_t h;

    (void)state;
    memset(longest, 'x', sizeof(longest));
    longest[sizeof(longest) - 1] = '\0';
    assert_int_equal(moec_recorder_request(r, "", 0, &h, NULL), MOEC_E_ARG);
    assert_int_equal(moec_recorder_request(r, "\xff", 0, &h, NULL), MOEC_E_ARG);
    assert_int_equal(moec_recorder_request(r, longest, 0, &h, NULL),
                     MOEC_E_ARG);
    longest[sizeof(longest) - 2] = '\0';
    assert_int_equal(moec_recorder_request(r, longest, 0, &h, NULL), MOEC_OK);
    moec_recorder_destroy(r);
}

/* ------------------------------------------------------ gaps, retraction */

static void cached_prefixes_are_gaps(void **state)
{
    moec_recorder *r = rr_start(E, K, 3);
    uint64_t a = rr_request(r, "a", 0);
    moec_routes *out = NULL;
    moec_routes_request q;

    (void)state;
    assert_int_equal(moec_recorder_gap(r, a, 0, 100, NULL), MOEC_OK);
    assert_int_equal(moec_recorder_gap(r, a, 300, 310, NULL), MOEC_OK);
    assert_int_equal(moec_recorder_gap(r, a, 100, 128, NULL), MOEC_OK);
    rr_fill(r, a, 1, 128, 300, E, K);
    rr_fill(r, a, 1, 50, 52, E, K); /* known after all */
    assert_int_equal(moec_recorder_stop(r, &out, NULL), MOEC_OK);
    q = moec_routes_get_request(out, 0);
    assert_int_equal(q.n_tokens, 174);
    assert_int_equal(q.n_gaps, 3);
    assert_int_equal(q.gaps[0].first, 0);
    assert_int_equal(q.gaps[0].end, 50);
    assert_int_equal(q.gaps[1].first, 52);
    assert_int_equal(q.gaps[1].end, 128);
    assert_int_equal(q.gaps[2].first, 300);
    assert_int_equal(q.gaps[2].end, 310);
    rr_expect(out, 0, 0, 1, 50);
    rr_expect(out, 0, 2, 1, 128);
    moec_routes_destroy(out);
    moec_recorder_destroy(r);
}

/* Borders of gaps at and beside those of chunks of 64. */
static void gaps_end_where_they_say(void **state)
{
    const uint32_t borders[] = {1, 63, 64, 65, 127, 128, 129, 1000};

    (void)state;
    for (int i = 0; i < 8; i++) {
        moec_recorder *r = rr_start(E, K, 3);
        uint64_t a = rr_request(r, "a", 0);
        moec_error err = MOEC_ERROR_INIT;
        moec_routes *out = NULL;
        moec_routes_request q;
        uint32_t b = borders[i];

        assert_int_equal(moec_recorder_gap(r, a, 0, b, NULL), MOEC_OK);
        rr_fill(r, a, 1, b + 200, b + 201, E, K);
        assert_int_equal(moec_recorder_stop(r, &out, &err), MOEC_E_INTEGRITY);
        assert_non_null(strstr(err.text, "200 positions lack rows"));
        assert_int_equal(moec_recorder_gap(r, a, b + 1, b + 200, NULL),
                         MOEC_OK);
        rr_fill(r, a, 1, b, b + 1, E, K);
        assert_int_equal(moec_recorder_stop(r, &out, NULL), MOEC_OK);
        q = moec_routes_get_request(out, 0);
        assert_int_equal(q.n_tokens, 2);
        assert_int_equal(q.n_gaps, 2);
        assert_int_equal(q.gaps[0].end, b);
        assert_int_equal(q.gaps[1].first, b + 1);
        assert_int_equal(q.gaps[1].end, b + 200);
        moec_routes_destroy(out);
        moec_recorder_destroy(r);
    }
}

static void rows_after_a_retraction_replace_those_before(void **state)
{
    moec_recorder *r = rr_start(E, K, 3);
    uint64_t a = rr_request(r, "a", 0);
    moec_routes *out = NULL;

    (void)state;
    rr_fill(r, a, 1, 0, 150, E, K);
    assert_int_equal(moec_recorder_retract(r, a, 70, NULL), MOEC_OK);
    rr_fill(r, a, 2, 70, 100, E, K); /* shorter than before */
    rr_fill(r, a, 3, 69, 70, E, K);  /* replaced without retraction */
    assert_int_equal(moec_recorder_stop(r, &out, NULL), MOEC_OK);
    assert_int_equal(moec_routes_n_tokens(out), 100);
    rr_expect(out, 0, 68, 1, 68);
    rr_expect(out, 0, 69, 3, 69);
    rr_expect(out, 0, 70, 2, 70);
    rr_expect(out, 0, 99, 2, 99);
    moec_routes_destroy(out);
    moec_recorder_destroy(r);
}

static void retraction_takes_gaps_back(void **state)
{
    moec_recorder *r = rr_start(E, K, 3);
    uint64_t a = rr_request(r, "a", 0);
    moec_routes *out = NULL;

    (void)state;
    assert_int_equal(moec_recorder_gap(r, a, 0, 64, NULL), MOEC_OK);
    assert_int_equal(moec_recorder_gap(r, a, 80, 90, NULL), MOEC_OK);
    assert_int_equal(moec_recorder_retract(r, a, 32, NULL), MOEC_OK);
    rr_fill(r, a, 1, 32, 40, E, K);
    assert_int_equal(moec_recorder_stop(r, &out, NULL), MOEC_OK);
    assert_int_equal(moec_routes_get_request(out, 0).n_gaps, 1);
    assert_int_equal(moec_routes_get_request(out, 0).gaps[0].end, 32);
    assert_int_equal(moec_routes_n_tokens(out), 8);
    moec_routes_destroy(out);
    moec_recorder_destroy(r);
}

static void mtp_layers_may_lack_rows(void **state)
{
    moec_recorder *r = rr_start(E, K, 4);
    uint64_t a = rr_request(r, "a", 0);
    moec_routes *out = NULL;
    int32_t ids[K];

    (void)state;
    rr_fill(r, a, 1, 0, 2, E, K);
    assert_int_equal(rr_append(r, 3, a, 1, 1, E, K), MOEC_OK);
    assert_int_equal(moec_recorder_stop(r, &out, NULL), MOEC_OK);
    moec_routes_ids(out, 0, 1, 3, ids);
    for (uint32_t c = 0; c < K; c++)
        assert_int_equal(ids[c], -1);
    moec_routes_ids(out, 1, 1, 3, ids);
    assert_int_equal(ids[0], rr_id(1, 1, 3, 0, E, K));
    moec_routes_destroy(out);
    moec_recorder_destroy(r);
}

/* -------------------------------------------------------------- threads */

#define N_THREADS  4u
#define N_REQUESTS 96u
#define N_PASSES   43u /* 96 * 43 = 4128 tokens */

typedef struct shared {
    moec_recorder *r;
    uint64_t handles[N_REQUESTS];
    pthread_barrier_t barrier;
} shared;

typedef struct job {
    shared *s;
    uint32_t number;
} job;

/* Prefill of all requests as one batch, then decoding: every thread appends
 * its layers, and every token of some other requests that it opens itself. */
static void *append_all(void *arg)
{
    job *j = arg;
    shared *s = j->s;
    moec_route_key *keys = calloc(N_REQUESTS * N_PASSES, sizeof(*keys));
    int32_t *ids = calloc(N_REQUESTS * N_PASSES * K, sizeof(*ids));
    uint64_t own;
    char name[16];
    size_t n = 0;

    snprintf(name, sizeof(name), "own-%u", j->number);
    if (!keys || !ids ||
        moec_recorder_request(s->r, name, 0, &own, NULL) != MOEC_OK)
        return (void *)1;
    (void)pthread_barrier_wait(&s->barrier);
    for (uint32_t q = 0; q < N_REQUESTS; q++)
        for (uint32_t p = 0; p < N_PASSES; p++, n++)
            keys[n] = (moec_route_key){s->handles[q], p, 0};
    for (uint32_t l = 0; l < 3; l++) {
        if (l % N_THREADS != j->number)
            continue;
        for (size_t i = 0; i < n; i++)
            for (uint32_t c = 0; c < K; c++)
                ids[i * K + c] = rr_id((uint32_t)(i / N_PASSES),
                                       keys[i].position, l, c, E, K);
        /* One batch of 4,128 tokens of 96 requests. */
        if (moec_recorder_append(s->r, l, keys, ids, 0, n, NULL) != MOEC_OK)
            return (void *)1;
    }
    for (uint32_t p = 0; p < 300; p++)
        for (uint32_t l = 0; l < 3; l++)
            if (rr_append(s->r, l, own, 1000 + j->number, p, E, K) != MOEC_OK)
                return (void *)1;
    free(keys);
    free(ids);
    return NULL;
}

static void many_threads_lose_nothing(void **state)
{
    shared s = {.r = rr_start(E, K, 3)};
    pthread_t threads[N_THREADS];
    job jobs[N_THREADS];
    moec_routes *out = NULL;
    void *bad = NULL;
    char name[16];

    (void)state;
    assert_int_equal(pthread_barrier_init(&s.barrier, NULL, N_THREADS), 0);
    for (uint32_t q = 0; q < N_REQUESTS; q++) {
        snprintf(name, sizeof(name), "q%u", q);
        s.handles[q] = rr_request(s.r, name, q);
    }
    for (uint32_t i = 0; i < N_THREADS; i++) {
        jobs[i] = (job){&s, i};
        assert_int_equal(
            pthread_create(&threads[i], NULL, append_all, &jobs[i]), 0);
    }
    for (uint32_t i = 0; i < N_THREADS; i++) {
        assert_int_equal(pthread_join(threads[i], &bad), 0);
        assert_null(bad);
    }
    assert_int_equal(moec_recorder_stats_of(s.r).rows,
                     3 * (N_REQUESTS * N_PASSES + N_THREADS * 300));
    assert_int_equal(moec_recorder_stop(s.r, &out, NULL), MOEC_OK);
    assert_int_equal(moec_routes_n_requests(out), N_REQUESTS + N_THREADS);
    for (uint32_t q = 0; q < N_REQUESTS; q++) {
        assert_int_equal(moec_routes_get_request(out, q).sample, q);
        for (uint32_t p = 0; p < N_PASSES; p++)
            rr_expect(out, q, p, q, p);
    }
    for (uint32_t i = N_REQUESTS; i < N_REQUESTS + N_THREADS; i++) {
        const char *id = moec_routes_get_request(out, i).id;

        for (uint32_t p = 0; p < 300; p++)
            rr_expect(out, i, p, 1000 + (uint32_t)(id[4] - '0'), p);
    }
    moec_routes_destroy(out);
    moec_recorder_destroy(s.r);
    (void)pthread_barrier_destroy(&s.barrier);
}

/* --------------------------------------------------------------- memory */

static moec_status whole_life(void)
{
    moec_recorder_opts o = rr_opts(E, K, 3);
    moec_recorder *r = NULL;
    moec_routes *out = NULL;
    moec_status st = moec_recorder_start(&r, &o, NULL);
    uint64_t h = 0;

    for (uint32_t i = 0; st == MOEC_OK && i < 300; i++) {
        char name[16];

        snprintf(name, sizeof(name), "%u", i);
        st = moec_recorder_request(r, name, 0, &h, NULL);
        for (uint32_t l = 0; st == MOEC_OK && l < 3; l++)
            st = rr_append(r, l, h, 1, 0, E, K);
    }
    if (st == MOEC_OK)
        st = moec_recorder_gap(r, h, 1, 3, NULL);
    for (uint32_t l = 0; st == MOEC_OK && l < 3; l++)
        st = rr_append(r, l, h, 1, 2000, E, K);
    if (st == MOEC_OK)
        st = moec_recorder_retract(r, h, 1, NULL);
    if (st == MOEC_OK)
        st = moec_recorder_stop(r, &out, NULL);
    moec_routes_destroy(out);
    moec_recorder_destroy(r);
    return st;
}

static void survives_every_failed_allocation(void **state)
{
    uint64_t n;

    (void)state;
    (void)moec_alloc_fail_at(0);
    assert_int_equal(whole_life(), MOEC_OK);
    n = moec_alloc_fail_at(0);
    for (uint64_t i = 1; i <= n; i += i < 40 || i + 320 > n ? 1 : 7) {
        moec_status st;

        (void)moec_alloc_fail_at(i);
        st = whole_life();
        (void)moec_alloc_fail_at(0);
        /* Buckets that cannot grow are no failure. */
        assert_true(st == MOEC_E_NOMEM || st == MOEC_OK);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gives_back_every_row),
        cmocka_unit_test(samples_of_a_request_are_apart),
        cmocka_unit_test(padding_rows_are_passed_over),
        cmocka_unit_test(sentinel_is_never_an_expert),
        cmocka_unit_test(names_the_first_missing_row),
        cmocka_unit_test(a_position_never_seen_is_missing),
        cmocka_unit_test(a_call_that_fails_stores_nothing),
        cmocka_unit_test(a_full_recorder_says_so_and_goes_on),
        cmocka_unit_test(handles_end_with_take),
        cmocka_unit_test(refuses_ids_that_are_no_text),
        cmocka_unit_test(cached_prefixes_are_gaps),
        cmocka_unit_test(gaps_end_where_they_say),
        cmocka_unit_test(rows_after_a_retraction_replace_those_before),
        cmocka_unit_test(retraction_takes_gaps_back),
        cmocka_unit_test(mtp_layers_may_lack_rows),
        cmocka_unit_test(many_threads_lose_nothing),
        cmocka_unit_test(survives_every_failed_allocation),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
