"""report.py: page and pictures show what the runs and studies hold; errors are clean."""

from __future__ import annotations

import html
import re
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import sqlalchemy
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

import demo_table
import held_out_facts
import report
import report_runs
import report_studies
from report_helpers import (
    attack,
    check_pictures,
    count_color,
    evaluation,
    make_report,
    result,
    tables,
    unlearning,
    write_run,
)

SPACE = {
    "unlearn.unlearning_rate": FloatDistribution(1e-5, 1e-1, log=True),
    "unlearn.retain_momentum": FloatDistribution(0.0, 0.99),
    "unlearn.fork_every_n_loops": IntDistribution(6, 42),
}


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    first = [*unlearning(0.5), *attack(2.75, 6), result(2.4375)]
    second = [*attack(1.2, 6, passes_a_step=4), result(0.8875)]
    return [
        write_run(folder / "both <phases>", first),
        write_run(folder / "only", [evaluation("start", 0, 1.25, 2.0), *second], 2, "1.0e-1"),
    ]


@pytest.fixture(scope="module")
def runs_page(two_runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("report")
    return out, make_report(out, *two_runs)


def test_results_of_runs(runs_page: tuple[Path, str]) -> None:
    assert "both &lt;phases&gt;" in runs_page[1] and "<phases>" not in runs_page[1]
    assert tables(runs_page[1])[0] == [
        ["run", "status", "score", "forget loss: start", "unlearned", "relearned",
         "memory of a rank", "time"],
        ["both <phases>", "done", "2.438", "1.250", "2.750", "2.438", "3 MiB", "12.5 s"],
        ["only", "done", "0.887", "1.250", "–", "0.887", "3 MiB", "12.5 s"],
    ]  # fmt: skip


def test_harm_and_differing_settings(runs_page: tuple[Path, str]) -> None:
    _, harm, differing = tables(runs_page[1])
    assert harm == [
        ["", "measure", "start", "unlearned", "change", "relearned", "change"],
        ["both <phases>", "retain loss (nats)", "2.000", "2.010", "+0.010", "2.020", "+0.020"],
        ["both <phases>", "divergence (KL, nats)", "0.0000", "0.0030", "+0.0030", "–", "–"],
        ["both <phases>", "accuracy on facts", "1.000", "0.500", "-0.500", "–", "–"],
        ["only", "retain loss (nats)", "2.000", "–", "–", "2.020", "+0.020"],
    ]
    assert differing == [
        ["key", "both <phases>", "only"],
        ["seed", "1", "2"],
        ["unlearn.unlearning_rate", "0.1", "1.0e-1"],
    ]


def test_pictures_of_runs(runs_page: tuple[Path, str]) -> None:
    names = check_pictures(runs_page[0])
    assert names == {
        f"runs-{what}.png" for what in ("scores", "losses", "trajectory", "attacks", "loops")
    }
    for name in ("scores", "losses", "trajectory", "attacks"):
        for index in range(2):
            assert count_color(runs_page[0] / f"runs-{name}.png", index).sum() > 200


def test_steps_and_passes(two_runs: list[Path]) -> None:
    """The steps at an evaluation come from the lines before it, whatever passes a step takes."""
    both, only = report_runs.read_runs(two_runs)
    assert [p.passes for p in both.unlearning] == [0, 10, 20]
    assert [(p.step, p.passes) for p in both.attacks[""]] == [(0, 0), (2, 4), (4, 8), (6, 12)]
    assert [(p.step, p.passes) for p in only.attacks[""]] == [(0, 0), (2, 8), (4, 16), (6, 24)]
    assert [p.forget for p in both.attacks[""]] == [2.75, 2.6875, 2.5625, 2.4375]


def test_a_state_that_was_kept(tmp_path: Path) -> None:
    """What came after it, beyond the budget of the divergence, is no part of the result."""
    kept = evaluation("kept", 10, 1.75, 2.01)
    lines = [*unlearning(0.5), kept, *attack(1.7, 2), result(1.6375)]
    run = report_runs.read_run(write_run(tmp_path / "run", lines))
    assert [p.passes for p in run.unlearning] == [0, 10]
    assert run.attacks[""][0].forget == 1.75


def test_several_attacks(tmp_path: Path) -> None:
    """Every attack starts from the unlearned model; the table shows the strongest."""
    lines = [*unlearning(0.5), *attack(2.7, 4, attack="sgd"), *attack(1.7, 4, attack="adamw")]
    folder = write_run(tmp_path / "run", [*lines, result(1.5125)])
    run = report_runs.read_run(folder)
    assert list(run.attacks) == ["sgd", "adamw"]
    assert all(points[0].forget == 2.75 for points in run.attacks.values())
    head, row = tables(make_report(tmp_path / "out", folder))[0]
    assert row[5] == "1.512" and (head[6], row[6]) == ("worst attack", "adamw")
    check_pictures(tmp_path / "out")


def test_wrecks_and_scores_above_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A diverged attack is nobody's end, and a score above the loss before the attack says so."""
    lines = [*unlearning(0.5), *attack(3.5, 4, attack="sgd"), *attack(1.7, 4, attack="wild")]
    losses = {f"{of}_loss_{at}": 2.75 for of in ("forget", "retain") for at in ("start", "unlearn")}
    losses |= {"retain_loss_relearn": 3.0, "score_sgd": 3.3125, "score_wild": None}
    losses["diverged_wild"] = "the loss is not finite at step 4"
    folder = write_run(tmp_path / "above", [*lines, result(3.3125) | losses])
    below = write_run(tmp_path / "below", [*lines, result(2.5) | losses])
    page = make_report(tmp_path / "out", folder, below)
    head, above, other = tables(page)[0]
    assert head[2] == "score" and above[2] == "3.312 *"
    assert "*: above the loss before the attack" in page
    assert above[5] == "3.312" and other[2] == "2.500"
    monkeypatch.setattr(sys, "argv", ["demo_table.py", str(folder), str(below)])
    demo_table.main()
    table = capsys.readouterr().out
    assert re.search(r"^above .* 3\.312\* ", table, re.M) and re.search(r"^below .* 2\.500 ", table, re.M)
    assert "*: above the loss before the attack" in table
    rotation = held_out_facts.Rotation(0, True, folder)
    held_out_facts.print_table({rotation: result(3.3125) | losses})
    assert "the attack only raised the forget loss" in capsys.readouterr().out
    held_out_facts.print_table({rotation: result(2.5) | losses})
    assert "only raised" not in capsys.readouterr().out


def test_unfinished_rejected_and_damaged_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = unlearning(0.5)
    reason = "retain loss 9 exceeds 2.05"
    odd = {"phase": "unlearn", "loop": "x", "passes": None, "grad_norm": None}
    damaged = [
        *lines[:3],
        '{"phase":"unl',
        "[1]",
        odd,
        '{"phase":"unlearn","loop":7,"grad_norm":NaN}',
    ]
    folders = [
        write_run(tmp_path / "going", lines[:4]),
        write_run(
            tmp_path / "rejected",
            [*lines[:4], evaluation("unlearn", 15, None, 9.0), result(None, "rejected", reason)],
        ),
        write_run(tmp_path / "damaged", damaged),
        write_run(tmp_path / "empty", []),
        write_run(tmp_path / "pretrained", [{"phase": "pretrain", "step": 0, "loss": 5.5}]),
    ]
    (tmp_path / "going" / "config.yaml").write_text("a: [1")
    page = make_report(tmp_path / "out", *folders)
    rows = {row[0]: row for row in tables(page)[0]}
    assert rows["going"][1] == "no result yet (unlearning, loop 1)" and rows["going"][2] == "–"
    assert rows["rejected"][1] == f"rejected: {reason}" and rows["rejected"][4] == "–"
    assert set(rows) == {"run", "going", "rejected", "damaged"}
    notes = capsys.readouterr().err
    metrics = tmp_path / "damaged" / "metrics.jsonl"
    for note in (
        f"{metrics}:4: not a JSON object",
        f"{metrics}:5: not a JSON object",
        "empty/metrics.jsonl: no line",
        "only lines of pretraining",
        "going/config.yaml: ",
    ):
        assert note in notes and note in html.unescape(page)
    assert "Traceback" not in notes and len(notes.splitlines()) == 5
    check_pictures(tmp_path / "out")


def test_runs_of_one_name(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / where / "run", unlearning(0.5)) for where in ("a", "b")]
    names = [run.name for run in report_runs.read_runs([*folders, folders[0]])]
    assert names == ["a/run", "b/run"]


