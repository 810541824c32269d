/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_TESTS_JSON_MUTATOR_H
#define MOEC_TESTS_JSON_MUTATOR_H

/*
 * A libFuzzer mutator for JSON: bytes alone almost always break the document
 * before they reach what is behind the parser. Values are replaced by edge
 * cases or by other values of the document, members left out, doubled, moved;
 * one time in four bytes are mutated all the same.
 *
 * Include once in a target: it defines LLVMFuzzerCustomMutator where
 * MOEC_LIBFUZZER is set, and nothing elsewhere. A target that has to mend what
 * a mutation broke (a digest) defines MOEC_MUTATION_MEND(data, n, max) before.
 */

#ifdef MOEC_LIBFUZZER

#  include <stdbool.h>
#  include <stddef.h>
#  include <stdint.h>
#  include <stdlib.h>
#  include <string.h>

size_t LLVMFuzzerMutate(uint8_t *data, size_t n, size_t max);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t n, size_t max,
                               unsigned seed);

enum { JM_SPANS = 4096 };

typedef struct jm_span {
    size_t begin, end;
} jm_span;

/* Values (and keys) of the text: scalars as they come, containers when they
 * end. Of broken texts those up to the break. */
static size_t jm_scan(const uint8_t *p, size_t n, jm_span *out)
{
    size_t stack[64], depth = 0, found = 0;

    for (size_t i = 0; i < n && found < JM_SPANS;) {
        size_t begin = i;
        if (p[i] == '"') {
            for (i++; i < n && p[i] != '"'; i++)
                i += p[i] == '\\';
            i++;
        } else if (p[i] == '{' || p[i] == '[') {
            if (depth < 64)
                stack[depth++] = i;
            i++;
            continue;
        } else if (p[i] == '}' || p[i] == ']') {
            i++;
            if (depth == 0)
                continue;
            begin = stack[--depth];
        } else if (strchr("-0123456789.+eEtrufalsn", p[i]) && p[i]) {
            while (i < n && p[i] && strchr("-0123456789.+eEtrufalsn", p[i]))
                i++;
        } else {
            i++;
            continue;
        }
        if (i <= n)
            out[found++] = (jm_span){begin, i};
    }
    return found;
}

/* Put `k` bytes in the place of a span. */
static size_t jm_splice(uint8_t *data, size_t n, size_t max, jm_span at,
                        const void *with, size_t k)
{
    size_t old = at.end - at.begin;

    if (n - old + k > max)
        return n;
    memmove(data + at.begin + k, data + at.end, n - at.end);
    memcpy(data + at.begin, with, k);
    return n - old + k;
}

static size_t jm_mutate(uint8_t *data, size_t n, size_t max, unsigned seed)
{
    static const char *const words[] = {"0",
                                        "1",
                                        "-1",
                                        "2",
                                        "3",
                                        "8",
                                        "255",
                                        "65535",
                                        "2147483647",
                                        "2147483648",
                                        "4294967295",
                                        "4294967296",
                                        "9223372036854775807",
                                        "9223372036854775808",
                                        "18446744073709551615",
                                        "1e308",
                                        "-0",
                                        "0.5",
                                        "1.0",
                                        "1e-400",
                                        "true",
                                        "false",
                                        "null",
                                        "\"\"",
                                        "[]",
                                        "{}",
                                        "\"x\"",
                                        "[0]",
                                        "\".\"",
                                        "\"..\"",
                                        "\"a/b\"",
                                        "\"\\u0000\"",
                                        "\"\\ud800\"",
                                        "\"#\"",
                                        "[[]]",
                                        "\"8\"",
                                        "[1,2,3]",
                                        "{\"a\":1}",
                                        "\"a.b.c\""};
    static jm_span spans[JM_SPANS];
    static uint8_t copy[1 << 16];
    size_t n_spans = jm_scan(data, n, spans);
    unsigned r = seed * 2654435761u ^ seed >> 7;

    if (n_spans == 0)
        return LLVMFuzzerMutate(data, n, max);
    jm_span a = spans[r % n_spans];
    jm_span b = spans[(r / 31) % n_spans];
    size_t k = b.end - b.begin;
    switch (r >> 16 & 7) {
    case 0:
    case 1: { /* an edge case */
        const char *w = words[(r >> 20) % (sizeof(words) / sizeof(words[0]))];
        return jm_splice(data, n, max, a, w, strlen(w));
    }
    case 2:
    case 3: /* another value of the document */
        if (k > sizeof(copy))
            return n;
        memcpy(copy, data + b.begin, k);
        return jm_splice(data, n, max, a, copy, k);
    case 4: /* leave out, with the comma behind */
        while (a.end < n && data[a.end] != ',' && data[a.end] != '}' &&
               data[a.end] != ']')
            a.end++;
        if (a.end < n && data[a.end] == ',')
            a.end++;
        return jm_splice(data, n, max, a, "", 0);
    case 5: /* double it */
        k = a.end - a.begin;
        if (k + 1 > sizeof(copy))
            return n;
        memcpy(copy, data + a.begin, k);
        copy[k] = ',';
        return jm_splice(data, n, max, (jm_span){a.begin, a.begin}, copy,
                         k + 1);
    case 6: { /* the inside of a scalar, by bytes */
        size_t room = max - (n - (a.end - a.begin)), len = a.end - a.begin;
        if (len < 3 || len + 16 > sizeof(copy) || room < len)
            return n;
        memcpy(copy, data + a.begin + 1, len - 2);
        len = LLVMFuzzerMutate(copy, len - 2, len + 8);
        return jm_splice(data, n, max, (jm_span){a.begin + 1, a.end - 1}, copy,
                         len);
    }
    default:
        return LLVMFuzzerMutate(data, n, max);
    }
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t n, size_t max,
                               unsigned seed)
{
    n = seed % 4 == 0 ? LLVMFuzzerMutate(data, n, max)
                      : jm_mutate(data, n, max, seed / 4);
#  ifdef MOEC_MUTATION_MEND
    n = MOEC_MUTATION_MEND(data, n, max);
#  endif
    return n;
}

#endif
#endif
