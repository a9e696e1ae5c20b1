"""What results stand on: ranks, checkpoints and result lines carry hashes, and no mixture passes."""

from __future__ import annotations

import ctypes
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest

from job_helpers import (
    ROOT,
    assert_same_run,
    assert_same_state,
    checkpoints_of,
    fail,
    lines_of,
    result_of,
    snapshot,
    succeed,
)
from model_helpers import TOKEN_SETS, Case, floats_of, read_safetensors, write_questions, write_safetensors


def on_rank_1(*arguments: str) -> list[str]:
    """A wrapper that gives rank 1 more arguments."""
    more = " ".join(f"'{argument}'" for argument in arguments)
    script = f'[ "$OMPI_COMM_WORLD_RANK" = 1 ] && exec "$0" "$@" {more}; exec "$0" "$@"'
    return ["sh", "-c", script]


def zeroed_norm(model: Path) -> None:
    """A frozen weight becomes zero."""
    tensors = floats_of(model / "model.safetensors")
    tensors["model.norm.weight"][:] = 0
    write_safetensors(model / "model.safetensors", tensors)


def other_rope(model: Path) -> None:
    """The rotations of another base: the weights still fit."""
    path = model / "config.json"
    text = path.read_text()
    assert '"rope_theta": 10000.0' in text
    path.write_text(text.replace('"rope_theta": 10000.0', '"rope_theta": 20000.0'))


def other_token(path: Path) -> None:
    """The first row is turned round."""
    with h5py.File(path, "r+") as file:
        file["tokens"][0] = file["tokens"][0][::-1]


def stored_otherwise(path: Path) -> None:
    """The same tokens in other bytes."""
    with h5py.File(path, "r+") as file:
        tokens = file["tokens"][:]
        del file["tokens"]
        file.create_dataset("tokens", data=tokens.astype("<u8"), compression="gzip")


# -- ranks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("unlearn.unlearning_rate=0.7", "unlearn.unlearning_rate is 0.7 on rank 1"),
        ("checkpoint.keep=1", "checkpoint.keep is 1 on rank 1, but 2 on rank 0"),
        ("unlearn.loops=7", "unlearn.loops is 7 on rank 1, but 8 on rank 0"),
        ("evaluate.multiple_choice=[{name: a, file: b}]", "evaluate.multiple_choice is "),
    ],
)
def test_ranks_with_other_settings(
    tiny: Case, tmp_path: Path, override: str, said: str
) -> None:
    """No loop is run; before, the run ended with exit 0 and a mixture."""
    run = tmp_path / "run"
    arguments = ["run", tiny.config, f"output.dir={run}"]
    assert said in fail(2, *arguments, ranks=2, wrapper=on_rank_1(override))
    assert not run.exists()


def test_ranks_with_other_commands(tiny: Case, tmp_path: Path) -> None:
    script = '[ "$OMPI_COMM_WORLD_RANK" = 1 ] && exec "$0" eval "$2"; exec "$0" "$@"'
    message = fail(
        2, "run", tiny.config, f"output.dir={tmp_path}/run", ranks=2, wrapper=["sh", "-c", script]
    )
    assert "rank 1 was started with the command" in message


@pytest.mark.parametrize("what", ["weights", "config.json", "data.forget", "data.retain_validation"])
def test_ranks_that_read_other_files(tiny: Case, tmp_path: Path, what: str) -> None:
    """The same settings, but a node's own copy of a file is another."""
    model, run = tmp_path / "model", tmp_path / "run"
    if what.startswith("data."):
        named = tmp_path / "own.h5"
        shutil.copy(tiny.data / f"{what.removeprefix('data.')}.h5", named)
        other_token(named)
        override = f"{what}={named}"
    else:
        shutil.copytree(tiny.model, model)
        (zeroed_norm if what == "weights" else other_rope)(model)
        named = model / ("model.safetensors" if what == "weights" else "config.json")
        override = f"model.path={model}"
    arguments = ["run", tiny.config, f"output.dir={run}"]
    message = fail(2, *arguments, ranks=3, wrapper=on_rank_1(override))
    assert f"rank 1 read another {what}" in message and str(named) in message
    assert not run.exists()


