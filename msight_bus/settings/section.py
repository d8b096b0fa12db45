"""Groups of settings: each field is one row of the table of variables, and one function checks all values."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, ClassVar, NamedTuple, Self

from msight_bus.errors import ConfigError
from msight_bus.settings.addresses import NatsServer
from msight_bus.settings.secret import Secret, SecretFile
from msight_bus.settings.value_types import ValueType

FILE_SUFFIX = "_FILE"
"""``MSIGHT_NATS_PASSWORD_FILE`` names a file that holds ``MSIGHT_NATS_PASSWORD``; so for each secret."""

_LONGEST_SHOWN = 60
_LARGEST_SHOWN = 10**_LONGEST_SHOWN  # Python refuses to write numbers of thousands of digits


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


@dataclass(frozen=True, slots=True)
class Variable:
    """One environment variable.

    Attributes:
        name: such as ``MSIGHT_NATS_SERVERS``.
        value_type: what it takes.
        default: as it would be written in the environment; None if it has none.
        meaning: one line.
        section: the attribute of ``BusSettings`` that has it, ``""`` for ``BusSettings`` itself.
        field: its name there.
    """

    name: str
    value_type: ValueType
    default: str | None
    meaning: str
    section: str
    field: str

    @property
    def secret(self) -> bool:
        """Whether it is never shown, and ``name + "_FILE"`` may name a file that holds it."""
        return self.value_type.secret

    @property
    def names(self) -> tuple[str, ...]:
        """The names that an environment may have for it: its own, and for a secret that of its file."""
        return (self.name, self.name + FILE_SUFFIX) if self.secret else (self.name,)

    def describe(self, reason: str, value: object = None) -> str:
        """A sentence about a wrong value.

        Args:
            reason: what is wrong, if that needs saying.
            value: left out if it is None, or might be or hold a secret.
        """
        parts = [f"{self.name} must be {self.value_type.accepts}, such as {self.name}={self.value_type.example}"]
        if reason:
            parts.append(reason)
        if self.value_type.shown and (shown := _show(value)):
            parts.append(f"it is {shown}")
        return "; ".join(parts) + "."


def variable(value_type: ValueType, default: Any, meaning: str, *, name: str | None = None) -> Any:
    """A row of the table of variables: a field of a section.

    Args:
        value_type: what it takes.
        default: None if it has none; then None may be given in code as well.
        meaning: one line.
        name: of the variable, if it is not the section's prefix and the field's name.
    """
    return field(default=default, metadata={"value_type": value_type, "meaning": meaning, "name": name})


@dataclass(frozen=True, init=False)
class Section:
    """A frozen group of settings.

    Made by hand, its values are checked one by one; ``BusSettings`` also checks that they agree with each other.
    """

    prefix: ClassVar[str]
    """What the names of its variables begin with."""
    section: ClassVar[str] = ""
    """The attribute of ``BusSettings`` that has it."""

    def __init__(self, **values: Any) -> None:
        """Check the values.

        Raises:
            ConfigError: some are wrong; all of them are named.
        """
        problems = self._fill(values)
        del values  # a traceback with local variables would show the secrets in them
        if problems:
            raise ConfigError([problem.sentence for problem in problems])

    @classmethod
    def read(cls, values: Mapping[Any, Any]) -> tuple[Self, list[Problem]]:
        """Return a section of the values that are right, and what is wrong with the others."""
        section = cls.__new__(cls)
        return section, section._fill(values)

    @classmethod
    @cache
    def table(cls) -> Mapping[str, Variable]:
        """The variable of each field, those of TLS last."""
        rows = sorted((row for row in fields(cls) if row.metadata), key=lambda row: "tls_" in f"{row.name}_")
        return {
            row.name: Variable(
                name=row.metadata["name"] or cls.prefix + row.name.upper(),
                value_type=row.metadata["value_type"],
                default=_written(row.default),
                meaning=row.metadata["meaning"],
                section=cls.section,
                field=row.name,
            )
            for row in rows
        }

    def _fill(self, values: Mapping[Any, Any]) -> list[Problem]:
        """Set every field, to its default where ``values`` has nothing or something wrong; return what is wrong."""
        known = {row.name: row.default for row in fields(self)}
        vars(self).update(known)
        problems = []
        for name, row in self.table().items():
            if name not in values or _is_unset(values[name], known[name]):
                continue
            try:
                vars(self)[name] = row.value_type.parse(values[name])
            except ConfigError as error:  # a secret's file, which the error names
                problems.append(Problem((name,), str(error)))
            except ValueError as error:
                problems.append(Problem((name,), row.describe(str(error), values[name])))
        for name in values:
            if name not in known:
                hint = self._hint(name, known)
                problems.append(Problem((), f"{type(self).__name__} has no setting {_show(name) or '...'}{hint}"))
        return problems

    @classmethod
    def _hint(cls, name: object, known: Iterable[str]) -> str:
        """The end of the sentence about an unknown setting."""
        near = difflib.get_close_matches(name, known, n=1) if isinstance(name, str) else []
        return f"; did you mean {near[0]!r}?" if near else "."

    def dump(self) -> dict[str, Any]:
        """Return the settings as plain values, as for ``json.dumps``.

        ``BusSettings(environ={}, **dump)`` takes them. Secrets are masked, and a mask is refused.
        """
        return {row.name: _plain(getattr(self, row.name)) for row in fields(self)}

    def contradictions(self) -> Iterator[Problem]:
        """Values that are right by themselves and wrong together."""
        return iter(())

    def notices(self) -> Iterator[Warning]:
        """Warnings about what is allowed and yet not what one would want."""
        return iter(())

    @property
    def has_secret_files(self) -> bool:
        """Whether a secret comes from a file, which may be replaced while the program runs."""
        return any(isinstance(value, SecretFile) for value in vars(self).values())

    def _name(self, field: str) -> str:
        return self.table()[field].name


def _show(value: object) -> str:
    """A value as an error shows it: short, or empty if it is None or may be a secret in the wrong place."""
    if isinstance(value, str) and any(mark in value for mark in ("@", "://", "-----", "\n")):
        return ""
    if not isinstance(value, str | int | float) or (isinstance(value, int) and abs(value) > _LARGEST_SHOWN):
        return ""
    shown = repr(value)
    return shown if len(shown) <= _LONGEST_SHOWN else shown[:_LONGEST_SHOWN] + "..."


def _is_unset(value: object, default: object) -> bool:
    """Whether a value given in code says that a variable without a default is not set."""
    return value is None if default is None else default == () and isinstance(value, list | tuple) and not value


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return value.dump()
    if isinstance(value, tuple):
        return [entry.masked_url() if isinstance(entry, NatsServer) else str(entry) for entry in value]
    return str(value) if isinstance(value, Secret) else value


def _written(default: Any) -> str | None:
    if default is None or default == ():
        return None
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:g}" if isinstance(default, float) else str(_plain(default))
