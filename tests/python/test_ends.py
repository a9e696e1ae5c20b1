"""How the program ends where its surroundings fail: hang-ups, early signals, lost output, NaN."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from job_helpers import BINARY, Job, checkpoints_of, environment, fail, metrics_of, mudman, succeed
from model_helpers import floats_of, random_case, random_llama, write_questions
from model_helpers import write_safetensors

VOCAB = 60


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ends")
    model = random_llama(folder / "model", width=16, mlp=24, layers=2, vocab=VOCAB)
    return random_case(folder, model, batch=4, context=12)


def loops_done(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_text().count('"phase":"unlearn"') if path.is_file() else 0


# -- signals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR2, signal.SIGXCPU])
def test_other_signals_are_stops(config: Path, tmp_path: Path, number: int) -> None:
    """Of a terminal that is gone, and of schedulers before they kill."""
    run = tmp_path / "run"
    job = Job("run", config, f"output.dir={run}", "unlearn.loops=1000000")
    job.wait_until(lambda: loops_done(run) > 3)
    job.signal_ranks(number)
    outcome = job.wait()
    assert outcome.status == 3 and checkpoints_of(run)
    succeed("resume", run, f"unlearn.loops={checkpoints_of(run)[-1] + 1}")


def test_an_ignored_hangup_stays_ignored(config: Path, tmp_path: Path) -> None:
    """As under nohup."""
    run = tmp_path / "run"
    wrapper = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh"]
    job = Job("run", config, f"output.dir={run}", "unlearn.loops=400", wrapper=wrapper, launcher=True)
    job.wait_until(lambda: loops_done(run) > 3)
    job.signal_ranks(signal.SIGHUP)
    assert job.wait().status == 0


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_signal_before_the_first_step(config: Path, tmp_path: Path, ranks: int) -> None:
    """Nothing was written, so that the same command starts anew."""
    run = tmp_path / "run"
    job = Job("run", config, f"output.dir={run}", ranks=ranks)
    job.wait_until(lambda: len(listening(job)) == ranks)
    job.signal_ranks(signal.SIGTERM)
    outcome = job.wait()
    assert outcome.status == 3
    if not run.exists():
        assert "before the first step: nothing was written" in outcome.messages[0]
        succeed("run", config, f"output.dir={run}", ranks=ranks)


def listening(job: Job) -> list[int]:
    """The ranks that catch SIGTERM by now."""
    found = []
    for pid in job.ranks():
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        caught = int(status.partition("SigCgt:")[2].split()[0], 16)
        found += [pid] if caught >> (signal.SIGTERM - 1) & 1 else []
    return found


# -- standard output ----------------------------------------------------------------------------


def shell(script: str, *arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", "-c", script, "bash", str(BINARY), *map(str, arguments)],
        capture_output=True, text=True, env=environment(1), timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize("command", ["--help", "--version", "plan", "eval", "inspect"])
@pytest.mark.parametrize("redirection", [">/dev/full", ">&-"])
def test_a_print_that_fails_is_an_error(config: Path, command: str, redirection: str) -> None:
    subject = {"plan": [config], "eval": [config], "inspect": [config.parent / "retain.h5"]}
    done = shell(f'"$@" {redirection}', command, *subject.get(command, []))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "mudman-mpi: cannot write to standard output"
    )


def test_streams_that_are_gone_do_not_end_a_run(config: Path, tmp_path: Path) -> None:
    """Closed, full, and pipes that nobody reads; no file of the run gets a stream's number."""
    for name, redirection in (("closed", "<&- >&- 2>&-"), ("full", ">/dev/full 2>/dev/full"),
                              ("pipe", "2>&1 | true; exit ${PIPESTATUS[0]}")):  # fmt: skip
        run = tmp_path / name
        done = shell(f'"$@" {redirection}', "run", config, f"output.dir={run}")
        assert done.returncode == 0, done.stderr
        assert metrics_of(run)[-1]["status"] == "done"
    assert sorted(p.name for p in (tmp_path / "closed").iterdir()) == sorted(
        p.name for p in (tmp_path / "full").iterdir()
    )


# -- what is not a number -----------------------------------------------------------------------


def spoiled(config: Path, folder: Path, value: float, rows: slice) -> list[str]:
    """Overrides that give a model with `value` in some rows of its embedding, and questions."""
    model = shutil.copytree(config.parent / "model", folder / "model")
    tensors = floats_of(model / "model.safetensors")
    tensors["model.embed_tokens.weight"][rows] = value
    write_safetensors(model / "model.safetensors", tensors)
    choices = np.tile([[55, 56, 57, 58]], (6, 1))
    prompts = [[1, 2, 3]] * 6
    questions = write_questions(folder / "q.h5", prompts, choices, np.array([0, 1, 2, 3, 0, 1]))
    return [f"model.path={model}",
            f"evaluate.multiple_choice=[{{name: q, file: {questions}, temperature: 0}}]"]  # fmt: skip


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0, 1])
def test_eval_of_a_broken_model(
    config: Path, tmp_path: Path, value: float, temperature: int
) -> None:
    overrides = spoiled(config, tmp_path, value, slice(0, VOCAB))
    overrides[1] = overrides[1].replace("temperature: 0", f"temperature: {temperature}")
    outcome = mudman("eval", config, *overrides)
    assert outcome.status == 4 and "the evaluation is not finite" in outcome.messages[0]
    accuracy = [line for line in outcome.out.splitlines() if line.startswith("accuracy")]
    assert len(accuracy) == 1 and "nan" in accuracy[0]
    assert fail(4, "eval", config, *overrides, ranks=2)


def test_a_choice_without_a_logit_is_no_answer(config: Path, tmp_path: Path) -> None:
    """The head's rows of the choices alone: the losses are not finite either, for it is tied."""
    overrides = spoiled(config, tmp_path, np.nan, slice(58, 59))
    outcome = mudman("eval", config, *overrides)
    assert outcome.status == 4 and "accuracy q nan" in outcome.out


def test_a_run_of_a_broken_model_is_rejected(config: Path, tmp_path: Path) -> None:
    overrides = spoiled(config, tmp_path, np.nan, slice(0, VOCAB))
    run = tmp_path / "run"
    arguments = [config, f"output.dir={run}", *overrides, "unlearn.loops=0", "relearn.passes=0"]
    message = fail(4, "run", *arguments)
    assert "the evaluation of the model as it is in model.path is not finite" in message
    result = metrics_of(run)[-1]
    assert result["status"] == "rejected" and result["score"] is None
    assert "is not finite" in fail(4, "trials", config, *overrides)