@pytest.mark.parametrize(
    ("first", "second", "warned"),
    [
        ("a/tokenizer.json sha256:11", "b/tokenizer.json sha256:22", True),
        ("a/tokenizer.json sha256:11", "bytes", True),
        ("a/tokenizer.json sha256:11", "b/tokenizer.json sha256:11", False),
        ("bytes", "bytes", False),
        ("bytes", None, False),
        ("bytes", 7, False),
    ],
)
def test_files_of_different_tokenizers(
    tiny: Case, tmp_path: Path, first: str, second: object, warned: bool
) -> None:
    """Token ids within the vocabulary, but of another text: nothing else would show it."""
    files = {name: tmp_path / f"{name}.h5" for name in TOKEN_SETS}
    for name, path in files.items():
        shutil.copy(tiny.data / path.name, path)
        with h5py.File(path, "r+") as file:
            file.attrs["tokenizer"] = first
    with h5py.File(files["forget_validation"], "r+") as file:
        del file.attrs["tokenizer"]
        if second is not None:
            file.attrs["tokenizer"] = second
    overrides = [f"data.{name}={path}" for name, path in files.items()]
    told = succeed("eval", tiny.config, *overrides, ranks=2).err
    words = f"warning: {files['retain']} and {files['forget_validation']} were made by different "
    words += f"tokenizers ({first}; {second})"
    assert told.count(words) == warned and told.count("tokenizers") == warned


def test_ranks_with_their_own_copies(tiny: Case, finished: Path, tmp_path: Path) -> None:
    """The same content at another path, in other bytes where a token file can be stored so."""
    model, data = tmp_path / "model", tmp_path / "forget.h5"
    shutil.copytree(tiny.model, model)
    shutil.copy(tiny.data / "forget.h5", data)
    stored_otherwise(data)
    wrapper = on_rank_1(f"model.path={model}", f"data.forget={data}")
    succeed("run", tiny.config, f"output.dir={tmp_path}/run", ranks=2, wrapper=wrapper)
    assert abs(result_of(tmp_path / "run")["score"] - result_of(finished)["score"]) < 1e-4


# -- resume -------------------------------------------------------------------------------------------


@dataclass
class Stopped:
    """A run that was stopped after six of its eight loops, with inputs of its own."""

    run: Path
    model: Path
    data: Path

    def overrides(self) -> list[str]:
        """The arguments that say where the inputs are."""
        files = [f"data.{name}={self.data / name}.h5" for name in TOKEN_SETS]
        return [f"model.path={self.model}", *files]

    def warnings(self, *arguments: str) -> list[str]:
        """Go on to the end; the lines that warn."""
        outcome = succeed("resume", self.run, *arguments)
        return [line for line in outcome.err.splitlines() if "warning" in line]


@pytest.fixture
def stopped(tiny: Case, tmp_path: Path) -> Stopped:
    one = Stopped(tmp_path / "run", tmp_path / "model", tmp_path / "data")
    shutil.copytree(tiny.model, one.model)
    one.data.mkdir()
    for name in TOKEN_SETS:
        shutil.copy(tiny.data / f"{name}.h5", one.data)
    tiny.run(one.run, *one.overrides())
    shutil.rmtree(one.run / "checkpoints" / "8")
    shutil.rmtree(one.run / "model")
    assert checkpoints_of(one.run) == [6]
    return one


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("what", ["weights", "config.json", "data.forget", "data.retain"])
def test_resume_with_other_inputs(stopped: Stopped, what: str, ranks: int) -> None:
    """A file of the same name with another content: refused by name, and nothing is touched."""
    if what == "weights":
        named, key = stopped.model / "model.safetensors", "model.path"
        zeroed_norm(stopped.model)
    elif what == "config.json":
        named, key = stopped.model / "config.json", "model.path"
        other_rope(stopped.model)
    else:
        named, key = stopped.data / f"{what.removeprefix('data.')}.h5", what
        other_token(named)
    before = snapshot(stopped.run)
    message = fail(2, "resume", stopped.run, ranks=ranks)
    assert f"{stopped.run}/checkpoints/6: made from another {what} than {named}" in message
    assert re.search(r"hash [0-9a-f]{32}, not [0-9a-f]{32}\)", message) and f"{key}=PATH" in message
    assert snapshot(stopped.run) == before


