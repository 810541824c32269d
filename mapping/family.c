/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Families as data. A description says, in one JSON file:
 *
 *   model_types  which values of config.json's model_type it serves
 *   only_if      what else must be in config.json, for a model_type that
 *                another family lists too
 *   layers       how names of a layer begin: "model.layers.{L}."
 *   tensors      patterns behind that prefix, each with the role and the part
 *                of what it names; "{E}" is the expert, "{suffix}" stands for
 *                each suffix of a set, which names component and geometry
 *   variants     several such lists where the same model is published in
 *                several layouts: a layer must fit exactly one of them
 *   namespaces   where every name must be one of the patterns: a name that is
 *                none is refused (MOE-T1), a new kind of scale never lost
 *   config       which key of config.json holds which fact
 *   moe_layers   which decoder layers have experts
 *   router, ffn  what the router and an expert compute, where no key says it
 *   shared       how the shared expert is weighted, and whether it can fuse
 *
 * Orientation is stated here and never guessed from a shape: 2I == H is
 * common, and then both orientations have one shape. families/schema.json
 * describes every key for people and editors; THIS file enforces it. What it
 * refuses is MOE-C09 with file, line and key.
 */

#include "family_desc.h"

#include <string.h>

#define SCHEMA_ID      "moec.family/1"
#define KINDS_MAX      4096u
#define COMPONENTS_MAX 256u

/* ------------------------------------------------------------ suffixes
 * Sets that need no description. Their order is that of slices. */

typedef struct suffix {
    const char *text, *component;
    uint8_t geometry;
} suffix;

/* "gate_proj.{suffix}". Spellings: spec/checkpoints.md, section 6. */
static const suffix dotted[] = {
    {"weight", "weight", MOEC_GEO_MATRIX},
    {"weight_packed", "weight_packed", MOEC_GEO_MATRIX},
    {"qweight", "qweight", MOEC_GEO_MATRIX_KEPT},
    {"weight_scale_inv", "weight_scale_inv", MOEC_GEO_SCALE},
    {"weight_scale", "weight_scale", MOEC_GEO_SCALE},
    {"scale", "scale", MOEC_GEO_SCALE},
    {"scales", "scales", MOEC_GEO_MATRIX_KEPT},
    {"qzeros", "qzeros", MOEC_GEO_MATRIX_KEPT},
    {"g_idx", "g_idx", MOEC_GEO_MATRIX_KEPT},
    {"weight_zero_point", "weight_zero_point", MOEC_GEO_SCALE},
    {"weight_scale_2", "weight_scale_2", MOEC_GEO_SCALE},
    {"weight_global_scale", "weight_global_scale", MOEC_GEO_SCALE},
    {"input_scale", "input_scale", MOEC_GEO_SCALE},
    {"input_global_scale", "input_global_scale", MOEC_GEO_SCALE},
    {"qscale_weight", "weight_scale", MOEC_GEO_SCALE},
    {"qscale_act", "input_scale", MOEC_GEO_SCALE},
    {"weight_shape", "weight_shape", MOEC_GEO_RECORD},
    {"weight_g_idx", "weight_g_idx", MOEC_GEO_MATRIX_KEPT},
    {"bias", "bias", MOEC_GEO_OUT_VECTOR},
    {NULL, NULL, 0},
};

/* "gate_up_proj{suffix}" of stacked tensors. */
static const suffix bare[] = {
    {"", "weight", MOEC_GEO_MATRIX},
    {"_blocks", "blocks", MOEC_GEO_MATRIX},
    {"_scales", "scales", MOEC_GEO_MATRIX},
    {"_scale_inv", "weight_scale_inv", MOEC_GEO_SCALE},
    {"_scale", "weight_scale", MOEC_GEO_SCALE},
    {"_scale_2", "weight_scale_2", MOEC_GEO_SCALE},
    {"_weight_scale_inv", "weight_scale_inv", MOEC_GEO_SCALE},
    {"_weight_scale", "weight_scale", MOEC_GEO_SCALE},
    {"_weight_scale_2", "weight_scale_2", MOEC_GEO_SCALE},
    {"_input_scale", "input_scale", MOEC_GEO_SCALE},
    {"_bias", "bias", MOEC_GEO_OUT_VECTOR},
    {NULL, NULL, 0},
};

