"""What the tests share, of the Python tools and of the program."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# The tests import the tools and each other by their plain names.
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("job_helpers")

from model_helpers import Case, golden_case, overflowing_case  # noqa: E402  needs the path above


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real test data; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("MUDMAN_TEST_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / "retain_english.jsonl").is_file():
        pytest.skip("no real test data (MUDMAN_TEST_DATA)")
    return folder


@pytest.fixture
def stories(tmp_path: Path) -> Path:
    """Texts of 8 to 19 bytes that carry their own number; every third is about a dog."""
    # Only here: the tests of the program need no tokenizer.
    from prepare_helpers import RECORDS, write_json_lines

    records = []
    for i in range(RECORDS):
        text = f"{i:05d} {'dog' if i % 3 == 0 else 'cat'} " + "é" * (i % 6)
        records.append(
            {
                "text": text[: 19 - i % 6],
                "kind": "odd" if i % 2 else "even",
                "meta": {"long": i >= 1000},
            }
        )
    return write_json_lines(tmp_path / "stories.jsonl", records)


@pytest.fixture(scope="session")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """A golden case by its name, written once."""
    cases: dict[str, Case] = {}

    def get(name: str) -> Case:
        if name not in cases:
            cases[name] = golden_case(name, tmp_path_factory.mktemp(name))
        return cases[name]

    return get


@pytest.fixture(scope="session")
def tiny(golden: Callable[[str], Case]) -> Case:
    """The golden case that most tests run."""
    return golden("llama-gqa-tied")


@pytest.fixture(scope="session")
def overflowing(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A golden case with a token that overflows: a batch that holds it has no finite loss."""
    return overflowing_case(tmp_path_factory.mktemp("overflowing"))


@pytest.fixture(scope="session")
def finished(tiny: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the tiny case on one rank, undisturbed. To be read only."""
    run = tmp_path_factory.mktemp("finished") / "run"
    tiny.run(run)
    return run
