# Installs headers and libfdma.so for C users: by find_package(fdma) and by pkg-config. The Python package installs its
# extension by itself (component python), so nothing here goes into a wheel.
include(CMakePackageConfigHelpers)

set(config_dir ${CMAKE_INSTALL_LIBDIR}/cmake/fdma)

install(
  TARGETS fdma
  EXPORT fdmaTargets
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT runtime NAMELINK_COMPONENT dev)
install(DIRECTORY include/fdma DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT dev FILES_MATCHING PATTERN "*.h")
install(EXPORT fdmaTargets NAMESPACE fdma:: DESTINATION ${config_dir} COMPONENT dev)

configure_package_config_file(cmake/fdmaConfig.cmake.in fdmaConfig.cmake INSTALL_DESTINATION ${config_dir})
write_basic_package_version_file(fdmaConfigVersion.cmake COMPATIBILITY SameMajorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/fdmaConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/fdmaConfigVersion.cmake
        DESTINATION ${config_dir} COMPONENT dev)

# Paths relative to where fdma.pc lies keep an installed tree movable. Absolute install directories are kept as given.
foreach(kind IN ITEMS lib include)
  string(TOUPPER ${kind} upper)
  if(IS_ABSOLUTE ${CMAKE_INSTALL_${upper}DIR})
    set(pc_${kind}dir ${CMAKE_INSTALL_${upper}DIR})
  else()
    set(pc_${kind}dir "\${prefix}/${CMAKE_INSTALL_${upper}DIR}")
  endif()
endforeach()
if(IS_ABSOLUTE ${CMAKE_INSTALL_LIBDIR})
  set(pc_prefix ${CMAKE_INSTALL_PREFIX})
else()
  file(RELATIVE_PATH to_prefix /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
  string(REGEX REPLACE "/$" "" to_prefix "${to_prefix}")
  set(pc_prefix "\${pcfiledir}/${to_prefix}")
endif()
configure_file(cmake/fdma.pc.in fdma.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/fdma.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig COMPONENT dev)