/* NVFP4's activation scales: a kernel takes one maximum (of their reciprocals,
 * one minimum) over ALL experts, so every rank needs those of all slots. FP8
 * has the same names without the second level of weight scales; there each
 * expert, or each rank, is scaled by its own. */
static const struct {
    const char *component, *beside;
} tables[] = {
    {"input_scale", "weight_scale_2"},
    {"input_global_scale", "weight_global_scale"},
};

const char *moec_component_table(const char *component)
{
    for (size_t i = 0; i < sizeof(tables) / sizeof(*tables); i++)
        if (strcmp(tables[i].component, component) == 0)
            return tables[i].beside;
    return NULL;
}

/* ----------------------------------------------------------- patterns */

/* Turn "a.{E}.b" into "a.#.b". Only `symbol` may stand in braces, only as a
 * whole segment; digits and '#' would never match. Counts the braces. */
static moec_status normalise(moec_desc *p, const moec_json *v, const char *text,
                             char symbol, const char **out, size_t *n_symbols)
{
    moec_buf b = {0};
    const char *why = NULL;
    *n_symbols = 0;
    for (const char *s = text; why == NULL; s++) {
        size_t n = strcspn(s, ".");
        if (n == 3 && s[0] == '{' && s[1] == symbol && s[2] == '}') {
            moec_buf_puts(&b, "#");
            ++*n_symbols;
        } else if (n != strcspn(s, ".{}#")) {
            why = "has a '{', '}' or '#' outside a segment of its own";
        } else if (n != 0 && strspn(s, "0123456789") >= n) {
            why = "has a segment of digits: write {L} or {E}";
        } else if (n == 0 && (s[0] == '.' || s == text)) {
            why = "has an empty segment";
        } else {
            moec_buf_append(&b, s, n);
        }
        s += n;
        if (*s == '\0')
            break;
        moec_buf_puts(&b, ".");
    }
    moec_status st = MOEC_OK;
    if (why != NULL)
        st = BAD(p, v, "\"%s\" %s", text, why);
    else if (b.oom || !(*out = moec_arena_strdup(&p->f->arena, b.data, b.len)))
        st = moec_desc_nomem(p);
    moec_buf_fini(&b);
    return st;
}

static moec_status component_of(moec_desc *p, const moec_json *v,
                                const char *name, uint16_t *out)
{
    moec_family *f = p->f;
    for (size_t i = 0; i < f->n_components; i++) {
        if (strcmp(f->components[i], name) == 0) {
            *out = (uint16_t)i;
            return MOEC_OK;
        }
    }
    if (f->n_components == COMPONENTS_MAX)
        return BAD(p, v, "is the %u-th component: too many", COMPONENTS_MAX);
    if (!MOEC_GROW(f->components, f->n_components, f->cap_components))
        return moec_desc_nomem(p);
    const char *own = moec_arena_strdup(&f->arena, name, strlen(name));
    if (own == NULL)
        return moec_desc_nomem(p);
    f->components[f->n_components] = own;
    *out = (uint16_t)f->n_components++;
    return MOEC_OK;
}

/* Two kinds that one variant calls by the same group must be read alike. */
static bool same_reading(const moec_kind *a, const moec_kind *b)
{
    return a->role != b->role || a->part != b->part ||
           a->component != b->component ||
           (a->geometry == b->geometry && a->stack == b->stack &&
            a->in_out == b->in_out && a->interleaved == b->interleaved &&
            a->per_expert == b->per_expert);
}

/* Add a kind and its names under every prefix. */
static moec_status add_kind(moec_desc *p, const moec_json *v, uint32_t variant,
                            const moec_kind *kind)
{
    moec_family *f = p->f;
    uint16_t at = (uint16_t)f->n_kinds, old, other;
    if (f->n_kinds == KINDS_MAX)
        return BAD(p, v, "makes more than %u names", KINDS_MAX);
    if (!MOEC_GROW(f->kinds, f->n_kinds, f->cap_kinds))
        return moec_desc_nomem(p);
    f->kinds[f->n_kinds++] = *kind;
    for (size_t i = 0; i < f->n_prefixes; i++) {
        MOEC_TRY(moec_names_add(&f->names, i, kind->tail, variant, at, &old,
                                &other, &p->error));
        if (old != MOEC_NO_KIND)
            return BAD(p, v, "names '%s' a second time", kind->tail);
        const moec_kind *o = other != MOEC_NO_KIND ? &f->kinds[other] : kind;
        if (o->role != kind->role || o->part != kind->part ||
            o->component != kind->component || o->use != kind->use)
            return BAD(p, v,
                       "calls '%s' by another role, part, component or use "
                       "than another variant does",
                       kind->tail);
    }
    return MOEC_OK;
}

