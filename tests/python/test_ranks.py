"""Ranks and threads: any count gives the same run to rounding, the same count the same bits."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from job_helpers import (
    assert_close,
    assert_close_metrics,
    assert_close_state,
    assert_same_run,
    repeatable_metrics,
    state_of,
    succeed,
)
from model_helpers import Case, floats_of, random_case, random_llama

RANKS = (1, 2, 3, 4)
# gate_proj of 22 rows: blocks of 11 and 11, 8 + 8 + 6, 6 + 6 + 6 + 4. The others have rows that no
# count divides either.
VARIANTS = [
    ("llama-gqa-tied", "listing"),
    ("llama-gqa-tied", "no_adversary"),
    ("llama-gqa-tied", "per_parameter"),
    ("llama3-untied", "fresh"),
    ("neox-parallel", "all_modules"),
]


@pytest.mark.parametrize(("case", "variant"), VARIANTS)
def test_ranks_agree(
    golden: Callable[[str], Case], tmp_path: Path, case: str, variant: str
) -> None:
    """b, a, m, every metric, and the exported model; the golden traces stay clear of the mask's edge."""
    model = golden(case)
    arguments = [model.config]
    if variant != "listing":
        arguments += model.overrides(variant)
    trace = model.trace(variant)
    for ranks in RANKS:
        succeed("run", *arguments, f"output.dir={tmp_path / str(ranks)}", ranks=ranks)
    exported = floats_of(tmp_path / "1" / "model" / "model.safetensors")
    for ranks in RANKS[1:]:
        one, some = tmp_path / "1", tmp_path / str(ranks)
        assert_close_state(one, some)
        assert_close_metrics(one, some)
        for name, values in floats_of(some / "model" / "model.safetensors").items():
            assert_close(name, values, exported[name].astype(float), 1e-5)
        for name, values in state_of(some).items():
            assert_close(name, values, trace[name], 1e-4)


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model large enough that every kernel divides its work among threads."""
    folder = tmp_path_factory.mktemp("busy")
    model = random_llama(folder / "model", width=64, mlp=331, layers=2, vocab=521)
    return random_case(
        folder, model, batch=7, context=33, data__micro_batch=2, unlearn__loops=3,
        unlearn__target_modules=["gate_proj", "v_proj", "down_proj"], relearn__passes=6,
        evaluate__every_passes=5,
    )  # fmt: skip


@pytest.mark.parametrize("graph", ["listing", "fresh", "reuse", "none"])
def test_rounded_reductions_tell_what_they_change(busy: Path, tmp_path: Path, graph: str) -> None:
    """The mask in float32 differs, but in few places: a share of 2^-9 of all is what rounding explains."""
    arguments = ["unlearn.train_adversary=false"] if graph == "none" else [f"unlearn.graph={graph}"]
    arguments += ["reduce_dtype=bfloat16", "relearn.passes=0"]
    told = succeed("run", busy, *arguments, f"output.dir={tmp_path / 'run'}", ranks=3)
    share = re.search(r"bfloat16 masks (\S+) % of the weights otherwise", told.err)
    assert share and 0 < float(share[1]) < 2, told.err
    alone = succeed("run", busy, *arguments, f"output.dir={tmp_path / 'alone'}")
    assert "masks" not in alone.err


@pytest.mark.parametrize("threads", [1, 4, 8])
@pytest.mark.parametrize("ranks", RANKS)
def test_same_count_repeats_bit_by_bit(
    busy: Path, tmp_path: Path, ranks: int, threads: int
) -> None:
    for name in ("first", "second"):
        succeed("run", busy, f"output.dir={tmp_path / name}", ranks=ranks, threads=threads)
    assert_same_run(tmp_path / "first", tmp_path / "second")


@pytest.mark.parametrize("state", ["float32", "bfloat16"])
def test_parts_are_row_blocks(tiny: Case, tmp_path: Path, state: str) -> None:
    """Rank r of R holds rows r·c to (r+1)·c - 1, c the rows by R rounded up."""
    run, name = tmp_path / "run", "model.layers.1.mlp.gate_proj.weight"
    tiny.run(run, f"model.state_dtype={state}", "relearn.passes=0",
        ranks=3,
    )  # fmt: skip
    whole = state_of(run)
    for group in ("base", "adversary", "retain_acc"):
        rows = []
        for rank in range(3):
            with h5py.File(run / f"checkpoints/8/part-{rank:05d}.h5") as part:
                stored = part[group][name].id.get_type().get_size()
                assert stored == (4 if state == "float32" else 2)
                rows.append(part[group][name][:])
        assert [len(block) for block in rows] == [8, 8, 6]
        assert np.array_equal(np.concatenate(rows), whole[f"{group}/{name}"])


def test_rank_without_rows(tmp_path: Path) -> None:
    """Five rows on four ranks: two, two, one and none."""
    model = random_llama(tmp_path / "model", width=8, mlp=5, layers=1, vocab=11, heads=2)
    config = random_case(tmp_path, model, batch=4, context=6, unlearn__use_masking=False)
    for ranks in (1, 4):
        succeed("run", config, f"output.dir={tmp_path / str(ranks)}", ranks=ranks)
    assert_close_state(tmp_path / "1", tmp_path / "4")
    assert_close_metrics(tmp_path / "1", tmp_path / "4")
    succeed("resume", tmp_path / "4", ranks=3)
    assert_close_metrics(tmp_path / "1", tmp_path / "4")


def test_sequences_that_ranks_do_not_divide(tmp_path: Path) -> None:
    """Seven sequences on three ranks, at once or one by one; the mask is off: it has no margin here."""
    model = random_llama(tmp_path / "model", width=16, mlp=20, layers=2, vocab=31)
    config = random_case(tmp_path, model, batch=7, context=9, unlearn__use_masking=False)
    for ranks, micro in ((1, 16), (1, 3), (3, 16), (3, 1), (2, 2)):
        run = tmp_path / f"{ranks}-{micro}"
        succeed("run", config, f"output.dir={run}", f"data.micro_batch={micro}", ranks=ranks)
        assert_close_state(tmp_path / "1-16", run)
        assert_close_metrics(tmp_path / "1-16", run)


def test_more_ranks_than_sequences(tmp_path: Path) -> None:
    """The third has nothing to compute, which is said; the sums are those of two ranks."""
    model = random_llama(tmp_path / "model", width=16, mlp=20, layers=2, vocab=31)
    config = random_case(tmp_path, model, batch=2, context=9, unlearn__use_masking=False)
    succeed("run", config, f"output.dir={tmp_path / '2'}", ranks=2)
    told = succeed("run", config, f"output.dir={tmp_path / '3'}", ranks=3).err
    assert "1 of 3 ranks have no sequence of a batch" in told
    assert_close_state(tmp_path / "2", tmp_path / "3")
    assert_close_metrics(tmp_path / "2", tmp_path / "3")


def test_one_rank_under_mpirun_is_one_rank(tiny: Case, finished: Path, tmp_path: Path) -> None:
    tiny.run(tmp_path / "run", ranks=1, launcher=True)
    assert_same_run(finished, tmp_path / "run")


def test_metrics_are_written_once(tiny: Case, tmp_path: Path) -> None:
    """By one rank: no line twice, none by half."""
    run = tmp_path / "run"
    tiny.run(run, ranks=4)
    lines = repeatable_metrics(run)
    assert len(set(lines)) == len(lines) == 8 + 4 + 5 + 2 + 1
    assert all(isinstance(json.loads(line), dict) for line in lines)
