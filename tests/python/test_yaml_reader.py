"""The tools read YAML as the program does: what a scalar is, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from job_helpers import mudman, succeed
from model_helpers import Case
from search_config import read_search
from text_records import InputError
from yaml_reader import as_argument, read_config, read_yaml


def value_of(path: Path, text: str) -> object:
    path.write_text(f"key: {text}\n")
    return read_yaml(path)["key"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None), ("~", None), ("null", None), ("Null", None), ("NULL", None), ("nULL", "nULL"),
        ("true", True), ("false", False), ("True", "True"), ("yes", "yes"), ("on", "on"),
        ("off", "off"), ("n", "n"), ("7", 7), ("0", 0), ("-3", -3), ("1.5", 1.5), (".5", 0.5),
        ("1.", 1.0), ("1e-3", 0.001), ("1E3", 1000.0), ("+5", 5.0), ("1_000", "1_000"),
        ("0x1F", "0x1F"), ("0o17", "0o17"), ("1:0", "1:0"), ("1:30:00", "1:30:00"),
        (".inf", ".inf"), (".nan", ".nan"), ("2024-01-01", "2024-01-01"), ("=", "="),
        ("'010'", "010"), ('"null"', "null"), ("'1'", "1"), ("[on, 1, ~]", ["on", 1, None]),
        ("{a: {b: yes}}", {"a": {"b": "yes"}}), ("2024-01-01T00:00:00Z", "2024-01-01T00:00:00Z"),
    ],
)  # fmt: skip
def test_scalars(tmp_path: Path, text: str, value: object) -> None:
    found = value_of(tmp_path / "a.yaml", text)
    assert found == value and type(found) is type(value)


def test_keys_are_texts(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("on: 1\noff: 2\n7: 3\nnull: 4\n<<: 5\n")
    assert read_yaml(path) == {"on": 1, "off": 2, "7": 3, "null": 4, "<<": 5}
    path.write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read_yaml(path) == {"a": 1}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 010", ":1: 010: a number with a leading zero"),
        ("b: 1\na: -007.5", ":2: -007.5: a number with a leading zero"),
        ("a: &x 1\nb: *x", ":1: anchors"),
        ("a: !!int 5", ":1: tags"),
        ("a: !!python/object:os.system x", ":1: tags"),
        ("a: 1\nb: 2\na: 3", ":3: a is given twice"),
        ("a: {b: 1, b: 2}", ":1: b is given twice"),
        ("a: 1\n---\nb: 2", "another document"),
        ("[1]: 2", ":1: a key must be a name"),
        ("- 1", ": keys and values are needed"),
        ("", ": keys and values are needed"),
        ("a: [", ":1: expected"),
        ("a: \x07", "special characters are not allowed"),
        ("a: " + "[" * 5000, "nested too deeply"),
    ],
)
def test_refusals(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as refused:
        read_yaml(path)
    assert str(path) in str(refused.value) and words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_config_with_dotted_keys(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("seed: 7\nunlearn.loops: 3\nunlearn: {adv_lr: 1}\noutput.dir: x\n")
    assert read_config(path) == {
        "seed": 7, "unlearn": {"loops": 3, "adv_lr": 1}, "output": {"dir": "x"},
    }  # fmt: skip
    path.write_text("unlearn.loops: 3\nunlearn: {loops: 3}\n")
    with pytest.raises(InputError, match="unlearn.loops is given twice"):
        read_config(path)


@pytest.mark.parametrize(
    "value",
    [None, True, False, 7, -3, 0.1, 1e-05, 2.0, "x.h5", "/a/b", "null", "~", "on", "7", "1e3", "a b",
     "it's", "a: b", "a#b", "{x", "-", "é", ["a", "b, c", 1], {"name": "m", "file": "a b.h5"}],
)  # fmt: skip
def test_an_argument_is_read_back_as_it_was(tmp_path: Path, value: object) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"- x\n- {as_argument(value)}\n")
    path.write_text(f"key: [{as_argument(value)}]\n")
    assert read_yaml(path) == {"key": [value]}


def test_the_program_reads_an_argument_so(tiny: Case, tmp_path: Path) -> None:
    """Names that YAML could take for something else reach the program as they are."""
    for name in ("null", "1e3", "a, b", "it's #1"):
        succeed("run", tiny.config, f"output.dir={as_argument(str(tmp_path / name))}",
                "unlearn.loops=1", "relearn.passes=0", "output.save_model=false")  # fmt: skip
        assert (tmp_path / name / "metrics.jsonl").is_file()


def test_search_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of variants, and values for the program, mean what they say."""
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text("unlearn.passes: 5\n")
    search = "config: base.yaml\nparameters: {unlearn.adv_lr: {low: 1e-4, high: .1}}\n"
    Path("s.yaml").write_text(search + "variants: {on: , off: }\noverrides: {output.dir: 2024-01-01}\n")
    read = read_search(Path("s.yaml"))
    assert [variant.name for variant in read.variants] == ["on", "off"]
    assert read.overrides == {"output.dir": "2024-01-01"}
    assert json.dumps(read.settings(read.variants[0])) and read.sections["unlearn"] == {"passes": 5}
    Path("s.yaml").write_text(search + "overrides: {unlearn.loops: 010}\n")
    with pytest.raises(InputError, match="s.yaml:3: 010"):
        read_search(Path("s.yaml"))


def test_the_program_agrees_about_what_no_integer_is(tiny: Case) -> None:
    for text in ("010", "1:0", "0x10", "1_0", "1e1", "'7'"):
        assert mudman("plan", tiny.config, f"unlearn.loops={text}").status == 2
