/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From the tensors of one MoE layer to its slices, with the proofs that the
 * plan rests on: every part and component is there for every expert, once;
 * all experts have one dtype and one shape; exactly one of the family's layouts
 * fits. That sizes are those of the config is proved in slices_fit.c.
 *
 * Arrays here are sized by what the headers hold, never by a config number:
 * E is compared with the number of tensors found before anything is sized
 * by it.
 */

#include "slices.h"

moec_layer_text moec_layer_say(moec_layer_key key)
{
    moec_layer_text t;
    (void)snprintf(t.s, sizeof(t.s), "layer %s %u",
                   key.space == MOEC_SPACE_MTP ? "mtp" : "main", key.number);
    return t;
}

moec_shape_text moec_shape_say(uint32_t rank, const uint64_t *shape)
{
    moec_shape_text t = {"["};
    size_t n = 1;
    for (uint32_t i = 0; i < rank && n + 28 < sizeof(t.s); i++)
        n += (size_t)snprintf(t.s + n, sizeof(t.s) - n, "%s%ju",
                              i == 0 ? "" : ", ", (uintmax_t)shape[i]);
    (void)snprintf(t.s + n, sizeof(t.s) - n, "]");
    return t;
}

/* "layer main 3: expert 5 has no tensor '...'" */
static moec_status missing(const moec_reading *r, const moec_kind *k,
                           uint32_t expert)
{
    char name[MOEC_NAME_BYTES_MAX + 32];
    moec_kind_format(r->b->family, k, r->layer->prefix, r->layer->number,
                     expert, name, sizeof(name));
    if (k->per_expert)
        return DISAGREE(r, "%s: expert %u of %u has no tensor '%s'",
                        moec_layer_say(r->layer->key).s, expert,
                        r->b->config->facts.n_experts, name);
    return DISAGREE(r, "%s has no tensor '%s'", moec_layer_say(r->layer->key).s,
                    name);
}

/* A kind of the variant with this role, part and component. */
static const moec_kind *find_kind(const moec_reading *r, moec_role role,
                                  uint32_t part, uint32_t component)
{
    const moec_family *f = r->b->family;
    for (size_t i = 0; i < f->names.n_entries; i++) {
        uint16_t at = f->names.entries[i].kind[r->variant];
        if (at == MOEC_NO_KIND)
            continue;
        const moec_kind *k = &f->kinds[at];
        if (k->role == role && k->part == part && k->component == component)
            return k;
    }
    return NULL;
}

/* ------------------------------------------------------------- groups */

/* Sort the layer's weights into members[] by group. Group g is then
 * [counts[g - 1], counts[g]), the first one from 0. */
static void group_tensors(const moec_reading *r)
{
    size_t n = moec_family_n_groups(r->b->family);
    uint32_t *counts = r->b->counts, begin = 0;
    memset(counts, 0, n * sizeof(*counts));
    memset(r->b->seen, 0, r->b->family->n_patterns + 1);
    for (size_t i = r->layer->begin; i < r->layer->end; i++) {
        const moec_kind *k = moec_reading_kind(r, i);
        if (k == NULL)
            continue;
        r->b->seen[k->pattern] = 1;
        if (moec_kind_is_weights(k))
            counts[k->group]++;
    }
    for (size_t g = 0; g < n; g++) {
        uint32_t count = counts[g];
        counts[g] = begin;
        begin += count;
    }
    for (size_t i = r->layer->begin; i < r->layer->end; i++) {
        const moec_kind *k = moec_reading_kind(r, i);
        if (k != NULL && moec_kind_is_weights(k))
            r->b->members[counts[k->group]++] = (uint32_t)i;
    }
}

/* Fewer tensors than experts: name one that is not there. An id not among the
 * n found is at most n. */
static moec_status name_missing(const moec_reading *r, const moec_kind *k,
                                const uint32_t *tensors, size_t n)
{
    uint8_t *there = moec_calloc(n + 1, 1);
    uint32_t expert = 0;
    if (there == NULL)
        return moec_fail_nomem(r->err, "experts of a layer");
    for (size_t i = 0; i < n; i++) {
        uint32_t e = r->b->experts[tensors[i]];
        if (e <= n)
            there[e] = 1;
    }
    while (expert < n && there[expert])
        expert++;
    moec_free(there);
    return missing(r, k, expert);
}

