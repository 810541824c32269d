/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_DEVICE_TEST_H
#define MOEC_DEVICE_TEST_H

/*
 * What this is: the device that a device test runs on: the emulated plug-in,
 *   or with MOEC_TEST_PLUGIN=PATH in the environment a real one ("" for the
 *   one that the library finds).
 */

#include <stdio.h>
#include <stdlib.h>

#include <moec/device.h>

static inline moec_status test_device_open(moec_device **out, moec_error *err)
{
    moec_device_opts o = MOEC_DEVICE_OPTS_INIT;
    const char *path = getenv("MOEC_TEST_PLUGIN");

    o.plugin = MOEC_EMULATED_PLUGIN;
    if (path)
        o.plugin = path[0] ? path : NULL;
    return moec_device_open(out, &o, err);
}

/* That device and the CPU's back end `isa`, for a group of tests: 0, or -1 with
 * the reason on stderr. */
static inline int test_open_both(moec_device **device, moec_kernels **cpu,
                                 moec_isa isa)
{
    moec_kernels_opts o = MOEC_KERNELS_OPTS_INIT;
    moec_error err = MOEC_ERROR_INIT;

    o.isa = isa;
    if (test_device_open(device, &err) == MOEC_OK &&
        moec_kernels_open(cpu, &o, &err) == MOEC_OK)
        return 0;
    (void)fprintf(stderr, "%s\n", err.text);
    return -1;
}

/* Bytes on the device, a copy of `from` or, where that is NULL, poison. */
static inline void *test_to_device(moec_device *d, const void *from, size_t n)
{
    moec_error err = MOEC_ERROR_INIT;
    void *p = NULL;

    if (moec_device_alloc(d, &p, n ? n : 1, &err) != MOEC_OK ||
        (from && n &&
         moec_device_upload(d, p, from, n, NULL, &err) != MOEC_OK)) {
        (void)fprintf(stderr, "%s\n", err.text);
        abort();
    }
    return p;
}

static inline void test_from_device(moec_device *d, void *to, const void *from,
                                    size_t n)
{
    moec_error err = MOEC_ERROR_INIT;

    if (n && moec_device_download(d, to, from, n, NULL, &err) != MOEC_OK) {
        (void)fprintf(stderr, "%s\n", err.text);
        abort();
    }
}

#endif
