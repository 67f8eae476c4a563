"""Finds the codec for a function's values, and the codec that wrote a stored payload."""

from __future__ import annotations

import collections.abc
import inspect
import re
import sys
import typing
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import CodecError, ConfigurationError
from .annotation import SELF, substituted, variables_of
from .form import SHAPE_BYTES, Codec, fingerprint
from .names import NO_NAMES, Names, Scopes, classes_in, closure_of, names_around, owner_of, resolved
from .tagged import TAGGED
from .typed import build, codec_for

_BYTES: tuple[type[Any], ...] = (bytes, bytearray, memoryview)
_WORD = re.compile(r"[^\W\d]\w*")
_AWAITED = (collections.abc.Awaitable, collections.abc.Coroutine)


# Modules whose loads() does whatever the bytes say.
_RUN_CODE = frozenset(
    {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "yaml"}
)


def runs_code(serializer: Any) -> bool:
    """True if *serializer* is known to execute code from the bytes that it reads; unknown for custom serializers."""
    makers: list[Any] = [serializer, getattr(serializer, "loads", None), type(serializer)]
    names = [str(getattr(maker, name, "")) for maker in makers for name in ("__name__", "__module__")]
    return any(name.partition(".")[0] in _RUN_CODE for name in names)


class CustomCodec:
    """The user's own serializer: an object or module with ``dumps`` and ``loads``, such as `pickle`.

    Its payloads are not verified by reading them back.
    """

    __slots__ = ("_dumps", "_loads", "_name")

    schema: bytes = fingerprint("custom 1")

    def __init__(self, serializer: Any) -> None:
        self._name = getattr(serializer, "__name__", type(serializer).__qualname__)
        dumps, loads = getattr(serializer, "dumps", None), getattr(serializer, "loads", None)
        if not (callable(dumps) and callable(loads)):
            raise ConfigurationError(
                f"serializer must have dumps(value) and loads(bytes), as the pickle module does, got {serializer!r}"
            )
        self._dumps: Callable[[Any], Any] = dumps
        self._loads: Callable[[bytes], Any] = loads

    def __repr__(self) -> str:
        return f"<codec of {self._name}>"

    def encode(self, value: Any) -> bytes:
        try:
            payload = self._dumps(value)
        except Exception as error:
            raise CodecError(
                f"{self._name} cannot store a value of type {type(value).__qualname__}: {error}"
            ) from error
        if isinstance(payload, str):
            return payload.encode()
        if isinstance(payload, _BYTES):
            return bytes(payload)
        raise CodecError(f"{self._name}.dumps must return bytes or str, got {type(payload).__qualname__}")

    def decode(self, payload: bytes | memoryview) -> Any:
        try:
            return self._loads(bytes(payload))
        except Exception as error:
            raise CodecError(f"{self._name} cannot read these bytes: {error}") from error


class LateCodec:
    """The codec of a function whose return annotation names something that is not defined yet.

    The first use that finds everything resolves it, for good: an import that was under way is over by then, a module
    that is imported for type checkers only may have been imported, and a value shows its class.
    """

    __slots__ = ("_codec", "_fn", "_names")

    def __init__(self, fn: Callable[..., Any], names: Names) -> None:
        self._fn, self._names = fn, names
        self._codec: Codec | None = None

    def __repr__(self) -> str:
        return f"<late codec of {self._fn.__qualname__}>"

    def resolved(self, names: Names = NO_NAMES) -> Codec | None:
        """The codec, if the annotation can be resolved by now, perhaps with the help of *names*."""
        if self._codec is None:
            self._codec = _resolve(self._fn, {**names, **self._names})
        return self._codec

    @property
    def schema(self) -> bytes:
        return (self.resolved() or TAGGED).schema

    @property
    def classes(self) -> tuple[type, ...]:
        """The classes of the user in it."""
        return getattr(self.resolved(), "classes", ())

    def encode(self, value: Any) -> bytes:
        codec = self.resolved() or self.resolved(classes_in(value))
        if codec is not None:
            return codec.encode(value)
        try:
            return TAGGED.encode(value)
        except CodecError as error:
            raise CodecError(
                f"{error}; the return annotation of {self._fn.__qualname__} has a name that cannot be resolved here: "
                "import it outside of TYPE_CHECKING"
            ) from error

    def decode(self, payload: bytes | memoryview) -> Any:
        return (self.resolved() or TAGGED).decode(payload)