/* Put the tensors of a per-expert group into expert order. */
static moec_status order_experts(const moec_reading *r, const moec_kind *k,
                                 const uint32_t *tensors, size_t n,
                                 uint32_t **out)
{
    uint32_t n_experts = r->b->config->facts.n_experts;
    for (size_t i = 0; i < n; i++) {
        uint32_t e = r->b->experts[tensors[i]];
        if (e >= n_experts)
            return DISAGREE(r,
                            "tensor '%s' is of expert %u, " CONFIG_NAME
                            " has %u experts (0 to %u)",
                            moec_reading_name(r, tensors[i]), e, n_experts,
                            n_experts - 1);
    }
    if (n < n_experts)
        return name_missing(r, k, tensors, n);
    uint32_t *list =
        moec_arena_alloc(r->b->arena, n * sizeof(*list), _Alignof(uint32_t));
    if (list == NULL)
        return moec_fail_nomem(r->err, "experts of a layer");
    memset(list, 0xff, n * sizeof(*list));
    for (size_t i = 0; i < n; i++) {
        uint32_t e = r->b->experts[tensors[i]];
        if (list[e] != UINT32_MAX)
            return DISAGREE(r,
                            "tensors '%s' and '%s' are the same %s of one "
                            "expert",
                            moec_reading_name(r, list[e]),
                            moec_reading_name(r, tensors[i]),
                            r->b->family->components[k->component]);
        list[e] = tensors[i];
    }
    *out = list;
    return MOEC_OK;
}

/* --------------------------------------------------------- one slice */

/* All experts alike? Names the odd one, which may be the first. */
static moec_status check_uniform(const moec_reading *r, const uint32_t *tensors,
                                 uint32_t n)
{
    const moec_ckpt *ckpt = r->b->ckpt;
    const moec_tensor *first = moec_ckpt_tensor(ckpt, tensors[0]);
    for (uint32_t i = 1; i < n; i++) {
        const moec_tensor *odd = moec_ckpt_tensor(ckpt, tensors[i]);
        const moec_tensor *usual = first;
        if (moec_same_form(first, odd))
            continue;
        if (i == 1 && n > 2 &&
            moec_same_form(odd, moec_ckpt_tensor(ckpt, tensors[2]))) {
            usual = odd;
            odd = first;
        }
        return moec_fail(r->err, MOEC_E_MIXED, MOEC_RULE_C12,
                         "tensor '%s' is %s %s, the other experts' are %s %s "
                         "('%s')",
                         odd->name, moec_dtype_name((moec_dtype)odd->dtype),
                         moec_shape_say(odd->rank, odd->shape).s,
                         moec_dtype_name((moec_dtype)usual->dtype),
                         moec_shape_say(usual->rank, usual->shape).s,
                         usual->name);
    }
    return MOEC_OK;
}

/* Take the experts' axis off a stacked source. */
static moec_status unstack(const moec_reading *r, const moec_kind *k,
                           const moec_tensor *t, moec_slice *s)
{
    bool shared = k->role == MOEC_ROLE_SHARED;
    uint64_t n =
        shared ? r->b->config->facts.n_shared : r->b->config->facts.n_experts;
    bool rows = k->stack == MOEC_STACK_ROWS;
    bool fits = t->rank > 0 && n != 0 && t->bytes % n == 0 &&
                (rows ? t->shape[0] % n == 0 : t->shape[0] == n);
    if (!fits)
        return DISAGREE(r,
                        "tensor '%s' is %s, " CONFIG_NAME " has %ju "
                        "experts: they do not stack along its first axis",
                        t->name, moec_shape_say(t->rank, t->shape).s,
                        (uintmax_t)n);
    s->stacked = 1;
    s->bytes = t->bytes / n;
    if (rows) {
        s->shape[0] /= n;
    } else {
        s->rank--;
        memmove(s->shape, s->shape + 1, s->rank * sizeof(*s->shape));
    }
    return MOEC_OK;
}

/* Scales come per tensor, per row and per block under one name. Rows are
 * columns of one number, [N, 1], whether the source writes that axis or not:
 * the kernels' form, and unlike a bias they are not added. */
