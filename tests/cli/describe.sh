#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Man pages and completions: every option that --help knows is in them, groff
# has no warning, and each shell that is here completes. From the environment:
# MOEC_CONVERT.
set -eu
program=$MOEC_CONVERT
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
mkdir "$tmp/man" "$tmp/bin" "$tmp/empty"
ln -s "$program" "$tmp/bin/moe-convert"
PATH=$tmp/bin:$PATH
bad=0
complain() {
    echo "$*"
    bad=1
}

moe-convert --man "$tmp/man"
for shell in bash zsh fish; do
    moe-convert --completion $shell >"$tmp/$shell"
done
moe-convert --completion csh 2>/dev/null && complain "csh is no shell of ours"
moe-convert --man "$tmp/absent" 2>/dev/null && complain "no directory, no error"

# The pages, their commands and options.
n=0
for page in "$tmp"/man/*.1; do
    n=$((n + 1))
    name=$(basename "$page" .1)
    words=${name#moe-convert}
    words=${words#-}
    # A hyphen of a page's name is the command's own, or stands before the
    # word of a command below it.
    # shellcheck disable=SC2086 # the words of a command
    moe-convert $words --help >/dev/null 2>&1 ||
        words=$(echo "$words" | tr - ' ')
    # shellcheck disable=SC2086 # the words of a command
    moe-convert $words --help | sed -n 's/^ *\(-., \)\{0,1\} *\(--[a-z0-9-]*\).*/\2/p' |
        sort -u >"$tmp/options"
    sed 's/\\-/-/g' "$page" >"$tmp/plain"
    grep -o -e 'fB--[a-z0-9-]*' "$tmp/plain" | cut -c 3- | sort -u >"$tmp/there"
    missing=$(comm -23 "$tmp/options" "$tmp/there")
    [ -z "$missing" ] || complain "$name: not in its page: $missing"
    cat "$tmp/options" >>"$tmp/all"
    if command -v groff >/dev/null 2>&1; then
        groff -man -Tascii -ww -z "$page" >"$tmp/warnings" 2>&1 || :
        [ ! -s "$tmp/warnings" ] || complain "$(cat "$tmp/warnings")"
    fi
done
[ $n -ge 12 ] || complain "$n pages"
sort -u "$tmp/all" >"$tmp/options"
for shell in bash zsh fish; do
    # fish says -l name; the others say --name.
    sed 's/ -l / --/g' "$tmp/$shell" | grep -o -e '--[a-z0-9][a-z0-9-]*' |
        sort -u >"$tmp/there"
    missing=$(comm -23 "$tmp/options" "$tmp/there")
    [ -z "$missing" ] || complain "$shell: missing: $missing"
done

# What the rules tell people to type is there.
moe-convert explain --list --json >"$tmp/rules"
grep -o -e '--[a-z][a-z0-9-]*' "$tmp/rules" | sort -u >"$tmp/there"
missing=$(comm -13 "$tmp/options" "$tmp/there")
[ -z "$missing" ] || complain "rules name options that no command has: $missing"

# same WHAT GOT WANTED...: the words, in any order, at least.
has() {
    what=$1 got=$2
    shift 2
    for word; do
        echo "$got" | tr -s ' \t' '\n' | grep -qx -e "$word" ||
            complain "$what: does not offer $word: $got"
    done
}

if command -v bash >/dev/null 2>&1; then
    bash -n "$tmp/bash" || complain "bash: does not parse"
    completes() { # WORDS...: what bash offers for the last one
        bash -c '. "$0"; COMP_WORDS=(moe-convert "$@"); COMP_CWORD=$#
            _moe_convert; echo "${COMPREPLY[*]}"' "$tmp/bash" "$@"
    }
    has bash "$(completes '')" check convert placement
    has bash "$(completes ch)" check
    has bash "$(completes check --level '')" headers digests kernels
    has bash "$(completes check --mat)" --matrix
    has bash "$(completes placement '')" check
    has bash "$(completes placement check --so)" --source
    [ -z "$(completes check --ep '')" ] || complain "bash: offers a number"
fi
if command -v fish >/dev/null 2>&1; then
    fish=$(command -v fish)
    offers() {
        (cd "$tmp/empty" && HOME=$tmp XDG_CONFIG_HOME=$tmp XDG_DATA_HOME=$tmp \
            "$fish" --no-config -c "source $tmp/fish; complete -C '$1'")
    }
    has fish "$(offers 'moe-convert ')" check convert placement
    has fish "$(offers 'moe-convert check --level ')" headers digests kernels
    has fish "$(offers 'moe-convert check --mat')" --matrix
    has fish "$(offers 'moe-convert placement ')" check
    has fish "$(offers 'moe-convert placement check --so')" --source
    offers 'moe-convert check --so' | grep -q planner &&
        complain "fish: offers another command's option"
fi
if command -v zsh >/dev/null 2>&1; then
    zsh -n "$tmp/zsh" || complain "zsh: does not parse"
    mkdir "$tmp/fpath"
    cp "$tmp/zsh" "$tmp/fpath/_moe-convert"
    # What compadd is given, without a terminal: the completion runs as the
    # function of a widget would, with compadd replaced.
    list() {
        zsh -f -c '
            fpath=($1 $fpath)
            autoload -Uz compinit && compinit -u -d $1/dump
            shift
            words=(moe-convert "$@") CURRENT=$(( $# + 1 ))
            _describe() { print -l ${${(P)argv[-1]}%%:*} }
            _arguments() { print -rl -- "$@" }
            _values() { print -l $argv[2,-1] }
            autoload +X _moe-convert
            _moe-convert' zsh "$tmp/fpath" "$@"
    }
    has zsh "$(list '')" check convert placement
    has zsh "$(list placement '')" check
    list check --level '' | grep -q -- '--level\[.*:(headers digests kernels)' ||
        complain "zsh: --level has no words"
    list placement check '' | grep -q -- '--source\[' ||
        complain "zsh: --source is missing"
fi
exit $bad
