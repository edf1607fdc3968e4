# Finds the headers of CUTLASS, which CUDA kernels are written with; nothing of it is linked or installed.
#
# Looked for in this order, the first hit that is new enough is taken:
#   1. FDMA_CUTLASS_DIR: a folder with include/, the include folder itself, or a nvidia-cutlass wheel (.whl). When it is
#      set, nothing else is tried.
#   2. a copy that an earlier run of step 5 left in the build tree
#   3. a system copy: <prefix>/include of the usual prefixes, of CMAKE_PREFIX_PATH and of the CUDA toolkit
#   4. the package nvidia-cutlass in the Python of this build
#   5. the wheel of that package, downloaded by pip into the build tree; its dependencies are not needed
#
# Result: the imported target fdma::cutlass, CutlassHeaders_INCLUDE_DIR and CutlassHeaders_VERSION.

set(CUTLASS_WHEEL_VERSION 4.2.0.0)  # what step 5 downloads

# Appends one line for people to the report of places tried.
macro(cutlass_report line)
  string(APPEND cutlass_report "\n  ${line}")
endmacro()

# out: the version of the headers in `include`, "" when they are none.
function(cutlass_read_version include out)
  set(${out} "" PARENT_SCOPE)
  if(EXISTS ${include}/cutlass/version.h AND EXISTS ${include}/cute/tensor.hpp)
    file(STRINGS ${include}/cutlass/version.h lines REGEX "^#define CUTLASS_(MAJOR|MINOR|PATCH) [0-9]+")
    list(TRANSFORM lines REPLACE "[^0-9]*([0-9]+).*" "\\1")
    list(JOIN lines "." version)
    set(${out} "${version}" PARENT_SCOPE)
  endif()
endfunction()

# Takes `include` when it is set to headers that are new enough, and reports it otherwise. `place` names it for people.
macro(cutlass_try place include)
  if(NOT CutlassHeaders_INCLUDE_DIR)
    cutlass_read_version("${include}" cutlass_version)
    if(NOT cutlass_version)
      cutlass_report("${place}: no cutlass/version.h and cute/tensor.hpp in '${include}'")
    elseif(cutlass_version VERSION_LESS CutlassHeaders_FIND_VERSION)
      cutlass_report("${place}: version ${cutlass_version} in '${include}'")
    else()
      set(CutlassHeaders_INCLUDE_DIR "${include}")
      set(CutlassHeaders_VERSION "${cutlass_version}")
    endif()
  endif()
endmacro()

# Unpacks the headers of a wheel into the build tree.
function(cutlass_unpack_wheel wheel)
  file(ARCHIVE_EXTRACT INPUT ${wheel} DESTINATION ${cutlass_build_dir} PATTERNS "cutlass_library/source/include/*")
endfunction()

