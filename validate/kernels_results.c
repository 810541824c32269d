/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What a validation hands back, and the limits of what it has shown: each is a
 * sentence, said once.
 */

#include <inttypes.h>
#include <string.h>

#include "level3.h"

void moec_validation_add_limit(moec_validation *out, const char *fmt, ...)
{
    char text[512], *copy;
    va_list ap;

    va_start(ap, fmt);
    (void)vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    for (size_t i = 0; i < out->n_limits; i++)
        if (strcmp(out->limits[i], text) == 0)
            return;
    if (out->n_limits == MOEC_LIMITS_MAX)
        return;
    copy = moec_arena_strdup(&out->arena, text, strlen(text));
    if (copy == NULL)
        out->starved = true;
    else
        out->limits[out->n_limits++] = copy;
}

void moec_validation_say_limits(const moec_level3 *v, moec_validation *out)
{
    size_t seeded = 0, recorded = 0;
    bool other = false;

    for (size_t i = 0; i < out->n_layers; i++) {
        seeded += out->layers[i].validated &&
                  out->layers[i].inputs == MOEC_INPUTS_SEEDED;
        recorded += out->layers[i].validated &&
                    out->layers[i].inputs != MOEC_INPUTS_SEEDED;
        other = other || !out->layers[i].validated;
    }
    if (other)
        moec_validation_add_limit(out, "layers that say so were not run");
    if (seeded != 0)
        moec_validation_add_limit(
            out,
            "hidden states are seeded normal numbers%s: what a "
            "prompt would give was not tried (--inputs)",
            recorded != 0 ? " in layers without recorded ones" : "");
    if (v->lacking[0] != '\0')
        moec_validation_add_limit(out, "the device did not run all choices: %s",
                                  v->lacking);
    if (v->act.golden == NULL)
        moec_validation_add_limit(
            out, "no independent reference was compared: the source's "
                 "side is this program's own (--golden)");
    if (v->opts->exchange != NULL)
        moec_validation_add_limit(
            out, "Expert Choice was not tried: it depends on the whole "
                 "batch, of which each process has a share");
    else if (v->n_homes < moec_plan_topology(v->plan).n_ranks)
        moec_validation_add_limit(
            out,
            "%" PRIu32 " of %" PRIu32 " ranks were tried as source "
            "rank",
            v->n_homes, moec_plan_topology(v->plan).n_ranks);
    if (v->dir == NULL)
        moec_validation_add_limit(
            out, "no conversion was given: slots were made in memory by "
                 "the plan's moves, no written file was read");
    moec_validation_add_limit(
        out, "attention, norms and embeddings are copied, not run; "
             "activations are float32, not what a server quantises");
}

void moec_validation_count_errors(moec_validation *v)
{
    for (size_t i = 0; i < v->n_layers; i++) {
        moec_layer_result *l = &v->layers[i];

        l->n_errors = 0;
        for (size_t k = 0; k < moec_report_n_findings(v->report); k++) {
            const moec_finding *f = moec_report_finding(v->report, k);

            l->n_errors += f->severity == MOEC_SEVERITY_ERROR &&
                           (f->has & MOEC_HAS_LAYER) != 0 &&
                           f->layer.space == l->layer.space &&
                           f->layer.number == l->layer.number;
        }
    }
}

void moec_validation_destroy(moec_validation *v)
{
    if (v == NULL)
        return;
    moec_report_destroy(v->report);
    moec_free(v->why_not);
    moec_free(v->layers);
    moec_free(v->traffic);
    moec_arena_fini(&v->arena);
    moec_free(v);
}

const moec_report *moec_validation_report(const moec_validation *v)
{
    return v->report;
}

size_t moec_validation_n_layers(const moec_validation *v)
{
    return v->n_layers;
}

const moec_layer_result *moec_validation_layer(const moec_validation *v,
                                               size_t i)
{
    return i < v->n_layers ? &v->layers[i] : NULL;
}

const moec_rank_traffic *moec_validation_traffic(const moec_validation *v,
                                                 size_t i, uint32_t rank)
{
    return i < v->n_layers && rank < v->n_ranks
               ? &v->traffic[i * v->n_ranks + rank]
               : NULL;
}

size_t moec_validation_n_limits(const moec_validation *v)
{
    return v->n_limits;
}

const char *moec_validation_limit(const moec_validation *v, size_t i)
{
    return i < v->n_limits ? v->limits[i] : NULL;
}
