"""prepare_data.py knows the format of what it is given: suffixes, compression, parquet, encodings."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import pyarrow
import pyarrow.parquet
import pytest
import zstandard

import prepare_data
from prepare_helpers import QUESTIONS, run, write_json_lines
from test_prepare_errors import fails

ANSWERS = [{"question": f"Where was number {i}?", "answer": f"In town {i}."} for i in range(12)]
LINES = "".join(json.dumps(record) + "\n" for record in ANSWERS)
EXPECTED = "".join(record["answer"] + "\n" for record in ANSWERS).encode()
PACKED = ["--no-split", "--pack", "--context", 16, "--tokenizer", "bytes"]


def content(path: Path) -> bytes:
    with h5py.File(path) as file:
        return bytes(file["tokens"][:].astype("u1").tobytes())


def answers_of(path: Path, out: Path) -> bytes:
    assert run(path, "--field", "answer", *PACKED, "--output", out) == 0
    return content(Path(f"{out}.h5"))


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("a.jsonl", bytes),
        ("a.JSONL", bytes),
        ("a.NdJson", bytes),
        ("a.jsonl.gz", gzip.compress),
        ("a.JSONL.GZ", gzip.compress),
        ("a.jsonl.zst", zstandard.compress),
        ("a.jsonl", lambda lines: b"\xef\xbb\xbf" + lines),
        ("a.jsonl.zst", lambda lines: b"".join(map(zstandard.compress, (lines[:99], lines[99:])))),
        ("a.ndjson.gz", lambda lines: gzip.compress(lines[:99]) + gzip.compress(lines[99:])),
    ],
)
def test_json_lines_as_they_lie_around(
    tmp_path: Path, name: str, pack: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / name
    path.write_bytes(pack(LINES.encode()))
    assert answers_of(path, tmp_path / "o") == EXPECTED[: len(EXPECTED) // 16 * 16]


def test_parquet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As `datasets` writes it: row groups, large strings, a column of nested values, and others."""
    nested = [{"text": record["answer"], "n": i} for i, record in enumerate(ANSWERS)]
    table = pyarrow.table(
        {
            "answer": pyarrow.array([r["answer"] for r in ANSWERS], pyarrow.large_string()),
            "label": pyarrow.array([i % 2 for i in range(12)], pyarrow.int8()),
            "deep": pyarrow.array(nested),
            "image": pyarrow.array([b"\xff"] * 12),
        }
    )
    path = tmp_path / "train-00000-of-00001.parquet"
    pyarrow.parquet.write_table(table, path, row_group_size=5, compression="zstd")
    assert answers_of(path, tmp_path / "o") == EXPECTED[: len(EXPECTED) // 16 * 16]
    assert run(path, "--field", "deep.text", "--where", "label=1", *PACKED,
               "--output", tmp_path / "odd") == 0  # fmt: skip
    assert "dropped: 6 by --where\n" in capsys.readouterr().out
    odd = "".join(record["answer"] + "\n" for record in ANSWERS[1::2]).encode()
    assert content(tmp_path / "odd.h5") == odd[: len(odd) // 16 * 16]
    out = ["--output", tmp_path / "x"]
    assert f"{path}: no field 'text' (there are: answer, label" in fails(capsys, path, *PACKED, *out)
    image = fails(capsys, path, "--field", "image", *PACKED, *out)
    assert f"{path}: row 1: field 'image' is not text" in image
    path.write_bytes(path.read_bytes()[:-9])
    assert "not a parquet file that can be read" in fails(capsys, path, *PACKED, *out)
    twice = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], ["text"] * 2)
    pyarrow.parquet.write_table(twice, path)
    assert f"{path}: has two columns named 'text'" in fails(capsys, path, *PACKED, *out)


def test_questions_in_parquet(tmp_path: Path) -> None:
    write_json_lines(tmp_path / "q.jsonl", QUESTIONS)
    table = pyarrow.Table.from_pylist(QUESTIONS)
    pyarrow.parquet.write_table(table, tmp_path / "q.parquet")
    for name in ("q.jsonl", "q.parquet"):
        assert run(tmp_path / name, "--multiple-choice", "--describe", "of", "--tokenizer", "bytes",
                   "--output", tmp_path / name) == 0  # fmt: skip
    with h5py.File(tmp_path / "q.jsonl.h5") as a, h5py.File(tmp_path / "q.parquet.h5") as b:
        assert all((a[name][:] == b[name][:]).all() for name in a)


