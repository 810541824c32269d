/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Half a million entries of a large model are 70 MB of text that repeats three
 * keys. Here the keys are compared as words and integers read eight digits at a
 * time. An entry behind its name is shorter than TAIL_BYTES_MAX, so one look at
 * the window's end serves for all of it.
 */

#include "entry_scan.h"

#include <string.h>

#include "jsonscan.h"

/* Behind a name: 48 bytes of keys and brackets, a dtype of 11, 8 dimensions
 * and 2 offsets of at most 16 digits and 2 bytes between them, 8 spaces, and
 * the word that is loaded last. */
#define TAIL_BYTES_MAX 320
#define DTYPE_BYTES    7 /* with its quote it fills a word */

#define BYTES(x)       (UINT64_C(0x0101010101010101) * (x))

/* Take the literal `s`, or return NULL from the calling function. */
#define TAKE(p, s)                                                             \
  do {                                                                         \
    if (memcmp(p, s, sizeof(s) - 1) != 0)                                      \
      return NULL;                                                             \
    (p) += sizeof(s) - 1;                                                      \
  } while (0)

/* The same behind a colon or comma, where one space may stand. */
#define SPACE(p) ((p) += *(p) == ' ')

/* Bytes of `word`, from the first one, that satisfy what `marks` has no high
 * bit for. */
static inline unsigned count_below(uint64_t marks)
{
    return marks == 0 ? 8 : (unsigned)__builtin_ctzll(marks) / 8;
}

/* High bits where a byte is no digit. No byte carries into the next one. */
static inline uint64_t not_digits(uint64_t w)
{
    uint64_t x = w ^ BYTES('0'); /* 0 to 9 where it is one */

    return (((x & BYTES(0x7f)) + BYTES(0x76)) | x) & BYTES(0x80);
}

/* Value of the first n digits of `w`, 1 to 8: the others are shifted out, and
 * neighbours joined to pairs, fours, eight. */
static inline uint64_t value_of(uint64_t w, unsigned n)
{
    w = (w << (8 - n) * 8) & BYTES(0x0f);
    w = (w * 10 + (w >> 8)) & UINT64_C(0x00ff00ff00ff00ff);
    w = (w * 100 + (w >> 16)) & UINT64_C(0x0000ffff0000ffff);
    return (w * 10000 + (w >> 32)) & UINT64_C(0xffffffff);
}

/* An integer of 1 to 16 digits without a leading zero, as JSON has them. */
static inline const unsigned char *integer(const unsigned char *p,
                                           uint64_t *out)
{
    static const uint64_t tens[9] = {1,      10,      100,      1000,     10000,
                                     100000, 1000000, 10000000, 100000000};
    uint64_t w = moec_le64(p);
    unsigned n = count_below(not_digits(w)), more;

    if (n == 0 || (*p == '0' && n > 1))
        return NULL;
    *out = value_of(w, n);
    if (n < 8)
        return p + n;
    w = moec_le64(p + 8);
    more = count_below(not_digits(w));
    if (more == 8 && p[16] >= '0' && p[16] <= '9')
        return NULL;
    if (more != 0)
        *out = *out * tens[more] + value_of(w, more);
    return p + 8 + more;
}

static const unsigned char *read_dtype(moec_entry_scan *e,
                                       const unsigned char *p)
{
    uint64_t w = moec_le64(p), quote = w ^ BYTES('"');
    unsigned n = count_below((quote - BYTES(1)) & ~quote & BYTES(0x80));
    struct moec_dtype_seen *s;

    if (n > DTYPE_BYTES)
        return NULL;
    w <<= (7 - n) * 8;
    for (size_t i = 0; i < sizeof(e->seen) / sizeof(*e->seen); i++) {
        if (e->seen[i].text == w) {
            e->dtype = e->seen[i].dtype;
            return p + n;
        }
    }
    e->dtype = moec_dtype_parse((const char *)p, n);
    if (e->dtype == MOEC_DTYPE_NONE)
        return NULL;
    s = &e->seen[e->n_seen++ % (sizeof(e->seen) / sizeof(*e->seen))];
    s->text = w;
    s->dtype = e->dtype;
    return p + n;
}

static const unsigned char *read_shape(moec_entry_scan *e,
                                       const unsigned char *p)
{
    e->rank = 0;
    if (*p == ']')
        return p;
    for (;;) {
        if (e->rank == MOEC_RANK_MAX)
            return NULL;
        p = integer(p, &e->shape[e->rank++]);
        if (p == NULL || *p == ']')
            return p;
        TAKE(p, ",");
        SPACE(p);
    }
}

const unsigned char *moec_entry_read(moec_entry_scan *e, const unsigned char *p,
                                     const unsigned char *end)
{
    if (p == end || *p != '"')
        return NULL;
    e->name = (const char *)++p;
    p = moec_js_plain_run(p, end);
    if (end - p < TAIL_BYTES_MAX)
        return NULL;
    e->name_bytes = (size_t)(p - (const unsigned char *)e->name);
    TAKE(p, "\":");
    SPACE(p);
    TAKE(p, "{\"dtype\":");
    SPACE(p);
    TAKE(p, "\"");
    p = read_dtype(e, p);
    if (p == NULL)
        return NULL;
    TAKE(p, "\",");
    SPACE(p);
    TAKE(p, "\"shape\":");
    SPACE(p);
    TAKE(p, "[");
    p = read_shape(e, p);
    if (p == NULL)
        return NULL;
    TAKE(p, "],");
    SPACE(p);
    TAKE(p, "\"data_offsets\":");
    SPACE(p);
    TAKE(p, "[");
    p = integer(p, &e->begin);
    if (p == NULL)
        return NULL;
    TAKE(p, ",");
    SPACE(p);
    p = integer(p, &e->end);
    if (p == NULL)
        return NULL;
    TAKE(p, "]}");
    return p;
}
