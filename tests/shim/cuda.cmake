# The operation tests on the CUDA backend: on a GPU (label gpu, skipped where there is none), and its
# kernels' own source on the host through cuda_shim.h, in several orders of threads.
file(GLOB OPERATION_TESTS CONFIGURE_DEPENDS unit/test_ops*.c)

# add_programs(KIND SOURCES LIBRARIES...): the programs <test>_KIND
function(add_programs kind sources)
  foreach(source ${sources})
    get_filename_component(name ${source} NAME_WE)
    mm_program(${name}_${kind} ${source} ${ARGN})
    target_sources(${name}_${kind} PRIVATE settle.c)
    target_compile_definitions(${name}_${kind} PRIVATE MM_TEST_CUDA)
  endforeach()
endfunction()

if(MUDMAN_CUDA_FOUND)
  add_programs(cuda golden/test_golden.c mm_method MPI::MPI_C)
  mm_test(gpu_golden LABELS gpu COMMAND test_golden_cuda)
  mm_test(gpu_golden_2_ranks RANKS 2 LABELS gpu COMMAND $<TARGET_FILE:test_golden_cuda>)
  add_programs(cuda "${OPERATION_TESTS}" mm_kernels)
  foreach(source ${OPERATION_TESTS})
    get_filename_component(name ${source} NAME_WE)
    string(REPLACE "test_" "gpu_" test ${name})
    mm_test(${test} LABELS gpu COMMAND ${name}_cuda)
  endforeach()
endif()

include(CheckLanguage)
check_language(CXX)
if(NOT CMAKE_CXX_COMPILER)
  message(STATUS "no C++ compiler: without the tests of the CUDA kernels on the host")
  return()
endif()
enable_language(CXX)

if(MUDMAN_CUDA_FOUND)
  add_subdirectory(ptx)
  add_programs(ptx "${OPERATION_TESTS}" mm_ptx mm_kernels)
  foreach(source ${OPERATION_TESTS})
    get_filename_component(name ${source} NAME_WE)
    string(REPLACE "test_" "ptx_" test ${name})
    mm_test(${test} LABELS ptx ENVIRONMENT MM_NOISE=1 COMMAND ${name}_ptx)
  endforeach()
endif()

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
set(NCCL_SOURCES ${CMAKE_SOURCE_DIR}/comm/nccl.cu ${CMAKE_SOURCE_DIR}/comm/nccl_gather.cu)
set_source_files_properties(${NCCL_SOURCES} PROPERTIES LANGUAGE CXX)
add_library(mm_shim_nccl OBJECT ${NCCL_SOURCES} shim/cuda_shim_nccl.cc)
set_target_properties(mm_shim_nccl PROPERTIES CXX_STANDARD 17 CXX_STANDARD_REQUIRED ON)
target_include_directories(mm_shim_nccl SYSTEM PRIVATE ${MPI_C_INCLUDE_DIRS})
target_compile_definitions(mm_shim_nccl PRIVATE MM_CUDA_SHIM)
target_compile_options(mm_shim_nccl PRIVATE -include ${CMAKE_CURRENT_SOURCE_DIR}/shim/cuda_shim_nccl.h
                       -Wno-unknown-pragmas)
set(SHIM_LIBRARIES mm_shim_nccl mm_shim mm_method MPI::MPI_C)

add_programs(shim "${OPERATION_TESTS}" mm_shim mm_kernels)
foreach(source ${OPERATION_TESTS})
  get_filename_component(name ${source} NAME_WE)
  string(REPLACE "test_" "shim_" test ${name})
  foreach(order ascending descending random:1)
    string(REGEX REPLACE ":.*" "" suffix ${order})
    mm_test(${test}_${suffix} LABELS shim ENVIRONMENT MM_SHIM_ORDER=${order} COMMAND ${name}_shim)
  endforeach()
endforeach()
foreach(order ascending descending) # what has copies
  mm_test(shim_ops_attention_early_${order} LABELS shim ENVIRONMENT MM_SHIM_COPIES=early MM_SHIM_ORDER=${order}
          COMMAND test_ops_attention_shim)
endforeach()

add_programs(shim golden/test_golden.c ${SHIM_LIBRARIES})
# They take minutes: 5 times what the slowest takes on two cores, at least.
mm_test(shim_golden TIMEOUT 1500 LABELS shim COMMAND test_golden_shim)
mm_test(shim_golden_random TIMEOUT 1500 LABELS shim ENVIRONMENT MM_SHIM_ORDER=random:1 MM_NOISE=1 MM_SHIM_COPIES=early
        COMMAND test_golden_shim float32 sharded)
# model.shard: node, each rank on a machine of its own.
mm_test(shim_golden_2_ranks RANKS 2 TIMEOUT 1500 LABELS shim
        ENVIRONMENT MM_SHIM_GPU=rank;MUDMAN_NEAR_RANKS=1
        COMMAND $<TARGET_FILE:test_golden_shim> float32 sharded nccl)

# The whole program on the host: what the tests of devices run where there is no GPU.
mm_program(mudman-mpi-shim ${CMAKE_SOURCE_DIR}/src/main.c ${SHIM_LIBRARIES})
