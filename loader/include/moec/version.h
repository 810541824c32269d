/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_VERSION_H
#define MOEC_VERSION_H

/*
 * What this is: the version of libmoec; CMake reads it from here.
 * Rule: below 1.0 any minor version may break the ABI, and SOVERSION is the
 * minor version; from 1.0 SOVERSION is the major version.
 */

#define MOEC_VERSION_MAJOR 0
#define MOEC_VERSION_MINOR 1
#define MOEC_VERSION_PATCH 0

/* Version of the converted form on disk (manifest.json, slots.bin, ...). */
#define MOEC_FORMAT_VERSION 1

#if defined(__GNUC__)
#  define MOEC_API          __attribute__((visibility("default")))
#  define MOEC_PRINTF(f, a) __attribute__((format(printf, f, a)))
#else
#  define MOEC_API
#  define MOEC_PRINTF(f, a)
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Return "major.minor.patch" of the library that runs. Static storage. */
MOEC_API const char *moec_version(void);

#ifdef __cplusplus
}
#endif
#endif