class Trials:
    """Made-up trials and the scores that went into them."""

    def __init__(self, seed: int, level: float, completed: int, pruned: int) -> None:
        draw = np.random.default_rng(seed)
        self.scores: list[float] = []
        self.trials = []
        for i in range(completed + pruned):
            rate, momentum = 10 ** draw.uniform(-5, -1), draw.uniform(0, 0.99)
            values = [rate, momentum, int(draw.integers(6, 43))]
            fate: dict[str, Any] = {"state": TrialState.PRUNED}
            if i >= pruned:
                score = level - (np.log10(rate) + 3) ** 2 / 4 + draw.normal(0, 0.05)
                self.scores.append(float(score))
                fate = {
                    "value": float(score),
                    "user_attrs": {"seconds": 4.0, "overhead_seconds": 0.1},
                }
            parameters = dict(zip(SPACE, values))
            self.trials.append(create_trial(params=parameters, distributions=SPACE, **fate))
        self.rates = [t.params["unlearn.unlearning_rate"] for t in self.trials[pruned:]]


def store(
    storage: Any, search: str, variant: str, trials: Trials, direction: str = "maximize"
) -> None:
    """Write a study as tools/search.py does."""
    study = optuna.create_study(
        study_name=f"{search}-{variant}", storage=storage, direction=direction
    )
    ranges = {
        k: {"low": d.low, "high": d.high, "log": d.log, "int": isinstance(d, IntDistribution)}
        for k, d in SPACE.items()
    }
    attributes = {
        "config": "search.yaml",
        "variant": variant,
        "baseline_score": 2.5,
        "parameters": ranges,
        "objective": "score",
        "last": 20,
    }
    for key, value in attributes.items():
        study.set_user_attr(key, value)
    study.add_trials(trials.trials)


