# version.cmake - writes OUT, the program's version as C: VERSION, and a hash of what under ROOT it is built from, so
# that a result says which build made it. Run at each build:
#   cmake -D ROOT=... -D VERSION=... -D OUT=... -P version.cmake
set(patterns)
foreach(folder src io comm kernels)
  list(APPEND patterns ${ROOT}/${folder}/*.c ${ROOT}/${folder}/*.h ${ROOT}/${folder}/*.cu)
endforeach()
file(GLOB_RECURSE sources RELATIVE "${ROOT}" ${patterns})
file(GLOB builders RELATIVE "${ROOT}" ${ROOT}/CMakeLists.txt ${ROOT}/kernels/CMakeLists.txt ${ROOT}/cmake/*.cmake)
set(all "")
foreach(source ${sources} ${builders})
  file(SHA256 "${ROOT}/${source}" hash)
  string(APPEND all "${source} ${hash}\n")
endforeach()
string(SHA256 id "${all}")
string(SUBSTRING "${id}" 0 8 id)
file(CONFIGURE OUTPUT "${OUT}"
     CONTENT "#include \"src/base/base.h\"\n\nconst char mm_version[] = \"${VERSION}+${id}\";\n")
