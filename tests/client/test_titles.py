"""Each title of the official client's suite has a test of ours."""

from __future__ import annotations

import ast
from pathlib import Path

from client_titles import ELSEWHERE, TITLES


def docstrings() -> set[str]:
    found: set[str] = set()
    for path in Path(__file__).parent.glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                text = ast.get_docstring(node) or ""
                found.update(line.strip() for line in text.splitlines())
                found.add(" ".join(text.split()))
    return found


def test_no_title_is_without_a_test() -> None:
    assert set(TITLES) - docstrings() - set(ELSEWHERE) == set()


def test_what_is_left_out_is_a_title() -> None:
    assert set(ELSEWHERE) <= set(TITLES)
