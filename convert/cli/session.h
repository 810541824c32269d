/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_SESSION_H
#define MOEC_SESSION_H

/*
 * What this is: from SRC and the topology options to a layout, the road that
 *   inspect, plan, convert and explain share; and what the command line adds
 *   to it: files named by options, the place of the Hugging Face cache.
 * Lifetime: zero-initialise, close once; closing a partly opened one is fine.
 * Threads: one thread at a time.
 * Errors: the library's, and FORMAT or IO for files named by options.
 */

#include "cli.h"
#include "print.h"

typedef struct moec_cli_session {
    char *family_text; /* of --family, NUL-terminated, or NULL */
    moec_families *families;
    const char *family;          /* text that decides: family_text, or what a
                           conversion was made with; or NULL */
    moec_conversion *conversion; /* SRC is one: it owns ckpt and model */
    const moec_ckpt *ckpt;
    const moec_model *model;
    moec_ckpt *own_ckpt;
    moec_model *own_model;
    moec_placement *placement;
    moec_plan *plan;
    moec_layout *layout;
} moec_cli_session;

/* Root of the local Hugging Face cache, to be freed; NULL: there is none. */
bool moec_cli_hf_cache(char **out);

/* Read the families and open the checkpoint `src`. Of a conversion it is the
 * source that it was made from, headers alone, and the model comes with it. */
moec_status moec_cli_open_ckpt(moec_cli_session *s, const moec_cli *cli,
                               const char *src, moec_error *err);
/* Open another checkpoint with the same options (verify --source). */
moec_status moec_cli_open_source(moec_ckpt **out, const moec_cli *cli,
                                 const char *src, moec_error *err);
/* Open the conversion in a directory or behind a URL. */
moec_status moec_cli_open_conversion(moec_conversion **out, const char *path,
                                     const moec_families *families,
                                     moec_error *err);
/* The registry with --family's description in it. */
moec_status moec_cli_open_families(moec_cli_session *s, const moec_cli *cli,
                                   moec_error *err);
/* open_ckpt, then the model. */
moec_status moec_cli_open_model(moec_cli_session *s, const moec_cli *cli,
                                const char *src, moec_error *err);
/* open_model, then placement, plan and layout by the topology options. */
moec_status moec_cli_open_layout(moec_cli_session *s, const moec_cli *cli,
                                 const char *src, moec_error *err);
/* The second half of it, behind open_model. */
moec_status moec_cli_make_layout(moec_cli_session *s, const moec_cli *cli,
                                 moec_error *err);
/* P08 where --redundant was said and the placement of `path` has another
 * number of redundant slots. */
moec_status moec_cli_check_redundant(const moec_cli *cli,
                                     const moec_placement *placement,
                                     const char *path, moec_error *err);

/* The placement of --placement into the session, behind open_model. */
moec_status moec_cli_open_placement(moec_cli_session *s, const moec_cli *cli,
                                    moec_error *err);
void moec_cli_session_close(moec_cli_session *s);

/* What the topology options say of a plan; the placement is the session's. */
moec_plan_opts moec_cli_plan_opts(const moec_cli_session *s,
                                  const moec_cli *cli);

/* E, layers and MoE layers of the model, for reading a placement file; *keys is
 * the caller's, free(3). */
moec_status moec_cli_placement_target(const moec_model *model,
                                      moec_placement_target *target,
                                      moec_layer_key **keys, moec_error *err);

/* Is `dir` a converted checkpoint? It has a manifest of ours, or of a damaged
 * one slots.bin and another of the three. IO where nobody can tell. */
moec_status moec_cli_is_conversion(const char *dir, bool *yes, moec_error *err);

/* Name of the first topology option given (--family apart), or NULL: for a
 * conversion they are in its manifest. */
const char *moec_cli_topology_given(const moec_cli *cli);

/* Usage rules of the topology options. Returns NULL or the complaint. */
const char *moec_cli_check_topology(const moec_cli *cli, bool need_ep);

/* Member "topology". */
void moec_cli_json_topology(moec_cli_json *j, const moec_plan *plan);

/* The plan as a document's members, and as text on stdout. `memory` is what
 * the conversion's buffers take; `ranks` (by rank, not 0 for those to name) is
 * NULL for all. */
void moec_cli_json_plan(moec_cli_json *j, const moec_layout *layout,
                        const uint8_t *ranks, uint64_t memory);
void moec_cli_print_plan(const moec_layout *layout, const uint8_t *ranks,
                         uint64_t memory);

#endif
