# SPDX-License-Identifier: Apache-2.0
#
# Turn JSON files into one C file that defines what families_builtin.h declares.
# Run at build time:
#   cmake -DOUT=families_builtin.c "-DFILES=a.json;b.json" -P embed.cmake
# An array of numbers and no string literal: C17 promises only 4095 bytes of
# the latter, and -Wpedantic says so.

if(NOT OUT OR NOT FILES)
  message(FATAL_ERROR "usage: cmake -DOUT=FILE -DFILES=LIST -P embed.cmake")
endif()

set(arrays "")
set(table "")
foreach(file IN LISTS FILES)
  get_filename_component(name "${file}" NAME_WE)
  if(NOT name MATCHES "^[a-z0-9_]+$")
    message(FATAL_ERROR "${file}: name a family with a-z, 0-9 and _")
  endif()
  file(READ "${file}" text)
  set(tested none)
  if(text MATCHES "\n  \"tested\": \"([a-z]+)\"")
    set(tested "${CMAKE_MATCH_1}")
  endif()
  file(READ "${file}" hex HEX)
  string(LENGTH "${hex}" digits)
  math(EXPR bytes "${digits} / 2")
  if(bytes EQUAL 0)
    message(FATAL_ERROR "${file}: is empty")
  endif()
  string(REGEX REPLACE "(..)" "0x\\1," hex "${hex}")
  # CMake's regular expressions know no {12}: spell out a line of 12 bytes.
  set(b "0x..,")
  string(REGEX REPLACE "(${b}${b}${b}${b}${b}${b}${b}${b}${b}${b}${b}${b})"
         "\\1\n    " hex "${hex}")
  string(APPEND arrays
         "static const unsigned char text_${name}[] = {\n    ${hex}0x00};\n\n")
  string(APPEND table "    {\"${name}\", \"${tested}\", "
         "(const char *)text_${name}, ${bytes}},\n")
endforeach()
list(LENGTH FILES count)

file(WRITE "${OUT}.tmp" "/* SPDX-License-Identifier: Apache-2.0 */
/* Made by mapping/embed.cmake. Do not edit. */

#include \"families_builtin.h\"

${arrays}const struct moec_builtin_family moec_builtin_families[] = {
${table}};

const size_t moec_n_builtin_families = ${count};
")
file(RENAME "${OUT}.tmp" "${OUT}")
