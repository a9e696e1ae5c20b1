"""The exported model: the input's folder with new values for W and nothing else."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from job_helpers import fail, result_of, snapshot, state_of, succeed
from model_helpers import (
    Case,
    floats_of,
    header_bytes,
    read_safetensors,
    rounded_to_bfloat16,
    write_safetensors,
)


def with_company(case: Case, folder: Path) -> Path:
    """The model's folder as downloaded: with a tokenizer, other formats, and hidden files."""
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(case.model / name, folder / name)
    (folder / "tokenizer.json").write_text('{"model": {"type": "BPE"}}')
    (folder / "generation_config.json").write_text("{}")
    (folder / "README.md").write_text("# a model\n")
    (folder / "pytorch_model.bin").write_bytes(b"the same weights, not unlearned")
    return folder


COMPANY = {
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "generation_config.json",
    "README.md",
}


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("name", ["llama-gqa-tied", "neox-parallel"])
def test_only_w_changes(
    golden: Callable[[str], Case], tmp_path: Path, name: str, ranks: int
) -> None:
    case, run = golden(name), tmp_path / "run"
    model = with_company(case, tmp_path / "model")
    case.run(run, f"model.path={model}", ranks=ranks)
    assert {path.name for path in (run / "model").iterdir()} == COMPANY
    for other in COMPANY - {"model.safetensors"}:
        assert (run / "model" / other).read_bytes() == (model / other).read_bytes()
    weights, unlearned = model / "model.safetensors", run / "model" / "model.safetensors"
    assert header_bytes(unlearned) == header_bytes(weights)
    base = {key[5:]: values for key, values in state_of(run).items() if key.startswith("base/")}
    before, after = floats_of(weights), floats_of(unlearned)
    assert 0 < len(base) < len(before)
    for tensor, values in before.items():
        if tensor in base:
            assert np.array_equal(after[tensor], base[tensor])
            assert not np.array_equal(after[tensor], values)
        else:
            assert after[tensor].tobytes() == values.tobytes()


@pytest.mark.parametrize("ranks", [1, 3])
def test_adapters_are_merged(tiny: Case, tmp_path: Path, ranks: int) -> None:
    """What is written is the model, W + (8/rank) B A; the rest as it came."""
    run = tmp_path / "run"
    tiny.run(run, "unlearn.lora_rank=3", "unlearn.train_adversary=false", ranks=ranks)
    state = state_of(run)
    before = floats_of(tiny.model / "model.safetensors")
    after = floats_of(run / "model" / "model.safetensors")
    changed = {key[5:-7] for key in state if key.startswith("base/")}
    assert changed == {name for name in before if "gate_proj" in name}
    for name, values in before.items():
        if name in changed:
            a, b = (state[f"base/{name}.lora_{matrix}"].astype(float) for matrix in "AB")
            assert a.shape[0] == b.shape[1] == 3 and np.abs(b).max() > 0
            assert after[name] == pytest.approx(values + 8 / 3 * (b @ a), rel=1e-6, abs=1e-7)
        else:
            assert after[name].tobytes() == values.tobytes()


@pytest.mark.parametrize("name", ["llama-gqa-tied", "llama3-untied", "qwen2", "qwen3", "olmo2", "neox-serial"])
def test_exported_model_has_the_losses_after_unlearning(
    golden: Callable[[str], Case], tmp_path: Path, name: str
) -> None:
    case, run = golden(name), tmp_path / "run"
    case.run(run, "evaluate.batches=2")
    out = succeed("eval", case.config, f"model.path={run / 'model'}", "evaluate.batches=2").out
    losses = [float(text) for text in re.findall(r"^(?:forget|retain) loss (\S+)$", out, re.M)]
    result = result_of(run)
    expected = [result["forget_loss_unlearn"], result["retain_loss_unlearn"]]
    assert losses == pytest.approx(expected, abs=1e-6)
    assert abs(result["forget_loss_start"] - losses[0]) > 1e-4


def test_export_is_before_relearning(tiny: Case, finished: Path, tmp_path: Path) -> None:
    tiny.run(tmp_path / "run", "relearn.passes=0")
    assert snapshot(tmp_path / "run" / "model") == snapshot(finished / "model")


