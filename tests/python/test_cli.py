"""The command line beside run and resume: help, version, eval, plan, inspect."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from job_helpers import ROOT, fail, lines_of, repeatable_plan, result_of, snapshot, succeed
from model_helpers import (
    BATCH,
    CASES,
    Case,
    random_case,
    random_llama,
    write_questions,
    write_tokens,
)

KEYS = """
model.path model.dtype model.state_dtype model.shard model.recompute device seed data.retain data.forget data.retain_validation
data.forget_validation data.retain_evaluation data.forget_evaluation data.batch_size data.micro_batch
data.context_length unlearn.loops unlearn.passes unlearn.target_modules unlearn.lora_rank unlearn.unlearning_loss_fn
unlearn.clip_at unlearn.npo_beta unlearn.simnpo_gamma unlearn.unlearning_rate unlearn.retaining_rate unlearn.adv_lr unlearn.retain_momentum
unlearn.fork_every_n_loops unlearn.adv_decay unlearn.forget_momentum
unlearn.discard_growing_weights unlearn.adv_update unlearn.adv_lora_rank unlearn.adv_lora_count
unlearn.train_adversary unlearn.use_masking
unlearn.normalization unlearn.rate_scale unlearn.graph unlearn.rep_eng_retain_lr unlearn.square_norm
unlearn.retain_cross_entropy unlearn.rmu_layer unlearn.rmu_coefficient unlearn.retain_loss_budget relearn.passes
relearn.lr relearn.with_retain relearn.optimizer relearn.lora_rank relearn.state_dtype relearn.attacks
evaluate.every_passes evaluate.batches evaluate.multiple_choice evaluate.kl.file evaluate.kl.rows evaluate.kl.budget
checkpoint.every_loops checkpoint.keep checkpoint.on_error output.dir output.save_model
output.save_dtype output.hash_every_loops pretrain.config pretrain.steps pretrain.lr pretrain.betas pretrain.weight_decay
pretrain.warmup pretrain.min_lr_ratio pretrain.clip reduction reduce_dtype transport timeout
""".split()


COMMANDS = ("run", "resume", "eval", "pretrain", "plan", "trials", "inspect")


def listed_keys(out: str) -> list[str]:
    return re.findall(r"^  ([a-z_]+(?:\.[a-z_]+)*) {2,}", out, re.M)


def test_help() -> None:
    outcome = succeed("--help")
    for command in COMMANDS:
        assert f"\n  mudman-mpi {command} " in outcome.out
    assert listed_keys(outcome.out) == KEYS
    assert re.search(r"\b0 done.*\b2 bad input.*\b3 stopped.*\b4 rejected", outcome.out, re.S)
    assert outcome.err == "" and succeed("-h").out == outcome.out


def test_version() -> None:
    project = re.search(r"project\(mudman-mpi VERSION (\S+)", (ROOT / "CMakeLists.txt").read_text())
    lines = succeed("--version").out.splitlines()
    assert re.fullmatch(rf"mudman-mpi {re.escape(project[1])}\+[0-9a-f]{{8}}", lines[0])
    for name, says in (
        ("processor", r"\S+( with \S.*)?"), ("BLAS", r"OpenBLAS \d+\.\d+\S*, \w+ kernels"), ("MPI", r".*\d.*"),
        ("HDF5", r"\d+\.\d+\.\d+"), ("CUDA", r"(not in this build|runtime \d+\.\d+, .*)"),
        ("oneDNN", r"\d+\.\d+\.\d+, for .*"),
    ):  # fmt: skip
        assert any(re.fullmatch(f"{name}: {says}", line) for line in lines[1:]), name


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(command: str) -> None:
    """Its usage and the keys that concern it, whatever stands beside, without an MPI or a file."""
    outcome = succeed(command, "--help")
    assert outcome.out.startswith(f"  mudman-mpi {command} ") and outcome.err == ""
    assert "Exit status:" in outcome.out and ("--ranks N" in outcome.out) == (command == "plan")
    assert {succeed(command, *words).out for words in (["-h"], ["none.yaml", "-h"])} == {outcome.out}
    keys = listed_keys(outcome.out)
    assert keys == [key for key in KEYS if key in keys]
    known = {
        "run": ("unlearn.adv_lr", "output.dir"), "resume": ("unlearn.loops", "relearn.lr"),
        "eval": ("model.path", "evaluate.batches"), "pretrain": ("pretrain.lr", "output.dir"),
        "plan": ("unlearn.adv_lr", "model.path"), "trials": ("unlearn.adv_lr", "relearn.lr"),
    }.get(command, ())  # fmt: skip
    foreign = {"resume": "unlearn.adv_lr", "pretrain": "unlearn.adv_lr"}.get(command, "pretrain.lr")
    assert set(known) <= set(keys) and foreign not in keys
    assert keys or command == "inspect"


def test_options_that_are_none(tiny: Case) -> None:
    assert "run has no option '--ranks'" in fail(2, "run", tiny.config, "--ranks", 2)
    assert "plan has no option '--rank'" in fail(2, "plan", tiny.config, "--rank", 2, ranks=3)
    assert "--bogus is no option" in fail(2, "--bogus")


# -- eval ---------------------------------------------------------------------------------------------


def printed_losses(out: str) -> list[float]:
    return [float(text) for text in re.findall(r"^(?:forget|retain) loss (\S+)$", out, re.M)]


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_eval_is_the_oracle(
    golden: Callable[[str], Case], tmp_path: Path, name: str, ranks: int
) -> None:
    case = golden(name)
    with h5py.File(case.model / "reference.h5") as file:
        tokens, expected = file["tokens"][:], file["loss/cross_entropy"][()]
    path = write_tokens(tmp_path / "tokens.h5", tokens)
    before = snapshot(tmp_path)
    outcome = succeed(
        "eval", case.config, f"data.forget_validation={path}", f"data.retain_evaluation={path}",
        f"data.forget_evaluation={path}", ranks=ranks,
    )  # fmt: skip
    assert printed_losses(outcome.out) == pytest.approx([expected, expected], abs=4e-6)
    assert snapshot(tmp_path) == before


def test_eval_is_the_start_of_a_run(tiny: Case, finished: Path) -> None:
    start = lines_of(finished, "eval")[0]
    losses = printed_losses(succeed("eval", tiny.config).out)
    assert losses == pytest.approx([start["forget_loss"], start["retain_loss"]], abs=1e-6)


def test_eval_needs_little(tiny: Case, tmp_path: Path) -> None:
    """No training data, no rates, no output folder."""
    config = tmp_path / "eval.yaml"
    data = {
        f"{name}_validation": tiny.data / f"{name}_validation.h5" for name in ("forget", "retain")
    }
    lines = [f"model: {{path: {tiny.model}}}", "data:", "  batch_size: 4", "  context_length: 12"]
    config.write_text("\n".join([*lines, *(f"  {key}: {path}" for key, path in data.items())]))
    assert succeed("eval", config).out == succeed("eval", tiny.config).out


def choices_and_logits(case: Case) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
    """Questions of many lengths with the oracle's logits of their four choices."""
    with h5py.File(case.model / "reference.h5") as file:
        tokens, logits = file["tokens"][:], file["logits"][:]
    generator = np.random.default_rng(3)
    prompts, choices, seen = [], [], []
    for row, length in [(i % 4, 1 + (5 * i) % tokens.shape[1]) for i in range(30)]:
        prompts.append(tokens[row, :length])
        choices.append(generator.choice(logits.shape[2], 4, replace=False))
        seen.append(logits[row, length - 1, choices[-1]])
    return prompts, np.array(choices), generator.integers(0, 4, 30), np.array(seen)


