#!/usr/bin/env python3
"""Read a config file of the paper's own study program; `--help` explains the use."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from study_keys import (
    ADAPTERS, ADDITIONAL, ADVERSARY, CIRCUIT_BREAKERS, COUNTS, DEFAULTS, GENERAL, HYPERPARAMS,
    LINEAR, LORA_ADVERSARY, LORA_CIRCUIT_BREAKERS, LOSSES, METHOD, METHODS, MOST_MOMENTUM,
    ONE_FOR_ALL, RATES, RELEARN, SECTIONS,
)  # fmt: skip
from text_records import InputError
from tool_ends import fault_status, fault_words, run_tool
from yaml_reader import Loader, open_loader, yaml_error

EXIT_BAD_INPUT = 2

DESCRIPTION = """\
Turn a config file of the paper's study program (general_config, relearn_config, hyperparams,
variants) into a config for `mudman-mpi run`, PREFIX-run.yaml, and a file for tools/search.py,
PREFIX-search.yaml, with the file's variants, or with --variant one of them.

A value that is searched stands in the run's config with the middle of its range. Data files and
model folder get the names that the configs in this repository use: data/MODEL/SET-train.h5,
models/MODEL. A key that is not known is an error.
"""

EPILOG = """\
examples:
  import_study.py ablations.yaml
  import_study.py ablations.yaml --variant no_masking --output configs/mine/no-masking

exit status: 0 done; 2 bad input or arguments, with one line that says where
"""

# Texts that YAML takes for texts without quotes.
PLAIN = re.compile(r"[A-Za-z_][\w./-]*", re.ASCII)
NOT_TEXT = ("null", "true", "false", "yes", "no", "on", "off", "y", "n")


@dataclass(frozen=True)
class Entry:
    """A value of the file and where it stands."""

    value: Any
    place: str


@dataclass(frozen=True)
class Range:
    low: float
    high: float
    log: bool
    integer: bool

    def middle(self) -> float:
        """The middle of the range, of its logarithm where that is searched."""
        if self.integer:
            return (int(self.low) + int(self.high)) // 2
        middle = math.sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2
        return float(f"{middle:.3g}")

    def fields(self, base: Range | None = None) -> dict[str, Any]:
        """As a search file has it; a variant's range takes over what it does not say of `base`."""
        fields: dict[str, Any] = {"low": self.low, "high": self.high}
        if self.log or (base and base.log):
            fields["log"] = self.log
        return fields | ({"int": True} if self.integer else {})


@dataclass(frozen=True)
class Settings:
    """One variant, or the base, in this project's keys."""

    fixed: dict[str, Any]
    ranges: dict[str, Range]


@dataclass
class Study:
    """A study file: its sections with places."""

    path: Path
    general: dict[str, Entry]
    relearn: dict[str, Entry]
    hyperparams: dict[str, Entry]
    variants: dict[str, dict[str, Entry]]

    def entries(self, variant: str | None) -> dict[str, Entry]:
        """All that holds for a variant, or for the base."""
        own = self.variants[variant] if variant is not None else {}
        return self.general | self.hyperparams | self.relearn | own


# -- reading ------------------------------------------------------------------------------------


def read_study(path: Path) -> Study:
    """Read the file; a key that is not known, or given twice, is an error."""
    loader = open_loader(path)
    try:
        root = loader.get_single_node()
    except yaml.YAMLError as error:
        raise yaml_error(path, error) from None
    top = _members(path, root, SECTIONS)
    for section in ("general_config", "hyperparams"):
        if section not in top:
            raise InputError(f"{path}: {section} is missing")

    def section(name: str, known: Sequence[str]) -> dict[str, Entry]:
        return _entries(path, loader, top[name], known) if name in top else {}

    variants = {}
    for name, node in _members(path, top.get("variants"), None).items():
        variants[name] = _entries(path, loader, node, (*GENERAL, *HYPERPARAMS))
        for key in ONE_FOR_ALL:
            if key in variants[name]:
                raise InputError(f"{variants[name][key].place}: {key} is one for all variants here")
    return Study(
        path,
        section("general_config", GENERAL),
        section("relearn_config", RELEARN),
        section("hyperparams", HYPERPARAMS),
        variants,
    )


def _place(path: Path, node: yaml.Node | None) -> str:
    return f"{path}:{node.start_mark.line + 1}" if node else str(path)


