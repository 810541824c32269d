/* SPDX-License-Identifier: Apache-2.0 */
#include "sandbox_numbers.h"

#include <stddef.h>

#include <asm-generic/unistd.h>

const sandbox_number sandbox_generic[] = {
    SANDBOX_REFUSED_CALLS(SANDBOX_REFUSED)
        SANDBOX_NEEDED_CALLS(SANDBOX_NEEDED){"clone", __NR_clone, false},
    {NULL, 0, false}};
