"""prepare_data.py: split, filters, tokenizers, token files."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import tokenizers

import prepare_data
import token_files
from prepare_helpers import (
    RECORDS,
    SPLITS,
    expected_rows,
    expected_split,
    read_rows,
    run,
    texts_of,
    write_json_lines,
)
from text_tokenizer import ByteTokenizer, open_tokenizer

# --- split and files
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [3, 4, 5, 6, 7, 100, 1501])
def test_split_is_the_papers(n: int) -> None:
    split = prepare_data.paper_split(n)
    assert {name: list(part) for name, part in split.items()} == expected_split(list(range(n)))
    assert sorted(np.concatenate(list(split.values()))) == list(range(n))
    assert len(split["train"]) == n // 2


def test_files_hold_the_split_in_permuted_order(stories: Path, tmp_path: Path) -> None:
    assert (
        run(stories, "--tokenizer", "bytes", "--context", 14, "--output", tmp_path / "out" / "all")
        == 0
    )
    expected = expected_rows(texts_of(stories), 14)
    for split, rows in read_rows(tmp_path / "out" / "all").items():
        assert len(rows) > 50
        np.testing.assert_array_equal(rows, expected[split])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        f"all-{split}.h5" for split in SPLITS
    )


def test_length_filter_follows_the_split(stories: Path, tmp_path: Path) -> None:
    """Were the short texts dropped first, the permutation would be another."""
    run(stories, "--tokenizer", "bytes", "--context", 16, "--output", tmp_path / "a")
    long_enough = [text for text in texts_of(stories) if len(text.encode("utf-8")) >= 16]
    other = expected_rows(long_enough, 16)["train"]
    rows = read_rows(tmp_path / "a")["train"]
    assert rows.shape != other.shape or (rows != other).any()


def test_token_file_format(stories: Path, tmp_path: Path) -> None:
    run(
        stories,
        "--where",
        "kind=odd",
        "--match",
        "dog",
        "--tokenizer",
        "bytes",
        "--context",
        10,
        "--output",
        tmp_path / "a",
    )
    with h5py.File(tmp_path / "a-train.h5") as file:
        assert list(file) == ["tokens"]
        assert (
            file["tokens"].dtype == np.dtype("<u4")
            and file["tokens"].ndim == 2
            and file["tokens"].shape[1] == 10
        )
        assert file.attrs["vocab_size"] == 256
        assert file.attrs["tokenizer"] == "bytes"
        source = file.attrs["source"]
    for word in ("stories.jsonl", "where=kind=odd", "match=dog", "train split of 250 records"):
        assert word in source
    assert str(tmp_path) not in source


def test_same_input_gives_same_bytes(stories: Path, tmp_path: Path) -> None:
    def once(folder: Path) -> list[bytes]:
        run(stories, "--tokenizer", "bytes", "--context", 12, "--output", folder / "a")
        return [(folder / f"a-{split}.h5").read_bytes() for split in SPLITS]

    first = once(tmp_path / "one")
    time.sleep(1.1)  # HDF5's times count seconds
    assert once(tmp_path / "two") == first
    assert once(tmp_path / "one") == first  # replaced in place


def test_summary_counts_and_hashes(
    stories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(
        stories,
        "--where",
        "kind=odd",
        "--tokenizer",
        "bytes",
        "--context",
        14,
        "--output",
        tmp_path / "a",
    )
    printed = capsys.readouterr()
    assert f"{RECORDS} read, {RECORDS // 2} kept" in printed.out
    assert printed.err == ""  # no progress bar where nobody watches
    rows = read_rows(tmp_path / "a")
    for split in SPLITS:
        assert token_files.file_sha256(tmp_path / f"a-{split}.h5") in printed.out
        numbers = re.search(rf"^{split} +(\d+) +(\d+) +(\d+) +(\d+) ", printed.out, re.MULTILINE)
        records, short, examples, tokens = map(int, numbers.groups())
        assert (records - short, examples, tokens) == (
            len(rows[split]),
            len(rows[split]),
            rows[split].size,
        )


def test_nothing_is_left_behind_by_a_failed_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a.h5"
    target.write_bytes(b"old")

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(token_files.os, "fsync", full_disk)
    with pytest.raises(OSError):
        token_files.write_token_file(
            target, np.ones((2, 3), np.uint32), token_files.Origin(256, "bytes", "test")
        )
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_ids_outside_the_vocabulary_are_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="outside the vocabulary"):
        token_files.write_token_file(
            tmp_path / "a.h5", np.full((2, 3), 256), token_files.Origin(256, "bytes", "test")
        )
    assert list(tmp_path.iterdir()) == []


# --- choosing records
# --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--where", "kind=odd"], lambda i: i % 2 == 1),
        (["--where", "kind!=odd"], lambda i: i % 2 == 0),
        (["--where", "meta.long=true"], lambda i: i >= 1000),
        (["--where", "meta.long=false", "--where", "kind=even"], lambda i: i < 1000 and i % 2 == 0),
        (["--match", r"\bdog\b"], lambda i: i % 3 == 0),
        (["--exclude", r"(?i)\bDOG\b"], lambda i: i % 3 != 0),
        (["--match", "dog", "--match", "^000"], lambda i: i % 3 == 0 and i < 100),
        (
            ["--where", "kind=odd", "--match", "dog", "--exclude", "5 "],
            lambda i: i % 6 == 3 and i % 10 != 5,
        ),
    ],
)
def test_filters_precede_the_split(
    stories: Path, tmp_path: Path, options: list[str], wanted: Callable[[int], bool]
) -> None:
    assert (
        run(stories, *options, "--tokenizer", "bytes", "--context", 10, "--output", tmp_path / "a")
        == 0
    )
    texts = [text for i, text in enumerate(texts_of(stories)) if wanted(i)]
    expected = expected_rows(texts, 10)
    for split, rows in read_rows(tmp_path / "a").items():
        np.testing.assert_array_equal(rows, expected[split])


def test_match_and_exclude_are_complements(stories: Path, tmp_path: Path) -> None:
    numbers = []
    for option in ("--match", "--exclude"):
        run(
            stories,
            option,
            "dog",
            "--tokenizer",
            "bytes",
            "--context",
            9,
            "--output",
            tmp_path / "a",
        )
        numbers.append(
            {bytes(row[:5].tolist()) for rows in read_rows(tmp_path / "a").values() for row in rows}
        )
    assert not numbers[0] & numbers[1]
    assert len(numbers[0]) + len(numbers[1]) == RECORDS


def test_other_field(tmp_path: Path) -> None:
    path = write_json_lines(
        tmp_path / "a.jsonl", [{"code": {"body": f"text number {i}"}} for i in range(8)]
    )
    assert (
        run(
            path,
            "--field",
            "code.body",
            "--tokenizer",
            "bytes",
            "--context",
            13,
            "--output",
            tmp_path / "a",
        )
        == 0
    )
    assert sum(len(rows) for rows in read_rows(tmp_path / "a").values()) == 8


# --- plain text and folders
# --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("records", "texts"),
    [
        ("paragraph", ["first line\nsecond line", "another one", "  indented", "the last"]),
        ("line", ["first line", "second line", "another one", "  indented", "the last"]),
    ],
)
def test_plain_text_records(tmp_path: Path, records: str, texts: list[str]) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(
        b"\xef\xbb\xbffirst line\r\nsecond line\r\n\r\n"
        b"another one\n \t\n\n\n  indented\n\nthe last\n"
    )
    assert (
        run(
            path,
            "--records",
            records,
            "--tokenizer",
            "bytes",
            "--context",
            8,
            "--output",
            tmp_path / "o",
        )
        == 0
    )
    for split, rows in read_rows(tmp_path / "o").items():
        np.testing.assert_array_equal(rows, expected_rows(texts, 8)[split])


def test_folders_are_walked_in_sorted_order(tmp_path: Path) -> None:
    """Files are made in another order than the sorted one; both kinds of text are read."""
    names = ["b/z.txt", "b/a.md", "c.txt", "a.jsonl", "b/ignored.bin", "a/2.txt", "a/1.txt"]
    for name in names:
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"text": name}) if name.endswith(".jsonl") else name)
    arguments = [
        "--records",
        "file",
        "--tokenizer",
        "bytes",
        "--context",
        5,
        "--output",
        tmp_path / "o",
    ]
    assert run(tmp_path / "in", *arguments) == 0
    order = ["a.jsonl", "c.txt", "a/1.txt", "a/2.txt", "b/a.md", "b/z.txt"]
    for split, rows in read_rows(tmp_path / "o").items():
        np.testing.assert_array_equal(rows, expected_rows(order, 5)[split])


def test_python_functions_are_read_from_folders(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(6):
        (tmp_path / f"m{i}.py").write_text(
            f'def function_{i}():\n    """Doc."""\n    return {i}  # comment\n'
        )
    (tmp_path / "old.py").write_text("print 'no longer Python'\n")
    (tmp_path / "readme.txt").write_text("def f(): pass\n")
    (tmp_path / "m5.py").write_text((tmp_path / "m5.py").read_text() + "def function_3(): return 3\n")
    (tmp_path / "vendored.py").write_text("# a copy\ndef function_2():\n    return 2\n")
    arguments = [
        "--python-functions",
        "--tokenizer",
        "bytes",
        "--context",
        30,
        "--output",
        tmp_path / "o",
    ]
    assert run(tmp_path, *arguments) == 0
    printed = capsys.readouterr().out
    assert "do not parse: 1" in printed and "1 copies of others" in printed
    texts = [f"def function_{i}():\n    return {i}" for i in range(6)]
    texts.append("def function_3(): return 3")  # another text
    for split, rows in read_rows(tmp_path / "o").items():
        np.testing.assert_array_equal(rows, expected_rows(texts, 30)[split])


# --- tokenizers ---------------------------------------------------------------------------------
# -----------------


def word_tokenizer(path: Path, words: str, begin: bool) -> Path:
    """Write a tokenizer.json of whole words, which cuts and pads, and may put <s> first."""
    vocabulary = {word: i for i, word in enumerate(["<s>", "<unk>", *words.split()])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=50)
    if begin:
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    path.mkdir(exist_ok=True)
    tokenizer.save(str(path / "tokenizer.json"))
    return path


@pytest.mark.parametrize(
    ("begin", "options", "row"),
    [
        (True, [], [0, 2, 3, 4]),
        (False, [], [2, 3, 4, 5]),
        (True, ["--no-special-tokens"], [2, 3, 4, 5]),
    ],
)
def test_special_tokens_as_the_tokenizer_says(
    tmp_path: Path, begin: bool, options: list[str], row: list[int]
) -> None:
    """And the file's own truncation and padding do not reach the rows."""
    model = word_tokenizer(tmp_path / "my model", "a b c d e", begin)
    path = write_json_lines(
        tmp_path / "a.jsonl", [{"text": "a b c d e"}] * 4 + [{"text": "a b"}] * 4
    )
    assert (
        run(path, *options, "--tokenizer", model, "--context", 4, "--output", tmp_path / "o") == 0
    )
    rows = np.concatenate(list(read_rows(tmp_path / "o").values()))
    assert rows.tolist() == [row] * 4
    with h5py.File(tmp_path / "o-train.h5") as file:
        assert file.attrs["vocab_size"] == 7
        assert re.fullmatch(
            r"my model/tokenizer\.json sha256:[0-9a-f]{64}", file.attrs["tokenizer"]
        )


