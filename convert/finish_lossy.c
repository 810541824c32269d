/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What requantising the shared expert lost: computed once more over all of it
 * at the end, so that it is the same whatever was resumed and whoever wrote
 * the slots. One line a layer and projection for the manifest; the worst and
 * the mean of all layers for the report.
 */

#include <math.h>

#include "finish.h"

enum { N_PROJECTIONS = 3 };

typedef struct lossy {
    moec_finish *f;
    moec_input *in;
    moec_worker *workers;
    moec_quant_error *errors; /* [layer][projection] */
} lossy;

static moec_status measure(void *ctx, size_t i, uint32_t worker,
                           moec_error *err)
{
    const lossy *l = ctx;
    moec_input_call c = {l->in, {worker, &l->workers[worker]}};
    size_t layer = i / N_PROJECTIONS;
    moec_projection p = (moec_projection)(i % N_PROJECTIONS);

    if (!moec_requant_has(l->in->requant, layer, p))
        return MOEC_OK;
    return moec_requant_error(l->in->requant, layer, p, moec_input_read, &c,
                              &l->errors[i], err);
}

static double relative(const moec_quant_error *e)
{
    return e->rms_in > 0.0 ? e->rms / e->rms_in : 0.0;
}

/* Squares add up over layers. */
static void sum_up(const lossy *l, size_t n_layers, moec_convert_stats *stats)
{
    for (size_t p = 0; p < N_PROJECTIONS; p++) {
        double square = 0.0, square_in = 0.0, worst = 0.0;

        for (size_t i = 0; i < n_layers; i++) {
            const moec_quant_error *e = &l->errors[i * N_PROJECTIONS + p];
            square += e->rms * e->rms * (double)e->n;
            square_in += e->rms_in * e->rms_in * (double)e->n;
            worst = e->max_abs > worst ? e->max_abs : worst;
        }
        stats->lossy[p].max_abs = worst;
        stats->lossy[p].relative_rms =
            square_in > 0.0 ? sqrt(square / square_in) : 0.0;
    }
    stats->requantised = true;
}

static moec_status describe(const lossy *l, size_t n_layers, moec_error *err)
{
    static const char *const names[N_PROJECTIONS] = {"gate", "up", "down"};
    moec_finish *f = l->f;
    moec_mf_lossy *out =
        moec_finish_take(f, n_layers * N_PROJECTIONS, sizeof(*out));

    if (out == NULL)
        return moec_fail_nomem(err, "errors of the manifest");
    for (size_t i = 0; i < n_layers * N_PROJECTIONS; i++) {
        size_t layer = i / N_PROJECTIONS, p = i % N_PROJECTIONS;

        if (!moec_requant_has(l->in->requant, layer, (moec_projection)p))
            continue;
        moec_mf_lossy *m = &out[f->mf.n_lossy++];
        m->key =
            moec_model_layer(f->model, moec_plan_model_layer(f->plan, layer))
                ->key;
        m->projection = names[p];
        m->max_abs = l->errors[i].max_abs;
        m->relative_rms = relative(&l->errors[i]);
    }
    f->mf.lossy = out;
    f->mf.requantize = "shared";
    return MOEC_OK;
}

moec_status moec_finish_lossy(moec_finish *f, moec_input *in,
                              moec_convert_stats *stats, moec_error *err)
{
    size_t n_layers = moec_plan_n_layers(f->plan);
    lossy l = {.f = f, .in = in};
    moec_status st = MOEC_OK;

    if (in->carried != NULL) {
        f->mf.requantize = in->carried->requantize;
        f->mf.lossy = in->carried->lossy;
        f->mf.n_lossy = in->carried->n_lossy;
        return MOEC_OK;
    }
    if (in->requant == NULL)
        return MOEC_OK;
    l.workers = moec_calloc(in->n_hands, sizeof(*l.workers));
    l.errors = moec_finish_take(f, n_layers * N_PROJECTIONS, sizeof(*l.errors));
    if (l.workers == NULL || l.errors == NULL)
        st = moec_fail_nomem(err, "errors of the shared experts");
    if (st == MOEC_OK)
        st = moec_parallel(in->n_hands, n_layers * N_PROJECTIONS, measure, &l,
                           err);
    if (st == MOEC_OK) {
        sum_up(&l, n_layers, stats);
        st = describe(&l, n_layers, err);
    }
    for (uint32_t i = 0; l.workers != NULL && i < in->n_hands; i++) {
        stats->bytes_read += l.workers[i].io.n_bytes_read;
        moec_scratch_fini(&l.workers[i].scratch);
        moec_io_buf_fini(&l.workers[i].io);
    }
    moec_free(l.workers);
    return st;
}
