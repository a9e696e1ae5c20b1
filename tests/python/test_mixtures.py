"""report.py refuses to compare what stands on different inputs, by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import create_trial

import report
import report_runs
from report_helpers import evaluation, make_report, result, unlearning, write_run

STANDS = {"program": "1", "config": "c1", "weights": "w1", "data.forget": "f1"}


def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, *arguments: object) -> str:
    """The one line with which report.py ends."""
    assert report.main([*map(str, arguments), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def run_on(folder: Path, identity: dict[str, str], path: str = "/data/f.h5") -> Path:
    """A run whose result stands on this, with this path in its config."""
    lines = [*unlearning(0.5), result(2.4) | {"identity": identity}]
    write_run(folder, lines)
    with (folder / "config.yaml").open("a") as file:
        file.write(f"model: {{path: /m}}\ndata: {{forget: {path}}}\n")
    return folder


def test_runs_of_a_file_that_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = run_on(tmp_path / "one", STANDS)
    for key in ("data.forget", "weights"):
        two = run_on(tmp_path / key, STANDS | {key: "x"})
        line = refused(capsys, tmp_path, one, two)
        assert f"{one} and {two} stand on different {key}" in line and "report them apart" in line
    # Another path is one of the settings that differ, and the same content compares.
    make_report(tmp_path / "a", one, run_on(tmp_path / "3", STANDS | {"data.forget": "x"}, "/g.h5"))
    make_report(tmp_path / "b", one, run_on(tmp_path / "4", STANDS | {"config": "x"}, "/g.h5"))


def test_start_that_was_measured_anew(tmp_path: Path) -> None:
    """A resume that evaluates otherwise writes a new start; what was before compares with nothing."""
    lines = [*unlearning(0.5), evaluation("start", 0, 1.5, 2.5), evaluation("unlearn", 20, 2, 3)]
    run = report_runs.read_run(write_run(tmp_path / "run", lines))
    assert [(point.forget, point.retain) for point in run.unlearning] == [(1.5, 2.5), (2, 3)]


def study_on(
    storage: Any, variant: str, identity: dict, trials: list[dict], batch: str = "8"
) -> None:
    study = optuna.create_study(study_name=f"s-{variant}", storage=storage, direction="maximize")
    study.set_user_attr("variant", variant)
    study.set_user_attr("base_identity", identity)
    study.set_user_attr("base_settings", {"data.batch_size": batch})
    for attributes in trials:
        given = {"identity": attributes}
        study.add_trial(create_trial(value=1.0, params={}, distributions={}, user_attrs=given))


def test_studies_of_different_inputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = optuna.storages.journal.JournalFileBackend(str(tmp_path / "log"))
    storage, source = optuna.storages.JournalStorage(file), f"journal:{tmp_path}/log"
    study_on(storage, "a", STANDS, [STANDS, STANDS | {"config": "c2", "program": "2"}])
    make_report(tmp_path / "one", source)
    study_on(storage, "b", STANDS | {"weights": "w2"}, [])
    line = refused(capsys, tmp_path, source)
    assert "studies s-a and s-b of one search stand on different weights" in line
    assert "--study" in line
    make_report(tmp_path / "alone", source, "--study", "s-a")
    optuna.delete_study(study_name="s-b", storage=storage)
    study_on(storage, "c", STANDS, [], batch="4")
    assert "s-a and s-c of one search stand on different data.batch_size" in refused(
        capsys, tmp_path, source
    )
    optuna.delete_study(study_name="s-c", storage=storage)
    study_on(storage, "d", STANDS, [STANDS, STANDS | {"data.forget": "f2"}])
    assert "study s-d: trial 1 stands on another data.forget" in refused(capsys, tmp_path, source)