def _members(
    path: Path, node: yaml.Node | None, known: Sequence[str] | None
) -> dict[str, yaml.Node]:
    """The keys of a mapping, checked; an empty value counts as an empty mapping."""
    if node is None or (isinstance(node, yaml.ScalarNode) and node.value in ("", "null", "~")):
        return {}
    if not isinstance(node, yaml.MappingNode):
        raise InputError(f"{_place(path, node)}: keys and values are expected")
    members: dict[str, yaml.Node] = {}
    for key, value in node.value:
        name = key.value if isinstance(key, yaml.ScalarNode) else "?"
        if known is not None and name not in known:
            raise InputError(
                f"{_place(path, key)}: {name}: unknown key; known are {', '.join(known)}"
            )
        if name in members:
            raise InputError(f"{_place(path, key)}: {name} is given twice")
        members[name] = value
    return members


def _entries(
    path: Path, loader: Loader, node: yaml.Node, known: Sequence[str]
) -> dict[str, Entry]:
    try:
        return {
            name: Entry(loader.construct_object(value, deep=True), _place(path, value))
            for name, value in _members(path, node, known).items()
        }
    except yaml.YAMLError as error:
        raise yaml_error(path, error) from None


# -- values -------------------------------------------------------------------------------------


def _is_none(entry: Entry | None) -> bool:
    return entry is None or entry.value in (None, "None")


def _number(entry: Entry, name: str, value: Any = None) -> float:
    value = entry.value if value is None else value
    try:
        # In quotes it is a text.
        number = float(value) if isinstance(value, str) else value
    except ValueError:
        number = None
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise InputError(f"{entry.place}: {name}: a number is expected, not {value}")
    if not math.isfinite(number):
        raise InputError(f"{entry.place}: {name}: {value} is not finite")
    return number


def _count(entry: Entry, name: str) -> int:
    number = _number(entry, name)
    if number < 0 or number % 1:
        raise InputError(f"{entry.place}: {name}: a count is expected, not {entry.value}")
    return int(number)


def _typed(entry: Entry, name: str, kind: type, words: str) -> Any:
    if not isinstance(entry.value, kind):
        raise InputError(f"{entry.place}: {name}: {words} is expected, not {entry.value}")
    return entry.value


def _one_of(entry: Entry, name: str, known: Sequence[str]) -> str:
    if entry.value not in known:
        raise InputError(
            f"{entry.place}: {name}: {entry.value} is not known; known are {', '.join(known)}"
        )
    return entry.value


def _value_or_range(entry: Entry, name: str, integer: bool) -> float | Range:
    """A number, or [low, high, log]; equal ends are a number."""
    if not isinstance(entry.value, list):
        number = _number(entry, name)
        return int(number) if integer else number
    if len(entry.value) != 3 or not isinstance(entry.value[2], bool):
        raise InputError(f"{entry.place}: {name}: [low, high, log] is expected")
    low, high = (_number(entry, name, end) for end in entry.value[:2])
    if low > high or (entry.value[2] and low <= 0):
        raise InputError(f"{entry.place}: {name}: {entry.value} is no range")
    if integer:
        low, high = math.ceil(low), math.floor(high)
    return low if low >= high else Range(low, high, entry.value[2], integer)


# -- translation --------------------------------------------------------------------------------


def translate(study: Study, variant: str | None) -> Settings:
    """A variant, or the base, in this project's keys, all that any variant may change given."""
    entries = study.entries(variant)
    fixed: dict[str, Any] = DEFAULTS | {"unlearn.rate_scale": "study"}
    needed = ("model_id", "unlearn_steps", "target_modules", "retain_set_name", "forget_set_name")
    for key in needed:
        if key not in entries:
            raise InputError(f"{study.path}: {key} is missing")
    if "relearn_lora_conf" in entries:
        raise InputError(f"{entries['relearn_lora_conf'].place}: relearn_lora_conf: not supported")
    method = METHOD
    if "method_name" in entries:
        entry = entries["method_name"]
        method = _one_of(entry, "method_name", METHODS)
        if method == LORA_ADVERSARY and "lora_rank" not in entries:
            raise InputError(f"{entry.place}: method_name: {method} without lora_rank")
    fixed |= _translate_general(entries)
    if method == LORA_ADVERSARY:
        fixed |= {
            key: _count(entries[name], name)
            for name, key in ADAPTERS.items()
            if name in entries
        }
    searched = _translate_rates(entries, fixed["unlearn.train_adversary"])
    if method in (CIRCUIT_BREAKERS, LORA_CIRCUIT_BREAKERS):
        fixed |= {
            "unlearn.unlearning_loss_fn": "circuit_breaker",
            "unlearn.train_adversary": False,
            "unlearn.use_masking": False,
            "unlearn.rep_eng_retain_lr": 1,
            "unlearn.retain_cross_entropy": False,
        }
        kept = ("unlearn.unlearning_rate", "unlearn.retaining_rate")
        searched = {key: searched[key] for key in kept if key in searched}
        searched["unlearn.retain_momentum"] = 0
    if method == LORA_CIRCUIT_BREAKERS:
        model = str(entries["model_id"].value).lower()
        fixed |= {
            "unlearn.lora_rank": 16,
            "unlearn.target_modules": LINEAR["pythia" if "pythia" in model else ""],
            "evaluate.every_passes": 60,
        }
    ranges = {key: value for key, value in searched.items() if isinstance(value, Range)}
    fixed |= {key: value for key, value in searched.items() if key not in ranges}
    return Settings({key: value for key, value in fixed.items() if key not in ranges}, ranges)


