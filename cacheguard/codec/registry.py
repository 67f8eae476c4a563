"""Finds the codec for a function's values, and the codec that wrote a stored payload."""

from __future__ import annotations

import collections.abc
import inspect
import typing
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from ..errors import CodecError, ConfigurationError
from .form import Codec, fingerprint
from .tagged import TAGGED
from .typed import build, codec_for

_BYTES: tuple[type[Any], ...] = (bytes, bytearray, memoryview)
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

    Its first use resolves it, for good; by then an import that was under way is over.
    """

    __slots__ = ("_codec", "_fn")

    def __init__(self, fn: Callable[..., Any]) -> None:
        self._fn = fn
        self._codec: Codec | None = None

    def __repr__(self) -> str:
        return f"<late codec of {self._fn.__qualname__}>"

    def resolved(self) -> Codec | None:
        """The codec, if the annotation can be resolved by now."""
        if self._codec is None:
            self._codec = _resolve(self._fn)
        return self._codec

    def _resolve(self) -> Codec:
        codec = self._codec = self.resolved() or TAGGED
        return codec

    @property
    def schema(self) -> bytes:
        return self._resolve().schema

    def encode(self, value: Any) -> bytes:
        return self._resolve().encode(value)

    def decode(self, payload: bytes | memoryview) -> Any:
        return self._resolve().decode(payload)


def return_codec(fn: Callable[..., Any]) -> Codec:
    """The codec for what *fn* returns, or what awaiting it gives; `TAGGED` without a usable annotation."""
    return _resolve(fn) or LateCodec(fn)


def _resolve(fn: Callable[..., Any]) -> Codec | None:
    """The codec of *fn*, or ``None`` if its annotation has a name that cannot be resolved."""
    fn = inspect.unwrap(fn)
    try:
        annotation = getattr(fn, "__annotations__", {}).get("return", typing.Any)
        carrier = SimpleNamespace(__annotations__={"return": annotation})
        hints = typing.get_type_hints(carrier, *_scopes(fn), include_extras=True)
        annotation = hints["return"]
        if typing.get_origin(annotation) in _AWAITED:
            annotation = typing.get_args(annotation)[-1]
        return build(annotation)
    except NameError:
        return None
    except Exception:  # noqa: BLE001 - an annotation is any expression, and may be no type at all
        return TAGGED


def _scopes(fn: Callable[..., Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The names that an annotation of *fn* may use: its module's, and those it closes over."""
    outer: dict[str, Any] = getattr(fn, "__globals__", {})
    names = getattr(getattr(fn, "__code__", None), "co_freevars", ())
    inner: dict[str, Any] = {}
    for name, cell in zip(names, getattr(fn, "__closure__", None) or (), strict=True):
        try:
            inner[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    return outer, inner


class Registry:
    """The codecs of a guard's functions, found by what was stored or by what is to be stored.

    Reads and writes by bare key use it, because they do not know which function the value belongs to.
    """

    def __init__(self) -> None:
        self._by_schema: dict[bytes, Codec] = {TAGGED.schema: TAGGED}
        self._by_type: dict[type, Codec] = {}
        self._late: dict[LateCodec, None] = {}
        self._by_statement: dict[Any, Codec] = {}

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
        for kind in getattr(codec, "types", ()):
            self._by_type.setdefault(kind, codec)

    def by_schema(self, schema: bytes) -> Codec | None:
        """The codec that reads payloads of this schema, if a registered one does."""
        codec = self._by_schema.get(schema)
        if codec is None and self._resolve_late():
            codec = self._by_schema.get(schema)
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