/* ------------------------------------------------------ one tensor rule */

static const char *const roles[] = {"common", "routed",      "shared",
                                    "router", "shared_gate", NULL};
static const char *const parts[] = {"gate", "up", "down", "gate_up", NULL};
static const char *const stacks[] = {"none", "experts", "rows", NULL};
static const char *const orientations[] = {"out_in", "in_out", NULL};
static const char *const geometries[] = {"matrix", "kept",  "vector", "scalar",
                                         "record", "scale", NULL};

static uint8_t geometry_value(uint8_t word)
{
    return word == 5 ? MOEC_GEO_SCALE : word;
}

static moec_status parse_shape(moec_desc *p, const moec_json *rule,
                               moec_kind *kind)
{
    moec_json list;
    size_t n;
    MOEC_TRY(moec_desc_list(p, rule, "shape", 0, &list, &n));
    if (n > MOEC_DIMS_MAX)
        return BAD(p, &list, "has %zu dimensions, at most %u", n,
                   MOEC_DIMS_MAX);
    kind->n_dims = (uint8_t)n;
    for (size_t i = 0; i < n; i++) {
        moec_json v = moec_json_item(&list, i);
        moec_dim *d = &kind->dims[i];
        const char *s;
        if (moec_json_is(v.value, JSON_INTEGER)) {
            MOEC_TRY(moec_desc_at(
                p, &v, moec_json_as_u32(&v, INT32_MAX, &d->number, &p->error)));
            continue;
        }
        MOEC_TRY(moec_desc_at(p, &v, moec_json_as_string(&v, &s, &p->error)));
        if (strlen(s) != 1 || strchr("EHIR", s[0]) == NULL)
            return BAD(p, &v,
                       "is \"%s\", must be \"E\", \"H\", \"I\", \"R\" or "
                       "a number",
                       s);
        d->symbol = s[0];
    }
    return MOEC_OK;
}

/* What a rule says besides its name, and what cannot be said together. */
static moec_status parse_reading(moec_desc *p, const moec_json *rule,
                                 moec_kind *kind)
{
    bool weights;
    MOEC_TRY(moec_desc_word(p, rule, "role", roles, -1, &kind->role));
    weights = kind->role == MOEC_ROLE_ROUTED || kind->role == MOEC_ROLE_SHARED;
    MOEC_TRY(
        moec_desc_word(p, rule, "part", parts, weights ? -1 : 0, &kind->part));
    MOEC_TRY(moec_desc_word(p, rule, "stack", stacks, 0, &kind->stack));
    MOEC_TRY(
        moec_desc_word(p, rule, "orientation", orientations, 0, &kind->in_out));
    MOEC_TRY(moec_desc_opt_bool(p, rule, "interleaved", &kind->interleaved));
    MOEC_TRY(moec_desc_opt_bool(p, rule, "required", &kind->required));
    MOEC_TRY(parse_shape(p, rule, kind));
    MOEC_TRY(moec_desc_use(p, rule, kind));
    if (!weights) {
        static const char *const of_weights[] = {
            "part",      "stack",    "orientation", "interleaved",
            "component", "geometry", "suffixes"};
        for (size_t i = 0; i < sizeof(of_weights) / sizeof(*of_weights); i++)
            if (moec_json_has(rule, of_weights[i]))
                return BAD(p, rule,
                           "has '%s', which only a routed or shared "
                           "tensor has",
                           of_weights[i]);
        return MOEC_OK;
    }
    if (kind->n_dims != 0 || kind->required)
        return BAD(p, rule,
                   "has 'shape' or 'required', which follow from the "
                   "part of a routed or shared tensor");
    if (kind->interleaved && kind->part != MOEC_PART_GATE_UP)
        return BAD(p, rule,
                   "is interleaved, which only part \"gate_up\" "
                   "can be");
    return MOEC_OK;
}

