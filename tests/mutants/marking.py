"""Marks statements, so that a run of tests records which tests run each of them.

The marked code calls `ran`, in any process of the copy of the project that has this module.
"""

from __future__ import annotations

import ast
import json
import os
from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

RECORD = "ran.jsonl"

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_PARTS = (ast.stmt, ast.excepthandler, ast.match_case)


def ran(path: str, line: int) -> None:
    """Record that the current test runs a line."""
    _record(path, line, os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0])


@cache
def _record(*ran: object) -> None:
    with (Path(__file__).parents[2] / RECORD).open("a") as file:
        file.write(json.dumps(ran) + "\n")


def marked(path: str, lines: Iterable[int], source: str) -> str:
    """Return a module that calls `ran` for these lines.

    The call is before the statement of the line; for a statement that runs at import, before the statements of functions that use
    the names it binds, or before all of them if there is none; for the first line of a function, in the function.
    """
    tree = ast.parse(source)
    # An outer statement is before an inner one.
    every = [node for node in ast.walk(tree) if isinstance(node, ast.stmt) and not _is_text(node)]
    functions = [statement for statement in every if isinstance(statement, _FUNCTIONS)]
    inside = {each for function in functions for each in ast.walk(function) if each is not function}
    in_functions = [statement for statement in every if statement in inside]
    marks: defaultdict[ast.AST, list[ast.stmt]] = defaultdict(list)
    for line in lines:
        statement = [each for each in every if each.lineno <= line <= (each.end_lineno or 0)][-1]
        if isinstance(statement, _FUNCTIONS):
            places = [each for each in statement.body if not _is_text(each)][:1]
        elif statement in inside:
            places = [statement]
        else:
            bound = _names(statement, ast.Store)
            places = [each for each in in_functions if bound & _names(each, ast.Load)] or in_functions
        call = ast.parse(f"__import__({__name__!r}, fromlist=['ran']).ran({path!r}, {line})").body[0]
        for each in places:
            marks[each].append(call)

    class Marking(ast.NodeTransformer):
        def visit(self, node: ast.AST) -> Any:
            return [*marks[node], self.generic_visit(node)] if node in marks else self.generic_visit(node)

    return ast.unparse(ast.fix_missing_locations(Marking().visit(tree)))


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _names(node: ast.AST, context: type[ast.expr_context]) -> set[str]:
    """The names and attributes in a statement, without the statements in it."""
    found = {node.id} if isinstance(node, ast.Name) and isinstance(node.ctx, context) else set()
    if isinstance(node, ast.Attribute):
        found.add(node.attr)
    children = (child for child in ast.iter_child_nodes(node) if not isinstance(child, _PARTS))
    return found.union(*(_names(child, context) for child in children))
