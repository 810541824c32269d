/* SPDX-License-Identifier: Apache-2.0 */
#ifndef MOEC_CMD_SIGN_H
#define MOEC_CMD_SIGN_H

/*
 * What this is: `convert --sign KEY` in two steps, the key's check before
 *   anything is written and the signature once the output is complete.
 * Lifetime: nothing is kept.
 * Threads: one thread at a time.
 * Errors: those of <moec/sign.h>.
 */

#include "cli.h"

moec_status moec_cli_check_sign_key(const moec_cli *cli, moec_error *err);
moec_status moec_cli_sign_written(const moec_cli *cli, const char *out,
                                  moec_error *err);

#endif
