"""Rows of different lengths, with prompts that are not learnt: /lengths and /answer_from."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from job_helpers import fail, lines_of, result_of, succeed
from model_helpers import random_case, random_llama, write_tokens
from test_trials import Server

BATCH, CONTEXT, WIDER, VOCAB, ROWS = 6, 12, 31, 60, 20
SETS = ("retain", "forget", "retain_validation", "forget_validation")
EXACT = ("reduction=exact", "output.hash_every_loops=1", "output.save_model=false",
         "relearn.passes=16", "evaluate.batches=2", "evaluate.every_passes=8")  # fmt: skip
ATTACKS = (
    "relearn.attacks=[{name: sgd, with_retain: true}, {name: adamw, optimizer: adamw, lr: 0.01},"
    " {name: lora, lora_rank: 3}]"
)
VARIANTS = {
    "listing": (ATTACKS,),
    "entropy": ("unlearn.unlearning_loss_fn=neg_entropy", "unlearn.graph=fresh"),
    "logit": ("unlearn.unlearning_loss_fn=correct_logit_minus_avg", "model.dtype=bfloat16"),
    "npo": ("unlearn.unlearning_loss_fn=npo",),
    "simnpo": ("unlearn.unlearning_loss_fn=simnpo", "data.micro_batch=2"),
    "states": ("unlearn.unlearning_loss_fn=stream_activation", "unlearn.rep_eng_retain_lr=0.5"),
    "rmu": ("unlearn.unlearning_loss_fn=rmu",),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lengths")
    model = random_llama(folder / "model", width=16, mlp=24, layers=2, vocab=VOCAB)
    random_case(folder, model, batch=BATCH, context=CONTEXT).rename(folder / "c.yaml")
    return folder


def shapes(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, lengths and beginnings of answers of a set."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, CONTEXT + 1, ROWS)
    return rng.integers(0, VOCAB, (ROWS, CONTEXT)), lengths, rng.integers(0, lengths - 1)


def write_rows(path: Path, width: int, seed: int, **changes: Any) -> Path:
    """A token file of that width; its padding is noise."""
    tokens, lengths, answers = shapes(seed)
    noise = np.random.default_rng(seed + 1000 * width).integers(0, VOCAB, (ROWS, width))
    own = np.arange(CONTEXT) < lengths[:, None]
    noise[:, :CONTEXT][own] = tokens[own]
    write_tokens(path, noise, VOCAB)
    with h5py.File(path, "a") as file:
        for name, values in ({"lengths": lengths, "answer_from": answers} | changes).items():
            if values is not None:
                file[name] = values
    return path


def data(folder: Path, width: int) -> list[str]:
    """Arguments of four files of that width."""
    files = {name: write_rows(folder / f"{name}-{width}.h5", width, i) for i, name in enumerate(SETS)}
    return [*(f"data.{name}={path}" for name, path in files.items()), f"data.context_length={width}"]


def story(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl but for what a run is told and how long it took."""
    phases = ("unlearn", "eval", "relearn", "result")
    other = ("seconds", "peak_bytes", "identity", "loops_per_second")
    return [
        {key: value for key, value in line.items() if key not in other}
        for phase in phases
        for line in lines_of(run, phase)
    ]


@pytest.mark.parametrize("name", VARIANTS)
def test_padding_changes_nothing(folder: Path, tmp_path: Path, name: str) -> None:
    """To the bit, and on any number of ranks; noise in the padding, too."""
    for width, ranks in ((CONTEXT, 1), (WIDER, 1), (WIDER, 3)):
        run = tmp_path / f"{width}-{ranks}"
        succeed("run", folder / "c.yaml", *EXACT, *data(tmp_path, width), *VARIANTS[name],
                f"output.dir={run}", ranks=ranks)  # fmt: skip
    first = story(tmp_path / f"{CONTEXT}-1")
    assert len(first) > 10 and first == story(tmp_path / f"{WIDER}-1")
    assert first == story(tmp_path / f"{WIDER}-3")


def test_trials_on_such_rows(folder: Path, tmp_path: Path) -> None:
    """A trial is the run that it stands for, with several attacks and the divergence too."""
    files = data(tmp_path, CONTEXT)
    more = [ATTACKS, f"evaluate.kl.file={tmp_path / f'retain-{CONTEXT}.h5'}", "evaluate.kl.rows=9"]
    server = Server(folder / "c.yaml", *EXACT, *files, *more, "output.dir=unused")
    ready = server.hear()
    for i, settings in enumerate(({}, {"unlearn.unlearning_loss_fn": "npo"}, {"unlearn.loops": 2})):
        run = tmp_path / f"run-{i}"
        own = [f"{key}={value}" for key, value in settings.items()]
        succeed("run", folder / "c.yaml", *EXACT, *files, *more, *own, f"output.dir={run}")
        server.say({"id": i, "overrides": settings})
        told, evaluations = server.result()
        want = result_of(run)
        start, *curve = (line for line in story(run) if line.get("at"))
        scores = ("score", "score_sgd", "score_adamw", "score_lora")
        for key in (*scores, "retain_loss_relearn", "kl_unlearn", "kl_relearn"):
            assert told[key] == want[key] is not None, key
        assert [e["forget_loss"] for e in evaluations] == [e["forget_loss"] for e in curve]
        assert ready["forget_loss"] == start["forget_loss"]
    assert server.end() == 0


def test_padding_changes_nothing_without_exact(folder: Path, tmp_path: Path) -> None:
    for width in (CONTEXT, WIDER):
        succeed("run", folder / "c.yaml", *EXACT[1:], *data(tmp_path, width),
                f"output.dir={tmp_path / str(width)}")  # fmt: skip
    assert story(tmp_path / str(CONTEXT)) == story(tmp_path / str(WIDER))


