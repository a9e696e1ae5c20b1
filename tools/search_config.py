"""The YAML file of a search: which run, which parameters in which ranges, which variants.

Parameter and override names are those of the run's config, with dots: unlearn.adv_lr.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from text_records import InputError
from yaml_reader import read_config, read_yaml

KEYS = {
    "config",
    "name",
    "overrides",
    "parameters",
    "variants",
    "objective",
    "direction",
    "pruning",
    "last",
    "baseline",
}
RANGE_KEYS = {"low", "high", "log", "int"}
EDGE = 0.1


@dataclass(frozen=True)
class Range:
    """Where a parameter is searched: low <= value <= high, uniformly or in the logarithm."""

    low: float
    high: float
    log: bool
    integer: bool

    def near_edge(self, value: float) -> str | None:
        """Which end the value is near to, "lower" or "upper": within a tenth of the range."""
        scale = math.log if self.log else float
        position = (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low))
        return "lower" if position < EDGE else "upper" if position > 1 - EDGE else None


def is_finite(value: Any) -> bool:
    """Whether a figure of the program's lines is a number: null stands for what is not finite."""
    return type(value) in (int, float) and math.isfinite(value)


@dataclass(frozen=True)
class Limit:
    """A trial is pruned when this figure of an evaluation during unlearning leaves the bounds."""

    figure: str
    below: float | None
    above: float | None

    def broken_by(self, evaluation: Mapping[str, Any]) -> str | None:
        """The reason, or None; a figure that is not finite breaks every limit."""
        value = evaluation.get(self.figure)
        if not is_finite(value):
            return f"{self.figure} is not finite"
        if self.below is not None and value < self.below:
            return f"{self.figure} {value:.6g} is below {self.below:g}"
        if self.above is not None and value > self.above:
            return f"{self.figure} {value:.6g} is above {self.above:g}"
        return None


@dataclass(frozen=True)
class Variant:
    """One study: what every trial of it sets, and what it searches."""

    name: str
    overrides: dict[str, Any]
    parameters: dict[str, Range]


@dataclass(frozen=True)
class Search:
    """A search file, checked."""

    path: Path
    name: str
    config: str
    overrides: dict[str, Any]
    variants: tuple[Variant, ...]
    objective: str
    direction: str
    pruning: tuple[Limit, ...]
    last: int
    baseline: bool
    sections: dict[str, Any] = field(repr=False)
    """What the run's config says about unlearning, the attack and the evaluation."""

    def study_name(self, variant: Variant) -> str:
        return self.name if variant.name == self.name else f"{self.name}-{variant.name}"

    def kl_budget(self, overrides: Mapping[str, Any]) -> float | None:
        """evaluate.kl.budget of a trial."""
        section = (self.sections.get("evaluate") or {}).get("kl") or {}
        return (self.overrides | overrides).get("evaluate.kl.budget", section.get("budget"))

    def settings(self, variant: Variant) -> dict[str, Any]:
        """All that makes scores of two sittings comparable; a study has one set of it."""
        return {
            "config": self.sections,
            "overrides": self.overrides | variant.overrides,
            "parameters": {name: asdict(range) for name, range in variant.parameters.items()},
            "objective": self.objective,
            "direction": self.direction,
            "pruning": [asdict(limit) for limit in self.pruning],
        }


def read_search(path: Path, name: str | None = None, wanted: Sequence[str] | None = None) -> Search:
    """Read and check a search file; `name` replaces its own, `wanted` names variants to keep."""
    content = read_yaml(path)
    for key in content:
        if key not in KEYS:
            raise InputError(f"{path}: {key}: unknown key; there are {', '.join(sorted(KEYS))}")
    for key in ("config", "parameters"):
        if key not in content:
            raise InputError(f"{path}: {key} is needed")
    name = name or _typed(path, "name", content.get("name", path.stem), str, "a text")
    config = _typed(path, "config", content["config"], str, "a path")
    base = read_config(Path(config))
    variants = _variants(path, content, name)
    for variant in wanted or ():
        if variant not in (known := [v.name for v in variants]):
            raise InputError(f"--variant {variant}: {path} has {', '.join(known)}")
    return Search(
        path=path,
        name=name,
        config=config,
        overrides=_mapping(path, "overrides", content.get("overrides")),
        variants=tuple(v for v in variants if wanted is None or v.name in wanted),
        objective=_typed(path, "objective", content.get("objective", "score"), str, "a text"),
        direction=_direction(path, content.get("direction", "maximize")),
        pruning=_limits(path, content.get("pruning")),
        last=_count(path, "last", content.get("last", 30)),
        baseline=_typed(path, "baseline", content.get("baseline", False), bool, "true or false"),
        sections={key: base.get(key) for key in ("seed", "unlearn", "relearn", "evaluate")},
    )


