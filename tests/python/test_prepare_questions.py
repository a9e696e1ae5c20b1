"""prepare_data.py --multiple-choice."""

from __future__ import annotations

import re
import time
from pathlib import Path

import h5py
import numpy as np
import tokenizers

from prepare_helpers import QUESTIONS, run, write_json_lines


def read_questions(path: Path) -> tuple[list[list[int]], list[list[int]], list[int], dict]:
    with h5py.File(path) as file:
        offsets = file["offsets"][:]
        assert offsets[0] == 0 and offsets[-1] == len(file["prompts"])
        assert file["prompts"].dtype == np.dtype("<u4") and file["choices"].shape == (
            len(offsets) - 1,
            4,
        )
        prompts = [file["prompts"][a:b].tolist() for a, b in zip(offsets, offsets[1:])]
        return prompts, file["choices"][:].tolist(), file["answers"][:].tolist(), dict(file.attrs)


def test_multiple_choice_in_bytes(tmp_path: Path) -> None:
    path = write_json_lines(tmp_path / "q.jsonl", QUESTIONS)
    arguments = ["--multiple-choice", "--tokenizer", "bytes", "--output"]
    assert run(path, *arguments, tmp_path / "mc") == 0
    prompts, choices, answers, attributes = read_questions(tmp_path / "mc.h5")
    assert [bytes(prompt).decode("utf-8") for prompt in prompts] == [
        "Short?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer: ",
        "Thé sea?\nA. p\nB. q\nC. r\nD. s\nAnswer: ",
        "Which of these is the longest question?\nA. w\nB. x\nC. y\nD. z\nAnswer: ",
    ]
    assert choices == [list(b"ABCD")] * 3
    assert answers == [0, 2, 3]
    assert (
        attributes["vocab_size"] == 256
        and attributes["tokenizer"] == "bytes"
        and "q.jsonl" in attributes["source"]
    )
    first = (tmp_path / "mc.h5").read_bytes()
    time.sleep(1.1)
    run(path, *arguments, tmp_path / "again")
    assert (tmp_path / "again.h5").read_bytes() == first


def test_multiple_choice_filter_and_description(tmp_path: Path) -> None:
    path = write_json_lines(tmp_path / "q.jsonl", QUESTIONS)
    arguments = [
        "--multiple-choice",
        "--where",
        "of!=c",
        "--describe",
        "of",
        "--tokenizer",
        "bytes",
    ]
    assert run(path, *arguments, "--output", tmp_path / "mc") == 0
    (prompt,), _, (answer,), _ = read_questions(tmp_path / "mc.h5")
    assert bytes(prompt).startswith(
        b"The following are multiple choice questions (with answers) about a b.\n\nWhich of"
    )
    assert answer == 3


def test_multiple_choice_with_a_real_tokenizer(real_data: Path, tmp_path: Path) -> None:
    tokenizer = real_data / "tokenizers/gpt-neox"
    arguments = ["--multiple-choice", "--tokenizer", tokenizer, "--output", tmp_path / "mmlu"]
    assert run(real_data / "mmlu_mcq.jsonl", *arguments) == 0
    prompts, choices, answers, _ = read_questions(tmp_path / "mmlu.h5")
    reader = tokenizers.Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    texts = [reader.decode(prompt) for prompt in prompts]
    assert len(texts) == 984 and len(set(answers)) == 4
    assert [len(text) for text in texts] == sorted(len(text) for text in texts)
    assert [reader.decode([token]) for token in choices[0]] == [" A", " B", " C", " D"]
    assert all(
        re.search(r"\nA\. .*\nB\. .*\nC\. .*\nD\. .*\nAnswer:$", text, re.DOTALL) for text in texts
    )
