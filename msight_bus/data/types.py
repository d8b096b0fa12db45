"""`PayloadType`: how values of a type become payloads, and payloads become values again."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from functools import partial
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar, Union, get_args, get_origin

import msgspec

from msight_bus.data.base import Data, to_plain
from msight_bus.data.bounds import Layout
from msight_bus.data.decoding import Decoder, decode, decoder_of, make_decoder
from msight_bus.errors import ConfigError, DecodeError, PayloadError, quoted

T = TypeVar("T")
if TYPE_CHECKING:
    from typing_extensions import TypeVar as Variable  # has ``default``

    T_co = Variable("T_co", covariant=True, default=Data)
else:
    T_co = TypeVar("T_co", covariant=True)

_JSON = "msight_bus.Json"
Json = Annotated[T, _JSON]
"""``Json[T]``: values of ``T``, any type that msgspec or pydantic supports, sent as JSON. For type checkers, it is ``T``."""

_PYDANTIC_CONTAINER = 512  # approximate memory of a pydantic model, or of a container in pydantic's parser, in bytes


@dataclass(frozen=True, slots=True)
class PayloadType(Generic[T]):
    """Encodes and decodes the payloads of one type. Made by `payload_type`.

    Attributes:
        kind: the type as the user gave it.
        name: the type's name, for errors.
        classes: classes of which every value is an instance; empty if the type is not a class.
        content_type: value of the header ``content-type``; ``None``: no header is written.
    """

    kind: Any
    name: str
    classes: tuple[type, ...]
    content_type: str | None
    _encode: Callable[[Any], bytes]
    _decode: Callable[..., T]

    def __reduce__(self) -> tuple[Any, ...]:
        return payload_type, (self.kind,)

    def encode(self, value: object) -> bytes:
        """Encode a value.

        Raises:
            PayloadError: ``value`` is not of the type, or cannot be encoded.
            ConfigError: see `Data.serialize`.
        """
        if self.classes and not isinstance(value, self.classes):
            raise PayloadError(f"The payload must be of type {self.name}, not {type(value).__name__}.")
        try:
            return self._encode(value)
        except (PayloadError, ConfigError):
            raise
        except Exception as error:
            raise PayloadError(f"This {type(value).__name__} cannot be sent as {self.name}: {error}.") from error

    def decode(self, payload: bytes, max_bytes: int, max_nesting: int) -> T:
        """Decode a payload.

        Raises:
            DecodeError: the payload is not of the type, or exceeds a limit.
        """
        try:
            return self._decode(payload, max_bytes=max_bytes, max_nesting=max_nesting)
        except DecodeError as error:
            raise DecodeError(f"{self.name}: {error}") from error.__cause__


def payload_type(kind: Any) -> PayloadType[Any]:
    """Return the encoder and decoder of a type: the argument ``type`` of `Bus.subscribe` and `Bus.publisher`.

    Raises:
        TypeError: values of ``kind`` cannot be sent.
        ConfigError: an annotation in the type cannot be resolved or decoded.
    """
    if kind is bytes:
        return PayloadType(bytes, "bytes", (bytes,), None, bytes, lambda payload, *_, **__: payload)
    is_json = get_origin(kind) is Annotated and _JSON in kind.__metadata__
    inner, name = (_without_marker(kind), f"Json[{_name(kind.__origin__)}]") if is_json else (kind, _name(kind))
    members = get_args(inner) if get_origin(inner) in (Union, UnionType) else (inner,)
    classes = tuple(get_origin(member) or member for member in members)
    are_classes = all(isinstance(one, type) for one in classes)
    if are_classes and not is_json and all(issubclass(one, Data) for one in classes):
        return PayloadType(kind, name, classes, None, Data.serialize, _data(classes))
    is_class = are_classes and len(classes) == 1
    is_class = is_class and (issubclass(classes[0], (msgspec.Struct, *_pydantic_models())) or is_dataclass(classes[0]))
    if not is_class and (not is_json or isinstance(inner, TypeVar)):
        raise TypeError(
            f"type must be Data, a subclass of Data or a union of these, a msgspec.Struct, a dataclass, a pydantic model, bytes, "
            f"or Json[...] of any other type such as Json[dict[str, float]], not {kind!r:.100}."
        )
    content_type = "application/json"
    if _has_pydantic(inner):
        encode, decoder = _pydantic(inner)
        encode = _checked(encode, decoder)
    elif is_json:
        encode, decoder = msgspec.json.Encoder(enc_hook=to_plain).encode, make_decoder(inner, is_json=True)
        encode = _checked(encode, decoder)
    else:
        content_type = "application/msgpack"
        encode, decoder = msgspec.msgpack.Encoder(enc_hook=to_plain).encode, make_decoder(inner)
    return PayloadType(
        kind, name, classes if is_class else (), content_type if is_class else None, encode, decoder.decode
    )


def _without_marker(kind: Any) -> Any:
    others = tuple(each for each in kind.__metadata__ if each != _JSON)
    return Annotated[(kind.__origin__, *others)] if others else kind.__origin__


def _data(classes: tuple[type[Data], ...]) -> Callable[..., Data]:
    for one in classes:
        decoder_of(one)
    return partial(decode, kinds=() if Data in classes else classes)


def _checked(encode: Callable[[Any], bytes], decoder: Decoder[Any]) -> Callable[[Any], bytes]:
    """Return an encoder of JSON that decodes what it has encoded.

    A value can be of the type while its JSON is not: JSON has no NaN, a model can have another name or form of a field for
    encoding than for decoding, and a type need not be a class.
    """

    def encode_checked(value: object) -> bytes:
        payload = encode(value)
        decoder.decode(payload, sys.maxsize, sys.getrecursionlimit())
        return payload

    return encode_checked


def _pydantic(inner: Any) -> tuple[Callable[[Any], bytes], Decoder[Any]]:
    pydantic: Any = sys.modules["pydantic"]
    adapter = pydantic.TypeAdapter(inner)

    def validate(payload: bytes) -> Any:
        try:
            return adapter.validate_json(payload)
        except pydantic.ValidationError as error:  # its text is long and repeats the input
            first = error.errors(include_url=False, include_input=False)[0]
            at = f" at {'.'.join(map(str, first['loc']))}" if first["loc"] else ""
            raise DecodeError(quoted(f"The payload is not valid data: {first['msg']}{at}")) from error

    layout = Layout(dict[str, Any], _PYDANTIC_CONTAINER)
    encode = partial(adapter.dump_json, by_alias=True, round_trip=True, warnings="error")
    return encode, Decoder(validate, layout, is_json=True)


def _pydantic_models() -> tuple[type, ...]:
    """Return the base class of pydantic's models if the program has imported pydantic."""
    module = sys.modules.get("pydantic.main")
    return () if module is None else (module.BaseModel,)


def _has_pydantic(kind: Any) -> bool:
    return (isinstance(kind, type) and issubclass(kind, _pydantic_models())) or any(map(_has_pydantic, get_args(kind)))


def _name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind).replace("typing.", "")


DATA: PayloadType[Data] = payload_type(Data)
"""`Data` of any registered class."""
