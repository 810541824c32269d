/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Values of a family description, read with the line they stand on. jansson
 * keeps no lines; where something is refused, the text is walked once more
 * along the way to the value.
 */

#include "family_desc.h"

#include <string.h>

#define WAY_MAX 8u

static const char *skip_space(const char *p)
{
    while (*p == ' ' || *p == '\t' || *p == '\r' || *p == '\n')
        p++;
    return p;
}

/* Behind the string, object, array or word at `p`. The text has been parsed:
 * strings end and brackets match. */
static const char *skip_value(const char *p)
{
    size_t depth = 0;
    do {
        if (*p == '"') {
            for (p++; *p != '"'; p++)
                p += *p == '\\';
            p++;
        } else if (*p == '{' || *p == '[') {
            depth++;
            p++;
        } else if (*p == '}' || *p == ']') {
            depth--;
            p++;
        } else if (depth != 0) {
            p++;
        } else {
            while (strchr(",]} \t\r\n", *p) == NULL)
                p++; /* strcspn may look for the end of the text, too */
        }
    } while (depth != 0);
    return p;
}

/* Is the string at `item` this key? The text has no zero behind it. */
static bool is_key(const char *item, const char *key)
{
    for (item++; *key != '\0' && *item == *key; item++)
        key++;
    return *key == '\0' && *item == '"';
}

/* The value of the step `v` in the object or array at `p`; NULL where it is
 * not there. `*key_at` becomes the place of its key. */
static const char *step_into(const char *p, const moec_json *v,
                             const char **key_at)
{
    p = skip_space(p + 1);
    for (size_t i = 0; *p != '}' && *p != ']'; i++) {
        const char *item = p;
        bool found = v->key == NULL && i == v->index;
        if (v->key != NULL) {
            found = is_key(item, v->key);
            p = skip_space(skip_value(p));
            p = skip_space(p + 1);
        }
        if (found) {
            *key_at = item;
            return p;
        }
        p = skip_space(skip_value(p));
        if (*p == ',')
            p = skip_space(p + 1);
    }
    return NULL;
}

/* Line of `v`, or of the nearest thing around it that is there. */
static size_t line_of(const moec_desc *p, const moec_json *v)
{
    const moec_json *way[WAY_MAX];
    size_t n = 0, line = 1;
    for (; v->parent != NULL && n < WAY_MAX; v = v->parent)
        way[n++] = v;
    const char *at = skip_space(p->text);
    const char *key_at = at;
    while (n > 0 && at != NULL && (*at == '{' || *at == '['))
        at = step_into(at, way[--n], &key_at);
    for (const char *c = p->text; c < key_at; c++)
        line += *c == '\n';
    return line;
}

moec_status moec_desc_at(moec_desc *p, const moec_json *v, moec_status st)
{
    char rest[MOEC_ERROR_TEXT_BYTES];
    if (st != MOEC_E_FORMAT)
        return st;
    char *at = strstr(p->error.text, p->doc.name);
    if (at == NULL)
        return st;
    at += strlen(p->doc.name);
    memcpy(rest, at, strlen(at) + 1);
    (void)snprintf(at, sizeof(p->error.text) - (size_t)(at - p->error.text),
                   ":%zu%s", line_of(p, v), rest);
    return st;
}

moec_status moec_desc_nomem(moec_desc *p)
{
    return moec_fail_nomem(&p->error, "a family description");
}

/* ------------------------------------------------------ plain values */

moec_status moec_desc_only_keys(moec_desc *p, const moec_json *obj,
                                const char *const *keys, size_t n)
{
    return moec_desc_at(p, obj, moec_json_only_keys(obj, keys, n, &p->error));
}
moec_status moec_desc_string(moec_desc *p, const moec_json *v, const char **out)
{
    const char *s;
    MOEC_TRY(moec_desc_at(p, v, moec_json_as_string(v, &s, &p->error)));
    *out = moec_arena_strdup(&p->f->arena, s, strlen(s));
    return *out != NULL ? MOEC_OK : moec_desc_nomem(p);
}

moec_status moec_desc_get_string(moec_desc *p, const moec_json *obj,
                                 const char *key, const char **out)
{
    moec_json v = moec_json_member(obj, key);
    return moec_desc_string(p, &v, out);
}

moec_status moec_desc_opt_string(moec_desc *p, const moec_json *obj,
                                 const char *key, const char **out)
{
    moec_json v = moec_json_member(obj, key);
    return v.value != NULL ? moec_desc_string(p, &v, out) : MOEC_OK;
}

moec_status moec_desc_opt_bool(moec_desc *p, const moec_json *obj,
                               const char *key, uint8_t *out)
{
    moec_json v = moec_json_member(obj, key);
    bool b;
    if (v.value == NULL)
        return MOEC_OK;
    MOEC_TRY(moec_desc_at(p, &v, moec_json_as_bool(&v, &b, &p->error)));
    *out = b;
    return MOEC_OK;
}

moec_status moec_desc_word(moec_desc *p, const moec_json *obj, const char *key,
                           const char *const *words, int absent, uint8_t *out)
{
    moec_json v = moec_json_member(obj, key);
    moec_buf known = {0};
    const char *s;
    if (v.value == NULL && absent >= 0) {
        *out = (uint8_t)absent;
        return MOEC_OK;
    }
    MOEC_TRY(moec_desc_at(p, &v, moec_json_as_string(&v, &s, &p->error)));
    for (uint8_t i = 0; words[i] != NULL; i++) {
        if (strcmp(words[i], s) == 0) {
            *out = i;
            return MOEC_OK;
        }
    }
    for (size_t i = 0; words[i] != NULL; i++)
        moec_buf_printf(&known, "%s\"%s\"", i == 0 ? "" : ", ", words[i]);
    moec_status st =
        known.oom ? moec_desc_nomem(p)
                  : BAD(p, &v, "is \"%s\", must be one of %s", s, known.data);
    moec_buf_fini(&known);
    return st;
}

moec_status moec_desc_list(moec_desc *p, const moec_json *obj, const char *key,
                           size_t least, moec_json *out, size_t *n_out)
{
    *out = moec_json_member(obj, key);
    *n_out = 0;
    if (out->value == NULL && least == 0)
        return MOEC_OK;
    MOEC_TRY(moec_desc_at(p, out, moec_json_want_array(out, &p->error)));
    *n_out = moec_json_len(out);
    if (*n_out < least || *n_out > MOEC_DESC_LIST_MAX)
        return BAD(p, out, "has %zu items, must have %zu to %u", *n_out, least,
                   MOEC_DESC_LIST_MAX);
    return MOEC_OK;
}

moec_status moec_desc_strings(moec_desc *p, const moec_json *obj,
                              const char *key, size_t least, const char ***out,
                              size_t *n_out)
{
    moec_json list;
    MOEC_TRY(moec_desc_list(p, obj, key, least, &list, n_out));
    *out = moec_arena_alloc(&p->f->arena, (*n_out + 1) * sizeof(**out),
                            _Alignof(const char *));
    if (*out == NULL)
        return moec_desc_nomem(p);
    for (size_t i = 0; i < *n_out; i++) {
        moec_json v = moec_json_item(&list, i);
        MOEC_TRY(moec_desc_string(p, &v, &(*out)[i]));
        if ((*out)[i][0] == '\0')
            return BAD(p, &v, "is empty");
    }
    return MOEC_OK;
}