@pytest.mark.parametrize(("ranks", "micro"), [(1, 16), (1, 4), (3, 3)])
def test_multiple_choice(tiny: Case, tmp_path: Path, ranks: int, micro: int) -> None:
    """Hits at temperature 0, else the mean probability of the answer among the choices."""
    prompts, choices, answers, logits = choices_and_logits(tiny)
    path = write_questions(tmp_path / "questions.h5", prompts, choices, answers)
    picked = np.arange(30), answers
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    hot = np.exp(logits / 2) / np.exp(logits / 2).sum(axis=1, keepdims=True)
    expected = {
        "hits": np.mean(logits.argmax(axis=1) == answers),
        "soft": softmax[picked].mean(),
        "hot": hot[picked].mean(),
    }
    asked = ", ".join(
        f"{{name: {name}, file: {path}, temperature: {temperature}}}"
        for name, temperature in (("hits", 0), ("soft", 1), ("hot", 2))
    )
    asked = f"evaluate.multiple_choice=[{asked}]"
    out = succeed("eval", tiny.config, asked, f"data.micro_batch={micro}", ranks=ranks).out
    found = {
        name: (float(value), int(n))
        for name, value, n in re.findall(r"^accuracy (\w+) (\S+) \((\d+) questions\)$", out, re.M)
    }
    assert {name: value for name, (value, _) in found.items()} == pytest.approx(expected, abs=6e-5)
    assert {n for _, n in found.values()} == {30}
    run = tmp_path / "run"
    tiny.run(run, asked, ranks=ranks)
    for line in lines_of(run, "eval"):
        assert [key for key in line if key.startswith("accuracy")] == [
            "accuracy_hits", "accuracy_soft", "accuracy_hot",
        ]  # fmt: skip
    start = lines_of(run, "eval")[0]
    assert {name: start[f"accuracy_{name}"] for name in expected} == pytest.approx(
        expected, rel=1e-5
    )


