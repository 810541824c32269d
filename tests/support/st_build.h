/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_TESTS_ST_BUILD_H
#define MOEC_TESTS_ST_BUILD_H

/*
 * Small safetensors files for tests. Data bytes follow a pattern of period
 * 251, so that bytes from a wrong place show. Use with cmocka.
 */

#include <stdbool.h>

#include "tmpdir.h"

typedef struct st_bytes {
    unsigned char *data; /* malloc'ed to its exact size */
    size_t n;
} st_bytes;

static inline unsigned char st_pattern(size_t i)
{
    return (unsigned char)(i % 251);
}

/* 8 bytes of length, `header`, `data_bytes` of pattern. */
static inline st_bytes st_file(const void *header, size_t header_bytes,
                               size_t data_bytes)
{
    st_bytes b = {NULL, 8 + header_bytes + data_bytes};

    b.data = malloc(b.n);
    assert_non_null(b.data);
    for (unsigned i = 0; i < 8; i++)
        b.data[i] = (unsigned char)((uint64_t)header_bytes >> 8 * i);
    if (header_bytes > 0)
        memcpy(b.data + 8, header, header_bytes);
    for (size_t i = 0; i < data_bytes; i++)
        b.data[8 + header_bytes + i] = st_pattern(i);
    return b;
}

static inline void st_write_header(const tmpdir *d, const char *name,
                                   const char *header, size_t data_bytes)
{
    st_bytes b = st_file(header, strlen(header), data_bytes);

    tmpdir_write(d, name, b.data, b.n);
    free(b.data);
}

/* One tensor of elements of one byte. */
typedef struct st_tensor {
    const char *name;
    size_t n;
} st_tensor;

/* Write a file of U8 tensors, one behind the other; the last has no name. */
static inline void st_write(const tmpdir *d, const char *name,
                            const st_tensor *tensors)
{
    char header[8192];
    size_t at = 0, end = 0;

    at += (size_t)snprintf(header, sizeof(header), "{");
    for (const st_tensor *t = tensors; t->name != NULL; t++) {
        at += (size_t)snprintf(header + at, sizeof(header) - at,
                               "%s\"%s\":{\"dtype\":\"U8\",\"shape\":[%zu],"
                               "\"data_offsets\":[%zu,%zu]}",
                               t == tensors ? "" : ",", t->name, t->n, end,
                               end + t->n);
        end += t->n;
        assert_true(at < sizeof(header) - 1);
    }
    (void)snprintf(header + at, sizeof(header) - at, "}");
    st_write_header(d, name, header, end);
}

#define ST_WRITE(d, name, ...)                                                 \
  st_write(d, name, (const st_tensor[]){__VA_ARGS__, {NULL, 0}})

#endif
