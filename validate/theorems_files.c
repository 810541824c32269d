/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The theorems over the table of output files, and the entry points that prove
 * a whole plan or layout.
 */

#include <inttypes.h>

#include "report.h"
#include "theorems.h"

/* How often each thing that must have one place has been seen. */
typedef struct census {
    moec_report *r;
    const moec_proof *p;
    const moec_plan *plan;
    size_t n_slots;   /* slot tensors of all layers */
    size_t *first;    /* [planned layer] into a rank's slot tensors */
    uint8_t *slots;   /* [n_ranks][n_slots] */
    uint8_t *sources; /* [n_sources] */
} census;

static moec_finding file_finding(const moec_out_file *file, moec_rule rule)
{
    moec_finding f = {.rule = rule,
                      .severity = MOEC_SEVERITY_ERROR,
                      .has = MOEC_HAS_FILE,
                      .file = file->name};
    return f;
}

static void count(uint8_t *n)
{
    *n = (uint8_t)(*n + (*n < 2));
}

static void prove_slots_place(census *c, const moec_out_file *file,
                              const moec_out_tensor *t)
{
    moec_finding f = file_finding(file, MOEC_RULE_T2);
    const moec_slot_tensor *s;

    f.has |= MOEC_HAS_OFFSET;
    f.offset = t->off;
    if ((file->kind != MOEC_FILE_RANK && file->kind != MOEC_FILE_STORE) ||
        file->rank >= c->p->topo.n_ranks || t->layer >= c->p->n_layers ||
        t->t >= moec_plan_n_slot_tensors(c->plan, t->layer)) {
        moec_report_add(c->r, &f, "a slot tensor that no layer has");
        return;
    }
    s = moec_plan_slot_tensor(c->plan, t->layer, t->t);
    if (t->bytes != s->slot_bytes * s->shape[0])
        moec_report_add(c->r, &f,
                        "'%s' takes %" PRIu64 " bytes, its %" PRIu64
                        " slots have %" PRIu64 " each",
                        s->name, t->bytes, s->shape[0], s->slot_bytes);
    count(&c->slots[file->rank * c->n_slots + c->first[t->layer] + t->t]);
}

static void prove_common_place(census *c, const moec_out_file *file,
                               const moec_out_tensor *t)
{
    moec_finding f = file_finding(file, MOEC_RULE_T1);
    const moec_tensor *s;
    moec_fate want =
        file->kind == MOEC_FILE_SHARED ? MOEC_FATE_SHARED : MOEC_FATE_COMMON;

    f.has |= MOEC_HAS_OFFSET;
    f.offset = t->off;
    if (t->source >= c->p->n_sources) {
        moec_report_add(c->r, &f, "a tensor that the source does not have");
        return;
    }
    s = moec_ckpt_tensor(c->p->ckpt, t->source);
    f.has |= MOEC_HAS_TENSOR;
    f.tensor = s->name;
    if (c->p->sources[t->source].fate != want || file->kind == MOEC_FILE_RANK ||
        file->kind == MOEC_FILE_STORE)
        moec_report_add(c->r, &f, "'%s' does not belong into this file",
                        s->name);
    else if (t->bytes != s->bytes)
        moec_report_add(c->r, &f,
                        "'%s' takes %" PRIu64 " bytes, the source's has "
                        "%" PRIu64,
                        s->name, t->bytes, s->bytes);
    count(&c->sources[t->source]);
}

/* Tensors and fillers tile the file from the end of its header. */
static void prove_file(census *c, const moec_out_file *file)
{
    moec_finding f = file_finding(file, MOEC_RULE_T2);
    uint64_t at = file->header_bytes;

    for (size_t i = 0; i < file->n_tensors; i++) {
        const moec_out_tensor *t = &file->tensors[i];

        f.offset = moec_min_u64(at, t->off);
        f.has |= MOEC_HAS_OFFSET;
        if (t->off != at) {
            moec_report_add(c->r, &f,
                            "a tensor begins at byte %" PRIu64
                            ", the one before ends at %" PRIu64,
                            t->off, at);
            return;
        }
        if (!moec_add_u64(at, t->bytes, &at)) {
            moec_report_add(c->r, &f, "a tensor's end overflows");
            return;
        }
        switch (t->kind) {
        case MOEC_OUT_SLOTS:
            prove_slots_place(c, file, t);
            break;
        case MOEC_OUT_COMMON:
            prove_common_place(c, file, t);
            break;
        case MOEC_OUT_PAD:
            break;
        }
    }
    if (at == file->bytes)
        return;
    moec_report_add(c->r, &f,
                    "the last tensor ends at byte %" PRIu64 " of %" PRIu64, at,
                    file->bytes);
}

static void prove_slots_seen(census *c)
{
    for (size_t i = 0; i < c->p->topo.n_ranks * c->n_slots; i++) {
        moec_finding f = {.rule = MOEC_RULE_T2,
                          .severity = MOEC_SEVERITY_ERROR};
        size_t at = i % c->n_slots, layer = 0;
        const moec_slot_tensor *s;

        if (c->slots[i] == 1)
            continue;
        while (layer + 1 < c->p->n_layers && c->first[layer + 1] <= at)
            layer++;
        s = moec_plan_slot_tensor(c->plan, layer, at - c->first[layer]);
        f.has = MOEC_HAS_RANK | MOEC_HAS_LAYER | MOEC_HAS_TENSOR;
        f.rank = (uint32_t)(i / c->n_slots);
        f.layer = moec_model_layer(moec_plan_model(c->plan),
                                   moec_plan_model_layer(c->plan, layer))
                      ->key;
        f.tensor = s->name;
        moec_report_add(c->r, &f, "'%s' has %s in the files of rank %u",
                        s->name, c->slots[i] == 0 ? "no place" : "two places",
                        f.rank);
    }
}

