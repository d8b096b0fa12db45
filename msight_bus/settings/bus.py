"""``BusSettings``: all settings of a bus."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from msight_bus.errors import ConfigError, user_stacklevel
from msight_bus.settings.environment import Reading, read_environment
from msight_bus.settings.section import ConfigWarning, Problem, Section, Variable, variable
from msight_bus.settings.value_types import FLAG, NAME, TOPIC_MAP, TOPIC_SUFFIX, choice
from msight_bus.settings.variables import KafkaSettings, Limits, NatsSettings, RedisSettings
from msight_bus.topic_map import TopicMap

Backend = Literal["redis", "nats", "kafka", "memory"]
LogLevel = Literal["CRITICAL", "FATAL", "ERROR", "WARN", "WARNING", "INFO", "DEBUG", "NOTSET"]

_SECTIONS: tuple[type[Section], ...] = (Limits, RedisSettings, NatsSettings, KafkaSettings)


@dataclass(frozen=True, init=False)
class BusSettings(Section):
    """Typed, frozen settings, read from the environment when an instance is created.

    ``BusSettings()`` reads ``os.environ``. Keywords override the environment: ``BusSettings(backend="nats")``, some fields of a
    section, ``BusSettings(nats={"servers": ["nats://a:4222"]})``, or a whole section, ``nats=NatsSettings(...)``. In tests, pass
    an environment: ``BusSettings(environ={})``. All values are checked in the same way.

    Secrets are of type `Secret`. No error, ``repr`` or dump contains a secret or the credentials in a URL.
    """

    prefix: ClassVar[str] = "MSIGHT_"

    backend: Backend = variable(choice(Backend, "nats"), "redis", "The broker.", name="MSIGHT_PUBSUB_BACKEND")
    strict: bool = variable(
        FLAG,
        False,
        "Raise errors, not warnings, for misspelt variables and for features that the backend has only in part.",
    )
    edge_device_name: str | None = variable(NAME, None, "Name of this device in the data that it publishes.")
    logging_level: LogLevel | None = variable(
        choice(LogLevel, "INFO"), None, "Log level of nodes; unset: the levels of the program's logging configuration."
    )
    dead_letter_suffix: str = variable(TOPIC_SUFFIX, ".dead", "Suffix of the names of dead-letter topics.")
    topic_map: TopicMap = variable(TOPIC_MAP, TopicMap(), "Topics that have other names on the broker.")
    announce: bool = variable(
        FLAG,
        True,
        "Publish announcements of this program and its busiest topics every 10 s; nodes send heartbeats regardless.",
    )
    limits: Limits = field(default=Limits())
    redis: RedisSettings = field(default=RedisSettings())
    nats: NatsSettings = field(default=NatsSettings())
    kafka: KafkaSettings = field(default=KafkaSettings())

    def __init__(self, *, environ: Mapping[str, str] | None = None, **overrides: Any) -> None:
        """Read and check the settings.

        Args:
            environ: environment to read instead of ``os.environ``.
            overrides: values by field; for a section, a mapping of some fields, or an instance. None does not override.

        Raises:
            ConfigError: common variables, or variables of the chosen backend, are wrong; the error lists all of them. A wrong
                variable of another backend, or a misspelt variable without ``strict``, is a ``ConfigWarning``.
        """
        sentences, notices = self._read(os.environ if environ is None else environ, overrides)
        del environ, overrides  # tracebacks can show local variables, which contain secrets
        try:
            for notice in notices:
                warnings.warn(notice, stacklevel=user_stacklevel())
        finally:
            if sentences:  # raised even if a warning filter raises a warning
                raise ConfigError(sentences) from None

    def _read(self, environ: object, overrides: Mapping[str, Any]) -> tuple[list[str], list[Warning]]:
        """Set every field; return the problems as sentences, and the warnings."""
        given = {name: value for name, value in overrides.items() if value is not None}
        asked = [kind.section for kind in _SECTIONS if kind.section in given]
        sections = {kind: given.pop(kind.section, {}) for kind in _SECTIONS}
        found = read_environment(environ, self.variables(), [self.prefix, *(kind.prefix for kind in _SECTIONS)])
        wrong = {"": [*self._fill(found.values[""] | given), *found.problems[""]]}
        for kind, override in sections.items():
            vars(self)[kind.section], wrong[kind.section] = _read_section(kind, override, found)

        backend = [] if any("backend" in problem.fields for problem in wrong[""]) else [self.backend]
        chosen = dict.fromkeys(["", "limits", *asked, *backend])
        sentences = [problem.sentence for name in chosen for problem in wrong.get(name, ())]
        elsewhere = [(name, problem) for name in wrong if name not in chosen for problem in wrong[name]]
        warned = [f"{problem.sentence} This is an error when the backend is {name}." for name, problem in elsewhere]
        if self.strict:
            sentences += found.misspelt
        else:
            warned = found.misspelt + warned
        section = vars(self).get(self.backend)  # memory has none
        notices = section.notices() if section is not None and not sentences else ()
        return sentences, [*map(ConfigWarning, warned), *notices]

    @classmethod
    def _hint(cls, name: object, known: Iterable[str]) -> str:
        sections = [kind.section for kind in _SECTIONS if name in kind.table()]
        if not sections:
            return super()._hint(name, known)
        return f"; it is a setting of {' and of '.join(sections)}: BusSettings({sections[0]}={{{name!r}: ...}})."

    @classmethod
    def variables(cls) -> tuple[Variable, ...]:
        """Return every variable with its type, default and meaning, for documentation and ``msight-bus settings``."""
        return tuple(row for kind in (cls, *_SECTIONS) for row in kind.table().values())

    @property
    def address(self) -> str:
        """The configured broker and its addresses without credentials, for logs."""
        if self.backend == "redis":
            return f"redis://{self.redis.unix_socket_path or ','.join(map(str, self.redis.nodes))}"
        if self.backend == "nats":
            return ",".join(map(str, self.nats.servers))
        return f"kafka://{','.join(map(str, self.kafka.servers))}" if self.backend == "kafka" else "memory"


def _read_section(kind: type[Section], override: Any, found: Reading) -> tuple[Section, list[Problem]]:
    """Create a section from the environment and ``override``, which takes precedence; return the section and its problems."""
    problems: list[Problem] = []
    if not isinstance(override, Mapping | kind):
        given = type(override).__name__
        problems = [Problem((), f"BusSettings({kind.section}=...) must be a mapping or {kind.__name__}, not {given}.")]
        override = {}
    section = override
    if isinstance(override, Mapping):
        section, wrong = kind.read({**found.values[kind.section], **override})
        problems += wrong
        problems += [problem for problem in found.problems[kind.section] if override.keys().isdisjoint(problem.fields)]
    named = {field for problem in problems for field in problem.fields}
    return section, problems + [one for one in section.contradictions() if named.isdisjoint(one.fields)]
