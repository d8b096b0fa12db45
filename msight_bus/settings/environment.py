"""Reads variables from an environment: what is set, what is in a file, which names look misspelt."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import SecretStr

from msight_bus.settings.kinds import MAX_TEXT
from msight_bus.settings.problems import ConfigWarning, Problem
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
            secret, failure = _read_file(environ[file_name])
            if secret is None:
                example = f"{file_name}=/run/secrets/bus"
                sentence = f"{file_name} must be the path of a file, such as {example}; {failure}."
                problems.append(Problem((variable.field,), sentence))
            else:
                values[variable.field] = secret
        elif given:
            values[variable.field] = SecretStr(environ[variable.name])
    return reading


def _misspelt(environ: Mapping[str, str], variables: Sequence[Variable], prefixes: Sequence[str]) -> Iterator[str]:
    # Behind a common prefix only the rest of a name is compared: all names that share a long prefix are
    # alike.
    known = [name for one in variables for name in (one.name, one.name + FILE_SUFFIX)[: 1 + one.secret]]
    for name in sorted(environ):
        if not name.startswith(_ROOT) or name in known or not environ[name]:
            continue
        prefix = max((p for p in prefixes if name.startswith(p)), key=len, default=_ROOT)
        rests = [one.removeprefix(prefix) for one in known if one.startswith(prefix)]
        near = difflib.get_close_matches(
            name.removeprefix(prefix), rests, n=1, cutoff=0.85 if prefix == _ROOT else 0.75
        )
        if near:
            yield f"{name} is no variable of msight_bus and has no effect; did you mean {prefix}{near[0]}?"


def _read_file(path: str) -> tuple[SecretStr | None, str]:
    """The secret in a file without the newline at its end, or None and why there is none. Never raises."""
    try:
        file = Path(path)
        if not file.is_file():  # a pipe or a device might never end
            return None, "there is no such file"
        with file.open("rb") as stream:
            content = stream.read(MAX_TEXT + 1)
        if len(content) > MAX_TEXT:
            return None, f"the file has more than {MAX_TEXT} bytes"
        text = content.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        return None, "the file is not UTF-8"
    except (OSError, ValueError) as error:
        return None, f"the file cannot be read ({getattr(error, 'strerror', None) or 'no valid path'})"
    return (SecretStr(text), "") if text else (None, "the file is empty")