static moec_status settle_geometry(const moec_reading *r, const moec_kind *k,
                                   const moec_tensor *t, moec_slice *s)
{
    uint8_t geometry = k->geometry;
    bool one = s->rank == 0 || (s->rank == 1 && s->shape[0] == 1);
    /* [E, 1, 1] is a number an expert, unless its one block is a matrix. */
    if (s->stacked && geometry == MOEC_GEO_SCALE && s->rank == 2 &&
        s->shape[0] == 1 && s->shape[1] == 1 && !r->b->config->has_block) {
        one = true;
        s->rank = 0;
    }
    bool rows = geometry == MOEC_GEO_SCALE && s->rank == 1 && !one;
    if (rows)
        s->shape[s->rank++] = 1;
    if (geometry == MOEC_GEO_SCALE)
        geometry = one ? MOEC_GEO_SCALAR : MOEC_GEO_MATRIX;
    s->geometry = geometry;
    s->in_out = k->in_out && geometry == MOEC_GEO_MATRIX && !rows;
    bool fits = geometry == MOEC_GEO_MATRIX        ? s->rank >= 2
                : geometry == MOEC_GEO_MATRIX_KEPT ? s->rank >= 1
                : geometry == MOEC_GEO_OUT_VECTOR  ? s->rank == 1
                : geometry == MOEC_GEO_SCALAR      ? one
                                                   : true;
    if (fits)
        return MOEC_OK;
    return DISAGREE(r, "tensor '%s' is %s%s, which is no %s", t->name,
                    moec_shape_say(t->rank, t->shape).s,
                    s->stacked ? " with the experts' axis" : "",
                    geometry == MOEC_GEO_OUT_VECTOR ? "vector"
                    : geometry == MOEC_GEO_SCALAR   ? "single number"
                                                    : "matrix");
}

static moec_status make_slice(const moec_reading *r, const moec_kind *k,
                              const uint32_t *tensors, size_t n, moec_slice *s)
{
    uint32_t *list = NULL;
    memset(s, 0, sizeof(*s));
    if (k->per_expert) {
        MOEC_TRY(order_experts(r, k, tensors, n, &list));
    } else {
        if (n != 1)
            return DISAGREE(r, "tensors '%s' and '%s' are the same thing",
                            moec_reading_name(r, tensors[0]),
                            moec_reading_name(r, tensors[1]));
        list = moec_arena_alloc(r->b->arena, sizeof(*list), _Alignof(uint32_t));
        if (list != NULL)
            list[0] = tensors[0];
    }
    if (list == NULL)
        return moec_fail_nomem(r->err, "experts of a layer");
    MOEC_TRY(check_uniform(r, list, (uint32_t)n));
    const moec_tensor *t = moec_ckpt_tensor(r->b->ckpt, list[0]);
    s->role = k->role;
    s->part = k->part;
    s->interleaved = k->interleaved;
    s->dtype = t->dtype;
    s->component = r->b->components[k->component];
    s->rank = t->rank;
    memcpy(s->shape, t->shape, t->rank * sizeof(*s->shape));
    s->bytes = t->bytes;
    s->n_tensors = (uint32_t)n;
    s->tensors = list;
    if (k->stack != MOEC_STACK_NONE)
        MOEC_TRY(unstack(r, k, t, s));
    return settle_geometry(r, k, t, s);
}

/* ------------------------------------------------------ whole layer */

const moec_slice *moec_slices_find(const moec_slice *list, size_t n,
                                   moec_role role, uint32_t part,
                                   const char *component)
{
    for (size_t i = 0; i < n; i++)
        if (list[i].role == role && list[i].part == part &&
            list[i].component == component)
            return &list[i];
    return NULL;
}

/* Every part that the variant describes has the same components. */
static moec_status check_parts(const moec_reading *r, const moec_slice *list,
                               size_t n, moec_role role, uint32_t parts)
{
    const moec_family *f = r->b->family;
    for (size_t c = 0; c < f->n_components; c++) {
        uint32_t have = 0;
        for (uint32_t p = 0; p < 4; p++)
            if (moec_slices_find(list, n, role, p, r->b->components[c]) != NULL)
                have |= 1u << p;
        if (have == 0 || have == parts)
            continue;
        for (uint32_t p = 0; p < 4; p++) {
            const moec_kind *k = find_kind(r, role, p, (uint32_t)c);
            if ((parts & ~have & 1u << p) != 0 && k != NULL)
                return missing(r, k, 0);
        }
    }
    return MOEC_OK;
}

/* Are there weights at all, of each role that must have some? */
static moec_status check_present(const moec_reading *r, const moec_slice *list,
                                 size_t n)
{
    bool routed = n > 0 && list[0].role == MOEC_ROLE_ROUTED;
    bool shared = n > 0 && list[n - 1].role == MOEC_ROLE_SHARED;
    const moec_facts *f = &r->b->config->facts;
    moec_layer_text layer = moec_layer_say(r->layer->key);
    size_t some = r->layer->begin;
    while (r->b->entries[some] == MOEC_NO_ENTRY)
        some++;
    if (!routed)
        return DISAGREE(r,
                        "%s has tensors of a MoE layer (such as '%s') and "
                        "no routed experts",
                        layer.s, moec_reading_name(r, some));
    if (shared && f->shared_width == 0)
        return DISAGREE(
            r, "tensor '%s' is of a shared expert, " CONFIG_NAME " has none",
            moec_reading_name(r, list[n - 1].tensors[0]));
    if (!shared && f->shared_width != 0)
        return DISAGREE(
            r, "%s has no shared expert, " CONFIG_NAME " has one of width %ju",
            layer.s, (uintmax_t)f->shared_width);
    return MOEC_OK;
}

