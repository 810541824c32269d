/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What this is: the host's side of the ring that a captured graph writes
 *   (moec/record.h has its grammar): which pass is whose, what is there, and
 *   what the device overran.
 * Refuses: a launch without a free slot, passes that are not the next.
 */

#include <inttypes.h>
#include <string.h>

#include "routes.h"

#define HEAD_BYTES 64u
#define SLOTS_MAX  65536u
#define ROWS_MAX   (1u << 24)

struct moec_record_ring {
    moec_recorder *recorder;
    unsigned char *memory;
    uint64_t slot_bytes;
    uint32_t n_slots, max_rows;
    uint64_t begun, drained; /* passes */
    uint32_t *n_rows;        /* [n_slots] of the pass that has the slot */
    moec_route_key *keys;    /* [n_slots][max_rows] */
};

uint64_t moec_record_ring_slot_bytes(const moec_recorder *r,
                                     const moec_record_ring_opts *opts)
{
    const moec_routes_shape *s;
    uint64_t n;

    if (!r || !opts || opts->struct_bytes < sizeof(*opts) ||
        opts->n_slots == 0 || opts->n_slots > SLOTS_MAX ||
        opts->max_rows == 0 || opts->max_rows > ROWS_MAX)
        return 0;
    s = moec_recorder_shape(r);
    /* 2^16 layers x 2^24 rows x 2^6 columns x 4 bytes stay below 2^49. */
    n = (uint64_t)s->n_layers * opts->max_rows * s->top_k * sizeof(int32_t);
    return HEAD_BYTES + (n + 63) / 64 * 64;
}

uint64_t moec_record_ring_bytes(const moec_recorder *r,
                                const moec_record_ring_opts *opts)
{
    uint64_t slot = moec_record_ring_slot_bytes(r, opts);

    return slot ? slot * opts->n_slots : 0;
}

static uint64_t *sequence_of(const moec_record_ring *ring, uint64_t pass)
{
    return (uint64_t *)(void *)(ring->memory +
                                pass % ring->n_slots * ring->slot_bytes);
}

moec_status moec_record_ring_create(moec_record_ring **out, moec_recorder *r,
                                    const moec_record_ring_opts *opts,
                                    void *memory, moec_error *err)
{
    moec_record_ring *ring;

    if (!out || !memory || (uintptr_t)memory % 64 != 0 ||
        moec_record_ring_slot_bytes(r, opts) == 0)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "ring: recorder, opts or memory is NULL, not aligned "
                         "to 64 or out of range");
    ring = moec_calloc(1, sizeof(*ring));
    if (!ring)
        return moec_fail_nomem(err, "a ring");
    ring->recorder = r;
    ring->memory = memory;
    ring->slot_bytes = moec_record_ring_slot_bytes(r, opts);
    ring->n_slots = opts->n_slots;
    ring->max_rows = opts->max_rows;
    ring->n_rows = moec_calloc(opts->n_slots, sizeof(ring->n_rows[0]));
    ring->keys = moec_calloc((size_t)opts->n_slots * opts->max_rows,
                             sizeof(ring->keys[0]));
    if (!ring->n_rows || !ring->keys) {
        moec_record_ring_destroy(ring);
        return moec_fail_nomem(err, "a ring");
    }
    for (uint64_t i = 0; i < ring->n_slots; i++)
        __atomic_store_n(sequence_of(ring, i), 0, __ATOMIC_RELEASE);
    *out = ring;
    return MOEC_OK;
}

void moec_record_ring_destroy(moec_record_ring *ring)
{
    if (!ring)
        return;
    moec_free(ring->n_rows);
    moec_free(ring->keys);
    moec_free(ring);
}

moec_status moec_record_ring_begin(moec_record_ring *ring,
                                   const moec_route_key *keys, uint32_t n_rows,
                                   moec_error *err)
{
    uint64_t slot;

    if (!ring || (n_rows && !keys) || n_rows > ring->max_rows)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "ring: %" PRIu32 " rows, or ring or keys is NULL",
                         n_rows);
    if (ring->begun - ring->drained == ring->n_slots)
        return moec_fail(err, MOEC_E_LOCKED, MOEC_RULE_NONE,
                         "ring: all %" PRIu32 " slots are under way",
                         ring->n_slots);
    slot = ring->begun % ring->n_slots;
    ring->n_rows[slot] = n_rows;
    if (n_rows)
        memcpy(ring->keys + slot * ring->max_rows, keys,
               n_rows * sizeof(keys[0]));
    ring->begun++;
    return MOEC_OK;
}

static moec_status append_pass(moec_record_ring *ring, moec_error *err)
{
    const moec_routes_shape *s = moec_recorder_shape(ring->recorder);
    uint64_t slot = ring->drained % ring->n_slots;
    const int32_t *ids =
        (const int32_t *)(const void *)(ring->memory + slot * ring->slot_bytes +
                                        HEAD_BYTES);

    /* A pass that failed half way is appended again: the rows are the same. */
    for (uint32_t l = 0; l < s->n_layers; l++)
        MOEC_TRY(moec_recorder_append(
            ring->recorder, l, ring->keys + slot * ring->max_rows,
            ids + (uint64_t)l * ring->max_rows * s->top_k, 0,
            ring->n_rows[slot], err));
    return MOEC_OK;
}

moec_status moec_record_ring_drain(moec_record_ring *ring, uint64_t *n_out,
                                   moec_error *err)
{
    moec_status st = MOEC_OK;
    uint64_t n = 0;

    if (!ring)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE, "ring: NULL");
    while (st == MOEC_OK && ring->drained < ring->begun) {
        uint64_t seen =
            __atomic_load_n(sequence_of(ring, ring->drained), __ATOMIC_ACQUIRE);

        if (seen > ring->drained + 1) {
            st = moec_fail(
                err, MOEC_E_INTEGRITY, MOEC_RULE_R04,
                "ring: slot %" PRIu64 " holds pass %" PRIu64
                ", must hold pass %" PRIu64 ": the device overran the host",
                ring->drained % ring->n_slots, seen - 1, ring->drained);
            break;
        }
        if (seen != ring->drained + 1)
            break; /* not there yet */
        st = append_pass(ring, err);
        if (st == MOEC_OK) {
            ring->drained++;
            n++;
        }
    }
    if (n_out)
        *n_out = n;
    return st;
}

uint64_t moec_record_ring_pending(const moec_record_ring *ring)
{
    return ring ? ring->begun - ring->drained : 0;
}