def _translate_general(entries: Mapping[str, Entry]) -> dict[str, Any]:
    """Everything that is not a hyperparameter."""
    fixed: dict[str, Any] = {"unlearn.passes": _count(entries["unlearn_steps"], "unlearn_steps")}
    modules = _typed(entries["target_modules"], "target_modules", list, "a list")
    fixed["unlearn.target_modules"] = modules
    if "unlearning_loss_fn" in entries:
        loss = _one_of(entries["unlearning_loss_fn"], "unlearning_loss_fn", LOSSES)
        fixed["unlearn.unlearning_loss_fn"] = loss
    for name in ("use_masking", "train_adversary", "square_norm"):
        if name in entries:
            fixed[f"unlearn.{name}"] = _typed(entries[name], name, bool, "true or false")
    if "normalize_grads" in entries:
        wanted = _typed(entries["normalize_grads"], "normalize_grads", bool, "true or false")
        fixed["unlearn.normalization"] = "global_pre_mask" if wanted else "none"
    if "clip_at" in entries:
        fixed["unlearn.clip_at"] = _number(entries["clip_at"], "clip_at")
    judged_by_questions = not _is_none(entries.get("allowed_mmlu_acc"))
    budget = entries.get("retain_loss_budget")
    if not _is_none(budget):
        fixed["unlearn.retain_loss_budget"] = _number(budget, "retain_loss_budget")
    else:
        fixed["unlearn.retain_loss_budget"] = None if judged_by_questions else 0
    fixed["relearn.with_retain"] = judged_by_questions
    for name, key in COUNTS.items():
        if name in entries:
            fixed[key] = _count(entries[name], name)
    if "relearn_lr" in entries:
        fixed["relearn.lr"] = _number(entries["relearn_lr"], "relearn_lr")
    return fixed


def _translate_rates(entries: Mapping[str, Entry], adversary: bool) -> dict[str, float | Range]:
    """Hyperparameters; without an adversary its own have no effect and are left out."""
    searched: dict[str, float | Range] = {}
    for name in RATES:
        entry = entries.get(name)
        if not _is_none(entry) and (adversary or name not in ADVERSARY):
            integer = name == "fork_every_n_loops"
            searched[f"unlearn.{name}"] = _value_or_range(entry, name, integer)
    additional = entries.get("additional_param_name")
    if not _is_none(additional):
        name = _one_of(additional, "additional_param_name", list(ADDITIONAL))
        entry = entries.get("additional_param")
        if _is_none(entry):
            raise InputError(f"{additional.place}: additional_param_name without additional_param")
        value = _value_or_range(entry, "additional_param", False)
        if name == "forget_momentum" and isinstance(value, Range):
            # At 1 no gradient would enter; the program wants less.
            value = Range(value.low, min(value.high, MOST_MOMENTUM), value.log, value.integer)
        searched[f"unlearn.{name}"] = value
    return searched


# -- writing ------------------------------------------------------------------------------------


def _yaml(value: Any) -> str:
    """A value in YAML on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_yaml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, str) and PLAIN.fullmatch(value) and value.lower() not in NOT_TEXT:
        return value
    return json.dumps(value)


def run_config(study: Study, settings: Settings, title: str, name: str) -> str:
    """The text of the run's config."""
    entries = study.entries(None)
    model_id = _typed(entries["model_id"], "model_id", str, "a name")
    model = model_id.rpartition("/")[2]
    sets = {
        kind: _typed(entries[f"{kind}_set_name"], f"{kind}_set_name", str, "a name")
        for kind in ("retain", "forget")
    }
    files = {kind: f"data/{model.lower()}/{name.replace('_', '-')}" for kind, name in sets.items()}
    precision = {"state_dtype": "bfloat16"} if "llama" in model.lower() else {"dtype": "float32"}
    sections: dict[str, dict[str, Any]] = {
        "model": {"path": f"models/{model}"} | precision,
        "data": {kind: f"{files[kind]}-train.h5" for kind in files}
        | {f"{kind}_validation": f"{files[kind]}-validation.h5" for kind in files},
    }
    if "batch_size" in entries:
        sections["data"]["batch_size"] = _count(entries["batch_size"], "batch_size")
    values = settings.fixed | {key: bounds.middle() for key, bounds in settings.ranges.items()}
    for key, value in values.items():
        section, _, word = key.partition(".")
        if DEFAULTS.get(key, ...) != value:
            sections.setdefault(section, {})[word] = value
    if not _is_none(study.general.get("allowed_mmlu_acc")):
        folder = f"data/{model.lower()}"
        sections.setdefault("evaluate", {})["multiple_choice"] = [
            {"name": "wmdp_bio", "file": f"{folder}/wmdp-bio.h5", "temperature": 0},
            {"name": "mmlu", "file": f"{folder}/mmlu-no-biology.h5", "temperature": 1},
        ]
    sections["output"] = {"dir": f"runs/{name}"}
    lines = [
        f"# {title}",
        f"# Bring the model {model_id} in models/{model}; make the data files with",
        "# tools/prepare_data.py (docs/experiments.md).",
    ]
    for section, keys in sections.items():
        lines += [f"{section}:", *(f"  {key}: {_yaml(value)}" for key, value in keys.items())]
    return "\n".join(lines) + "\n"