def _variants(path: Path, content: dict[str, Any], name: str) -> tuple[Variant, ...]:
    """The named variants, or without any the one that changes nothing and has the search's name."""
    ranges = _mapping(path, "parameters", content["parameters"])
    fixed = _mapping(path, "overrides", content.get("overrides"))
    changes = _mapping(path, "variants", content.get("variants")) or {name: None}
    variants = []
    for variant, change in changes.items():
        place = f"variants.{variant}"
        change = _mapping(path, place, change)
        for key in change:
            if key not in ("overrides", "parameters"):
                raise InputError(f"{path}: {place}.{key}: only overrides and parameters go here")
        changed = dict(ranges)
        for parameter, fields in _mapping(path, place, change.get("parameters")).items():
            if fields is None:
                if changed.pop(parameter, None) is None:
                    raise InputError(f"{path}: {place}.parameters.{parameter}: no such parameter")
            else:
                fields = _mapping(path, f"{place}.parameters.{parameter}", fields)
                changed[parameter] = _mapping(path, parameter, changed.get(parameter)) | fields
        if not changed:
            raise InputError(f"{path}: {place}: no parameter is left to search")
        overrides = _mapping(path, f"{place}.overrides", change.get("overrides"))
        for parameter in changed:
            if parameter in fixed | overrides:
                raise InputError(f"{path}: {place}: {parameter} is both searched and fixed")
        parameters = {key: _range(path, key, fields) for key, fields in changed.items()}
        variants.append(Variant(str(variant), overrides, parameters))
    return tuple(variants)


def _range(path: Path, name: str, fields: Any) -> Range:
    place = f"parameters.{name}"
    fields = _mapping(path, place, fields)
    for key in fields:
        if key not in RANGE_KEYS:
            raise InputError(f"{path}: {place}.{key}: unknown; a range has low, high, log, int")
    log = _typed(path, f"{place}.log", fields.get("log", False), bool, "true or false")
    integer = _typed(path, f"{place}.int", fields.get("int", False), bool, "true or false")
    low, high = (_number(path, f"{place}.{end}", fields.get(end)) for end in ("low", "high"))
    if low >= high:
        raise InputError(f"{path}: {place}: low {low:g} is not below high {high:g}")
    if log and low <= 0:
        raise InputError(f"{path}: {place}.low: a logarithmic range begins above 0")
    if integer and (low % 1 or high % 1):
        raise InputError(f"{path}: {place}: low and high of an int are integers")
    return Range(low, high, log, integer)


def _limits(path: Path, value: Any) -> tuple[Limit, ...]:
    limits = []
    for figure, bounds in _mapping(path, "pruning", value).items():
        place = f"pruning.{figure}"
        bounds = _mapping(path, place, bounds)
        if not bounds or bounds.keys() - {"below", "above"}:
            raise InputError(f"{path}: {place}: write {{below: 0.28}}, {{above: 2}} or both")
        numbers = {key: _number(path, f"{place}.{key}", bounds[key]) for key in bounds}
        limits.append(Limit(figure, numbers.get("below"), numbers.get("above")))
    return tuple(limits)


def _direction(path: Path, value: Any) -> str:
    if value not in ("maximize", "minimize"):
        raise InputError(f"{path}: direction: maximize or minimize, not {value}")
    return value


def _typed(path: Path, key: str, value: Any, kind: type, words: str) -> Any:
    if not isinstance(value, kind):
        raise InputError(f"{path}: {key}: {words} is needed, not {value}")
    return value


def _mapping(path: Path, key: str, value: Any) -> dict[str, Any]:
    """A mapping; nothing counts as an empty one."""
    return _typed(path, key, {} if value is None else value, dict, "a mapping")


def _number(path: Path, key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f"{path}: {key}: a number is needed, not {value}")
    return float(value)


def _count(path: Path, key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{path}: {key}: a count from 1 is needed, not {value}")
    return value
