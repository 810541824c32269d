/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fuzz target: a family description. What is accepted must name tensors that
 * it recognises again, whatever layer and expert they are of.
 */

#include <stdlib.h>
#include <string.h>

#include "family.h"
#include "json_mutator.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

#define MUST(x)                                                                \
  do {                                                                         \
    if (!(x))                                                                  \
      abort();                                                                 \
  } while (0)

static void check(const moec_family *f)
{
    char name[MOEC_NAME_BYTES_MAX + 64];
    moec_norm norm;

    MUST(f->n_variants <= MOEC_VARIANTS_MAX && f->n_model_types > 0);
    for (size_t i = 0; i < f->n_kinds; i++) {
        const moec_kind *k = &f->kinds[i];

        MUST(k->tail != NULL && k->component < f->n_components &&
             k->n_dims <= MOEC_DIMS_MAX);
        MUST(k->group < moec_family_n_groups(f));
        for (size_t p = 0; p < f->n_prefixes && p < 4; p++) {
            moec_kind_format(f, k, p, 12, 34, name, sizeof(name));
            MUST(strlen(name) < sizeof(name));
            (void)moec_norm_name(&norm, name);
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_family *f = NULL;
    moec_status st = moec_family_parse(&f, "fuzz", (const char *)data, n, &err);

    if (st == MOEC_OK)
        check(f);
    else
        MUST(f == NULL && err.status == st && err.text[0] != '\0');
    moec_family_destroy(f);
    return 0;
}
