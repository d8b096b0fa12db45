"""What the sections of the settings have in common."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from msight_bus.errors import ConfigError
from msight_bus.settings.problems import Problem, fill
from msight_bus.settings.secret_file import SecretFile
from msight_bus.settings.variables import variable_name


class Section(BaseModel):
    """A frozen group of settings.

    Made by hand it is checked value by value; ``BusSettings`` checks that its values agree with each other.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    prefix: ClassVar[str]
    """What the names of its variables begin with."""

    def __init__(self, **values: Any) -> None:
        """Check the values.

        Raises:
            ConfigError: some are wrong; all of them are named.
        """
        problems = fill(super().__init__, type(self), values)
        if problems:
            raise ConfigError([problem.sentence for problem in problems])

    @classmethod
    def of(cls, values: dict[str, Any]) -> tuple[Section, list[Problem]]:
        """A section of the values that are right, and what is wrong with the others."""
        section = cls.__new__(cls)
        return section, fill(super(Section, section).__init__, cls, values)

    def contradictions(self) -> Iterator[Problem]:
        """Values that are right by themselves and wrong together."""
        return iter(())

    def notices(self) -> Iterator[Warning]:
        """Warnings about what is allowed and yet not what one would want."""
        return iter(())

    @property
    def has_secret_files(self) -> bool:
        """Whether a secret comes from a file, which may be replaced while the program runs."""
        return any(isinstance(value, SecretFile) for value in self.__dict__.values())

    def _name(self, field: str) -> str:
        return variable_name(type(self), field)
