/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_TEST_PLAN_FIXTURE_H
#define MOEC_TEST_PLAN_FIXTURE_H

/*
 * A fixture checkpoint opened down to its layout, for the tests of validate/
 * and of the way back. Include after cmocka.h.
 */

#include <stdio.h>
#include <string.h>

#include <moec/moec.h>

typedef struct plan_fixture {
    moec_ckpt *ckpt;
    moec_model *model;
    moec_plan *plan;
    moec_layout *layout;
} plan_fixture;

static const char *const plan_fixture_names[] = {
    "dbrx",      "deepseek_v2", "deepseek_v3",
    "glm4_moe",  "gpt_oss",     "deepseek_v3_fp8",
    "llama4",    "mixtral",     "deepseek_v3_fp8_ragged",
    "olmoe",     "qwen2_moe",   "qwen3_moe",
    "qwen3_next"};
#define PLAN_FIXTURES (sizeof(plan_fixture_names) / sizeof(char *))

static inline void plan_fixture_path(char *out, size_t n, const char *name)
{
    snprintf(out, n, "%s/checkpoints/%s", MOEC_TEST_FIXTURES, name);
}

static inline plan_fixture plan_fixture_open(const char *name,
                                             const moec_plan_opts *opts)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_families *families = NULL;
    plan_fixture x = {0};
    char path[512];

    plan_fixture_path(path, sizeof(path), name);
    if (moec_families_create(&families, &err) != MOEC_OK ||
        moec_ckpt_open(&x.ckpt, path, NULL, &err) != MOEC_OK ||
        moec_model_open(&x.model, x.ckpt, families, &err) != MOEC_OK ||
        moec_plan_create(&x.plan, x.model, opts, &err) != MOEC_OK ||
        moec_layout_create(&x.layout, x.plan, 0, &err) != MOEC_OK)
        fail_msg("%s: %s", name, err.text);
    moec_families_destroy(families);
    return x;
}

static inline void plan_fixture_close(plan_fixture *x)
{
    moec_layout_destroy(x->layout);
    moec_plan_destroy(x->plan);
    moec_model_destroy(x->model);
    moec_ckpt_close(x->ckpt);
    memset(x, 0, sizeof(*x));
}

/* Every fixture's E is divided by 2; with R = 2 and W = 2 there are replicas
 * and several ranks everywhere. */
static inline moec_plan_opts plan_fixture_opts(void)
{
    moec_plan_opts o = MOEC_PLAN_OPTS_INIT;

    o.n_ranks = 2;
    o.n_redundant = 2;
    return o;
}

#endif
