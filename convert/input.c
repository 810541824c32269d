/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What both kinds of input share, and the choice between them. See input.h.
 */

#include <string.h>
#include <unistd.h>

#include "input.h"

moec_status moec_input_create(moec_input **out, const moec_layout *layout,
                              const moec_convert_opts *opts, moec_error *err)
{
    moec_input common = {
        .layout = layout, .plan = moec_layout_plan(layout), .opts = opts};

    common.ckpt = moec_model_ckpt(moec_plan_model(common.plan));
    MOEC_TRY(moec_requant_create(&common.requant, common.plan, err));
    moec_status st = opts->source != NULL
                         ? moec_input_of_conversion(out, &common, err)
                         : moec_input_of_ckpt(out, &common, err);
    if (st != MOEC_OK)
        moec_requant_destroy(common.requant);
    return st;
}

void moec_input_destroy(moec_input *in)
{
    if (in == NULL)
        return;
    moec_requant_destroy(in->requant);
    in->kind->destroy(in);
}

moec_status moec_input_hire(moec_input *in, uint32_t n, moec_error *err)
{
    in->n_hands = n;
    return in->kind->hire(in, n, err);
}

moec_status moec_input_block(moec_input *in, moec_hand h, moec_block_id b,
                             uint64_t from, uint64_t to, void *dst,
                             moec_error *err)
{
    const moec_facts *f = moec_model_facts(moec_plan_model(in->plan));
    moec_input_call c = {in, h};

    if (in->requant == NULL || b.unit == MOEC_UNIT_EMPTY ||
        b.unit < f->n_experts)
        return in->kind->read_block(in, h, b, from, to, dst, err);
    return moec_requant_read(in->requant, b.layer, b.t, b.unit, from, to, dst,
                             moec_input_read, &c, err);
}

moec_status moec_input_read(void *call, uint32_t tensor, uint64_t off,
                            void *dst, size_t n, moec_error *err)
{
    const moec_input_call *c = call;

    return c->in->kind->read_tensor(c->in, c->hand, tensor, off, dst, n, err);
}

moec_status moec_extra_read(const moec_extra *x, uint64_t off, void *dst,
                            size_t n, moec_error *err)
{
    if (x->fd >= 0)
        return moec_pread_full(x->fd, x->name, dst, n, off, err);
    memcpy(dst, (const char *)x->data + off, n);
    return MOEC_OK;
}

moec_status moec_extra_check(const moec_extra *x, const moec_sha256 *got,
                             moec_error *err)
{
    if (x->sha256 == NULL || memcmp(got, x->sha256, sizeof(*got)) == 0)
        return MOEC_OK;
    return moec_fail(err, MOEC_E_INTEGRITY, MOEC_RULE_M08,
                     "%s: the copied file was changed after the conversion",
                     x->name);
}

void moec_extra_close(moec_extra *x)
{
    if (x->fd >= 0)
        close(x->fd);
    x->fd = -1;
}
