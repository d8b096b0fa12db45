"""Secret texts, which ``repr``, ``str``, errors, dumps and pickles do not contain."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from msight_bus.errors import ConfigError

MASK = "**********"
MAX_TEXT = 64 * 1024
"""Maximum number of characters of a name, path or secret."""


class Secret:
    """A text that only ``get_secret_value`` returns. A ``Secret`` can be copied and compared, but not pickled."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def get_secret_value(self) -> str:
        """Return the text; do not log it."""
        return self._value

    def __str__(self) -> str:
        return MASK

    def __repr__(self) -> str:
        return f"{type(self).__name__}({MASK!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and type(other) is type(self) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __deepcopy__(self, memo: object = None) -> Self:
        return self

    __copy__ = __deepcopy__

    def __reduce__(self) -> Any:
        raise TypeError(
            "A Secret cannot be pickled. Call BusSettings() in the other process, which reads its own environment, set the "
            "variable with the suffix _FILE to a file, or pass get_secret_value()."
        )


class SecretFile(Secret):
    """A secret in a file, without a newline at the end. Each call of ``get_secret_value`` reads the file."""

    __slots__ = ("_variable",)

    def __init__(self, variable: str, path: str) -> None:
        """
        Args:
            variable: name of the variable that names the file, for errors.
            path: path of the file.
        """
        super().__init__(path)
        self._variable = variable

    def get_secret_value(self) -> str:
        """Read the file.

        Raises:
            ConfigError: the file cannot be read, is empty, too long, or not UTF-8. The error does not quote the content.
        """
        text, failure = _read(self._value)
        if not text:
            raise ConfigError(
                f"{self._variable} must be the path of a file, such as {self._variable}=/run/secrets/bus; {failure}."
            )
        return text

    def __reduce__(self) -> tuple[Any, ...]:
        return SecretFile, (self._variable, self._value)  # the path, not the secret


def _read(path: str) -> tuple[str, str]:
    """Return the secret, or an empty text and the reason. Does not raise, because a traceback could show the content."""
    try:
        file = Path(path)
        if not file.is_file():  # a pipe or a device can block
            return "", "there is no such file"
        with file.open("rb") as stream:
            content = stream.read(MAX_TEXT + 1)
        if len(content) > MAX_TEXT:
            return "", f"the file has more than {MAX_TEXT} bytes"
        text = content.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        return "", "the file is not UTF-8"
    except (OSError, TypeError, ValueError) as error:
        return "", f"the file cannot be read ({getattr(error, 'strerror', None) or 'the path is not valid'})"
    return text, "the file is empty"