def test_save_dtype(tiny: Case, finished: Path, tmp_path: Path) -> None:
    """bfloat16 rounds every tensor to nearest, and config.json says so."""
    run = tmp_path / "run"
    outcome = tiny.run(run, "output.save_dtype=bfloat16")
    header, tensors = read_safetensors(run / "model" / "model.safetensors")
    exact = floats_of(finished / "model" / "model.safetensors")
    assert tensors.keys() == exact.keys()
    for name, values in exact.items():
        assert header[name]["dtype"] == "BF16" and header[name]["shape"] == list(values.shape)
        assert tensors[name] == rounded_to_bfloat16(values), name
    config = json.loads((tiny.model / "config.json").read_text())
    assert json.loads((run / "model" / "config.json").read_text()) == config | {
        "torch_dtype": "bfloat16"
    }
    changed, lost = re.search(r"(\d+) of 1056 .* changed, (\S+) % .* lost", outcome.err).groups()
    stored = floats_of(tiny.model / "model.safetensors")
    updates = [name for name in exact if "gate_proj" in name]
    moved = sum((exact[name] != stored[name]).sum() for name in updates)
    gone = sum(
        np.sum(
            (exact[name] != stored[name])
            & (bfloat16_values(exact[name]) == bfloat16_values(stored[name]))
        )
        for name in updates
    )
    assert int(changed) == moved and gone > 0
    assert float(lost) == pytest.approx(100 * gone / moved, rel=0.05)
    succeed("eval", tiny.config, f"model.path={run / 'model'}")


def test_model_of_links(tiny: Case, finished: Path, tmp_path: Path) -> None:
    """As in the download cache of transformers: the export holds files, and the cache stays."""
    model, blobs = tmp_path / "snapshot", tmp_path / "blobs"
    model.mkdir()
    blobs.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny.model / name, blobs / name)
        (model / name).symlink_to(Path("../blobs") / name)
    before = snapshot(blobs)
    tiny.run(tmp_path / "run", f"model.path={model}")
    assert not any(path.is_symlink() for path in (tmp_path / "run" / "model").iterdir())
    assert snapshot(tmp_path / "run" / "model") == snapshot(finished / "model")
    assert snapshot(blobs) == before


def bfloat16_values(values: np.ndarray) -> np.ndarray:
    return np.frombuffer(rounded_to_bfloat16(values), dtype="<u2").reshape(values.shape)


def sharded(case: Case, folder: Path) -> Path:
    """The model in two files with an index."""
    folder.mkdir()
    shutil.copy(case.model / "config.json", folder)
    tensors = floats_of(case.model / "model.safetensors")
    names = sorted(tensors)
    files = {"model-00001-of-00002.safetensors": names[::2]}
    files["model-00002-of-00002.safetensors"] = names[1::2]
    for file, held in files.items():
        write_safetensors(folder / file, {name: tensors[name] for name in held})
    index = {
        "metadata": {"total_size": sum(values.nbytes for values in tensors.values())},
        "weight_map": {name: file for file, held in files.items() for name in held},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return folder


def test_sharded_model(tiny: Case, finished: Path, tmp_path: Path) -> None:
    """Read and written as it is stored; the same numbers as from one file."""
    model, run = sharded(tiny, tmp_path / "model"), tmp_path / "run"
    tiny.run(run, f"model.path={model}", ranks=2)
    assert {path.name for path in model.iterdir()} == {
        path.name for path in (run / "model").iterdir()
    }
    whole = floats_of(finished / "model" / "model.safetensors")
    found = {}
    for file in sorted(model.glob("*.safetensors")):
        assert header_bytes(run / "model" / file.name) == header_bytes(file)
        found |= floats_of(run / "model" / file.name)
    assert found.keys() == whole.keys()
    for name, values in whole.items():
        assert np.allclose(found[name], values, rtol=0, atol=1e-5 * np.abs(values).max())
    index = "model.safetensors.index.json"
    assert (run / "model" / index).read_bytes() == (model / index).read_bytes()


def test_shard_that_is_not_there(tiny: Case, tmp_path: Path) -> None:
    model = sharded(tiny, tmp_path / "model")
    (model / "model-00002-of-00002.safetensors").unlink()
    message = fail(2, "run", tiny.config, f"model.path={model}", f"output.dir={tmp_path / 'run'}")
    assert "model-00002-of-00002.safetensors" in message and not (tmp_path / "run").exists()


def test_half_precision_model(tiny: Case, tmp_path: Path) -> None:
    """Stored in bfloat16: computed in float32, exported in bfloat16 again."""
    model, run = tmp_path / "model", tmp_path / "run"
    model.mkdir()
    tensors = {
        name: np.frombuffer(rounded_to_bfloat16(values), dtype="<u2").reshape(values.shape)
        for name, values in floats_of(tiny.model / "model.safetensors").items()
    }
    write_safetensors(model / "model.safetensors", tensors, "BF16")
    shutil.copy(tiny.model / "config.json", model)
    tiny.run(run, f"model.path={model}")
    exported = run / "model" / "model.safetensors"
    assert header_bytes(exported) == header_bytes(model / "model.safetensors")
    _, after = read_safetensors(exported)
    base = state_of(run)
    for name, values in tensors.items():
        expected = values.tobytes()
        if f"base/{name}" in base:
            expected = rounded_to_bfloat16(base[f"base/{name}"])
        assert after[name] == expected, name
