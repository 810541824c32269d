/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Matching of tensor names, anchored by construction.
 *
 * Engines match experts by substring ("experts.1." is in "experts.11." is in
 * "shared_experts.11."), once for every expert. Here a name is cut at its
 * dots, segments of digits become '#', and the result must EQUAL a key of the
 * family's table: what precedes and what follows counts too.
 *
 * Refused (MOEC_NAME_STRANGE): a name inside an expert name space that is no
 * key, and one that would be a key but for how a number is written: two
 * spellings of one expert would be two values of one weight.
 */

#include "names.h"

#include <string.h>

static void add_number(moec_norm *out, const char *digits, size_t n)
{
    uint64_t value = 0;
    bool good = n <= 10 && (n == 1 || digits[0] != '0');
    if (good)
        for (size_t i = 0; i < n; i++)
            value = value * 10 + (uint64_t)(digits[i] - '0');
    if (!good || value > INT32_MAX) {
        out->canonical = false;
        value = 0;
    }
    if (out->n_numbers < MOEC_NAME_NUMBERS_MAX)
        out->numbers[out->n_numbers] = (uint32_t)value;
    out->n_numbers++;
}

bool moec_norm_name(moec_norm *out, const char *name)
{
    size_t o = 0;
    out->n_numbers = 0;
    out->canonical = true;
    memset(out->numbers, 0, sizeof(out->numbers));
    for (const char *p = name;; p++) {
        const char *segment = p;
        bool digits = true;
        for (; *p != '\0' && *p != '.'; p++)
            digits &= *p >= '0' && *p <= '9';
        size_t n = (size_t)(p - segment);
        if (n > MOEC_NAME_BYTES_MAX - o)
            return false;
        if (digits && n != 0) {
            add_number(out, segment, n);
            out->text[o++] = '#';
        } else {
            if (n == 1 && *segment == '#')
                out->canonical = false;
            memcpy(out->text + o, segment, n);
            o += n;
        }
        if (*p == '\0')
            break;
        if (o == MOEC_NAME_BYTES_MAX)
            return false;
        out->text[o++] = '.';
    }
    out->text[o] = '\0';
    out->bytes = o;
    return true;
}

static moec_status copy_list(moec_names *names, const char ***out,
                             const char *const *list, size_t n, moec_error *err)
{
    *out = moec_arena_alloc(&names->arena, (n + 1) * sizeof(**out),
                            _Alignof(const char *));
    if (*out == NULL)
        return moec_fail_nomem(err, "a table of names");
    for (size_t i = 0; i < n; i++) {
        (*out)[i] = moec_arena_strdup(&names->arena, list[i], strlen(list[i]));
        if ((*out)[i] == NULL)
            return moec_fail_nomem(err, "a table of names");
    }
    return MOEC_OK;
}

moec_status moec_names_init(moec_names *names, const char *const *prefixes,
                            size_t n_prefixes, const char *const *spaces,
                            size_t n_spaces, moec_error *err)
{
    memset(names, 0, sizeof(*names));
    names->n_prefixes = n_prefixes;
    names->n_spaces = n_spaces;
    moec_status st =
        copy_list(names, &names->prefixes, prefixes, n_prefixes, err);
    if (st == MOEC_OK)
        st = copy_list(names, &names->spaces, spaces, n_spaces, err);
    if (st == MOEC_OK)
        st = moec_strmap_init(&names->map, 128, err);
    if (st != MOEC_OK)
        moec_names_fini(names);
    return st;
}

void moec_names_fini(moec_names *names)
{
    moec_strmap_fini(&names->map);
    moec_free(names->entries);
    moec_arena_fini(&names->arena);
    memset(names, 0, sizeof(*names));
}

/* Give the entry of a key, a new one where there is none. */
static moec_status entry_of(moec_names *names, const char *key,
                            size_t key_bytes, uint64_t *index, moec_error *err)
{
    if (moec_strmap_get(&names->map, key, key_bytes, index))
        return MOEC_OK;
    if (!MOEC_GROW(names->entries, names->n_entries, names->cap))
        return moec_fail_nomem(err, "a table of names");
    const char *own = moec_arena_strdup(&names->arena, key, key_bytes);
    if (own == NULL)
        return moec_fail_nomem(err, "a table of names");
    bool existed;
    *index = names->n_entries;
    MOEC_TRY(
        moec_strmap_put(&names->map, own, key_bytes, *index, &existed, err));
    moec_name_entry *e = &names->entries[names->n_entries++];
    memset(e, 0, sizeof(*e));
    for (size_t v = 0; v < MOEC_VARIANTS_MAX; v++)
        e->kind[v] = MOEC_NO_KIND;
    return MOEC_OK;
}

