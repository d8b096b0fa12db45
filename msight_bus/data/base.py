"""``Data``, the root of everything that has a ``data_type``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import msgspec

from msight_bus.data.decoding import (
    DEFAULT_MAX_BYTES,
    DEFAULT_MAX_NESTING,
    PLAIN_TYPES,
    decode,
    from_mapping,
    require,
)
from msight_bus.data.tags import DataType
from msight_bus.errors import PayloadError

_LONGEST_SHOWN = 32  # bytes of a binary field that repr shows: an image must not fill the log


class Data(msgspec.Struct, metaclass=DataType, tag="msight_core.data.base.Data"):
    """A value with a ``data_type``. Subclass it, or ``SensorData``, with annotated fields.

    A subclass is registered under ``module.qualname``. Give it a fixed tag if it is defined in a script, or
    if its module may move: ``class Track(SensorData, tag="my_project.Track")``. A field annotated ``Any``
    takes another ``Data`` when it is sent and holds a plain mapping after decoding, which ``from_dict`` turns
    into its class.
    """

    def serialize(self) -> bytes:
        """MessagePack bytes: one map, ``data_type`` first. NumPy's scalars travel as Python's.

        Raises:
            PayloadError: a field holds something that has no MessagePack form.
        """
        try:
            return _encode(self)
        except Exception as error:
            raise PayloadError(f"{_culprit(self)} cannot be sent as MessagePack: {error}.") from error

    @classmethod
    def deserialize(
        cls, payload: bytes, *, max_bytes: int = DEFAULT_MAX_BYTES, max_nesting: int = DEFAULT_MAX_NESTING
    ) -> Self:
        """Decode a payload into the class that its tag names, which must be ``cls`` or a subclass of it.

        Args:
            payload: MessagePack bytes.
            max_bytes: bound of the payload and, by estimate, of the memory that its decoded value takes, in
                bytes.
            max_nesting: bound of maps and arrays inside each other; the outermost map is the first level.

        Raises:
            DecodeError: the payload is no such value, or over a bound.
        """
        return require(cls, decode(payload, max_bytes=max_bytes, max_nesting=max_nesting))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ``data_type`` first, nested ``Data`` included; ``bytes`` and ``datetime`` stay."""
        plain: dict[str, Any] = msgspec.to_builtins(self, builtin_types=PLAIN_TYPES, enc_hook=_plain)
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """The inverse of ``to_dict``: an instance of the class that ``plain["data_type"]`` names.

        Raises:
            DecodeError: the tag is missing or unknown, it names no ``cls``, or a field has another type.
        """
        return require(cls, from_mapping(plain))

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={_shown(getattr(self, name))}" for name in self.__struct_fields__)
        return f"{type(self).__name__}({shown})"


def _plain(value: Any) -> Any:
    """Return a scalar of NumPy as a Python value (msgspec's hook for what it does not know)."""
    kind = type(value)
    if kind.__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        return value.item()
    raise TypeError(f"objects of type {kind.__module__}.{kind.__qualname__} have no such form")


_encode = msgspec.msgpack.Encoder(enc_hook=_plain).encode


def _culprit(data: Data) -> str:
    """Return the class and, where one field alone fails, that field and its value."""
    for name in data.__struct_fields__:
        value = getattr(data, name)
        try:
            _encode(value)
        except Exception:
            if isinstance(value, Data):
                return f"{type(data).__name__}.{name}: {_culprit(value)}"
            return f"{type(data).__name__}.{name} of type {type(value).__name__}"
    return type(data).__name__


def _shown(value: object) -> str:
    if isinstance(value, bytes) and len(value) > _LONGEST_SHOWN:
        return f"<{len(value)} bytes>"
    return repr(value)
