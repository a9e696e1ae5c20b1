"""Multiple-choice questions as prompts and answer tokens.

A prompt is the stripped question, the lines "A. ..." to "D. ..." and "Answer:"; the answers are
the tokens " A" to " D".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from text_records import InputError, checked_text, look_up, look_up_text
from text_tokenizer import ByteTokenizer, TextTokenizer
from token_files import CHOICES, Question

LETTERS = "ABCD"


def question_prompt(
    record: dict[str, Any], place: str, describe: str | None, about: str | None = None
) -> str:
    """Return the prompt up to and with "Answer:".

    With a field's name to `describe`, or a subject that the questions are `about`, it begins as
    lm-evaluation-harness begins.
    """
    choices = look_up(record, "choices", place)
    if (
        not isinstance(choices, list)
        or len(choices) != CHOICES
        or not all(isinstance(c, str) for c in choices)
    ):
        raise InputError(f"{place}: field 'choices' must be a list of {CHOICES} texts")
    lines = [look_up_text(record, "question", place).strip()]
    lines += [
        f"{letter}. {checked_text(choice, place)}" for letter, choice in zip(LETTERS, choices)
    ]
    if describe:
        about = look_up_text(record, describe, place).replace("_", " ")
    if about:
        lines[:0] = [
            f"The following are multiple choice questions (with answers) about {about}.",
            "",
        ]
    return "\n".join([*lines, "Answer:"])


def right_answer(record: dict[str, Any], place: str) -> int:
    """Return which choice is right."""
    answer = look_up(record, "answer", place)
    if type(answer) is not int or not 0 <= answer < CHOICES:
        raise InputError(f"{place}: field 'answer' must be a number from 0 to {CHOICES - 1}")
    return answer


def tokenize_questions(
    asked: Sequence[tuple[str, int]], tokenizer: TextTokenizer
) -> list[Question]:
    """Tokenise prompts; the answer tokens are the same in all of them."""
    # A byte model reads the space as a token of its own: it goes to the prompt.
    ending = " " if isinstance(tokenizer, ByteTokenizer) else ""
    choices = answer_tokens(tokenizer, ending)
    prompts = tokenizer.encode([prompt + ending for prompt, _ in asked])
    return [Question(prompt, choices, answer) for prompt, (_, answer) in zip(prompts, asked)]


def answer_tokens(tokenizer: TextTokenizer, ending: str) -> list[int]:
    """Return the one token that each answer adds after "Answer:"."""
    stub = "Answer:" + ending
    answers = [letter if ending else f" {letter}" for letter in LETTERS]
    # In place, not alone: some tokenizers put a space of their own before a text that begins.
    before, *after = tokenizer.encode([stub, *(stub + answer for answer in answers)])
    for answer, ids in zip(answers, after):
        if ids[:-1] != before:
            name = tokenizer.name.split(" sha256:")[0]
            raise InputError(
                f"{name}: '{answer}' after 'Answer:' is not one token; multiple choice needs that"
            )
    return [ids[-1] for ids in after]
