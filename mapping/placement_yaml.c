/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What this is: TensorRT-LLM's moe_load_balancer file, YAML read with libyaml:
 *     num_slots: P
 *     initial_global_assignments: {layer: [expert of slot]}
 *     layer_updates_per_iter: n     a setting of the server, not carried over
 * Refuses (P01): other keys, keys twice, anchors, aliases, tags, more than one
 *   document, anything nested otherwise; num_slots that is not the length of
 *   the rows (P03). A list of slots is integers in decimal and nothing that
 *   YAML would turn into one (0x10, 1_000, 1e3).
 */

#include <inttypes.h>
#include <string.h>

#include <yaml.h>

#include "placement_rows.h"

typedef struct reader {
    moec_rows *r;
    yaml_parser_t parser;
    yaml_event_t ev;
    bool have; /* ev is to be deleted */
    bool seen_slots, seen_map, seen_updates;
    int64_t n_slots, n_updates;
} reader;

static moec_status fail(const reader *y, const char *what, moec_error *err)
{
    return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P01, "%s: line %zu: %s",
                     y->r->name, y->ev.start_mark.line + 1, what);
}

static moec_status fail_parse(const reader *y, moec_error *err)
{
    const yaml_parser_t *p = &y->parser;

    if (p->error == YAML_MEMORY_ERROR)
        return moec_fail_nomem(err, "YAML");
    return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P01, "%s: line %zu: %s",
                     y->r->name, p->problem_mark.line + 1,
                     p->problem ? p->problem : "no YAML");
}

/* The next event. Anchors, aliases and tags make two readers see two files. */
static moec_status next(reader *y, moec_error *err)
{
    const yaml_event_t *e = &y->ev;
    const void *anchor = NULL, *tag = NULL;

    if (y->have)
        yaml_event_delete(&y->ev);
    y->have = false;
    if (!yaml_parser_parse(&y->parser, &y->ev))
        return fail_parse(y, err);
    y->have = true;
    if (e->type == YAML_ALIAS_EVENT)
        return fail(y, "an alias, which a placement does not need", err);
    if (e->type == YAML_SCALAR_EVENT) {
        anchor = e->data.scalar.anchor;
        tag = e->data.scalar.tag;
    } else if (e->type == YAML_SEQUENCE_START_EVENT) {
        anchor = e->data.sequence_start.anchor;
        tag = e->data.sequence_start.tag;
    } else if (e->type == YAML_MAPPING_START_EVENT) {
        anchor = e->data.mapping_start.anchor;
        tag = e->data.mapping_start.tag;
    }
    if (anchor || tag)
        return fail(y, "an anchor or a tag, which a placement does not need",
                    err);
    return MOEC_OK;
}

static bool scalar_is(const reader *y, const char *word)
{
    const yaml_event_t *e = &y->ev;

    return e->type == YAML_SCALAR_EVENT &&
           e->data.scalar.length == strlen(word) &&
           memcmp(e->data.scalar.value, word, strlen(word)) == 0;
}

/* Decimal digits with a minus sign perhaps. Keys may be quoted, as JSON has no
 * others; ids may not. */
static bool scalar_int(const reader *y, bool quoted, int64_t *out)
{
    const yaml_event_t *e = &y->ev;
    int64_t v = 0;
    size_t i = 0;

    if (e->type != YAML_SCALAR_EVENT ||
        (!quoted && e->data.scalar.style != YAML_PLAIN_SCALAR_STYLE))
        return false;
    const char *s = (const char *)e->data.scalar.value;
    size_t n = e->data.scalar.length;
    bool minus = n > 0 && s[0] == '-';

    i = minus;
    /* 010 is eight to one reader and ten to another. */
    if (i == n || n > 18 || (s[i] == '0' && n > i + 1))
        return false;
    for (; i < n; i++) {
        if (s[i] < '0' || s[i] > '9')
            return false;
        v = v * 10 + (s[i] - '0');
    }
    *out = minus ? -v : v;
    return true;
}

static void push_scalar(const reader *y)
{
    const yaml_event_t *e = &y->ev;
    char what[64];
    int64_t id;

    if (scalar_int(y, false, &id)) {
        moec_rows_push(y->r, id);
        return;
    }
    snprintf(what, sizeof(what), "'%.32s'", (const char *)e->data.scalar.value);
    moec_rows_push_bad(y->r, what);
}

static moec_status read_slots(reader *y, moec_error *err)
{
    for (;;) {
        MOEC_TRY(next(y, err));
        if (y->ev.type == YAML_SEQUENCE_END_EVENT)
            return MOEC_OK;
        if (y->ev.type != YAML_SCALAR_EVENT)
            return fail(y, "a list of slots holds something else than ids",
                        err);
        push_scalar(y);
    }
}

