#!/usr/bin/env python3
"""Multiple-choice evaluation against transformers, question by question, and its speed beside PyTorch's.

    check_questions.py QUESTIONS.jsonl --tokenizer FOLDER [--binary build/mudman-mpi] [--limit N] [--threads 2]

By hand: needs torch and transformers (tests/golden/requirements.txt). A model of pythia-14m's shape with random
weights answers the questions. The oracle makes prompts and tokens from the JSON lines by itself, runs one question at
a time without padding, and takes the logits of " A" to " D" at the last token. Compared are the probability of the right
choice and whether it is the most probable, first of every question in a file of its own, then of the whole file, which the
program sorts and pads. The speed is that of `mudman-mpi eval` on all questions against PyTorch on the same prompts, sorted and
padded in batches of 16, logits of the last positions alone; start-up is left out of both.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

ROOT = Path(__file__).resolve().parents[2]
BATCH = 16
ROUNDS = 3


def make_model(folder: Path) -> GPTNeoXForCausalLM:
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=50304, hidden_size=128, num_hidden_layers=6, num_attention_heads=4,
        intermediate_size=512, rotary_pct=0.25, max_position_embeddings=2048,
        initializer_range=0.2,
    )  # fmt: skip
    model = GPTNeoXForCausalLM(config).eval()
    model.save_pretrained(folder)
    return model


def prompt(record: dict) -> str:
    letters = zip("ABCD", record["choices"], strict=True)
    lines = [record["question"].strip(), *(f"{letter}. {choice}" for letter, choice in letters)]
    return "\n".join([*lines, "Answer:"])


@torch.no_grad()
def probabilities(model: GPTNeoXForCausalLM, prompts: list[list[int]], answers: list[int]):
    """[n, 4] of the choices, one question at a time."""
    rows = []
    for tokens in prompts:
        hidden = model.gpt_neox(torch.tensor([tokens])).last_hidden_state[0, -1]
        rows.append(torch.softmax((model.get_output_embeddings().weight[answers] @ hidden).double(), 0))
    return torch.stack(rows).numpy()


@torch.no_grad()
def time_pytorch(model: GPTNeoXForCausalLM, prompts: list[list[int]]) -> float:
    started = time.monotonic()
    ranked = sorted(prompts, key=len)
    for first in range(0, len(ranked), BATCH):
        batch = ranked[first : first + BATCH]
        tokens = torch.zeros(len(batch), len(batch[-1]), dtype=torch.long)
        for row, own in zip(tokens, batch, strict=True):
            row[: len(own)] = torch.tensor(own)
        hidden = model.gpt_neox(tokens).last_hidden_state
        last = hidden[torch.arange(len(batch)), torch.tensor([len(own) - 1 for own in batch])]
        model.get_output_embeddings()(last)
    return time.monotonic() - started


def padding(prompts: list[list[int]]) -> float:
    """The share of padded positions where questions are sorted by length."""
    lengths = sorted(map(len, prompts))
    batches = [lengths[first : first + BATCH] for first in range(0, len(lengths), BATCH)]
    return 1 - sum(lengths) / sum(len(batch) * batch[-1] for batch in batches)


def take_apart(whole: Path, folder: Path) -> list[Path]:
    """A file for every question, in the whole file's order."""
    paths = []
    with h5py.File(whole) as file:
        offsets = file["offsets"][:]
        for i in range(len(offsets) - 1):
            path = folder / f"{i}.h5"
            with h5py.File(path, "w") as one:
                one["prompts"] = file["prompts"][offsets[i] : offsets[i + 1]]
                one["offsets"] = np.array([0, offsets[i + 1] - offsets[i]], dtype="<u8")
                one["choices"] = file["choices"][i : i + 1]
                one["answers"] = file["answers"][i : i + 1]
            paths.append(path)
    return paths


