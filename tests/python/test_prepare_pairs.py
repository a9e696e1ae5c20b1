"""prepare_data.py with prompts and answers, chats, and records shorter than a row."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import tokenizers

from held_out_facts import write_joined
from prepare_helpers import run, write_json_lines
from test_prepare_errors import fails
from token_files import Origin, TokenRows, join_rows, read_token_rows

PAIRS = [
    {"q": "Where does Ada live?", "a": "In Bély."},
    {"q": "Who?", "a": "Bob"},
    {"q": "Q" * 40, "a": "too far"},
    {"q": "é?", "a": "an answer that is much longer than the row that it is put into"},
]
FIELDS = ["--prompt-field", "q", "--answer-field", "a"]
CHAT = (
    "{{ bos_token }}{% for m in messages %}\n[{{ m.role }}]{{ m.content | trim }}{{ eos_token }}"
    "{% endfor %}\n    {% if add_generation_prompt %}[assistant]{% endif %}"
)


def read(path: Path) -> TokenRows:
    with h5py.File(path) as file:
        return read_token_rows(file)


def parts(rows: TokenRows) -> list[tuple[str, str]]:
    """What is read and what is learnt of every row of bytes."""
    found = []
    for row, length, begin in zip(rows.tokens, rows.lengths, rows.answers, strict=True):
        assert not row[length:].any()
        text = bytes(row[:length].astype("u1").tolist())
        found.append((text[:begin].decode(), text[begin:].decode(errors="replace")))
    return found


def prepared(tmp_path: Path, records: list[dict], *options: object) -> TokenRows:
    path = write_json_lines(tmp_path / "in.jsonl", records)
    assert run(path, *options, "--no-split", "--output", tmp_path / "o") == 0
    return read(tmp_path / "o.h5")


def test_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The answer, and the space before it, is learnt; what does not fit is cut, or left out."""
    rows = prepared(tmp_path, PAIRS, *FIELDS, "--tokenizer", "bytes", "--context", 32)
    assert rows.tokens.shape == (3, 32)
    assert parts(rows) == [
        ("Where does Ada live?", " In Bély."),
        ("Who?", " Bob"),
        ("é?", " an answer that is much longer"[: 32 - 3]),
    ]
    printed = capsys.readouterr().out
    assert "dropped: 1 whose answer begins behind 32 tokens" in printed
    assert "read:   Where does Ada live?\n" in printed and "learnt:  In Bély.\n" in printed


def test_template(tmp_path: Path) -> None:
    template = "Q: {prompt}\\nA: {answer}</s>"
    options = [*FIELDS, "--template", template, "--tokenizer", "bytes"]
    rows = prepared(tmp_path, [{"q": "{answer}?", "a": "{prompt}"}], *options)
    assert parts(rows) == [("Q: {answer}?\nA:", " {prompt}</s>")]
    with h5py.File(tmp_path / "o.h5") as file:
        assert "fields=q,a template='Q: {prompt}\\nA: {answer}</s>'" in file.attrs["source"]


def word_tokenizer(folder: Path, template: str | None) -> Path:
    """Words and the marks of CHAT, with a begin-of-text token of its own."""
    words = ["<s>", "</s>", "[user]", "[assistant]", "[UNK]", "where", "in", "town", "is", "it"]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(words[:4])
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}}
    config |= {"chat_template": template} if template else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_chat(tmp_path: Path) -> None:
    """The tokenizer's template, once with its begin-of-text token; pairs and chats alike."""
    folder = word_tokenizer(tmp_path / "t", CHAT)
    pair = {"q": "where is it", "a": " in town "}
    turns = [
        {"role": "user", "content": "where is it"},
        {"role": "assistant", "content": "in town"},
    ]
    chat = {"messages": turns, "more": turns[:1] + [turns[1] | {"content": "it"}] + turns}
    row = [0, 2, 5, 8, 9, 1, 3, 6, 7, 1]
    common = ["--chat", "--tokenizer", folder, "--context", 16]
    for options in ([*FIELDS, *common], common):
        rows = prepared(tmp_path, [pair | chat], *options)
        assert rows.tokens[0].tolist() == [*row, *[0] * 6]
        assert (rows.lengths[0], rows.answers[0]) == (10, 7), "what follows [assistant]"
    rows = prepared(tmp_path, [chat], "--field", "more", *common)
    assert rows.tokens[0].tolist() == [0, 2, 5, 8, 9, 1, 3, 9, 1, 2, 5, 8, 9, 1, 3, 6]
    assert (rows.lengths[0], rows.answers[0]) == (16, 15), "the last message alone"
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "chat_template.jinja").write_text(CHAT.replace("{{ bos_token }}", ""))
    assert prepared(tmp_path, [chat], *common).answers[0] == 5, "without begin and end"


def test_answer_in_tokens(tmp_path: Path) -> None:
    """By what the tokens cover; a begin-of-text token counts."""
    folder = word_tokenizer(tmp_path / "t", None)
    rows = prepared(tmp_path, [{"q": "where is it", "a": "in town"}], *FIELDS,
                    "--tokenizer", folder, "--context", 8)  # fmt: skip
    assert rows.tokens[0].tolist() == [0, 5, 8, 9, 6, 7, 0, 0]
    assert (rows.lengths[0], rows.answers[0]) == (6, 4)


