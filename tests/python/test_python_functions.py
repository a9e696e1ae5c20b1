"""Python functions without comments, docstrings and blank lines."""

from __future__ import annotations

import ast
import sysconfig
import tokenize
import warnings
from pathlib import Path

import pytest

from python_functions import extract_functions, read_functions


def functions(source: str) -> list[str]:
    return extract_functions(source)


def test_comments_docstrings_and_blank_lines_go() -> None:
    source = '''\
"""Module text stays out."""
import os

# A comment.
@decorated  # why
def first(a,
  b=2):  # signature
    """Say
    more.
    """

    # only a comment
    x = a   +  b  # layout inside a line stays

    return "# no comment", \'\'\'"""not a docstring"""\'\'\'


class Thing:
    """A class."""

    async def method(self):
        r"""Raw."""
        def inner():
            "Inner."
            return 1

        return inner
'''
    assert functions(source) == [
        "@decorated\ndef first(a,\n  b=2):\n    x = a   +  b\n"
        '    return "# no comment", \'\'\'"""not a docstring"""\'\'\'',
        "async def method(self):\n    def inner():\n        return 1\n    return inner",
    ]


def test_functions_in_blocks_are_found_in_source_order() -> None:
    source = (
        "try:\n    def a(): return 1\nexcept E:\n    def b(): return 2\n"
        "if x:\n    class C:\n        def c(self): pass\n"
    )
    assert [text.split("(")[0] for text in functions(source)] == ["def a", "def b", "def c"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('def f():\n    """Only this."""\n', "def f():\n    pass"),
        ('def f(): "Only this."\n', "def f(): pass"),
        ('def f(): "This"; return 1\n', "def f(): pass; return 1"),
        ('def f():\n    "This"; return 1  # one\n', "def f():\n    pass; return 1"),
        ('def f():\n    """This\n    and"""; return 1\n', "def f():\n    pass \\\n; return 1"),
        ('def f():\n    "One " "and " \\\n    "two."\n    return 1\n', "def f():\n    return 1"),
        ('def f():\n    ("One "  # why\n     "two.")\n    return 1\n', "def f():\n    return 1"),
        ('def f():\n    "Dé"  # é\n    return "é"  # é\n', 'def f():\n    return "é"'),
        (
            'def f():\n    f"No docstring {1}"\n    return 1\n',
            'def f():\n    f"No docstring {1}"\n    return 1',
        ),
        ('def f():\n    b"No docstring"\n', 'def f():\n    b"No docstring"'),
        ("if 1:\n\tdef f():\n\t\t# x\n\t\treturn 1\n", "def f():\n\treturn 1"),
        ("def f():\n    return 1\n    # trailing\n# out\n", "def f():\n    return 1"),
    ],
)
def test_corners(source: str, expected: str) -> None:
    (text,) = functions(source)
    assert text == expected
    ast.parse(text)


@pytest.mark.parametrize("prefix", ["", "f"])
def test_strings_over_lines_keep_every_character(prefix: str) -> None:
    body = f'x = {prefix}"""a  \n\n  # not a comment\n        b  \n    """'
    source = f"class C:\n    def f(self):\n        {body}\n        return x\n"
    (text,) = functions(source)
    assert text == f"def f(self):\n    {body}\n    return x"


@pytest.mark.parametrize(
    "content",
    [
        b"print 'two'\n",
        b"def f(:\n",
        b"x = '\xff'\n",
        b"# coding: unheard-of\n",
        b"a = 1\0\n",
        b"(" * 5000,
    ],
)
def test_files_that_do_not_parse_are_left_out(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.py"
    path.write_bytes(content)
    assert read_functions(path) is None


def test_declared_encoding_and_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_bytes(b"# -*- coding: latin-1 -*-\r\ndef f():\r\n    'doc'\r\n    return '\xe9'\r\n")
    assert read_functions(path) == ["def f():\n    return 'é'"]


def without_docstrings(node: ast.AST) -> str:
    """The syntax tree's own account of what should be left; `pass` may stand for a docstring."""
    for inner in ast.walk(node):
        if isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            if ast.get_docstring(inner, clean=False) is not None:
                del inner.body[0]
            inner.body = [part for part in inner.body if not isinstance(part, ast.Pass)]
    return ast.dump(node)


def outer_functions(node: ast.AST) -> list[ast.AST]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return [node]
    return [found for child in ast.iter_child_nodes(node) for found in outer_functions(child)]


def test_standard_library_keeps_its_meaning() -> None:
    """On real code: what is left parses to the same tree as the source less its docstrings."""
    count = 0
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("[a-d]*.py")):
        texts = read_functions(path)
        with tokenize.open(path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            nodes = outer_functions(ast.parse(file.read()))
            assert len(texts) == len(nodes)
            for text, node in zip(texts, nodes):
                count += 1
                assert without_docstrings(ast.parse(text).body[0]) == without_docstrings(node), (
                    path,
                    node.lineno,
                )
    assert count > 300
