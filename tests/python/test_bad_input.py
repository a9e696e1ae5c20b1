"""Bad input: exit 2, one message that names the place, every rank gone soon, nothing on disk touched."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from job_helpers import Job, mudman, snapshot, succeed
from model_helpers import Case, floats_of, write_safetensors, write_tokens

LIMIT = 20.0


class Place:
    """A model, data and a configuration to spoil, and what the command line adds."""

    def __init__(self, case: Case, folder: Path):
        self.folder, self.context = folder, case.tokens("retain").shape[1]
        self.model, self.run = folder / "model", folder / "run"
        self.model.mkdir()
        for name in ("config.json", "model.safetensors"):
            shutil.copy(case.model / name, self.model)
        for path in case.data.glob("*.h5"):
            shutil.copy(path, folder)
        text = case.config.read_text().replace(str(case.data), str(folder))
        self.config = folder / "config.yaml"
        self.config.write_text(text.replace(str(case.model), str(self.model)))

    def edit_json(self, **changes: object) -> None:
        """Change fields of config.json; None removes one."""
        path = self.model / "config.json"
        fields = json.loads(path.read_text()) | changes
        path.write_text(
            json.dumps({key: value for key, value in fields.items() if value is not None})
        )

    def edit_text(self, change: Callable[[str], str]) -> None:
        path = self.model / "config.json"
        path.write_text(change(path.read_text()))

    def edit_yaml(self, old: str, new: str) -> None:
        text = self.config.read_text()
        assert old in text
        self.config.write_text(text.replace(old, new, 1))

    def weights(self) -> Path:
        return self.model / "model.safetensors"

    def cut_weights(self, end: int) -> None:
        self.weights().write_bytes(self.weights().read_bytes()[:end])

    def edit_weights(self, change: Callable[[dict], object], dtype: str = "F32") -> None:
        tensors = floats_of(self.weights())
        change(tensors)
        write_safetensors(self.weights(), tensors, dtype)

    def tokens(self, values: np.ndarray) -> None:
        write_tokens(self.folder / "forget.h5", values, 53)

    def dataset(self, name: str, values: object) -> None:
        with h5py.File(self.folder / "forget.h5", "w") as file:
            file[name] = values


ROPE = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
CONTEXT, GATE = 12, "model.layers.1.mlp.gate_proj.weight"
Spoil = Callable[[Place], object]

# What is spoiled, and what the message must name: the file, and the thing in it.
MODEL: dict[str, tuple[Spoil, list[str]]] = {
    "no-folder": (lambda p: shutil.rmtree(p.model), ["model.path: ", "no such folder"]),
    "no-config": (lambda p: (p.model / "config.json").unlink(), ["model/config.json"]),
    "config-no-json": (
        lambda p: (p.model / "config.json").write_text('{\n"hidden_size": 16,,\n'),
        ["model/config.json:2"],
    ),
    "no-weights": (lambda p: p.weights().unlink(), ["/model", "model.safetensors"]),
    "empty-weights": (lambda p: p.cut_weights(0), ["model.safetensors"]),
    "header-cut": (lambda p: p.cut_weights(100), ["model.safetensors", "truncated"]),
    "data-cut": (lambda p: p.cut_weights(-10), ["model.safetensors", "truncated"]),
    "no-safetensors": (lambda p: p.weights().write_bytes(b"PK\x03\x04" * 99), ["model.safetensors"]),
    "tensor-missing": (
        lambda p: p.edit_weights(lambda t: t.pop(GATE)), ["model.safetensors", GATE],
    ),
    "shape-wrong": (
        lambda p: p.edit_weights(lambda t: t.update({GATE: t[GATE][:, :8].copy()})),
        ["model.safetensors", GATE, "[22,8]", "[22,16]"],
    ),
    "shape-turned": (
        lambda p: p.edit_weights(lambda t: t.update({GATE: t[GATE].T.copy()})),
        ["model.safetensors", GATE, "[16,22]"],
    ),
    "dtype-unknown": (lambda p: p.edit_weights(len, "I32"), ["model.safetensors", "I32"]),
    "dtype-invented": (lambda p: p.edit_weights(len, "Q4_K"), ["model.safetensors", "Q4_K"]),
    "size-missing": (lambda p: p.edit_json(hidden_size=None), ["config.json", "hidden_size"]),
    "sizes-beyond-the-weights": (
        lambda p: p.edit_json(intermediate_size=10**9), ["model.safetensors", "[1000000000,16]"],
    ),
    "layers-beyond-count": (
        lambda p: p.edit_json(num_hidden_layers=10**9), ["config.json", "num_hidden_layers"],
    ),
    "size-text": (lambda p: p.edit_json(hidden_size="16"), ["config.json", "hidden_size"]),
    "family": (lambda p: p.edit_json(model_type="gpt2"), ["config.json", "gpt2"]),
    "activation": (lambda p: p.edit_json(hidden_act="gelu"), ["config.json", "hidden_act", "gelu"]),
    "rope-yarn-4": (lambda p: p.edit_json(rope_scaling=ROPE), ["config.json", "yarn"]),
    "rope-yarn-5": (
        lambda p: p.edit_json(rope_parameters=ROPE | {"rope_theta": 1e4}), ["config.json", "yarn"],
    ),
    "rope-linear": (
        lambda p: p.edit_json(rope_scaling={"type": "linear", "factor": 2.0}),
        ["config.json", "linear"],
    ),
    "rope-twice": (
        lambda p: p.edit_json(
            rope_scaling={"type": "default"}, rope_parameters={"rope_theta": 7.0}
        ),
        ["config.json", "rope_scaling", "rope_parameters"],
    ),
    "name-twice": (
        lambda p: p.edit_text(lambda text: text.replace("{", '{\n"hidden_size": 16,', 1)),
        ["config.json:", "'hidden_size'"],
    ),
    "two-objects": (lambda p: p.edit_text(lambda text: text + "\n{}"), ["config.json:", "behind"]),
    "window-short": (
        lambda p: p.edit_json(model_type="mistral", sliding_window=CONTEXT - 1),
        ["sliding_window", str(CONTEXT - 1), "data.context_length"],
    ),
    "window-qwen2": (
        lambda p: p.edit_json(model_type="qwen2", sliding_window=4, use_sliding_window=True, max_window_layers=0),
        ["sliding_window"],
    ),
    "quantized": (
        lambda p: p.edit_json(quantization_config={"quant_method": "gptq"}),
        ["config.json", "quantized"],
    ),
    "layer-count": (lambda p: p.edit_json(num_hidden_layers=4), ["model.layers.3"]),
    "untied": (lambda p: p.edit_json(tie_word_embeddings=False), ["lm_head.weight"]),
}  # fmt: skip

DATA: dict[str, tuple[Spoil, list[str]]] = {
    "absent": (lambda p: (p.folder / "forget.h5").unlink(), ["forget.h5"]),
    "folder": (
        lambda p: ((p.folder / "forget.h5").unlink(), (p.folder / "forget.h5").mkdir()),
        ["forget.h5"],
    ),
    "no-hdf5": (lambda p: (p.folder / "forget.h5").write_text("tokens"), ["forget.h5"]),
    "cut": (
        lambda p: (p.folder / "forget.h5").write_bytes(
            (p.folder / "forget.h5").read_bytes()[:1000]
        ),
        ["forget.h5"],
    ),
    "no-tokens": (lambda p: p.dataset("token", [[1] * 12]), ["forget.h5", "tokens"]),
    "flat": (lambda p: p.dataset("tokens", [1] * 12), ["forget.h5", "tokens"]),
    "fractions": (lambda p: p.dataset("tokens", [[0.5] * 12]), ["forget.h5", "tokens"]),
    "negative": (lambda p: p.dataset("tokens", [[-1] * 12]), ["forget.h5", "-1"]),
    "no-rows": (lambda p: p.dataset("tokens", np.zeros((0, 12), "u4")), ["forget.h5"]),
    "above-vocabulary": (
        lambda p: p.tokens(np.where(np.arange(84).reshape(7, 12) == 41, 53, 1)),
        ["forget.h5", "row 3", "column 5", "53"],
    ),
    "short-context": (lambda p: p.tokens(np.ones((7, 11), "u4")), ["forget.h5", "11", "12"]),
}

YAML: dict[str, tuple[Spoil, list[str]]] = {
    "absent": (lambda p: p.config.unlink(), ["config.yaml"]),
    "empty": (lambda p: p.config.write_text(""), ["config.yaml"]),
    "list": (lambda p: p.config.write_text("- a\n"), ["config.yaml:1"]),
    "unknown": (lambda p: p.edit_yaml("  adv_lr:", "  adv_rl:"), ["config.yaml:", "unlearn.adv_lr"]),
    "section": (lambda p: p.edit_yaml("unlearn:", "unlern:"), ["config.yaml:", "unlearn"]),
    "repeated": (
        lambda p: p.edit_yaml("  loops: 8", "  loops: 8\n  loops: 9"), ["config.yaml:", "unlearn.loops"],
    ),
    "repeated-section": (
        lambda p: p.edit_yaml("unlearn:", "relearn:\n  passes: 10\nunlearn:"),
        ["config.yaml:", "relearn.passes"],
    ),
    "type": (lambda p: p.edit_yaml("loops: 8", "loops: eight"), ["config.yaml:", "unlearn.loops"]),
    "fraction": (lambda p: p.edit_yaml("loops: 8", "loops: 8.5"), ["config.yaml:", "8.5"]),
    "range": (lambda p: p.edit_yaml("loops: 8", "loops: -1"), ["config.yaml:", "unlearn.loops"]),
    "momentum": (
        lambda p: p.edit_yaml("retain_momentum: 0.8", "retain_momentum: 1"),
        ["config.yaml:", "unlearn.retain_momentum"],
    ),
    "name": (lambda p: p.edit_yaml('"listing"', '"fresch"'), ["config.yaml:", "listing | fresh"]),
    "tab": (lambda p: p.edit_yaml("  loops: 8", "\tloops: 8"), ["config.yaml:", "not tabs"]),
    "open": (lambda p: p.edit_yaml("loops: 8", "loops: [8"), ["config.yaml:"]),
    "missing": (
        lambda p: p.edit_yaml("  adv_lr: 0.5\n", ""), ["config.yaml", "unlearn.adv_lr", "missing"],
    ),
    "both": (lambda p: p.edit_yaml("loops: 8", "loops: 8\n  passes: 40"), ["config.yaml:", "passes"]),
}  # fmt: skip

# Values that are wrong here: overrides, and what the message names.
VALUES: dict[str, tuple[list[str], list[str]]] = {
    "passes-divide": (["unlearn.passes=42"], ["unlearn.passes", "42", "5", "45"]),
    "passes-fresh": (["unlearn.passes=40", "unlearn.graph=fresh"], ["unlearn.passes", "6", "42"]),
    "relearn-odd": (["relearn.passes=11"], ["relearn.passes", "11", "2"]),
    "relearn-retain": (["relearn.passes=10", "relearn.with_retain=true"], ["relearn.passes", "4"]),
    "cuda": (["device=cuda"], ["device", "cuda", "cpu"]),
    "retain-nothing": (
        ["unlearn.retain_cross_entropy=false", "unlearn.use_masking=false"],
        ["unlearn.retain_cross_entropy", "rep_eng_retain_lr"],
    ),
    "rmu-layer": (
        ["unlearn.unlearning_loss_fn=rmu", "unlearn.rmu_layer=3"], ["unlearn.rmu_layer", "3", "0 to 2"],
    ),
    "modules": (["unlearn.target_modules=[gate_prj]"], ["gate_prj", "gate_proj"]),
    "modules-neox": (["unlearn.target_modules=[dense]"], ["dense", "gate_proj"]),
    "reuse-entropy": (
        ["unlearn.graph=reuse", "unlearn.unlearning_loss_fn=neg_entropy"], ["unlearn.graph"],
    ),
    "one-evaluation": (["data.forget_evaluation=x.h5"], ["data.forget_evaluation"]),
    "questions": (
        ["evaluate.multiple_choice=[{name: q, file: no-questions.h5}]"], ["no-questions.h5"],
    ),
    "context": (["data.context_length=13"], [".h5", "13", "12"]),
    "unknown": (["unlearn.adv_rl=1"], ["unlearn.adv_rl", "unlearn.adv_lr"]),
    "twice": (["seed=1", "seed=2"], ["seed"]),
    "infinite": (["unlearn.unlearning_rate=1e30"], ["unlearn.unlearning_rate", "1e30"]),
    "not-a-number": (["unlearn.adv_lr=.nan"], ["unlearn.adv_lr"]),
}  # fmt: skip


def refused(place: Place, named: list[str], *arguments: object, ranks: int = 1) -> str:
    """Exit 2 with one message that names everything in `named`, and no file made or changed."""
    before = snapshot(place.folder)
    outcome = mudman(*arguments, ranks=ranks, limit=LIMIT, cwd=place.folder)
    assert outcome.status == 2, outcome.err
    assert len(outcome.messages) == 1, outcome.err
    if ranks == 1:
        assert outcome.err == outcome.messages[0] + "\n", "nothing but the message"
    folder = str(place.folder)  # which names the test, too: not what the message must say
    said = outcome.messages[0].replace(folder, "@")
    for name in named:
        assert name.replace(folder, "@") in said
    assert outcome.out == "" and snapshot(place.folder) == before
    return outcome.messages[0]


@pytest.fixture
def place(tiny: Case, tmp_path: Path) -> Place:
    return Place(tiny, tmp_path)


def on_ranks(table: dict, three: set[str]) -> list:
    """Every row of a table on one rank, some on three."""
    assert three <= table.keys()
    rows = [pytest.param(*table[name], 1, id=name) for name in table]
    return rows + [pytest.param(*table[name], 3, id=f"{name}-on-3") for name in sorted(three)]


SPOILED = [
    *on_ranks(MODEL, {"no-config", "data-cut", "tensor-missing", "shape-wrong", "rope-yarn-4"}),
    *on_ranks(DATA, {"absent", "cut", "above-vocabulary", "short-context"}),
    *on_ranks(YAML, {"absent", "unknown", "tab"}),
]


@pytest.mark.parametrize(("spoil", "named", "ranks"), SPOILED)
def test_run_refuses(place: Place, spoil: Spoil, named: list[str], ranks: int) -> None:
    spoil(place)
    refused(place, named, "run", place.config, f"output.dir={place.run}", ranks=ranks)


@pytest.mark.parametrize(
    ("overrides", "named", "ranks"), on_ranks(VALUES, {"passes-divide", "relearn-odd", "modules"})
)
def test_run_refuses_values(
    place: Place, overrides: list[str], named: list[str], ranks: int
) -> None:
    refused(place, named, "run", place.config, f"output.dir={place.run}", *overrides, ranks=ranks)


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("command", ["eval", "plan"])
@pytest.mark.parametrize("fault", ["shape-wrong", "above-vocabulary"])
def test_eval_and_plan_refuse_too(place: Place, command: str, fault: str, ranks: int) -> None:
    spoil, named = (MODEL | DATA | YAML)[fault]
    spoil(place)
    if fault == "above-vocabulary" and command == "eval":  # which needs no training data
        shutil.copy(place.folder / "forget.h5", place.folder / "forget_validation.h5")
        place.edit_yaml("forget: ", "forget: null # ")
        named = ["forget_validation.h5", *named[1:]]
    refused(place, named, command, place.config, ranks=ranks)


@pytest.mark.parametrize("change", ["window", "unused-window", "numbers", "unread", "mark"])
def test_good_config_is_not_refused(place: Place, change: str) -> None:
    """What looks like the faults above and is none."""
    if change == "window":
        place.edit_json(model_type="mistral", sliding_window=CONTEXT)
    elif change == "unused-window":
        place.edit_json(sliding_window=4, use_sliding_window=False)
    elif change == "unread":
        place.edit_json(attention_dropout=0.5, note=float("inf"), rotary_pct="x")
    elif change == "mark":
        place.edit_text(lambda text: "\ufeff" + text)
    else:
        place.edit_yaml("unlearning_rate: 0.2", "unlearning_rate: 2.0e-1")
        place.edit_json(rope_theta=1e4, attention_dropout=0)
    succeed("run", place.config, f"output.dir={place.run}")
    assert (place.run / "model" / "config.json").read_bytes()[:1] == b"{"  # json.loads wants no mark


@pytest.mark.parametrize("command", ["plan", "eval"])
@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("org/name", ["org/name", "hub", "hf download"]),
        ("~/model", ["~/model", "whole path"]),
        ("model/model.safetensors", ["a file", "/model"]),
        ("models--org--name", ["cache", "models--org--name/snapshots/abc"]),
        ("adapter", ["adapter", "merge"]),
    ],
)
def test_model_path_that_is_no_model(
    place: Place, command: str, path: str, named: list[str]
) -> None:
    shutil.copytree(place.model, place.folder / "models--org--name" / "snapshots" / "abc")
    (place.folder / "adapter").mkdir()
    (place.folder / "adapter" / "adapter_config.json").write_text("{}")
    refused(place, ["model.path", *named], command, place.config, f"model.path={path}")


def test_tied_pair_that_differs(place: Place) -> None:
    """Stored twice and unequal: not tied, said once, and the exported config.json says so."""
    head = floats_of(place.weights())["model.embed_tokens.weight"] * 2
    place.edit_weights(lambda tensors: tensors.update({"lm_head.weight": head}))
    place.edit_json(tie_word_embeddings=True)
    said = succeed("run", place.config, f"output.dir={place.run}").err
    assert said.count("lm_head.weight, which differ: they are not tied") == 1
    exported = json.loads((place.run / "model" / "config.json").read_text())
    assert exported["tie_word_embeddings"] is False


# -- the output folder --------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("where", ["below-a-file", "is-a-file", "proc"])
def test_unwritable_output_folder(place: Place, where: str, ranks: int) -> None:
    """Also for the superuser, whom permissions don't stop."""
    folder = {
        "below-a-file": place.config / "run",
        "is-a-file": place.config,
        "proc": Path("/proc/mudman/run"),
    }[where]
    named = "/proc/mudman" if where == "proc" else str(place.config)
    refused(place, [named], "run", place.config, f"output.dir={folder}", ranks=ranks)


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("held", ["metrics.jsonl", "checkpoints", "model"])
def test_used_output_folder(place: Place, held: str, ranks: int) -> None:
    place.run.mkdir()
    if held == "metrics.jsonl":
        (place.run / held).write_text("{}\n")
    else:
        (place.run / held).mkdir()
    named = [str(place.run), held, "resume"]
    refused(place, named, "run", place.config, f"output.dir={place.run}", ranks=ranks)


