"""tools/held_out_facts.py on the demo's facts with a tiny model: every split is held out once."""

from __future__ import annotations

import json
import math
import shlex
import shutil
import statistics
from pathlib import Path

import h5py
import numpy as np
import pytest

import demo_fact_splits
import held_out_facts
from demo_data import Generator, World, retain_rows
from job_helpers import BINARY, lines_of
from model_helpers import random_llama, write_config, write_tokens
from prepare_helpers import run as prepare
from prepare_helpers import write_json_lines
from token_files import read_token_rows

SPLITS, ROWS, CONTEXT = 3, 8, 24


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of bytes, the demo's facts in three splits, texts to keep, and a config."""
    folder = tmp_path_factory.mktemp("facts")
    demo_fact_splits.write_splits(folder, 1, SPLITS, ROWS)
    model = random_llama(folder / "model", width=16, mlp=24, layers=2, vocab=256)
    settings = {"model.path": model, "data.batch_size": 4, "data.context_length": CONTEXT}
    for name in ("retain", "retain_validation", "retain_evaluation"):
        rows = retain_rows(World(1), Generator(1, name), ROWS)
        settings[f"data.{name}"] = write_tokens(folder / f"{name}.h5", rows, 256)
    settings |= {"unlearn.loops": 4, "unlearn.unlearning_rate": 0.1, "unlearn.retaining_rate": 0.1}
    settings |= {"unlearn.adv_lr": 0.1, "relearn.passes": 8, "relearn.lr": 0.1}
    settings |= {"evaluate.every_passes": 4, "output.dir": folder / "config-output"}
    write_config(folder / "config.yaml", settings)
    return folder


def call(made: Path, output: Path, *arguments: str, questions: bool = True) -> int:
    splits = [str(made / f"facts-{i + 1}.h5") for i in range(SPLITS)]
    asked = [str(made / f"questions-{i + 1}.h5") for i in range(SPLITS)]
    return held_out_facts.main(
        [str(made / "config.yaml"), "--splits", *splits, *(["--questions", *asked] * questions),
         "--output", str(output), "--program", shlex.quote(str(BINARY)), *arguments]
    )  # fmt: skip


def tokens(path: Path) -> np.ndarray:
    with h5py.File(path) as file:
        return file["tokens"][:]


def sorted_rows(*paths: Path) -> list[bytes]:
    return sorted(row.tobytes() for path in paths for row in tokens(path))


