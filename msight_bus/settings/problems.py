"""How wrong settings are put into words, with no word of a secret in them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from pydantic import BaseModel, SecretStr, ValidationError

from msight_bus.settings.kinds import Kind
from msight_bus.settings.variables import kind_of, variable_name

_LONGEST_SHOWN = 60


class ConfigWarning(UserWarning):
    """A setting is wrong or has no effect, though not for the backend that was chosen."""


class InsecureWarning(UserWarning):
    """What was configured can be read or altered on its way."""


class Problem(NamedTuple):
    """One thing that is wrong.

    Attributes:
        fields: the fields of the section that it is about.
        sentence: names the variables, and what to do.
    """

    fields: tuple[str, ...]
    sentence: str


def fill(init: Callable[..., None], model: type[BaseModel], values: dict[str, Any]) -> list[Problem]:
    """Call ``init(**values)``; if some are wrong, call it again without those.

    Args:
        init: initializes a ``model``.
        model: names the variables of the fields.
        values: by field.

    Returns:
        What is wrong; those fields have their defaults.
    """
    problems: list[Problem] = []
    try:
        init(**values)
    except ValidationError as error:
        problems.extend(_explain(model, error))
    # Outside of the except block: what is raised later must not have the inputs in its context.
    if problems:
        wrong = {field for problem in problems for field in problem.fields}
        init(**{field: value for field, value in values.items() if field not in wrong})
    return problems


def describe(name: str, kind: Kind, reason: str = "", value: object = None) -> str:
    """A sentence about one wrong variable.

    Args:
        name: of the variable.
        kind: what it takes.
        reason: what is wrong, if that needs saying.
        value: the wrong value; left out if it is None, or might be or hold a secret.
    """
    parts = [f"{name} must be {kind.accepts}, such as {name}={kind.example}"]
    if reason:
        parts.append(reason)
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if value is not None and kind.shown and not _may_be_secret(value):
        shown = repr(value)
        parts.append(f"it is {shown if len(shown) <= _LONGEST_SHOWN else shown[:_LONGEST_SHOWN] + '...'}")
    return "; ".join(parts) + "."


def _may_be_secret(value: object) -> bool:
    # A URL with a password in a variable for a host, or a key itself where its path belongs.
    return not isinstance(value, str | int | float) or any(mark in str(value) for mark in ("@", "://", "-----", "\n"))


def _explain(model: type[BaseModel], error: ValidationError) -> Iterator[Problem]:
    for wrong in error.errors(include_url=False):
        field = str(wrong["loc"][0])
        if field not in model.model_fields:
            near = difflib.get_close_matches(field, model.model_fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            yield Problem((field,), f"{model.__name__} has no setting {field!r}{hint}")
            continue
        reason = wrong.get("ctx", {}).get("error")
        kind = kind_of(model, field)
        yield Problem((field,), describe(variable_name(model, field), kind, str(reason or ""), wrong["input"]))
