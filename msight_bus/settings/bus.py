"""``BusSettings``: everything that a bus is told from outside."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from msight_bus.errors import ConfigError
from msight_bus.settings.environment import Reading, read_environment
from msight_bus.settings.kafka import KafkaSettings
from msight_bus.settings.kinds import Flag, LogLevel, Name, choice
from msight_bus.settings.limits import Limits
from msight_bus.settings.nats import NatsSettings
from msight_bus.settings.problems import ConfigWarning, Problem, fill
from msight_bus.settings.redis import RedisSettings
from msight_bus.settings.section import Section
from msight_bus.settings.variables import Variable, list_variables

Backend = Literal["redis", "nats", "kafka", "memory"]

_SECTIONS: dict[str, type[Section]] = {
    "limits": Limits,
    "redis": RedisSettings,
    "nats": NatsSettings,
    "kafka": KafkaSettings,
}


class BusSettings(BaseSettings):
    """Typed, frozen settings, read from the environment when an instance is made.

    ``BusSettings()`` reads ``os.environ``. Keywords override it: ``BusSettings(backend="nats")``, or part of
    a section, ``BusSettings(nats={"servers": ["nats://a:4222"]})``, or a whole one,
    ``nats=NatsSettings(...)``. Tests
    give an environment of their own: ``BusSettings(environ={})``.

    Secrets are ``SecretStr``. Neither they nor what a URL carries are ever part of a text made here.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)
    prefix: ClassVar[str] = "MSIGHT_"

    backend: Annotated[Backend, choice("redis", "nats", "kafka", "memory", example="nats")] = Field(
        default="redis",
        description="Which broker to use.",
        json_schema_extra={"variable": "MSIGHT_PUBSUB_BACKEND"},
    )
    strict: Flag = Field(
        default=False, description="Refuse what the backend can do in a weaker way only, instead of warning."
    )
    edge_device_name: Name | None = Field(default=None, description="Name of this device in the data that it sends.")
    logging_level: LogLevel | None = Field(
        default=None, description="What nodes log; unset, the levels of the program's own logging hold."
    )
    limits: Limits = Field(default=Limits(), description="Deadlines and limits.")
    redis: RedisSettings = Field(default=RedisSettings(), description="Used by the redis backend.")
    nats: NatsSettings = Field(default=NatsSettings(), description="Used by the nats backend.")
    kafka: KafkaSettings = Field(default=KafkaSettings(), description="Used by the kafka backend.")

    def __init__(self, *, environ: Mapping[str, str] | None = None, **overrides: Any) -> None:
        """Read and check the settings.

        Args:
            environ: variables to read, instead of ``os.environ``.
            overrides: by field; for a section, a mapping of some of its fields, or an instance. None
                overrides nothing.

        Raises:
            ConfigError: variables of the chosen backend, or common ones, are wrong; all of them are named.
                Wrong ones of other backends are a ``ConfigWarning`` each.
        """
        found = read_environment(os.environ if environ is None else environ, self.variables(), _PREFIXES)
        common: dict[str, Any] = {**found.values.get("", {})}
        wrong: dict[str, list[Problem]] = {}
        chosen = ["", "limits"]
        for name, kind in _SECTIONS.items():
            override = overrides.pop(name, None)
            if isinstance(override, kind):
                common[name], wrong[name] = override, []
            else:
                common[name], wrong[name] = _make_section(kind, found, name, override)
            named = {field for problem in wrong[name] for field in problem.fields}
            wrong[name] += [p for p in common[name].contradictions() if named.isdisjoint(p.fields)]
            if override is not None:
                chosen.append(name)  # the program itself asked for it
        common.update((field, value) for field, value in overrides.items() if value is not None)
        wrong[""] = fill(super().__init__, type(self), common)

        if not any("backend" in problem.fields for problem in wrong[""]):
            chosen.append(self.backend)
        sentences = [problem.sentence for name in dict.fromkeys(chosen) for problem in wrong.get(name, ())]
        notices = () if sentences else self._notices()
        try:
            for warning in (*found.hints, *_elsewhere(wrong, chosen), *notices):
                warnings.warn(warning, stacklevel=2)
        finally:
            if sentences:  # they come first even where a warning is an error
                raise ConfigError(sentences) from None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """pydantic's hook: keywords only. ``__init__`` reads the environment, where ``NATS`` means nothing."""
        return (init_settings,)

    @classmethod
    def variables(cls) -> tuple[Variable, ...]:
        """Every variable with its type, default and meaning, for documentation and ``msight-bus settings``."""
        return (
            *list_variables(cls, ""),
            *(variable for name, kind in _SECTIONS.items() for variable in list_variables(kind, name)),
        )

    @property
    def address(self) -> str:
        """The configured broker and its addresses, without secrets: for logs and titles."""
        if self.backend == "redis":
            return f"redis://{self.redis.unix_socket_path or ','.join(map(str, self.redis.nodes))}"
        if self.backend == "nats":
            return ",".join(map(str, self.nats.servers))
        return f"kafka://{','.join(map(str, self.kafka.servers))}" if self.backend == "kafka" else "memory"

    def _notices(self) -> Iterable[Warning]:
        section = getattr(self, self.backend, None)  # memory has no settings
        return section.notices() if isinstance(section, Section) else ()


_PREFIXES = [BusSettings.prefix, *(kind.prefix for kind in _SECTIONS.values())]


def _make_section(kind: type[Section], found: Reading, name: str, override: object) -> tuple[Section, list[Problem]]:
    """A section of what the environment sets and ``override`` replaces, and what is wrong in either."""
    if override is not None and not isinstance(override, Mapping):
        sentence = f"BusSettings({name}=...) must be a mapping or {kind.__name__}, not {type(override).__name__}."
        return kind(), [Problem((), sentence)]
    replaced = dict(override or {})
    unread = [p for p in found.problems.get(name, ()) if replaced.keys().isdisjoint(p.fields)]
    section, problems = kind.of({**found.values.get(name, {}), **replaced})
    return section, [*unread, *problems]


def _elsewhere(wrong: Mapping[str, list[Problem]], chosen: Sequence[str]) -> Iterator[Warning]:
    for name, problems in wrong.items():
        if name not in chosen:
            for problem in problems:
                yield ConfigWarning(f"{problem.sentence} It would be an error if the backend were {name}.")
