# Installs the build tree `BUILD_DIR` below `WORK_DIR`, moves the installed tree (it has to be movable), then configures,
# builds and runs the consumer project `SOURCE_DIR` against it, found by `FIND_WITH` (cmake or pkg-config).
function(check_run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE result OUTPUT_VARIABLE log ERROR_VARIABLE log)
  list(JOIN ARGN " " command)
  message(STATUS "${command}\n${log}")
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "failed (${result}): ${command}")
  endif()
endfunction()

file(REMOVE_RECURSE ${WORK_DIR})
file(MAKE_DIRECTORY ${WORK_DIR})
foreach(component IN ITEMS runtime dev)
  check_run(${CMAKE_COMMAND} --install ${BUILD_DIR} --config "${CONFIG}" --component ${component} --prefix ${WORK_DIR}/first)
endforeach()
file(RENAME ${WORK_DIR}/first ${WORK_DIR}/prefix)

file(GLOB_RECURSE pc_file ${WORK_DIR}/prefix/*/fdma.pc)
get_filename_component(pc_dir "${pc_file}" DIRECTORY)
get_filename_component(library_dir "${pc_dir}" DIRECTORY)
set(ENV{PKG_CONFIG_PATH} "${pc_dir}")
# pkg-config leaves the run path to its user; find_package brings it.
set(ENV{LD_LIBRARY_PATH} "${library_dir}")
check_run(
  ${CMAKE_COMMAND} -S ${SOURCE_DIR} -B ${WORK_DIR}/build -G ${GENERATOR} -DFIND_WITH=${FIND_WITH}
  -DCMAKE_PREFIX_PATH=${WORK_DIR}/prefix -DCMAKE_C_COMPILER=${C_COMPILER} -DCMAKE_BUILD_TYPE=Release)
check_run(${CMAKE_COMMAND} --build ${WORK_DIR}/build --config Release)
check_run(${WORK_DIR}/build/consumer)