/* Does a rule with {E}, stacked or neither make sense for its role? */
static moec_status check_experts(moec_desc *p, const moec_json *rule,
                                 const moec_kind *kind)
{
    bool stacked = kind->stack != MOEC_STACK_NONE;
    if (kind->role == MOEC_ROLE_ROUTED && stacked == kind->per_expert)
        return BAD(p, rule,
                   "is routed: its name has {E}, or 'stack' says "
                   "where the experts are, and not both");
    if (kind->role != MOEC_ROLE_ROUTED && kind->per_expert)
        return BAD(p, rule,
                   "has {E} in its name, which only a routed tensor "
                   "has");
    return MOEC_OK;
}

/* Add the kind of `head` + `tail`. */
static moec_status add_pattern(moec_desc *p, const moec_json *rule,
                               uint32_t variant, moec_kind *kind,
                               const char *head, size_t head_bytes,
                               const char *tail, const char *component)
{
    moec_json at = moec_json_member(rule, "name");
    char name[MOEC_NAME_BYTES_MAX + 1];
    size_t n_experts, n = strlen(tail);
    if (head_bytes + n > MOEC_NAME_BYTES_MAX)
        return BAD(p, &at, "is longer than a tensor's name can be");
    memcpy(name, head, head_bytes);
    memcpy(name + head_bytes, tail, n + 1);
    MOEC_TRY(normalise(p, &at, name, 'E', &kind->tail, &n_experts));
    if (n_experts > 1)
        return BAD(p, &at, "has {E} more than once");
    kind->per_expert = n_experts == 1;
    MOEC_TRY(check_experts(p, rule, kind));
    if (kind->role == MOEC_ROLE_ROUTED || kind->role == MOEC_ROLE_SHARED)
        MOEC_TRY(component_of(p, rule, component, &kind->component));
    return add_kind(p, rule, variant, kind);
}

/* Every suffix of one of the description's own sets. */
static moec_status add_own_set(moec_desc *p, const moec_json *rule,
                               uint32_t variant, moec_kind *kind,
                               const char *head, size_t n, const char *name)
{
    moec_json set = moec_json_member(&p->suffixes, name);
    const char *key, *component = NULL;
    json_t *value;
    if (set.value == NULL)
        return BAD(p, rule, "uses suffixes \"%s\", which are not described",
                   name);
    MOEC_TRY(moec_desc_at(p, &set, moec_json_want_object(&set, &p->error)));
    json_object_foreach (set.value, key, value) {
        moec_json v = moec_json_member(&set, key);
        uint8_t word;
        MOEC_TRY(ONLY_KEYS(p, &v, "component", "geometry"));
        MOEC_TRY(moec_desc_get_string(p, &v, "component", &component));
        MOEC_TRY(moec_desc_word(p, &v, "geometry", geometries, -1, &word));
        kind->geometry = geometry_value(word);
        MOEC_TRY(add_pattern(p, rule, variant, kind, head, n, key, component));
    }
    return MOEC_OK;
}

static moec_status add_suffixes(moec_desc *p, const moec_json *rule,
                                uint32_t variant, moec_kind *kind,
                                const char *name, size_t n)
{
    const char *own = NULL;
    MOEC_TRY(moec_desc_opt_string(p, rule, "suffixes", &own));
    if (own != NULL)
        return add_own_set(p, rule, variant, kind, name, n, own);
    const suffix *set = n > 0 && name[n - 1] == '.' ? dotted : bare;
    for (; set->text != NULL; set++) {
        kind->geometry = set->geometry;
        MOEC_TRY(add_pattern(p, rule, variant, kind, name, n, set->text,
                             set->component));
    }
    return MOEC_OK;
}

