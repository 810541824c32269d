/* SPDX-License-Identifier: Apache-2.0 */
/* JSON for the command line: read_json.h. */
#include "read_json.h"

#include "base/json.h"

moec_status moec_read_json(const char *text, size_t n, const char *name,
                           moec_rule rule, json_t **out, moec_error *err)
{
    return moec_json_parse(text, n, name, rule, rule, out, err);
}

moec_status moec_read_loose_json(const char *text, size_t n, const char *name,
                                 json_t **out, moec_error *err)
{
    bool starved;

    *out = moec_json_load(text, n, 0, NULL, &starved);
    return starved ? moec_fail_nomem(err, name) : MOEC_OK;
}