function(cutlass_find_package_dir out)
  execute_process(
    # -I: the packages of the environment itself, also when a build front end isolates the build from them.
    COMMAND
      ${Python_EXECUTABLE} -I -c
      "from importlib.util import find_spec; spec = find_spec('cutlass_library'); print(spec.submodule_search_locations[0] if spec else '')"
    OUTPUT_VARIABLE location
    OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  set(${out} "${location}" PARENT_SCOPE)
endfunction()

function(cutlass_download_wheel out error_out)
  message(STATUS "fdma: downloading the headers of CUTLASS (nvidia-cutlass ${CUTLASS_WHEEL_VERSION})")
  execute_process(
    COMMAND ${Python_EXECUTABLE} -I -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all:
            --dest ${cutlass_build_dir} nvidia-cutlass==${CUTLASS_WHEEL_VERSION}
    RESULT_VARIABLE result
    OUTPUT_VARIABLE log
    ERROR_VARIABLE log)
  file(GLOB wheels ${cutlass_build_dir}/nvidia_cutlass-*.whl)
  string(STRIP "${log}" log)
  string(REPLACE "\n" "\n      " log "${log}")
  set(${error_out} "${log}" PARENT_SCOPE)
  set(${out} "${wheels}" PARENT_SCOPE)
endfunction()

set(cutlass_report "")
set(cutlass_build_dir ${PROJECT_BINARY_DIR}/cutlass)
set(cutlass_build_include ${cutlass_build_dir}/cutlass_library/source/include)
set(CutlassHeaders_INCLUDE_DIR "")
set(CutlassHeaders_VERSION "")

if(FDMA_CUTLASS_DIR)
  if(FDMA_CUTLASS_DIR MATCHES "\\.whl$" AND EXISTS ${FDMA_CUTLASS_DIR})
    file(REMOVE_RECURSE ${cutlass_build_include})
    cutlass_unpack_wheel(${FDMA_CUTLASS_DIR})
    cutlass_try("FDMA_CUTLASS_DIR=${FDMA_CUTLASS_DIR}" ${cutlass_build_include})
  else()
    cutlass_try("FDMA_CUTLASS_DIR" ${FDMA_CUTLASS_DIR}/include)
    cutlass_try("FDMA_CUTLASS_DIR" ${FDMA_CUTLASS_DIR})
  endif()
else()
  cutlass_try("build tree" ${cutlass_build_include})

  if(NOT CutlassHeaders_INCLUDE_DIR)
    find_path(cutlass_system_include cutlass/version.h HINTS ${CUDAToolkit_INCLUDE_DIRS} NO_CACHE)
    if(cutlass_system_include)
      cutlass_try("system" ${cutlass_system_include})
    else()
      cutlass_report("system: no cutlass/version.h on the include paths, CMAKE_PREFIX_PATH or in the CUDA toolkit")
    endif()
  endif()

  if(NOT CutlassHeaders_INCLUDE_DIR)
    find_package(Python COMPONENTS Interpreter QUIET)
    if(NOT Python_EXECUTABLE)
      cutlass_report("Python: no interpreter, so neither an installed nor a downloaded nvidia-cutlass")
    else()
      cutlass_find_package_dir(cutlass_package_dir)
      if(cutlass_package_dir)
        cutlass_try("package nvidia-cutlass" ${cutlass_package_dir}/source/include)
      else()
        cutlass_report("package nvidia-cutlass: not installed for ${Python_EXECUTABLE}")
      endif()
    endif()
  endif()

  if(NOT CutlassHeaders_INCLUDE_DIR AND Python_EXECUTABLE)
    cutlass_download_wheel(cutlass_wheel cutlass_download_log)
    if(cutlass_wheel)
      cutlass_unpack_wheel(${cutlass_wheel})
      cutlass_try("downloaded wheel" ${cutlass_build_include})
    else()
      cutlass_report("download of nvidia-cutlass ${CUTLASS_WHEEL_VERSION} by pip failed:\n      ${cutlass_download_log}")
    endif()
  endif()
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(
  CutlassHeaders
  REQUIRED_VARS CutlassHeaders_INCLUDE_DIR
  VERSION_VAR CutlassHeaders_VERSION
  REASON_FAILURE_MESSAGE
    "CUTLASS ${CutlassHeaders_FIND_VERSION} or newer is needed by the CUDA kernels. Tried:${cutlass_report}\nGive -DFDMA_CUTLASS_DIR=<folder with include/, include folder, or nvidia-cutlass wheel>, or build without CUDA: -DFDMA_CUDA=OFF"
)

if(CutlassHeaders_FOUND AND NOT TARGET fdma::cutlass)
  add_library(fdma::cutlass INTERFACE IMPORTED)
  set_target_properties(fdma::cutlass PROPERTIES INTERFACE_SYSTEM_INCLUDE_DIRECTORIES ${CutlassHeaders_INCLUDE_DIR}
                                                 INTERFACE_INCLUDE_DIRECTORIES ${CutlassHeaders_INCLUDE_DIR})
endif()
