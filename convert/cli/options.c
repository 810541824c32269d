/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The option tables that several commands share, and the one parser and one
 * help printer for all tables. Refuses: unknown options (with the nearest
 * known one), abbreviations (a script must survive the next option), numbers
 * with anything but digits, sizes that overflow.
 */
#include "options.h"

#include <ctype.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------- tables */

#define FIELD(f) offsetof(moec_cli_args, f)

const moec_cli_opt moec_opt_family = {
    "family",      0,      MOEC_KIND_TEXT,
    FIELD(family), "FILE", "a family description beside the built-in ones",
    NULL,          NULL,   0};

static const moec_cli_opt topology_opts[] = {
    {"ep", 0, MOEC_KIND_U32, FIELD(ep), "W", "expert-parallel ranks", NULL,
     "required by plan and convert; explain, check: 1", 0},
    {"redundant", 0, MOEC_KIND_U32, FIELD(redundant), "R",
     "redundant physical slots in all", "0", NULL, 0},
    {"logical-count", 0, MOEC_KIND_TEXT, FIELD(logical_count), "FILE",
     "place by load counts of an engine: SGLang, vLLM, JSON or .npy", NULL,
     NULL, 0},
    {"planner", 0, MOEC_KIND_CHOICE, FIELD(planner), "eplb|moec",
     "EPLB bit for bit, or what starts there and balances better", "eplb", NULL,
     0},
    {"nodes", 0, MOEC_KIND_U32, FIELD(nodes), "N", "nodes of the job", "1",
     NULL, 0},
    {"groups", 0, MOEC_KIND_U32, FIELD(groups), "G",
     "groups of experts that stay on one node, where N divides G", NULL,
     "the model's", 0},
    {"eplb-accum", 0, MOEC_KIND_CHOICE, FIELD(eplb_accum), "f32|f64",
     "sums of loads as DeepSeek's code (f32) or SGLang (f64)", "f64", NULL, 0},
    {"eplb-ties", 0, MOEC_KIND_CHOICE, FIELD(eplb_ties), "stable|introsort",
     "order of equal loads; introsort: as torch sorts", "introsort", NULL, 0},
    {"from", 0, MOEC_KIND_TEXT, FIELD(from), "FILE",
     "today's placement: the planner changes few of its slots", NULL, NULL, 0},
    {"max-moves", 0, MOEC_KIND_U32, FIELD(max_moves), "N",
     "slots that may change in all layers together", NULL, "any number", 0},
    {"placement", 0, MOEC_KIND_TEXT, FIELD(placement), "FILE",
     "physical_to_logical from a file, recognised by its content", NULL,
     "trivial", 0},
    {"no-mtp", 0, MOEC_KIND_FLAG, FIELD(no_mtp), NULL,
     "leave multi-token-prediction layers out", NULL, NULL, 0},
    {"shared-store", 0, MOEC_KIND_CHOICE, FIELD(shared_store), "rank|common",
     "shared experts in every rank's files, or once in a file of their own",
     "rank", NULL, 0},
    {"shared-slots", 0, MOEC_KIND_CHOICE, FIELD(shared_slots),
     "per-rank|global|none",
     "fused shared slots, numbered per rank or once, or kept out of the slots",
     NULL, "per-rank where the family allows", 0},
    {"requantize-shared", 0, MOEC_KIND_FLAG, FIELD(requantize_shared), NULL,
     "requantise a shared expert of another format into the routed one, so "
     "that it takes slots: lossy, the error is reported, its tensors are kept",
     NULL, NULL, 0},
    {"allow-empty", 0, MOEC_KIND_FLAG, FIELD(allow_empty), NULL,
     "pad with empty slots where the slots do not divide by the ranks", NULL,
     NULL, 0},
    {"w13-order", 0, MOEC_KIND_CHOICE, FIELD(w13_order), "gate-up|up-gate",
     "order inside w13", "gate-up", NULL, 0},
    {"shard-by", 0, MOEC_KIND_CHOICE, FIELD(shard_by), "rank|expert",
     "files per rank, or a store of logical experts without a placement",
     "rank", NULL, 0},
    {"max-part-bytes", 0, MOEC_KIND_SIZE, FIELD(max_part_bytes), "N",
     "size of a part (KiB, MiB, GiB); a layer is never split", "4GiB", NULL, 0},
    {"family", 0, MOEC_KIND_TEXT, FIELD(family), "FILE",
     "a family description beside the built-in ones", NULL, NULL, 0},
};

