"""The environment variable of each field: its name, and the table of all of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel

from msight_bus.settings.kinds import Kind

FILE_SUFFIX = "_FILE"
"""``MSIGHT_NATS_PASSWORD_FILE`` names a file that holds ``MSIGHT_NATS_PASSWORD``; secrets have such a
twin.
"""


@dataclass(frozen=True, slots=True)
class Variable:
    """One environment variable.

    Attributes:
        name: such as ``MSIGHT_NATS_SERVERS``.
        type: what it takes, in words.
        default: as it would be written in the environment; None if it has none.
        meaning: one line.
        secret: it is never shown, and ``name + "_FILE"`` may name a file that holds it.
        section: the attribute of ``BusSettings`` that has it, ``""`` for ``BusSettings`` itself.
        field: its name there.
    """

    name: str
    type: str
    default: str | None
    meaning: str
    secret: bool
    section: str
    field: str


def variable_name(model: type[BaseModel], field: str) -> str:
    """The variable of a field: the model's prefix and the field's name, unless the field says otherwise."""
    extra = model.model_fields[field].json_schema_extra
    if isinstance(extra, dict) and "variable" in extra:
        return str(extra["variable"])
    prefix: str = getattr(model, "prefix")  # noqa: B009  # BusSettings and every Section have one
    return prefix + field.upper()


def find_kind(model: type[BaseModel], field: str) -> Kind | None:
    """What a field takes; None for a section, which is no variable."""
    info = model.model_fields[field]
    inner = [mark for member in get_args(info.annotation) for mark in getattr(member, "__metadata__", ())]
    marks = [*info.metadata, *inner]  # that of an optional field is inside of its union
    return next((mark for mark in marks if isinstance(mark, Kind)), None)


def kind_of(model: type[BaseModel], field: str) -> Kind:
    """What a field takes that is a variable."""
    kind = find_kind(model, field)
    if kind is None:
        raise LookupError(f"{model.__name__}.{field} is no variable")
    return kind


def list_variables(model: type[BaseModel], section: str) -> Iterator[Variable]:
    """The variables of one model in the order of its fields, those of TLS last."""
    for field, info in sorted(model.model_fields.items(), key=lambda item: "tls_" in f"{item[0]}_"):
        kind = find_kind(model, field)
        if kind is not None:
            yield Variable(
                name=variable_name(model, field),
                type=kind.accepts,
                default=_written(info.default),
                meaning=info.description or "",
                secret=kind.secret,
                section=section,
                field=field,
            )


def _written(default: Any) -> str | None:
    if default is None or default == ():
        return None
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        return str([str(entry) for entry in default])
    return f"{default:g}" if isinstance(default, float) else str(default)
