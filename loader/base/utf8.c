/* SPDX-License-Identifier: Apache-2.0
 *
 * Strict UTF-8 (Unicode 15, table 3-7): refuses overlong forms, surrogates,
 * code points above U+10FFFF and sequences cut short. Names are nearly always
 * ASCII, so eight bytes are skipped at a time. */

#include <string.h>

#include "base/base.h"

#define HIGH_BITS UINT64_C(0x8080808080808080)

/* Bytes of the character at s, 0 where it is none. Only the SECOND byte has
 * limits that depend on the first; they exclude all that is overlong, a
 * surrogate or too large. */
static size_t sequence(const unsigned char *s, size_t n)
{
    unsigned char lo = 0x80, hi = 0xbf;
    size_t len;

    if (s[0] >= 0xc2 && s[0] <= 0xdf) {
        len = 2;
    } else if (s[0] >= 0xe0 && s[0] <= 0xef) {
        len = 3;
        if (s[0] == 0xe0)
            lo = 0xa0;
        else if (s[0] == 0xed)
            hi = 0x9f;
    } else if (s[0] >= 0xf0 && s[0] <= 0xf4) {
        len = 4;
        if (s[0] == 0xf0)
            lo = 0x90;
        else if (s[0] == 0xf4)
            hi = 0x8f;
    } else {
        return 0;
    }
    if (n < len || s[1] < lo || s[1] > hi)
        return 0;
    for (size_t i = 2; i < len; i++) {
        if ((s[i] & 0xc0) != 0x80)
            return 0;
    }
    return len;
}

bool moec_utf8_valid(const char *s, size_t n, size_t *bad_out)
{
    const unsigned char *u = (const unsigned char *)s;
    size_t i = 0;

    while (i < n) {
        uint64_t word;
        size_t len = 1;

        if (n - i >= sizeof(word)) {
            memcpy(&word, u + i, sizeof(word));
            if ((word & HIGH_BITS) == 0) {
                i += sizeof(word);
                continue;
            }
        }
        if (u[i] >= 0x80)
            len = sequence(u + i, n - i);
        if (len == 0) {
            if (bad_out)
                *bad_out = i;
            return false;
        }
        i += len;
    }
    return true;
}
