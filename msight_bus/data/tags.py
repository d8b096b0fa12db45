"""The registry that leads from a ``data_type`` tag to the one class which declared it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, dataclass_transform

import msgspec

from msight_bus.errors import ConfigError

if TYPE_CHECKING:
    from msight_bus.data.base import Data

TAG_FIELD = "data_type"
"""Name of the map entry that carries the tag. It is always the first one."""

_classes: dict[str, type[Data]] = {}


@dataclass_transform(field_specifiers=(msgspec.field,))
class DataType(msgspec.StructMeta):
    """Metaclass of ``Data``: gives each class its tag and registers it as soon as it is defined."""

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
            tag: the ``data_type`` of this class; by default ``module.qualname``.
            options: what ``msgspec.Struct`` accepts in a class statement.

        Raises:
            ConfigError: another class has this tag.
        """
        # Struct's own tag function is told the qualname only; the module belongs to MSight's form of a tag.
        path = f"{namespace['__module__']}.{namespace['__qualname__']}"
        tag = tag or path
        taken = _classes.get(tag)
        # The same path again is a module that was reloaded or a notebook cell that ran twice.
        if taken is not None and path != f"{taken.__module__}.{taken.__qualname__}":
            raise ConfigError(
                f"The data_type {tag!r} of {path} is that of {taken.__module__}.{taken.__qualname__}; "
                f'give it a tag of its own, such as class {name}(..., tag="my_project.{name}")'
            )
        created = super().__new__(cls, name, bases, namespace, tag=tag, tag_field=TAG_FIELD, **options)
        _classes[tag] = created  # type: ignore[assignment]  # only Data and its subclasses use this metaclass
        return created


def class_of(tag: str) -> type[Data] | None:
    """The class that declared ``tag``, or None."""
    return _classes.get(tag)