static moec_status read_map(reader *y, moec_error *err)
{
    int64_t layer = 0;

    MOEC_TRY(next(y, err));
    if (y->ev.type != YAML_MAPPING_START_EVENT)
        return fail(y, "initial_global_assignments is no map of layers", err);
    for (;;) {
        MOEC_TRY(next(y, err));
        if (y->ev.type == YAML_MAPPING_END_EVENT)
            return MOEC_OK;
        if (!scalar_int(y, true, &layer) || layer < 0)
            return fail(y, "a layer is no number from 0 on", err);
        moec_rows_begin(y->r, (uint64_t)layer);
        MOEC_TRY(next(y, err));
        if (y->ev.type != YAML_SEQUENCE_START_EVENT)
            return fail(y, "a layer has no list of slots", err);
        MOEC_TRY(read_slots(y, err));
    }
}

static moec_status read_count(reader *y, bool *seen, int64_t *out,
                              moec_error *err)
{
    if (*seen)
        return fail(y, "the key stands twice", err);
    *seen = true;
    MOEC_TRY(next(y, err));
    if (!scalar_int(y, false, out) || *out < 0)
        return fail(y, "must be a number from 0 on", err);
    return MOEC_OK;
}

static moec_status read_member(reader *y, moec_error *err)
{
    if (scalar_is(y, "num_slots"))
        return read_count(y, &y->seen_slots, &y->n_slots, err);
    if (scalar_is(y, "layer_updates_per_iter"))
        return read_count(y, &y->seen_updates, &y->n_updates, err);
    if (!scalar_is(y, "initial_global_assignments"))
        return fail(y,
                    "a key that is none of num_slots, "
                    "initial_global_assignments, layer_updates_per_iter",
                    err);
    if (y->seen_map)
        return fail(y, "the key stands twice", err);
    y->seen_map = true;
    return read_map(y, err);
}

static moec_status want(reader *y, yaml_event_type_t type, const char *what,
                        moec_error *err)
{
    MOEC_TRY(next(y, err));
    return y->ev.type == type ? MOEC_OK : fail(y, what, err);
}

static moec_status read_document(reader *y, moec_error *err)
{
    MOEC_TRY(want(y, YAML_STREAM_START_EVENT, "no YAML", err));
    MOEC_TRY(want(y, YAML_DOCUMENT_START_EVENT, "the file is empty", err));
    MOEC_TRY(want(y, YAML_MAPPING_START_EVENT, "no map at the top", err));
    for (;;) {
        MOEC_TRY(next(y, err));
        if (y->ev.type == YAML_MAPPING_END_EVENT)
            break;
        MOEC_TRY(read_member(y, err));
    }
    MOEC_TRY(want(y, YAML_DOCUMENT_END_EVENT, "more behind the map", err));
    return want(y, YAML_STREAM_END_EVENT, "a second document", err);
}

static moec_status check_document(const reader *y, moec_error *err)
{
    moec_rows *r = y->r;
    char at[MOEC_ROWS_TEXT_BYTES];

    if (r->rows.oom || r->ids.oom)
        return moec_fail_nomem(err, r->name);
    if (!y->seen_slots)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P01,
                         "%s: the key num_slots is missing", r->name);
    if (!y->seen_map)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P01,
                         "%s: the key initial_global_assignments is missing: "
                         "without it TensorRT-LLM chooses the slots itself",
                         r->name);
    for (size_t i = 0; i < moec_rows_count(r); i++) {
        size_t n = moec_rows_at(r, i)->n;

        if ((uint64_t)n != (uint64_t)y->n_slots)
            return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_P03,
                             "%s: %s has %zu slots, num_slots is %" PRId64,
                             r->name, moec_rows_text(r, i, at), n, y->n_slots);
    }
    if (y->n_updates > 0)
        snprintf(r->note, sizeof(r->note),
                 "layer_updates_per_iter: %" PRId64
                 " is a setting of the server: it is not carried over",
                 y->n_updates);
    return MOEC_OK;
}

moec_status moec_rows_read_yaml(moec_rows *r, const char *text, size_t n,
                                moec_error *err)
{
    reader y = {.r = r};
    moec_status st;

    r->kind = MOEC_ROWS_NUMBERED;
    r->form = MOEC_PLACEMENT_TRTLLM;
    if (n > MOEC_JSON_BYTES_MAX)
        return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_I04,
                         "%s: %zu bytes exceed %" PRIu64, r->name, n,
                         MOEC_JSON_BYTES_MAX);
    if (!yaml_parser_initialize(&y.parser))
        return moec_fail_nomem(err, "YAML");
    yaml_parser_set_input_string(&y.parser, (const unsigned char *)text, n);
    st = read_document(&y, err);
    if (st == MOEC_OK)
        st = check_document(&y, err);
    if (y.have)
        yaml_event_delete(&y.ev);
    yaml_parser_delete(&y.parser);
    return st;
}
