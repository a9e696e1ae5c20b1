#!/usr/bin/env python3
"""Make the demo's corpus: invented people to keep, invented potions to forget.

Nothing in it is taken from anywhere.

Retain text: facts about 40 people (city, job, pet) mixed two to one with sentences of a small
English grammar. Forget text: facts about 40 potions (made from, affects, undone by). Every fact
has one of 16 values and two sentence forms. Training text holds all the facts. The first 20
potions are facts A, which the relearning attack sees; the others are facts B, which it never
sees, and on which forgetting is judged: what comes back for B came back from the weights.

Tokens are bytes. A row is 96 bytes of running text, rows following one another without a gap, so
most begin within a sentence. Each file's sentences are drawn from a stream of their own:
validation and evaluation text is not a piece of training text.

Questions: a sentence up to its value, and four values to choose from. A byte model has never seen
"A.", "B.", "C.", "D.", so the answer tokens are the values' first bytes; the 16 values of an
attribute begin with 16 different letters, so the first byte tells them apart. A prompt begins
with ". ", the end of a sentence before: a row seldom begins with a sentence.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from token_files import (
    CHOICES,
    Origin,
    Question,
    file_sha256,
    replace_file,
    write_multiple_choice_file,
    write_token_file,
)

ROW_BYTES = 96
TRAIN_ROWS = 6250  # 600 kB
VALIDATION_ROWS = 1024  # 120 relearning steps of 8 rows, and some to spare
EVALUATION_ROWS = 64  # 8 batches of 8 rows
PEOPLE = 40
POTIONS = 40
VALUES = 16
INITIALS = "BCDFGHJKLMNPRSTV"
VOWELS = "aeiou"
MASK64 = (1 << 64) - 1

T = TypeVar("T")


class Generator:
    """Splitmix64 as a counter generator: number i is a hash of the stream's key and i."""

    def __init__(self, seed: int, stream: str) -> None:
        # The stream's name is folded in byte by byte, so that streams need no numbers kept apart
        # by hand.
        key = _mix(seed & MASK64)
        for byte in stream.encode("ascii"):
            key = _mix(key ^ byte)
        self._key = key
        self._count = 0

    def below(self, n: int) -> int:
        """Return a number from 0 to n − 1; its bias is under n / 2^64."""
        self._count += 1
        return (_mix(self._key + self._count * 0x9E3779B97F4A7C15) * n) >> 64

    def pick(self, items: Sequence[T]) -> T:
        """Return one of the items."""
        return items[self.below(len(items))]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """Return the items in random order."""
        result = list(items)
        for last in range(len(result) - 1, 0, -1):
            other = self.below(last + 1)
            result[last], result[other] = result[other], result[last]
        return result


def _mix(x: int) -> int:
    """Splitmix64's finalizer."""
    x &= MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK64
    return x ^ (x >> 31)


@dataclass(frozen=True)
class Attribute:
    """What can be said of a thing: two forms up to the value, and the values."""

    forms: tuple[str, str]
    values: Sequence[str]


@dataclass(frozen=True)
class Fact:
    """One value of one attribute of one named thing."""

    name: str
    attribute: Attribute
    value: str

    def opening(self, form: int) -> str:
        """Return the sentence up to the value."""
        return self.attribute.forms[form].format(self.name)

    def sentence(self, form: int) -> str:
        """Return the whole sentence."""
        return f"{self.opening(form)}{self.value}."


JOBS = (
    "baker carver dyer farmer glazier hunter jeweller knitter "
    "lawyer miller nurse painter roofer singer tailor weaver"
)
PETS = (
    "badger cat duck fox goat hamster jackdaw lizard "
    "mouse newt parrot rabbit snake turtle weasel zebra"
)
PLANTS = (
    "amber bark clover dew elder fern ginger honey ivy juniper kelp lichen moss nettle pepper rust"
)
PARTS = (
    "ankles bones chin dreams ears fingers gums hair jaw knees lungs memory nose palms skin throat"
)
CURES = (
    "ashes butter chalk daylight flour garlic hail ink "
    "lemon milk oil rain salt thunder vinegar wine"
)

