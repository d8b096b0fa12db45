"""``Data``, the base class of all values with a ``data_type``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self, cast

import msgspec

from msight_bus.data.decoding import (
    DEFAULT_MAX_BYTES,
    DEFAULT_MAX_NESTING,
    PLAIN_TYPES,
    decode,
    decoder_of,
    decoders,
    from_mapping,
)
from msight_bus.data.tags import DataType
from msight_bus.errors import PayloadError

_LONGEST_SHOWN = 32  # bytes; repr shows only the size of a longer field


class Data(msgspec.Struct, metaclass=DataType, tag="msight_core.data.base.Data"):
    """A value with a ``data_type``. Subclass ``Data`` or ``SensorData`` and annotate the fields.

    A subclass is registered under the tag ``module.qualname``. Set a fixed tag for a class that is defined in a script or whose
    module can be renamed: ``class Track(SensorData, tag="my_project.Track")``. A field annotated ``Any`` accepts another ``Data``
    when it is sent and holds a plain mapping after decoding; ``from_dict`` converts the mapping to its class.
    """

    def serialize(self) -> bytes:
        """Encode to MessagePack: one map, ``data_type`` first. Scalars of NumPy are encoded as Python's.

        Raises:
            PayloadError: MessagePack has no type for the value of a field.
            ConfigError: an annotation of the class cannot be resolved or decoded, so that no reader could decode the value.
        """
        if type(self) not in decoders:
            decoder_of(type(self))
        try:
            return _encode(self)
        except Exception as error:
            raise PayloadError(f"{_unencodable(self)} cannot be encoded as MessagePack: {error}.") from error

    @classmethod
    def deserialize(
        cls, payload: bytes, *, max_bytes: int = DEFAULT_MAX_BYTES, max_nesting: int = DEFAULT_MAX_NESTING
    ) -> Self:
        """Decode a payload to the class that its tag names: ``cls`` or a subclass.

        Args:
            payload: MessagePack bytes.
            max_bytes: limit of the payload and of the estimated memory of the decoded value, in bytes.
            max_nesting: limit of nested maps and arrays; the outermost map is level 1.

        Raises:
            DecodeError: the payload is not valid, is of another class, or exceeds a limit.
        """
        return cast(Self, decode(payload, max_bytes=max_bytes, max_nesting=max_nesting, kinds=(cls,)))

    def to_dict(self) -> dict[str, Any]:
        """Convert to a dictionary of plain values, ``data_type`` first. Nested ``Data`` is converted too; ``bytes`` and
        ``datetime`` are not.
        """
        plain: dict[str, Any] = msgspec.to_builtins(self, builtin_types=PLAIN_TYPES, enc_hook=to_plain)
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """Create an instance of the class that ``plain["data_type"]`` names; the inverse of ``to_dict``.

        Raises:
            DecodeError: the tag is missing, unknown or of a class other than ``cls``, or a field has another type.
        """
        return cast(Self, from_mapping(plain, (cls,)))

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={_shown(getattr(self, name))}" for name in self.__struct_fields__)
        return f"{type(self).__name__}({shown})"


def to_plain(value: Any) -> Any:
    """Convert a scalar of NumPy to a Python value; msgspec calls this hook for types that it does not support."""
    kind = type(value)
    if kind.__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        return value.item()
    raise TypeError(f"objects of type {kind.__module__}.{kind.__qualname__} are not supported")


_encode = msgspec.msgpack.Encoder(enc_hook=to_plain).encode


def _unencodable(data: Data) -> str:
    """Return the class, and the first field that cannot be encoded, with the type of its value."""
    for name in data.__struct_fields__:
        value = getattr(data, name)
        try:
            _encode(value)
        except Exception:
            if isinstance(value, Data):
                return f"{type(data).__name__}.{name}: {_unencodable(value)}"
            return f"{type(data).__name__}.{name} of type {type(value).__name__}"
    return type(data).__name__


def _shown(value: object) -> str:
    if isinstance(value, bytes) and len(value) > _LONGEST_SHOWN:
        return f"<{len(value)} bytes>"
    return repr(value)
