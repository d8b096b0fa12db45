"""Sections of settings. Each field is one row of the table of variables; one method checks all values."""

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
from msight_bus.topic_map import TopicMap

FILE_SUFFIX = "_FILE"
"""Suffix for secrets: ``MSIGHT_NATS_PASSWORD_FILE`` names a file with the value of ``MSIGHT_NATS_PASSWORD``."""

_LONGEST_SHOWN = 60
_LARGEST_SHOWN = 10**_LONGEST_SHOWN  # Python raises a ValueError for numbers with thousands of digits


class ConfigWarning(UserWarning):
    """A setting has no effect, is misspelt, or is wrong for a backend that is not chosen."""


class InsecureWarning(UserWarning):
    """The configuration sends credentials unencrypted, or does not verify the server."""


class Problem(NamedTuple):
    """A problem of a configuration.

    Attributes:
        fields: the fields of the section that the problem concerns.
        sentence: text that names the variables and the remedy.
    """

    fields: tuple[str, ...]
    sentence: str


@dataclass(frozen=True, slots=True)
class Variable:
    """One environment variable.

    Attributes:
        name: name, such as ``MSIGHT_NATS_SERVERS``.
        value_type: type of the values.
        default: default as a text of the environment; None without a default.
        meaning: description in one line.
        section: attribute of ``BusSettings`` with the section; ``""`` for ``BusSettings`` itself.
        field: name of the field in the section.
    """

    name: str
    value_type: ValueType
    default: str | None
    meaning: str
    section: str
    field: str

    @property
    def secret(self) -> bool:
        """Whether the value is a secret, which is never shown and can be read from the file that ``name + "_FILE"`` names."""
        return self.value_type.secret

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the variable in an environment: its name, and for a secret the name with `FILE_SUFFIX`."""
        return (self.name, self.name + FILE_SUFFIX) if self.secret else (self.name,)

    def describe(self, reason: str, value: object = None) -> str:
        """Return a sentence about a wrong value.

        Args:
            reason: why the value is wrong; empty if the accepted values explain it.
            value: the value; not shown if it is None or can contain a secret.
        """
        parts = [f"{self.name} must be {self.value_type.accepts}, such as {self.name}={self.value_type.example}"]
        if reason:
            parts.append(reason)
        if self.value_type.shown and (shown := _show(value)):
            parts.append(f"it is {shown}")
        return "; ".join(parts) + "."


def variable(value_type: ValueType, default: Any, meaning: str, *, name: str | None = None) -> Any:
    """Declare a field of a section, which is a row of the table of variables.

    Args:
        value_type: type of the values.
        default: default; None without a default, and then code can pass None too.
        meaning: description in one line.
        name: name of the variable; default: the prefix of the section and the name of the field.
    """
    return field(default=default, metadata={"value_type": value_type, "meaning": meaning, "name": name})


@dataclass(frozen=True, init=False)
class Section:
    """A frozen group of settings.

    The constructor checks each value by itself; ``BusSettings`` also checks that the values do not contradict each other.
    """

    prefix: ClassVar[str]
    """Prefix of the names of its variables."""
    section: ClassVar[str] = ""
    """Attribute of ``BusSettings`` with this section."""

    def __init__(self, **values: Any) -> None:
        """Check the values.

        Raises:
            ConfigError: values are wrong; the error lists all of them.
        """
        problems = self._fill(values)
        del values  # tracebacks can show local variables, which contain secrets
        if problems:
            raise ConfigError([problem.sentence for problem in problems])

    @classmethod
    def read(cls, values: Mapping[Any, Any]) -> tuple[Self, list[Problem]]:
        """Return a section with the valid values, and the problems of the others."""
        section = cls.__new__(cls)
        return section, section._fill(values)

    @classmethod
    @cache
    def table(cls) -> Mapping[str, Variable]:
        """Return the variable of each field, the variables of TLS last."""
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
        """Set every field, to the default where ``values`` has no valid value; return the problems."""
        known = {row.name: row.default for row in fields(self)}
        vars(self).update(known)
        problems = []
        for name, row in self.table().items():
            if name not in values or _is_unset(values[name], known[name]):
                continue
            try:
                vars(self)[name] = row.value_type.parse(values[name])
            except ConfigError as error:  # of a file with a secret; the error names the file
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
        """Return the settings as plain values, for example for ``json.dumps``.

        ``BusSettings(environ={}, **dump)`` accepts them. Secrets are masked, and `BusSettings` does not accept a mask.
        """
        return {row.name: _plain(getattr(self, row.name)) for row in fields(self)}

    def contradictions(self) -> Iterator[Problem]:
        """Yield the problems of values that contradict each other."""
        return iter(())

    def notices(self) -> Iterator[Warning]:
        """Yield warnings about accepted values that are insecure or have no effect."""
        return iter(())

    @property
    def has_secret_files(self) -> bool:
        """Whether a secret is read from a file, which can be replaced while the program runs."""
        return any(isinstance(value, SecretFile) for value in vars(self).values())

    def _name(self, field: str) -> str:
        return self.table()[field].name


def _show(value: object) -> str:
    """Return the value for an error: truncated, or empty if it is None or can be a misplaced secret."""
    if isinstance(value, str) and any(mark in value for mark in ("@", "://", "-----", "\n")):
        return ""
    if not isinstance(value, str | int | float) or (isinstance(value, int) and abs(value) > _LARGEST_SHOWN):
        return ""
    shown = repr(value)
    return shown if len(shown) <= _LONGEST_SHOWN else shown[:_LONGEST_SHOWN] + "..."


def _is_unset(value: object, default: object) -> bool:
    """Return whether a value passed in code means that a variable without a default is unset."""
    return value is None if default is None else default == () and isinstance(value, list | tuple) and not value


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return value.dump()
    if isinstance(value, TopicMap):
        return dict(value.entries)
    if isinstance(value, tuple):
        return [entry.masked_url() if isinstance(entry, NatsServer) else str(entry) for entry in value]
    return str(value) if isinstance(value, Secret) else value


def _written(default: Any) -> str | None:
    if default is None or default == ():
        return None
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:g}" if isinstance(default, float) else str(_plain(default))