static const moec_cli_opt report_opts[] = {
    {"format", 0, MOEC_KIND_CHOICE, FIELD(format), MOEC_CLI_FORMATS,
     "form of the report on stdout; json is --json, github is text and the "
     "ten worst findings as annotations",
     "text", NULL, 0},
    {"report", 0, MOEC_KIND_LIST, FIELD(reports), "FORMAT=FILE",
     "write the report to a file too, in one more form; markdown is added to "
     "the end of the file, the others replace it; may be repeated",
     NULL, NULL, 0},
};

static const moec_cli_opt write_opts[] = {
    {"dry-run", 'n', MOEC_KIND_FLAG, FIELD(dry_run), NULL,
     "say what would be written, and write nothing", NULL, NULL, 0},
    {"force", 'f', MOEC_KIND_FLAG, FIELD(force), NULL,
     "replace an output that exists, once the new one is complete", NULL, NULL,
     0},
    {"no-direct", 0, MOEC_KIND_FLAG, FIELD(no_direct), NULL,
     "never go around the page cache", NULL, NULL, 0},
};

static const moec_cli_opt common_opts[] = {
    {"json", 0, MOEC_KIND_FLAG, FIELD(json), NULL,
     "one JSON document on stdout", NULL, NULL, 0},
    {"quiet", 'q', MOEC_KIND_FLAG, FIELD(quiet), NULL,
     "no progress, notes and hints; errors stay", NULL, NULL, 0},
    {"verbose", 'v', MOEC_KIND_COUNT, FIELD(verbose), NULL, "say more", NULL,
     NULL, 0},
    {"threads", 0, MOEC_KIND_U32, FIELD(threads), "N",
     "threads; 0: one per CPU allowed", "0", NULL, 1024},
    {"memory", 0, MOEC_KIND_SIZE, FIELD(memory), "N",
     "cap on buffers (KiB, MiB, GiB)", NULL, "chosen", 0},
    {"progress", 0, MOEC_KIND_CHOICE, FIELD(progress),
     "auto|bar|plain|json|none",
     "how progress is shown on stderr; auto: a bar on a terminal", "auto", NULL,
     0},
    {"strict", 0, MOEC_KIND_FLAG, FIELD(strict), NULL,
     "warnings become findings: exit 1, nothing written", NULL, NULL, 0},
    {"no-sandbox", 0, MOEC_KIND_FLAG, FIELD(no_sandbox), NULL,
     "keep the rights that the command does not need: other paths, programs, "
     "network; so does MOEC_NO_SANDBOX=1 in the environment",
     NULL, NULL, 0},
    {"help", 'h', MOEC_KIND_FLAG, FIELD(help), NULL, "this text", NULL, NULL,
     0},
};

#define GROUP(title, opts)                                                     \
  {                                                                            \
    title, opts, sizeof(opts) / sizeof((opts)[0])                              \
  }

/* The first rows of the topology. */
enum { N_BALANCE_OPTS = 10 };
const moec_cli_group moec_group_balance = {"Balance", topology_opts,
                                           N_BALANCE_OPTS};
const moec_cli_group moec_group_topology = GROUP("Topology", topology_opts);
const moec_cli_group moec_group_report = GROUP("Report", report_opts);
const moec_cli_group moec_group_write = GROUP("Writing", write_opts);
const moec_cli_group moec_group_common = GROUP("Common", common_opts);

/* ------------------------------------------------------------ numbers */

bool moec_cli_parse_u64(const char *s, uint64_t max, uint64_t *out)
{
    uint64_t v = 0;
    if (*s == '\0')
        return false;
    for (; *s != '\0'; s++) {
        if (*s < '0' || *s > '9')
            return false;
        if (__builtin_mul_overflow(v, 10, &v) ||
            __builtin_add_overflow(v, (uint64_t)(*s - '0'), &v))
            return false;
    }
    if (v > max)
        return false;
    *out = v;
    return true;
}

static bool parse_size(const char *s, uint64_t *out)
{
    static const struct {
        const char *name;
        unsigned shift;
    } units[] = {{"", 0}, {"KiB", 10}, {"MiB", 20}, {"GiB", 30}, {"TiB", 40}};
    size_t digits = strspn(s, "0123456789");
    char number[24];
    uint64_t v = 0;
    if (digits == 0 || digits >= sizeof(number))
        return false;
    memcpy(number, s, digits);
    number[digits] = '\0';
    if (!moec_cli_parse_u64(number, UINT64_MAX, &v) || v == 0)
        return false;
    for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++) {
        if (strcmp(s + digits, units[i].name) != 0)
            continue;
        if (v > UINT64_MAX >> units[i].shift)
            return false;
        *out = v << units[i].shift;
        return true;
    }
    return false;
}

