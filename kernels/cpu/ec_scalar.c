/* SPDX-License-Identifier: Apache-2.0
 *
 * The scans of Expert Choice in plain C: the specification of the others. */

#include "ec.h"

static uint32_t above(const uint32_t *cols, const uint32_t *floors,
                      uint32_t stride, uint16_t *ids)
{
    uint32_t n = 0;

    for (uint32_t e = 0; e < stride; e++) {
        ids[n] = (uint16_t)e;
        n += cols[e] > floors[e];
    }
    return n;
}

static uint32_t reach(const uint64_t *pairs, uint32_t n, uint64_t v)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < n; i++)
        count += pairs[i] >= v;
    return count;
}

static uint64_t largest(const uint64_t *pairs, uint32_t n)
{
    uint64_t v = 0;

    for (uint32_t i = 0; i < n; i++)
        v = pairs[i] > v ? pairs[i] : v;
    return v;
}

uint32_t moec_ec_keep_scalar(uint64_t *pairs, uint32_t n, uint32_t v,
                             uint32_t *ties)
{
    uint32_t kept = 0, left = *ties;

    for (uint32_t i = 0; i < n; i++) {
        uint32_t key = MOEC_EC_KEY(pairs[i]), tie = key == v && left > 0;

        pairs[kept] = pairs[i];
        left -= tie;
        kept += (key > v) | tie;
    }
    *ties = left;
    return kept;
}

/* Bisection to 2^14 of the order-preserving bits: a 512th of an octave. */
static void floors(const uint32_t *keys, uint32_t n, uint32_t rank,
                   uint32_t *out)
{
    for (uint32_t c = 0; c < 16; c++) {
        uint32_t lo = 0;

        for (uint32_t bit = UINT32_C(1) << 31; bit > 1 << 13; bit >>= 1) {
            uint32_t count = 0;

            for (uint32_t i = 0; i < n; i++)
                count += keys[(size_t)i * 16 + c] > (lo | bit);
            if (count >= rank)
                lo |= bit;
        }
        out[c] = lo;
    }
}

/* Insertion into the k best so far, which stand at the front. */
uint32_t moec_ec_best_scalar(uint64_t *pairs, uint32_t n, uint32_t k)
{
    uint32_t m = 0;

    for (uint32_t i = 0; i < n; i++) {
        uint64_t p = pairs[i];
        uint32_t j = m;

        if (m == k) {
            if (p < pairs[m - 1])
                continue;
            j = m - 1;
            pairs[i] = pairs[j];
        } else {
            m++;
        }
        for (; j > 0 && pairs[j - 1] < p; j--)
            pairs[j] = pairs[j - 1];
        pairs[j] = p;
    }
    return m;
}

static uint32_t next(const uint32_t *keys, const uint32_t *open,
                     uint32_t stride, uint32_t last_key, uint32_t last_id)
{
    uint32_t key = 0, id = UINT32_MAX;

    for (uint32_t e = 0; e < stride; e++) {
        uint32_t k = keys[e] & open[e];

        if (k > key && (k < last_key || (k == last_key && e > last_id))) {
            key = k;
            id = e;
        }
    }
    return id;
}

const struct moec_ec_fns moec_ec_scalar = {
    .above = above,
    .reach = reach,
    .largest = largest,
    .keep = moec_ec_keep_scalar,
    .floors = floors,
    .best = moec_ec_best_scalar,
    .next = next,
};
