#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Includes go one way:
#   base <- loader <- mapping <- validate <- load <- convert <- convert/cli
# kernels sees base and <moec/types.h>, and load/device_gds.c the plug-in's
# table; convert/cli sees public headers and
# convert/ only. OpenSSL, xxHash and jansson stand where they are allowed, and
# nobody includes a .c. Each finding is "FILE:LINE: sentence".
#
# usage: check_includes.sh [ROOT]
set -eu
cd "${1:-$(dirname "$0")/../..}"

dirs=
for d in loader mapping validate load store convert kernels tests; do
    [ ! -d "$d" ] || dirs="$dirs $d"
done
# shellcheck disable=SC2086 # a list of words
find $dirs \( -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' \
    -o -name '*.cc' -o -name '*.cpp' \) -type f | LC_ALL=C sort |
awk '
# The level of a file of the tree; a file sees its own level and below.
function level(path) {
    if (path ~ /^loader\/include\/moec\/(error|types|version)\.h$/) return 0
    if (path ~ /^loader\/include\/moec\/rules\.def$/)   return 0
    if (path ~ /^loader\/include\/moec\/(loader|sign)\.h$/)    return 1
    if (path ~ /^loader\/include\/moec\/(mapping|record|study)\.h$/)   return 2
    if (path ~ /^loader\/include\/moec\/validate\.h$/)  return 3
    if (path ~ /^loader\/include\/moec\/(device|exchange|kernels)\.h$/) return 0
    if (path ~ /^loader\/include\/moec\/(device_load|load)\.h$/)      return 4
    if (path ~ /^loader\/include\/moec\/moec\.h$/)      return 6
    if (path ~ /^loader\/include\/moec\//)              return -1
    if (path ~ /^loader\/examples\//) return 7
    if (path ~ /^loader\/base\//) return 0
    if (path ~ /^loader\//)       return 1
    if (path ~ /^mapping\//)      return 2
    if (path ~ /^validate\//)     return 3
    if (path ~ /^load\//)         return 4
    if (path ~ /^store\//)        return 2
    if (path ~ /^convert\/cli\//) return 6
    if (path ~ /^convert\//)      return 5
    if (path ~ /^kernels\//)      return 0
    return 7
}
function finding(text) {
    printf "%s:%d: %s\n", file, line, text
    bad = 1
}
# The path that an include means: as written from one of the include
# directories, or beside the includer.
function resolve(spec,    n, i, dir, tries) {
    dir = file
    sub(/\/[^\/]*$/, "", dir)
    n = split(dir " loader/include loader mapping validate load" \
              " store convert convert/cli kernels tests tests/support", tries, " ")
    for (i = 1; i <= n; i++)
        if ((tries[i] "/" spec) in exists)
            return tries[i] "/" spec
    return ""
}
function check_ours(spec,    to, from_level, to_level) {
    to = resolve(spec)
    if (to == "") {
        finding("\"" spec "\" is no header of this tree")
        return
    }
    from_level = level(file)
    to_level = level(to)
    if (to_level < 0)
        finding("give " to " a level in tests/house/check_includes.sh")
    else if (file ~ /^kernels\// && to !~ /^kernels\// &&
             to !~ /^loader\/base\// &&
             to !~ /^loader\/include\/moec\/(device|kernels|types|error|version)\.h$/)
        finding("kernels sees base and types.h only, not " to)
    else if (to ~ /^kernels\// && file !~ /^(kernels|tests)\// &&
             file " " to != "load/device_gds.c kernels/plugin.h")
        finding("call kernels through <moec/kernels.h>, not " to)
    else if (to ~ /^store\// && file !~ /^(store|tests|convert\/cli)\//)
        finding("only the command line opens a socket: " to)
    else if (file ~ /^convert\/cli\// && to !~ /^convert\// &&
             to != "store/web.h" &&
             to !~ /^loader\/include\//)
        finding("convert/cli sees public headers and convert/ only, not " to)
    else if (to_level > from_level)
        finding("includes go base <- loader <- mapping <- validate <- " \
                "load <- convert <- convert/cli: " to " is above this file")
    else if (file ~ /^loader\/include\// && to !~ /^loader\/include\//)
        finding("a public header includes public headers only, not " to)
}
function check_library(spec) {
    if (file ~ /^tests\//)
        return
    if (spec ~ /^openssl\// && file != "loader/base/digest.c" &&
        file !~ /\/sign[^\/]*\.c$/ && file !~ /^store\//)
        finding("<" spec "> belongs in loader/base/digest.c, sign*.c and " \
                "store/ only")
    if (spec ~ /^(curl\/|expat)/ && file !~ /^store\//)
        finding("<" spec "> belongs in store/ only")
    if (spec ~ /^xxh/ && file !~ /^loader\/base\/[^\/]*\.c$/)
        finding("<" spec "> belongs in loader/base/*.c only")
    if (spec == "jansson.h" &&
        (file ~ /^loader\/include\// || file ~ /^kernels\// ||
         file ~ /\/(jsonscan|safetensors|index|ckpt|execute)\.[ch]$/ ||
         file ~ /\/(slots_file|sources_file)\.c$/))
        finding("<jansson.h> is for small documents, never here: shard " \
                "headers and indexes go through jsonscan.c")
    if (spec == "yaml.h" && file != "mapping/placement_yaml.c")
        finding("<yaml.h> belongs in mapping/placement_yaml.c only")
    if (spec ~ /^cuda/ && file !~ /\/cuda\//)
        finding("<" spec "> belongs in */cuda/ only")
}
{ exists[$0] = 1; files[++n] = $0 }
END {
    exists["loader/include/moec/rules.def"] = 1
    for (i = 1; i <= n; i++) {
        file = files[i]
        line = 0
        while ((getline text < file) > 0) {
            line++
            if (text !~ /^[ \t]*#[ \t]*include[ \t]*[<"]/)
                continue
            spec = text
            sub(/^[^<"]*[<"]/, "", spec)
            sub(/[>"].*/, "", spec)
            count++
            if (spec ~ /\.c$/)
                finding("includes a .c file: " spec)
            else if (text ~ /include[ \t]*"/ || spec ~ /^moec\//) {
                if (file !~ /^tests\/bench\/peers\//)
                    check_ours(spec)
            } else
                check_library(spec)
        }
        close(file)
    }
    if (!n || !count) {
        print "check_includes: found no includes to check"
        exit 1
    }
    if (!bad)
        printf "%d includes in %d files\n", count, n
    exit bad
}'