# -- plan ---------------------------------------------------------------------------------------------

UNITS = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}


def planned(out: str) -> dict[str, list[float]]:
    """The rows of the table in bytes: always, unlearning, relearning."""
    table = {}
    for line in out.splitlines():
        match = re.fullmatch(r"(\S.*?)((?: +[\d.]+ (?:B|kB|MB|GB)){3})", line)
        if match:
            values = re.findall(r"([\d.]+) (\w+)", match[2])
            table[match[1]] = [float(value) * UNITS[unit] for value, unit in values]
    peak = re.search(r"^peak: ([\d.]+) (\w+)", out, re.M)
    table["peak"] = [float(peak[1]) * UNITS[peak[2]]]
    return table


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_plan_counts_the_state_of_a_rank(tiny: Case, ranks: int) -> None:
    """Three tensors of 22 rows of 16 in float32, of which a rank holds ceil(22 / ranks) rows."""
    table = planned(succeed("plan", tiny.config, "--ranks", ranks).out)
    state = 3 * -(-22 // ranks) * 16 * 4
    for name in ("base (b)", "adversary (a)", "retain accumulator (m)"):
        assert table[name] == pytest.approx([0, state, 0], rel=5e-3)
    assert table["checkpoint copy"] == pytest.approx([0, 3 * state, 0], rel=5e-3)
    alone = planned(succeed("plan", tiny.config).out)
    assert table["weights"] == alone["weights"]
    assert table["weights"][0] >= 6432 * 4

    for name in ("activations", "scratch"):
        assert ranks == 1 or sum(table[name]) < sum(alone[name])
    purposes = [values for name, values in table.items() if name not in ("sum", "peak")]
    assert table["sum"] == pytest.approx(np.sum(purposes, axis=0), rel=1e-2)
    assert table["peak"][0] == pytest.approx(table["sum"][0] + max(table["sum"][1:]), rel=1e-2)


@pytest.mark.parametrize("ranks", [1, 3])
def test_plan_counts_the_adapters_of_the_adversary(tiny: Case, ranks: int) -> None:
    """Two sets of rank 5 on three tensors of 22 rows and 16 columns, by blocks of rows."""
    adapters = ["unlearn.adv_lora_rank=5", "unlearn.adv_lora_count=2"]
    out = succeed("plan", tiny.config, *adapters, "unlearn.fork_every_n_loops=6", "--ranks", ranks).out
    numbers = 2 * 3 * (-(-5 // ranks) * 16 + -(-22 // ranks) * 5)
    assert planned(out)["adversary (a)"] == pytest.approx([0, numbers * 4, 0], rel=5e-3)


@pytest.mark.parametrize("ranks", [1, 3])
def test_plan_counts_the_adapters_of_the_base(tiny: Case, ranks: int) -> None:
    """Of rank 5 on three tensors of 22 rows and 16 columns, by blocks of rows."""
    adapters = ["unlearn.lora_rank=5", "unlearn.train_adversary=false", "unlearn.forget_momentum=0.5"]
    table = planned(succeed("plan", tiny.config, *adapters, "--ranks", ranks).out)
    size = 3 * (-(-5 // ranks) * 16 + -(-22 // ranks) * 5) * 4
    for name in ("base (b)", "retain accumulator (m)", "forget accumulator (f)"):
        assert table[name] == pytest.approx([0, size, 0], rel=5e-3)
    assert table["frozen model"] == pytest.approx([0, 3 * -(-22 // ranks) * 16 * 4, 0], rel=5e-3)
    assert table["checkpoint copy"] == pytest.approx([0, 3 * size, 0], rel=5e-3)


def test_plan_takes_its_words_in_any_order(tiny: Case) -> None:
    """Overrides, ranks and the config, as their users would type them."""
    override, file = "unlearn.train_adversary=false", tiny.config
    expected = repeatable_plan(succeed("plan", file, override, "--ranks", 3).out)
    assert expected != repeatable_plan(succeed("plan", file, override).out)
    for words in (
        ["--ranks", 3, override, file], [file, "--ranks", 3, override], ["--ranks=3", file, override],
        [override, file, "--ranks=3"],
    ):  # fmt: skip
        assert repeatable_plan(succeed("plan", *words).out) == expected


def test_plan_counts_the_copy_of_a_trial_server(tiny: Case) -> None:
    out = succeed("plan", tiny.config).out
    copy = re.search(r"^trials: ([\d.]+) kB more", out, re.M)
    assert float(copy[1]) * 1e3 == pytest.approx(planned(out)["weights"][0], rel=0.01)


def test_plan_follows_the_config(tiny: Case) -> None:
    full = planned(succeed("plan", tiny.config).out)
    assert "adversary (a)" not in planned(
        succeed("plan", tiny.config, "unlearn.train_adversary=false").out
    )
    momentum = planned(succeed("plan", tiny.config, "unlearn.forget_momentum=0.5").out)
    assert momentum["forget accumulator (f)"] == full["base (b)"]
    assert "frozen model" not in full
    npo = planned(succeed("plan", tiny.config, "unlearn.unlearning_loss_fn=npo").out)
    assert npo["frozen model"][1] > full["base (b)"][1]
    assert "of 6 passes" in succeed("plan", tiny.config, "unlearn.unlearning_loss_fn=npo").out
    half = planned(succeed("plan", tiny.config, "model.state_dtype=bfloat16").out)
    assert half["base (b)"][1] == pytest.approx(full["base (b)"][1] / 2, rel=5e-3)
    none = planned(succeed("plan", tiny.config, "relearn.passes=0").out)
    assert none["sum"][2] == 0
    fresh = planned(succeed("plan", tiny.config, "unlearn.graph=fresh", "data.micro_batch=1").out)
    assert fresh["activations"][1] < full["activations"][1] / 3, "listing holds all micro-batches"
    assert "8 loops of 5 passes" in succeed("plan", tiny.config).out


def test_plan_counts_the_frozen_model(tiny: Case) -> None:
    """W, and the hidden states of a batch: of two layers for the distance, of one for the cosine."""
    w = planned(succeed("plan", tiny.config).out)["base (b)"][1]

    def states(*overrides: str) -> float:
        return planned(succeed("plan", tiny.config, *overrides).out)["frozen model"][1] - w

    distance = states("unlearn.rep_eng_retain_lr=0.5")
    cosine = states("unlearn.unlearning_loss_fn=circuit_breaker")
    assert distance == pytest.approx(2 * cosine, rel=2e-2) and cosine > 0
    assert states("unlearn.rep_eng_retain_lr=0.5", "unlearn.unlearning_loss_fn=circuit_breaker") == pytest.approx(
        3 * cosine, rel=2e-2
    )
    for fn in ("stream_activation", "rmu"):
        out = succeed("plan", tiny.config, f"unlearn.unlearning_loss_fn={fn}").out
        assert "frozen model" not in planned(out) and "of 5 passes" in out
    out = succeed("plan", tiny.config, "unlearn.rep_eng_retain_lr=0.5", "unlearn.train_adversary=false").out
    assert "of 5 passes" in out
    assert "of 7 passes" in succeed(
        "plan", tiny.config, "unlearn.rep_eng_retain_lr=0.5", "unlearn.graph=fresh"
    ).out


def test_plan_creates_nothing(tiny: Case, tmp_path: Path) -> None:
    before = snapshot(tiny.data)
    out = succeed("plan", tiny.config, f"output.dir={tmp_path / 'run'}", cwd=tmp_path).out
    assert planned(out) and list(tmp_path.iterdir()) == [] and snapshot(tiny.data) == before
    alone = repeatable_plan(succeed("plan", tiny.config, "--ranks", 3, ranks=1).out)
    assert repeatable_plan(succeed("plan", tiny.config, ranks=3).out) == alone


def test_plan_needs_no_more_than_is_there(tmp_path: Path) -> None:
    """A plan costs no memory of its own: 4096 ranks of a batch of 8192, 100 tokens each."""
    model = random_llama(tmp_path / "model", width=32, mlp=64, layers=2, vocab=100)
    config = random_case(tmp_path, model, batch=8192, context=100, relearn__passes=0)
    out = succeed("plan", config, "data.micro_batch=8192", limit=10).out
    assert planned(out)["peak"][0] > 1e9
    shared = planned(succeed("plan", config, "--ranks", 4096, limit=10).out)
    assert shared["peak"][0] < 2e7 + shared["program and libraries"][0]


def test_peak_is_the_program_s_own(tiny: Case, tmp_path: Path) -> None:
    """Not the memory of the process that started it."""
    ballast = np.ones(400 << 20, dtype=np.uint8)  # cuBLASLt alone takes 170 MB
    run = tmp_path / "run"
    tiny.run(run)
    assert result_of(run)["peak_bytes"] < ballast.nbytes


# -- inspect ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["checkpoints/8", "checkpoints/8/checkpoint.h5"])
def test_inspect_checkpoint(finished: Path, path: str) -> None:
    before = snapshot(finished)
    out = succeed("inspect", finished / path).out
    assert re.search(r"^loops +8$", out, re.M) and re.search(r"^ranks +1$", out, re.M)
    for group in ("base", "adversary", "retain_acc"):
        for layer in range(3):
            name = f"{group}/model.layers.{layer}.mlp.gate_proj.weight"
            row = re.search(rf"{re.escape(name)} \[22, 16\] float32 .*min (\S+) .*max (\S+) ", out)
            with h5py.File(finished / "checkpoints/8/checkpoint.h5") as file:
                values = file[name][:]
            assert [float(row[1]), float(row[2])] == pytest.approx(
                [values.min(), values.max()], rel=1e-5
            )
    assert "unlearning_rate: 0.2" in out and re.search(r"^state +intact$", out, re.M)
    assert snapshot(finished) == before


def test_inspect_part_and_run(finished: Path) -> None:
    part = succeed("inspect", finished / "checkpoints/8/part-00000.h5").out
    assert re.search(r"^rank +0$", part, re.M) and re.search(r"^state +intact$", part, re.M)
    assert re.findall(r"^ +(\d+) +intact$", succeed("inspect", finished).out, re.M) == ["6", "8"]


def test_inspect_data(tiny: Case, tmp_path: Path) -> None:
    out = succeed("inspect", tiny.data / "forget.h5").out
    for pattern in (r"examples +7", r"context +12", r"vocab_size +53", r"state +intact"):
        assert re.search(rf"^{pattern}$", out, re.M), pattern
    tokens = tiny.tokens("forget")
    assert re.search(rf"min {tokens.min()} +max {tokens.max()}\b", out)
    path = write_questions(tmp_path / "q.h5", [[1, 2], [3]], [[1, 2, 3, 4]] * 2, [0, 3])
    assert re.search(r"^questions +2$", succeed("inspect", path).out, re.M)


@pytest.mark.parametrize(
    ("fault", "ranks"),
    [("missing", 1), ("cut", 1), ("text", 1), ("other", 1), ("above", 1), ("above", 3)],
)
def test_inspect_names_bad_files(tiny: Case, tmp_path: Path, fault: str, ranks: int) -> None:
    path = tmp_path / f"{fault}.h5"
    good = (tiny.data / "forget.h5").read_bytes()
    if fault == "cut":
        path.write_bytes(good[: len(good) // 2])
    elif fault == "text":
        path.write_text("tokens\n")
    elif fault == "other":
        with h5py.File(path, "w") as file:
            file["something"] = [1]
    elif fault == "above":
        write_tokens(path, np.full((BATCH, 12), 60), vocab=53)
    assert str(path) in fail(2, "inspect", path, ranks=ranks)
