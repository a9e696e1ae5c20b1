# The operation tests on the CUDA backend: on a GPU (label gpu, skipped where there is none), and its
# kernels' own source on the host through cuda_shim.h, in several orders of threads.
file(GLOB OPERATION_TESTS CONFIGURE_DEPENDS test_ops*.c)

# add_operation_tests(KIND LIBRARIES...): the programs <test>_KIND
function(add_operation_tests kind)
  foreach(source ${OPERATION_TESTS})
    get_filename_component(name ${source} NAME_WE)
    add_executable(${name}_${kind} ${source})
    target_compile_definitions(${name}_${kind} PRIVATE MM_TEST_CUDA)
    target_link_libraries(${name}_${kind} PRIVATE ${ARGN} PkgConfig::CMOCKA OpenMP::OpenMP_C m)
    set_target_properties(${name}_${kind} PROPERTIES
                          RUNTIME_OUTPUT_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR})
  endforeach()
endfunction()

if(MUDMAN_CUDA_FOUND)
  add_operation_tests(cuda mm_kernels)
  foreach(source ${OPERATION_TESTS})
    get_filename_component(name ${source} NAME_WE)
    string(REPLACE "test_" "gpu_" test ${name})
    add_test(NAME ${test} COMMAND ${name}_cuda)
    set_tests_properties(${test} PROPERTIES SKIP_RETURN_CODE 77 TIMEOUT 300 LABELS gpu
                         RESOURCE_LOCK gpu ENVIRONMENT "${TEST_ENVIRONMENT}")
  endforeach()
endif()

include(CheckLanguage)
check_language(CXX)
if(NOT CMAKE_CXX_COMPILER)
  message(STATUS "no C++ compiler: without the tests of the CUDA kernels on the host")
  return()
endif()
enable_language(CXX)

# All kernels but matrix.cu, which is cuBLASLt's. mm_shim comes before mm_kernels, so that its CUDA
# backend is the one that is linked.
file(GLOB SHIM_KERNELS CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/kernels/cuda/*.cu)
list(REMOVE_ITEM SHIM_KERNELS ${CMAKE_SOURCE_DIR}/kernels/cuda/matrix.cu)
set_source_files_properties(${SHIM_KERNELS} PROPERTIES LANGUAGE CXX)
file(GLOB SHIM_SOURCES CONFIGURE_DEPENDS cuda_shim*.cc)
add_library(mm_shim STATIC ${SHIM_KERNELS} ${SHIM_SOURCES})
set_target_properties(mm_shim PROPERTIES CXX_STANDARD 17 CXX_STANDARD_REQUIRED ON)
target_compile_definitions(mm_shim PRIVATE MM_CUDA_SHIM)
target_compile_options(mm_shim PRIVATE -include ${CMAKE_CURRENT_SOURCE_DIR}/cuda_shim.h
                       -Wno-unknown-pragmas)
target_link_libraries(mm_shim PUBLIC mm_base)

add_operation_tests(shim mm_shim mm_kernels)
foreach(source ${OPERATION_TESTS})
  get_filename_component(name ${source} NAME_WE)
  string(REPLACE "test_" "shim_" test ${name})
  foreach(order ascending descending random:1)
    string(REGEX REPLACE ":.*" "" suffix ${order})
    add_test(NAME ${test}_${suffix} COMMAND ${name}_shim)
    set_tests_properties(${test}_${suffix} PROPERTIES TIMEOUT 300 LABELS shim
                         ENVIRONMENT "${TEST_ENVIRONMENT};MM_SHIM_ORDER=${order}")
  endforeach()
endforeach()
