/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The registry of families: the built-in ones and those that the user adds,
 * and which of them serves a model_type.
 */

#include "families_builtin.h"
#include "family.h"

#include <string.h>

typedef struct entry {
    moec_family *family;
} entry;

struct moec_families {
    size_t n, cap;
    entry *list; /* the one that wins first */
};

/* Put `family` in front (`front`) or at the end; it is the registry's then. */
static moec_status insert(moec_families *fs, moec_family *family, bool front,
                          moec_error *err)
{
    if (fs->n == fs->cap) {
        size_t cap = fs->cap == 0 ? 32 : fs->cap * 2;
        entry *more = moec_realloc_array(fs->list, cap, sizeof(*more));
        if (more == NULL)
            return moec_fail_nomem(err, "the list of families");
        fs->list = more;
        fs->cap = cap;
    }
    if (front)
        memmove(fs->list + 1, fs->list, fs->n * sizeof(*fs->list));
    fs->list[front ? 0 : fs->n].family = family;
    fs->n++;
    return MOEC_OK;
}

static moec_status add(moec_families *fs, const char *name, const char *text,
                       size_t n, bool front, moec_error *err)
{
    moec_family *family;
    MOEC_TRY(moec_family_parse(&family, name, text, n, err));
    moec_status st = insert(fs, family, front, err);
    if (st != MOEC_OK)
        moec_family_destroy(family);
    return st;
}

moec_status moec_families_create(moec_families **out, moec_error *err)
{
    moec_families *fs = moec_calloc(1, sizeof(*fs));
    moec_status st = MOEC_OK;
    char name[96];
    if (fs == NULL)
        return moec_fail_nomem(err, "the list of families");
    for (size_t i = 0; st == MOEC_OK && i < moec_n_builtin_families; i++) {
        const struct moec_builtin_family *b = &moec_builtin_families[i];
        (void)snprintf(name, sizeof(name), "built-in %s.json", b->name);
        st = add(fs, name, b->text, b->bytes, false, err);
    }
    if (st != MOEC_OK) {
        moec_families_destroy(fs);
        return st;
    }
    *out = fs;
    return MOEC_OK;
}

void moec_families_destroy(moec_families *families)
{
    if (families == NULL)
        return;
    for (size_t i = 0; i < families->n; i++)
        moec_family_destroy(families->list[i].family);
    moec_free(families->list);
    moec_free(families);
}

moec_status moec_families_add(moec_families *families, const char *name,
                              const char *text, size_t n, moec_error *err)
{
    if (families == NULL || name == NULL || text == NULL)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "moec_families_add: families, name and text must "
                         "not be NULL");
    return add(families, name, text, n, true, err);
}

size_t moec_families_count(const moec_families *families)
{
    return families->n;
}

const char *moec_families_name(const moec_families *families, size_t i)
{
    return families->list[i].family->name;
}

const moec_family *moec_families_find(const moec_families *families,
                                      const char *model_type)
{
    for (size_t i = 0; i < families->n; i++) {
        const moec_family *f = families->list[i].family;
        for (size_t j = 0; j < f->n_model_types; j++)
            if (strcmp(f->model_types[j], model_type) == 0)
                return f;
    }
    return NULL;
}

/* ----------------------------------------------------- did you mean */

#define HINT_BYTES_MAX 63u

/* Edits (insert, drop, replace) from `a` to `b`, both short. */
static size_t distance(const char *a, const char *b)
{
    size_t row[HINT_BYTES_MAX + 1], n = strlen(b);
    for (size_t j = 0; j <= n; j++)
        row[j] = j;
    for (size_t i = 0; a[i] != '\0'; i++) {
        size_t diagonal = row[0];
        row[0] = i + 1;
        for (size_t j = 0; j < n; j++) {
            size_t best = diagonal + (a[i] != b[j]);
            diagonal = row[j + 1];
            if (diagonal + 1 < best)
                best = diagonal + 1;
            if (row[j] + 1 < best)
                best = row[j] + 1;
            row[j + 1] = best;
        }
    }
    return row[n];
}

void moec_families_hint(const moec_families *families, const char *model_type,
                        moec_buf *out)
{
    const char *best = NULL;
    size_t least = 3; /* more edits than two are another word */
    for (size_t i = 0; i < families->n; i++) {
        const moec_family *f = families->list[i].family;
        for (size_t j = 0; j < f->n_model_types; j++) {
            const char *known = f->model_types[j];
            if (strlen(known) > HINT_BYTES_MAX ||
                strlen(model_type) > HINT_BYTES_MAX)
                continue;
            size_t d = distance(model_type, known);
            if (d < least) {
                least = d;
                best = known;
            }
        }
    }
    if (best != NULL) {
        moec_buf_printf(out, "did you mean '%s'?", best);
        return;
    }
    moec_buf_puts(out, "known are");
    for (size_t i = 0; i < families->n; i++)
        for (size_t j = 0; j < families->list[i].family->n_model_types; j++)
            moec_buf_printf(out, "%s %s", i + j == 0 ? "" : ",",
                            families->list[i].family->model_types[j]);
}
