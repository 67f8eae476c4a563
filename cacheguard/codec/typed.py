"""Codecs made for an annotation: a payload without type names, read straight into the annotated types."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import msgspec

from ..errors import CodecError
from .annotation import SCALARS, Facts, bare, facts_of, is_model, is_row, origin_of, union_arms
from .fidelity import Judge, difference
from .form import Codec, Refused, fingerprint, type_name
from .names import NO_NAMES, Names
from .objects import objects_form
from .outline import outline_of
from .purity import ModelPurity, is_decided_by_bytes
from .tagged import TAGGED, Tagged

_MARK = 0xC1  # begins the form with objects; the one byte that begins neither MessagePack nor JSON

_OLDEST_PYDANTIC = (2, 11)

_ANNOTATE = "which the return annotation does not name: add its class there, or give a serializer="
_USE_FIELDS = "return a dataclass or another class with typed fields, or give the guard a serializer="


class Form(NamedTuple):
    """How values become bytes, and bytes values."""

    dump: Callable[[Any], bytes]
    load: Callable[[Any], Any]
    judge: Judge | None = None
    """Says whether a value is the same; None: that of the codec."""
    said: str = ""
    """What decides the outcome beside the annotation."""


class TypedCodec:
    """A codec for one annotation.

    A value is stored in the plain form of a library, or, where that would change it, in the form with objects. Each is
    read back and compared before it counts as stored.

    Args:
        name: the annotation, for messages.
        schema: the fingerprint.
        plain: the form of msgspec or pydantic, if it has one.
        objects: the form with objects.
        root: the types of which the value must be an instance; None: any.
    """

    __slots__ = ("_forms", "_judge", "_load", "_load_objects", "_name", "_root", "classes", "schema", "types")

    def __init__(
        self, name: str, schema: bytes, plain: Form | None, objects: Tagged, root: tuple[type, ...] | None
    ) -> None:
        self.schema: bytes = schema
        self.types: frozenset[type] = frozenset()
        self.classes: tuple[type, ...] = ()
        self._name, self._root, self._judge = name, root, Judge()
        self._forms = ((plain,) if plain else ()) + (_objects_form(objects),)
        self._load = plain.load if plain else _no_plain_form
        self._load_objects = self._forms[-1].load

    def __repr__(self) -> str:
        return f"<codec for {self._name}>"

    @property
    def has_plain_form(self) -> bool:
        """True if a library reads it, and Python code only what that library would change."""
        return len(self._forms) > 1

    def encode(self, value: Any) -> bytes:
        if self._root is not None and not isinstance(value, self._root):
            raise CodecError(f"a value of type {type_name(value)} is returned where {self._name} is annotated")
        reason = ""
        cause: Exception | None = None
        for form in self._forms:
            try:
                payload = form.dump(value)
                path = difference(value, form.load(payload), form.judge or self._judge)
            except Refused as refused:
                reason, cause = refused.said(), refused
            except Exception as error:  # noqa: BLE001 - user classes run code of their own when rebuilt and compared
                reason, cause = reason or str(error), cause or error
            else:
                if path is None:
                    return payload
                reason = f"{path or 'it'} would come back as something else: keep there what a copy can have, too"
        raise CodecError(
            f"a value of type {type_name(value)} would not come back as itself under {self._name}: {reason}"
        ) from cause

    def decode(self, payload: bytes | memoryview) -> Any:
        try:
            return self._load_objects(payload) if payload[0] == _MARK else self._load(payload)
        except Exception as error:  # foreign bytes fail in more ways than can be listed, and so do classes of the user
            raise CodecError(f"these bytes hold no {self._name}: {error}") from error


class UnionCodec:
    """A codec for a union that no plain form can tell apart: the payload begins with the number of the member."""

    __slots__ = ("_arms", "_objects", "classes", "schema", "types")

    def __init__(self, schema: bytes, arms: tuple[TypedCodec, ...], objects: TypedCodec) -> None:
        self.schema: bytes = schema
        self.types: frozenset[type] = objects.types
        self.classes: tuple[type, ...] = objects.classes
        self._arms, self._objects = arms, objects

    def __repr__(self) -> str:
        return f"<codec for one of {self._arms}>"

    def encode(self, value: Any) -> bytes:
        for number, arm in enumerate(self._arms):
            try:
                return bytes([number]) + arm.encode(value)
            except CodecError:
                continue
        return self._objects.encode(value)

    def decode(self, payload: bytes | memoryview) -> Any:
        number = payload[0] if len(payload) else _MARK
        return self._arms[number].decode(payload[1:]) if number < len(self._arms) else self._objects.decode(payload)


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


def build(annotation: object, names: Names = NO_NAMES) -> Codec:
    """As `codec_for`; ``NameError`` if a class in *annotation* refers to a name that does not exist (yet)."""
    facts = facts_of(annotation, names)
    said = not facts.unsaid and not facts.strange
    if facts.classes or facts.strange:
        form_of = _pydantic_form if any(map(is_model, facts.classes)) else _msgspec_form
        plain = form_of(annotation, facts)
    else:
        plain = _msgspec_form(annotation, facts) if said else None
        if plain is None:
            return TAGGED
    codec = _typed(annotation, facts, plain)
    arms = union_arms(annotation)
    if plain is not None or len(arms) == 1:
        return codec
    built = (build(arm, names) for arm in arms if arm is not type(None))  # None is no value in Redis, but an absence
    split = [arm for arm in built if isinstance(arm, TypedCodec) and arm.has_plain_form]
    return UnionCodec(codec.schema, tuple(sorted(split, key=lambda arm: arm.schema)), codec) if split else codec


def _typed(annotation: object, facts: Facts, plain: Form | None) -> TypedCodec:
    classes = sorted(facts.classes, key=lambda kind: (kind.__qualname__, kind.__module__))
    homes = [kind.__module__ for kind in classes]
    said = "" if plain is None else plain.said
    schema = fingerprint("typed 2", outline_of(annotation, facts) + said, homes)
    table = [kind for kind in classes if not is_row(kind)]
    objects = objects_form(table, facts.aliases, partial(_unknown, tuple(facts.strange)))
    codec = TypedCodec(_name(annotation), schema, plain, objects, _roots(annotation, facts))
    codec.classes = tuple(classes)
    codec.types = frozenset(arm for arm in union_arms(annotation) if isinstance(arm, type) and arm in facts.classes)
    return codec


def _roots(annotation: object, facts: Facts) -> tuple[type, ...] | None:
    """The types that *annotation* allows, if all of them are classes; an int may stand for a float."""
    roots: list[type] = []
    for arm in map(bare, union_arms(annotation)):
        if arm is None:
            roots.append(type(None))
        elif not isinstance(arm, type) or (arm not in facts.classes and arm not in SCALARS):
            return None
        else:
            roots += [float, int] if arm is float else [dict] if is_row(arm) else [arm, *origin_of(arm)]
    return tuple(roots)


def _unknown(strange: tuple[type, ...], value: object) -> str:
    if isinstance(value, strange):
        return f"and there is no form to store it in: {_USE_FIELDS}"
    return _ANNOTATE


def _msgspec_form(annotation: Any, facts: Facts) -> Form | None:
    if not is_decided_by_bytes(facts.classes):
        return None
    try:
        return Form(msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(annotation).decode)
    except Exception:  # noqa: BLE001 - it evaluates annotations of the user, and knows some types only
        return None


def _pydantic_form(annotation: Any, facts: Facts) -> Form | None:
    from pydantic import VERSION, TypeAdapter

    if tuple(map(int, VERSION.split(".")[:2])) < _OLDEST_PYDANTIC:
        return None  # it cannot write models by the names of their fields
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(annotation)
    except Exception:  # noqa: BLE001 - schemas are built by code of other libraries, and of the user
        return None
    purity = ModelPurity(facts.classes)
    if not purity.reads(adapter.core_schema):
        return None
    dump = partial(adapter.dump_json, round_trip=True, by_alias=False, exclude_unset=True, warnings="error")

    def load(payload: bytes | memoryview) -> Any:
        return adapter.validate_json(bytes(payload), by_alias=False, by_name=True)

    return Form(dump, load, Judge(purity.made_up()), purity.said)


def _no_plain_form(_payload: bytes | memoryview) -> Any:
    raise CodecError("they begin with no known mark")


def _objects_form(objects: Tagged) -> Form:
    def dump(value: Any) -> bytes:
        return bytes((_MARK,)) + objects.dump(value)

    def load(payload: bytes | memoryview) -> Any:
        return objects.unpack(payload[1:])

    return Form(dump, load)


def _name(annotation: object) -> str:
    return annotation.__qualname__ if isinstance(annotation, type) else str(annotation)
