#!/usr/bin/env bash
# bundle.sh - collects the libraries that mudman-mpi is built with (Open MPI with its launcher and
# plugins, HDF5, libyaml, OpenBLAS, cJSON, xxHash, cmocka) into one archive, for a machine that has a
# compiler, cmake and the CUDA toolkit but none of these. Run on Debian after tools/setup.sh.
#   tools/bundle.sh [ARCHIVE]     default: build/bundle.tar.xz
# There, anywhere:
#   tar xf bundle.tar.xz && . bundle/env.sh && cmake -C bundle/bundle.cmake -S . -B build
# The C library and the compiler's own libraries are not in it: that machine's must be as new.
set -euo pipefail
cd "$(dirname "$0")/.."

archive=$(realpath -m "${1:-build/bundle.tar.xz}")
system=/usr/lib/$(gcc -print-multiarch)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/bundle
mkdir -p "$root"/{bin,cmake,etc,include,lib/openmpi,lib/pmix,libexec,share} "$(dirname "$archive")"

# What the machine has of its own: glibc, and what comes with its compiler.
own='^(linux-vdso|ld-linux.*|lib(c|m|dl|rt|pthread|resolv|gcc_s|stdc\+\+|gomp))\.so'

needed() { # FILES...: the paths of the libraries that they need, all the way down
    ldd "$@" | awk '$2 == "=>" {print $1, $3}' | sort -u | grep -vE "$own" | cut -d' ' -f2
}
take_library() { # FILE: under the name that programs ask for
    cp -L "$1" "$root/lib/$(basename "$1")"
}
link_name() { # NAME FILE: lib/libNAME.so, for the linker
    local soname
    soname=$(objdump -p "$2" | awk '$1 == "SONAME" {print $2}')
    cp -L "$2" "$root/lib/$soname"
    ln -sf "$soname" "$root/lib/lib$1.so"
}

# -- libraries and headers ---------------------------------------------------------------------------
declare -A libraries=(
    [mpi]=$system/libmpi.so.40
    [hdf5]=$system/libhdf5_serial.so
    [yaml]=$system/libyaml.so
    [openblas]=$system/openblas-openmp/libopenblas.so
    [dnnl]=$system/libdnnl.so
    [cjson]=$system/libcjson.so
    [xxhash]=$system/libxxhash.so
    [cmocka]=$system/libcmocka.so
)
for name in "${!libraries[@]}"; do
    link_name "$name" "${libraries[$name]}"