def test_resume_of_a_moved_folder(stopped: Stopped, finished: Path) -> None:
    """The same content elsewhere: named as overrides it goes on as if nothing had happened."""
    stopped.model = stopped.model.rename(stopped.model.with_name("model-2"))
    message = fail(2, "resume", stopped.run)
    assert "model.path: " in message and "say where it is: model.path=PATH" in message
    stopped.data = stopped.data.rename(stopped.data.with_name("data-2"))
    stored_otherwise(stopped.data / "forget.h5")
    message = fail(2, "resume", stopped.run, f"model.path={stopped.model}")
    assert "say where it is: data.retain=PATH" in message
    assert not stopped.warnings(*stopped.overrides())
    assert_same_run(finished, stopped.run)
    assert f"path: '{stopped.model}'" in (stopped.run / "config.yaml").read_text()
    # Once told, it needs no telling again, also where no checkpoint has been written since.
    shutil.rmtree(stopped.run / "checkpoints" / "8")
    assert not stopped.warnings()
    other_token(stopped.data / "forget.h5")
    shutil.rmtree(stopped.run / "checkpoints" / "8")
    assert "made from another data.forget" in fail(2, "resume", stopped.run)


@pytest.mark.parametrize("seed", [42, 7])
def test_ranks_that_resume_other_runs(
    tiny: Case, finished: Path, tmp_path: Path, seed: int
) -> None:
    """As on a folder that the ranks do not share: another state, or the same state twice."""
    run, other = Path(shutil.copytree(finished, tmp_path / "run")), tmp_path / "other"
    tiny.run(other, f"seed={seed}", "unlearn.adv_lr=0.4" if seed == 7 else "unlearn.adv_lr=0.5")
    script = f'[ "$OMPI_COMM_WORLD_RANK" = 1 ] && exec "$0" "$1" {other}; exec "$0" "$@"'
    before = snapshot(tmp_path)
    message = fail(2, "resume", run, ranks=2, wrapper=["sh", "-c", script])
    assert ("rank 1" in message) and ("another checkpoint" in message or "output.dir" in message)
    assert snapshot(tmp_path) == before


def test_override_with_another_content(stopped: Stopped) -> None:
    shutil.copy(stopped.data / "retain.h5", stopped.data / "other.h5")
    override = f"data.forget={stopped.data / 'other.h5'}"
    assert "made from another data.forget" in fail(2, "resume", stopped.run, override)


@pytest.mark.parametrize("what", ["content", "path", "questions", "batches"])
def test_resume_with_another_evaluation(tiny: Case, stopped: Stopped, what: str) -> None:
    """The start is measured anew, on the model as it was; the loops stay."""
    before, arguments = lines_of(stopped.run, "eval"), []
    if what == "content":
        other_token(stopped.data / "forget_validation.h5")
    elif what == "path":
        files = (stopped.data / "retain.h5", stopped.data / "forget.h5")
        arguments = [f"data.retain_evaluation={files[0]}", f"data.forget_evaluation={files[1]}"]
    elif what == "questions":
        choices = np.tile([1, 2, 3, 4], (3, 1))
        path = write_questions(stopped.data / "q.h5", [[5, 6], [7], [8, 9]], choices, [0, 1, 2])
        arguments = [f"evaluate.multiple_choice=[{{name: q, file: {path}}}]"]
    else:
        arguments = ["evaluate.batches=2"]
    said = stopped.warnings(*arguments)
    assert any("the losses at the start are measured anew" in line for line in said)
    assert any("data.forget_validation was another file" in line for line in said) == (
        what == "content"
    )
    whole = stopped.run.with_name("whole")
    tiny.run(whole, *stopped.overrides(), *arguments)
    starts = [line for line in lines_of(stopped.run, "eval") if line["at"] == "start"]
    assert starts == [before[0], lines_of(whole, "eval")[0]]
    assert_same_state(whole, stopped.run, 8)
    for line in (one := result_of(whole), two := result_of(stopped.run)):
        del line["seconds"], line["peak_bytes"]
    assert one == two