def settled(codec: Codec) -> Codec:
    """The codec that reads what *codec* has just written or read: one that resolves later may be another by then."""
    return (codec.resolved() or TAGGED) if isinstance(codec, LateCodec) else codec


def return_codec(fn: Callable[..., Any]) -> Codec:
    """The codec for what *fn* returns, or what awaiting it gives; `TAGGED` without a usable annotation."""
    fn = inspect.unwrap(fn)
    names = names_around(fn)
    return _resolve(fn, names) or LateCodec(fn, _mentioned(fn, names))


class ClassCodecs:
    """The codecs of a function whose result is of a class that is an argument: ``(kind: type[T], …) -> T | None``.

    Args:
        annotation: what the function returns, with type variables.
        variables: by parameter, the type variable that its argument stands for.
    """

    def __init__(self, annotation: Any, variables: Mapping[str, Any]) -> None:
        self.variables: Mapping[str, Any] = variables
        self._annotation = annotation
        self._codecs: dict[tuple[Any, ...], Codec] = {}

    def of(self, kinds: tuple[Any, ...]) -> Codec:
        """The codec of a call with *kinds* as the arguments of these parameters."""
        codec = self._codecs.get(kinds)
        if codec is None:
            meanings = dict(zip(self.variables.values(), kinds, strict=True))
            codec = self._codecs[kinds] = codec_for(substituted(self._annotation, meanings))
        return codec


def class_codecs(fn: Callable[..., Any]) -> ClassCodecs | None:
    """The codecs of *fn* by the classes that it is given, if its result depends on them."""
    fn = inspect.unwrap(fn)
    names = names_around(fn)
    annotation = _quietly(fn, getattr(fn, "__annotations__", {}).get("return"), names)
    wanted = set(variables_of(annotation)) - {SELF}
    kinds: dict[str, Any] = {}
    for name, written in getattr(fn, "__annotations__", {}).items() if wanted else ():
        hint = _quietly(fn, written, names)
        if typing.get_origin(hint) is type and typing.get_args(hint)[0] in wanted and name != "return":
            kinds[name] = typing.get_args(hint)[0]
    return ClassCodecs(_without_awaiting(annotation), kinds) if kinds else None


def _quietly(fn: Callable[..., Any], written: Any, names: Names) -> Any:
    try:
        return annotation_of(fn, written, names)
    except Exception:  # noqa: BLE001 - an annotation is any expression, and may name what is not defined yet
        return None


def _without_awaiting(annotation: Any) -> Any:
    return typing.get_args(annotation)[-1] if typing.get_origin(annotation) in _AWAITED else annotation


def _resolve(fn: Callable[..., Any], names: Names) -> Codec | None:
    """The codec of *fn*, or ``None`` if its annotation has a name that cannot be resolved."""
    try:
        annotation = return_annotation(fn, names)
        if any(each is SELF for each in variables_of(annotation)):
            owner = owner_of(fn, names)
            if owner is None:
                return None
            annotation = substituted(annotation, {SELF: owner})
        return build(annotation, names)
    except (NameError, AttributeError):  # the latter for a module that is not imported yet
        return None
    except Exception:  # noqa: BLE001 - an annotation is any expression, and may be no type at all
        return TAGGED


def return_annotation(fn: Callable[..., Any], names: Names) -> Any:
    """What *fn* returns, or what awaiting it gives; ``NameError`` if that has a name that cannot be resolved."""
    annotation = annotation_of(fn, getattr(fn, "__annotations__", {}).get("return", Any), names)
    return _without_awaiting(annotation)


def annotation_of(fn: Callable[..., Any], written: Any, names: Names) -> Any:
    """What *written* in the head of *fn* means; ``NameError`` if it has a name that cannot be resolved."""
    outer: dict[str, Any] = getattr(fn, "__globals__", {})
    parameters = {each.__name__: each for each in getattr(fn, "__type_params__", ())}
    known = Scopes(parameters, closure_of(fn), names, outer, for_checkers=getattr(fn, "__module__", ""))
    return resolved({"return": written}, outer, known)["return"]


