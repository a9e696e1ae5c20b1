# How tests and their programs are declared, for every CMake file of tests/.

# As root, more ranks than cores, and ranks that wait without burning the cores of the others.
set(MPI_ENVIRONMENT OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_mpi_yield_when_idle=1)
set(TEST_ENVIRONMENT ${MPI_ENVIRONMENT} OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive
    # Open MPI keeps memory to the end; our own blocks are counted by mm_live_blocks.
    ASAN_OPTIONS=detect_leaks=0
    UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1)
set(VENV_PYTHON ${CMAKE_SOURCE_DIR}/.venv/bin/python) # tools/setup.sh makes the environment

# mm_program(NAME SOURCE LIBRARY...): a program beside the tests, which may read HDF5 and finds the
# tests' files in TEST_DIR.
function(mm_program name source)
  add_executable(${name} ${source})
  target_include_directories(${name} PRIVATE ${HDF5_C_INCLUDE_DIRS})
  target_compile_definitions(${name} PRIVATE TEST_DIR="${CMAKE_CURRENT_SOURCE_DIR}")
  target_link_libraries(${name} PRIVATE ${ARGN} ${HDF5_C_LIBRARIES} PkgConfig::CMOCKA
                        PkgConfig::CJSON OpenMP::OpenMP_C m)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR})
endfunction()

# mm_test(NAME [RANKS n] [TIMEOUT s] [LABELS l...] [ENVIRONMENT e...] COMMAND c...): fails after
# TIMEOUT seconds (300), is skipped by exit 77. RANKS: under mpirun. Label gpu: has the GPU alone.
# Each has a folder for its launchers' files: two that make one folder at once fail in Open MPI 4.
function(mm_test name)
  cmake_parse_arguments(PARSE_ARGV 1 is "" "RANKS;TIMEOUT" "LABELS;ENVIRONMENT;COMMAND")
  if(NOT is_TIMEOUT)
    set(is_TIMEOUT 300)
  endif()
  if(is_RANKS)
    list(PREPEND is_COMMAND ${MPIEXEC_EXECUTABLE} -n ${is_RANKS} --bind-to none)
  endif()
  set(launchers ${CMAKE_CURRENT_BINARY_DIR}/launchers/${name})
  file(MAKE_DIRECTORY ${launchers})
  add_test(NAME ${name} COMMAND ${is_COMMAND})
  set_tests_properties(${name} PROPERTIES SKIP_RETURN_CODE 77 TIMEOUT ${is_TIMEOUT}
      ENVIRONMENT "${TEST_ENVIRONMENT};OMPI_MCA_orte_tmpdir_base=${launchers};${is_ENVIRONMENT}")
  if(is_LABELS)
    set_tests_properties(${name} PROPERTIES LABELS "${is_LABELS}")
  endif()
  if("gpu" IN_LIST is_LABELS)
    set_tests_properties(${name} PROPERTIES RESOURCE_LOCK gpu)
  endif()
  if(is_RANKS GREATER 1)
    set_tests_properties(${name} PROPERTIES PROCESSORS 2)
  endif()
endfunction()

# mm_python_test(NAME [LABELS l...] [ENVIRONMENT e...] ARGUMENTS a...): `python a...`, with the program
# and the library of faults by environment variables.
function(mm_python_test name)
  cmake_parse_arguments(PARSE_ARGV 1 is "" "" "LABELS;ENVIRONMENT;ARGUMENTS")
  mm_test(${name} TIMEOUT 600 LABELS ${is_LABELS} python COMMAND ${VENV_PYTHON} ${is_ARGUMENTS}
          ENVIRONMENT MUDMAN_BINARY=$<TARGET_FILE:mudman-mpi>
                      MUDMAN_FAULT_LIBRARY=$<TARGET_FILE:fault> PYTHONDONTWRITEBYTECODE=1
                      ${is_ENVIRONMENT})
endfunction()
