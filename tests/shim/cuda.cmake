# The operation tests on the CUDA backend: on a GPU (label gpu, skipped where there is none), and its
# kernels' own source on the host through cuda_shim.h, in several orders of threads.
file(GLOB OPERATION_TESTS CONFIGURE_DEPENDS unit/test_ops*.c)

# add_operation_tests(KIND LIBRARIES...): the programs <test>_KIND
function(add_operation_tests kind)
  foreach(source ${OPERATION_TESTS})
    get_filename_component(name ${source} NAME_WE)
    add_executable(${name}_${kind} ${source} settle.c)
    target_compile_definitions(${name}_${kind} PRIVATE MM_TEST_CUDA)
    target_link_libraries(${name}_${kind} PRIVATE ${ARGN} PkgConfig::CMOCKA OpenMP::OpenMP_C m)
    set_target_properties(${name}_${kind} PROPERTIES
                          RUNTIME_OUTPUT_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR})
  endforeach()
endfunction()

# add_golden_test(KIND LIBRARIES...): the program test_golden_KIND
function(add_golden_test kind)
  add_executable(test_golden_${kind} golden/test_golden.c settle.c)
  target_include_directories(test_golden_${kind} PRIVATE ${HDF5_C_INCLUDE_DIRS})
  target_compile_definitions(test_golden_${kind} PRIVATE MM_TEST_CUDA
                             TEST_DIR="${CMAKE_CURRENT_SOURCE_DIR}")
  target_link_libraries(test_golden_${kind} PRIVATE ${ARGN} ${HDF5_C_LIBRARIES} PkgConfig::CMOCKA m)
  set_target_properties(test_golden_${kind} PROPERTIES
                        RUNTIME_OUTPUT_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR})
endfunction()

set(TWO_RANKS ${MPIEXEC_EXECUTABLE} -n 2 --bind-to none)

if(MUDMAN_CUDA_FOUND)
  add_golden_test(cuda mm_method)
  add_test(NAME gpu_golden COMMAND test_golden_cuda)
  add_test(NAME gpu_golden_2_ranks COMMAND ${TWO_RANKS} $<TARGET_FILE:test_golden_cuda>)
  set_tests_properties(gpu_golden gpu_golden_2_ranks PROPERTIES SKIP_RETURN_CODE 77 TIMEOUT 300
                       LABELS gpu RESOURCE_LOCK gpu ENVIRONMENT "${TEST_ENVIRONMENT}")
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

# All kernels but matrix.cu, which is cuBLASLt's. Objects: so that they, and no archive's, are what
# the rest of the program finds.
file(GLOB SHIM_KERNELS CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/kernels/cuda/*.cu)
list(REMOVE_ITEM SHIM_KERNELS ${CMAKE_SOURCE_DIR}/kernels/cuda/matrix.cu)
set_source_files_properties(${SHIM_KERNELS} PROPERTIES LANGUAGE CXX)
set(SHIM_SOURCES shim/cuda_shim.cc shim/cuda_shim_runtime.cc shim/cuda_shim_matrix.cc)
add_library(mm_shim OBJECT ${SHIM_KERNELS} ${SHIM_SOURCES})
set_target_properties(mm_shim PROPERTIES CXX_STANDARD 17 CXX_STANDARD_REQUIRED ON)
target_compile_definitions(mm_shim PRIVATE MM_CUDA_SHIM)
target_compile_options(mm_shim PRIVATE -include ${CMAKE_CURRENT_SOURCE_DIR}/shim/cuda_shim.h
                       -Wno-unknown-pragmas)
target_link_libraries(mm_shim PUBLIC mm_base)
# comm/nccl.cu with MPI in place of NCCL.
set_source_files_properties(${CMAKE_SOURCE_DIR}/comm/nccl.cu PROPERTIES LANGUAGE CXX)
add_library(mm_shim_nccl OBJECT ${CMAKE_SOURCE_DIR}/comm/nccl.cu shim/cuda_shim_nccl.cc)
set_target_properties(mm_shim_nccl PROPERTIES CXX_STANDARD 17 CXX_STANDARD_REQUIRED ON)
target_include_directories(mm_shim_nccl SYSTEM PRIVATE ${MPI_C_INCLUDE_DIRS})
target_compile_definitions(mm_shim_nccl PRIVATE MM_CUDA_SHIM)
target_compile_options(mm_shim_nccl PRIVATE -include ${CMAKE_CURRENT_SOURCE_DIR}/shim/cuda_shim_nccl.h
                       -Wno-unknown-pragmas)
set(SHIM_LIBRARIES mm_shim_nccl mm_shim mm_method MPI::MPI_C)

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

add_golden_test(shim ${SHIM_LIBRARIES})
add_test(NAME shim_golden COMMAND test_golden_shim)
add_test(NAME shim_golden_random COMMAND test_golden_shim float32)
add_test(NAME shim_golden_2_ranks COMMAND ${TWO_RANKS} $<TARGET_FILE:test_golden_shim> float32)
set_tests_properties(shim_golden shim_golden_random shim_golden_2_ranks PROPERTIES TIMEOUT 300
                     LABELS shim ENVIRONMENT "${TEST_ENVIRONMENT}")
set_property(TEST shim_golden_random APPEND PROPERTY ENVIRONMENT MM_SHIM_ORDER=random:1)

# The whole program on the host: what the tests of devices run where there is no GPU.
add_executable(mudman-mpi-shim ${CMAKE_SOURCE_DIR}/src/main.c)
target_link_libraries(mudman-mpi-shim PRIVATE ${SHIM_LIBRARIES})
set_target_properties(mudman-mpi-shim PROPERTIES
                      RUNTIME_OUTPUT_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR})