def test_another_evaluation_after_the_last_loop(tiny: Case, finished: Path, tmp_path: Path) -> None:
    """The unlearned model is measured anew too."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    shutil.copytree(finished, run)
    succeed("resume", run, "evaluate.batches=2")
    tiny.run(whole, "evaluate.batches=2")
    ends = [lines_of(folder, "result")[0] for folder in (run, whole)]
    for key in ("forget_loss_start", "retain_loss_start", "forget_loss_unlearn", "score"):
        assert ends[0][key] == ends[1][key]


def test_edited_config_is_warned_of(stopped: Stopped, finished: Path) -> None:
    """A resume goes by the checkpoint; before, the edit was dropped without a word."""
    path = stopped.run / "config.yaml"
    text = path.read_text()
    changed = text.replace("  adv_lr: 0.5\n", "  adv_lr: 0.6\n").replace("keep: 2", "keep: 5")
    changed = changed.replace("attacks: []", "attacks: [{name: a},\n    {name: b}]")
    assert changed != text
    path.write_text(changed + "# a remark\n")
    said = stopped.warnings()
    assert len(said) == 3
    assert f"{path}: unlearn.adv_lr is 0.6 there" in said[0] and "has 0.5: it shaped" in said[0]
    assert "relearn.attacks is [{name: 'a'},{name: 'b'}] there" in said[1]
    assert f"{path}: checkpoint.keep is 5 there" in said[2] and "has 2: give an argument" in said[2]
    assert_same_run(finished, stopped.run)
    path.write_text("unlearn: [\n")
    assert len(said := stopped.warnings()) == 1 and f"{path}:" in said[0]


# -- checkpoints of an older version ------------------------------------------------------------------


class _Hash(ctypes.Structure):
    _fields_ = [("low", ctypes.c_uint64), ("high", ctypes.c_uint64)]


def xxh128(content: bytes) -> bytes:
    """As the program writes it."""
    function = ctypes.CDLL("libxxhash.so.0").XXH3_128bits
    function.restype, function.argtypes = _Hash, [ctypes.c_char_p, ctypes.c_size_t]
    value = function(content, len(content))
    return f"{value.high:016x}{value.low:016x}".encode()


def hash_of_rows(model: Path) -> str:
    """The weights' hash: a sum over the rows of all tensors; a vector is one row."""
    header, tensors = read_safetensors(model / "model.safetensors")
    total = [0, 0]
    for name, data in tensors.items():
        assert header[name]["dtype"] == "F32"
        shape = header[name]["shape"]
        rows = shape[0] if len(shape) > 1 else 1
        each = len(data) // rows
        for row in range(rows):
            content = bytes.fromhex((xxh128(name.encode()) + xxh128(data[row * each :][:each])).decode())
            leaf = xxh128(content + bytes([0]) + row.to_bytes(8, "little"))
            total[0] += int(leaf[:16], 16)
            total[1] += int(leaf[16:], 16)
    return "".join(f"{half % 2**64:016x}" for half in total)


def made_older(checkpoint: Path, model: Path) -> None:
    """The checkpoint as it was when it had the hash of the weights' bytes only, sealed anew."""
    with h5py.File(checkpoint, "r+") as file:
        assert file.attrs["weights_hash"] == hash_of_rows(model)
        file.attrs.modify("weights_hash", xxh128((model / "model.safetensors").read_bytes()).decode())
        extra = json.loads(file.attrs["extra"])
        del extra["identity"]
        file.attrs.modify("extra", json.dumps(extra))
    content = bytearray(checkpoint.read_bytes())
    end = content.index(b"\n")
    content[end - 32 : end] = xxh128(bytes(content[512:]))
    checkpoint.write_bytes(content)


def test_resume_of_an_older_checkpoint(stopped: Stopped, finished: Path) -> None:
    """What it does not have is not compared, with one warning; what it has is."""
    made_older(stopped.run / "checkpoints" / "6" / "checkpoint.h5", stopped.model)
    aside = shutil.copytree(stopped.run, stopped.run.with_name("aside"))
    (said,) = stopped.warnings()
    assert "of an older version" in said and "checkpoints/6" in said
    assert_same_run(finished, stopped.run)
    zeroed_norm(stopped.model)
    assert "made from another weights" in fail(2, "resume", aside)


# -- result lines -------------------------------------------------------------------------------------


