"""The table of docs/scaling.md: what `plan --machine` predicts for Llama's shapes on many GPUs.

    .venv/bin/python tests/bench/scaling_table.py [--machine h200x8] [--ranks 1,8,64,512]
        [--models 1B,8B,70B,405B] [--sequences 16] [--strong]
        [--shard none,node,full] [--binary build/mudman-mpi]

The models' files are holes: plan reads headers, and no weight.
The first of `none`, `node` and `full` whose peak is below the memory of the GPU. Waiting is for other
ranks.
Batches are of --sequences a GPU, or with --strong in all, of 100 tokens.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("width", "mlp", "layers", "heads", "kv", "tied", "vocab")
SHAPES = {
    "1B": (2048, 8192, 16, 32, 8, True, 128256),
    "8B": (4096, 14336, 32, 32, 8, False, 128256),
    "70B": (8192, 28672, 80, 64, 8, False, 128256),
    "405B": (16384, 53248, 126, 128, 8, False, 128256),
    "wide-100m": (1024, 4096, 4, 16, 4, True, 32768),  # bench_loop's
    "smollm-135m": (576, 1536, 30, 9, 3, True, 49152),
}
GIGABYTES = {"h100x8": 80, "h200x8": 141}
UNITS = {"kB": 1e-6, "MB": 1e-3, "GB": 1, "TB": 1e3}


def plan(config: Path, *overrides: str, ranks: int) -> str:
    command = [options.binary, "plan", config, *overrides, "--ranks", str(ranks)]
    command += ["--machine", options.machine]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def row(name: str, config: Path, ranks: int) -> str:
    sequences = options.sequences * (1 if options.strong else ranks)
    for shard in options.shard.split(","):
        text = plan(
            config, f"data.batch_size={sequences}", f"data.micro_batch={options.sequences}",
            f"model.shard={shard}", ranks=ranks,
        )  # fmt: skip
        if shard == "node" and "near gather" not in text:
            continue  # one machine: full
        peak = re.search(r"^peak: ([0-9.]+) (\wB)", text, re.M)
        gigabytes = float(peak[1]) * UNITS[peak[2]]
        if gigabytes > GIGABYTES.get(options.machine, 141):
            continue
        seconds, rate = re.search(r"a loop takes ([0-9.]+) s, ([0-9.]+) tokens/s", text).groups()
        waiting = sum(float(s) for s in re.findall(r"waiting for.*? ([0-9.]+) %", text)[:3])
        step = re.search(r"a step of relearning takes ([0-9.]+) s", text)
        return (
            f"| {name} | {ranks} | {shard} | {gigabytes:.3g} | {1e3 * float(seconds):.4g} "
            f"| {float(rate) / ranks:,.0f} | {waiting:.0f} % | {1e3 * float(step[1]):.4g} |"
        )
    return f"| {name} | {ranks} | does not fit | | | | | |"


def main() -> None:
    print("| | GPUs | `model.shard` | GB | ms a loop | tokens/s a GPU | waiting | ms a step |")
    print("|---" * 8 + "|")
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models.split(","):
            model = hollow_llama(Path(folder) / name, **dict(zip(NAMES, SHAPES[name])))
            place = Path(folder) / f"{name}-data"
            place.mkdir()
            config = random_case(
                place, model, batch=16, context=100, examples=32768,
                unlearn__target_modules=["gate_proj"],
            )  # fmt: skip
            for ranks in options.ranks.split(","):
                print(row(name, config, int(ranks)), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--machine", default="h200x8")
    parser.add_argument("--ranks", default="1,8,64,512")
    parser.add_argument("--models", default="1B,8B,70B,405B")
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--shard", default="none,node,full")
    parser.add_argument("--strong", action="store_true")
    parser.add_argument("--binary", type=Path, default=ROOT / "build" / "mudman-mpi")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests" / "python"))
    from model_helpers import hollow_llama, random_case

    main()
