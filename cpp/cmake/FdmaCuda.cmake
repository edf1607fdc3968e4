# Decides whether this build has CUDA kernels and for which GPUs.
#
#   FDMA_CUDA = AUTO  CUDA when both a CUDA compiler and an NVIDIA GPU are found, for the architecture of that GPU alone
#               ON    CUDA for FDMA_CUDA_ARCHS; needs a CUDA compiler, needs no GPU
#               OFF   no CUDA: neither the compiler nor the driver is looked at
#
# Results: FDMA_WITH_CUDA, FDMA_CUDA_ARCHS_RESOLVED (numbers without suffix, "80;90" for instance), FDMA_BUILD_CUDA (one
# line about it) and, with CUDA, the language CUDA, CUDA::cudart_static and the headers of CUTLASS as fdma::cutlass.

set(FDMA_MINIMUM_CUDA_ARCH 80)  # mma.sync with bf16 and cp.async begin with Ampere

# out: the distinct architectures of the GPUs in this machine, "" when there is none; reason: why there is none.
function(fdma_find_gpu_archs out reason)
  set(${out} "" PARENT_SCOPE)
  find_program(FDMA_NVIDIA_SMI nvidia-smi DOC "Lists the GPUs of this machine for FDMA_CUDA=AUTO")
  mark_as_advanced(FDMA_NVIDIA_SMI)
  if(NOT FDMA_NVIDIA_SMI)
    set(${reason} "no NVIDIA GPU: nvidia-smi is not on the PATH" PARENT_SCOPE)
    return()
  endif()
  execute_process(
    COMMAND ${FDMA_NVIDIA_SMI} --query-gpu=compute_cap --format=csv,noheader
    OUTPUT_VARIABLE capabilities
    ERROR_VARIABLE error
    RESULT_VARIABLE result)
  string(REGEX MATCHALL "[0-9]+\\.[0-9]+" capabilities "${capabilities}")
  if(NOT result EQUAL 0 OR NOT capabilities)
    string(STRIP "${error}" error)
    set(${reason} "no NVIDIA GPU: nvidia-smi lists none ${error}" PARENT_SCOPE)
    return()
  endif()
  string(REPLACE "." "" archs "${capabilities}")
  list(REMOVE_DUPLICATES archs)
  foreach(arch IN LISTS archs)
    if(arch LESS FDMA_MINIMUM_CUDA_ARCH)
      set(${reason} "GPU of architecture ${arch}: the kernels need ${FDMA_MINIMUM_CUDA_ARCH} or newer" PARENT_SCOPE)
      return()
    endif()
  endforeach()
  set(${out} "${archs}" PARENT_SCOPE)
endfunction()

# out: FDMA_CUDA_ARCHS checked and without suffixes. Kernels that need arch-specific instructions add their "a".
function(fdma_parse_cuda_archs out)
  set(archs "")
  foreach(arch IN LISTS FDMA_CUDA_ARCHS)
    if(NOT arch MATCHES "^([0-9]+)a?$" OR CMAKE_MATCH_1 LESS FDMA_MINIMUM_CUDA_ARCH)
      message(FATAL_ERROR "FDMA_CUDA_ARCHS has the entry '${arch}'. Accepted are numbers from ${FDMA_MINIMUM_CUDA_ARCH} "
                          "with an optional 'a', separated by semicolons: 80;90a for instance.")
    endif()
    list(APPEND archs ${CMAKE_MATCH_1})
  endforeach()
  if(NOT archs)
    message(FATAL_ERROR "FDMA_CUDA_ARCHS is empty. Name at least one architecture (80;90a), or use FDMA_CUDA=OFF.")
  endif()
  list(REMOVE_DUPLICATES archs)
  set(${out} "${archs}" PARENT_SCOPE)
endfunction()

set(FDMA_WITH_CUDA OFF)
set(FDMA_CUDA_ARCHS_RESOLVED "")

if(FDMA_CUDA STREQUAL "OFF")
  set(FDMA_CUDA_REASON "FDMA_CUDA=OFF")
elseif(FDMA_CUDA STREQUAL "ON")
  include(CheckLanguage)
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    message(FATAL_ERROR "FDMA_CUDA=ON, but no CUDA compiler works here. Put nvcc on the PATH, or name it with the "
                        "environment variable CUDACXX or -DCMAKE_CUDA_COMPILER=/usr/local/cuda/bin/nvcc. "
                        "For a library without GPU kernels use -DFDMA_CUDA=OFF.")
  endif()
  fdma_parse_cuda_archs(FDMA_CUDA_ARCHS_RESOLVED)
  set(FDMA_WITH_CUDA ON)
elseif(FDMA_CUDA STREQUAL "AUTO")
  fdma_find_gpu_archs(FDMA_CUDA_ARCHS_RESOLVED FDMA_CUDA_REASON)
  if(FDMA_CUDA_ARCHS_RESOLVED)
    include(CheckLanguage)
    check_language(CUDA)
    if(CMAKE_CUDA_COMPILER)
      set(FDMA_WITH_CUDA ON)
    else()
      set(FDMA_CUDA_REASON "no CUDA compiler: nvcc is not on the PATH")
    endif()
  endif()
else()
  message(FATAL_ERROR "FDMA_CUDA is '${FDMA_CUDA}'. Accepted are AUTO, ON and OFF.")
endif()

if(FDMA_WITH_CUDA)
  foreach(head_dim IN LISTS FDMA_HEAD_DIMS)
    math(EXPR rest "${head_dim} % 8")
    if(rest OR head_dim LESS 8 OR head_dim GREATER 256)
      message(FATAL_ERROR "FDMA_HEAD_DIMS has the entry '${head_dim}'. Accepted are multiples of 8 from 8 to 256.")
    endif()
  endforeach()
  if(NOT EXISTS ${PROJECT_SOURCE_DIR}/cpp/kernels/CMakeLists.txt)
    message(FATAL_ERROR "This source tree has no CUDA kernels: cpp/kernels/CMakeLists.txt is missing. "
                        "Use -DFDMA_CUDA=OFF.")
  endif()
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES OFF)  # each kernel library names its own
  endif()
  enable_language(CUDA)
  set(CMAKE_CUDA_STANDARD 17)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  set(CMAKE_CUDA_EXTENSIONS OFF)
  find_package(CUDAToolkit REQUIRED)
  find_package(CutlassHeaders 4.2 REQUIRED)
  list(JOIN FDMA_CUDA_ARCHS_RESOLVED ", " archs)
  list(JOIN FDMA_HEAD_DIMS ", " head_dims)
  set(FDMA_BUILD_CUDA "CUDA ${CMAKE_CUDA_COMPILER_VERSION} for architectures ${archs}, head dims ${head_dims}")
  message(STATUS "fdma: ${FDMA_BUILD_CUDA} (FDMA_CUDA=${FDMA_CUDA})")
else()
  set(FDMA_BUILD_CUDA "without CUDA (${FDMA_CUDA_REASON})")
  message(STATUS "fdma: CPU only (${FDMA_CUDA_REASON}). To build the CUDA kernels, with or without a GPU in this machine: "
                 "-DFDMA_CUDA=ON")
endif()
