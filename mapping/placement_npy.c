/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What this is: placements that are NumPy arrays: phy2log [moe_layers][P] or
 *   log2phy [moe_layers][E][X]. Refuses elements that are no integers (P04).
 */

#include <inttypes.h>

#include "npy.h"
#include "placement_rows.h"

moec_status moec_npy_array(moec_int_arrays *a, const char *name,
                           const char *file, const unsigned char *text,
                           size_t n, moec_error *err)
{
    moec_int_array *x;
    moec_npy npy;

    MOEC_TRY(moec_npy_open(&npy, file, text, n, MOEC_RULE_P01, err));
    if (!moec_npy_is_integer(&npy))
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P04,
                         "%s: elements are %s, must be integers", file,
                         moec_dtype_name(npy.dtype));
    MOEC_TRY(
        moec_int_arrays_add(a, name, npy.shape, npy.rank, n, &x, file, err));
    for (size_t i = 0; i < x->n; i++) {
        /* An unsigned one past 2^63 is out of every range, and stays so. */
        if (!moec_npy_i64(&npy, i, &x->v[i]))
            x->v[i] = INT64_MAX;
    }
    return MOEC_OK;
}

moec_status moec_rows_read_npy(moec_rows *r, const char *text, size_t n,
                               moec_error *err)
{
    moec_int_arrays a = {0};
    moec_status st =
        moec_npy_array(&a, "", r->name, (const unsigned char *)text, n, err);

    if (st == MOEC_OK)
        st = moec_rows_from_arrays(r, &a, err);
    moec_int_arrays_fini(&a);
    return st;
}
