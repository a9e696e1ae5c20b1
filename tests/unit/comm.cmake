# Ranks on the memory of a device, over every transport, on 1 to 4 ranks; and jobs that must not hang.
# On the host shim NCCL's messages are MPI's (cuda_shim_nccl.h).

# add_comm_test(NAME RANKS COMMAND...)
# Of 3 and 4 ranks two are near each other, as if machines had two.
function(add_comm_test name ranks)
  mm_test(${name} RANKS ${ranks} ENVIRONMENT OMP_NUM_THREADS=1;MUDMAN_NEAR_RANKS=2 COMMAND ${ARGN})
endfunction()

# add_stuck_test(NAME PROGRAM MODE TRANSPORT MESSAGE)
function(add_stuck_test name program)
  mm_test(${name} TIMEOUT 60 COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/unit/comm_stuck.sh
                                     $<TARGET_FILE:${program}> ${ARGN})
endfunction()

# add_comm_program(NAME SOURCE LIBRARIES...): built for GPUs
function(add_comm_program name source)
  mm_program(${name} ${source} ${ARGN})
  target_compile_definitions(${name} PRIVATE MM_TEST_CUDA)
endfunction()

mm_program(comm_stuck unit/comm_stuck.c mm_comm)
set(IN_TIME "has not ended after 1 s")
add_stuck_test(comm_stuck_barrier comm_stuck barrier auto
               "rank 0: loop 7: barrier #1 (MPI) ${IN_TIME}")
add_stuck_test(comm_stuck_bucket comm_stuck bucket auto
               "rank 0: loop 7: reduction #2 (1.02 kB, MPI) ${IN_TIME}")
add_stuck_test(comm_stuck_dead comm_stuck dead auto ".") # whatever the launcher says
# add_differs_test(MODE MESSAGE)
mm_program(comm_differs unit/comm_differs.c mm_comm)
function(add_differs_test mode message)
  mm_test(comm_differs_${mode} TIMEOUT 60 COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/unit/comm_differs.sh
                                                  $<TARGET_FILE:comm_differs> ${mode} ${message})
endfunction()
add_differs_test(same "it went on")
add_differs_test(kind "collective 2 .*: ranks 0, 2: sum of 8 bytes over MPI. rank 1: maximum of 8 bytes over MPI")
add_differs_test(bytes "collective 2 .*: ranks 0, 2: sum of 8 bytes over MPI. rank 1: sum of 16 bytes over MPI")
add_differs_test(root "collective 3 .*: ranks 0, 2: broadcast .* from rank 0. rank 1: broadcast .* from rank 1")
add_differs_test(shape "collective 4 .*: ranks 0, 2: gather of 64 bytes over MPI, shapes .*. rank 1: gather of 64 bytes")
add_differs_test(dtype "collective 4 .*: ranks 0, 2: gather of 64 bytes over MPI, shapes .*. rank 1: gather of 64 bytes")
add_differs_test(missing "collective 2 .*: ranks 0, 2: sum of 8 bytes over MPI. rank 1: broadcast of 8 bytes")
foreach(ranks 1 2 3 4)
  foreach(dtype float32 bfloat16)
    add_comm_test(comm_rows_${dtype}_${ranks}_ranks ${ranks} $<TARGET_FILE:test_comm_rows> auto
                  ${dtype})
  endforeach()
endforeach()

if(TARGET mm_nccl)
  add_comm_program(test_comm_rows_cuda unit/test_comm_rows.c mm_comm)
  foreach(transport auto nccl)
    add_comm_test(gpu_comm_rows_${transport} 1 $<TARGET_FILE:test_comm_rows_cuda> ${transport})
  endforeach()
  add_comm_test(gpu_comm_rows_staged_2_ranks 2 $<TARGET_FILE:test_comm_rows_cuda> staged bfloat16)
  set_tests_properties(gpu_comm_rows_auto gpu_comm_rows_nccl gpu_comm_rows_staged_2_ranks PROPERTIES
                       LABELS gpu RESOURCE_LOCK gpu)
endif()

if(NOT TARGET mm_shim_nccl)
  return()
endif()
foreach(source test_comm_rows comm_stuck)
  add_comm_program(${source}_shim unit/${source}.c mm_shim_nccl mm_shim mm_comm MPI::MPI_C)
  set_target_properties(${source}_shim PROPERTIES LINKER_LANGUAGE CXX)
endforeach()
foreach(ranks 1 2 3 4)
  foreach(dtype float32 bfloat16)
    foreach(transport staged nccl)
      set(test shim_comm_rows_${transport}_${dtype}_${ranks}_ranks)
      add_comm_test(${test} ${ranks} $<TARGET_FILE:test_comm_rows_shim> ${transport} ${dtype})
      set_tests_properties(${test} PROPERTIES LABELS shim)
    endforeach()
  endforeach()
endforeach()
add_comm_program(test_recorder_shim unit/test_recorder.c mm_shim_nccl mm_shim mm_method MPI::MPI_C)
set_target_properties(test_recorder_shim PROPERTIES LINKER_LANGUAGE CXX)
foreach(ranks 1 2 3)
  add_comm_test(shim_recorder_${ranks}_ranks ${ranks} $<TARGET_FILE:test_recorder_shim>)
  set_tests_properties(shim_recorder_${ranks}_ranks PROPERTIES LABELS shim)
endforeach()
# Ranks that share a GPU: staged, where nobody insists on NCCL.
add_comm_test(shim_comm_rows_shared 2 $<TARGET_FILE:test_comm_rows_shim> auto float32)
add_stuck_test(shim_comm_shared comm_stuck_shim shared nccl
               "ranks 0 and 1 share GPU 0000:00:00.0 of .*, which NCCL forbids")
add_stuck_test(shim_comm_stuck_nccl comm_stuck_shim bucket nccl
               "rank 0: loop 7: reduction #2 (1.02 kB, NCCL) ${IN_TIME}")
add_stuck_test(shim_comm_stuck_staged comm_stuck_shim bucket staged
               "rank 0: loop 7: reduction #2 (1.02 kB, MPI) ${IN_TIME}")
set_tests_properties(shim_comm_rows_shared shim_comm_shared shim_comm_stuck_nccl
                     shim_comm_stuck_staged PROPERTIES LABELS shim)
