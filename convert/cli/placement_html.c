/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The page of placement_html.h: placement.html with its data put in. The data
 * is JSON in a script element that runs nothing; '<' is escaped in it, so that
 * no name can end the element, and the script puts texts into the page as text
 * and never as markup.
 */
#include "placement_html.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "memory_file.h"
#include "print.h"

/* MOEC_PLACEMENT_HTML: convert/cli/placement.html of the source tree. */
__asm__(".pushsection .rodata\n"
        ".globl moec_placement_html\n"
        ".hidden moec_placement_html\n"
        "moec_placement_html:\n"
        ".incbin \"" MOEC_PLACEMENT_HTML "\"\n"
        ".byte 0\n"
        ".popsection\n");
extern const char moec_placement_html[];

/* -------------------------------------------------------------- escapes */

/* `s` as a JSON string inside a script element. Bytes that are no UTF-8 become
 * U+FFFD. */
static void put_string(FILE *f, const char *s)
{
    char *text = NULL;
    size_t bytes = 0;
    if (s == NULL) {
        (void)fputs("null", f);
        return;
    }
    FILE *m = moec_cli_memory_file(&text, &bytes);
    if (m == NULL)
        return;
    moec_cli_put_json_string(m, s);
    bool whole = fclose(m) == 0;
    for (const char *p = text; whole && *p != '\0'; p++) {
        if (*p == '<' || *p == '>' || *p == '&')
            (void)fprintf(f, "\\u%04x", (unsigned)*p);
        else
            (void)fputc(*p, f);
    }
    free(text);
}

/* ----------------------------------------------------------------- data */

static void put_rows(FILE *f, const moec_placement *p)
{
    uint32_t n = moec_placement_n_physical(p);
    (void)fputc('[', f);
    for (uint32_t i = 0; i < moec_placement_n_layers(p); i++) {
        const int32_t *row = moec_placement_row(p, i);
        (void)fputs(i > 0 ? ",\n[" : "[", f);
        for (uint32_t k = 0; k < n; k++)
            (void)fprintf(f, k > 0 ? ",%" PRId32 : "%" PRId32, row[k]);
        (void)fputc(']', f);
    }
    (void)fputc(']', f);
}

static void put_loads(FILE *f, const moec_counts *c)
{
    uint32_t e = moec_counts_n_experts(c);
    const float *load = moec_counts_loads(c);
    (void)fputc('[', f);
    for (uint32_t i = 0; i < moec_counts_n_layers(c); i++) {
        (void)fputs(i > 0 ? ",\n[" : "[", f);
        for (uint32_t k = 0; k < e; k++)
            (void)fprintf(f, k > 0 ? ",%.7g" : "%.7g",
                          (double)load[(size_t)i * e + k]);
        (void)fputc(']', f);
    }
    (void)fputc(']', f);
}

static void put_data(FILE *f, const moec_cli_page *g)
{
    char name[24];
    (void)fputs("{\"title\":", f);
    put_string(f, g->title);
    (void)fputs(",\"form\":", f);
    put_string(f, g->form);
    (void)fputs(",\"beforeName\":", f);
    put_string(f, g->before_name);
    (void)fputs(",\"countsName\":", f);
    put_string(f, g->counts_name);
    (void)fprintf(f,
                  ",\"W\":%" PRIu32 ",\"N\":%" PRIu32 ",\"S\":%" PRIu32
                  ",\"E\":%" PRIu32 ",\"layers\":[",
                  g->n_ranks, g->n_nodes, g->n_shared,
                  moec_placement_n_experts(g->p));
    for (uint32_t i = 0; i < moec_placement_n_layers(g->p); i++) {
        (void)fputs(i > 0 ? "," : "", f);
        put_string(f, moec_cli_layer_name(name, g->keys[i]));
    }
    (void)fputs("],\"p2l\":", f);
    put_rows(f, g->p);
    (void)fputs(",\"before\":", f);
    if (g->before != NULL)
        put_rows(f, g->before);
    else
        (void)fputs("null", f);
    (void)fputs(",\"loads\":", f);
    if (g->counts != NULL)
        put_loads(f, g->counts);
    else
        (void)fputs("null", f);
    (void)fputs("}", f);
}

moec_status moec_cli_placement_page(const moec_cli_page *page, char **out,
                                    size_t *bytes_out, moec_error *err)
{
    static const char mark[] = "@DATA@";
    const char *at = strstr(moec_placement_html, mark);
    FILE *f = at != NULL ? moec_cli_memory_file(out, bytes_out) : NULL;
    if (f == NULL)
        return moec_cli_error(err, MOEC_E_NOMEM, MOEC_RULE_NONE,
                              "no memory for the page");
    (void)fwrite(moec_placement_html, 1, (size_t)(at - moec_placement_html), f);
    put_data(f, page);
    (void)fputs(at + sizeof(mark) - 1, f);
    bool bad = ferror(f) != 0;
    if (fclose(f) != 0 || bad) {
        free(*out);
        *out = NULL;
        return moec_cli_error(err, MOEC_E_NOMEM, MOEC_RULE_NONE,
                              "no memory for the page");
    }
    return MOEC_OK;
}
