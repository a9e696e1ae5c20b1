"""Prompts with answers, and chats, as text: what is read, and from where on it is to be learnt."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from text_files import read_records
from text_records import (
    Condition,
    InputError,
    checked_text,
    look_up,
    look_up_text,
    parse_json,
)

PROMPT, ANSWER = "{prompt}", "{answer}"
DEFAULT_TEMPLATE = f"{PROMPT} {ANSWER}"
MESSAGES = "messages"


@dataclass(frozen=True)
class Sample:
    """A text; of a pair or chat what comes before character `answer_at` is read and not learnt."""

    text: str
    answer_at: int = 0


class Template:
    """A text around {prompt} and {answer}; what stands behind {answer} is learnt, too."""

    def __init__(self, text: str) -> None:
        self.text = text.replace("\\n", "\n").replace("\\t", "\t")
        prompt, answer = self.text.find(PROMPT), self.text.find(ANSWER)
        if self.text.count(PROMPT) != 1 or self.text.count(ANSWER) != 1 or answer < prompt:
            raise InputError(f"--template {text}: write {PROMPT} once, and {ANSWER} once behind it")

    def sample(self, prompt: str, answer: str) -> Sample:
        """Fill it in; spaces before {answer} belong to what is learnt, as tokens have them."""
        before, after = self.text.split(ANSWER)
        before = before.replace(PROMPT, prompt)
        head = before.rstrip(" ")
        return Sample(before + answer + after, len(head))


class ChatTemplate:
    """The template of a tokenizer, in Jinja, as transformers keeps it beside tokenizer.json."""

    def __init__(self, tokenizer: str) -> None:
        folder = Path(tokenizer)
        folder = folder if folder.is_dir() else folder.parent
        config = _read_config(folder / "tokenizer_config.json")
        alone = folder / "chat_template.jinja"
        text = alone.read_text(encoding="utf-8") if alone.is_file() else config.get("chat_template")
        if isinstance(text, list):  # several, by name
            named = {entry.get("name"): entry.get("template") for entry in text}
            text = named.get("default")
        if not isinstance(text, str):
            raise InputError(f"{folder}: its tokenizer has no chat template")
        self._place = str(folder)
        self._tokens = {name: _token(config.get(name)) for name in ("bos_token", "eos_token")}
        self._template = _compile(text, self._place)

    def sample(self, messages: list[dict[str, str]], place: str) -> Sample:
        """Everything before the last message is the prompt, with what the template puts there."""
        whole = self._render(messages, False, place)
        prompt = self._render(messages[:-1], True, place)
        if not whole.startswith(prompt):
            raise InputError(
                f"{place}: the chat template of {self._place} does not continue a prompt when the "
                "answer is known: give --template"
            )
        return Sample(whole, len(prompt))

    def _render(self, messages: list[dict[str, str]], open_end: bool, place: str) -> str:
        try:
            return self._template.render(
                messages=messages, add_generation_prompt=open_end, **self._tokens
            )
        except Exception as error:  # a template is a program, and may fail in any way
            raise InputError(f"{place}: the chat template refuses this: {error}") from None


def _read_config(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}") from None
    return content if isinstance(content, dict) else {}


def _token(value: Any) -> str:
    """A special token is a text, or an object with its content."""
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else ""


def _compile(text: str, place: str) -> Any:
    """The template, in transformers' dialect.

    Its `strftime_now` is left out, so that the same input gives the same bytes on any day.
    """
    try:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise InputError(
            "--chat needs the Python package Jinja2: tools/setup.sh tools installs it"
        ) from None

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(
        value, ensure_ascii=False, **options
    )
    environment.globals["raise_exception"] = refuse
    try:
        return environment.from_string(text)
    except TemplateError as error:
        raise InputError(f"{place}: its chat template cannot be read: {error}") from None


@dataclass(frozen=True)
class PairReader:
    """Makes samples of records; what it reads depends on the options."""

    prompt: str | None  # fields; None: chats in the field `messages`
    answer: str | None
    messages: str
    template: Template | None  # None: the chat's
    chat: ChatTemplate | None

    @property
    def fields(self) -> list[str]:
        """The fields that a record must have."""
        return [self.prompt, self.answer] if self.prompt and self.answer else [self.messages]

    def sample(self, record: dict[str, Any], place: str) -> Sample:
        """The sample of a record."""
        if not self.prompt or not self.answer:
            return self._chat().sample(_messages(record, self.messages, place), place)
        prompt, answer = (look_up_text(record, field, place) for field in self.fields)
        if not answer.strip():
            raise InputError(f"{place}: field '{self.answer}' is empty: nothing to learn")
        if self.template:
            return self.template.sample(prompt, answer)
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        return self._chat().sample(turns, place)

    @property
    def words(self) -> str:
        """What is made of them, in the words of a file's attribute."""
        return repr(self.template.text) if self.template else "the tokenizer's chat template"

    def read(self, path: Path, conditions: Sequence[Condition]) -> Iterator[Sample | None]:
        """Yield the samples of a file; None stands for a record that a condition leaves out."""
        for place, record in read_records(path, [*self.fields, *(c.field for c in conditions)]):
            wanted = all(condition.holds(record, place) for condition in conditions)
            yield self.sample(record, place) if wanted else None

    def _chat(self) -> ChatTemplate:
        assert self.chat is not None
        return self.chat


def _messages(record: dict[str, Any], field: str, place: str) -> list[dict[str, str]]:
    turns = look_up(record, field, place)
    if not isinstance(turns, list) or len(turns) < 2:
        raise InputError(f"{place}: field '{field}' is not a list of two messages or more")
    checked = []
    for turn in turns:
        role, content = (
            turn.get(k) if isinstance(turn, dict) else None for k in ("role", "content")
        )
        if not isinstance(role, str) or not isinstance(content, str):
            raise InputError(
                f"{place}: a message of '{field}' is not an object of role and content"
            )
        checked.append({"role": role, "content": checked_text(content, place)})
    if checked[-1]["role"] != "assistant" or not checked[-1]["content"].strip():
        raise InputError(f"{place}: the last message of '{field}' is no answer of the assistant")
    return checked


def plain_samples(texts: Iterator[str | None]) -> Iterator[Sample | None]:
    """Texts that are learnt from their beginning; None stands for a record that is left out."""
    return (None if text is None else Sample(text) for text in texts)