def test_whole_rows_are_as_without(folder: Path, tmp_path: Path) -> None:
    whole = {"lengths": np.full(ROWS, CONTEXT), "answer_from": np.zeros(ROWS, np.int64)}
    for name, changes in (("with", whole), ("without", dict.fromkeys(whole))):
        file = write_rows(tmp_path / f"{name}.h5", CONTEXT, 1, **changes)
        succeed("run", folder / "c.yaml", *EXACT, f"data.forget={file}",
                f"output.dir={tmp_path / name}")  # fmt: skip
    assert story(tmp_path / "with") == story(tmp_path / "without")


def test_the_answer_is_what_is_learnt(folder: Path, tmp_path: Path) -> None:
    """Evaluation of answers is the mean over their tokens, which differs from that over all."""
    lengths = np.array(shapes(0)[1])
    printed = []
    for answers in (None, np.zeros_like(lengths), lengths - 1):
        file = write_rows(tmp_path / f"{len(printed)}.h5", CONTEXT, 0, answer_from=answers)
        out = succeed("eval", folder / "c.yaml", f"data.forget_validation={file}").out
        printed.append({line.rpartition(" ")[0]: line for line in out.splitlines()})
    every, zero, last = printed
    assert every["forget loss"] == zero["forget loss"] != last["forget loss"]
    assert every["hash evaluation"] == zero["hash evaluation"] != last["hash evaluation"]
    assert every["retain loss"] == last["retain loss"]


def test_resume_with_other_lengths(folder: Path, tmp_path: Path) -> None:
    """They are part of what a run is made from; how they are stored, and what padding holds, is not."""
    run, forget, whole = tmp_path / "run", tmp_path / "forget.h5", tmp_path / "whole.h5"
    write_rows(whole, CONTEXT, 1)
    write_rows(forget, CONTEXT, 1)
    succeed("run", folder / "c.yaml", f"data.forget={forget}", f"output.dir={run}")
    others: tuple[dict[str, Any], ...] = (
        {"lengths": np.full(ROWS, CONTEXT)},
        {"answer_from": np.zeros(ROWS, int)},
        {"lengths": None, "answer_from": None},
    )
    for changes in others:
        write_rows(forget, CONTEXT, 1, **changes)
        message = fail(2, "resume", run, "unlearn.loops=6", ranks=2)
        assert f"made from another data.forget than {forget}" in message
    shutil.copy(whole, forget)
    with h5py.File(forget, "a") as file:
        own = np.arange(CONTEXT) < file["lengths"][:][:, None]
        file["tokens"][...] = np.where(own, file["tokens"][:], 7)
        lengths = file["lengths"][:]
        del file["lengths"]
        file["lengths"] = lengths.astype("u1")
    succeed("resume", run, "unlearn.loops=6", ranks=2)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "too long": ({"lengths": [CONTEXT + 1] + [CONTEXT] * (ROWS - 1)}, "element 0 of 'lengths' is 13"),
    "fewer": ({"lengths": [CONTEXT] * 3}, "'lengths' is [3, 1], not [20, 1]"),
    "floats": ({"lengths": np.full(ROWS, 4.0)}, "'lengths' does not hold integers"),
    "negative": ({"answer_from": [-1] * ROWS}, "element 0 of 'answer_from' is -1"),
    "empty": ({"lengths": [3] * 19 + [0], "answer_from": None}, "row 19 has nothing to learn"),
    "one token": ({"lengths": [1] * ROWS, "answer_from": None}, "row 0 has nothing to learn"),
    "no answer": ({"lengths": None, "answer_from": [CONTEXT] * ROWS}, "answer begins at token 12"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_rows(folder: Path, tmp_path: Path, name: str) -> None:
    changes, words = BAD[name]
    file = write_rows(tmp_path / "bad.h5", CONTEXT, 1, **changes)
    assert words in fail(2, "plan", folder / "c.yaml", f"data.forget={file}")


@pytest.mark.parametrize("name", ["length", "Lengths", "attention_mask", "labels"])
def test_a_dataset_that_is_not_read_is_named(folder: Path, tmp_path: Path, name: str) -> None:
    """Its writer may have meant that padding is not learnt; a file of ours has no such thing."""
    others = {"lengths": None, "answer_from": None, name: np.ones(ROWS, int)}
    file = write_rows(tmp_path / "r.h5", CONTEXT, 1, **others)
    for ranks in (1, 2):
        told = succeed("eval", folder / "c.yaml", f"data.forget={file}", ranks=ranks).err
        assert told.count(f"warning: {file}: '{name}': not read; how long a row is") == 1
    with h5py.File(file, "a") as opened:
        opened.update({f"x{i}": 1 for i in range(6)})
    told = succeed("eval", folder / "c.yaml", f"data.forget={file}").err
    assert f"'{name}', 'x0', 'x1', 'x2' and others: not read" in told
    file = write_rows(tmp_path / "good.h5", CONTEXT, 1)
    assert succeed("eval", folder / "c.yaml", f"data.forget={file}").err == ""


def test_an_answer_behind_the_context(folder: Path, tmp_path: Path) -> None:
    """A file may be wider than what is read; a row must have something to learn in that."""
    file = write_rows(tmp_path / "r.h5", CONTEXT, 1, lengths=None, answer_from=[5] * ROWS)
    short = ["data.context_length=5", f"data.forget={file}"]
    message = fail(2, "run", folder / "c.yaml", *short, f"output.dir={tmp_path / 'r'}", ranks=2)
    assert "row 0 has nothing to learn in its first 5 tokens" in message
    assert not (tmp_path / "r").exists()
