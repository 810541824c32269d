/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which ranks this process converts. Refuses ranks that there are not, lists
 * with anything but numbers and ranges, and half a pair of variables.
 *
 * `auto` takes the innermost launcher that is there: torchrun, mpirun and PMI
 * set their variables inside a Slurm step or a pod, which have theirs too.
 */
#include "rank_list.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "memory_file.h"
#include "print.h"

static const moec_cli_opt opts[] = {
    {"ranks", 0, MOEC_KIND_TEXT, offsetof(moec_cli_args, ranks), "LIST",
     "only these ranks (0-3,8), as one of several processes; auto: this "
     "process's share, from Slurm, Open MPI, PMI, torchrun or a Kubernetes "
     "Indexed Job",
     NULL, "all", 0},
};
const moec_cli_group moec_group_ranks = {"Several processes", opts, 1};

static bool complain(char *why, const char *fmt, ...) MOEC_PRINTF(2, 3);
static bool complain(char *why, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(why, MOEC_OPT_WHY_BYTES, fmt, ap);
    va_end(ap);
    return false;
}

/* ----------------------------------------------------------------- lists */

/* The number at *at, of a few digits; moves behind it. */
static bool take_number(const char **at, uint64_t *out)
{
    char digits[12];
    size_t n = strspn(*at, "0123456789");
    if (n == 0 || n >= sizeof(digits))
        return false;
    memcpy(digits, *at, n);
    digits[n] = '\0';
    *at += n;
    return moec_cli_parse_u64(digits, UINT32_MAX, out);
}

static bool read_list(moec_cli_ranks *r, const char *text, char *why)
{
    const char *at = text;
    uint64_t from = 0, to;
    for (;;) {
        bool ok = take_number(&at, &from);
        to = from;
        if (ok && *at == '-') {
            at++;
            ok = take_number(&at, &to);
        }
        if (!ok || to < from || (*at != ',' && *at != '\0'))
            return complain(why,
                            "--ranks wants numbers and ranges such as 0-3,8, "
                            "or auto, not '%s'",
                            text);
        if (to >= r->n_ranks)
            return complain(why,
                            "--ranks %s: there are %" PRIu32 " ranks, 0 to "
                            "%" PRIu32,
                            text, r->n_ranks, r->n_ranks - 1);
        memset(r->mine + from, 1, (size_t)(to - from + 1));
        if (*at++ == '\0')
            return true;
    }
}

/* ------------------------------------------------------------- launchers */

/* Variables of one launcher, innermost first. Where a launcher's second name
 * is NULL there is no other. */
static const struct launcher {
    const char *index, *count, *count2;
    bool alone; /* the index may stand without a count: one rank a process */
} launchers[] = {
    {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", NULL, false},
    {"PMI_RANK", "PMI_SIZE", NULL, false},
    {"RANK", "WORLD_SIZE", NULL, false},
    {"SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", false},
    {"JOB_COMPLETION_INDEX", "JOB_COMPLETIONS", "WORLD_SIZE", true},
};

static const char *variable(const char *name)
{
    const char *v = name != NULL ? getenv(name) : NULL;
    return v != NULL && v[0] != '\0' ? v : NULL;
}

static bool read_launcher(moec_cli_ranks *r, const struct launcher *l,
                          char *why)
{
    const char *index = variable(l->index), *count = variable(l->count);
    uint64_t i = 0, n = r->n_ranks;
    if (count == NULL)
        count = variable(l->count2);
    if (count == NULL && !l->alone)
        return complain(why, "--ranks auto: %s is set and %s is not", l->index,
                        l->count);
    if (!moec_cli_parse_u64(index, UINT32_MAX, &i) ||
        (count != NULL && !moec_cli_parse_u64(count, UINT32_MAX, &n)))
        return complain(why,
                        "--ranks auto: %s '%s' and %s '%s' are not two "
                        "numbers",
                        l->index, index, l->count, count ? count : "");
    if (i >= n)
        return complain(
            why, "--ranks auto: %s is %" PRIu64 " of %" PRIu64 " processes",
            l->index, i, n);
    uint64_t from = i * r->n_ranks / n, to = (i + 1) * r->n_ranks / n;
    memset(r->mine + from, 1, (size_t)(to - from));
    (void)snprintf(r->said, sizeof(r->said),
                   "process %" PRIu64 " of %" PRIu64 " (%s)", i, n, l->index);
    return true;
}

static bool read_environment(moec_cli_ranks *r, char *why)
{
    for (size_t i = 0; i < sizeof(launchers) / sizeof(launchers[0]); i++) {
        if (variable(launchers[i].index) != NULL)
            return read_launcher(r, &launchers[i], why);
    }
    return complain(why, "--ranks auto: no launcher's variables are set "
                         "(SLURM_PROCID, OMPI_COMM_WORLD_RANK, PMI_RANK, RANK, "
                         "JOB_COMPLETION_INDEX); name the ranks");
}

/* ------------------------------------------------------------ the option */

int moec_cli_ranks_read(moec_cli_ranks *r, const moec_cli *cli,
                        uint32_t n_ranks)
{
    const char *text = cli->args.ranks;
    char why[MOEC_OPT_WHY_BYTES];
    memset(r, 0, sizeof(*r));
    r->n = r->n_ranks = n_ranks;
    if (text == NULL)
        return MOEC_EXIT_OK;
    if (cli->args.shard_by == MOEC_CHOICE_BY_EXPERT)
        return moec_cli_usage(cli, "--ranks means nothing with --shard-by "
                                   "expert: the store has no ranks");
    r->mine = calloc((size_t)n_ranks + 1, 1);
    if (r->mine == NULL)
        return moec_cli_no_memory(cli, "the ranks");
    bool ok = strcmp(text, "auto") == 0 ? read_environment(r, why)
                                        : read_list(r, text, why);
    r->n = 0;
    for (uint32_t i = 0; i < n_ranks; i++)
        r->n += r->mine[i];
    if (!ok || r->n == n_ranks)
        moec_cli_ranks_free(r);
    return ok ? MOEC_EXIT_OK : moec_cli_usage(cli, "%s", why);
}

void moec_cli_ranks_free(moec_cli_ranks *r)
{
    free(r->mine);
    r->mine = NULL;
}

char *moec_cli_ranks_text(const moec_cli_ranks *r)
{
    char *text = NULL;
    size_t bytes = 0;
    FILE *f = moec_cli_memory_file(&text, &bytes);
    bool any = false;
    if (f == NULL)
        return NULL;
    for (uint32_t i = 0, to; i < r->n_ranks; i = to) {
        for (to = i; to < r->n_ranks && (r->mine == NULL || r->mine[to]); to++)
            ;
        if (to > i)
            (void)fprintf(f, "%s%" PRIu32, any ? "," : "", i);
        if (to > i + 1)
            (void)fprintf(f, "-%" PRIu32, to - 1);
        any = any || to > i;
        to += to == i;
    }
    if (fclose(f) != 0) {
        free(text);
        return NULL;
    }
    return text;
}
