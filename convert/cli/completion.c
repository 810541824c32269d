/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Completions out of the table of commands: the command, the command below it
 * where it has such, its options, the words of a choice; else files.
 */
#include <string.h>

#include "describe.h"

static const char *word_of(const moec_cli_command *cmd)
{
    const char *last = strrchr(cmd->name, ' ');
    return last != NULL ? last + 1 : cmd->name;
}

static bool takes_word(const moec_cli_opt *o)
{
    return o->kind != MOEC_KIND_FLAG && o->kind != MOEC_KIND_COUNT;
}

static bool takes_file(const moec_cli_opt *o)
{
    return o->kind == MOEC_KIND_TEXT || o->kind == MOEC_KIND_LIST;
}

/* "a|b|c" with blanks in between. */
static void put_words(FILE *f, const char *choices)
{
    for (; *choices != '\0'; choices++)
        (void)fputc(*choices == '|' ? ' ' : *choices, f);
}

/* Within quotes of the shell: "'" and what zsh's _arguments reads in. */
static void put_quoted(FILE *f, const char *s, const char *special)
{
    for (; *s != '\0'; s++) {
        if (*s == '\'') {
            (void)fputs("'\\''", f);
            continue;
        }
        if (strchr(special, *s) != NULL)
            (void)fputc('\\', f);
        (void)fputc(*s, f);
    }
}

/* ------------------------------------------------------------------ bash */

static void bash_command(FILE *f, const moec_cli_command *cmd)
{
    (void)fprintf(f, "    '%s')\n        options='", cmd->name);
    for (const moec_cli_group *const *g = cmd->groups; *g != NULL; g++) {
        for (size_t i = 0; i < (*g)->n; i++) {
            const moec_cli_opt *o = &(*g)->opts[i];
            (void)fprintf(f, "--%s ", o->name);
            if (o->letter != 0)
                (void)fprintf(f, "-%c ", o->letter);
        }
    }
    (void)fputs("'\n        case $previous in\n", f);
    for (const moec_cli_group *const *g = cmd->groups; *g != NULL; g++) {
        for (size_t i = 0; i < (*g)->n; i++) {
            const moec_cli_opt *o = &(*g)->opts[i];
            if (!takes_word(o))
                continue;
            (void)fprintf(f, "        --%s) values=", o->name);
            if (o->kind == MOEC_KIND_CHOICE) {
                (void)fputc('\'', f);
                put_words(f, o->arg);
                (void)fputs("' ;;\n", f);
            } else {
                (void)fputs(takes_file(o) ? "FILES ;;\n" : "NOTHING ;;\n", f);
            }
        }
    }
    (void)fputs("        esac\n        ;;\n", f);
}

static void write_bash(FILE *f, const moec_cli_command *const *commands)
{
    (void)fputs("# bash completion for moe-convert, made from its own table "
                "of options\n_moe_convert() {\n"
                "    local current=${COMP_WORDS[COMP_CWORD]}\n"
                "    local previous=${COMP_WORDS[COMP_CWORD-1]}\n"
                "    local command=${COMP_WORDS[1]:-} options='' values='' "
                "words=''\n    COMPREPLY=()\n",
                f);
    (void)fputs("    if [ \"$COMP_CWORD\" -eq 1 ]; then\n        words='", f);
    for (size_t i = 0; commands[i] != NULL; i++)
        (void)fprintf(f, "%s ", commands[i]->name);
    (void)fputs("--help --version --completion'\n"
                "        COMPREPLY=($(compgen -W \"$words\" -- \"$current\"))\n"
                "        return\n    fi\n    case $command in\n"
                "    --completion) COMPREPLY=($(compgen -W 'bash zsh fish' -- "
                "\"$current\")); return ;;\n",
                f);
    for (size_t i = 0; commands[i] != NULL; i++) {
        const moec_cli_command *const *subs = commands[i]->subs;
        if (subs == NULL)
            continue;
        (void)fprintf(f, "    %s) words='", commands[i]->name);
        for (; *subs != NULL; subs++)
            (void)fprintf(f, "%s ", word_of(*subs));
        (void)fputs("--help' ;;\n", f);
    }
    (void)fputs("    esac\n    if [ -n \"$words\" ]; then\n"
                "        if [ \"$COMP_CWORD\" -eq 2 ]; then\n"
                "            COMPREPLY=($(compgen -W \"$words\" -- "
                "\"$current\"))\n            return\n        fi\n"
                "        command=\"$command ${COMP_WORDS[2]}\"\n    fi\n"
                "    case $command in\n",
                f);
    for (size_t i = 0; commands[i] != NULL; i++) {
        const moec_cli_command *const *subs = commands[i]->subs;
        if (subs == NULL)
            bash_command(f, commands[i]);
        for (; subs != NULL && *subs != NULL; subs++)
            bash_command(f, *subs);
    }
    (void)fputs("    esac\n    case $values in\n"
                "    NOTHING) return ;;\n"
                "    FILES) ;;\n"
                "    ?*) COMPREPLY=($(compgen -W \"$values\" -- "
                "\"$current\")); return ;;\n"
                "    esac\n    case $current in\n"
                "    -*) COMPREPLY=($(compgen -W \"$options\" -- "
                "\"$current\")) ;;\n"
                "    *) compopt -o filenames 2>/dev/null\n"
                "       COMPREPLY=($(compgen -f -- \"$current\")) ;;\n"
                "    esac\n}\ncomplete -F _moe_convert moe-convert\n",
                f);
}

