"""The mutations of a module: one operator, number, condition or statement changed, where a change can alter what the code does.

Annotations, decorators, texts, log lines and `__repr__` are left alone: a change there is either no change of behaviour or not
worth a test.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

_COMPARISONS: dict[type[ast.cmpop], tuple[str, str]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: (r"is\s+not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: (r"not\s+in", "in"),
}
_ARITHMETIC: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: (r"\+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: (r"\*", "+"),
    ast.FloorDiv: ("//", "*"),
    ast.Div: ("/", "*"),
    ast.Mod: ("%", "*"),
}
_BOOLEAN: dict[type[ast.boolop], tuple[str, str]] = {ast.And: ("and", "or"), ast.Or: ("or", "and")}
_EXTREMES = {"min": "max", "max": "min"}
_LOGS = {"log", "logger", "warnings"}


@dataclass(frozen=True)
class Mutation:
    """One change of a module.

    Attributes:
        line: where it is.
        what: the change in words.
        start: the first byte that is replaced.
        end: the byte behind the last one.
        text: what replaces them.
    """

    line: int
    what: str
    start: int
    end: int
    text: str

    def apply(self, source: str) -> str:
        """Return the changed source."""
        code = source.encode()
        return (code[: self.start] + self.text.encode() + code[self.end :]).decode()


def mutations(source: str) -> list[Mutation]:
    """Return the mutations of a module, in the order of their places."""
    return sorted(_Mutations(source).all(), key=lambda each: (each.start, each.end, each.text))


class _Mutations:
    def __init__(self, source: str) -> None:
        self._tree = ast.parse(source)
        self._code = source.encode()
        self._lines = [0]
        for line in self._code.splitlines(keepends=True):
            self._lines.append(self._lines[-1] + len(line))

    def all(self) -> Iterator[Mutation]:
        return self._below(self._tree)

    def _below(self, node: ast.AST) -> Iterator[Mutation]:
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "type_params", "format_spec"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST) and not _is_left_alone(child):
                    yield from self._of(child)
                    if not isinstance(child, ast.Raise):
                        yield from self._below(child)

    def _of(self, node: ast.AST) -> Iterator[Mutation]:
        match node:
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                for operator, before, after in zip(ops, [left, *comparators], comparators, strict=False):
                    yield from self._between(before, after, _COMPARISONS[type(operator)])
            case ast.BoolOp(op=operator, values=values):
                for before, after in pairwise(values):
                    yield from self._between(before, after, _BOOLEAN[type(operator)])
            case ast.BinOp(left=left, op=operator, right=right) if not (_is_text(left) or _is_text(right)):
                yield from self._between(left, right, _ARITHMETIC.get(type(operator)))
            case ast.AugAssign(target=target, op=operator, value=value):
                yield from self._between(target, value, _ARITHMETIC.get(type(operator)))
                yield self._deleted(node)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                yield self._replaced(node, self._text(operand), "`not` dropped")
            case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test):
                if not isinstance(test, ast.Compare | ast.BoolOp | ast.UnaryOp | ast.Constant):
                    yield self._replaced(test, f"(not ({self._text(test)}))", f"`{self._text(test)}` negated")
            case ast.Constant(value=bool(value)):
                yield self._replaced(node, str(not value), f"`{value}` to `{not value}`")
            case ast.Constant(value=int(value) | float(value)):
                yield self._replaced(node, repr(value + 1), f"`{value}` to `{value + 1}`")
            case ast.Call(func=ast.Name(id=name) as function) if name in _EXTREMES:
                yield self._replaced(function, _EXTREMES[name], f"`{name}` to `{_EXTREMES[name]}`")
            case ast.Expr(value=ast.Call() | ast.Await()) | ast.Raise() | ast.Delete() | ast.Continue() | ast.Break():
                yield self._deleted(node)
            case ast.Assign(targets=[ast.Attribute() | ast.Subscript(), *_]):
                yield self._deleted(node)

    def _between(self, before: ast.expr, after: ast.expr, change: tuple[str, str] | None) -> Iterator[Mutation]:
        """Replace the operator between two operands."""
        if change is None:
            return
        pattern, text = change
        start, end = self._at(before.end_lineno, before.end_col_offset), self._at(after.lineno, after.col_offset)
        word = rf"\b{pattern}\b" if pattern[0].isalpha() else pattern
        if found := re.search(word.encode(), self._code[start:end]):
            what = f"`{found[0].decode()}` to `{text}`"
            yield Mutation(before.end_lineno or 0, what, start + found.start(), start + found.end(), text)

    def _deleted(self, node: ast.stmt) -> Mutation:
        first = self._text(node).splitlines()[0]
        return self._replaced(node, "pass", f"`{first}` dropped")

    def _replaced(self, node: ast.stmt | ast.expr, text: str, what: str) -> Mutation:
        start, end = self._at(node.lineno, node.col_offset), self._at(node.end_lineno, node.end_col_offset)
        return Mutation(node.lineno, what, start, end, text)

    def _text(self, node: ast.stmt | ast.expr) -> str:
        start, end = self._at(node.lineno, node.col_offset), self._at(node.end_lineno, node.end_col_offset)
        return self._code[start:end].decode()

    def _at(self, line: int | None, column: int | None) -> int:
        assert line is not None
        assert column is not None
        return self._lines[line - 1] + column


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def _is_left_alone(node: ast.AST) -> bool:
    match node:
        case ast.FunctionDef(name="__repr__") | ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return True
        case ast.Expr(value=ast.Call(func=function)):
            return not _LOGS.isdisjoint(re.findall(r"[a-z]+", ast.unparse(function)))
        case ast.Assign(targets=[ast.Name(id=name)]):
            return name.startswith("__")
    return False
