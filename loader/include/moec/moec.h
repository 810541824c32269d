/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_H
#define MOEC_H

/*
 * What this is: the umbrella over libmoec's public headers.
 * Lifetime, threads, errors: see each header.
 */

#include <moec/device.h>
#include <moec/device_load.h>
#include <moec/error.h>
#include <moec/exchange.h>
#include <moec/kernels.h>
#include <moec/load.h>
#include <moec/loader.h>
#include <moec/mapping.h>
#include <moec/record.h>
#include <moec/sign.h>
#include <moec/study.h>
#include <moec/types.h>
#include <moec/validate.h>
#include <moec/version.h>

#endif
