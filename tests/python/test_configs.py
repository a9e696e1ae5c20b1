"""configs/ and docs/experiments.md: every experiment's files are accepted by the program.

Models and data are tiny; everything else is as the files have it.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import prepare_data
from job_helpers import BINARY, ROOT, succeed
from model_helpers import GOLDEN, write_questions, write_tokens
from search_config import Search, Variant, read_search
from search_server import TrialServer
from yaml_reader import as_argument, read_yaml

CONFIGS = ROOT / "configs"
DOCUMENT = ROOT / "docs" / "experiments.md"
FAMILIES = {"pythia-14m": "neox-parallel", "smollm-135m": "llama-gqa-tied"}
FAMILIES |= {"smollm2-135m": "llama-gqa-tied", "llama-3.2-1b": "llama-gqa-tied"}
FOLDERS = [CONFIGS / name for name in (*FAMILIES, "held-out-facts")]
FILES = sorted(path for folder in FOLDERS for path in folder.glob("*.yaml"))
SEARCHES = [path for path in FILES if re.search(r"^config:", path.read_text(), re.M)]
RUNS = [path for path in FILES if path not in SEARCHES]
WITH_DATA_TO_BRING = [path for path in RUNS if path.stem != "demo"]
LIMIT = 300.0
HELD_OUT = ("forget", "forget_validation", "forget_evaluation")


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def family_of(path: Path) -> str:
    return FAMILIES.get(path.parent.name) or FAMILIES.get(path.stem) or "llama-gqa-tied"


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of each family that takes 100 tokens, a token file and a question file."""
    folder = tmp_path_factory.mktemp("stand-ins")
    vocab = []
    for name in set(FAMILIES.values()):
        (folder / name).mkdir()
        shutil.copy(GOLDEN / name / "model.safetensors", folder / name)
        config = json.loads((GOLDEN / name / "config.json").read_text())
        config["max_position_embeddings"] = 128
        (folder / name / "config.json").write_text(json.dumps(config))
        vocab.append(config["vocab_size"])
    tokens = np.random.default_rng(5).integers(0, min(vocab), (128, 100))
    write_tokens(folder / "tokens.h5", tokens, min(vocab))
    write_questions(folder / "questions.h5", [[1, 2, 3]], np.array([[1, 2, 3, 4]]), np.array([0]))
    return folder


def stand_in(path: Path, content: Mapping[str, Any], folder: Path) -> list[str]:
    """Arguments that replace a config's model and data by tiny ones."""
    given = [key for key, value in content["data"].items() if isinstance(value, str)]
    files = [*given, *(HELD_OUT if path.parent.name == "held-out-facts" else ())]
    arguments = [f"model.path={folder / family_of(path)}"]
    arguments += [f"data.{key}={folder / 'tokens.h5'}" for key in files]
    asked = content.get("evaluate", {}).get("multiple_choice", [])
    if asked:
        asked = [question | {"file": str(folder / "questions.h5")} for question in asked]
        arguments.append(f"evaluate.multiple_choice={as_argument(asked)}")
    return arguments


def plan(path: Path, arguments: list[str]) -> str:
    return succeed("plan", path.relative_to(ROOT), *arguments, cwd=ROOT).out


# -- run configs --------------------------------------------------------------------------------


def test_there_are_configs() -> None:
    assert len(RUNS) == 13 and len(SEARCHES) == 20


@pytest.mark.parametrize("path", RUNS, ids=name_of)
def test_run_config(path: Path, stand_ins: Path) -> None:
    content = read_yaml(path)
    plan(path, stand_in(path, content, stand_ins))
    assert content["unlearn"]["rate_scale"] == "study"


def commands_of(path: Path) -> list[list[str]]:
    """The prepare_data calls in a config's comment."""
    text = re.sub(r" \\\n#\s*", " ", path.read_text())
    tokenizer = re.search(r'^#\s+P=".venv/bin/python tools/prepare_data.py (.*)"$', text, re.M)
    assert tokenizer, "the comment says how data are made"
    calls = re.findall(r"^#\s+\$P (.*)$", text, re.M)
    return [shlex.split(f"{tokenizer[1]} {call}") for call in calls]


@pytest.mark.parametrize("path", WITH_DATA_TO_BRING, ids=name_of)
def test_data_commands(path: Path) -> None:
    """The commands are accepted, and make every data file that the config names."""
    content, made = read_yaml(path), set()
    for call in commands_of(path):
        options = prepare_data.parse_arguments(call)
        assert options.tokenizer == content["model"]["path"]
        whole = options.multiple_choice or options.no_split
        suffixes = [""] if whole else ["-train", "-validation", "-test"]
        made |= {f"{options.output}{suffix}.h5" for suffix in suffixes}
    wanted = {value for value in content["data"].values() if isinstance(value, str)}
    asked = content.get("evaluate", {}).get("multiple_choice", [])
    wanted |= {question["file"] for question in asked}
    assert wanted <= made


# -- searches -----------------------------------------------------------------------------------


def trial_of(variant: Variant, end: str) -> dict[str, Any]:
    """What a trial at one end of all ranges sets."""
    values = dict(variant.overrides)
    for name, bounds in variant.parameters.items():
        value = getattr(bounds, end)
        values[name] = int(value) if bounds.integer else value
    return values


