"""Python code without comments, as the paper's study made it: by expressions, without parsing.

Unlike python_functions.py it takes code that is one function already, in any version of Python,
and cuts inside of strings too where they hold a "#": the study's data set is like that.
"""

from __future__ import annotations

import re


def strip_python(code: str) -> str:
    """Return the code without strings in triple quotes, comments and blank lines."""
    for quotes in ('"""', "'''"):
        code = re.sub(f"{quotes}.*?{quotes}", "", code, flags=re.DOTALL)
    code = re.sub("#[^\n]*", "", code)
    return "\n".join(line for line in code.split("\n") if line.strip()).strip()
