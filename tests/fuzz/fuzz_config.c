/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fuzz target: config.json, read by the built-in families. What is accepted
 * must be in range, and every question about it must be answered or refused.
 */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "config.h"
#include "json_mutator.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

#define MUST(x)                                                                \
  do {                                                                         \
    if (!(x))                                                                  \
      abort();                                                                 \
  } while (0)

static const moec_families *families(void)
{
    static moec_families *all;

    if (all == NULL)
        MUST(moec_families_create(&all, NULL) == MOEC_OK);
    return all;
}

/* Any answer or refusal, and a refusal says why. */
static void ask(const moec_config *c, moec_arena *arena)
{
    static uint8_t moe[4096];

    for (int i = 0; i < MOEC_FACT_COUNT; i++) {
        moec_fact fact = (moec_fact)i;
        moec_error e[5];
        uint32_t count = 0;
        double number = 0;
        bool flag = false;
        const char *word = NULL, *origin = NULL;
        moec_status st[5];

        memset(e, 0, sizeof(e));
        st[0] = moec_config_count(c, fact, 7, &count, &e[0]);
        st[1] = moec_config_number(c, fact, 0, 0.5, &number, &e[1]);
        st[2] = moec_config_flag(c, fact, false, &flag, &e[2]);
        st[3] = moec_config_word(c, fact, &word, &e[3]);
        st[4] = moec_config_origin(c, fact, arena, &origin, &e[4]);
        for (int k = 0; k < 5; k++)
            MUST(st[k] == e[k].status && (st[k] == MOEC_OK || e[k].text[0]));
        MUST(st[1] != MOEC_OK || isfinite(number));
    }
    if (c->facts.n_layers <= sizeof(moe))
        (void)moec_config_moe_layers(c, moe, NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    moec_error err = MOEC_ERROR_INIT;
    moec_arena arena = {0};
    moec_config c;
    moec_status st;

    memset(&c, 0, sizeof(c));
    st = moec_config_read(&c, families(), (const char *)data, n, &arena, &err);
    if (st == MOEC_OK) {
        MUST(c.family != NULL && c.facts.n_experts > 0 && c.facts.top_k > 0 &&
             c.facts.top_k <= c.facts.n_experts);
        MUST(isfinite(c.facts.routed_scale));
        ask(&c, &arena);
    } else {
        MUST(err.status == st && err.text[0] != '\0');
    }
    moec_config_fini(&c);
    moec_arena_fini(&arena);
    return 0;
}
