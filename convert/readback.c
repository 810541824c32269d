/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Checked reading of a conversion's slots. See readback.h. Shared by
 * unconvert, which writes what it reads, and by a conversion whose source is
 * itself converted.
 */

#include <string.h>
#include <unistd.h>

#include "readback.h"

/* Row of slots.bin that begins at `off` of converted file `file`. */
static moec_status find_slot(const moec_readback *rb, size_t file, uint64_t off,
                             uint64_t *slot_out, moec_error *err)
{
    if (moec_slots_find(&rb->conv->slots, file, off, slot_out))
        return MOEC_OK;
    return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_M03,
                     "slots.bin has no slot at byte %llu of %s",
                     (unsigned long long)off, rb->conv->slots.files[file].name);
}

static moec_status check_leaf(const moec_reader *r, uint32_t from,
                              uint64_t leaf, const void *data, size_t n,
                              moec_error *err)
{
    const moec_slots *s = &r->rb->conv->slots;
    const moec_ct_slot *slot = &s->slots[r->slots[from]];
    const moec_leaf *want = &s->leaves[slot->first_leaf + leaf];
    moec_xxh128 got = moec_xxh128_of(data, n);
    const moec_inverse_from *f = &r->inv.from[from];

    if (memcmp(&got, &want->xxh128, sizeof(got)) == 0)
        return MOEC_OK;
    return moec_fail_at(err, MOEC_E_INTEGRITY, MOEC_RULE_T3,
                        f->off + leaf * MOEC_LEAF_BYTES,
                        "%s: the %zu bytes at %llu (logical %d) do not have "
                        "their digest; restore the file or convert again",
                        s->files[f->file].name, n,
                        (unsigned long long)(f->off + leaf * MOEC_LEAF_BYTES),
                        (int)slot->logical);
}

/* Bytes [off, off + n) of one leaf that the request does not fill. */
static moec_status read_part(moec_reader *r, uint32_t from, uint64_t leaf,
                             uint64_t off, void *buf, size_t n, moec_error *err)
{
    const moec_inverse_from *f = &r->inv.from[from];
    uint64_t begin = leaf * MOEC_LEAF_BYTES;
    size_t bytes = (size_t)moec_min_u64(MOEC_LEAF_BYTES, f->bytes - begin);

    if (r->slot != r->slots[from] || r->leaf != leaf) {
        r->slot = UINT64_MAX;
        MOEC_TRY(moec_io_read(&r->rb->files[f->file], r->io, f->off + begin,
                              r->data, bytes, err));
        MOEC_TRY(check_leaf(r, from, leaf, r->data, bytes, err));
        r->slot = r->slots[from];
        r->leaf = leaf;
    }
    memcpy(buf, r->data + (off - begin), n);
    return MOEC_OK;
}

/* Whole leaves, straight into the destination. */
static moec_status read_leaves(moec_reader *r, uint32_t from, uint64_t off,
                               void *buf, size_t n, moec_error *err)
{
    const moec_inverse_from *f = &r->inv.from[from];
    unsigned char *p = buf;

    MOEC_TRY(
        moec_io_read(&r->rb->files[f->file], r->io, f->off + off, buf, n, err));
    for (size_t done = 0; done < n; done += MOEC_LEAF_BYTES) {
        size_t k = (size_t)moec_min_u64(MOEC_LEAF_BYTES, n - done);
        MOEC_TRY(check_leaf(r, from, (off + done) / MOEC_LEAF_BYTES, p + done,
                            k, err));
    }
    return MOEC_OK;
}

static moec_status read_slot(void *ctx, uint32_t from, uint64_t off, void *buf,
                             size_t n, moec_error *err)
{
    moec_reader *r = ctx;
    unsigned char *p = buf;
    uint64_t end = off + n, bytes = r->inv.from[from].bytes;

    while (off < end) {
        uint64_t leaf = off / MOEC_LEAF_BYTES;
        uint64_t leaf_end = moec_min_u64((leaf + 1) * MOEC_LEAF_BYTES, bytes);
        bool whole = off % MOEC_LEAF_BYTES == 0 && end >= leaf_end;
        uint64_t stop = moec_min_u64(leaf_end, end);

        if (whole) { /* and all whole ones behind it */
            stop = end == bytes ? end : end / MOEC_LEAF_BYTES * MOEC_LEAF_BYTES;
            MOEC_TRY(read_leaves(r, from, off, p, (size_t)(stop - off), err));
        } else {
            MOEC_TRY(
                read_part(r, from, leaf, off, p, (size_t)(stop - off), err));
        }
        p += stop - off;
        off = stop;
    }
    return MOEC_OK;
}

moec_status moec_reader_aim(moec_reader *r, moec_error *err)
{
    for (size_t i = 0; i < r->inv.n_moves; i++)
        MOEC_TRY(find_slot(r->rb, r->inv.from[i].file, r->inv.from[i].off,
                           &r->slots[i], err));
    return MOEC_OK;
}

moec_status moec_reader_fill(moec_reader *r, moec_io_buf *io, uint64_t from,
                             uint64_t to, void *dst, moec_error *err)
{
    r->io = io;
    return moec_block_read(r->inv.moves, r->inv.n_moves, from, to, dst,
                           read_slot, r, &r->scratch, err);
}

/* ---------------------------------------------------------- the object */

moec_status moec_readback_open(moec_readback *rb, const moec_layout *layout,
                               const moec_converted *conv, bool no_direct,
                               moec_error *err)
{
    size_t n = moec_layout_n_files(layout);

    rb->layout = layout;
    rb->conv = conv;
    rb->files = moec_calloc(n + 1, sizeof(*rb->files));
    if (rb->files == NULL)
        return moec_fail_nomem(err, "files of the conversion");
    for (size_t i = 0; i < n; i++) {
        const moec_out_file *f = moec_layout_file(layout, i);
        moec_io_file *io = &rb->files[i];

        MOEC_TRY(moec_converted_io(conv, f->name, no_direct, io, err));
        rb->n_files = i + 1;
        if (io->bytes != f->bytes)
            return moec_fail(err, MOEC_E_INTEGRITY, MOEC_RULE_M05,
                             "%s: %llu bytes, expected %llu", f->name,
                             (unsigned long long)io->bytes,
                             (unsigned long long)f->bytes);
    }
    return MOEC_OK;
}

moec_status moec_readback_hire(moec_readback *rb, uint32_t n, moec_error *err)
{
    rb->readers = moec_calloc(n, sizeof(*rb->readers));
    if (rb->readers == NULL)
        return moec_fail_nomem(err, "readers of the conversion");
    rb->n_readers = n;
    for (uint32_t i = 0; i < n; i++) {
        rb->readers[i].rb = rb;
        rb->readers[i].slot = UINT64_MAX;
    }
    return MOEC_OK;
}

void moec_readback_close(moec_readback *rb)
{
    for (size_t i = 0; i < rb->n_files; i++) {
        moec_io_close(&rb->files[i]);
        close(rb->files[i].fd);
    }
    for (uint32_t i = 0; i < rb->n_readers; i++)
        moec_scratch_fini(&rb->readers[i].scratch);
    moec_free(rb->readers);
    moec_free(rb->files);
}