moec_status moec_names_add(moec_names *names, size_t prefix, const char *tail,
                           uint32_t variant, uint16_t kind, uint16_t *old_out,
                           uint16_t *other_out, moec_error *err)
{
    char key[MOEC_NAME_BYTES_MAX + 1];
    size_t head = strlen(names->prefixes[prefix]);
    size_t rest = strlen(tail);
    if (head + rest > MOEC_NAME_BYTES_MAX)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_C09,
                         "pattern '%s%s' is longer than a tensor's name can "
                         "be (%d bytes)",
                         names->prefixes[prefix], tail, MOEC_NAME_BYTES_MAX);
    memcpy(key, names->prefixes[prefix], head);
    memcpy(key + head, tail, rest + 1);
    uint64_t index;
    MOEC_TRY(entry_of(names, key, head + rest, &index, err));
    moec_name_entry *e = &names->entries[index];
    *old_out = e->kind[variant];
    *other_out = MOEC_NO_KIND;
    for (size_t v = 0; v < MOEC_VARIANTS_MAX; v++)
        if (v != variant && e->kind[v] != MOEC_NO_KIND)
            *other_out = e->kind[v];
    if (*old_out != MOEC_NO_KIND)
        return MOEC_OK;
    e->variants |= 1u << variant;
    e->prefix = (uint16_t)prefix;
    e->kind[variant] = kind;
    e->n_numbers = 1;
    for (const char *p = strchr(tail, '#'); p != NULL; p = strchr(p + 1, '#'))
        e->n_numbers++;
    return MOEC_OK;
}

/* True where `rest` (behind a layer prefix) lies in a name space. */
static bool in_space(const moec_names *names, const char *rest)
{
    for (size_t i = 0; i < names->n_spaces; i++) {
        size_t n = strlen(names->spaces[i]);
        if (strncmp(rest, names->spaces[i], n) == 0 &&
            (rest[n] == '.' || rest[n] == '\0'))
            return true;
    }
    return false;
}

moec_name_found moec_names_find(const moec_names *names, const char *name,
                                moec_norm *scratch)
{
    moec_name_found found = {MOEC_NAME_OTHER, 0, 0, UINT32_MAX, UINT32_MAX};
    uint64_t index;
    if (!moec_norm_name(scratch, name))
        return found;
    if (moec_strmap_get(&names->map, scratch->text, scratch->bytes, &index)) {
        const moec_name_entry *e = &names->entries[index];
        bool good = scratch->canonical && scratch->n_numbers == e->n_numbers;
        found.what = good ? MOEC_NAME_KNOWN : MOEC_NAME_STRANGE;
        found.entry = (uint32_t)index;
        found.prefix = e->prefix;
        found.layer = scratch->numbers[0];
        if (e->n_numbers > 1)
            found.expert = scratch->numbers[1];
        return found;
    }
    for (size_t i = 0; i < names->n_prefixes; i++) {
        size_t n = strlen(names->prefixes[i]);
        if (strncmp(scratch->text, names->prefixes[i], n) != 0)
            continue;
        if (in_space(names, scratch->text + n)) {
            found.what = MOEC_NAME_STRANGE;
        } else if (scratch->canonical) {
            found.what = MOEC_NAME_LAYER;
            found.prefix = (uint32_t)i;
            found.layer = scratch->numbers[0];
        }
        return found;
    }
    return found;
}

/* Skip a number as norm_name wants it to be written, of up to nine digits;
 * NULL where none is there. */
static const char *skip_number(const char *p, uint32_t *value)
{
    const char *begin = p;
    uint32_t v = 0;
    for (; *p >= '0' && *p <= '9' && p - begin < 9; p++)
        v = v * 10 + (uint32_t)(*p - '0');
    *value = v;
    return p == begin || (*begin == '0' && p - begin > 1) ? NULL : p;
}

/* Keep what was found for a name with two numbers: of the same head and tail
 * any other second number makes the same normalised name. */
static void remember(moec_name_memo *memo, const char *name,
                     moec_name_found found)
{
    const char *segment = name, *tail = NULL;
    uint32_t n_numbers = 0, value;
    while (n_numbers < 2 && segment != NULL) {
        const char *end = skip_number(segment, &value);
        n_numbers += end != NULL && *end == '.';
        tail = end;
        if (n_numbers < 2) {
            segment = strchr(segment, '.');
            segment += segment != NULL;
        }
    }
    if (segment == NULL) /* the number ends the name, or is a long one */
        return;
    size_t n = (size_t)(segment - name);
    if (n != memo->head_bytes || memcmp(name, memo->head, n) != 0) {
        memo->head = name;
        memo->head_bytes = n;
        memo->n_tails = 0;
    }
    if (memo->n_tails == MOEC_NAME_TAILS_MAX)
        return;
    memo->tails[memo->n_tails].text = tail;
    memo->tails[memo->n_tails++].found = found;
    memo->next = 0;
}

moec_name_found moec_names_recall(const moec_names *names, moec_name_memo *memo,
                                  const char *name, moec_norm *scratch)
{
    const char *tail = NULL;
    moec_name_found found;
    uint32_t expert;
    if (memo->n_tails > 0 && strncmp(name, memo->head, memo->head_bytes) == 0)
        tail = skip_number(name + memo->head_bytes, &expert);
    for (uint32_t i = 0; tail != NULL && i < memo->n_tails; i++) {
        uint32_t at = memo->next;
        memo->next = at + 1 < memo->n_tails ? at + 1 : 0;
        if (strcmp(tail, memo->tails[at].text) != 0)
            continue;
        found = memo->tails[at].found;
        found.expert = expert;
        return found;
    }
    found = moec_names_find(names, name, scratch);
    if (found.what == MOEC_NAME_KNOWN &&
        names->entries[found.entry].n_numbers == 2)
        remember(memo, name, found);
    return found;
}
