# Hostile input: tests/fuzz/README.md. Each target, fuzz/fuzz_<what>.c, runs its regressions in the
# suite by a plain driver; with MUDMAN_FUZZ, which needs clang, it is linked with libFuzzer too.
file(GLOB FUZZ_SOURCES CONFIGURE_DEPENDS fuzz/fuzz_*.c)
add_library(fuzz_common STATIC fuzz/fuzz.c fuzz/h5_build.c)
target_include_directories(fuzz_common PRIVATE ${HDF5_C_INCLUDE_DIRS})
target_link_libraries(fuzz_common PUBLIC mm_method ${HDF5_C_LIBRARIES})
foreach(source ${FUZZ_SOURCES})
  get_filename_component(name ${source} NAME_WE)
  string(REPLACE "fuzz_" "" target ${name})
  add_library(${name}_target OBJECT ${source})
  target_include_directories(${name}_target PRIVATE ${HDF5_C_INCLUDE_DIRS})
  mm_program(${name} fuzz/driver.c fuzz_common)
  target_sources(${name} PRIVATE $<TARGET_OBJECTS:${name}_target>)
  mm_test(${name} TIMEOUT 120
          COMMAND ${name} ${CMAKE_CURRENT_SOURCE_DIR}/fuzz/corpus/${target})
  if(MUDMAN_FUZZ)
    add_executable(libfuzzer_${target} $<TARGET_OBJECTS:${name}_target>)
    target_link_options(libfuzzer_${target} PRIVATE -fsanitize=fuzzer)
    target_link_libraries(libfuzzer_${target} PRIVATE fuzz_common PkgConfig::CJSON)
    set_target_properties(libfuzzer_${target} PROPERTIES RUNTIME_OUTPUT_DIRECTORY
                          ${CMAKE_CURRENT_BINARY_DIR})
  endif()
endforeach()