@pytest.mark.parametrize(
    "name", ["forget10.json", "forget10", "qa.csv", "qa.TSV", "x.jsonl.bak", "a.arrow", ".jsonlx"]
)
def test_a_named_file_of_no_known_format(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / name).write_text(LINES)
    message = fails(capsys, tmp_path / name, *PACKED, "--output", tmp_path / "o")
    assert f"{tmp_path / name}: " in message and ".jsonl .ndjson .parquet .txt" in message
    message = fails(
        capsys, tmp_path / name, "--python-functions", *PACKED, "--output", tmp_path / "o"
    )
    assert "must end in .py" in message
    assert sorted(p.name for p in tmp_path.iterdir()) == [name]


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.jsonl.bz2", bz2.compress(LINES.encode()), "compressed or packed in a way"),
        ("a.jsonl.xz", lzma.compress(LINES.encode()), "compressed or packed in a way"),
        ("a.jsonl", bz2.compress(LINES.encode()), "bzip2"),
        ("a.txt", lzma.compress(LINES.encode()), "xz"),
        ("a.jsonl", gzip.compress(LINES.encode()), "end its name in .gz"),
        ("a.txt", zstandard.compress(LINES.encode()), "end its name in .zst"),
        ("a.txt", b"PK\x03\x04rest", "zip"),
        ("a.jsonl", LINES.encode("utf-16"), "UTF-16"),
        ("a.txt", LINES.encode("utf-16-be"), "UTF-16"),
        ("a.jsonl.gz", gzip.compress(LINES.encode("utf-16")), "UTF-16"),
        ("a.txt", LINES.encode("utf-32"), "UTF-32"),
        ("a.jsonl.gz", LINES.encode(), "not gzip data"),
        ("a.jsonl.zst", LINES.encode(), "not zstd data"),
        ("a.jsonl.gz", gzip.compress(LINES.encode())[:-12], "ends in the middle of its gzip"),
        ("a.jsonl.zst", zstandard.compress(LINES.encode())[:-3], "ends in the middle of its zstd"),
        ("a.parquet", LINES.encode(), "not a parquet file"),
        ("a.jsonl", b"PAR1data", "parquet"),
    ],
)
def test_what_is_not_what_its_name_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, data: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(data)
    message = fails(capsys, tmp_path / name, *PACKED, "--output", tmp_path / "o")
    assert f"{tmp_path / name}" in message and words in message
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_field_needs_fields(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.md").write_text("text")
    message = fails(
        capsys, tmp_path / "a.md", "--field", "answer", *PACKED, "--output", tmp_path / "o"
    )
    assert "a.md: --field needs JSON lines or parquet" in message


def test_null_text_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_json_lines(tmp_path / "a.jsonl", [{"text": "x" * 20}, {"text": None}])
    arguments = [path, *PACKED, "--output", tmp_path / "o"]
    assert f"{path}:2: field 'text' is not text but null: --where" in fails(capsys, *arguments)
    assert run(*arguments, "--where", "text!=null") == 0


def test_a_missing_package_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(LINES.encode()))
    message = fails(capsys, tmp_path / "a.jsonl.zst", *PACKED, "--output", tmp_path / "o")
    assert "needs the Python package zstandard: pip install zstandard" in message


def test_summary_says_what_was_dropped_and_shows_an_example(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    records = [{"text": f"{i}é\n" * 9, "of": i % 4} for i in range(40)] + [{"text": "x", "of": 1}]
    write_json_lines(folder / "a.jsonl", records)
    (folder / "dataset_info.json").write_text("{}")
    (folder / "b.txt").write_text("0é no\n" * 9)
    arguments = [folder / "a.jsonl", "--where", "of!=0", "--exclude", "13", "--no-split"]
    out = tmp_path / "o"
    assert run(*arguments, "--context", 9, "--tokenizer", "bytes", "--output", out) == 0
    printed = capsys.readouterr().out
    assert "records: 41 read, 30 kept by the filters" in printed
    assert "dropped: 10 by --where, 1 by --match or --exclude, 1 shorter than 9 tokens" in printed
    assert f"example, the first row of {out}.h5:\n    1é\\n1é\\n1\n" in printed
    assert run(folder, *PACKED, "--output", out) == 0
    printed = capsys.readouterr().out
    assert "dropped: none" in printed
    assert "files of the folders left out because of their suffix: 1" in printed
    assert "copies" not in printed
    twice = write_json_lines(tmp_path / "twice.jsonl", [*records, *records[:8], records[0]])
    assert run(twice, *PACKED, "--output", out) == 0
    assert "kept, but copies of other records: 9\n" in capsys.readouterr().out
    assert run(twice, "--context", 9, "--tokenizer", "bytes", "--output", out) == 0
    assert "records: 9: train, validation and test may share" in capsys.readouterr().out
    write_json_lines(tmp_path / "q.jsonl", QUESTIONS)
    assert run(tmp_path / "q.jsonl", "--multiple-choice", "--where", "of=c", "--tokenizer", "bytes",
               "--output", out) == 0  # fmt: skip
    printed = capsys.readouterr().out
    assert "dropped: 1 by --where" in printed
    assert "example, the first question; A is right:\n    Short?\\nA. 1\\nB. 2" in printed


def test_a_full_disk_and_a_closed_output_are_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_json_lines(tmp_path / "a.jsonl", ANSWERS)

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28), "o.h5")

    monkeypatch.setattr(prepare_data, "write_token_file", full)
    assert run(path, "--field", "answer", *PACKED, "--output", tmp_path / "o") == 1
    assert capsys.readouterr().err == "prepare_data.py: o.h5: No space left on device\n"
