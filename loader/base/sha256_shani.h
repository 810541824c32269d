/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_SHA256_SHANI_H
#define MOEC_SHA256_SHANI_H

/* Two SHA-256 messages at once; for digest.c alone. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/base.h"

/* False where the compiler had no SHA extensions to offer: never call then. */
bool moec_sha256_shani_built(void);

/* Run the compression function over n_blocks 64-byte blocks of each message.
 * The CPU must have SHA, SSSE3 and SSE4.1. */
void moec_sha256_shani_x2(uint32_t state_a[8], const unsigned char *a,
                          uint32_t state_b[8], const unsigned char *b,
                          size_t n_blocks);
/* The same; each message is copied on the way, and what stands `ahead` fetched
 * into the cache. Places and messages do not overlap. */
void moec_sha256_shani_copy_x2(uint32_t state_a[8], uint32_t state_b[8],
                               const moec_sha256_block b[2], size_t n_blocks);

#endif
