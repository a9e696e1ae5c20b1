"""Every function of a Python file, with its comments, docstrings and blank lines removed.

The functions keep the layout of their source: comments and docstrings are cut out of the text
rather than the text being printed anew from its syntax tree, so the result reads as people write
Python and does not depend on the Python version that runs this. A function inside a function is
part of the one around it and is not listed again, which keeps the same text from landing on both
sides of a split.
"""

from __future__ import annotations

import ast
import io
import token
import tokenize
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_DOCUMENTED = (*_FUNCTIONS, ast.ClassDef)
# From Python 3.12 on, an f-string (3.14: a t-string) is several tokens between a start and an end.
_STRING_STARTS = {
    getattr(token, name) for name in ("FSTRING_START", "TSTRING_START") if hasattr(token, name)
}
_STRING_ENDS = {
    getattr(token, name) for name in ("FSTRING_END", "TSTRING_END") if hasattr(token, name)
}


@dataclass
class _Line:
    """One source line and what is to become of it."""

    text: str
    # Cuts are (first column, column after the last, replacement) in characters.
    cuts: list[tuple[int, int, str]] = field(default_factory=list)
    # A string that spans lines is open at the start or the end: the spaces there belong to its
    # value.
    starts_in_string: bool = False
    ends_in_string: bool = False

    def cleaned(self, indent: str) -> str | None:
        """Apply the cuts, take the function's indentation away; None when nothing is left."""
        text = self.text
        for first, last, replacement in sorted(self.cuts, reverse=True):
            text = text[:first] + replacement + text[last:]
        if not self.ends_in_string:
            text = text.rstrip()
        if self.starts_in_string:
            return text
        if not text:
            return None
        # A line that continues a bracket may be indented less than the function.
        return text[len(indent) :] if text.startswith(indent) else text.lstrip()


def read_functions(path: Path) -> list[str] | None:
    """Return the functions of a file in source order, or None when the file does not parse."""
    try:
        with tokenize.open(path) as file:
            source = file.read()
        return extract_functions(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError, tokenize.TokenError):
        # SyntaxError covers an unknown encoding, ValueError NUL bytes and undecodable ones;
        # MemoryError is how
        # older parsers say "nested too deeply".
        return None


def extract_functions(source: str) -> list[str]:
    """Return the functions of Python source text; SyntaxError and the like pass through."""
    with warnings.catch_warnings():
        # Files for other versions warn about escapes and comparisons; that is theirs to mend.
        warnings.simplefilter("ignore")
        tree = ast.parse(source)
    lines = [_Line(text) for text in source.split("\n")]
    _mark_tokens(lines, source)
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            _cut_docstring(lines, node)
    return [_function_text(lines, node) for node in _outer_functions(tree)]


def _outer_functions(node: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield functions and methods in source order, not looking inside functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _FUNCTIONS):
            yield child
        else:
            yield from _outer_functions(child)


def _mark_tokens(lines: list[_Line], source: str) -> None:
    """Cut the comments and mark the lines that a string spans."""
    open_strings: list[int] = []
    for tok in tokenize.generate_tokens(io.StringIO(source).readline):
        first, last = tok.start[0], tok.end[0]
        if tok.type == token.COMMENT:
            lines[first - 1].cuts.append((tok.start[1], tok.end[1], ""))
        elif tok.type == token.STRING:
            _mark_string(lines, first, last)
        elif tok.type in _STRING_STARTS:
            open_strings.append(first)
        elif tok.type in _STRING_ENDS:
            _mark_string(lines, open_strings.pop(), last)


def _mark_string(lines: list[_Line], first: int, last: int) -> None:
    for number in range(first, last):
        lines[number - 1].ends_in_string = True
        lines[number].starts_in_string = True


def _cut_docstring(
    lines: list[_Line], node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
) -> None:
    """Cut the docstring statement, leaving `pass` where the statement is needed for the syntax."""
    statement = node.body[0]
    first, last = statement.lineno - 1, statement.end_lineno - 1
    start = _characters(lines[first].text, statement.col_offset)
    end = _characters(lines[last].text, statement.end_col_offset)
    rest = lines[last].text[end:].lstrip()
    shares_line = bool(lines[first].text[:start].strip()) or bool(rest and not rest.startswith("#"))
    replacement = "pass" if len(node.body) == 1 or shares_line else ""
    if rest.startswith(";") and first != last:
        replacement += " \\"  # what follows on the docstring's last line still belongs to this one
    for number in range(first, last + 1):
        line = lines[number]
        begin = start if number == first else 0
        stop = end if number == last else len(line.text)
        # Comments between the parts of an implicitly joined docstring go with it.
        line.cuts = [cut for cut in line.cuts if cut[0] >= stop]
        line.cuts.append((begin, stop, replacement if number == first else ""))
        line.starts_in_string = line.starts_in_string and number == first
        line.ends_in_string = line.ends_in_string and number == last


def _characters(text: str, utf8_offset: int) -> int:
    """Turn a column of the syntax tree, in UTF-8 bytes, into one in characters."""
    return len(text.encode("utf-8")[:utf8_offset].decode("utf-8"))


def _function_text(lines: list[_Line], node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    first = min([node.lineno] + [decorator.lineno for decorator in node.decorator_list])
    head = lines[first - 1].text
    indent = head[: len(head) - len(head.lstrip())]
    cleaned = [line.cleaned(indent) for line in lines[first - 1 : node.end_lineno]]
    return "\n".join(text for text in cleaned if text is not None)