static bool is_scale(const moec_reading *r, const moec_slice *s)
{
    const moec_kind *k = moec_reading_kind(r, s->tensors[0]);
    return s->geometry == MOEC_GEO_MATRIX && s->rank == 2 && k != NULL &&
           k->geometry == MOEC_GEO_SCALE;
}

/* Are the weights that a scale is of packed, several to an element? */
static bool has_packed_weights(const moec_slice *list, size_t n,
                               const moec_slice *s)
{
    for (size_t i = 0; i < n; i++)
        if (list[i].role == s->role && list[i].part == s->part &&
            (strcmp(list[i].component, "weight") == 0 ||
             strcmp(list[i].component, "weight_packed") == 0))
            return !moec_dtype_is_unpacked((moec_dtype)list[i].dtype);
    return false;
}

/* Does one entry of the scale stand for a block of weight_block_size? Where
 * mxfp4 experts have scales of the same name beside fp8 ones (DeepSeek-V4),
 * the weights tell: only whole ones are scaled by such blocks. */
static bool is_by_block(const moec_reading *r, const moec_slice *s)
{
    if (!r->b->config->has_block || !is_scale(r, s) || s->of_packed)
        return false;
    return strcmp(s->component, "weight_scale_inv") == 0 ||
           strcmp(s->component, "scale") == 0;
}

static bool has_component(const moec_slice *list, size_t n, uint8_t role,
                          const char *component)
{
    for (size_t i = 0; i < n; i++)
        if (list[i].role == role && strcmp(list[i].component, component) == 0)
            return true;
    return false;
}

/* What a slice is beside the others of its layer. */
static void settle_format(const moec_reading *r, moec_slice *list, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        moec_slice *s = &list[i];
        const char *beside = moec_component_table(s->component);
        s->of_packed = is_scale(r, s) && has_packed_weights(list, n, s);
        s->by_block = is_by_block(r, s);
        if (s->by_block)
            memcpy(s->block, r->b->config->block, sizeof(s->block));
        s->all_slots = beside != NULL && s->geometry == MOEC_GEO_SCALAR &&
                       has_component(list, n, s->role, beside);
    }
}

static moec_status check_required(const moec_reading *r)
{
    const moec_family *f = r->b->family;
    bool shared = r->b->config->facts.shared_width != 0;
    for (size_t i = 0; f->kinds != NULL && i < f->names.n_entries; i++) {
        uint16_t at = f->names.entries[i].kind[r->variant];
        if (at == MOEC_NO_KIND)
            continue;
        const moec_kind *k = &f->kinds[at];
        bool wanted =
            k->required && (shared || k->role != MOEC_ROLE_SHARED_GATE);
        if (wanted && !r->b->seen[k->pattern])
            return missing(r, k, 0);
    }
    return MOEC_OK;
}

static moec_status read_layer(const moec_reading *r, moec_slice *list,
                              size_t *n)
{
    const moec_layout_variant *v = &r->b->family->variants[r->variant];
    size_t n_groups = moec_family_n_groups(r->b->family);
    group_tensors(r);
    *n = 0;
    for (size_t g = 0; g < n_groups; g++) {
        uint32_t begin = g == 0 ? 0 : r->b->counts[g - 1];
        uint32_t end = r->b->counts[g];
        const uint32_t *tensors = r->b->members + begin;
        const moec_kind *k =
            begin < end ? moec_reading_kind(r, tensors[0]) : NULL;
        if (k == NULL)
            continue;
        MOEC_TRY(make_slice(r, k, tensors, end - begin, &list[(*n)++]));
    }
    MOEC_TRY(check_present(r, list, *n));
    MOEC_TRY(check_parts(r, list, *n, MOEC_ROLE_ROUTED, v->routed_parts));
    MOEC_TRY(check_parts(r, list, *n, MOEC_ROLE_SHARED, v->shared_parts));
    settle_format(r, list, *n);
    for (size_t i = 0; i < *n; i++)
        MOEC_TRY(moec_slice_fits(r, &list[i]));
    MOEC_TRY(moec_slices_fit(r, list, *n));
    return check_required(r);
}

