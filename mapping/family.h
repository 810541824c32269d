/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_FAMILY_H
#define MOEC_FAMILY_H

/*
 * What this is: a family description (families/schema.json) as C values.
 * Lifetime: a moec_family owns everything it points to.
 * Threads: immutable once parsed. Errors: FORMAT C09, NOMEM.
 */

#include <moec/mapping.h>

#include "model.h"
#include "names.h"

/* Geometry of a component whose shape decides: scales come per tensor, per
 * row and per block under one name. Resolved in slices.c. */
#define MOEC_GEO_SCALE 255u

typedef enum moec_stack {
    MOEC_STACK_NONE = 0,
    MOEC_STACK_EXPERTS = 1, /* leading axis over experts */
    MOEC_STACK_ROWS = 2     /* experts are blocks of rows */
} moec_stack;

/* One size of a shape that the description states: E, H, I, R (columns of the
 * router) or a number. */
typedef struct moec_dim {
    char symbol; /* 'E', 'H', 'I', 'R', or 0 for the number itself */
    uint32_t number;
} moec_dim;
#define MOEC_DIMS_MAX 4u

/* What running a layer needs a tensor for: routers, and the projections of
 * latent experts. */
typedef enum moec_use {
    MOEC_USE_NONE = 0,
    MOEC_USE_WEIGHT = 1,
    MOEC_USE_LOGIT_BIAS = 2,  /* added to the logits */
    MOEC_USE_CHOICE_BIAS = 3, /* added to the scores for the choice only */
    MOEC_USE_EXPERT_SCALE = 4,
    MOEC_USE_GLOBAL_SCALE = 5,
    MOEC_USE_HASH_TABLE = 6,
    MOEC_USE_INPUT_SCALE = 7, /* of the router's normalised input */
    MOEC_USE_LATENT_IN = 8,
    MOEC_USE_LATENT_OUT = 9,
    MOEC_USE_LATENT_NORM = 10,
    MOEC_USE_SHARED_GATE = 11, /* said by the role */
    MOEC_USE_COUNT
} moec_use;

/* What one pattern with one suffix names. */
typedef struct moec_kind {
    const char *tail;    /* normalised: "mlp.experts.#.gate_proj.weight" */
    const char *why_not; /* a layer with this tensor cannot be run: why */
    uint8_t use;         /* moec_use */
    uint8_t role;        /* moec_role */
    uint8_t part;        /* moec_part; ROUTED and SHARED only */
    uint8_t geometry;    /* moec_geometry or MOEC_GEO_SCALE */
    uint8_t stack;       /* moec_stack */
    uint8_t in_out, interleaved, per_expert;
    uint8_t required; /* a MoE layer without it is refused */
    uint8_t n_dims;   /* 0: shape not stated */
    moec_dim dims[MOEC_DIMS_MAX];
    uint16_t component; /* index of moec_family.components */
    uint16_t group;     /* same (role, component, part): same number */
    uint16_t pattern;   /* tensors that one pattern names share it */
} moec_kind;

typedef struct moec_layout_variant {
    const char *name;
    const char *experts;   /* "mlp.experts": begin of slot tensors' names */
    uint32_t routed_parts; /* bit p: part p is described */
    uint32_t shared_parts;
} moec_layout_variant;

/* Where a fact stands in config.json. */
typedef enum moec_fact_type {
    MOEC_FACT_INTEGER,
    MOEC_FACT_NUMBER,
    MOEC_FACT_BOOL,
    MOEC_FACT_STRING,
    MOEC_FACT_LIST /* no default */
} moec_fact_type;

typedef struct moec_fact_source {
    uint8_t given;    /* the description has it */
    uint8_t optional; /* it has a default, which may be null */
    uint8_t has_default;
    uint8_t per_layer; /* may be a list of equal values; 0: no such layer */
    uint8_t sum;       /* may be a list of groups, which add up */
    uint8_t p_norm;    /* NORM_TOPK: a number is the p of a p-norm */
    size_t n_keys;
    const char **keys; /* spellings; dotted paths */
    size_t n_else;
    const char **otherwise; /* keys that hold where none of `keys` is there */
    size_t n_values; /* STRING: what values[2 * i] is called: values[2 * i + 1];
                        a boolean is "true" or "false" */
    const char **values;
    uint32_t integer; /* default */
    double number;
    const char *string;
} moec_fact_source;

typedef enum moec_fact {
    MOEC_FACT_N_EXPERTS,
    MOEC_FACT_ZERO_EXPERTS, /* columns of the router without weights */
    MOEC_FACT_TOP_K,
    MOEC_FACT_HIDDEN,
    MOEC_FACT_EXPERT_HIDDEN, /* width that routed experts work on */
    MOEC_FACT_INTER,
    MOEC_FACT_N_LAYERS,
    MOEC_FACT_MTP_LAYERS,
    MOEC_FACT_N_GROUP,
    MOEC_FACT_TOPK_GROUP,
    MOEC_FACT_N_SHARED,
    MOEC_FACT_SHARED_WIDTH,
    MOEC_FACT_ROUTED_SCALE,
    MOEC_FACT_NORM_TOPK,
    MOEC_FACT_SCORE,
    MOEC_FACT_ACTIVATION,
    /* What only running a layer needs (moe_facts.c). */
    MOEC_FACT_GROUP_SCORE, /* "none", "max", "top2" */
    MOEC_FACT_USE_BIAS,    /* false: the choice bias is not used */
    MOEC_FACT_HASH_LAYERS, /* layers below are routed by table */
    MOEC_FACT_NORM_MIN,    /* least divisor of the chosen weights */
    MOEC_FACT_NORM_P,      /* p of the p-norm */
    MOEC_FACT_NORM_EPS,    /* of root mean square norms */
    MOEC_FACT_SOFTCAP,
    MOEC_FACT_MIXER_EPS,
    MOEC_FACT_LIMIT, /* clamp of the activation, maybe one a layer; 0: none */
    MOEC_FACT_SHARED_LIMIT,
    MOEC_FACT_ALPHA,
    MOEC_FACT_BETA,
    MOEC_FACT_LINEAR_BETA,
    MOEC_FACT_LATENT_NORM, /* false: the latent sum is not normalised */
    MOEC_FACT_COUNT
} moec_fact;

