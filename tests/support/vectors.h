/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_TESTS_VECTORS_H
#define MOEC_TESTS_VECTORS_H

/*
 * Vector files (fixtures/vectors) as jansson trees, and their lists of lists
 * as flat arrays. Every helper fails the test where a file is not as it
 * should be. Use with cmocka.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <jansson.h>

static inline json_t *vectors_load(const char *file)
{
    char path[512];
    json_error_t error;
    json_t *root;

    (void)snprintf(path, sizeof(path), "%s/vectors/%s", MOEC_TEST_FIXTURES,
                   file);
    root = json_load_file(path, 0, &error);
    if (!root)
        fail_msg("%s: %s", path, error.text);
    return root;
}

static inline uint32_t vectors_u32(const json_t *obj, const char *key)
{
    const json_t *v = json_object_get(obj, key);

    if (!json_is_integer(v))
        fail_msg("no integer '%s'", key);
    return (uint32_t)json_integer_value(v);
}

static inline const char *vectors_text(const json_t *obj, const char *key)
{
    const char *s = json_string_value(json_object_get(obj, key));

    if (!s)
        fail_msg("no string '%s'", key);
    return s;
}

/* Numbers of nested lists, in order: how many there are. */
static inline size_t vectors_flatten(const json_t *v, double *out)
{
    size_t n = 0;

    if (!json_is_array(v)) {
        if (out)
            *out = json_number_value(v);
        return 1;
    }
    for (size_t i = 0; i < json_array_size(v); i++)
        n += vectors_flatten(json_array_get(v, i), out ? out + n : NULL);
    return n;
}

/* The same as int32, to be freed with free(3). */
static inline int32_t *vectors_i32(const json_t *v, size_t *n_out)
{
    size_t n = vectors_flatten(v, NULL);
    double *d = calloc(n + 1, sizeof(*d));
    int32_t *out = calloc(n + 1, sizeof(*out));

    assert_non_null(v);
    assert_non_null(d);
    assert_non_null(out);
    (void)vectors_flatten(v, d);
    for (size_t i = 0; i < n; i++)
        out[i] = (int32_t)d[i];
    free(d);
    if (n_out)
        *n_out = n;
    return out;
}

#endif