/* ------------------------------------------------- which layout it is */

/* Variants that have every name of the layer. */
static moec_status candidates(moec_build *b, const moec_found_layer *layer,
                              uint32_t *out, moec_error *err)
{
    const moec_family *f = b->family;
    uint32_t mask = (1u << f->n_variants) - 1;
    size_t first = SIZE_MAX;
    for (size_t i = layer->begin; i < layer->end; i++) {
        if (b->entries[i] == MOEC_NO_ENTRY)
            continue;
        uint32_t has = f->names.entries[b->entries[i]].variants;
        if ((mask & has) == 0)
            return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_C10,
                             "%s: tensors '%s' and '%s' belong to different "
                             "layouts of the family '%s'",
                             moec_layer_say(layer->key).s,
                             moec_ckpt_tensor(b->ckpt, first)->name,
                             moec_ckpt_tensor(b->ckpt, i)->name, f->name);
        if ((mask & has) != mask || first == SIZE_MAX)
            first = i;
        mask &= has;
    }
    *out = mask;
    return MOEC_OK;
}

/* The one variant among `mask` whose shapes fit. Where none does, the first
 * one's refusal is the answer. */
static moec_status choose(moec_build *b, const moec_found_layer *layer,
                          uint32_t mask, moec_slice *list, uint32_t *out,
                          moec_error *err)
{
    moec_error first = MOEC_ERROR_INIT;
    uint32_t fits = 0, last = 0;
    size_t n;
    for (uint32_t v = 0; v < b->family->n_variants; v++) {
        moec_error local = MOEC_ERROR_INIT;
        moec_reading r = {b, layer, v, &local};
        if ((mask & 1u << v) == 0)
            continue;
        if (read_layer(&r, list, &n) != MOEC_OK) {
            if (local.status == MOEC_E_NOMEM || first.status == MOEC_OK)
                first = local;
            continue;
        }
        if (fits++ != 0)
            return moec_fail(err, MOEC_E_FORMAT, MOEC_RULE_C10,
                             "%s: layouts '%s' and '%s' of the family '%s' "
                             "both fit names and shapes; --family FILE with "
                             "one of them decides",
                             moec_layer_say(layer->key).s,
                             b->family->variants[last].name,
                             b->family->variants[v].name, b->family->name);
        last = v;
    }
    *out = last;
    if (fits == 1)
        return MOEC_OK;
    return moec_hand_on(err, first.status, &first);
}

/* "model.layers.3." + "mlp.experts" */
static moec_status name_experts(moec_build *b, const moec_found_layer *layer,
                                uint32_t variant, const char **out,
                                moec_error *err)
{
    char name[MOEC_NAME_BYTES_MAX + 32];
    moec_kind k = {.tail = b->family->variants[variant].experts};
    moec_kind_format(b->family, &k, layer->prefix, layer->number, 0, name,
                     sizeof(name));
    *out = moec_arena_strdup(b->arena, name, strlen(name));
    return *out != NULL ? MOEC_OK : moec_fail_nomem(err, "a layer's name");
}

moec_status moec_build_slices(moec_build *b, const moec_found_layer *found,
                              moec_layer_slices *out, moec_error *err)
{
    size_t n_groups = moec_family_n_groups(b->family), n;
    uint32_t mask = 0, variant = 0;
    moec_slice *list = moec_calloc(n_groups + 1, sizeof(*list));
    if (list == NULL)
        return moec_fail_nomem(err, "slices of a layer");
    moec_status st = candidates(b, found, &mask, err);
    if (st == MOEC_OK && (mask & (mask - 1)) != 0)
        st = choose(b, found, mask, list, &variant, err);
    else if (st == MOEC_OK)
        variant = (uint32_t)__builtin_ctz(mask);
    if (st != MOEC_OK)
        goto done;
    moec_reading r = {b, found, variant, err};
    st = read_layer(&r, list, &n);
    if (st != MOEC_OK)
        goto done;
    moec_slice *own =
        moec_arena_alloc(b->arena, n * sizeof(*own), _Alignof(moec_slice));
    st = own == NULL
             ? moec_fail_nomem(err, "slices of a layer")
             : name_experts(b, found, variant, &out->layer.experts_prefix, err);
    if (st != MOEC_OK)
        goto done;
    memcpy(own, list, n * sizeof(*own));
    out->layer.key = found->key;
    out->layer.source_number = found->number;
    out->n_slices = n;
    out->slices = own;
done:
    moec_free(list);
    return st;
}