def test_result_says_what_it_stands_on(tiny: Case, finished: Path, tmp_path: Path) -> None:
    result = result_of(finished)
    assert result["attack_of_score"] == {
        "name": "relearn", "optimizer": "sgd", "lr": 0.1, "passes": 10, "with_retain": False,
        "lora_rank": 0, "state_dtype": "float32",
    }  # fmt: skip
    assert result["evaluation"] == {
        "forget": "data.forget_validation",
        "retain": "data.retain_validation",
        "batches": 1,
        "multiple_choice": [],
    }
    identity = result["identity"]
    files = [f"data.{name}" for name in TOKEN_SETS]
    assert identity.keys() == {
        "program", "config", "evaluation", "config.json", "weights", *files
    }  # fmt: skip
    (version,) = re.findall(r"^mudman-mpi (0\.1\.0\+[0-9a-f]{8})$", succeed("--version").out, re.M)
    assert identity["program"] == version
    assert identity["weights"] == hash_of_rows(tiny.model)
    assert identity["config.json"] == xxh128((tiny.model / "config.json").read_bytes()).decode()
    for override, changed in (
        ("unlearn.adv_lr=0.6", {"config"}),
        ("checkpoint.keep=3", set()),
        ("evaluate.batches=2", {"config", "evaluation"}),
        (f"data.forget={tiny.data / 'retain.h5'}", {"data.forget"}),
    ):
        run = tmp_path / override.partition("=")[0]
        tiny.run(run, override)
        other = result_of(run)["identity"]
        assert {key for key in identity if identity[key] != other[key]} == changed


def test_result_names_the_attack(tiny: Case, tmp_path: Path) -> None:
    """The one with the lowest score; none where the attack was not made."""
    attacks = "relearn.attacks=[{name: weak, lr: 1.0e-6}, {name: strong, lr: 0.5}]"
    tiny.run(tmp_path / "two", attacks)
    result = result_of(tmp_path / "two")
    best = min(("weak", "strong"), key=lambda name: result[f"score_{name}"])
    attack = result["attack_of_score"]
    assert attack["name"] == best and result["score"] == result[f"score_{best}"]
    assert attack["lr"] == {"weak": 1e-6, "strong": 0.5}[best]
    tiny.run(tmp_path / "none", "relearn.passes=0")
    assert result_of(tmp_path / "none")["attack_of_score"] is None


def test_eval_says_what_it_stands_on(tiny: Case, finished: Path) -> None:
    """The same hashes as a run's, so that the two can be held against each other."""
    identity = result_of(finished)["identity"]
    names = ("config.json", "weights", "evaluation")
    lines = succeed("eval", tiny.config, ranks=2).out.splitlines()
    assert lines[:3] == [f"hash {name} {identity[name]}" for name in names]
    assert [line.rpartition(" ")[0] for line in lines[3:]] == ["forget loss", "retain loss"]


def version_of(tree: Path) -> str:
    """The version of a build of these sources."""
    script, out = ROOT / "cmake" / "version.cmake", tree / "version.c"
    settings = {"ROOT": tree, "VERSION": "1.2", "OUT": out}
    given = [word for key, value in settings.items() for word in ("-D", f"{key}={value}")]
    subprocess.run(["cmake", *given, "-P", script], check=True)
    return re.findall(r'"([^"]+)";', out.read_text())[0]


@pytest.mark.skipif(not shutil.which("cmake"), reason="no cmake")
def test_version_of_a_build(tmp_path: Path) -> None:
    """Of its sources, wherever they lie; what is not built into it changes nothing."""
    trees = [tmp_path / name for name in ("a", "b")]
    for tree in trees:
        (tree / "src" / "run").mkdir(parents=True)
        (tree / "kernels").mkdir()
        (tree / "src" / "run" / "x.c").write_text("int x;")
        (tree / "kernels" / "x.cu").write_text("int y;")
    first, second = trees
    before = version_of(first)
    assert re.fullmatch(r"1\.2\+[0-9a-f]{8}", before) and version_of(second) == before
    (second / "README.md").write_text("words")
    assert version_of(second) == before
    (second / "kernels" / "x.cu").write_text("int z;")
    assert version_of(second) != before
    (first / "src" / "run" / "x.c").rename(first / "src" / "run" / "y.c")
    assert version_of(first) != before