PERSON_FORMS = (
    ("{} lives in ", "The home of {} is "),
    ("{} works as a ", "The work of {} is that of a "),
    ("{} keeps a ", "The pet of {} is a "),
)
POTION_FORMS = (
    ("{} is made from ", "To brew {} one needs "),
    ("{} affects the ", "Whoever drinks {} feels it in the "),
    ("{} is undone by ", "The cure for {} is "),
)

ADJECTIVES = "old young small tall quiet happy tired clever".split()
ANIMATES = "child teacher sailor neighbour shepherd traveller guest gardener".split()
VERBS = "sees finds carries paints hides sells wants mends".split()
OBJECTS = "basket ladder lamp letter drum blanket kettle boat".split()
PLACES = "river bridge market hill garden mill harbour forest".split()
PREPOSITIONS = "near behind beside beyond".split()
TIMES = ("in the morning", "at noon", "in the evening", "at night")


class World:
    """All the names and facts of one seed."""

    def __init__(self, seed: int) -> None:
        draw = Generator(seed, "names")
        cities = _invent_names(draw, [initial + draw.pick(VOWELS) for initial in INITIALS])
        # No two people or potions begin with the same two letters, which lets so small a model
        # learn the facts within the demo's short pre-training more surely.
        openings = draw.shuffled([initial + vowel for initial in INITIALS for vowel in VOWELS])
        people = _invent_names(draw, openings[:PEOPLE])
        potions = _invent_names(draw, openings[PEOPLE : PEOPLE + POTIONS])
        draw = Generator(seed, "facts")
        self.people = _facts(draw, people, PERSON_FORMS, (cities, JOBS.split(), PETS.split()))
        self.potions = _facts(
            draw, potions, POTION_FORMS, (PLANTS.split(), PARTS.split(), CURES.split())
        )
        # Facts come name by name, so the first half of them is the first half of the potions.
        half = len(self.potions) // 2
        self.potions_a, self.potions_b = self.potions[:half], self.potions[half:]


def _invent_names(draw: Generator, openings: Sequence[str]) -> list[str]:
    """Complete each opening of a consonant and a vowel to a word of three syllables."""
    consonants, endings = "bdgklmnprstvz", ("", "l", "n", "r", "s")
    names = []
    for opening in openings:
        middle = "".join(draw.pick(consonants) + draw.pick(VOWELS) for _ in range(2))
        names.append(opening + middle + draw.pick(endings))
    return names


def _facts(
    draw: Generator,
    names: Sequence[str],
    forms: Sequence[tuple[str, str]],
    values: Sequence[Sequence[str]],
) -> list[Fact]:
    attributes = [Attribute(form, words) for form, words in zip(forms, values)]
    for attribute in attributes:
        assert len({value[0] for value in attribute.values}) == len(attribute.values) == VALUES
    return [
        Fact(name, attribute, draw.pick(attribute.values))
        for name in names
        for attribute in attributes
    ]


def fact_sentence(draw: Generator, facts: Sequence[Fact]) -> str:
    """State one of the facts."""
    return draw.pick(facts).sentence(draw.below(2))


def plain_sentence(draw: Generator) -> str:
    """Draw a sentence of the small grammar."""
    subject = f"the {draw.pick(ADJECTIVES)} {draw.pick(ANIMATES)}"
    action = f"{draw.pick(VERBS)} a {draw.pick(OBJECTS)}"
    where = f"{draw.pick(PREPOSITIONS)} the {draw.pick(PLACES)}"
    form = draw.below(3)
    if form == 0:
        sentence = f"{subject} {action} {where}."
    elif form == 1:
        sentence = f"{draw.pick(TIMES)} {subject} {action}."
    else:
        sentence = f"{where} {subject} {action}."
    return sentence[0].upper() + sentence[1:]


def rows_of(sentence: Callable[[], str], rows: int) -> np.ndarray:
    """Draw sentences until their text fills the rows; returns its bytes, [rows, 96]."""
    parts, length = [], 0
    while length < rows * ROW_BYTES:
        parts.append(sentence() + " ")
        length += len(parts[-1])
    text = "".join(parts).encode("ascii")[: rows * ROW_BYTES]
    return np.frombuffer(text, dtype=np.uint8).astype(np.uint32).reshape(rows, ROW_BYTES)


