"""The table of docs/scaling.md: what `plan --machine` predicts for Llama's shapes on many GPUs.

    .venv/bin/python tests/bench/scaling_table.py [--machine h200x8] [--ranks 1,8,64,512]
        [--models 1B,8B,70B,405B] [--sequences 16] [--strong]
        [--shard none,full] [--binary build/mudman-mpi]

A model is a config.json and a safetensors file that is all hole: plan reads headers, and no weight.
`none` where the peak of plan is below the memory of the GPU, else `full`, else nothing. Waiting is for
other ranks.
Batches are of --sequences a GPU, or with --strong in all, of 100 tokens.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHAPES = {  # width, mlp, layers, heads, heads of keys, tied, vocabulary
    "1B": (2048, 8192, 16, 32, 8, True, 128256),
    "8B": (4096, 14336, 32, 32, 8, False, 128256),
    "70B": (8192, 28672, 80, 64, 8, False, 128256),
    "405B": (16384, 53248, 126, 128, 8, False, 128256),
    "wide-100m": (1024, 4096, 4, 16, 4, True, 32768),  # bench_loop's
    "smollm-135m": (576, 1536, 30, 9, 3, True, 49152),
}
GIGABYTES = {"h100x8": 80, "h200x8": 141}
UNITS = {"kB": 1e-6, "MB": 1e-3, "GB": 1, "TB": 1e3}


def shapes_of(name: str) -> dict[str, tuple[int, ...]]:
    width, mlp, layers, heads, kv, tied, vocab = SHAPES[name]
    size = width // heads
    found = {"model.embed_tokens.weight": (vocab, width), "model.norm.weight": (width,)}
    if not tied:
        found["lm_head.weight"] = (vocab, width)
    for layer in range(layers):
        for part, shape in {
            "self_attn.q_proj": (width, width),
            "self_attn.k_proj": (kv * size, width),
            "self_attn.v_proj": (kv * size, width),
            "self_attn.o_proj": (width, width),
            "mlp.gate_proj": (mlp, width),
            "mlp.up_proj": (mlp, width),
            "mlp.down_proj": (width, mlp),
            "input_layernorm": (width,),
            "post_attention_layernorm": (width,),
        }.items():
            found[f"model.layers.{layer}.{part}.weight"] = shape
    return found


def write_holes(folder: Path, name: str) -> Path:
    """A model folder whose weights take no space."""
    width, mlp, layers, heads, kv, tied, vocab = SHAPES[name]
    folder.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv, "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0, "max_position_embeddings": 8192, "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16", "vocab_size": vocab,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    header, at = {}, 0
    for tensor, shape in shapes_of(name).items():
        end = at + 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[tensor] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + at)
    return folder


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
            model = write_holes(Path(folder) / name, name)
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
    parser.add_argument("--shard", default="none,full")
    parser.add_argument("--strong", action="store_true")
    parser.add_argument("--binary", type=Path, default=ROOT / "build" / "mudman-mpi")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests" / "python"))
    from model_helpers import random_case

    main()
