/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_DEVICE_GDS_H
#define MOEC_DEVICE_GDS_H

/*
 * What this is: a sink's reader over GPUDirect Storage. See device_load.h.
 * Lifetime: borrows device and stream until close, which comes behind the job.
 * Errors: NO_DEVICE with why there is none.
 */

#include <moec/device_load.h>

typedef struct moec_device_gds moec_device_gds;

/* `library` NULL: the system's libcufile. `always`: also where it would copy
 * through the host, and what is in the page cache. */
moec_status moec_device_gds_open(moec_device_gds **out, moec_device *device,
                                 void *stream, const char *library, bool always,
                                 moec_error *err);
void moec_device_gds_close(moec_device_gds *g); /* NULL is fine */
const moec_load_reader *moec_device_gds_reader(const moec_device_gds *g);

#endif