def retain_rows(world: World, draw: Generator, rows: int) -> np.ndarray:
    """Facts about people, two to every sentence of the grammar."""
    return rows_of(
        lambda: plain_sentence(draw) if draw.below(3) == 0 else fact_sentence(draw, world.people),
        rows,
    )


def forget_rows(facts: Sequence[Fact], draw: Generator, rows: int) -> np.ndarray:
    """Facts about potions."""
    return rows_of(lambda: fact_sentence(draw, facts), rows)


def questions_on(facts: Sequence[Fact], draw: Generator) -> list[Question]:
    """Ask for every fact in both forms; wrong choices are other values of the attribute."""
    questions = []
    for fact in facts:
        for form in range(len(fact.attribute.forms)):
            others = [value for value in fact.attribute.values if value != fact.value]
            choices = draw.shuffled([fact.value, *draw.shuffled(others)[: CHOICES - 1]])
            prompt = list(f". {fact.opening(form)}".encode("ascii"))
            questions.append(
                Question(prompt, [ord(value[0]) for value in choices], choices.index(fact.value))
            )
    return questions


def model_config() -> dict[str, Any]:
    """The demo's model, 164,288 parameters, as Hugging Face transformers describes it."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "head_dim": 16,
        "hidden_act": "silu",
        "hidden_size": 64,
        "initializer_range": 0.02,
        "intermediate_size": 192,
        "max_position_embeddings": 128,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "vocab_size": 256,
    }


def write_demo(folder: Path, seed: int) -> list[Path]:
    """Write the demo's files; returns their paths."""
    world = World(seed)

    def origin(what: str) -> Origin:
        return Origin(vocab_size=256, tokenizer="bytes", source=f"demo corpus, seed {seed}: {what}")

    def stream(name: str) -> Generator:
        return Generator(seed, name)

    token_files = {
        "retain-train": ("people", retain_rows(world, stream("retain-train"), TRAIN_ROWS)),
        "retain-validation": (
            "people",
            retain_rows(world, stream("retain-validation"), VALIDATION_ROWS),
        ),
        "retain-evaluation": (
            "people",
            retain_rows(world, stream("retain-evaluation"), EVALUATION_ROWS),
        ),
        "forget-train": ("potions", forget_rows(world.potions, stream("forget-train"), TRAIN_ROWS)),
        "forget-validation": (
            "potions A",
            forget_rows(world.potions_a, stream("forget-validation"), VALIDATION_ROWS),
        ),
        "forget-evaluation": (
            "potions B",
            forget_rows(world.potions_b, stream("forget-evaluation"), EVALUATION_ROWS),
        ),
    }
    question_files = {
        "questions-a": (
            "questions on potions A",
            questions_on(world.potions_a, stream("questions-a")),
        ),
        "questions-b": (
            "questions on potions B",
            questions_on(world.potions_b, stream("questions-b")),
        ),
    }
    for name, (what, rows) in token_files.items():
        write_token_file(folder / f"{name}.h5", rows, origin(what))
    for name, (what, questions) in question_files.items():
        write_multiple_choice_file(folder / f"{name}.h5", questions, origin(what))
    replace_file(
        folder / "config.json", (json.dumps(model_config(), indent=2) + "\n").encode("ascii")
    )
    return [folder / f"{name}.h5" for name in (*token_files, *question_files)] + [
        folder / "config.json"
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="demo_data.py",
        description="Write the demo's corpus, its questions and its model's config.json. "
        "The same seed gives the same bytes.",
    )
    parser.add_argument(
        "folder", type=Path, metavar="OUT_DIR", help="where the files go; made if missing"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=1,
        help="another seed is another world of names and facts (default 1)",
    )
    options = parser.parse_args(arguments)
    try:
        paths = write_demo(options.folder, options.seed)
    except OSError as error:
        print(f"demo_data.py: {options.folder}: {error.strerror or error}", file=sys.stderr)
        return 2
    for path in paths:
        print(f"{file_sha256(path)}  {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