def test_second_run_is_refused_and_harmless(place: Place) -> None:
    succeed("run", place.config, f"output.dir={place.run}")
    refused(place, [str(place.run), "resume"], "run", place.config, f"output.dir={place.run}")


def test_folder_with_other_files_is_no_used_folder(place: Place) -> None:
    """Slurm writes its log there before the program starts."""
    place.run.mkdir()
    (place.run / "slurm-7.out").write_text("")
    succeed("run", place.config, f"output.dir={place.run}")
    assert (place.run / "slurm-7.out").is_file()


# -- arguments ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], ["--help"]),
        (["rnu", "config.yaml"], ["rnu", "run"]),
        (["run"], ["CONFIG"]),
        (["resume"], ["RUN_DIR"]),
        (["inspect"], ["FILE"]),
        (["run", "config.yaml", "adv_lr"], ["adv_lr", "key=value"]),
        (["run", "config.yaml", "--ranks", "3"], ["--ranks"]),
        (["plan", "config.yaml", "--ranks", "0"], ["--ranks '0'"]),
        (["plan", "config.yaml", "--ranks", "two"], ["--ranks 'two'"]),
        (["plan", "config.yaml", "--ranks"], ["--ranks"]),
        (["inspect", "config.yaml", "seed=1"], ["seed=1"]),
        (["run", "config.yaml"], ["output.dir", "missing"]),
    ],
)
def test_arguments(place: Place, arguments: list[str], named: list[str]) -> None:
    refused(place, named, *arguments)


@pytest.mark.parametrize("arguments", [["rnu"], ["run"], ["plan", "config.yaml", "--ranks", "0"]])
def test_arguments_on_three_ranks(place: Place, arguments: list[str]) -> None:
    refused(place, ["rnu" if arguments == ["rnu"] else ""], *arguments, ranks=3)


def test_no_rank_stays(place: Place) -> None:
    """Where only one of the ranks could know: all end."""
    (place.folder / "forget.h5").unlink()
    job = Job("run", place.config, f"output.dir={place.run}", ranks=4)
    assert job.wait(LIMIT).status == 2
    assert job.ranks() == []
