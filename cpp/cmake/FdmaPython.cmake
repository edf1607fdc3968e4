# flash_dmattn._C, the extension module of the Python package. libfdma is linked into it, so that a wheel is one
# self-contained file without links or run paths.
#
# From Python 3.12 on a wheel uses the stable ABI: scikit-build-core asks for it with SKBUILD_SABI_COMPONENT.
find_package(Python 3.8 REQUIRED COMPONENTS Interpreter Development.Module ${SKBUILD_SABI_COMPONENT})
execute_process(
  COMMAND ${Python_EXECUTABLE} -m nanobind --cmake_dir
  OUTPUT_VARIABLE nanobind_ROOT
  OUTPUT_STRIP_TRAILING_WHITESPACE
  ERROR_VARIABLE error
  RESULT_VARIABLE result)
if(NOT result EQUAL 0)
  message(FATAL_ERROR "FDMA_BUILD_PYTHON=ON needs the package nanobind for ${Python_EXECUTABLE} (pip install nanobind):\n"
                      "${error}")
endif()
find_package(nanobind CONFIG REQUIRED)

file(GLOB binding_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/python/bindings/*.cpp)
nanobind_add_module(_C STABLE_ABI NB_STATIC NB_DOMAIN flash_dmattn ${binding_sources})
target_link_libraries(_C PRIVATE fdma_static)
# The static library is built to be part of other binaries; only PyInit__C is to be seen from outside.
target_link_options(_C PRIVATE LINKER:--exclude-libs,ALL)
set_target_properties(_C PROPERTIES LINKER_LANGUAGE CXX)

install(TARGETS _C LIBRARY DESTINATION flash_dmattn COMPONENT python)
if(NOT SKBUILD)  # scikit-build-core brings the Python files itself
  install(
    DIRECTORY ${PROJECT_SOURCE_DIR}/python/flash_dmattn
    DESTINATION .
    COMPONENT python
    FILES_MATCHING
    PATTERN "*.py"
    PATTERN "*.pyi"
    PATTERN "py.typed"
    PATTERN "__pycache__" EXCLUDE)
endif()