/* Source tensor `i` has not as many places as its fate says. */
static void tell_places(census *c, size_t i, bool stored)
{
    const char *name = moec_ckpt_tensor(c->p->ckpt, i)->name;
    moec_finding f = {.rule = MOEC_RULE_T1,
                      .severity = MOEC_SEVERITY_ERROR,
                      .has = MOEC_HAS_TENSOR,
                      .tensor = name};

    if (stored)
        moec_report_add(c->r, &f, "'%s' has %s in the output files", name,
                        c->sources[i] == 0 ? "no place" : "two places");
    else if (c->p->sources[i].fate == MOEC_FATE_SKIPPED)
        moec_report_add(c->r, &f, "'%s' is left out and stored too", name);
}

static void prove_sources_seen(census *c)
{
    for (size_t i = 0; i < c->p->n_sources; i++) {
        moec_fate fate = c->p->sources[i].fate;
        bool stored = fate == MOEC_FATE_COMMON || fate == MOEC_FATE_SHARED;

        if (c->sources[i] != (stored ? 1 : 0))
            tell_places(c, i, stored);
    }
}

moec_status moec_prove_files(moec_report *r, const moec_proof *p,
                             const moec_plan *plan, const moec_out_file *files,
                             size_t n_files, moec_error *err)
{
    census c = {.r = r, .p = p, .plan = plan};
    moec_status st = MOEC_OK;

    c.first = moec_calloc(p->n_layers + 1, sizeof(*c.first));
    c.sources = moec_calloc(p->n_sources + 1, 1);
    for (size_t i = 0; c.first != NULL && i < p->n_layers; i++) {
        c.first[i] = c.n_slots;
        c.n_slots += moec_plan_n_slot_tensors(plan, i);
    }
    c.slots = moec_calloc(p->topo.n_ranks, c.n_slots);
    if (c.first == NULL || c.sources == NULL || c.slots == NULL) {
        st = moec_fail_nomem(err, "census of the output files");
        goto done;
    }
    for (size_t i = 0; i < n_files; i++)
        prove_file(&c, &files[i]);
    if (c.n_slots != 0)
        prove_slots_seen(&c);
    prove_sources_seen(&c);
    moec_report_ran(r, MOEC_RULE_T2, n_files);
done:
    moec_free(c.first);
    moec_free(c.sources);
    moec_free(c.slots);
    return st;
}

/* --------------------------------------------------------- entry points */

static void add_notes(moec_report *r, const moec_proof *p)
{
    for (size_t i = 0; i < p->n_notes; i++) {
        const moec_note *n = &p->notes[i];
        moec_finding f = {.rule = n->rule,
                          .severity = n->rule == MOEC_RULE_P09
                                          ? MOEC_SEVERITY_WARNING
                                          : MOEC_SEVERITY_NOTE};

        moec_report_add(r, &f, "%s", n->text);
    }
}

/* Layers are proved side by side: each marks its own sources. */
typedef struct layer_job {
    moec_report *r;
    moec_proof *p;
    const moec_plan *plan;
} layer_job;

static moec_status prove_one(void *ctx, size_t i, uint32_t worker,
                             moec_error *err)
{
    const layer_job *job = ctx;
    moec_proof_layer l;

    (void)worker;
    MOEC_TRY(moec_proof_layer_open(&l, job->plan, i, err));
    moec_status st = moec_prove_layer(job->r, job->p, &l, err);
    moec_proof_layer_close(&l);
    return st;
}

moec_status moec_prove_into(moec_report *r, const moec_plan *plan,
                            const moec_layout *layout, moec_error *err)
{
    moec_proof p;
    moec_status st = moec_proof_open(&p, plan, err);
    layer_job job = {r, &p, plan};

    if (st != MOEC_OK)
        return st;
    add_notes(r, &p);
    st = moec_parallel(0, p.n_layers, prove_one, &job, err);
    if (st == MOEC_OK)
        moec_prove_sources(r, &p);
    if (st == MOEC_OK && layout != NULL)
        st = moec_prove_files(r, &p, plan, moec_layout_file(layout, 0),
                              moec_layout_n_files(layout), err);
    moec_proof_close(&p);
    return st;
}

static moec_status prove_all(moec_report **out, const moec_plan *plan,
                             const moec_layout *layout, moec_error *err)
{
    moec_report *r;
    moec_status st;

    MOEC_TRY(moec_report_create(&r, err));
    moec_report_note(r, MOEC_RULE_T3,
                     "names and offsets were compared, no "
                     "byte of a weight was read");
    moec_report_note(r, MOEC_RULE_T6, "needs the converted files");
    st = moec_prove_into(r, plan, layout, err);
    if (st == MOEC_OK)
        st = moec_report_finish(r, err);
    if (st != MOEC_OK) {
        moec_report_destroy(r);
        return st;
    }
    *out = r;
    return MOEC_OK;
}

moec_status moec_plan_prove(moec_report **out, const moec_plan *plan,
                            moec_error *err)
{
    return prove_all(out, plan, NULL, err);
}

moec_status moec_layout_prove(moec_report **out, const moec_layout *layout,
                              moec_error *err)
{
    return prove_all(out, moec_layout_plan(layout), layout, err);
}
