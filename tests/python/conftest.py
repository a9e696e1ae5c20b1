"""What the tests of the Python tools share."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

# The tests import the tools and each other by their plain names.
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
sys.path.insert(0, str(Path(__file__).parent))

from prepare_helpers import RECORDS, write_json_lines  # noqa: E402  needs the path above


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