@pytest.fixture(scope="module")
def made() -> dict[str, Trials]:
    return {
        "no_masking": Trials(1, 3.0, completed=12, pruned=2),
        "mudman": Trials(2, 6.0, completed=25, pruned=3),
        "one_trial": Trials(3, 4.0, completed=1, pruned=0),
        "all_pruned": Trials(4, 4.0, completed=0, pruned=2),
    }


@pytest.fixture(scope="module")
def storage(made: dict[str, Trials], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite storage of two searches, as search.py has it but not synced at every write."""
    path = tmp_path_factory.mktemp("studies") / "studies.db"

    @sqlalchemy.event.listens_for(sqlalchemy.Engine, "connect")
    def hurry(connection: Any, _: Any) -> None:
        connection.execute("pragma synchronous = off")
        connection.execute("pragma journal_mode = wal")

    try:
        rdb = optuna.storages.RDBStorage(f"sqlite:///{path}")
        for variant, trials in made.items():
            store(rdb, "tiny", variant, trials)
        store(rdb, "other", "mudman", made["one_trial"], direction="minimize")
        rdb.remove_session()
        rdb.engine.dispose()
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "connect", hurry)
    return path


@pytest.fixture(scope="module")
def studies_page(storage: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("report")
    before = storage.read_bytes()
    page = make_report(out, storage)
    assert storage.read_bytes() == before
    return out, page


def test_table_of_variants(studies_page: tuple[Path, str], made: dict[str, Trials]) -> None:
    first = tables(studies_page[1])[0]
    assert first[0][5] == "mean of last 20 ± SEM" and first[1][0] == "mudman"
    for row in first[1:]:
        trials = made[row[0]]
        assert row[1] == str(len(trials.scores))
        assert row[2] == str(len(trials.trials) - len(trials.scores))
        if not trials.scores:
            assert row[5:8] == ["–", "–", "2.500"]
            continue
        last = np.array(trials.scores[-20:])
        error = np.sqrt(((last - last.mean()) ** 2).sum() / len(last)) / np.sqrt(len(last))
        few = f" (n = {len(last)})" if len(last) < 20 else ""
        spread = f" ± {error:.3f}" if len(last) > 1 else ""
        assert row[5] == f"{last.mean():.3f}{spread}{few}"
        assert row[6:] == [f"{max(trials.scores):.3f}", "2.500", "4 s (2.5 %)"]


def test_table_of_best_trials(studies_page: tuple[Path, str], made: dict[str, Trials]) -> None:
    best = tables(studies_page[1])[1]
    assert best[0] == ["", "mudman", "no_masking", "one_trial"]
    assert [row[0] for row in best[1:]] == ["trial", "score", *SPACE]
    for column, name in enumerate(best[0][1:], start=1):
        at = int(np.argmax(made[name].scores))
        pruned = len(made[name].trials) - len(made[name].scores)
        assert best[1][column] == str(pruned + at)
        assert best[2][column] == f"{max(made[name].scores):.3f}"
        assert best[3][column].split(" (")[0] == f"{made[name].rates[at]:.4g}"


def test_pictures_of_studies(studies_page: tuple[Path, str]) -> None:
    names = check_pictures(studies_page[0])
    kinds = {f"tiny-{kind}.png" for kind in ("variants", "history", "importances")}
    kinds |= {f"tiny-{variant}-slices.png" for variant in ("mudman", "no_masking", "one_trial")}
    assert names == kinds | {
        f"other-{kind}.png" for kind in ("variants", "history", "mudman-slices")
    }
    notes = html.unescape(studies_page[1])
    assert "tiny: no importances of one_trial (1), all_pruned (0): 10 completed trials" in notes


def test_bars_are_as_long_as_the_means(
    studies_page: tuple[Path, str], made: dict[str, Trials]
) -> None:
    means = [np.mean(made[name].scores[-20:]) for name in ("mudman", "no_masking", "one_trial")]
    # The median of a bar's rows: the error bar and the baseline cross some.
    lengths = []
    for index in range(3):
        rows = count_color(studies_page[0] / "tiny-variants.png", index)
        lengths.append(np.median(rows[rows > 50]))
    assert np.allclose(np.array(lengths) / lengths[0], np.array(means) / means[0], rtol=0.02)


def test_edges() -> None:
    """Within a tenth of the range, on the scale of the search."""
    log, linear = report_studies.Range(1e-5, 1e-1, True), report_studies.Range(0, 10, False)
    assert [log.place(x) for x in (1e-5, 1e-3, 1e-1)] == pytest.approx([0, 0.5, 1])
    assert linear.place(9.5) == 0.95 and report_studies.Range(3, 3, False).place(3) == 0.5
    study = optuna.create_study(direction="minimize")
    for rate, momentum, fork, value in ((2e-5, 0.5, 42, 1.0), (1e-3, 0.01, 20, 2.0)):
        parameters = dict(zip(SPACE, (rate, momentum, fork)))
        study.add_trial(create_trial(params=parameters, distributions=SPACE, value=value))
    table = report_studies.best_trials([report_studies.read_variant(study)])
    assert [row[1] for row in table.rows] == [
        "0",
        "1.000",
        "2e-05 (edge 1e-05)",
        "0.5",
        "42 (edge 42)",
    ]


def test_one_study_and_journal(
    storage: Path, made: dict[str, Trials], tmp_path: Path, studies_page: tuple[Path, str]
) -> None:
    """Names choose studies and searches; a journal file gives the same table."""
    page = make_report(tmp_path / "one", storage, "--study", "tiny-one_trial")
    assert [row[0] for row in tables(page)[0]] == ["variant", "one_trial"]
    file = optuna.storages.journal.JournalFileBackend(str(tmp_path / "studies.log"))
    store(optuna.storages.JournalStorage(file), "tiny", "one_trial", made["one_trial"])
    journal_page = make_report(tmp_path / "journal", f"journal:{tmp_path}/studies.log")
    assert tables(journal_page) == tables(page)


@pytest.mark.parametrize(
    ("direction", "attributes", "label", "last"),
    [
        (
            "minimize",
            {"objective": "accuracy_bio", "last": 60},
            "Accuracy on bio after relearning",
            60,
        ),
        ("maximize", {"last": "many"}, "Forget loss after relearning (nats a token)", 30),
        ("maximize", {"objective": "forget_loss_unlearn"}, "Forget loss unlearn of a trial", 30),
    ],
)
def test_what_the_search_says_of_its_score(
    direction: str, attributes: dict[str, Any], label: str, last: int
) -> None:
    study = optuna.create_study(direction=direction)
    for key, value in attributes.items():
        study.set_user_attr(key, value)
    variants = [report_studies.read_variant(study)]
    assert report_studies.measure(variants) == label
    assert report_studies.last_trials(variants) == last


def test_bad_input(
    storage: Path, two_runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2 and one line that names the fault; nothing is written."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.db").write_text("hello\n")
    (tmp_path / "list.db").write_text("[1]\n")
    (tmp_path / "journal.log").write_text('{"op_code": 0}\nhello\nhello\n')
    sqlite3.connect(tmp_path / "else.db").execute("create table cats (name)").connection.close()
    empty = tmp_path / "empty.db"
    optuna.storages.RDBStorage(f"sqlite:///{empty}")
    cases = {
        (tmp_path / "missing",): "No such file or directory",
        (f"sqlite:///{tmp_path}/missing.db",): "No such file or directory",
        (tmp_path / "folder",): "holds no metrics.jsonl",
        (tmp_path / "text.db",): "neither a run folder nor an Optuna storage",
        (tmp_path / "list.db",): "neither a run folder nor an Optuna storage",
        (tmp_path / "else.db",): "not an Optuna storage: no such table: studies",
        (tmp_path / "journal.log",): "cannot be read",
        (empty,): "holds no study",
        ("nonsense://host/base",): "cannot be read",
        (storage, "--study", "tyni"): "no such study or search; there is other-mudman, tiny-",
        (two_runs[0], "--study", "tiny"): "no storage of studies is given",
        (two_runs[0], "--out", tmp_path / "text.db"): "text.db: File exists",
    }
    for arguments, message in cases.items():
        out = [] if "--out" in arguments else ["--out", str(tmp_path / "no")]
        assert report.main([*map(str, arguments), *out]) == 2
        line = capsys.readouterr().err
        assert line.startswith("report.py: ") and line.count("\n") == 1 and message in line
    assert not (tmp_path / "no").exists() and not (tmp_path / "missing.db").exists()


@pytest.mark.parametrize("arguments", [[], ["run", "--last", "0"], ["run", "--nonsense"]])
def test_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        report.main(arguments)
    assert stopped.value.code == 2 and "usage: report.py" in capsys.readouterr().err


def test_as_a_program(two_runs: list[Path], tmp_path: Path) -> None:
    command = [sys.executable, report.__file__, str(two_runs[1]), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path}/out/report.html and 3 pictures\n" and done.stderr == ""
