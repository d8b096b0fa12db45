"""A secret that stands in a file, which may be replaced while the program runs."""

from __future__ import annotations

from pathlib import Path

from pydantic import SecretStr

from msight_bus.errors import ConfigError

MAX_TEXT = 64 * 1024  # characters of a name, path or secret


class SecretFile(SecretStr):
    """The secret in a file without the newline at its end, read anew each time it is asked for."""

    def __init__(self, variable: str, path: str) -> None:
        """
        Args:
            variable: the variable that names the file, for errors.
            path: of the file.
        """
        super().__init__(path)
        self._variable = variable
        self._path = path

    def get_secret_value(self) -> str:
        """Read the file.

        Raises:
            ConfigError: it cannot be read, is empty, too long, or no UTF-8. The text quotes nothing of it.
        """
        text, failure = _read(self._path)
        if not text:
            raise ConfigError(
                f"{self._variable} must be the path of a file, such as {self._variable}=/run/secrets/bus; {failure}."
            )
        return text

    def _display(self) -> str:
        return "**********"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SecretFile) and self._path == other._path

    def __hash__(self) -> int:
        return hash(self._path)


def _read(path: str) -> tuple[str, str]:
    """The secret, or an empty text and why there is none. Never raises: an error would have the content in its frames."""
    try:
        file = Path(path)
        if not file.is_file():  # a pipe or a device might never end
            return "", "there is no such file"
        with file.open("rb") as stream:
            content = stream.read(MAX_TEXT + 1)
        if len(content) > MAX_TEXT:
            return "", f"the file has more than {MAX_TEXT} bytes"
        text = content.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        return "", "the file is not UTF-8"
    except (OSError, ValueError) as error:
        return "", f"the file cannot be read ({getattr(error, 'strerror', None) or 'no valid path'})"
    return text, "the file is empty"
