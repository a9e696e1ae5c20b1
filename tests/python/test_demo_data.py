"""demo_data.py: the corpus is the same everywhere, and is what the demo says about it."""

from __future__ import annotations

import hashlib
import json
import re
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

import demo_data

TOKEN_FILES = {
    "retain-train": 6250,
    "retain-validation": 1024,
    "retain-evaluation": 64,
    "forget-train": 6250,
    "forget-validation": 1024,
    "forget-evaluation": 64,
}
QUESTION_FILES = ("questions-a", "questions-b")
# The corpus of seed 1. A change here changes the demo's table: make it knowingly.
CORPUS_SHA256 = "fe9c2bd2ff5e38e6f8581f265a1ada34fd1c282579416737ce0e00698c55891a"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "made"
    assert demo_data.main([str(folder)]) == 0
    return folder


def text_of(folder: Path, name: str) -> str:
    with h5py.File(folder / f"{name}.h5") as file:
        return bytes(file["tokens"][:].astype(np.uint8).ravel()).decode("ascii")


def whole_sentences(text: str) -> list[str]:
    """Sentences, less the last one, which the row's end may have cut."""
    return [sentence.strip() for sentence in text.split(".")[:-1]]


def test_files_and_their_shapes(demo: Path) -> None:
    expected = {f"{name}.h5" for name in (*TOKEN_FILES, *QUESTION_FILES)} | {"config.json"}
    assert {path.name for path in demo.iterdir()} == expected
    for name, rows in TOKEN_FILES.items():
        with h5py.File(demo / f"{name}.h5") as file:
            assert file["tokens"].shape == (rows, 96) and file["tokens"].dtype == np.dtype("<u4")
            assert file.attrs["vocab_size"] == 256 and file.attrs["tokenizer"] == "bytes"
            assert "seed 1" in file.attrs["source"]


def test_same_bytes_twice_and_another_world_with_another_seed(demo: Path, tmp_path: Path) -> None:
    time.sleep(1.1)  # HDF5's times count seconds
    assert demo_data.main([str(tmp_path / "again")]) == 0
    for path in demo.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
    assert demo_data.main([str(tmp_path / "other"), "--seed", "2"]) == 0
    for name in TOKEN_FILES:
        assert text_of(tmp_path / "other", name) != text_of(demo, name)


def test_corpus_is_the_known_one(demo: Path) -> None:
    """Hashes the content, not the files: another HDF5 library may lay them out differently."""
    digest = hashlib.sha256()
    for name in (*TOKEN_FILES, *QUESTION_FILES):
        with h5py.File(demo / f"{name}.h5") as file:
            for dataset in sorted(file):
                digest.update(file[dataset][:].astype("<u4").tobytes())
    assert digest.hexdigest() == CORPUS_SHA256


def test_generator_is_splitmix64() -> None:
    """The published first outputs of splitmix64 from seed 1234567."""
    numbers = [demo_data._mix(1234567 + (i + 1) * 0x9E3779B97F4A7C15) for i in range(3)]
    assert numbers == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_draws_are_even_and_streams_differ() -> None:
    draw = demo_data.Generator(1, "a")
    counts = np.bincount([draw.below(10) for _ in range(20000)], minlength=10)
    assert counts.sum() == 20000 and (abs(counts - 2000) < 250).all()
    assert sorted(draw.shuffled(range(50))) == list(range(50))
    first = [demo_data.Generator(1, name).below(1 << 60) for name in ("a", "b", "ab", "ba", "")]
    assert len(set(first)) == 5


def test_facts(demo: Path) -> None:
    world = demo_data.World(1)
    assert len(world.people) == len(world.potions) == 40 * 3
    names_a, names_b = (
        {fact.name for fact in facts} for facts in (world.potions_a, world.potions_b)
    )
    assert len(names_a) == len(names_b) == 20 and not names_a & names_b
    names = {fact.name for fact in world.people} | names_a | names_b
    assert len(names) == len({name[:2] for name in names}) == 80
    for fact in world.people + world.potions:
        assert (
            len(fact.attribute.values) == len(set(fact.attribute.values)) == 16
            and fact.value in fact.attribute.values
        )


