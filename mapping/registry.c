/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The registry of families: the built-in ones and those that the user adds,
 * and which of them serves a model_type.
 */

#include "families_builtin.h"
#include "family.h"

#include <string.h>

struct moec_families {
    size_t n_added, cap;
    moec_family **added; /* the user's, the one that wins first */
};

moec_status moec_families_create(moec_families **out, moec_error *err)
{
    moec_families *fs = moec_calloc(1, sizeof(*fs));
    if (fs == NULL)
        return moec_fail_nomem(err, "the list of families");
    *out = fs;
    return MOEC_OK;
}

void moec_families_destroy(moec_families *families)
{
    if (families == NULL)
        return;
    for (size_t i = 0; i < families->n_added; i++)
        moec_family_destroy(families->added[i]);
    moec_free(families->added);
    moec_free(families);
}

/* Put `family` in front; it is the registry's then. */
static moec_status insert(moec_families *fs, moec_family *family,
                          moec_error *err)
{
    if (!MOEC_GROW(fs->added, fs->n_added, fs->cap))
        return moec_fail_nomem(err, "the list of families");
    for (size_t i = fs->n_added; i > 0; i--)
        fs->added[i] = fs->added[i - 1];
    fs->added[0] = family;
    fs->n_added++;
    return MOEC_OK;
}

moec_status moec_families_add(moec_families *families, const char *name,
                              const char *text, size_t n, moec_error *err)
{
    moec_family *family;
    if (families == NULL || name == NULL || text == NULL)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "moec_families_add: families, name and text must "
                         "not be NULL");
    MOEC_TRY(moec_family_parse(&family, name, text, n, err));
    moec_status st = insert(families, family, err);
    if (st != MOEC_OK)
        moec_family_destroy(family);
    return st;
}

/* Forty descriptions are milliseconds, one is not: a built-in one is parsed
 * where it is asked for, and is the caller's. */
static moec_status parse_builtin(size_t i, moec_family **out, moec_error *err)
{
    const struct moec_builtin_family *b = &moec_builtin_families[i];
    char name[96];
    (void)snprintf(name, sizeof(name), "built-in %s.json", b->name);
    return moec_family_parse(out, name, b->text, b->bytes, err);
}

size_t moec_families_count(const moec_families *families)
{
    return families->n_added + moec_n_builtin_families;
}

const char *moec_families_name(const moec_families *families, size_t i)
{
    if (i < families->n_added)
        return families->added[i]->name;
    return moec_builtin_families[i - families->n_added].name;
}

const char *moec_families_tested(const moec_families *families, size_t i)
{
    if (i < families->n_added)
        return families->added[i]->tested;
    return moec_builtin_families[i - families->n_added].tested;
}

/* The conditions that go with a model_type, or NULL. */
static const moec_only_if *conditions_of(const moec_family *f,
                                         const char *model_type)
{
    for (size_t i = 0; i < f->n_only_if; i++)
        if (strcmp(f->only_if[i].model_type, model_type) == 0)
            return &f->only_if[i];
    return NULL;
}

/* 0: `f` is not the model's; 1: it is; 2: it is by its conditions. */
static int fits(const moec_family *f, const char *model_type,
                moec_only_if_fn holds, void *ctx)
{
    bool listed = false;
    for (size_t j = 0; j < f->n_model_types; j++)
        listed |= strcmp(f->model_types[j], model_type) == 0;
    if (!listed)
        return 0;
    const moec_only_if *c = conditions_of(f, model_type);
    if (c == NULL)
        return 1;
    return holds != NULL && holds(f, c, ctx) ? 2 : 0;
}

static moec_status find_builtin(const char *model_type, moec_only_if_fn holds,
                                void *ctx, moec_family **out, moec_error *err)
{
    moec_buf quoted = {0};
    moec_status st = MOEC_OK;
    int best = 0;
    moec_buf_printf(&quoted, "\"%s\"", model_type);
    if (quoted.oom)
        st = moec_fail_nomem(err, "the list of families");
    for (size_t i = 0; best < 2 && st == MOEC_OK; i++) {
        moec_family *f;
        if (i == moec_n_builtin_families)
            break;
        if (strstr(moec_builtin_families[i].text, quoted.data) == NULL)
            continue;
        st = parse_builtin(i, &f, err);
        if (st != MOEC_OK)
            break;
        int how = fits(f, model_type, holds, ctx);
        if (how <= best) {
            moec_family_destroy(f);
            continue;
        }
        moec_family_destroy(*out);
        *out = f;
        best = how;
    }
    moec_buf_fini(&quoted);
    return st;
}

moec_status moec_families_find(const moec_families *families,
                               const char *model_type, moec_only_if_fn holds,
                               void *ctx, const moec_family **out,
                               moec_family **owned_out, moec_error *err)
{
    *out = NULL;
    *owned_out = NULL;
    for (size_t i = 0; i < families->n_added && *out == NULL; i++)
        if (fits(families->added[i], model_type, holds, ctx))
            *out = families->added[i];
    if (*out != NULL)
        return MOEC_OK;
    moec_status st = find_builtin(model_type, holds, ctx, owned_out, err);
    *out = *owned_out;
    return st;
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

/* The nearest of the family's model types, where it is nearer than *least. */
static void nearest(const moec_family *f, const char *model_type, size_t *least,
                    moec_buf *out)
{
    for (size_t j = 0; j < f->n_model_types; j++) {
        const char *known = f->model_types[j];
        if (strlen(known) > HINT_BYTES_MAX ||
            strlen(model_type) > HINT_BYTES_MAX ||
            conditions_of(f, known) != NULL)
            continue;
        size_t d = distance(model_type, known);
        if (d >= *least)
            continue;
        *least = d;
        out->len = 0;
        moec_buf_puts(out, known);
    }
}

void moec_families_hint(const moec_families *families, const char *model_type,
                        moec_buf *out)
{
    moec_buf best = {0};
    size_t least = 3; /* more edits than two are another word */
    for (size_t i = 0; i < families->n_added; i++)
        nearest(families->added[i], model_type, &least, &best);
    for (size_t i = 0; i < moec_n_builtin_families; i++) {
        moec_error err = MOEC_ERROR_INIT;
        moec_family *f;
        if (parse_builtin(i, &f, &err) != MOEC_OK)
            continue;
        nearest(f, model_type, &least, &best);
        moec_family_destroy(f);
    }
    if (best.len != 0)
        moec_buf_printf(out, "did you mean '%s'?", best.data);
    else /* some seventy: a list of them is no sentence */
        moec_buf_puts(out,
                      "moe-convert inspect --list-families lists the known");
    moec_buf_fini(&best);
}
