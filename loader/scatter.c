/* SPDX-License-Identifier: Apache-2.0 */

/* Matrices from strides to strides. See scatter.h. */

#include <string.h>

#include "base/base.h"
#include "scatter.h"

/* Square tile of a transposing copy: two tiles of 8-byte elements fit L1. */
#define TILE 32u

#define SCATTER(T)                                                             \
  static void scatter_##T(const moec_grid *g, unsigned char *dst,              \
                          const unsigned char *src)                            \
  {                                                                            \
    for (uint64_t r0 = 0; r0 < g->n_rows; r0 += TILE)                          \
      for (uint64_t c0 = 0; c0 < g->n_cols; c0 += TILE) {                      \
        uint64_t r1 = moec_min_u64(r0 + TILE, g->n_rows);                      \
        uint64_t c1 = moec_min_u64(c0 + TILE, g->n_cols);                      \
        for (uint64_t r = r0; r < r1; r++)                                     \
          for (uint64_t c = c0; c < c1; c++)                                   \
            memcpy(dst + r * g->dst_row + c * g->dst_col,                      \
                   src + r * g->src_row + c * g->src_col, sizeof(T));          \
      }                                                                        \
  }
SCATTER(uint8_t)
SCATTER(uint16_t)
SCATTER(uint32_t)
SCATTER(uint64_t)

static void scatter_any(const moec_grid *g, unsigned char *dst,
                        const unsigned char *src)
{
    for (uint64_t r = 0; r < g->n_rows; r++)
        for (uint64_t c = 0; c < g->n_cols; c++)
            memcpy(dst + r * g->dst_row + c * g->dst_col,
                   src + r * g->src_row + c * g->src_col, g->elem_bytes);
}

void moec_scatter(const moec_grid *g, unsigned char *dst,
                  const unsigned char *src)
{
    if (g->src_col == g->elem_bytes && g->dst_col == g->elem_bytes) {
        for (uint64_t r = 0; r < g->n_rows; r++)
            memcpy(dst + r * g->dst_row, src + r * g->src_row,
                   (size_t)(g->n_cols * g->elem_bytes));
        return;
    }
    switch (g->elem_bytes) {
    case 1:
        scatter_uint8_t(g, dst, src);
        break;
    case 2:
        scatter_uint16_t(g, dst, src);
        break;
    case 4:
        scatter_uint32_t(g, dst, src);
        break;
    case 8:
        scatter_uint64_t(g, dst, src);
        break;
    default:
        scatter_any(g, dst, src);
    }
}