def evaluate(binary: Path, model: Path, files: dict[str, Path], temperature: int, threads: int):
    """Accuracies by name, and the seconds of the whole process."""
    folder = model.parent
    tokens = folder / "tokens.h5"
    with h5py.File(tokens, "w") as file:
        file["tokens"] = np.zeros((1, 2), dtype="<u4")
        file.attrs["vocab_size"] = np.uint32(50304)
        file.attrs["tokenizer"] = file.attrs["source"] = "none"
    rows = [{"name": n, "file": str(f), "temperature": temperature} for n, f in files.items()]
    config = {
        "model": {"path": str(model)},
        "device": "cpu",
        "data": {"retain_validation": str(tokens), "forget_validation": str(tokens), "batch_size": 1,
                 "micro_batch": BATCH, "context_length": 2},
        "evaluate": {"batches": 1, "multiple_choice": rows},
    }  # fmt: skip
    path = folder / "eval.yaml"
    path.write_text(json.dumps(config))
    started = time.monotonic()
    out = subprocess.run([binary, "eval", path], check=True, capture_output=True, text=True,
                         env=os.environ | {"OMP_NUM_THREADS": str(threads)}).stdout  # fmt: skip
    seconds = time.monotonic() - started
    return dict((n, float(x)) for n, x in re.findall(r"accuracy (\S+) (\S+)", out)), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("questions", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--binary", type=Path, default=ROOT / "build/mudman-mpi")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    lines = options.questions.read_text(encoding="utf-8").split("\n")
    records = [json.loads(line) for line in lines if line]
    records = records[: options.limit]
    tokenizer = Tokenizer.from_file(str(options.tokenizer / "tokenizer.json"))
    prompts = [tokenizer.encode(prompt(record)).ids for record in records]
    answers = [tokenizer.encode(f" {letter}").ids[0] for letter in "ABCD"]

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = make_model(folder / "model")
        source = folder / "questions.jsonl"
        source.write_text("".join(json.dumps(record) + "\n" for record in records))
        prepare = [sys.executable, ROOT / "tools/prepare_data.py", source, "--multiple-choice",
                   "--tokenizer", options.tokenizer, "--output", folder / "all"]  # fmt: skip
        subprocess.run(prepare, check=True, capture_output=True)
        with h5py.File(folder / "all.h5") as file:
            offsets, stored = file["offsets"][:], file["prompts"][:]
        of = {tuple(p): i for i, p in enumerate(prompts)}
        order = [of[tuple(stored[a:b])] for a, b in zip(offsets, offsets[1:], strict=False)]

        table = probabilities(model, prompts, answers)
        right = np.array([record["answer"] for record in records])
        chance = table[np.arange(len(records)), right][order]
        hits = (table.argmax(1) == right)[order]

        (folder / "one").mkdir()
        files = {f"q{i}": path for i, path in enumerate(take_apart(folder / "all.h5", folder / "one"))}
        for temperature, want in ((1, chance), (0, hits)):
            arguments = (options.binary, folder / "model")
            got, _ = evaluate(*arguments, files, temperature, options.threads)
            own = np.array([got[name] for name in files])
            whole, _ = evaluate(*arguments, {"all": folder / "all.h5"}, temperature, options.threads)
            print(f"temperature {temperature}: {len(own)} questions, each by itself: largest difference "
                  f"{np.abs(own - want).max():.2g}; mean of the whole file {whole['all']:.6f}, "
                  f"transformers {want.mean():.6f}")  # fmt: skip

        few = take_apart(folder / "all.h5", folder / "one")[0]
        ours, peers = [], []
        for _ in range(ROUNDS):
            _, start_up = evaluate(*arguments, {"all": few}, 0, options.threads)
            _, seconds = evaluate(*arguments, {"all": folder / "all.h5"}, 0, options.threads)
            ours.append(seconds - start_up)
            peers.append(time_pytorch(model, prompts))
        print(f"padding in batches of {BATCH}, sorted: {100 * padding(prompts):.1f} %")
        print(f"speed, {options.threads} threads: {min(ours):.2f} s, PyTorch {min(peers):.2f} s: "
              f"{min(peers) / min(ours):.2f} times as fast")  # fmt: skip


if __name__ == "__main__":
    main()