static moec_status parse_rule(moec_desc *p, const moec_json *rule,
                              uint32_t variant)
{
    moec_family *f = p->f;
    moec_layout_variant *var = &f->variants[variant];
    moec_kind kind = {0};
    const char *name, *component = "weight";
    uint8_t word;
    MOEC_TRY(ONLY_KEYS(p, rule, "name", "role", "part", "stack", "orientation",
                       "interleaved", "component", "geometry", "suffixes",
                       "shape", "required", "use", "why_not", "about"));
    MOEC_TRY(moec_desc_get_string(p, rule, "name", &name));
    MOEC_TRY(parse_reading(p, rule, &kind));
    MOEC_TRY(moec_desc_opt_string(p, rule, "component", &component));
    MOEC_TRY(moec_desc_word(p, rule, "geometry", geometries, 0, &word));
    kind.geometry = geometry_value(word);
    kind.pattern = (uint16_t)f->n_patterns;
    if (kind.role == MOEC_ROLE_ROUTED)
        var->routed_parts |= 1u << kind.part;
    if (kind.role == MOEC_ROLE_SHARED)
        var->shared_parts |= 1u << kind.part;
    const char *brace = strstr(name, "{suffix}");
    if (brace == NULL)
        return add_pattern(p, rule, variant, &kind, name, strlen(name), "",
                           component);
    moec_json at = moec_json_member(rule, "name");
    if (brace[strlen("{suffix}")] != '\0')
        return BAD(p, &at, "has {suffix} before its end");
    if (moec_json_has(rule, "component") || moec_json_has(rule, "geometry"))
        return BAD(p, rule,
                   "has 'component' or 'geometry' beside {suffix}, "
                   "which names them");
    return add_suffixes(p, rule, variant, &kind, name, (size_t)(brace - name));
}

/* ----------------------------------------------------------- variants */

static moec_status parse_rules(moec_desc *p, const moec_json *obj,
                               uint32_t variant)
{
    moec_json list;
    size_t n;
    MOEC_TRY(moec_desc_list(p, obj, "tensors", 0, &list, &n));
    for (size_t i = 0; i < n; i++) {
        moec_json rule = moec_json_item(&list, i);
        p->f->n_patterns++;
        MOEC_TRY(parse_rule(p, &rule, variant));
    }
    return MOEC_OK;
}

static moec_status check_parts(moec_desc *p, const moec_json *v,
                               const moec_layout_variant *var)
{
    const uint32_t gate = 1u << MOEC_PART_GATE, up = 1u << MOEC_PART_UP,
                   down = 1u << MOEC_PART_DOWN, both = 1u << MOEC_PART_GATE_UP;
    const uint32_t sets[2] = {var->routed_parts, var->shared_parts};
    for (size_t i = 0; i < 2; i++) {
        if (i == 1 && sets[i] == 0)
            continue;
        if (sets[i] != (gate | up | down) && sets[i] != (both | down) &&
            sets[i] != (up | down))
            return BAD(p, v,
                       "describes %s tensors of parts other than gate, "
                       "up and down; gate_up and down; or up and down",
                       i == 0 ? "routed" : "shared");
    }
    return MOEC_OK;
}

/* Variant `i`: the common list, then its own. */
static moec_status parse_variant(moec_desc *p, const moec_json *obj, uint32_t i,
                                 const char *experts)
{
    moec_layout_variant *var = &p->f->variants[i];
    size_t first = p->f->n_kinds, n_numbers;
    var->name = "only";
    var->experts = experts;
    MOEC_TRY(parse_rules(p, &p->root, i));
    if (obj != &p->root) {
        MOEC_TRY(ONLY_KEYS(p, obj, "name", "about", "experts", "tensors"));
        MOEC_TRY(moec_desc_get_string(p, obj, "name", &var->name));
        MOEC_TRY(moec_desc_opt_string(p, obj, "experts", &var->experts));
        MOEC_TRY(parse_rules(p, obj, i));
    }
    moec_json at = moec_json_member(obj, "experts");
    if (var->experts == NULL)
        return BAD(p, &at,
                   "is missing: what names of slot tensors begin "
                   "with behind the layer's prefix");
    MOEC_TRY(normalise(p, &at, var->experts, 'E', &var->experts, &n_numbers));
    if (n_numbers != 0)
        return BAD(p, &at, "has {E}");
    MOEC_TRY(check_parts(p, obj, var));
    for (size_t a = first; a < p->f->n_kinds; a++)
        for (size_t b = first; b < a; b++)
            if (!same_reading(&p->f->kinds[a], &p->f->kinds[b]))
                return BAD(p, obj,
                           "reads '%s' and '%s', both %s of one part, "
                           "in two ways",
                           p->f->kinds[b].tail, p->f->kinds[a].tail,
                           p->f->components[p->f->kinds[a].component]);
    return MOEC_OK;
}

