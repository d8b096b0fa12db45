"""Check the version of a client library, and the presence of the private attributes that the bus uses."""

from __future__ import annotations

import importlib.metadata
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from msight_bus.errors import BusError

logger = logging.getLogger("msight_bus")

_reported: set[tuple[str, str]] = set()


@dataclass(frozen=True)
class ClientLibrary:
    """A client library and the range of versions that the bus is tested with.

    Attributes:
        name: name of the distribution on the package index.
        oldest: first tested version.
        newest: last tested version.
    """

    name: str
    oldest: str
    newest: str

    def check(self, *required: tuple[object, tuple[str, ...]]) -> None:
        """Log a WARNING, once in a process, if the installed version is outside the tested range.

        Args:
            required: objects of the library, each with the names of the attributes that it must have.

        Raises:
            BusError: an attribute is missing.
        """
        missing = [_describe(owner, name) for owner, names in required for name in names if not hasattr(owner, name)]
        if missing:
            raise self.lacks(f"{', '.join(missing)} missing")
        version = self._version()
        tested = _numbers(self.oldest) <= _numbers(version) <= _numbers(self.newest)
        if not tested and (self.name, version) not in _reported:
            _reported.add((self.name, version))
            logger.warning(
                "Untested version of %s: %s; tested versions: %s to %s.",
                self.name,
                version,
                self.oldest,
                self.newest,
            )

    def lacks(self, problem: str) -> BusError:
        """Return the error for an installed version that cannot be used because of ``problem``."""
        return BusError(
            f"{self.name} {self._version()} does not work with this version of msight-bus: {problem}. "
            f"Tested versions: {self.oldest} to {self.newest}; install one of them."
        )

    def _version(self) -> str:
        try:
            return _read(importlib.metadata.version, self.name)
        except importlib.metadata.PackageNotFoundError:
            return "(unknown version)"


@cache
def _read(version: Callable[[str], str], name: str) -> str:
    """Return the installed version, read once: it takes milliseconds, and each connection is checked."""
    return version(name)


def _describe(owner: object, name: str) -> str:
    return f"{(owner if isinstance(owner, type) else type(owner)).__name__}.{name}"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))
