#!/usr/bin/env bash
# setup.sh - installs what is missing: Debian packages (with sudo where not root) and, into .venv, the
# Python packages of tools/requirements.txt. Starts at once when nothing is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(gcc g++ make cmake pkg-config libopenmpi-dev openmpi-bin libhdf5-dev libyaml-dev
    libopenblas-openmp-dev libcjson-dev libcmocka-dev libxxhash-dev python3 python3-venv
    slurmctld slurmd slurm-client munge libpmix-dev)
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

if ! cmp -s tools/requirements.txt .venv/requirements.txt; then
    echo "installing Python packages into .venv"
    rm -rf .venv
    python=python3
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || python=/usr/bin/python3
    "$python" -m venv .venv
    .venv/bin/pip -q --disable-pip-version-check install -r tools/requirements.txt
    cp tools/requirements.txt .venv/requirements.txt
fi
