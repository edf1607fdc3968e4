# The only list of what is built: every dtype times every head-dim bucket of FDMA_HEAD_DIMS. One translation unit a
# direction and architecture family; mask and bias variants are inside it.
set(FDMA_KERNEL_DTYPES half_t bfloat16_t)
set(FDMA_KERNEL_DIRECTIONS forward backward decode)

set(fdma_kernel_declarations "")
set(fdma_kernel_entries "")
set(fdma_kernel_sources "")
set(fdma_sm90_sources "")
foreach(FDMA_HEAD_DIM IN LISTS FDMA_HEAD_DIMS)
  foreach(FDMA_DTYPE IN LISTS FDMA_KERNEL_DTYPES)
    set(FDMA_INSTANCE ${FDMA_DTYPE}_${FDMA_HEAD_DIM})
    foreach(direction IN LISTS FDMA_KERNEL_DIRECTIONS)
      set(source ${CMAKE_CURRENT_BINARY_DIR}/instances/${direction}_${FDMA_INSTANCE}.cu)
      configure_file(instances/${direction}.cu.in ${source} @ONLY)
      list(APPEND fdma_kernel_sources ${source})
    endforeach()
    string(APPEND fdma_kernel_declarations
           "cudaError_t forward_${FDMA_INSTANCE}(const ForwardParams&, cudaStream_t);\n"
           "cudaError_t backward_${FDMA_INSTANCE}(const BackwardParams&, bool, cudaStream_t);\n"
           "cudaError_t finish_backward_${FDMA_INSTANCE}(const BackwardParams&, bool, cudaStream_t);\n"
           "cudaError_t bias_gradient_${FDMA_INSTANCE}(const BackwardParams&, cudaStream_t);\n"
           "cudaError_t decode_${FDMA_INSTANCE}(const DecodeParams&, cudaStream_t);\n")
    set(sm90_functions "nullptr, nullptr, nullptr")
    if(FDMA_WITH_SM90)
      foreach(direction IN ITEMS forward backward)
        set(source ${CMAKE_CURRENT_BINARY_DIR}/instances/${direction}_sm90_${FDMA_INSTANCE}.cu)
        configure_file(instances/${direction}_sm90.cu.in ${source} @ONLY)
        list(APPEND fdma_sm90_sources ${source})
      endforeach()
      string(APPEND fdma_kernel_declarations
             "cudaError_t forward_sm90_${FDMA_INSTANCE}(const ForwardParams&, int, cudaStream_t);\n"
             "cudaError_t backward_sm90_${FDMA_INSTANCE}(const BackwardParams&, cudaStream_t);\n"
             "cudaError_t finish_backward_sm90_${FDMA_INSTANCE}(const BackwardParams&, cudaStream_t);\n")
      set(sm90_functions "forward_sm90_${FDMA_INSTANCE}, backward_sm90_${FDMA_INSTANCE},\n     finish_backward_sm90_${FDMA_INSTANCE}")
    endif()
    if(FDMA_DTYPE STREQUAL half_t)
      set(element ElementType::kFloat16)
    else()
      set(element ElementType::kBFloat16)
    endif()
    string(APPEND fdma_kernel_entries
           "    {${element}, ${FDMA_HEAD_DIM}, forward_${FDMA_INSTANCE}, backward_${FDMA_INSTANCE},\n"
           "     finish_backward_${FDMA_INSTANCE}, bias_gradient_${FDMA_INSTANCE}, decode_${FDMA_INSTANCE},\n     ${sm90_functions}},\n")
  endforeach()
endforeach()
configure_file(instances/registry.cpp.in ${CMAKE_CURRENT_BINARY_DIR}/instances/registry.cpp @ONLY)
list(APPEND fdma_kernel_sources ${CMAKE_CURRENT_BINARY_DIR}/instances/registry.cpp)
