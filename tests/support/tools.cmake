# SPDX-License-Identifier: Apache-2.0
#
# Targets for people: format, tidy, coverage. Each exists only where its tool
# does; none is part of `all`.

find_program(MOEC_CLANG_FORMAT NAMES clang-format-14 clang-format)
if(MOEC_CLANG_FORMAT)
  add_custom_target(format
    COMMAND sh tests/house/check_format.sh --fix
    WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}"
    VERBATIM)
endif()

# One process a file: clang-tidy 14 given several sees uninitialised va_lists
# that are none (LLVM 41311). The extra argument forgives gcc's own flags.
find_program(MOEC_RUN_CLANG_TIDY NAMES run-clang-tidy-14 run-clang-tidy)
if(MOEC_RUN_CLANG_TIDY)
  add_custom_target(tidy
    COMMAND "${MOEC_RUN_CLANG_TIDY}" -quiet -p "${PROJECT_BINARY_DIR}"
            -extra-arg=-Wno-unknown-warning-option
            "/(loader|mapping|validate|load|store|convert|kernels)/.*[.]c$"
    WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}"
    DEPENDS moec_mapping # the embedded families are a source too
    VERBATIM USES_TERMINAL)
endif()

# clang-tidy, cppcheck and gcc -fanalyzer, each with what is committed for it.
add_custom_target(static-checks
  COMMAND sh tests/house/static_checks.sh "${PROJECT_BINARY_DIR}"
  WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}"
  DEPENDS moec_mapping
  VERBATIM USES_TERMINAL)

# Counts of an earlier run would count again.
find_program(MOEC_GCOVR NAMES gcovr)
find_program(MOEC_PYTHON3 NAMES python3)
if(MOEC_COVERAGE AND MOEC_GCOVR AND MOEC_PYTHON3)
  include(ProcessorCount)
  ProcessorCount(cpus)
  add_custom_target(coverage
    COMMAND find . -name "*.gcda" -delete
    COMMAND "${CMAKE_CTEST_COMMAND}" --output-on-failure --parallel ${cpus}
    COMMAND "${MOEC_GCOVR}" --root "${PROJECT_SOURCE_DIR}"
            --exclude "build/" --exclude "tests/"
            --print-summary --html-details coverage.html
    COMMAND "${MOEC_PYTHON3}"
            "${PROJECT_SOURCE_DIR}/tests/support/branch_coverage.py"
            "${PROJECT_BINARY_DIR}" --least 95
    WORKING_DIRECTORY "${PROJECT_BINARY_DIR}"
    VERBATIM USES_TERMINAL)
endif()
