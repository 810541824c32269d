/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_VECTORS_BUILTIN_H
#define MOEC_VECTORS_BUILTIN_H

/*
 * What this is: the files of fixtures/vectors inside the program, so that it
 *   can be tested where no source tree is.
 */

#include "selftest.h"

#define MOEC_N_BUILTIN_VECTORS 6

void moec_builtin_vectors(moec_vector_file out[MOEC_N_BUILTIN_VECTORS]);

#endif