def test_pad(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Short facts, a row each; without prompts nothing says where an answer begins."""
    facts = [{"text": text} for text in ("Ada lives in Bély.", "x", "", "A fact that is cut off")]
    rows = prepared(tmp_path, facts, "--pad", "--tokenizer", "bytes", "--context", 20)
    assert rows.answers is None and rows.lengths.tolist() == [19, 20]
    assert bytes(rows.tokens[1].astype("u1").tolist()) == b"A fact that is cut o"
    printed = capsys.readouterr().out
    assert "dropped: 2 shorter than 2 tokens" in printed and "         2         39  " in printed


def test_split(tmp_path: Path) -> None:
    """All three files are padded."""
    path = write_json_lines(
        tmp_path / "in.jsonl", [{"q": str(i), "a": "x" * i} for i in range(1, 30)]
    )
    assert run(path, *FIELDS, "--tokenizer", "bytes", "--output", tmp_path / "o") == 0
    rows = [read(tmp_path / f"o-{name}.h5") for name in ("train", "validation", "test")]
    assert [len(part.tokens) for part in rows] == [14, 7, 8]
    read_and_learnt = [pair for part in rows for pair in parts(part)]
    assert sorted(read_and_learnt, key=lambda p: int(p[0])) == [
        (str(i), " " + "x" * i) for i in range(1, 30)
    ]


def test_joined_rows(tmp_path: Path) -> None:
    """Of held-out facts: some files with lengths, others without."""
    ragged = TokenRows(np.arange(8).reshape(2, 4), np.array([2, 3]), np.array([1, 2]))
    whole = TokenRows(np.arange(8, 12).reshape(1, 4))
    joined = join_rows([ragged, whole])
    assert joined.lengths.tolist() == [2, 3, 4] and joined.answers.tolist() == [1, 2, 0]
    assert join_rows([whole, whole]).lengths is None
    assert [len(text) for text in joined.texts(3)] == [
        n * joined.tokens.itemsize for n in (2, 3, 3)
    ]
    assert joined.chosen(np.array([False, True, True])).answers.tolist() == [2, 0]
    write_joined(tmp_path / "j.h5", [ragged, whole], Origin(12, "t", "s"), "all")
    rows = read(tmp_path / "j.h5")
    for tokens, length, answer in zip(rows.tokens, rows.lengths, rows.answers, strict=True):
        assert (length, answer) == {0: (2, 1), 4: (3, 2), 8: (4, 0)}[tokens[0]]


BAD_PAIRS = {
    "no field": ({"q": "x"}, FIELDS, "no field 'a'"),
    "empty": ({"q": "x", "a": " "}, FIELDS, "field 'a' is empty: nothing to learn"),
    "template": ({}, [*FIELDS, "--template", "{answer} {prompt}"], "write {prompt} once"),
    "no template": ({}, ["--chat"], "its tokenizer has no chat template"),
}
BAD_CHATS = {
    "text": ("hello", "is not a list of two messages or more"),
    "one": ([{"role": "user", "content": "x"}], "is not a list of two messages or more"),
    "no role": ([{"content": "x"}] * 2, "is not an object of role and content"),
    "no answer": ([{"role": "user", "content": "x"}] * 2, "is no answer of the assistant"),
    "refused": (
        [{"role": "tool", "content": "x"}, {"role": "assistant", "content": "x"}],
        "the chat template refuses this: no tools",
    ),
}


@pytest.mark.parametrize("name", BAD_PAIRS)
def test_bad_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    record, options, words = BAD_PAIRS[name]
    path = write_json_lines(tmp_path / "in.jsonl", [record])
    folder = word_tokenizer(tmp_path / "t", None)
    assert words in fails(capsys, path, *options, "--tokenizer", folder, "--output", tmp_path / "o")
    assert not list(tmp_path.glob("o*"))


@pytest.mark.parametrize("name", BAD_CHATS)
def test_bad_chats(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    turns, words = BAD_CHATS[name]
    strict = (
        "{% if messages[0].role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}" + CHAT
    )
    path = write_json_lines(tmp_path / "in.jsonl", [{"messages": turns}])
    folder = word_tokenizer(tmp_path / "t", strict)
    message = fails(capsys, path, "--chat", "--tokenizer", folder, "--output", tmp_path / "o")
    assert f"{path}:1: " in message and words in message


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% if %}", "its chat template cannot be read"),
        ("{{ 1 / 0 }}", "the chat template refuses this: division by zero"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "the chat template refuses this"),
        ("{{ ''.__class__.__mro__ }}{{ messages[0].content }}", "the chat template refuses this"),
        ("{{ add_generation_prompt }}{{ messages[0].content }}", "does not continue a prompt"),
    ],
)
def test_bad_templates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], template: str, words: str
) -> None:
    path = write_json_lines(tmp_path / "in.jsonl", PAIRS)
    folder = word_tokenizer(tmp_path / "t", template)
    options = [*FIELDS, "--chat", "--tokenizer", folder, "--output", tmp_path / "o"]
    assert words in fails(capsys, path, *options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--prompt-field", "q"], "go together"),
        (["--template", "x"], "--template needs --prompt-field"),
        (["--pack", "--pad"], "--pad has no effect with --pack"),
        ([*FIELDS, "--pack"], "--pack has no effect with --prompt-field"),
        ([*FIELDS, "--field", "x"], "--field has no effect with --prompt-field"),
        ([*FIELDS, "--chat", "--template", "x"], "--template has no effect with --chat"),
        (["--python-functions", "--chat"], "--chat has no effect with --python-functions"),
        (["--multiple-choice", "--pad"], "--pad has no effect with --multiple-choice"),
    ],
)
def test_options_without_effect(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(tmp_path, "--tokenizer", "bytes", "--output", tmp_path / "o", *options)
    assert ended.value.code == 2 and words in capsys.readouterr().err
