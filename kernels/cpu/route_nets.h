/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_ROUTE_NETS_H
#define MOEC_ROUTE_NETS_H

/*
 * What this is: sorting networks as lists of comparators, for the files of
 *   every instruction set. CX(a, b) leaves the larger of a and b in a. Macros
 *   only: nothing here is compiled twice with different flags. Checked by the
 *   zero-one principle (tests/unit/test_route_math.c).
 */

/* clang-format off */

/* 19 comparators, depth 6; 60, depth 10 (Green): descending. */
#define MOEC_SORT_8(CX) \
  CX(0, 2) CX(1, 3) CX(4, 6) CX(5, 7) CX(0, 4) CX(1, 5) CX(2, 6) CX(3, 7) \
  CX(0, 1) CX(2, 3) CX(4, 5) CX(6, 7) CX(2, 4) CX(3, 5) CX(1, 4) CX(3, 6) \
  CX(1, 2) CX(3, 4) CX(5, 6)
#define MOEC_SORT_16(CX) \
  CX(0, 13) CX(1, 12) CX(2, 15) CX(3, 14) CX(4, 8) CX(5, 6) CX(7, 11) \
  CX(9, 10) CX(0, 5) CX(1, 7) CX(2, 9) CX(3, 4) CX(6, 13) CX(8, 14) \
  CX(10, 15) CX(11, 12) CX(0, 1) CX(2, 3) CX(4, 5) CX(6, 8) CX(7, 9) \
  CX(10, 11) CX(12, 13) CX(14, 15) CX(0, 2) CX(1, 3) CX(4, 10) CX(5, 11) \
  CX(6, 7) CX(8, 9) CX(12, 14) CX(13, 15) CX(1, 2) CX(3, 12) CX(4, 6) \
  CX(5, 7) CX(8, 10) CX(9, 11) CX(13, 14) CX(1, 4) CX(2, 6) CX(5, 8) \
  CX(7, 10) CX(9, 13) CX(11, 14) CX(2, 4) CX(3, 6) CX(9, 12) CX(11, 13) \
  CX(3, 5) CX(6, 8) CX(7, 9) CX(10, 12) CX(3, 4) CX(5, 6) CX(7, 8) \
  CX(9, 10) CX(11, 12) CX(6, 7) CX(8, 9)

/* A bitonic sequence becomes descending. */
#define MOEC_MERGE_8(CX) \
  CX(0, 4) CX(1, 5) CX(2, 6) CX(3, 7) CX(0, 2) CX(1, 3) CX(4, 6) CX(5, 7) \
  CX(0, 1) CX(2, 3) CX(4, 5) CX(6, 7)
#define MOEC_MERGE_16(CX) \
  CX(0, 8) CX(1, 9) CX(2, 10) CX(3, 11) CX(4, 12) CX(5, 13) CX(6, 14) \
  CX(7, 15) CX(0, 4) CX(1, 5) CX(2, 6) CX(3, 7) CX(8, 12) CX(9, 13) \
  CX(10, 14) CX(11, 15) CX(0, 2) CX(1, 3) CX(4, 6) CX(5, 7) CX(8, 10) \
  CX(9, 11) CX(12, 14) CX(13, 15) CX(0, 1) CX(2, 3) CX(4, 5) CX(6, 7) \
  CX(8, 9) CX(10, 11) CX(12, 13) CX(14, 15)

/* clang-format on */

#endif
