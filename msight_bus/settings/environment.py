"""Reads variables from an environment: what is set, what is in a file, which names look misspelt."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from msight_bus.settings.secret import SecretFile
from msight_bus.settings.section import Problem, Variable

_ROOT = "MSIGHT_"
_FILLERS = {"PUBSUB", "MESSAGE", "BROKER", "USE"}


class Reading(NamedTuple):
    """What an environment holds.

    Attributes:
        values: what is set, by section and field.
        problems: variables that are set twice, by section.
        misspelt: a sentence for each name that is nearly that of a variable.
    """

    values: defaultdict[str, dict[str, Any]]
    problems: defaultdict[str, list[Problem]]
    misspelt: list[str]


def read_environment(environ: Any, variables: Sequence[Variable], prefixes: Sequence[str]) -> Reading:
    """Read the variables that are set. An empty one counts as unset.

    Args:
        environ: where to look; anything but a mapping is a problem. Other ``MSIGHT_`` names in it are none of our business.
        variables: all that there are.
        prefixes: ``MSIGHT_NATS_`` and so on; see ``_misspelt``.
    """
    reading = Reading(defaultdict(dict), defaultdict(list), [])
    if not isinstance(environ, Mapping):
        sentence = f"BusSettings(environ=...) must be a mapping, not {type(environ).__name__}."
        reading.problems[""].append(Problem((), sentence))
        return reading
    reading.misspelt.extend(_misspelt(environ, variables, prefixes))
    for variable in variables:
        given = {name: environ[name] for name in variable.names if environ.get(name, "") not in ("", None)}
        if len(given) > 1:
            sentence = f"{' and '.join(given)} are both set; set one of them."
            reading.problems[variable.section].append(Problem((variable.field,), sentence))
            continue
        for name, value in given.items():
            secret = value if name == variable.name else SecretFile(name, value)
            reading.values[variable.section][variable.field] = secret
    return reading


def _essence(name: str) -> list[str]:
    """The words of a name without those that are easily left out: ``MSIGHT_NATS_TLS`` is meant for ``MSIGHT_NATS_USE_TLS``."""
    return [word for word in name.split("_") if word not in _FILLERS]


def _misspelt(environ: Mapping[str, str], variables: Sequence[Variable], prefixes: Sequence[str]) -> Iterator[str]:
    # Behind a common prefix only the rest of a name is compared: all names that share a long prefix are alike.
    known = [name for variable in variables for name in variable.names]
    for name in sorted(name for name in environ if isinstance(name, str) and name.startswith(_ROOT) and environ[name]):
        if name in known:
            continue
        prefix = max((p for p in prefixes if name.startswith(p)), key=len, default=_ROOT)
        rests = [one.removeprefix(prefix) for one in known if one.startswith(prefix)]
        cutoff = 0.85 if prefix == _ROOT else 0.75
        near = [one for one in known if _essence(one) == _essence(name)]
        near += [
            prefix + rest for rest in difflib.get_close_matches(name.removeprefix(prefix), rests, n=1, cutoff=cutoff)
        ]
        if near:
            yield f"{name} is no variable of msight_bus and has no effect; did you mean {near[0]}?"
