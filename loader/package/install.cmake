# SPDX-License-Identifier: Apache-2.0
#
# What `cmake --install` puts where. Included only where moec is the top-level
# project: a parent that builds us decides itself what it ships.

include(CMakePackageConfigHelpers)
find_package(Git QUIET)

install(TARGETS moec EXPORT moecTargets)
install(TARGETS moec_static EXPORT moecStaticTargets)
install(TARGETS moe-convert)
install(DIRECTORY loader/include/moec
  DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}"
  FILES_MATCHING PATTERN "*.h" PATTERN "*.def")
install(FILES LICENSE README.md CHANGELOG.md
  DESTINATION "${CMAKE_INSTALL_DOCDIR}")
install(FILES loader/examples/example_server.c
  DESTINATION "${CMAKE_INSTALL_DOCDIR}/examples")
install(FILES convert/cli/policy-1.schema.json mapping/families/schema.json
  DESTINATION "${CMAKE_INSTALL_DATADIR}/moec/schemas")
if(TARGET moec_mpi)
  install(TARGETS moec_mpi LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}/moec")
endif()
if(TARGET moec_cuda)
  install(TARGETS moec_cuda LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}/moec")
endif()

# Man pages and completions, where the build could make them.
if(TARGET describe)
  set(described "${PROJECT_BINARY_DIR}/described")
  install(DIRECTORY "${described}/man/" DESTINATION "${CMAKE_INSTALL_MANDIR}/man1")
  install(FILES "${described}/moe-convert"
    DESTINATION "${CMAKE_INSTALL_DATADIR}/bash-completion/completions")
  install(FILES "${described}/_moe-convert"
    DESTINATION "${CMAKE_INSTALL_DATADIR}/zsh/vendor-completions")
  install(FILES "${described}/moe-convert.fish"
    DESTINATION "${CMAKE_INSTALL_DATADIR}/fish/vendor_completions.d")
endif()

# Two export sets: who links the shared library needs none of its libraries'
# development files.
set(moec_cmake_dir "${CMAKE_INSTALL_LIBDIR}/cmake/moec")
install(EXPORT moecTargets NAMESPACE moec:: DESTINATION "${moec_cmake_dir}")
install(EXPORT moecStaticTargets NAMESPACE moec::
  DESTINATION "${moec_cmake_dir}")
configure_package_config_file(loader/package/moecConfig.cmake.in
  "${PROJECT_BINARY_DIR}/moecConfig.cmake"
  INSTALL_DESTINATION "${moec_cmake_dir}")
# SameMinorVersion below 1.0 is what version.h promises.
if(PROJECT_VERSION_MAJOR EQUAL 0)
  set(moec_compatible SameMinorVersion)
else()
  set(moec_compatible SameMajorVersion)
endif()
write_basic_package_version_file(
  "${PROJECT_BINARY_DIR}/moecConfigVersion.cmake"
  COMPATIBILITY ${moec_compatible})
install(FILES "${PROJECT_BINARY_DIR}/moecConfig.cmake"
  "${PROJECT_BINARY_DIR}/moecConfigVersion.cmake"
  DESTINATION "${moec_cmake_dir}")

# moec.pc finds its prefix from where it lies, so that a tree can be moved.
set(pc_dir "${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig")
file(RELATIVE_PATH MOEC_PC_PREFIX "${pc_dir}" "${CMAKE_INSTALL_PREFIX}")
string(REGEX REPLACE "/$" "" MOEC_PC_PREFIX "${MOEC_PC_PREFIX}")
configure_file(loader/package/moec.pc.in "${PROJECT_BINARY_DIR}/moec.pc" @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/moec.pc"
  DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig")

# The list of what is inside, as SPDX. Its time is that of the source, so that
# two builds of one source give one list.
set(MOEC_SBOM_TIME "$ENV{SOURCE_DATE_EPOCH}")
if(NOT MOEC_SBOM_TIME AND GIT_FOUND)
  execute_process(COMMAND "${GIT_EXECUTABLE}" log -1 --format=%ct
    WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}" OUTPUT_VARIABLE MOEC_SBOM_TIME
    OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
if(NOT MOEC_SBOM_TIME MATCHES "^[0-9]+$")
  set(MOEC_SBOM_TIME 315532800) # 1980: nobody knows
endif()
set(saved_epoch "$ENV{SOURCE_DATE_EPOCH}")
set(ENV{SOURCE_DATE_EPOCH} "${MOEC_SBOM_TIME}")
string(TIMESTAMP MOEC_SBOM_CREATED "%Y-%m-%dT%H:%M:%SZ" UTC)
if(saved_epoch)
  set(ENV{SOURCE_DATE_EPOCH} "${saved_epoch}")
else()
  unset(ENV{SOURCE_DATE_EPOCH})
endif()
# What is linked, as pkg-config found it: id, name, prefix of its variables,
# licence.
foreach(row
    "jansson,Jansson,MOEC_JANSSON,MIT"
    "crypto,OpenSSL libcrypto,MOEC_CRYPTO,Apache-2.0"
    "xxhash,xxHash,MOEC_XXHASH,BSD-2-Clause"
    "yaml,LibYAML,MOEC_YAML,MIT"
    "curl,curl,MOEC_CURL,curl"
    "expat,Expat,MOEC_EXPAT,MIT")
  string(REPLACE "," ";" row "${row}")
  list(GET row 0 id)
  list(GET row 1 name)
  list(GET row 2 prefix)
  list(GET row 3 licence)
  if(NOT ${prefix}_FOUND)
    continue()
  endif()
  string(APPEND MOEC_SBOM_PACKAGES ",
    {
      \"SPDXID\": \"SPDXRef-${id}\",
      \"name\": \"${name}\",
      \"versionInfo\": \"${${prefix}_VERSION}\",
      \"downloadLocation\": \"NOASSERTION\",
      \"filesAnalyzed\": false,
      \"licenseConcluded\": \"${licence}\",
      \"licenseDeclared\": \"${licence}\",
      \"copyrightText\": \"NOASSERTION\",
      \"supplier\": \"NOASSERTION\",
      \"comment\": \"linked dynamically; the version of the build machine\"
    }")
  string(APPEND MOEC_SBOM_LINKS ",
    {\"spdxElementId\": \"SPDXRef-moec\", \"relationshipType\": \"DYNAMIC_LINK\", \"relatedSpdxElement\": \"SPDXRef-${id}\"}")
endforeach()
configure_file(loader/package/moec.spdx.json.in
  "${PROJECT_BINARY_DIR}/moec.spdx.json" @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/moec.spdx.json"
  DESTINATION "${CMAKE_INSTALL_DOCDIR}")

# `cmake --build DIR --target dist`: the source as one file, the same bytes
# from the same commit on every machine (gzip -n: no name, no time).
if(GIT_FOUND)
  set(dist "moec-${PROJECT_VERSION}")
  add_custom_target(dist
    COMMAND sh "${PROJECT_SOURCE_DIR}/loader/package/dist.sh" HEAD
      "${PROJECT_BINARY_DIR}/${dist}.tar.gz"
    WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}" VERBATIM)
endif()
