"""Reads variables from an environment: what is set, what is in a file, which names look misspelt."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from pydantic import SecretStr

from msight_bus.errors import ConfigError
from msight_bus.settings.problems import ConfigWarning, Problem
from msight_bus.settings.secret_file import SecretFile
from msight_bus.settings.variables import FILE_SUFFIX, Variable

_ROOT = "MSIGHT_"


class Reading(NamedTuple):
    """What an environment holds.

    Attributes:
        values: what is set, by section and field.
        problems: what could not be read, by section.
        hints: names that are nearly those of variables.
    """

    values: dict[str, dict[str, SecretStr]]
    problems: dict[str, list[Problem]]
    hints: list[ConfigWarning]


def read_environment(environ: Mapping[str, str], variables: Sequence[Variable], prefixes: Sequence[str]) -> Reading:
    """Read the variables that are set. An empty one counts as unset.

    Every value is wrapped at once, so that no frame above this one has a secret in a local variable: it may
    stand in the wrong place.

    Args:
        environ: where to look. Other ``MSIGHT_`` names in it are none of our business.
        variables: all that there are.
        prefixes: ``MSIGHT_NATS_`` and so on; see ``_misspelt``.
    """
    reading = Reading({}, {}, [ConfigWarning(hint) for hint in _misspelt(environ, variables, prefixes)])
    for variable in variables:
        values = reading.values.setdefault(variable.section, {})
        problems = reading.problems.setdefault(variable.section, [])
        given = bool(environ.get(variable.name))
        if variable.secret and environ.get(variable.name + FILE_SUFFIX):
            file_name = variable.name + FILE_SUFFIX
            if given:
                sentence = f"{variable.name} and {file_name} are both set; set one of them."
                problems.append(Problem((variable.field,), sentence))
                continue
            secret = SecretFile(file_name, environ[file_name])
            try:
                secret.get_secret_value()
            except ConfigError as error:
                problems.append(Problem((variable.field,), str(error)))
            else:
                values[variable.field] = secret
        elif given:
            values[variable.field] = SecretStr(environ[variable.name])
    return reading


_FILLERS = {"PUBSUB", "MESSAGE", "BROKER", "USE"}


def _essence(name: str) -> list[str]:
    """The words of a name without those that are easily left out: ``MSIGHT_NATS_TLS`` is meant for ``MSIGHT_NATS_USE_TLS``."""
    return [word for word in name.split("_") if word not in _FILLERS]


def _misspelt(environ: Mapping[str, str], variables: Sequence[Variable], prefixes: Sequence[str]) -> Iterator[str]:
    # Behind a common prefix only the rest of a name is compared: all names that share a long prefix are
    # alike.
    known = [name for one in variables for name in (one.name, one.name + FILE_SUFFIX)[: 1 + one.secret]]
    for name in sorted(environ):
        if not name.startswith(_ROOT) or name in known or not environ[name]:
            continue
        essence = _essence(name)
        alike = next((one for one in known if _essence(one) == essence), None)
        if alike is not None:
            yield f"{name} is no variable of msight_bus and has no effect; did you mean {alike}?"
            continue
        prefix = max((p for p in prefixes if name.startswith(p)), key=len, default=_ROOT)
        rests = [one.removeprefix(prefix) for one in known if one.startswith(prefix)]
        near = difflib.get_close_matches(
            name.removeprefix(prefix), rests, n=1, cutoff=0.85 if prefix == _ROOT else 0.75
        )
        if near:
            yield f"{name} is no variable of msight_bus and has no effect; did you mean {prefix}{near[0]}?"