done
cp -rL "$system/openmpi/include/." "$root/include/openmpi"
cp -rL /usr/include/hdf5/serial "$root/include/hdf5"
cp -rL "/usr/include/$(gcc -print-multiarch)/openblas-openmp" "$root/include/openblas"
cp -rL /usr/include/{yaml.h,xxhash.h,cmocka*.h,dnnl*.h,oneapi,cjson,cjson/*.h} "$root/include/" # cJSON.h: included both ways

# -- Open MPI: launcher, help texts, and the plugins that need no library of their own ---------------
cp -L "$(command -v orterun)" "$root/libexec/orterun"
cp -L "$(command -v orted)" "$root/libexec/orted"
cp -rL /usr/share/openmpi "$root/share/openmpi"
cp -rL /etc/openmpi "$root/etc/openmpi"
programs=("${libraries[@]}" "$root"/libexec/*)
pmix=$(ldd "$system"/openmpi/lib/openmpi3/mca_pmix_ext3x.so | awk '$1 ~ /^libpmix/ {print $3}')
programs+=("$pmix" "$system/openmpi/lib/openmpi3/mca_pmix_ext3x.so" "$system/libmca_common_sm.so.40")
for library in "$pmix" "$system/libmca_common_sm.so.40" $(needed "${programs[@]}"); do
    take_library "$library"
done
take_plugins() { # FOLDER FILES...
    local plugin library
    for plugin in "${@:2}"; do
        for library in $(needed "$plugin"); do
            [ -e "$root/lib/$(basename "$library")" ] || continue 2
        done
        cp -L "$plugin" "$root/lib/$1/"
    done
}
take_plugins openmpi "$system"/openmpi/lib/openmpi3/mca_*.so
take_plugins pmix "$(dirname "$(realpath "$pmix")")"/pmix/*.so

# Open MPI's files name the folder that Debian has them in as their run path, and what names one is
# not searched by its program's: here it becomes their own folder, in as many bytes.
built="$system/openmpi/lib"
here='$ORIGIN:$ORIGIN/..:$ORIGIN/../lib'
while [ ${#here} -lt ${#built} ]; do
    here+=/
done
[ ${#here} = ${#built} ]
find "$root/lib" "$root/libexec" -type f -exec env LC_ALL=C sed -i "s#$built\x00#$here\x00#" {} +
if objdump -p "$root"/lib/*.so* "$root"/lib/*/*.so "$root"/libexec/* | grep -E 'R(UN)?PATH +/'; then
    echo "bundle.sh: a library looks for others in a fixed folder" >&2
    exit 1
fi

# -- where things are, relative to wherever it was unpacked ------------------------------------------
cat >"$root/env.sh" <<'END'
# Source this: programs built with the bundle then find Open MPI's files, and mpirun is on PATH.
MUDMAN_BUNDLE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export MUDMAN_BUNDLE PATH="$MUDMAN_BUNDLE/bin:$PATH"
export OPAL_PREFIX=$MUDMAN_BUNDLE OPAL_BINDIR=$MUDMAN_BUNDLE/bin OPAL_LIBDIR=$MUDMAN_BUNDLE/lib
export OPAL_PKGLIBDIR=$MUDMAN_BUNDLE/lib/openmpi OPAL_PKGDATADIR=$MUDMAN_BUNDLE/share/openmpi
export OPAL_SYSCONFDIR=$MUDMAN_BUNDLE/etc/openmpi
export PMIX_INSTALL_PREFIX=$MUDMAN_BUNDLE PMIX_PKGLIBDIR=$MUDMAN_BUNDLE/lib/pmix
END
# Only these two get the bundle's libraries through the environment. Programs built with the bundle
# carry its path, so that python3 and others keep their own.
for program in orterun orted; do
    cat >"$root/bin/$program" <<END
#!/usr/bin/env bash
. "\$(dirname "\$(readlink -f "\$0")")/../env.sh"
export LD_LIBRARY_PATH=\$MUDMAN_BUNDLE/lib\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}
exec "\$MUDMAN_BUNDLE/libexec/$program" "\$@"
END
    chmod +x "$root/bin/$program"
done
ln -s orterun "$root/bin/mpirun"
ln -s orterun "$root/bin/mpiexec"

# -- for cmake: an initial cache, and in place of the modules that search the machine -----------------
cat >"$root/bundle.cmake" <<'END'
# cmake -C bundle.cmake: the bundle's libraries and no others, by paths that programs carry in them.
get_filename_component(bundle "${CMAKE_CURRENT_LIST_DIR}" ABSOLUTE)
set(MUDMAN_BUNDLE "${bundle}" CACHE PATH "The unpacked libraries")
set(CMAKE_MODULE_PATH "${bundle}/cmake" CACHE STRING "")
set(CMAKE_EXE_LINKER_FLAGS "-Wl,--disable-new-dtags,-rpath,${bundle}/lib" CACHE STRING "")
set(OPENBLAS "${bundle}/lib/libopenblas.so" CACHE FILEPATH "")
set(OPENBLAS_INCLUDE "${bundle}/include/openblas" CACHE PATH "")
set(ONEDNN "${bundle}/lib/libdnnl.so" CACHE FILEPATH "")
set(ONEDNN_INCLUDE "${bundle}/include" CACHE PATH "")
END
cat >"$root/cmake/FindMPI.cmake" <<'END'
set(MPI_C_FOUND TRUE)
set(MPI_FOUND TRUE)
set(MPI_C_INCLUDE_DIRS "${MUDMAN_BUNDLE}/include/openmpi")
set(MPI_C_LIBRARIES "${MUDMAN_BUNDLE}/lib/libmpi.so")
set(MPIEXEC_EXECUTABLE "${MUDMAN_BUNDLE}/bin/mpirun" CACHE FILEPATH "")
if(NOT TARGET MPI::MPI_C)
  add_library(MPI::MPI_C INTERFACE IMPORTED)
  set_target_properties(MPI::MPI_C PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES "${MPI_C_INCLUDE_DIRS}"
    INTERFACE_LINK_LIBRARIES "${MPI_C_LIBRARIES}")
endif()
END
cat >"$root/cmake/FindHDF5.cmake" <<'END'
set(HDF5_FOUND TRUE)
set(HDF5_IS_PARALLEL FALSE)
set(HDF5_C_INCLUDE_DIRS "${MUDMAN_BUNDLE}/include/hdf5")
set(HDF5_C_LIBRARIES "${MUDMAN_BUNDLE}/lib/libhdf5.so")
END
cat >"$root/cmake/FindPkgConfig.cmake" <<'END'
set(PkgConfig_FOUND TRUE)
set(bundle_yaml-0.1 yaml)
set(bundle_libcjson cjson)
set(bundle_libxxhash xxhash)
set(bundle_cmocka cmocka)
function(pkg_check_modules prefix)
  list(GET ARGN -1 module)
  add_library(PkgConfig::${prefix} INTERFACE IMPORTED GLOBAL)
  set_target_properties(PkgConfig::${prefix} PROPERTIES
    INTERFACE_INCLUDE_DIRECTORIES "${MUDMAN_BUNDLE}/include"
    INTERFACE_LINK_LIBRARIES "${MUDMAN_BUNDLE}/lib/lib${bundle_${module}}.so")
  set(${prefix}_FOUND TRUE PARENT_SCOPE)
endfunction()
END

tar -C "$work" -cJf "$archive" bundle
echo "$archive: $(($(stat -c %s "$archive") >> 20)) MiB, unpacked $(du -sm "$root" | cut -f1) MiB"