/* ------------------------------------------------------------------- zsh */

/* The argument's part of a specification. */
static void zsh_argument(FILE *f, const moec_cli_opt *o)
{
    if (!takes_word(o))
        return;
    (void)fputc(':', f);
    put_quoted(f, o->arg, ":\\");
    (void)fputc(':', f);
    if (o->kind == MOEC_KIND_CHOICE) {
        (void)fputc('(', f);
        put_words(f, o->arg);
        (void)fputc(')', f);
    } else if (takes_file(o)) {
        (void)fputs("_files", f);
    } else {
        (void)fputc(' ', f);
    }
}

static void zsh_option(FILE *f, const moec_cli_opt *o, bool letter)
{
    bool again = o->kind == MOEC_KIND_LIST || o->kind == MOEC_KIND_COUNT;
    (void)fprintf(f, "            '%s", again ? "*" : "");
    if (letter)
        (void)fprintf(f, "-%c[", o->letter);
    else
        (void)fprintf(f, "--%s[", o->name);
    put_quoted(f, o->help, "[]\\:");
    (void)fputc(']', f);
    zsh_argument(f, o);
    (void)fputs("' \\\n", f);
}

static void zsh_command(FILE *f, const moec_cli_command *cmd, const char *word)
{
    (void)fprintf(f, "        %s)\n            _arguments \\\n", word);
    for (const moec_cli_group *const *g = cmd->groups; *g != NULL; g++) {
        for (size_t i = 0; i < (*g)->n; i++) {
            zsh_option(f, &(*g)->opts[i], false);
            if ((*g)->opts[i].letter != 0)
                zsh_option(f, &(*g)->opts[i], true);
        }
    }
    (void)fputs("            '*:path:_files'\n            ;;\n", f);
}

static void zsh_list(FILE *f, const char *name,
                     const moec_cli_command *const *list)
{
    (void)fprintf(f, "    %s=(\n", name);
    for (; *list != NULL; list++) {
        (void)fprintf(f, "        '%s:", word_of(*list));
        put_quoted(f, (*list)->line, ":\\");
        (void)fputs("'\n", f);
    }
    (void)fputs("    )\n", f);
}

/* The words of a command that has commands of its own. */
static void zsh_subs(FILE *f, const moec_cli_command *cmd)
{
    (void)fprintf(f, "        %s)\n    local -a below\n", cmd->name);
    zsh_list(f, "below", cmd->subs);
    (void)fputs("            if (( CURRENT == 2 )); then\n"
                "                _describe -t commands command below\n"
                "                return\n            fi\n"
                "            shift words\n            (( CURRENT-- ))\n"
                "            case $words[1] in\n",
                f);
    for (size_t i = 0; cmd->subs[i] != NULL; i++)
        zsh_command(f, cmd->subs[i], word_of(cmd->subs[i]));
    (void)fputs("            esac\n            ;;\n", f);
}

static void write_zsh(FILE *f, const moec_cli_command *const *commands)
{
    (void)fputs("#compdef moe-convert\n"
                "# made by moe-convert from its own table of options\n"
                "_moe-convert() {\n    local -a commands\n",
                f);
    zsh_list(f, "commands", commands);
    (void)fputs("    if (( CURRENT == 2 )); then\n"
                "        _describe -t commands command commands\n"
                "        return\n    fi\n"
                "    shift words\n    (( CURRENT-- ))\n"
                "    case $words[1] in\n",
                f);
    for (size_t i = 0; commands[i] != NULL; i++) {
        if (commands[i]->subs != NULL)
            zsh_subs(f, commands[i]);
        else
            zsh_command(f, commands[i], commands[i]->name);
    }
    (void)fputs("        --completion) _values shell bash zsh fish ;;\n"
                "    esac\n}\n_moe-convert \"$@\"\n",
                f);
}