static moec_status parse_variants(moec_desc *p)
{
    moec_family *f = p->f;
    moec_json list;
    size_t n;
    const char *experts = NULL;
    MOEC_TRY(moec_desc_opt_string(p, &p->root, "experts", &experts));
    MOEC_TRY(moec_desc_list(p, &p->root, "variants", 0, &list, &n));
    if (n > MOEC_VARIANTS_MAX)
        return BAD(p, &list, "has %zu items, at most %u", n, MOEC_VARIANTS_MAX);
    f->n_variants = n == 0 ? 1 : n;
    if (n == 0)
        MOEC_TRY(parse_variant(p, &p->root, 0, experts));
    for (uint32_t i = 0; i < n; i++) {
        moec_json v = moec_json_item(&list, i);
        MOEC_TRY(parse_variant(p, &v, i, experts));
    }
    for (size_t i = 0; i < f->n_kinds; i++) {
        moec_kind *k = &f->kinds[i];
        size_t shared = k->role == MOEC_ROLE_SHARED ? f->n_components : 0;
        k->group = (uint16_t)((shared + k->component) * 4 + k->part);
    }
    return MOEC_OK;
}

/* ------------------------------------------------------------- prefixes */

static moec_status parse_prefix(moec_desc *p, const moec_json *v, size_t i)
{
    static const char *const spaces[] = {"main", "mtp", NULL};
    moec_family *f = p->f;
    moec_json at = moec_json_member(v, "prefix");
    const char *text;
    size_t n_layers;
    MOEC_TRY(ONLY_KEYS(p, v, "prefix", "space"));
    MOEC_TRY(moec_desc_get_string(p, v, "prefix", &text));
    MOEC_TRY(moec_desc_word(p, v, "space", spaces, 0, &f->prefix_space[i]));
    size_t n = strlen(text);
    if (n < 4 || strcmp(text + n - 4, "{L}.") != 0)
        return BAD(p, &at, "is \"%s\", must end in \"{L}.\"", text);
    MOEC_TRY(normalise(p, &at, text, 'L', &f->prefixes[i], &n_layers));
    if (n_layers != 1)
        return BAD(p, &at, "has {L} more than once");
    for (size_t j = 0; j < i; j++)
        if (strcmp(f->prefixes[j], f->prefixes[i]) == 0)
            return BAD(p, &at, "stands twice");
    /* MTP modules keep norms and projections beside their layers: all below
     * a segment "mtp" is theirs. */
    const char *mtp = strstr(f->prefixes[i], "mtp.");
    bool segment = mtp != NULL && (mtp == f->prefixes[i] || mtp[-1] == '.');
    size_t bytes =
        segment ? (size_t)(mtp - f->prefixes[i]) + 4 : strlen(f->prefixes[i]);
    f->prefix_module[i] = moec_arena_strdup(&f->arena, f->prefixes[i], bytes);
    return f->prefix_module[i] != NULL ? MOEC_OK : moec_desc_nomem(p);
}

static moec_status parse_names(moec_desc *p)
{
    moec_family *f = p->f;
    moec_json list;
    size_t n_numbers;
    MOEC_TRY(moec_desc_list(p, &p->root, "layers", 1, &list, &f->n_prefixes));
    f->prefixes = moec_arena_alloc(&f->arena, f->n_prefixes * sizeof(char *),
                                   _Alignof(char *));
    f->prefix_module = moec_arena_alloc(
        &f->arena, f->n_prefixes * sizeof(char *), _Alignof(char *));
    f->prefix_space = moec_arena_alloc(&f->arena, f->n_prefixes, 1);
    if (f->prefixes == NULL || f->prefix_module == NULL ||
        f->prefix_space == NULL)
        return moec_desc_nomem(p);
    for (size_t i = 0; i < f->n_prefixes; i++) {
        moec_json v = moec_json_item(&list, i);
        MOEC_TRY(parse_prefix(p, &v, i));
    }
    MOEC_TRY(moec_desc_strings(p, &p->root, "namespaces", 1, &f->spaces,
                               &f->n_spaces));
    moec_json spaces = moec_json_member(&p->root, "namespaces");
    for (size_t i = 0; i < f->n_spaces; i++) {
        moec_json v = moec_json_item(&spaces, i);
        MOEC_TRY(
            normalise(p, &v, f->spaces[i], 'E', &f->spaces[i], &n_numbers));
        if (n_numbers != 0 || f->spaces[i][strlen(f->spaces[i]) - 1] == '.')
            return BAD(p, &v, "has {E} or ends in a dot");
    }
    return moec_names_init(&f->names, f->prefixes, f->n_prefixes, f->spaces,
                           f->n_spaces, &p->error);
}