def difference(base: Settings, other: Settings) -> dict[str, dict[str, Any]]:
    """What a variant of a search file says: overrides and parameters that the base has not."""
    overrides = {
        key: value for key, value in other.fixed.items() if base.fixed.get(key, ...) != value
    }
    parameters: dict[str, Any] = {
        key: bounds.fields(base.ranges.get(key))
        for key, bounds in other.ranges.items()
        if base.ranges.get(key) != bounds
    }
    parameters |= {key: None for key in base.ranges if key not in other.ranges}
    both = {"overrides": overrides, "parameters": parameters}
    return {key: value for key, value in both.items() if value}


def search_config(
    study: Study, base: Settings, variants: Mapping[str, Settings], config: Path, name: str
) -> str:
    """The text of the search file."""
    trials = study.general.get("n_trials")
    count = "N" if _is_none(trials) else _count(trials, "n_trials")
    lines = [f"# Imported from {study.path.name}:", f"#   tools/search.py FILE --trials {count}"]
    lines += [f"config: {_yaml(str(config))}", f"name: {_yaml(name)}", "parameters:"]
    lines += [f"  {key}: {_yaml(bounds.fields())}" for key, bounds in base.ranges.items()]
    lines += ["variants:"] if variants else []
    for variant, settings in variants.items():
        lines.append(f"  {_yaml(variant)}:")
        for kind, keys in difference(base, settings).items():
            lines += [f"    {kind}:", *(f"      {key}: {_yaml(v)}" for key, v in keys.items())]
    allowed = study.general.get("allowed_mmlu_acc")
    if not _is_none(allowed):
        least = _number(allowed, "allowed_mmlu_acc")
        lines += ["objective: accuracy_wmdp_bio", "direction: minimize"]
        lines += [f"pruning: {{accuracy_mmlu: {{below: {_yaml(least)}}}}}", "last: 60"]
    return "\n".join([*lines, "baseline: true"]) + "\n"


def import_study(options: argparse.Namespace) -> list[Path]:
    """Write both files; returns their paths."""
    study = read_study(options.file)
    wanted = options.variant
    if wanted is not None and wanted not in study.variants:
        known = ", ".join(study.variants) or "none"
        raise InputError(f"--variant {wanted}: {options.file} has {known}")
    base = translate(study, wanted)
    names = study.variants if wanted is None else ()
    variants = {variant: translate(study, variant) for variant in names}
    for variant, settings in (variants or {wanted or "the file": base}).items():
        if not settings.ranges:
            raise InputError(f"{options.file}: {variant}: nothing is searched")
    prefix = options.output or Path(
        "-".join(filter(None, [options.file.stem.replace(",", "-"), wanted]))
    )
    run, search = (prefix.with_name(f"{prefix.name}-{what}.yaml") for what in ("run", "search"))
    title = f"Imported from {study.path.name}" + (f", variant {wanted}." if wanted else ".")
    texts = {
        run: run_config(study, base, title, prefix.name),
        search: search_config(study, base, variants, run, prefix.name),
    }
    for path in texts:
        if path.exists():
            raise InputError(f"{path}: is there already")
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return list(texts)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="import_study.py",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("file", type=Path, metavar="FILE", help="the study's YAML")
    add("--variant", metavar="NAME", help="only this variant, in the run's config too")
    add("--output", type=Path, metavar="PREFIX", help="default: the file's name, here")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = parse_arguments(arguments)
    try:
        for path in import_study(options):
            print(path)
    except InputError as error:
        return _end(str(error))
    except OSError as error:
        return _end(fault_words(error), fault_status(error))
    return 0


def _end(message: str, status: int = EXIT_BAD_INPUT) -> int:
    # A message may quote the input; it stays one line all the same.
    print(f"import_study.py: {' '.join(message.split())}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(run_tool("import_study.py", main))
