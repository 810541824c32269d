/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A stream into memory, of fopencookie: its close can fail.
 */
#include "memory_file.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "print.h"

typedef struct memory_file {
    char **text;
    size_t *bytes;
    size_t cap; /* 0: there was no memory for something */
} memory_file;

static void lose(memory_file *m)
{
    free(*m->text);
    *m->text = NULL;
    *m->bytes = m->cap = 0;
    moec_cli_cut();
}

static ssize_t put(void *cookie, const char *data, size_t n)
{
    memory_file *m = cookie;
    if (m->cap != 0 && m->cap - *m->bytes <= n) {
        size_t cap = (m->cap + n) * 2;
        char *more = realloc(*m->text, cap);
        if (more == NULL) {
            lose(m);
        } else {
            *m->text = more;
            m->cap = cap;
        }
    }
    if (m->cap == 0) {
        errno = ENOMEM;
        return 0;
    }
    memcpy(*m->text + *m->bytes, data, n);
    *m->bytes += n;
    (*m->text)[*m->bytes] = '\0';
    return (ssize_t)n;
}

static int finish(void *cookie)
{
    memory_file *m = cookie;
    bool whole = m->cap != 0;
    free(m);
    return whole ? 0 : -1;
}

FILE *moec_cli_memory_file(char **text, size_t *bytes)
{
    static const cookie_io_functions_t fns = {.write = put, .close = finish};
    memory_file *m = malloc(sizeof(*m));
    FILE *f = NULL;
    *bytes = 0;
    *text = calloc(256, 1);
    if (m != NULL && *text != NULL) {
        *m = (memory_file){text, bytes, 256};
        f = fopencookie(m, "w", fns);
    }
    if (f == NULL) {
        free(m);
        free(*text);
        *text = NULL;
        moec_cli_cut();
    }
    return f;
}
