"""YAML as the program reads it: for every YAML file that the tools read.

Plain scalars are null (nothing, ~, null, Null, NULL), true and false, decimal numbers (1, -0.5, .5,
1e-3), or text: on, yes, True, 0x10, 1_000, 1:30 and 2024-01-01 are texts. Where dialects of YAML
disagree about a number, 010, it is an error. Anchors, aliases, tags, a key given twice and a second
document are errors too: a file means what its text says, line by line.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from text_records import InputError

_NULL = re.compile(r"(~|null|Null|NULL)?$")
_BOOL = re.compile(r"(true|false)$")
_INTEGER = re.compile(r"-?[0-9]+$")
_NUMBER = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?$")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]")
_TAGS = (("null", _NULL), ("bool", _BOOL), ("int", _INTEGER), ("float", _NUMBER))
_PLAIN = re.compile(r"[\w./][\w./+-]*")


class Loader(yaml.SafeLoader):
    """Nodes and values by the rules above."""

    yaml_implicit_resolvers: dict[str, list] = {
        None: [(f"tag:yaml.org,2002:{kind}", pattern) for kind, pattern in _TAGS]
    }

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.anchor:
            words = "anchors (&) and aliases (*) are not supported: write the value out"
            raise yaml.MarkedYAMLError(problem=words, problem_mark=event.start_mark)
        if event.tag:
            words = "tags (!) are not supported"
            raise yaml.MarkedYAMLError(problem=words, problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for key, value in node.value:
            mark = key.start_mark
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be a name", problem_mark=mark)
            if key.value in mapping:
                words = f"{key.value} is given twice"
                raise yaml.MarkedYAMLError(problem=words, problem_mark=mark)
            mapping[key.value] = self.construct_object(value, deep=True)
        return mapping

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """No merge keys: << is a key as any other."""

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        if _LEADING_ZERO.match(node.value):
            words = f"{node.value}: a number with a leading zero: write it without"
            raise yaml.MarkedYAMLError(problem=words, problem_mark=node.start_mark)
        return int(node.value) if _INTEGER.match(node.value) else float(node.value)


def _construct_mapping(loader: Loader, node: yaml.MappingNode) -> dict[str, Any]:
    return loader.construct_mapping(node)


Loader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)
for _kind in ("int", "float"):
    Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", Loader.construct_number)


class _TextLoader(Loader):
    """Every scalar as it was written."""

    yaml_implicit_resolvers: dict[str, list] = {}


def open_loader(path: Path, loader: type[Loader] = Loader) -> Loader:
    """A loader of the file's text."""
    try:
        return loader(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8") from None
    except yaml.YAMLError as error:
        raise yaml_error(path, error) from None


def yaml_error(path: Path, error: yaml.YAMLError) -> InputError:
    """What to raise for an error of the parser: one line, with the place."""
    mark = getattr(error, "problem_mark", None)
    if isinstance(error, yaml.MarkedYAMLError):
        return InputError(f"{path}:{mark.line + 1 if mark else 1}: {error.problem}")
    return InputError(f"{path}: {' '.join(str(error).split())}")


def read_texts(path: Path) -> dict[str, Any]:
    """A YAML file whose top is a mapping, its values as they were written, to be shown."""
    return _read(path, _TextLoader)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file whose top is a mapping."""
    return _read(path, Loader)


def _read(path: Path, kind: type[Loader]) -> dict[str, Any]:
    loader = open_loader(path, kind)
    try:
        content = loader.get_single_data()
    except yaml.YAMLError as error:
        raise yaml_error(path, error) from None
    except RecursionError:
        raise InputError(f"{path}: nested too deeply") from None
    finally:
        loader.dispose()
    if not isinstance(content, dict):
        raise InputError(f"{path}: keys and values are needed")
    return content


def read_config(path: Path) -> dict[str, Any]:
    """A run's config in sections, whichever of its keys are written with dots."""
    sections: dict[str, Any] = {}
    for key, value in read_yaml(path).items():
        _put(path, sections, key, value)
    return sections


def _put(path: Path, sections: dict[str, Any], key: str, value: Any) -> None:
    section, dot, name = key.partition(".")
    if not dot and isinstance(value, dict):
        sections.setdefault(key, {})
        for name, inner in value.items():
            _put_once(path, sections[key], name, inner, f"{key}.{name}")
    elif not dot:
        _put_once(path, sections, key, value, key)
    else:
        _put_once(path, sections.setdefault(section, {}), name, value, key)


def _put_once(path: Path, into: Any, name: str, value: Any, shown: str) -> None:
    if not isinstance(into, dict) or name in into:
        raise InputError(f"{path}: {shown} is given twice")
    into[name] = value


def as_argument(value: Any) -> str:
    """A value as in key=value on the program's command line, read back as the same value."""
    if isinstance(value, list):
        return f"[{', '.join(map(as_argument, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {as_argument(v)}" for k, v in value.items()) + "}"
    if not isinstance(value, str):
        return yaml_number(value)
    plain = _PLAIN.fullmatch(value) and not any(pattern.match(value) for _, pattern in _TAGS)
    return value if plain else _quoted(value)


def yaml_number(value: float | bool | None) -> str:
    """A number, true, false or null."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _quoted(text: str) -> str:
    """In single quotes nothing is special but the quote itself."""
    return "'" + text.replace("'", "''") + "'"