/* Which decoder layers are MoE layers: the first rule whose key is in the
 * config holds. */
typedef enum moec_layer_rule_kind {
    MOEC_LAYERS_ALL,
    MOEC_LAYERS_LIST,  /* key: the numbers, as list or "3,4,5" */
    MOEC_LAYERS_TYPES, /* key: a word, or one letter, a layer */
    MOEC_LAYERS_STRIDE /* first <= i <= last, (i - offset + phase) % step == 0,
                          not in except */
} moec_layer_rule_kind;

typedef struct moec_layer_rule {
    moec_layer_rule_kind kind;
    const char *key;
    size_t n_moe; /* TYPES: the words that mean MoE */
    const char **moe;
    moec_fact_source first, last, step, offset, except;
    uint32_t phase;
} moec_layer_rule;

/* A key of the config with the value that it must have; NULL: any but null. */
typedef struct moec_condition {
    const char *key;   /* dotted path */
    const char *value; /* as JSON */
} moec_condition;

/* A model_type that several families share is this one's where all conditions
 * hold. */
typedef struct moec_only_if {
    const char *model_type;
    size_t n;
    const moec_condition *conditions;
} moec_only_if;

/* "router" and "ffn" of a description: what a layer computes, where no key of
 * the config says it. */
typedef struct moec_run_desc {
    uint8_t given;       /* there is a "router" */
    uint8_t choice;      /* moec_choice; HASH follows from a table */
    uint8_t has_weight;  /* weights are made of another score: */
    uint8_t weight;      /* moec_score */
    uint8_t norm;        /* moec_route_norm, where weights are renormalised */
    uint8_t norm_always; /* whatever norm_topk says */
    uint8_t rsf_on;      /* moec_rsf_on */
    uint8_t input_rms;   /* the router sees a normalised input */
    uint8_t clamp;       /* 0: before the activation, 1: after it */
    uint8_t weight_on_input;
    uint32_t norm_from_k; /* least K that is renormalised */
    const char *why_not;  /* cannot be run: why */
} moec_run_desc;

typedef struct moec_family {
    moec_arena arena;
    const char *name;
    const char *tested; /* "fixture", "generated" or "none"; static storage */
    size_t n_model_types;
    const char **model_types;
    size_t n_only_if;
    moec_only_if *only_if;
    size_t n_prefixes;
    const char **prefixes;      /* normalised: "model.layers.#." */
    uint8_t *prefix_space;      /* moec_space */
    const char **prefix_module; /* MTP: "mtp.", what is below is MTP too */
    uint8_t mtp_after_main;
    size_t n_spaces;
    const char **spaces;
    size_t n_components, cap_components;
    const char **components; /* in the order in which slices stand */
    size_t n_kinds, cap_kinds;
    moec_kind *kinds;
    size_t n_patterns;
    size_t n_variants;
    moec_layout_variant variants[MOEC_VARIANTS_MAX];
    moec_names names;
    /* config */
    size_t n_in;
    const char **in; /* objects of a wrapper config that hold the facts */
    moec_fact_source facts[MOEC_FACT_COUNT];
    size_t n_layer_rules;
    moec_layer_rule *layer_rules;
    /* shared expert */
    moec_shared_kind shared_kind;
    uint8_t shared_each; /* the width is that of each shared expert */
    uint8_t fuse;
    const char *why_not;
    moec_run_desc run;
} moec_family;

/* Key of a fact in a description ("n_experts"). */
const char *moec_fact_name(moec_fact fact);

/* Groups number from 0 to moec_family_n_groups - 1; ascending, they are
 * (role, component, part) ascending. */
static inline size_t moec_family_n_groups(const moec_family *f)
{
    return f->n_components * 8;
}

moec_status moec_family_parse(moec_family **out, const char *name,
                              const char *text, size_t n, moec_error *err);
void moec_family_destroy(moec_family *family);

/* Do the conditions hold in the config that `ctx` knows? */
typedef bool (*moec_only_if_fn)(const moec_family *family,
                                const moec_only_if *only_if, void *ctx);

/* Find the family for `model_type`; *out is NULL where there is none. Where
 * several list it: the one added last by the user; else one whose conditions
 * hold; else the one without conditions. `holds` NULL: no condition holds.
 * *owned_out is *out where it was made for the caller, who destroys it, and
 * NULL where it is the registry's. */
moec_status moec_families_find(const moec_families *families,
                               const char *model_type, moec_only_if_fn holds,
                               void *ctx, const moec_family **out,
                               moec_family **owned_out, moec_error *err);
/* Append "did you mean", or where the known ones are listed, to `out`. */
void moec_families_hint(const moec_families *families, const char *model_type,
                        moec_buf *out);

/* Return the component beside which `component` is needed of all slots by
 * every rank; NULL where it never is. Static storage. */
const char *moec_component_table(const char *component);

/* Write the full name of a kind's tensor. */
void moec_kind_format(const moec_family *f, const moec_kind *k, size_t prefix,
                      uint32_t layer, uint32_t expert, char *buf, size_t n);

#endif
