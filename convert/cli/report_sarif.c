/* SPDX-License-Identifier: Apache-2.0 */
/*
 * SARIF 2.1.0: one run of one tool. Files are named relative to where the
 * command ran, percent-encoded; in a weight file it is the byte of a region that
 * counts. Known findings are there with baselineState "unchanged".
 */
#include "ci_report.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "memory_file.h"

static const char schema[] = "https://json.schemastore.org/sarif-2.1.0.json";

/* A member {"text": ...}. */
static void text_member(moec_cli_json *j, const char *key, const char *text)
{
    moec_cli_json_object_row(j, key);
    moec_cli_json_str(j, "text", text);
    moec_cli_json_end(j);
}

/* The rules that have findings, in the order of their numbers; rule NONE
 * first. `index` says where each stands. */
static void rules(moec_cli_json *j, const moec_ci_report *r,
                  uint32_t index[MOEC_RULE_COUNT])
{
    bool there[MOEC_RULE_COUNT] = {false};
    uint32_t n = 0;
    for (size_t i = 0; i < r->n_found; i++)
        there[r->found[i].f.rule] = true;
    moec_cli_json_array(j, "rules");
    for (int i = 0; i < MOEC_RULE_COUNT; i++) {
        const moec_rule_info *info = moec_rule_describe((moec_rule)i);
        if (!there[i])
            continue;
        index[i] = n++;
        moec_cli_json_object(j, NULL);
        moec_cli_json_str(j, "id", moec_ci_rule_id((moec_rule)i));
        moec_cli_json_str(j, "name", moec_ci_rule_name((moec_rule)i));
        if (info != NULL) {
            text_member(j, "shortDescription", info->what);
            text_member(j, "fullDescription", info->why);
            text_member(j, "help", info->mend);
        }
        moec_cli_json_end(j);
    }
    moec_cli_json_end(j);
}

/* A path as a relative or file URI. */
static void uri(moec_cli_json *j, const char *key, const char *path)
{
    char *text = NULL;
    size_t n = 0;
    FILE *s = moec_cli_memory_file(&text, &n);
    if (s == NULL) {
        moec_cli_json_str(j, key, "");
        return;
    }
    if (path[0] == '/')
        (void)fputs("file://", s);
    for (const unsigned char *p = (const unsigned char *)path; *p != '\0';
         p++) {
        if (*p < 0x80 && (isalnum(*p) || strchr("/._-~", *p) != NULL))
            (void)fputc(*p, s);
        else
            (void)fprintf(s, "%%%02X", (unsigned)*p);
    }
    bool whole = fclose(s) == 0;
    moec_cli_json_str(j, key, whole ? text : "");
    free(text);
}

static void location(moec_cli_json *j, const moec_ci_report *r,
                     const moec_ci_found *x)
{
    char *path = moec_ci_path(r, x);
    moec_cli_json_array(j, "locations");
    moec_cli_json_object(j, NULL);
    moec_cli_json_object(j, "physicalLocation");
    moec_cli_json_object_row(j, "artifactLocation");
    uri(j, "uri", path != NULL ? path : x->file);
    moec_cli_json_end(j);
    /* GitHub's code scanning shows nothing without a line: a weight file is
     * one. Bytes are counted in 31 bits at most here; the number in full is
     * among the properties. */
    moec_cli_json_object_row(j, "region");
    moec_cli_json_u64(j, "startLine", 1);
    if ((x->f.has & MOEC_HAS_OFFSET) != 0 && x->f.offset <= INT32_MAX)
        moec_cli_json_u64(j, "byteOffset", x->f.offset);
    moec_cli_json_end(j);
    moec_cli_json_end(j);
    if ((x->f.has & MOEC_HAS_TENSOR) != 0) {
        moec_cli_json_array(j, "logicalLocations");
        moec_cli_json_object_row(j, NULL);
        moec_cli_json_str(j, "fullyQualifiedName", x->f.tensor);
        moec_cli_json_str(j, "kind", "tensor");
        moec_cli_json_end(j);
        moec_cli_json_end(j);
    }
    moec_cli_json_end(j);
    moec_cli_json_end(j);
    free(path);
}

static void properties(moec_cli_json *j, const moec_ci_report *r,
                       const moec_ci_found *x)
{
    const moec_finding *f = &x->f;
    moec_cli_json_object(j, "properties");
    if (r->runs[x->run].name != NULL)
        moec_cli_json_str(j, "run", r->runs[x->run].name);
    if ((f->has & MOEC_HAS_OFFSET) != 0)
        moec_cli_json_u64(j, "offset", f->offset);
    if ((f->has & MOEC_HAS_LAYER) != 0)
        moec_cli_json_layer(j, "layer", f->layer);
    if ((f->has & MOEC_HAS_RANK) != 0)
        moec_cli_json_u64(j, "rank", f->rank);
    if ((f->has & MOEC_HAS_SLOT) != 0)
        moec_cli_json_u64(j, "slot", f->slot);
    if ((f->has & MOEC_HAS_EXPERT) != 0)
        moec_cli_json_u64(j, "expert", f->expert);
    if ((f->has & MOEC_HAS_EXPECTED) != 0)
        moec_cli_json_str(j, "expected", f->expected);
    if ((f->has & MOEC_HAS_FOUND) != 0)
        moec_cli_json_str(j, "found", f->found);
    moec_cli_json_end(j);
}

static void result(moec_cli_json *j, const moec_ci_report *r,
                   const moec_ci_found *x, uint32_t rule_index)
{
    char *message = moec_ci_message(r, x);
    moec_cli_json_object(j, NULL);
    moec_cli_json_str(j, "ruleId", moec_ci_rule_id(x->f.rule));
    moec_cli_json_u64(j, "ruleIndex", rule_index);
    moec_cli_json_str(j, "level", moec_cli_severity_name(x->f.severity));
    text_member(j, "message", message != NULL ? message : x->f.message);
    location(j, r, x);
    moec_cli_json_object_row(j, "partialFingerprints");
    moec_cli_json_str(j, "moecFinding/v1", x->print);
    moec_cli_json_end(j);
    if (r->baseline != NULL)
        moec_cli_json_str(j, "baselineState", x->known ? "unchanged" : "new");
    properties(j, r, x);
    moec_cli_json_end(j);
    free(message);
}

void moec_ci_write_sarif(FILE *f, const moec_ci_report *r)
{
    uint32_t index[MOEC_RULE_COUNT] = {0};
    moec_cli_json j = {.f = f};
    moec_cli_json_object(&j, NULL);
    moec_cli_json_str(&j, "$schema", schema);
    moec_cli_json_str(&j, "version", "2.1.0");
    moec_cli_json_array(&j, "runs");
    moec_cli_json_object(&j, NULL);
    moec_cli_json_object(&j, "tool");
    moec_cli_json_object(&j, "driver");
    moec_cli_json_str(&j, "name", "moe-convert");
    moec_cli_json_str(&j, "version", moec_version());
    rules(&j, r, index);
    moec_cli_json_end(&j);
    moec_cli_json_end(&j);
    moec_cli_json_array(&j, "invocations");
    moec_cli_json_object_row(&j, NULL);
    moec_cli_json_bool(&j, "executionSuccessful", !r->failed);
    moec_cli_json_u64(&j, "exitCode", (uint64_t)r->code);
    moec_cli_json_end(&j);
    moec_cli_json_end(&j);
    moec_cli_json_array(&j, "results");
    for (size_t i = 0; i < r->n_found; i++)
        result(&j, r, &r->found[i], index[r->found[i].f.rule]);
    moec_cli_json_finish(&j);
}