/* ------------------------------------------------------------------ fish */

static void fish_command(FILE *f, const moec_cli_command *cmd,
                         const char *above)
{
    for (const moec_cli_group *const *g = cmd->groups; *g != NULL; g++) {
        for (size_t i = 0; i < (*g)->n; i++) {
            const moec_cli_opt *o = &(*g)->opts[i];
            (void)fprintf(f,
                          "complete -c moe-convert -n "
                          "'__moe_convert_is \"%s%s%s\"' -l %s",
                          above != NULL ? above : "", above != NULL ? " " : "",
                          word_of(cmd), o->name);
            if (o->letter != 0)
                (void)fprintf(f, " -s %c", o->letter);
            if (o->kind == MOEC_KIND_CHOICE) {
                (void)fputs(" -x -a '", f);
                put_words(f, o->arg);
                (void)fputc('\'', f);
            } else if (takes_word(o)) {
                (void)fputs(takes_file(o) ? " -r" : " -x", f);
            }
            (void)fputs(" -d '", f);
            /* fish knows \' within quotes, not the way of other shells. */
            for (const char *p = o->help; *p != '\0'; p++) {
                if (*p == '\'' || *p == '\\')
                    (void)fputc('\\', f);
                (void)fputc(*p, f);
            }
            (void)fputs("'\n", f);
        }
    }
}

static void fish_word(FILE *f, const moec_cli_command *cmd, const char *when,
                      const char *above)
{
    (void)fprintf(f, "complete -c moe-convert -f -n '%s%s' -a %s -d '", when,
                  above, word_of(cmd));
    for (const char *p = cmd->line; *p != '\0'; p++) {
        if (*p == '\'' || *p == '\\')
            (void)fputc('\\', f);
        (void)fputc(*p, f);
    }
    (void)fputs("'\n", f);
}

static void write_fish(FILE *f, const moec_cli_command *const *commands)
{
    (void)fputs(
        "# fish completion for moe-convert, made from its own table "
        "of options\n"
        "function __moe_convert_is\n"
        "    set -l words (commandline -opc)\n"
        "    test (count $words) -gt 1; or return 1\n"
        "    set -l have (string join ' ' -- $words[2..-1])\n"
        "    string match -q -- $argv[1] $have\n"
        "    or string match -q -- \"$argv[1] *\" $have\n"
        "end\n"
        "function __moe_convert_needs_word\n"
        "    set -l words (commandline -opc)\n"
        "    test (count $words) -eq 1\n"
        "end\n"
        "function __moe_convert_needs_word_below\n"
        "    set -l words (commandline -opc)\n"
        "    test (count $words) -eq 2\n"
        "    and test \"$words[2]\" = $argv[1]\n"
        "end\n"
        "complete -c moe-convert -n __moe_convert_needs_word -l help "
        "-d 'the list of commands'\n"
        "complete -c moe-convert -n __moe_convert_needs_word -l version "
        "-d 'print the version'\n"
        "complete -c moe-convert -n __moe_convert_needs_word "
        "-l completion -x -a 'bash zsh fish' -d 'print a completion'\n",
        f);
    for (size_t i = 0; commands[i] != NULL; i++) {
        const moec_cli_command *cmd = commands[i];
        fish_word(f, cmd, "__moe_convert_needs_word", "");
        if (cmd->subs == NULL)
            fish_command(f, cmd, NULL);
        for (size_t k = 0; cmd->subs != NULL && cmd->subs[k] != NULL; k++) {
            fish_word(f, cmd->subs[k], "__moe_convert_needs_word_below ",
                      cmd->name);
            fish_command(f, cmd->subs[k], cmd->name);
        }
    }
}

bool moec_cli_write_completion(FILE *f, const moec_cli_command *const *commands,
                               const char *shell)
{
    if (strcmp(shell, "bash") == 0)
        write_bash(f, commands);
    else if (strcmp(shell, "zsh") == 0)
        write_zsh(f, commands);
    else if (strcmp(shell, "fish") == 0)
        write_fish(f, commands);
    else
        return false;
    return true;
}