def _mentioned(fn: Callable[..., Any], names: Names) -> Names:
    """Those of *names* that the annotation of *fn* mentions."""
    words = set(_WORD.findall(str(getattr(fn, "__annotations__", {}).get("return", ""))))
    return {name: names[name] for name in words if name in names}


class Registry:
    """The codecs of a guard's functions, found by what was stored or by what is to be stored.

    Reads and writes by bare key use it, because they do not know which function the value belongs to.
    """

    def __init__(self) -> None:
        self.raised: dict[str, type[Exception]] = {}
        """Exception classes that functions of this guard raise for "does not exist", also local ones."""
        self._by_schema: dict[bytes, Codec] = {TAGGED.schema: TAGGED}
        self._by_type: dict[type, Codec] = {}
        self._late: dict[LateCodec, None] = {}
        self._by_statement: dict[Any, Codec] = {}
        self._by_shape: dict[bytes, Codec] = {}
        self._moved: dict[tuple[bytes, bytes], bool] = {}

    def returned(self, returns: Any) -> Codec:
        """The codec for *returns*: an annotation, or a function whose return annotation counts."""
        try:
            codec = self._by_statement.get(returns)
        except TypeError:  # an annotation without a hash, such as one with a list of metadata
            return codec_for(returns)
        if codec is None:
            codec = return_codec(returns) if inspect.isroutine(returns) else codec_for(returns)
            self._by_statement[returns] = codec
            self.register(codec)
        return codec

    def register(self, codec: Codec) -> None:
        """Make *codec* known; the first of several for one schema or type stays."""
        if isinstance(codec, LateCodec):
            self._late[codec] = None
            return
        self._by_schema.setdefault(codec.schema, codec)
        self._by_shape.setdefault(codec.schema[:SHAPE_BYTES], codec)
        for kind in getattr(codec, "types", ()):
            self._by_type.setdefault(kind, codec)

    def reads(self, codec: Codec, schema: bytes) -> bool:
        """True if *codec* reads payloads of *schema*: those of its own, and those of its classes in another module.

        Another module may be where a class was before it moved, or it may have another class of that name and shape:
        that counts if this process knows such a class.
        """
        if codec.schema == schema:
            return True
        if codec.schema[:SHAPE_BYTES] != schema[:SHAPE_BYTES]:
            return False
        pair = codec.schema, schema
        moved = self._moved.get(pair)
        if moved is None:
            known = self._by_schema.get(schema)
            moved = self._moved[pair] = known is None and not any(map(_has_twin, getattr(codec, "classes", ())))
        return moved

    def by_schema(self, schema: bytes) -> Codec | None:
        """The codec that reads payloads of this schema, if a registered one does."""
        codec = self._by_schema.get(schema)
        if codec is None and self._resolve_late():
            codec = self._by_schema.get(schema)
        if codec is None:
            codec = self._by_shape.get(schema[:SHAPE_BYTES])
            codec = codec if codec is not None and self.reads(codec, schema) else None
        return codec

    def for_value(self, value: object) -> Codec:
        """The codec of a function that returns exactly this type of value, else `TAGGED`."""
        codec = self._by_type.get(type(value))
        if codec is None and self._resolve_late():
            codec = self._by_type.get(type(value))
        return codec or TAGGED

    def _resolve_late(self) -> bool:
        """Register the late codecs that can be resolved by now; false if there were none at all."""
        late = list(self._late)
        for codec in late:
            resolved = codec.resolved()
            if resolved is not None:
                self.register(resolved)
                self._late.pop(codec, None)
        return bool(late)


def _has_twin(kind: type[Any]) -> bool:
    """True if another module of this process has a class of that name, or if nobody can tell."""
    if "<locals>" in kind.__qualname__:
        return True
    first, *others = kind.__qualname__.split(".")
    for module in list(sys.modules.values()):
        found: Any = getattr(module, "__dict__", {}).get(first)
        for name in others:
            found = vars(found).get(name) if isinstance(found, type) else None
        if isinstance(found, type) and found is not kind and found.__qualname__ == kind.__qualname__:
            return True
    return False
