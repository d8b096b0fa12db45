"""Read variables from an environment: values, files of secrets, and misspelt names."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from msight_bus.settings.secret import SecretFile
from msight_bus.settings.section import Problem, Variable

_ROOT = "MSIGHT_"
_OPTIONAL_WORDS = {"PUBSUB", "MESSAGE", "BROKER", "USE"}


class Reading(NamedTuple):
    """The variables found in an environment.

    Attributes:
        values: values by section and field.
        problems: variables that are set twice, by section.
        misspelt: a sentence for each name that is similar to the name of a variable.
    """

    values: defaultdict[str, dict[str, Any]]
    problems: defaultdict[str, list[Problem]]
    misspelt: list[str]


def read_environment(environ: Any, variables: Sequence[Variable], prefixes: Sequence[str]) -> Reading:
    """Read the variables that are set. An empty variable is unset.

    Args:
        environ: the environment; a value that is not a mapping is a problem. Unknown ``MSIGHT_`` names that are not similar to a
            variable are ignored, because other MSight programs use them.
        variables: all variables.
        prefixes: prefixes of the sections, such as ``MSIGHT_NATS_``; see ``_misspelt``.
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


def _significant_words(name: str) -> list[str]:
    """Return the words of a name without `_OPTIONAL_WORDS`: ``MSIGHT_NATS_TLS`` and ``MSIGHT_NATS_USE_TLS`` are equal."""
    return [word for word in name.split("_") if word not in _OPTIONAL_WORDS]


def _misspelt(environ: Mapping[str, str], variables: Sequence[Variable], prefixes: Sequence[str]) -> Iterator[str]:
    # Compare only the part after the prefix, because names with the same long prefix are all similar.
    known = [name for variable in variables for name in variable.names]
    for name in sorted(name for name in environ if isinstance(name, str) and name.startswith(_ROOT) and environ[name]):
        if name in known:
            continue
        prefix = max((p for p in prefixes if name.startswith(p)), key=len, default=_ROOT)
        rests = [one.removeprefix(prefix) for one in known if one.startswith(prefix)]
        cutoff = 0.85 if prefix == _ROOT else 0.75
        near = [one for one in known if _significant_words(one) == _significant_words(name)]
        near += [
            prefix + rest for rest in difflib.get_close_matches(name.removeprefix(prefix), rests, n=1, cutoff=cutoff)
        ]
        if near:
            yield f"{name} is not a variable of msight_bus and has no effect; did you mean {near[0]}?"