/* ------------------------------------------------------------- a family */

static moec_status parse_top(moec_desc *p)
{
    static const char *const tested[] = {"none", "generated", "fixture", NULL};
    moec_family *f = p->f;
    const char *schema;
    uint8_t word;
    moec_json at = moec_json_member(&p->root, "schema");
    MOEC_TRY(ONLY_KEYS(p, &p->root, "$schema", "schema", "family", "about",
                       "tested", "model_types", "only_if", "layers",
                       "mtp_after_main", "experts", "namespaces", "suffixes",
                       "tensors", "variants", "config", "moe_layers", "router",
                       "ffn", "shared"));
    MOEC_TRY(moec_desc_get_string(p, &p->root, "schema", &schema));
    if (strcmp(schema, SCHEMA_ID) != 0)
        return BAD(p, &at, "is \"%s\", must be \"" SCHEMA_ID "\"", schema);
    MOEC_TRY(moec_desc_get_string(p, &p->root, "family", &f->name));
    MOEC_TRY(moec_desc_word(p, &p->root, "tested", tested, 0, &word));
    f->tested = tested[word];
    MOEC_TRY(moec_desc_strings(p, &p->root, "model_types", 1, &f->model_types,
                               &f->n_model_types));
    MOEC_TRY(moec_desc_only_if(p));
    MOEC_TRY(
        moec_desc_opt_bool(p, &p->root, "mtp_after_main", &f->mtp_after_main));
    p->suffixes = moec_json_member(&p->root, "suffixes");
    MOEC_TRY(parse_names(p));
    MOEC_TRY(parse_variants(p));
    MOEC_TRY(moec_desc_config(p));
    MOEC_TRY(moec_desc_layer_rules(p));
    MOEC_TRY(moec_desc_run(p));
    return moec_desc_shared(p);
}

moec_status moec_family_parse(moec_family **out, const char *name,
                              const char *text, size_t n, moec_error *err)
{
    moec_desc p = {.text = text};
    MOEC_TRY(moec_json_parse(text, n, name, MOEC_RULE_C09, MOEC_RULE_C09,
                             &p.tree, err));
    p.doc = (moec_json_doc){name,          MOEC_RULE_C09, MOEC_RULE_C09,
                            MOEC_RULE_C09, MOEC_RULE_C09, MOEC_RULE_C09};
    p.root = moec_json_root(p.tree, &p.doc);
    p.f = moec_calloc(1, sizeof(*p.f));
    moec_status st = p.f != NULL ? parse_top(&p) : moec_desc_nomem(&p);
    json_decref(p.tree);
    if (st != MOEC_OK) {
        moec_family_destroy(p.f);
        return moec_hand_on(err, st, &p.error);
    }
    *out = p.f;
    return MOEC_OK;
}

void moec_family_destroy(moec_family *family)
{
    if (family == NULL)
        return;
    moec_names_fini(&family->names);
    moec_free(family->kinds);
    moec_free(family->components);
    moec_arena_fini(&family->arena);
    moec_free(family);
}

void moec_kind_format(const moec_family *f, const moec_kind *k, size_t prefix,
                      uint32_t layer, uint32_t expert, char *buf, size_t n)
{
    const char *head = f->prefixes[prefix], *layer_at = strchr(head, '#');
    const char *expert_at = strchr(k->tail, '#');
    int head_bytes = (int)(layer_at - head);
    if (expert_at == NULL)
        (void)snprintf(buf, n, "%.*s%u%s%s", head_bytes, head, layer,
                       layer_at + 1, k->tail);
    else
        (void)snprintf(buf, n, "%.*s%u%s%.*s%u%s", head_bytes, head, layer,
                       layer_at + 1, (int)(expert_at - k->tail), k->tail,
                       expert, expert_at + 1);
}
