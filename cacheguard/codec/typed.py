"""Codecs made for an annotation: a payload without type names, read straight into the annotated types."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import partial
from typing import Any, NamedTuple, is_typeddict
from uuid import UUID

import msgspec

from ..errors import CodecError
from .annotation import Facts, describe, describe_schema, facts_of, is_model, is_storable, union_arms
from .fidelity import same
from .form import Codec, fingerprint
from .tagged import TAGGED

# The tagged form has all of these, so they need not be turned into text.
_KEPT = (bytes, bytearray, memoryview, datetime, date, time, timedelta, UUID, Decimal)

_TAGGED_MARK = b"\xc1"  # the one byte that begins neither MessagePack nor JSON

_OLDEST_PYDANTIC = (2, 11)


class _Form(NamedTuple):
    dump: Callable[[Any], bytes]
    load: Callable[[Any], Any]


class TypedCodec:
    """A codec for one annotation.

    A value is stored in the plain form, or, where that would change it (a time zone, an integer beyond 64 bits), in
    the tagged one. Each is read back before it counts as stored.
    """

    __slots__ = ("_exact", "_forms", "_guessed", "_load", "_name", "schema", "types")

    def __init__(self, name: str, schema: bytes, plain: _Form, tagged: _Form, facts: Facts) -> None:
        self.schema: bytes = schema
        self.types: frozenset[type] = frozenset()
        self._name = name
        self._forms = (plain, tagged)
        self._load = plain.load
        self._exact = facts.exact or facts.unsaid
        self._guessed = facts.unsaid

    def __repr__(self) -> str:
        return f"<codec for {self._name}>"

    def encode(self, value: Any) -> bytes:
        cause: Exception | None = None
        for form in self._forms:
            try:
                payload = form.dump(value)
                if self._is_faithful(value, payload, form):
                    return payload
            except Exception as error:  # noqa: BLE001 - user classes run code of their own when rebuilt and compared
                cause = cause or error
        reason = f": {cause}" if cause else " with all its parts; annotate the function with the type it returns"
        raise CodecError(
            f"a value of type {type(value).__qualname__} would not come back as {self._name}{reason}"
        ) from cause

    def _is_faithful(self, value: Any, payload: bytes, form: _Form) -> bool:
        back = form.load(payload)
        if not self._exact and type(back) is type(value) and _equal(back, value) and form.dump(back) == payload:
            return True
        return same(value, back, self._guessed)

    def decode(self, payload: bytes | memoryview) -> Any:
        try:
            return self._load(payload)
        except Exception as error:  # foreign bytes fail in more ways than can be listed, and so do classes of the user
            if payload[:1] == _TAGGED_MARK:
                return self._decode_tagged(payload)
            raise CodecError(f"these bytes hold no {self._name}: {error}") from error

    def _decode_tagged(self, payload: bytes | memoryview) -> Any:
        try:
            return self._forms[1].load(payload)
        except Exception as error:  # as above
            raise CodecError(f"these bytes hold no {self._name}: {error}") from error


class UnionCodec:
    """A codec for a union that no single form can tell apart: the payload begins with the number of the member."""

    __slots__ = ("_arms", "schema", "types")

    def __init__(self, arms: tuple[Codec, ...], types: frozenset[type]) -> None:
        self.schema: bytes = fingerprint("union 1", " ".join(arm.schema.hex() for arm in arms))
        self.types: frozenset[type] = types
        self._arms = arms

    def __repr__(self) -> str:
        return f"<codec for one of {self._arms}>"

    def encode(self, value: Any) -> bytes:
        refusals: list[str] = []
        for number, arm in enumerate(self._arms):
            try:
                return bytes([number]) + arm.encode(value)
            except CodecError as error:
                refusals.append(str(error))
        raise CodecError("; ".join(refusals))

    def decode(self, payload: bytes | memoryview) -> Any:
        if len(payload) == 0 or payload[0] >= len(self._arms):
            raise CodecError("these bytes name no member of the union")
        return self._arms[payload[0]].decode(payload[1:])


class RefusingCodec:
    """Stands in for an annotation whose values cannot be stored, and says why; they are still cached in the process."""

    __slots__ = ("_reason", "schema", "types")

    def __init__(self, reason: str) -> None:
        self.schema: bytes = fingerprint("refused 1", reason)
        self.types: frozenset[type] = frozenset()
        self._reason = reason

    def __repr__(self) -> str:
        return f"<no codec: {self._reason}>"

    def encode(self, value: Any) -> bytes:
        raise CodecError(f"a value of type {type(value).__qualname__} cannot be stored: {self._reason}")

    def decode(self, payload: bytes | memoryview) -> Any:
        raise CodecError(f"{len(payload)} bytes cannot be read: {self._reason}")


def codec_for(annotation: object) -> Codec:
    """The codec for values of *annotation*, `TAGGED` if it says nothing about them.

    Never fails: the codec of an annotation that cannot be stored refuses each value with the reason.
    """
    try:
        return build(annotation)
    except NameError as error:
        return RefusingCodec(f"{_name(annotation)} has a field whose type cannot be resolved: {error}")


def build(annotation: object) -> Codec:
    """As `codec_for`; ``NameError`` if a class in *annotation* refers to a name that does not exist (yet)."""
    facts = facts_of(annotation)
    made_of_values = all(map(is_typeddict, facts.classes))  # a TypedDict is a plain dict
    if facts.unsaid and made_of_values:
        return TAGGED
    try:
        return _typed(annotation, facts)
    except NameError:
        raise
    except Exception as error:  # noqa: BLE001 - schemas are built by code of other libraries, and of the user
        if made_of_values:
            return TAGGED
        return _union(annotation) or RefusingCodec(
            f"{error}; return a dataclass or another class with typed fields, or give the guard a serializer="
        )


def _typed(annotation: object, facts: Facts) -> Codec:
    if any(is_model(kind) for kind in facts.classes):
        codec = _pydantic_codec(annotation, facts)
    else:
        strange = sorted(_name(kind) for kind in facts.classes if not is_storable(kind))
        if strange:
            raise TypeError(f"there is no form to store {', '.join(strange)} in")
        codec = _msgspec_codec(annotation, facts)
    codec.types = _own_types(annotation, facts)
    return codec


def _msgspec_codec(annotation: Any, facts: Facts) -> TypedCodec:
    schema = fingerprint("msgspec 1", describe(annotation))
    plain = _Form(msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(annotation).decode)
    lower = partial(msgspec.to_builtins, builtin_types=_KEPT)
    tagged = _tagged_form(lower, partial(msgspec.convert, type=annotation))
    return TypedCodec(_name(annotation), schema, plain, tagged, facts)


def _pydantic_codec(annotation: Any, facts: Facts) -> TypedCodec:
    from pydantic import VERSION, PydanticUserError, TypeAdapter

    if tuple(map(int, VERSION.split(".")[:2])) < _OLDEST_PYDANTIC:
        raise TypeError(f"pydantic {VERSION} is too old to store models by the names of their fields, 2.11 can")

    adapter: TypeAdapter[Any] = TypeAdapter(annotation)
    try:
        outline = adapter.json_schema(by_alias=False)
    except PydanticUserError as error:
        if error.code == "class-not-fully-defined":
            raise NameError(error.message) from error
        raise
    schema = fingerprint("pydantic 1", describe_schema(outline))
    dump_json = partial(adapter.dump_json, round_trip=True, by_alias=False, warnings="error")
    dump_tree = partial(adapter.dump_python, round_trip=True, by_alias=False, warnings="error")

    def load_json(payload: bytes | memoryview) -> Any:
        return adapter.validate_json(bytes(payload), by_alias=False, by_name=True)

    plain = _Form(dump_json, load_json)
    tagged = _tagged_form(dump_tree, partial(adapter.validate_python, by_alias=False, by_name=True))
    return TypedCodec(_name(annotation), schema, plain, tagged, facts)


def _tagged_form(lower: Callable[[Any], Any], lift: Callable[[Any], Any]) -> _Form:
    def dump(value: Any) -> bytes:
        return _TAGGED_MARK + TAGGED.encode(lower(value))

    def load(payload: bytes | memoryview) -> Any:
        return lift(TAGGED.decode(payload[1:]))

    return _Form(dump, load)


def _union(annotation: object) -> UnionCodec | None:
    """A codec that tries the members one by one, if there are several and at least one can be stored."""
    arms = union_arms(annotation)
    codecs = tuple(build(arm) for arm in arms) if len(arms) > 1 else ()
    if all(isinstance(codec, RefusingCodec) for codec in codecs):
        return None
    types = frozenset(kind for arm in arms for kind in _own_types(arm, facts_of(arm)))
    return UnionCodec(codecs, types)


def _own_types(annotation: object, facts: Facts) -> frozenset[type]:
    """The classes of which *annotation* is the natural home: itself, or the members of a union."""
    return frozenset(arm for arm in union_arms(annotation) if isinstance(arm, type) and arm in facts.classes)


def _equal(one: Any, other: Any) -> bool:
    try:
        return (one == other) is True
    except Exception:  # noqa: BLE001 - a signaling nan, or code of the user
        return False


def _name(annotation: object) -> str:
    return annotation.__qualname__ if isinstance(annotation, type) else str(annotation)
