#!/usr/bin/env bash
# setup.sh [demo | tools | test] - installs what is missing: Debian packages (with sudo where not root)
# and Python packages (into .venv). Starts at once when nothing is missing.
#   demo    what demo.sh uses: to build the program, and two Python packages
#   tools   that, and the Python packages of tools/: to prepare data, to search, to report
#   test    that, and what test.sh uses; also when nothing is said
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(gcc make cmake pkg-config libopenmpi-dev openmpi-bin libhdf5-dev libyaml-dev
    libopenblas-openmp-dev libdnnl-dev libcjson-dev libxxhash-dev python3 python3-venv)
# Each list names the one before it.
requirements=(tools/requirements-demo.txt)
case ${1:-test} in
demo) ;;
tools) requirements+=(tools/requirements.txt) ;;
test)
    packages+=(g++ libcmocka-dev slurmctld slurmd slurm-client munge libpmix-dev)
    # The test of reports in a browser; elsewhere the package is called otherwise, or is none.
    grep -qx ID=debian /etc/os-release && packages+=(chromium)
    requirements+=(tools/requirements.txt tools/requirements-test.txt)
    ;;
-h | --help)
    sed -n '2,6s/^# //p' tools/setup.sh
    exit 0
    ;;
*)
    echo "setup.sh: $1: not one of demo, tools, test" >&2
    exit 2
    ;;
esac

missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' ||
        missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
    echo "installing ${missing[*]}"
    sudo=()
    [ "$(id -u)" = 0 ] || sudo=(sudo)
    "${sudo[@]}" apt-get -qq update
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y \
        --no-install-recommends "${missing[@]}" >/dev/null
fi

# .venv holds a copy of every list that is installed in it.
for list in "${requirements[@]}"; do
    cmp -s "$list" ".venv/$(basename "$list")" || wanted=${requirements[-1]}
done
if [ -n "${wanted:-}" ]; then
    echo "installing the Python packages of $wanted into .venv"
    if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
        python=python3
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
            python=/usr/bin/python3
        rm -rf .venv
        "$python" -m venv .venv
    fi
    .venv/bin/python -m pip -q --disable-pip-version-check install --no-compile -r "$wanted"
    cp "${requirements[@]}" .venv/
fi
