"""Registry of data classes by their ``data_type`` tags."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, dataclass_transform

import msgspec

from msight_bus.errors import ConfigError

if TYPE_CHECKING:
    from msight_bus.data.base import Data

TAG_FIELD = "data_type"
"""Name of the map entry with the tag, always the first entry."""

_classes: dict[str, type[Data]] = {}


@dataclass_transform(field_specifiers=(msgspec.field,))
class DataType(msgspec.StructMeta):
    """Metaclass of ``Data``: sets the tag of each class and registers the class when it is defined.

    The classes of this package name their metaclass again, so that type checkers accept frozen subclasses
    (``dataclass_transform``).
    """

    def __new__(
        cls,
        name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        /,
        *,
        tag: str | None = None,
        **options: Any,
    ) -> DataType:
        """Create and register a data class.

        Args:
            name, bases, namespace: of the class statement.
            tag: the ``data_type`` of this class; default: ``module.qualname``.
            options: options of ``msgspec.Struct``.

        Raises:
            ConfigError: another class has this tag, or values of the class could not be decoded by their tag.
        """
        # A tag function of Struct gets the qualname only, but MSight's tags include the module.
        path = f"{namespace['__module__']}.{namespace['__qualname__']}"
        tag = path if tag is None else tag
        if not isinstance(tag, str) or not 0 < len(tag.encode("utf-8", "replace")) < 256 or not tag.isprintable():
            raise ConfigError(f"The tag of {path} must be a str of 1 to 255 printable bytes, not {tag!r:.100}.")
        if options.get("array_like") or "tag_field" in options:
            raise ConfigError(
                f"{path} cannot have array_like or tag_field: a Data value is a map that begins with {TAG_FIELD!r}."
            )
        taken = _classes.get(tag)
        # The same path is redefined when a module is reloaded or a notebook cell is run again.
        if taken is not None and path != f"{taken.__module__}.{taken.__qualname__}":
            raise ConfigError(
                f"The data_type {tag!r} of {path} is already used by {taken.__module__}.{taken.__qualname__}; "
                f'set another tag, such as class {name}(..., tag="my_project.{name}")'
            )
        try:
            created = super().__new__(cls, name, bases, namespace, tag=tag, tag_field=TAG_FIELD, **options)
        except ValueError as error:  # a field is named as the tag
            raise ConfigError(f"{path}: {error}.") from error
        _classes[tag] = created  # type: ignore[assignment]  # only Data and its subclasses use this metaclass
        return created


def class_of(tag: str) -> type[Data] | None:
    """Return the class registered for ``tag``, or None."""
    return _classes.get(tag)


def registered() -> dict[str, type[Data]]:
    """Return all classes by tag."""
    return dict(_classes)