uint32_t moec_cli_parse_choice(const char *choices, const char *word)
{
    size_t n = strlen(word);
    uint32_t place = 1;
    for (const char *p = choices;; place++) {
        size_t len = strcspn(p, "|");
        if (len == n && memcmp(p, word, n) == 0)
            return place;
        if (p[len] == '\0')
            return 0;
        p += len + 1;
    }
}

/* ------------------------------------------------------- did you mean */

size_t moec_cli_distance(const char *a, const char *b)
{
    enum { MAX = 40 };
    size_t d[MAX + 1][MAX + 1];
    size_t n = strlen(a), m = strlen(b);
    if (n > MAX || m > MAX)
        return SIZE_MAX;
    for (size_t i = 0; i <= n; i++)
        d[i][0] = i;
    for (size_t j = 0; j <= m; j++)
        d[0][j] = j;
    for (size_t i = 1; i <= n; i++) {
        for (size_t j = 1; j <= m; j++) {
            size_t best = d[i - 1][j - 1] + (a[i - 1] != b[j - 1]);
            if (d[i - 1][j] + 1 < best)
                best = d[i - 1][j] + 1;
            if (d[i][j - 1] + 1 < best)
                best = d[i][j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] &&
                a[i - 2] == b[j - 1] && d[i - 2][j - 2] + 1 < best)
                best = d[i - 2][j - 2] + 1;
            d[i][j] = best;
        }
    }
    return d[n][m];
}

bool moec_cli_is_near(const char *word, size_t distance)
{
    size_t n = strlen(word);
    return distance <= (n < 4 ? 1 : n < 8 ? 2 : 3);
}

/* ------------------------------------------------------------ parsing */

/* The rows of all groups, one after the other. */
typedef struct rows {
    const moec_cli_opt *row[64]; /* 64: args->given is a 64-bit mask */
    size_t n;
} rows;

static void collect(rows *all, const moec_cli_group *const *groups)
{
    all->n = 0;
    for (; *groups != NULL; groups++) {
        for (size_t i = 0; i < (*groups)->n && all->n < 64; i++)
            all->row[all->n++] = &(*groups)->opts[i];
    }
}

