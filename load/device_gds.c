/* SPDX-License-Identifier: Apache-2.0 */

/*
 * GPUDirect Storage as a sink's reader: the plug-in has cuFile, and kernels
 * that digest what arrived. A digest costs the device's memory one read, the
 * link some bytes. XXH3 of less than 241 bytes has formulas of its own: so
 * few come back, and are digested here.
 */

#include <pthread.h>
#include <stdbool.h>
#include <string.h>

#include "base/base.h"
#include "device_gds.h"
#include "plugin.h"

#define AT_ONCE    256u /* stretches of one launch */
#define XXH3_SHORT 240u

/* What one launch takes, as it lies on the device. */
typedef struct launch {
    const void *data[AT_ONCE];
    uint64_t bytes[AT_ONCE];
    uint8_t found[AT_ONCE * sizeof(moec_sha256)];
} launch;

struct moec_device_gds {
    const moec_backend *b;
    uint32_t ordinal;
    void *stream, *gds;
    pthread_mutex_t lock; /* of digest */
    launch *room;         /* on the device */
    moec_load_reader reader;
};

static void regions(void *ctx, const moec_load_region *v, size_t n)
{
    moec_device_gds *g = ctx;

    if (n == 0)
        g->b->gds_region(g->ordinal, g->gds, NULL, 0);
    for (size_t i = 0; i < n; i++)
        g->b->gds_region(g->ordinal, g->gds, v[i].base, v[i].bytes);
}

static moec_status open_file(void *ctx, int fd, void **out, moec_error *err)
{
    moec_device_gds *g = ctx;

    return g->b->gds_file_open(g->ordinal, g->gds, fd, out, err);
}

static void close_file(void *ctx, void *file)
{
    moec_device_gds *g = ctx;

    g->b->gds_file_close(g->ordinal, g->gds, file);
}

static moec_status read_file(void *ctx, void *file, uint64_t off, void *dst,
                             uint64_t bytes, uint64_t *got_out, moec_error *err)
{
    moec_device_gds *g = ctx;

    return g->b->gds_read(g->ordinal, g->gds, file, off, dst, bytes, got_out,
                          err);
}

/* ------------------------------------------------------------- digests */

static moec_status run(moec_device_gds *g, int sha256, launch *l, uint32_t n,
                       size_t each, moec_error *err)
{
    launch *there = g->room;

    MOEC_TRY(g->b->upload(g->ordinal, there->data, l->data,
                          n * sizeof(*l->data), g->stream, err));
    MOEC_TRY(g->b->upload(g->ordinal, there->bytes, l->bytes,
                          n * sizeof(*l->bytes), g->stream, err));
    MOEC_TRY(g->b->digests(g->ordinal, sha256, there->data, there->bytes, n,
                           there->found, g->stream, err));
    return g->b->download(g->ordinal, l->found, there->found, n * each,
                          g->stream, err);
}

static moec_status digest_short(moec_device_gds *g, const void *data,
                                uint64_t bytes, uint8_t *out, moec_error *err)
{
    unsigned char back[XXH3_SHORT];
    moec_xxh128 h;

    MOEC_TRY(g->b->download(g->ordinal, back, data, bytes, g->stream, err));
    h = moec_xxh128_of(back, (size_t)bytes);
    memcpy(out, h.b, sizeof(h.b));
    return MOEC_OK;
}

static moec_status digest_all(moec_device_gds *g, int sha256,
                              const void *const *data, const uint64_t *bytes,
                              size_t n, uint8_t *out, launch *l,
                              moec_error *err)
{
    size_t each = sha256 ? sizeof(moec_sha256) : sizeof(moec_xxh128);
    size_t at[AT_ONCE]; /* whose they are */
    uint32_t k = 0;

    for (size_t i = 0; i < n; i++) {
        if (!sha256 && bytes[i] <= XXH3_SHORT) {
            MOEC_TRY(digest_short(g, data[i], bytes[i], out + i * each, err));
        } else {
            l->data[k] = data[i];
            l->bytes[k] = bytes[i];
            at[k++] = i;
        }
        if (k == 0 || (k < AT_ONCE && i + 1 < n))
            continue;
        MOEC_TRY(run(g, sha256, l, k, each, err));
        while (k > 0) {
            k--;
            memcpy(out + at[k] * each, l->found + k * each, each);
        }
    }
    return MOEC_OK;
}

static moec_status digest(void *ctx, int sha256, const void *const *data,
                          const uint64_t *bytes, size_t n, uint8_t *out,
                          moec_error *err)
{
    moec_device_gds *g = ctx;
    launch *l = moec_alloc(sizeof(*l));
    moec_status st;

    if (l == NULL)
        return moec_fail_nomem(err, "digests on the device");
    (void)pthread_mutex_lock(&g->lock);
    st = digest_all(g, sha256, data, bytes, n, out, l, err);
    (void)pthread_mutex_unlock(&g->lock);
    moec_free(l);
    return st;
}

/* ---------------------------------------------------------------- life */

moec_status moec_device_gds_open(moec_device_gds **out, moec_device *device,
                                 void *stream, const char *library, bool always,
                                 moec_error *err)
{
    moec_device_gds *g = moec_calloc(1, sizeof(*g));
    void *room = NULL;
    moec_status st;

    if (g == NULL)
        return moec_fail_nomem(err, "GPUDirect Storage");
    g->b = moec_device_backend(device, &g->ordinal);
    g->stream = stream;
    (void)pthread_mutex_init(&g->lock, NULL);
    g->reader = (moec_load_reader){.struct_bytes = sizeof(g->reader),
                                   .always = always,
                                   .ctx = g,
                                   .regions = regions,
                                   .open = open_file,
                                   .close = close_file,
                                   .read = read_file,
                                   .digest = digest};
    st = g->b->gds_open(g->ordinal, library, always, &g->gds, err);
    if (st == MOEC_OK)
        st = g->b->alloc(g->ordinal, &room, sizeof(launch), err);
    g->room = room;
    if (st != MOEC_OK) {
        moec_device_gds_close(g);
        return st;
    }
    *out = g;
    return MOEC_OK;
}

void moec_device_gds_close(moec_device_gds *g)
{
    if (g == NULL)
        return;
    if (g->room != NULL)
        g->b->free(g->ordinal, g->room);
    if (g->gds != NULL)
        g->b->gds_close(g->ordinal, g->gds);
    (void)pthread_mutex_destroy(&g->lock);
    moec_free(g);
}

const moec_load_reader *moec_device_gds_reader(const moec_device_gds *g)
{
    return &g->reader;
}
