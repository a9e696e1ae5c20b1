"""prepare_data.py with bad input: exit 2, one line that names the place, nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers

from prepare_helpers import QUESTIONS, RECORDS, run, write_json_lines


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run, expect exit 2 and one line; return it."""
    assert run(*arguments) == 2
    message = capsys.readouterr().err
    assert (
        message.startswith("prepare_data.py: ")
        and message.endswith("\n")
        and message.count("\n") == 1
    )
    return message


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b'{"text": "unfinished', "not JSON"),
        (b'["a", "list"]', "a JSON object is expected"),
        (b'{"body": "b"}', "no field 'text' (there are: body)"),
        (b'{"text": 7}', "field 'text' is not text"),
        (b'{"text": "\xff"}', "not UTF-8"),
        (b'{"text": "\\ud800"}', "not valid Unicode"),
        (b"[" * 100_000, "not JSON"),
        (b'{"text": "a", "text": "b"}', "one object has a name twice: 'text'"),
        (b'{"text": "a", "of": [{"x": 1, "x": 1}]}', "one object has a name twice: 'x'"),
    ],
)
def test_bad_json_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: bytes, complaint: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "good enough"}\n\n' + line + b'\n{"text": "never reached"}\n')
    message = fails(capsys, path, "--tokenizer", "bytes", "--output", tmp_path / "o")
    assert f"{path}:3: " in message and complaint in message
    assert list(tmp_path.iterdir()) == [path]


def test_bad_where(stories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--tokenizer", "bytes", "--output", tmp_path / "o", "--where"]
    assert f"{stories}:1: no field 'sort'" in fails(capsys, stories, *common, "sort=odd")
    assert "write field=value" in fails(capsys, stories, *common, "kind")
    assert f"{RECORDS} read, the filters keep none" in fails(
        capsys, stories, *common, "kind=neither"
    )
    (tmp_path / "a.txt").write_text("text")
    assert "plain text has no fields" in fails(capsys, tmp_path / "a.txt", *common, "kind=odd")


def test_no_example_long_enough(
    stories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = fails(capsys, stories, "--tokenizer", "bytes", "--output", tmp_path / "o")
    assert "none of the 750 records of the train split has 100 tokens, the longest has " in message
    assert "lower --context or give longer text" in message
    assert list(tmp_path.iterdir()) == [stories]


def test_too_few_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_json_lines(tmp_path / "a.jsonl", [{"text": "long enough"}] * 2)
    assert "needs 3 or more" in fails(
        capsys, path, "--tokenizer", "bytes", "--context", 4, "--output", tmp_path / "o"
    )


def test_bad_tokenizer(stories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = [stories, "--output", tmp_path / "o", "--tokenizer"]
    assert "No such file" in fails(capsys, *common, tmp_path / "none")
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    message = fails(capsys, *common, tmp_path)
    assert f"{tmp_path}/tokenizer.json: not a tokenizer.json that can be read" in message
    tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0})).save(f"{tmp_path}/tokenizer.json")
    message = fails(capsys, *common, tmp_path)
    assert f"{tmp_path}/tokenizer.json: cannot tokenise this text" in message
    (tmp_path / "tokenizer.json").rename(tmp_path / "tokenizer.model")
    message = fails(capsys, *common, tmp_path)
    assert f"{tmp_path}: holds no tokenizer.json but tokenizer.model" in message


def test_bad_paths(stories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--tokenizer", "bytes", "--context", 8]
    assert "no such file or folder" in fails(
        capsys, tmp_path / "none.jsonl", *common, "--output", tmp_path / "o"
    )
    (tmp_path / "empty").mkdir()
    assert "no file in this folder" in fails(
        capsys, tmp_path / "empty", *common, "--output", tmp_path / "o"
    )
    assert str(stories) in fails(capsys, stories, *common, "--output", stories / "o")
    (tmp_path / "latin.txt").write_bytes(b"one\ntwo\nna\xefve\n")
    message = fails(capsys, tmp_path / "latin.txt", *common, "--output", tmp_path / "o")
    assert f"{tmp_path}/latin.txt:3: not UTF-8" in message


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"choices": ["a", "b", "c"]}, "a list of 4 texts"),
        ({"choices": ["a", "b", "c", 4]}, "a list of 4 texts"),
        ({"answer": 4}, "a number from 0 to 3"),
        ({"answer": True}, "a number from 0 to 3"),
        ({"answer": "B"}, "a number from 0 to 3"),
        ({"question": None}, "field 'question' is not text"),
    ],
)
def test_bad_questions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict, complaint: str
) -> None:
    path = write_json_lines(tmp_path / "q.jsonl", [QUESTIONS[0], {**QUESTIONS[1], **change}])
    message = fails(
        capsys, path, "--multiple-choice", "--tokenizer", "bytes", "--output", tmp_path / "o"
    )
    assert f"{path}:2: " in message and complaint in message


def test_answers_must_be_single_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As in this tokenizer, in which every character is a token and the space one more."""
    path = write_json_lines(tmp_path / "q.jsonl", QUESTIONS)
    model = tmp_path / "m"
    model.mkdir()
    vocabulary = {character: i for i, character in enumerate("<Answer: ABC")}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [], unk_token="<"))
    tokenizer.save(str(model / "tokenizer.json"))
    message = fails(
        capsys, path, "--multiple-choice", "--tokenizer", model, "--output", tmp_path / "o"
    )
    assert "m/tokenizer.json: ' A' after 'Answer:' is not one token" in message


@pytest.mark.parametrize(
    "options",
    [
        ["--context", "1"],
        ["--context", "1000001"],
        ["--output", "."],
        ["--output", "data/"],
        ["--python-functions", "--field", "code"],
        ["--python-functions", "--multiple-choice"],
        ["--multiple-choice", "--match", "x"],
        ["--describe", "subject"],
        ["--records", "sentence"],
    ],
)
def test_bad_options(stories: Path, tmp_path: Path, options: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(stories, "--tokenizer", "bytes", "--output", tmp_path / "o", *options)
    assert stopped.value.code == 2


def test_bad_expression(stories: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(
        capsys, stories, "--match", "(dog", "--tokenizer", "bytes", "--output", tmp_path / "o"
    )
    assert "--match (dog: not a regular expression" in message
