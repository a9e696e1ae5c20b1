"""prepare_data.py: what the paper's experiments and held-out facts need of it."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from prepare_helpers import QUESTIONS, read_rows, run, write_json_lines
from python_strip import strip_python

CODE = '''

def f(x):
    """Say what f does.

    At length."""
    # a comment
    y = 'a # in a text' # behind code

    if x:
\t
        return """a
        text"""
    return \'\'\'b\'\'\' + y

'''


def test_strip_python() -> None:
    assert strip_python(CODE) == (
        "def f(x):\n    y = 'a \n    if x:\n        return \n    return  + y"
    )
    assert strip_python("    x = 1\n    y = 2\n") == "x = 1\n    y = 2"


def test_stripped_records(tmp_path: Path) -> None:
    """Stripping comes before --match, so that a comment chooses nothing."""
    records = [{"code": f"x = {i} # keep"} for i in range(8)] + [{"code": "keep = 1 # x"}] * 4
    path = write_json_lines(tmp_path / "c.jsonl", records)
    arguments = ["--tokenizer", "bytes", "--field", "code", "--strip-python", "--match", "keep"]
    assert run(path, *arguments, "--context", 8, "--output", tmp_path / "c") == 0
    rows = read_rows(tmp_path / "c")
    assert sum(map(len, rows.values())) == 4
    assert {bytes(row.tolist()) for split in rows.values() for row in split} == {b"keep = 1"}
    with h5py.File(tmp_path / "c-train.h5") as file:
        assert "comments stripped" in file.attrs["source"]


def rows_of(path: Path) -> bytes:
    with h5py.File(path) as file:
        return bytes(file["tokens"][:].astype(np.uint8).tobytes())


def test_one_packed_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Records follow one another in the input's order; only the last row's rest is lost."""
    records = [{"text": f"fact {i} is {'é' * (i % 3)}"} for i in range(600)]
    path = write_json_lines(tmp_path / "facts.jsonl", records)
    arguments = ["--tokenizer", "bytes", "--context", 16, "--no-split", "--pack"]
    assert run(path, *arguments, "--output", tmp_path / "facts") == 0
    text = "".join(record["text"] + "\n" for record in records).encode()
    assert rows_of(tmp_path / "facts.h5") == text[: len(text) // 16 * 16]
    assert [p.name for p in tmp_path.glob("*.h5")] == ["facts.h5"]
    summary = capsys.readouterr().out.splitlines()[3].split()
    assert summary[:4] == ["all", "600", "0", str(len(text) // 16)]


def test_pack_and_split(tmp_path: Path) -> None:
    records = [{"text": f"{i:03d}"} for i in range(64)]
    path = write_json_lines(tmp_path / "t.jsonl", records)
    assert (
        run(path, "--tokenizer", "bytes", "--context", 4, "--pack", "--output", tmp_path / "t") == 0
    )
    found = {name: rows.shape for name, rows in read_rows(tmp_path / "t").items()}
    assert found == {"train": (32, 4), "validation": (16, 4), "test": (16, 4)}


def test_no_split_drops_what_is_short(tmp_path: Path) -> None:
    path = write_json_lines(tmp_path / "t.jsonl", [{"text": "abcdef"}, {"text": "abc"}])
    arguments = ["--tokenizer", "bytes", "--context", 4, "--no-split"]
    assert run(path, *arguments, "--output", tmp_path / "t") == 0
    assert rows_of(tmp_path / "t.h5") == b"abcd"


def test_too_little_to_pack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_json_lines(tmp_path / "t.jsonl", [{"text": "abc"}] * 2)
    arguments = ["--tokenizer", "bytes", "--context", 9, "--output", tmp_path / "t", "--pack"]
    assert run(path, *arguments, "--no-split") == 2
    assert "too little text: the input has 8 tokens, a row 9; " in capsys.readouterr().err


def prompts(path: Path) -> list[str]:
    with h5py.File(path) as file:
        offsets, all_prompts = file["offsets"][:], file["prompts"][:]
        return [bytes(all_prompts[a:b].tolist()).decode() for a, b in zip(offsets, offsets[1:])]


def test_harness_prompt_with_one_subject(tmp_path: Path) -> None:
    """The harness's form for questions that do not say their subject."""
    path = write_json_lines(tmp_path / "q.jsonl", QUESTIONS)
    arguments = ["--multiple-choice", "--tokenizer", "bytes", "--output"]
    assert run(path, *arguments, tmp_path / "plain") == 0
    assert run(path, *arguments, tmp_path / "about", "--about", "cell biology") == 0
    begin = "The following are multiple choice questions (with answers) about cell biology.\n\n"
    assert prompts(tmp_path / "about.h5") == [begin + p for p in prompts(tmp_path / "plain.h5")]
    with h5py.File(tmp_path / "about.h5") as file:
        assert file.attrs["source"] == "q.jsonl about=cell biology"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--about", "x"], "--about has no effect with text"),
        (["--multiple-choice", "--pack"], "--pack has no effect with --multiple-choice"),
        (["--multiple-choice", "--no-split"], "--no-split has no effect with --multiple-choice"),
        (["--python-functions", "--strip-python"], "--strip-python has no effect with --python-f"),
        (["--multiple-choice", "--about", "x", "--describe", "y"], "not allowed with argument"),
    ],
)
def test_options_without_effect(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(tmp_path, "--tokenizer", "bytes", "--output", tmp_path / "o", *arguments)
    assert ended.value.code == 2 and message in capsys.readouterr().err
