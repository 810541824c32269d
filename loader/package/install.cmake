# SPDX-License-Identifier: Apache-2.0
#
# What `cmake --install` puts where. Included only where moec is the top-level
# project: a parent that builds us decides itself what it ships.

include(CMakePackageConfigHelpers)

install(TARGETS moec EXPORT moecTargets)
install(TARGETS moec_static EXPORT moecStaticTargets)
install(TARGETS moe-convert)
install(DIRECTORY loader/include/moec
  DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}"
  FILES_MATCHING PATTERN "*.h" PATTERN "*.def")
install(FILES LICENSE README.md CHANGELOG.md
  DESTINATION "${CMAKE_INSTALL_DOCDIR}")

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