def as_arguments(values: Mapping[str, Any]) -> list[str]:
    return [f"{key}={as_argument(value)}" for key, value in values.items()]


def start_server(run: Path, arguments: list[str]) -> TrialServer:
    """A trial server for a tiny model, that has a while for everything."""
    small = ["data.context_length=12", "data.batch_size=2"]
    end = time.monotonic() + LIMIT

    def in_time() -> None:
        assert time.monotonic() < end

    command = ["env", "OMP_NUM_THREADS=1", str(BINARY), "trials", str(run), *arguments, *small]
    server = TrialServer(command, in_time)
    server.wait_ready()
    return server


@pytest.mark.parametrize("path", SEARCHES, ids=name_of)
def test_search(path: Path, stand_ins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every variant is taken at one end of its ranges, and run, after the baseline, at the other.

    On noise a trial may be rejected; what it sets must not be.
    """
    monkeypatch.chdir(ROOT)
    search = read_search(path)
    assert search.name == f"{path.parent.name}-{path.stem}", "studies of two models need two names"
    assert (command := f"tools/search.py {path.relative_to(ROOT)} --trials ") in path.read_text()
    run = ROOT / search.config
    tiny = stand_in(run, content := read_yaml(run), stand_ins)
    names = [q["name"] for q in content.get("evaluate", {}).get("multiple_choice", [])]
    figures = {"score", *(f"accuracy_{name}" for name in names)}
    assert {search.objective, *(limit.figure for limit in search.pruning)} <= figures, command
    for variant in search.variants:
        plan(run, [*tiny, *as_arguments(search.overrides | trial_of(variant, "high"))])
    server = start_server(run, [*tiny, *as_arguments(search.overrides)])
    try:
        trials = [{"unlearn.loops": 0}, *(trial_of(variant, "low") for variant in search.variants)]
        for overrides in trials:
            request = {"id": "t", "overrides": overrides}
            result = server.run_trial(request, lambda _: False)
            assert result["status"] in ("done", "rejected"), (overrides, result)
            assert result["status"] == "rejected" or result[search.objective] is not None
    finally:
        server.close()


def ranges(search: Search, variant: str) -> dict[str, tuple[float, float, bool]]:
    found = next(v for v in search.variants if v.name == variant)
    names = (name.removeprefix("unlearn.") for name in found.parameters)
    return dict(zip(names, ((b.low, b.high, b.log) for b in found.parameters.values())))


SPOT_CHECKS = {
    # The study's ranges: file, variant, parameter, low, high, log
    "llama-3.2-1b/figure-2-python": ("no_normalization", "unlearning_rate", 1e-5, 300, True),
    "llama-3.2-1b/figure-3": ("tar2", "unlearning_rate", 1e-4, 0.1, True),
    "llama-3.2-1b/wmdp-6": ("mudman", "unlearning_rate", 3e-9, 1e-4, True),
    "smollm-135m/figure-2-pile-bio": ("tar2", "rep_eng_retain_lr", 1e-12, 1, True),
    "smollm2-135m/figure-2-python": ("no_normalization", "unlearning_rate", 1e-4, 300, True),
    "smollm-135m/figure-4-cruelty": ("all_linear", "unlearning_rate", 3e-6, 1e-4, True),
    "smollm-135m/figure-5-cruelty-3": ("mudman", "adv_lr", 1e-3, 3e-2, True),
    "pythia-14m/figure-2-python": ("no_normalization", "unlearning_rate", 1e-7, 0.03, True),
    "pythia-14m/figure-4-python": ("qkv", "unlearning_rate", 2e-6, 2e-4, True),
    "pythia-14m/figure-5-python": ("tar", "unlearning_rate", 3e-6, 3e-5, True),
    "pythia-14m/table-1": ("none", "adv_decay", 0.3, 1, False),
}


@pytest.mark.parametrize("name", SPOT_CHECKS)
def test_ranges(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    variant, parameter, *expected = SPOT_CHECKS[name]
    found = ranges(read_search(CONFIGS / f"{name}.yaml"), variant)
    assert found[parameter] == tuple(expected)


# -- the document -------------------------------------------------------------------------------


def test_every_path_in_the_document_exists() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    named = set(re.findall(r"\b(?:configs|tools|docs|tests)/[\w./-]*\w", text))
    own = {path for path in named if path.startswith("configs/mine/")}
    missing = [path for path in sorted(named - own) if not (ROOT / path).exists()]
    assert missing == []


def test_every_config_is_in_the_document() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert [str(path) for path in FILES if str(path.relative_to(ROOT)) not in text] == []


def rows_of_searches() -> list[list[str]]:
    """The table's rows: paper, study's name, run config, search, trials."""
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in rows if len(row) == 5 and row[3].endswith(".yaml")]


def test_the_table_agrees_with_the_files() -> None:
    rows = rows_of_searches()
    assert {row[3] for row in rows} == {str(path.relative_to(ROOT)) for path in SEARCHES}
    for _, _, run, search, trials in rows:
        text = (ROOT / search).read_text()
        assert read_yaml(ROOT / search)["config"] == run
        assert f"tools/search.py {search} --trials {trials}\n" in text


def test_nothing_of_a_machine() -> None:
    """Relative paths only, so that a clone anywhere works."""
    for path in (*FILES, DOCUMENT):
        assert not re.search(r"[\s:({\"'](/[a-z]|~)", path.read_text(encoding="utf-8")), path