def test_rotation(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    assert call(made, output, "--baseline") == 0
    table = capsys.readouterr().out.splitlines()
    facts = [made / f"facts-{i + 1}.h5" for i in range(SPLITS)]
    assert sorted_rows(output / "all.h5") == sorted_rows(*facts)
    order = [row.tobytes() for row in tokens(output / "all.h5")]
    assert order != [row.tobytes() for path in facts for row in tokens(path)], "mixed"
    results = json.loads((output / "held-out-facts.json").read_text())
    assert [(r["held_out"], r["unlearned"]) for r in results] == [
        (i, unlearned) for unlearned in (True, False) for i in (1, 2, 3)
    ]
    for i in range(SPLITS):
        others = [path for path in facts if path != facts[i]]
        attack = output / f"without-{i + 1}.h5"
        assert sorted_rows(attack) == sorted_rows(*others)
        for folder, loops in ((output / f"{i + 1}", 4), (output / f"baseline-{i + 1}", 0)):
            config = (folder / "config.yaml").read_text()
            for path in (output / "all.h5", attack, facts[i], made / f"questions-{i + 1}.h5"):
                assert str(path) in config
            assert len(lines_of(folder, "unlearn")) == loops
    check_table(table, results[:SPLITS], table[1 : SPLITS + 3])
    assert table[SPLITS + 3].startswith("relearning only 1 ")
    check_continuation(made, output, capsys, table)


def check_table(table: list[str], results: list[dict], lines: list[str]) -> None:
    """A row a split with the figures of its run, then mean and error."""
    heads = "held out forget loss unlearned relearned retain loss unlearned relearned questions"
    assert " ".join(table[0].split()).startswith(heads)
    scores = [result["score"] for result in results]
    for line, result in zip(lines, results):
        cells = line.split()
        assert cells[3] == f"{result['score']:.3f}"
        assert cells[1] == f"{result['forget_loss_start']:.3f}"
        assert cells[9] == f"{result['accuracy_held_out_relearn']:.3f}"
    assert lines[SPLITS].split()[3] == f"{statistics.fmean(scores):.3f}"
    error = statistics.pstdev(scores) / math.sqrt(SPLITS)
    assert lines[SPLITS + 1].split()[4] == f"{error:.3f}"


def check_continuation(
    made: Path, output: Path, capsys: pytest.CaptureFixture[str], table: list[str]
) -> None:
    """Finished runs stay, a stopped one goes on, other settings are refused."""
    stopped = output / "2" / "metrics.jsonl"
    whole = stopped.read_text()
    stopped.write_text("\n".join(whole.splitlines()[:-1]) + "\n")
    kept = (output / "1" / "metrics.jsonl").stat()
    assert call(made, output, "--baseline") == 0
    assert capsys.readouterr().out.splitlines() == table
    assert (output / "1" / "metrics.jsonl").stat() == kept
    assert json.loads(stopped.read_text().splitlines()[-1])["phase"] == "result"
    assert call(made, output, "--set", "unlearn.adv_lr=0.2") == 2
    assert "holds runs with other settings or data (set)" in capsys.readouterr().err
    moved = Path(shutil.copytree(made, output.with_name("moved")))
    assert call(moved, output, "--baseline") == 0
    with h5py.File(moved / "questions-2.h5", "r+") as file:
        file["answers"][0] ^= 1
    assert call(moved, output, "--baseline") == 2
    assert f"other settings or data ({moved}/questions-2.h5)" in capsys.readouterr().err
    # As if the model's folder had been exchanged between two calls.
    last = json.loads(stopped.read_text().splitlines()[-1])
    stopped.write_text(stopped.read_text().replace(last["identity"]["weights"], "another"))
    assert call(made, output, "--baseline") == 2
    assert f"{output}/2: stands on another weights" in capsys.readouterr().err


def prepared(path: Path, records: list[dict], *options: object) -> Path:
    """A token file of records, in rows of CONTEXT bytes."""
    lines = write_json_lines(path.with_suffix(".jsonl"), records)
    how = ["--tokenizer", "bytes", "--context", CONTEXT, "--no-split", "--output"]
    assert prepare(lines, *options, *how, path.with_suffix("")) == 0
    return path


def read_rows(path: Path) -> list[tuple[bytes, int]]:
    """What each row of a file says, and where its answer begins, in some fixed order."""
    with h5py.File(path) as file:
        rows = read_token_rows(file)
    texts = [bytes(row[:n].astype("u1")) for row, n in zip(rows.tokens, rows.lengths, strict=True)]
    return sorted(zip(texts, rows.answers.tolist(), strict=True))


def test_rows_of_different_lengths(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Splits of questions with answers, and one of padded texts, end to end: each row keeps its
    length and the beginning of its answer."""
    towns = ("Rome", "Oslo", "Tunis", "Ulan Bator", "Bern", "Lima", "Ur", "Quito", "Riga")
    pairs = [{"q": "Of " + "x" * (i % 3) + "?", "a": town} for i, town in enumerate(towns)]
    fields = ("--prompt-field", "q", "--answer-field", "a")
    files = [
        prepared(tmp_path / "a.h5", pairs[:5], *fields),
        prepared(tmp_path / "b.h5", [*pairs[5:], pairs[2]], *fields),  # one of the first split
        prepared(tmp_path / "c.h5", [{"text": "Nuuk is far" + "!" * i} for i in range(5)], "--pad"),
    ]
    config = [str(made / "config.yaml"), "--program", shlex.quote(str(BINARY))]
    config += ["--set", "data.batch_size=3", "--set", "evaluate.kl.rows=4"]
    config += ["--set", f"evaluate.kl.file={files[2]}"]
    output = tmp_path / "out"
    call = [*config, "--baseline", "--output", str(output), "--splits", *map(str, files)]
    assert held_out_facts.main(call) == 0
    assert capsys.readouterr().err.count("1 rows of other splits are also in") == 2
    text = [(f"Nuuk is far{'!' * i}".encode(), 0) for i in range(5)]
    asked = [
        (f"{pair['q']} {pair['a']}".encode()[:CONTEXT], len(pair["q"].encode())) for pair in pairs
    ]
    shared = asked[2]
    assert read_rows(output / "all.h5") == sorted([*asked, shared, *text])
    others = [asked[5:] + text, [row for row in asked[:5] if row != shared] + text, [*asked, shared]]
    for held_out, rows in enumerate(others, start=1):
        assert read_rows(output / f"without-{held_out}.h5") == sorted(rows)
    results = json.loads((output / "held-out-facts.json").read_text())
    assert len(results) == 6 and all(r["status"] == "done" for r in results)
    assert all(math.isfinite(r["score"]) and r["score"] < 20 for r in results)
    losses = {(r["held_out"], r["unlearned"]): r["forget_loss_start"] for r in results}
    assert losses[1, True] == losses[1, False] != losses[2, True] != losses[3, True]


def test_rejected_runs_do_not_count(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    budget = "unlearn.retain_loss_budget=0"
    rate = "unlearn.unlearning_rate=1000"
    assert call(made, tmp_path / "o", "--set", budget, "--set", rate, questions=False) == 0
    out = capsys.readouterr().out
    assert "1 was rejected: " in out and "mean" not in out and "questions" not in out


def test_messages(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(made, tmp_path / "a", "--set", "unlearn.adv_rl=1") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "split 1: exit status 2: mudman-mpi: argument" in error
    assert call(made, tmp_path / "b", "--program", str(tmp_path / "none")) == 2
    assert "No such file" in capsys.readouterr().err
    write_tokens(made / "narrow.h5", np.zeros((2, 5)), 256)
    base = [str(made / "config.yaml"), "--output", str(tmp_path / "c"), "--splits"]
    files = [str(made / "facts-1.h5"), str(made / "narrow.h5")]
    assert held_out_facts.main([*base, *files]) == 2
    assert "narrow.h5: another tokenizer or row length" in capsys.readouterr().err
    assert held_out_facts.main([*base, str(made / "config.yaml"), files[0]]) == 2
    assert "config.yaml: not a token file" in capsys.readouterr().err
    for arguments in ([files[0]], [*files, "--questions", files[0]]):
        with pytest.raises(SystemExit):
            held_out_facts.main([*base, *arguments])


def test_an_attack_never_sees_a_row_that_is_held_out(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row of two splits, the same in the columns that are read, is in neither one's attack."""
    first, second = tokens(made / "facts-1.h5"), tokens(made / "facts-2.h5")
    shared = first[3].copy()
    shared[CONTEXT:] = 0
    write_tokens(tmp_path / "a.h5", first, 256)
    write_tokens(tmp_path / "b.h5", np.concatenate([second, shared[None]]), 256)
    base = [str(made / "config.yaml"), "--program", shlex.quote(str(BINARY)), "--output"]
    splits = ["--splits", str(tmp_path / "a.h5"), str(tmp_path / "b.h5")]
    assert held_out_facts.main([*base, str(tmp_path / "o"), *splits]) == 0
    assert "1 rows of other splits are also in" in capsys.readouterr().err
    for split, rows in ((1, first), (2, np.concatenate([second, shared[None]]))):
        attack = {row[:CONTEXT].tobytes() for row in tokens(tmp_path / "o" / f"without-{split}.h5")}
        assert attack and not attack & {row[:CONTEXT].tobytes() for row in rows}
    same = ["--splits", str(tmp_path / "a.h5"), str(tmp_path / "a.h5")]
    assert held_out_facts.main([*base, str(tmp_path / "p"), *same]) == 2
    assert "have no row that is not held out" in capsys.readouterr().err


def test_figures_that_are_not_numbers(tmp_path: Path) -> None:
    """Of several attacks the worst counts, a diverged one has none; no mean over a part of the runs."""
    lines = [{"phase": "eval", "at": "relearn", "attack": name, "accuracy_held_out": value}
             for name, value in (("a", 0.1), ("a", 0.6), ("b", 0.2), ("c", None))]  # fmt: skip
    lines.append({"phase": "result", "status": "done", "score": 1.0})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert held_out_facts.read_result(tmp_path)["accuracy_held_out_relearn"] == 0.6
    runs = {
        held_out_facts.Rotation(i, True, tmp_path): {"status": "done", "score": score}
        for i, score in enumerate((1.0, None, float("nan")))
    }
    rows = held_out_facts.table(runs)
    assert [row[1] for row in rows[1:]] == ["1.000", "-", "-", "-", "-"]


# -- the demo's splits --------------------------------------------------------------------------


def test_splits_share_no_potion(made: Path) -> None:
    world = World(1)
    splits = demo_fact_splits.split_facts(world, 7)
    names = [{fact.name for fact in facts} for facts in splits]
    assert sum(map(len, names)) == len(set.union(*names)) == 40
    assert sorted(map(len, names)) == [5, 5, 6, 6, 6, 6, 6]
    assert sum(map(len, splits)) == len(world.potions)
    text = bytes(tokens(made / "facts-1.h5").astype(np.uint8).tobytes()).decode()
    mine, others = demo_fact_splits.split_facts(world, SPLITS)[:2]
    assert any(fact.name in text for fact in mine)
    assert not any(fact.name in text for fact in others)


def test_the_same_seed_gives_the_same_bytes(made: Path, tmp_path: Path) -> None:
    arguments = [str(tmp_path), "--splits", str(SPLITS), "--rows", str(ROWS)]
    assert demo_fact_splits.main(arguments) == 0
    for name in ("facts-2.h5", "questions-3.h5"):
        assert (tmp_path / name).read_bytes() == (made / name).read_bytes()
    with pytest.raises(SystemExit):
        demo_fact_splits.main([str(tmp_path), "--splits", "1"])
