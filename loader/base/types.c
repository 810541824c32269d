/* SPDX-License-Identifier: Apache-2.0
 *
 * Element types: the safetensors format's spelling and bits of each. */

#include <string.h>

#include <moec/types.h>

/* The order of safetensors' own enum; bits of F4 and F6 are not whole bytes. */
static const struct {
    const char *name;
    uint32_t bits;
} dtypes[MOEC_DTYPE_COUNT] = {
    [MOEC_DTYPE_BOOL] = {"BOOL", 8},
    [MOEC_DTYPE_F4] = {"F4", 4},
    [MOEC_DTYPE_F6_E2M3] = {"F6_E2M3", 6},
    [MOEC_DTYPE_F6_E3M2] = {"F6_E3M2", 6},
    [MOEC_DTYPE_U8] = {"U8", 8},
    [MOEC_DTYPE_I8] = {"I8", 8},
    [MOEC_DTYPE_F8_E5M2] = {"F8_E5M2", 8},
    [MOEC_DTYPE_F8_E4M3] = {"F8_E4M3", 8},
    [MOEC_DTYPE_F8_E8M0] = {"F8_E8M0", 8},
    [MOEC_DTYPE_F8_E4M3FNUZ] = {"F8_E4M3FNUZ", 8},
    [MOEC_DTYPE_F8_E5M2FNUZ] = {"F8_E5M2FNUZ", 8},
    [MOEC_DTYPE_I16] = {"I16", 16},
    [MOEC_DTYPE_U16] = {"U16", 16},
    [MOEC_DTYPE_F16] = {"F16", 16},
    [MOEC_DTYPE_BF16] = {"BF16", 16},
    [MOEC_DTYPE_I32] = {"I32", 32},
    [MOEC_DTYPE_U32] = {"U32", 32},
    [MOEC_DTYPE_F32] = {"F32", 32},
    [MOEC_DTYPE_C64] = {"C64", 64},
    [MOEC_DTYPE_F64] = {"F64", 64},
    [MOEC_DTYPE_I64] = {"I64", 64},
    [MOEC_DTYPE_U64] = {"U64", 64},
};

const char *moec_dtype_name(moec_dtype dtype)
{
    unsigned d = (unsigned)dtype;

    return d > 0 && d < (unsigned)MOEC_DTYPE_COUNT ? dtypes[d].name : "?";
}

uint32_t moec_dtype_bits(moec_dtype dtype)
{
    unsigned d = (unsigned)dtype;

    return d < (unsigned)MOEC_DTYPE_COUNT ? dtypes[d].bits : 0;
}

moec_dtype moec_dtype_parse(const char *name, size_t name_bytes)
{
    for (unsigned d = 1; d < (unsigned)MOEC_DTYPE_COUNT; d++) {
        if (strlen(dtypes[d].name) == name_bytes &&
            memcmp(dtypes[d].name, name, name_bytes) == 0)
            return (moec_dtype)d;
    }
    return MOEC_DTYPE_NONE;
}
