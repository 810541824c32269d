/* SPDX-License-Identifier: Apache-2.0
 *
 * The rules of input as data: rules.def becomes one table, indexed by
 * moec_rule. Nothing here refuses anything. */

#include <string.h>

#include <moec/error.h>

static const moec_rule_info rule_table[MOEC_RULE_COUNT] = {
#define MOEC_RULE(id, name, what, why, mend)                                   \
  [MOEC_RULE_##id] = {"MOE-" #id, name, what, why, mend},
#include <moec/rules.def>
#undef MOEC_RULE
};

const moec_rule_info *moec_rule_describe(moec_rule rule)
{
    unsigned r = (unsigned)rule;

    if (r == 0 || r >= (unsigned)MOEC_RULE_COUNT)
        return NULL;
    return &rule_table[r];
}

/* strcasecmp, but with ASCII letters in every locale. */
static int equal_nocase(const char *a, const char *b)
{
    for (;; a++, b++) {
        int x = *a >= 'a' && *a <= 'z' ? *a - 'a' + 'A' : *a;
        int y = *b >= 'a' && *b <= 'z' ? *b - 'a' + 'A' : *b;
        if (x != y)
            return 0;
        if (x == 0)
            return 1;
    }
}

moec_rule moec_rule_find(const char *id_or_name)
{
    if (!id_or_name)
        return MOEC_RULE_NONE;
    for (unsigned r = 1; r < (unsigned)MOEC_RULE_COUNT; r++) {
        const moec_rule_info *info = &rule_table[r];
        if (equal_nocase(info->id, id_or_name) ||
            strcmp(info->name, id_or_name) == 0)
            return (moec_rule)r;
    }
    return MOEC_RULE_NONE;
}