def test_texts_hold_the_facts_they_should(demo: Path) -> None:
    """Training holds every fact in both forms; validation potions A; evaluation potions B."""
    world = demo_data.World(1)

    def sentences(facts: list[demo_data.Fact]) -> set[str]:
        return {fact.sentence(form)[:-1] for fact in facts for form in range(2)}

    assert set(whole_sentences(text_of(demo, "forget-train"))) == sentences(world.potions)
    assert set(whole_sentences(text_of(demo, "forget-validation"))) == sentences(world.potions_a)
    assert set(whole_sentences(text_of(demo, "forget-evaluation"))) <= sentences(world.potions_b)
    for name in ("retain-train", "retain-validation", "retain-evaluation"):
        found = whole_sentences(text_of(demo, name))
        facts = [sentence for sentence in found if sentence in sentences(world.people)]
        assert abs(len(facts) / len(found) - 2 / 3) < 0.1
        plain = set(found) - set(facts)
        assert all(re.fullmatch(r"[A-Z][a-z]+( [a-z]+){6,}", sentence) for sentence in plain)
    assert sentences(world.people) <= set(whole_sentences(text_of(demo, "retain-train")))


def test_evaluation_text_is_not_training_text(demo: Path) -> None:
    """Hardly a row is found whole in the training text: the same sentences, another order."""
    for kind in ("retain", "forget"):
        training = text_of(demo, f"{kind}-train")
        for part in ("validation", "evaluation"):
            text = text_of(demo, f"{kind}-{part}")
            rows = [text[i : i + 96] for i in range(0, len(text), 96)]
            assert sum(row in training for row in rows) < 0.01 * len(rows)


@pytest.mark.parametrize("half", ["a", "b"])
def test_questions(demo: Path, half: str) -> None:
    world = demo_data.World(1)
    facts = {"a": world.potions_a, "b": world.potions_b}[half]
    statements = {". " + fact.opening(form): fact for fact in facts for form in range(2)}
    asked, right = [], []
    with h5py.File(demo / f"questions-{half}.h5") as file:
        offsets = file["offsets"][:]
        for i, (begin, end) in enumerate(zip(offsets, offsets[1:])):
            prompt = bytes(file["prompts"][begin:end].tolist()).decode("ascii")
            choices, answer = (
                bytes(file["choices"][i].tolist()).decode("ascii"),
                int(file["answers"][i]),
            )
            fact = statements[prompt]
            assert len(set(choices)) == 4 and choices[answer] == fact.value[0]
            assert set(choices) <= {value[0] for value in fact.attribute.values}
            asked.append(prompt)
            right.append(answer)
    assert sorted(asked) == sorted(statements) and len(asked) == 120
    assert min(right.count(i) for i in range(4)) > 12


def test_model_config(demo: Path) -> None:
    config = json.loads((demo / "config.json").read_text())
    width, mlp, layers = (
        config["hidden_size"],
        config["intermediate_size"],
        config["num_hidden_layers"],
    )
    kv = config["num_key_value_heads"] * config["head_dim"]
    assert (
        config["num_attention_heads"] * config["head_dim"] == width
        and config["tie_word_embeddings"]
    )
    layer = 2 * width * width + 2 * width * kv + 3 * width * mlp + 2 * width
    assert config["vocab_size"] * width + layers * layer + width == 164_288
    assert (
        config["architectures"] == ["LlamaForCausalLM"] and config["max_position_embeddings"] >= 96
    )


def test_unwritable_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    assert demo_data.main([str(tmp_path / "file" / "demo")]) == 2
    message = capsys.readouterr().err
    assert message.startswith("demo_data.py: ") and message.count("\n") == 1
