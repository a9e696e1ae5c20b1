#!/usr/bin/env python3
"""Does an exported folder load in transformers and give the logits that our program computes from it?

    check_export.py LOGITS_PROGRAM TOKENS.h5 CONTEXT MODEL_DIR [MODEL_DIR ...]

LOGITS_PROGRAM is build/tests/logits. Prints a line a folder and exits 1 if any logit is off by more than
1e-4 of the largest. export_check.txt is the record of such a run.
"""
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
import torch
from transformers import AutoModelForCausalLM

ROWS = 4
TOLERANCE = 1e-4


def ours(program: str, tokens: str, context: int, folder: str) -> np.ndarray:
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "logits"
        subprocess.run([program, folder, tokens, str(context), str(ROWS), str(out)], check=True)
        return np.fromfile(out, np.float32)


def theirs(tokens: str, context: int, folder: str) -> np.ndarray:
    with h5py.File(tokens) as file:
        rows = file["tokens"][:ROWS, :context].astype(np.int64)
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    with torch.no_grad():
        return model(torch.from_numpy(rows)).logits.numpy()


def main() -> None:
    program, tokens, context = sys.argv[1], sys.argv[2], int(sys.argv[3])
    worst = 0.0
    for folder in sys.argv[4:]:
        want = theirs(tokens, context, folder)
        got = ours(program, tokens, context, folder).reshape(want.shape)
        error = float(np.abs(got - want).max() / np.abs(want).max())
        worst = max(worst, error)
        print(f"{Path(folder).parent.name}/{Path(folder).name}: {want.shape[0]} x {want.shape[1]} positions, "
              f"{want.shape[2]} logits each, largest difference {error:.2g} of the largest logit")
    sys.exit(worst > TOLERANCE)


if __name__ == "__main__":
    main()
