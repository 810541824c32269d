/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Mutations at level 3. Kinds that change bytes change them as at level 2, when
 * they are read; kinds that change what is computed change the converted side's
 * router or dispatch. E-for-P is the remap of SGLang before PR 25367 here: the
 * files are right, and tokens are sent to E-based slots.
 */

#include "level3.h"
#include "model.h"

/* What of the converted side's configuration a kind changes. */
static const char *find_config(const moec_layout *layout, moec_mutation kind,
                               moec_error *err)
{
    const moec_plan *plan = moec_layout_plan(layout);
    const moec_model *model = moec_plan_model(plan);
    bool scaled = false, shared = moec_plan_shared_rows(plan) != 0;

    for (size_t i = 0; i < moec_plan_n_layers(plan); i++) {
        moec_moe_facts f = {.struct_bytes = sizeof(f)};

        if (moec_model_moe(model, moec_plan_model_layer(plan, i), &f, err) !=
            MOEC_OK)
            return NULL;
        if (f.route.rsf < 1.0f || f.route.rsf > 1.0f)
            scaled = scaled || f.route.rsf > 0.0f || f.route.rsf < 0.0f;
    }
    if ((kind == MOEC_MUTATION_RSF_TWICE ||
         kind == MOEC_MUTATION_RSF_MISSING) &&
        !scaled)
        return "the routed scaling factor is 1";
    if (kind == MOEC_MUTATION_SHARED_WEIGHT_RENORMALISED && !shared)
        return "no shared expert stands in a rank's slots";
    return NULL;
}

static bool is_config(moec_mutation kind)
{
    return kind == MOEC_MUTATION_WRONG_NORM_TOPK ||
           kind == MOEC_MUTATION_RSF_TWICE ||
           kind == MOEC_MUTATION_RSF_MISSING ||
           kind == MOEC_MUTATION_SHARED_WEIGHT_RENORMALISED;
}

/* Kinds that no byte of a file needs to change for. */
static bool needs_no_file(moec_mutation kind)
{
    return is_config(kind) || kind == MOEC_MUTATION_E_FOR_P ||
           kind == MOEC_MUTATION_BF16_AS_F16;
}

/* Can the kind be made of this layout? */
static moec_status can_be_made(const moec_layout *layout, moec_mutation kind,
                               bool files, moec_error *err)
{
    moec_error e = MOEC_ERROR_INIT;
    moec_topology topo;
    moec_mutant m;
    const char *why;

    if (is_config(kind)) {
        why = find_config(layout, kind, &e);
        return why == NULL ? MOEC_OK : moec_mutant_refuse(kind, why, err);
    }
    MOEC_TRY(moec_mutant_find(&m, layout, kind, err));
    if (!files && !needs_no_file(kind) &&
        kind != MOEC_MUTATION_ROUTER_BIAS_DROPPED)
        return moec_mutant_refuse(kind,
                                  "at level kernels it needs the files of a "
                                  "conversion; level headers sees it in a plan",
                                  err);
    topo = moec_plan_topology(moec_layout_plan(layout));
    if (kind == MOEC_MUTATION_E_FOR_P && topo.n_local == 1)
        return moec_mutant_refuse(kind, "a rank holds one slot, by E and by P",
                                  err);
    if (kind == MOEC_MUTATION_E_FOR_P && topo.shared_global)
        return moec_mutant_refuse(kind,
                                  "shared slots are numbered once, and no "
                                  "routed slot is moved by their number",
                                  err);
    return MOEC_OK;
}

/* The rule, or for slots of which no token has come to a right one, the rule
 * over bytes alone and the other way round. */
static bool is_named(const moec_report *r, moec_rule rule)
{
    bool slots = rule == MOEC_RULE_K03 || rule == MOEC_RULE_K05;

    for (size_t i = 0; i < moec_report_n_findings(r); i++) {
        const moec_finding *f = moec_report_finding(r, i);

        if (f->severity == MOEC_SEVERITY_ERROR &&
            (f->rule == rule ||
             (slots && (f->rule == MOEC_RULE_K03 || f->rule == MOEC_RULE_K05))))
            return true;
    }
    return false;
}

/* As it is everything must be right, and something must have run. */
static moec_status validate_clean(const char *dir,
                                  const moec_validate_opts *opts,
                                  moec_mutation kind, moec_error *err)
{
    moec_validation *v = NULL;
    const moec_report *r;
    moec_status st = moec_validate(&v, dir, opts, err);
    size_t n_run = 0;

    if (st != MOEC_OK)
        return st;
    r = moec_validation_report(v);
    for (size_t i = 0; st == MOEC_OK && i < moec_report_n_findings(r); i++) {
        const moec_finding *f = moec_report_finding(r, i);

        if (f->severity == MOEC_SEVERITY_ERROR)
            st = moec_fail(err, MOEC_E_INTEGRITY, f->rule,
                           "the conversion is wrong before it is changed: %s",
                           f->message);
    }
    for (size_t i = 0; i < moec_validation_n_layers(v); i++)
        n_run += moec_validation_layer(v, i)->validated;
    if (st == MOEC_OK && n_run == 0)
        st = moec_mutant_refuse(kind, "no layer can be run", err);
    moec_validation_destroy(v);
    return st;
}

static moec_status open_layout(moec_conversion **c, const moec_layout **layout,
                               const char *dir, const moec_validate_opts *opts,
                               moec_error *err)
{
    *c = NULL;
    *layout = opts->layout;
    if (dir == NULL && *layout == NULL)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "neither a directory nor a layout");
    if (dir == NULL)
        return MOEC_OK;
    MOEC_TRY(moec_conversion_open(c, dir, opts->families, err));
    *layout = moec_conversion_layout(*c);
    return MOEC_OK;
}

moec_status moec_validate_mutation(moec_validation **out, int *found_out,
                                   const char *dir, moec_mutation kind,
                                   const moec_validate_opts *opts,
                                   moec_error *err)
{
    static const moec_validate_opts defaults = MOEC_VALIDATE_OPTS_INIT;
    const moec_mutation_info *info = moec_mutation_describe(kind);
    moec_patches p = {.mutant = {.kind = kind}, .on = true};
    moec_patches *patches = dir == NULL || needs_no_file(kind) ? NULL : &p;
    const moec_layout *layout;
    moec_conversion *c = NULL;
    moec_validation *v = NULL;
    moec_status st;

    if (info == NULL)
        return moec_fail(err, MOEC_E_ARG, MOEC_RULE_NONE,
                         "no kind of mutation has number %d", (int)kind);
    if (opts == NULL)
        opts = &defaults;
    st = open_layout(&c, &layout, dir, opts, err);
    if (st == MOEC_OK)
        st = can_be_made(layout, kind, dir != NULL, err);
    moec_conversion_close(c);
    if (st == MOEC_OK)
        st = validate_clean(dir, opts, kind, err);
    if (st == MOEC_OK)
        st = moec_validate_patched(&v, dir, opts, kind, patches, err);
    if (st == MOEC_OK && patches != NULL && !atomic_load(&p.changed)) {
        moec_validation_destroy(v);
        st = moec_mutant_refuse(kind,
                                "the bytes are alike, so nothing is changed "
                                "by it",
                                err);
    }
    if (st == MOEC_OK) {
        *found_out = is_named(moec_validation_report(v), info->kernels_rule);
        *out = v;
    }
    moec_patches_fini(&p);
    return st;
}