def test_dropout_of_a_tokenizer_does_not_reach_the_rows(tmp_path: Path) -> None:
    """It would leave merges out at random, other ones each time."""
    letters = {letter: i for i, letter in enumerate("abcdefgh")}
    pairs = [("a", "b"), ("c", "d"), ("e", "f"), ("g", "h")]
    vocabulary = letters | {a + b: 8 + i for i, (a, b) in enumerate(pairs)}
    model = tokenizers.models.BPE(vocabulary, pairs, dropout=1.0)
    tokenizers.Tokenizer(model).save(str(tmp_path / "tokenizer.json"))
    encoded = open_tokenizer(str(tmp_path)).encode(["abcdefgh" * 8])
    assert encoded == [[8, 9, 10, 11] * 8]


def test_begin_token_counts_in_the_length(tmp_path: Path) -> None:
    model = word_tokenizer(tmp_path / "m", "a b c", True)
    path = write_json_lines(tmp_path / "a.jsonl", [{"text": "a b c"}] * 4)
    assert run(path, "--tokenizer", model, "--context", 4, "--output", tmp_path / "o") == 0
    assert run(path, "--tokenizer", model, "--context", 5, "--output", tmp_path / "p") == 2


@pytest.mark.parametrize(
    ("tokenizer", "reference"),
    [
        ("models/stories260K", "models/stories260K/tokenizer_reference.jsonl"),
        ("tokenizers/gpt-neox", "tokenizers/gpt-neox/reference.jsonl"),
    ],
)
def test_real_tokenizers_give_the_reference_ids(
    real_data: Path, tokenizer: str, reference: str
) -> None:
    # Not splitlines: the texts hold other line separators than the line feed.
    with (real_data / reference).open("rb") as lines:
        expected = [json.loads(line) for line in lines]
    assert len(expected) > 30
    ids = open_tokenizer(str(real_data / tokenizer)).encode([record["text"] for record in expected])
    assert ids == [record["ids"] for record in expected]


def test_real_stories(real_data: Path, tmp_path: Path) -> None:
    """A story theme and the rest: every story is in exactly one of the six files."""
    common = [real_data / "retain_english.jsonl", "--where", "source=tinystories", "--tokenizer"]
    common.append(real_data / "models/stories260K")
    total = 0
    for option in ("--match", "--exclude"):
        assert (
            run(
                *common,
                option,
                r"(?i)\b(dog|bird)s?\b",
                "--context",
                100,
                "--output",
                tmp_path / "o",
            )
            == 0
        )
        for rows in read_rows(tmp_path / "o").values():
            assert (rows[:, 0] == 1).all() and rows[:, 1:].min() > 2 and rows.max() < 512
            total += len(rows)
    assert total == 1639


def test_byte_tokenizer() -> None:
    assert ByteTokenizer().encode(["a é", ""]) == [[97, 32, 0xC3, 0xA9], []]