static void complain(char *why, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

static void complain(char *why, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    /* NOLINTNEXTLINE(clang-analyzer-valist.Uninitialized): LLVM 41311 */
    (void)vsnprintf(why, MOEC_OPT_WHY_BYTES, fmt, ap);
    va_end(ap);
}

static void *field_of(moec_cli_args *args, const moec_cli_opt *o)
{
    return (char *)args + o->field;
}

static bool set_number(moec_cli_args *args, const moec_cli_opt *o,
                       const char *text, char *why)
{
    uint32_t max = o->max != 0 ? o->max : UINT32_MAX;
    uint64_t v = 0;
    if (!moec_cli_parse_u64(text, max, &v)) {
        complain(why, "--%s wants an integer from 0 to %u, not '%s'", o->name,
                 max, text);
        return false;
    }
    *(uint32_t *)field_of(args, o) = (uint32_t)v;
    return true;
}

static bool add_word(moec_cli_list *list, const moec_cli_opt *o,
                     const char *text, char *why)
{
    if (list->n == MOEC_CLI_LIST_MAX) {
        complain(why, "--%s more than %d times", o->name, MOEC_CLI_LIST_MAX);
        return false;
    }
    list->words[list->n++] = text;
    return true;
}

/* Take one option; `text` is its argument, or NULL for flags. */
static bool set_value(moec_cli_args *args, const moec_cli_opt *o,
                      const char *text, char *why)
{
    uint32_t place;
    switch (o->kind) {
    case MOEC_KIND_FLAG:
        *(bool *)field_of(args, o) = true;
        return true;
    case MOEC_KIND_COUNT:
        *(uint32_t *)field_of(args, o) += 1;
        return true;
    case MOEC_KIND_U32:
        return set_number(args, o, text, why);
    case MOEC_KIND_SIZE:
        if (parse_size(text, field_of(args, o)))
            return true;
        complain(why,
                 "--%s wants a size such as 1048576, 512MiB or 4GiB, not '%s'",
                 o->name, text);
        return false;
    case MOEC_KIND_TEXT:
        *(const char **)field_of(args, o) = text;
        return true;
    case MOEC_KIND_LIST:
        return add_word(field_of(args, o), o, text, why);
    case MOEC_KIND_CHOICE:
        place = moec_cli_parse_choice(o->arg, text);
        *(uint32_t *)field_of(args, o) = place;
        if (place == 0)
            complain(why, "--%s wants one of %s, not '%s'", o->name, o->arg,
                     text);
        return place != 0;
    }
    return false;
}

static void unknown_option(const rows *all, const char *token, char *why)
{
    char word[64];
    const char *nearest = NULL;
    size_t least = SIZE_MAX;
    size_t n = strcspn(token, "=");
    if (token[0] != '-' || token[1] != '-') {
        complain(why, "unknown option '%s'", token);
        return;
    }
    if (n - 2 < sizeof(word)) {
        memcpy(word, token + 2, n - 2);
        word[n - 2] = '\0';
        for (size_t i = 0; i < all->n; i++) {
            size_t d = moec_cli_distance(word, all->row[i]->name);
            /* A word cut short is nearer than its distance says. */
            if (n > 4 && strncmp(word, all->row[i]->name, n - 2) == 0)
                d = 1;
            if (d < least) {
                least = d;
                nearest = all->row[i]->name;
            }
        }
        if (nearest != NULL && moec_cli_is_near(word, least)) {
            complain(why, "unknown option '--%s'; did you mean '--%s'?", word,
                     nearest);
            return;
        }
    }
    complain(why, "unknown option '%.*s'", n > 64 ? 64 : (int)n, token);
}

enum { LONG_BASE = 256, MAX_LETTERS = 64 };

/* getopt_long's two inputs, out of the rows. '-' in front makes it return
 * paths in order instead of moving them: what stands where is then known, and
 * POSIXLY_CORRECT changes nothing. */
static void fill_getopt(const rows *all, struct option *longs, char *letters)
{
    size_t at = 0;
    letters[at++] = '-';
    letters[at++] = ':';
    for (size_t i = 0; i < all->n; i++) {
        const moec_cli_opt *o = all->row[i];
        bool takes = o->kind != MOEC_KIND_FLAG && o->kind != MOEC_KIND_COUNT;
        longs[i].name = o->name;
        longs[i].has_arg = takes ? required_argument : no_argument;
        longs[i].flag = NULL;
        longs[i].val = LONG_BASE + (int)i;
        if (o->letter != 0 && at + 2 < MAX_LETTERS) {
            letters[at++] = o->letter;
            if (takes)
                letters[at++] = ':';
        }
    }
    memset(&longs[all->n], 0, sizeof(longs[all->n]));
    letters[at] = '\0';
}

static size_t row_of(const rows *all, int code)
{
    if (code >= LONG_BASE)
        return (size_t)(code - LONG_BASE);
    for (size_t i = 0; i < all->n; i++) {
        if (all->row[i]->letter == code)
            return i;
    }
    return all->n;
}

/* True where the word that getopt just took is the option's name in full. */
static bool spelled_out(const moec_cli_opt *o, char **argv)
{
    const char *token = argv[optind - 1];
    if (optarg != NULL && token == optarg)
        token = argv[optind - 2];
    size_t n = strcspn(token, "=");
    return n == strlen(o->name) + 2 && memcmp(token + 2, o->name, n - 2) == 0;
}

static bool take_failed(const rows *all, int code, char **argv, char *why)
{
    size_t i = row_of(all, optopt);
    if (code == ':' && i < all->n)
        complain(why, "--%s wants an argument: %s", all->row[i]->name,
                 all->row[i]->arg);
    else if (optopt >= LONG_BASE && i < all->n)
        complain(why, "--%s takes no argument", all->row[i]->name);
    else if (optopt != 0)
        complain(why, "unknown option '-%c'", isprint(optopt) ? optopt : '?');
    else
        unknown_option(all, argv[optind - 1], why);
    return false;
}

/* After an error the rest may still hold --json: it decides how the error is
 * reported. */
static void look_for_json(moec_cli_args *args, const rows *all, int argc,
                          char **argv)
{
    bool known = false;
    for (size_t i = 0; i < all->n; i++)
        known = known || strcmp(all->row[i]->name, "json") == 0;
    for (int i = 1; known && i < argc && strcmp(argv[i], "--") != 0; i++) {
        if (strcmp(argv[i], "--json") == 0)
            args->json = true;
    }
}

static bool take_all(moec_cli_args *args, const rows *all, int argc,
                     char **argv, char *why)
{
    struct option longs[65];
    char letters[MAX_LETTERS + 1];
    fill_getopt(all, longs, letters);
    optind = 0; /* glibc: begin anew, and read the letters' first character */
    opterr = 0;
    for (;;) {
        int code = getopt_long(argc, argv, letters, longs, NULL);
        if (code == -1)
            break;
        if (code == 1) {
            args->paths[args->n_paths++] = optarg;
            continue;
        }
        if (code == '?' || code == ':')
            return take_failed(all, code, argv, why);
        size_t i = row_of(all, code);
        if (code >= LONG_BASE && !spelled_out(all->row[i], argv)) {
            const char *token = argv[optind - 1];
            if (optarg != NULL && token == optarg)
                token = argv[optind - 2];
            unknown_option(all, token, why);
            return false;
        }
        if (!set_value(args, all->row[i], optarg, why))
            return false;
        args->given |= UINT64_C(1) << i;
    }
    while (optind < argc)
        args->paths[args->n_paths++] = argv[optind++];
    return true;
}

bool moec_cli_parse(moec_cli_args *args, const moec_cli_group *const *groups,
                    int argc, char **argv, char why[MOEC_OPT_WHY_BYTES])
{
    rows all;
    memset(args, 0, sizeof(*args));
    collect(&all, groups);
    args->paths = calloc((size_t)argc + 1, sizeof(*args->paths));
    if (args->paths == NULL) {
        complain(why, "no memory for the arguments");
        return false;
    }
    for (size_t i = 0; i < all.n; i++) {
        if (all.row[i]->def != NULL &&
            !set_value(args, all.row[i], all.row[i]->def, why))
            return false;
    }
    if (take_all(args, &all, argc, argv, why))
        return true;
    look_for_json(args, &all, argc, argv);
    return false;
}

bool moec_cli_given(const moec_cli_args *args,
                    const moec_cli_group *const *groups, const char *name)
{
    rows all;
    collect(&all, groups);
    for (size_t i = 0; i < all.n; i++) {
        if (strcmp(all.row[i]->name, name) == 0)
            return (args->given >> i & 1) != 0;
    }
    return false;
}

/* --------------------------------------------------------------- help */

enum { HELP_INDENT = 26, HELP_WIDTH = 80 };

static void spaces(FILE *f, size_t n)
{
    (void)fprintf(f, "%*s", (int)n, "");
}

void moec_cli_print_folded(FILE *f, const char *text, size_t at, size_t indent)
{
    while (*text != '\0') {
        size_t n = strcspn(text, " ");
        if (at > indent && at + 1 + n >= HELP_WIDTH) {
            (void)fputc('\n', f);
            spaces(f, indent);
            at = indent;
        } else if (at > indent) {
            (void)fputc(' ', f);
            at++;
        }
        (void)fprintf(f, "%.*s", (int)n, text);
        at += n;
        text += n;
        text += strspn(text, " ");
    }
    (void)fputc('\n', f);
}

static void print_option(FILE *f, const moec_cli_opt *o)
{
    char head[80], text[256];
    const char *def = o->def != NULL ? o->def : o->note;
    bool required = o->note != NULL && strncmp(o->note, "required", 8) == 0;
    int n = snprintf(
        head, sizeof(head), "  %s%c%s--%s%s%s", o->letter != 0 ? "-" : "",
        o->letter != 0 ? o->letter : ' ', o->letter != 0 ? ", " : "   ",
        o->name, o->arg != NULL ? " " : "", o->arg != NULL ? o->arg : "");
    size_t used = n > 0 ? (size_t)n : 0;
    (void)fputs(head, f);
    if (used + 2 > HELP_INDENT) {
        (void)fputc('\n', f);
        used = 0;
    }
    spaces(f, HELP_INDENT - used);
    if (def == NULL)
        (void)snprintf(text, sizeof(text), "%s", o->help);
    else if (required)
        (void)snprintf(text, sizeof(text), "%s (%s)", o->help, o->note);
    else
        (void)snprintf(text, sizeof(text), "%s (default: %s)", o->help, def);
    moec_cli_print_folded(f, text, HELP_INDENT, HELP_INDENT);
}

void moec_cli_print_options(FILE *f, const moec_cli_group *const *groups)
{
    for (; *groups != NULL; groups++) {
        (void)fprintf(f, "\n%s:\n", (*groups)->title);
        for (size_t i = 0; i < (*groups)->n; i++)
            print_option(f, &(*groups)->opts[i]);
    }
}
