/* SPDX-License-Identifier: Apache-2.0
 *
 * Columns of a range of slots, 16 at a time. They are compressed in a register
 * and stored whole: compressing into memory is microcode on Zen 4. */

#include <immintrin.h>

#include "align.h"

uint32_t moec_align_pick_avx512(const int32_t *slots, uint32_t n,
                                uint32_t first, uint32_t range, uint32_t base,
                                uint32_t *own, uint32_t *found)
{
    const __m512i sixteen = _mm512_set1_epi32(16);
    __m512i begin = _mm512_set1_epi32((int)first);
    __m512i width = _mm512_set1_epi32((int)range);
    __m512i at = _mm512_add_epi32(_mm512_set1_epi32((int)base),
                                  _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8,
                                                    9, 10, 11, 12, 13, 14, 15));
    uint32_t k = 0;

    for (uint32_t i = 0; i < n; i += 16) {
        __mmask16 there =
            (__mmask16)(n - i < 16 ? (1u << (n - i)) - 1 : 0xffff);
        __m512i s =
            _mm512_sub_epi32(_mm512_maskz_loadu_epi32(there, slots + i), begin);
        __mmask16 ours = _mm512_mask_cmplt_epu32_mask(there, s, width);

        _mm512_storeu_si512(own + k, _mm512_maskz_compress_epi32(ours, s));
        if (found)
            _mm512_storeu_si512(found + k,
                                _mm512_maskz_compress_epi32(ours, at));
        k += (uint32_t)__builtin_popcount(ours);
        at = _mm512_add_epi32(at, sixteen);
    }
    return k;
}
