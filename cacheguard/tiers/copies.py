"""Copies for callers (``l1_copy``): what is kept is nobody else's object, and each caller gets a new one.

A value is taken apart once, when it is stored, and every copy is made of that: by the codec, which has proven that the
value comes back as itself; else by `pickle`, which keeps what an object has fetched (a QuerySet its rows); else by
`copy.deepcopy`.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from sys import getsizeof
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from ..codec import Codec, CustomCodec, Registry, settled
from ..errors import CodecError
from .weighing import weigh

# Nobody can change one of these, so all may have the same.
IMMUTABLE: frozenset[type[Any]] = frozenset(
    {str, int, float, bool, bytes, type(None), complex, Decimal, UUID}
    | {date, datetime, time, timedelta, timezone, ZoneInfo}
)  # fmt: skip

# What `pickle` raises for what it cannot take: C code says TypeError or AttributeError, some classes of their own
# NotImplementedError. Whatever else comes is the object's own trouble.
_CANNOT_PICKLE = (pickle.PicklingError, TypeError, AttributeError, NotImplementedError)


@dataclass(slots=True)
class Master:
    """What copies of one value are made of.

    Args:
        source: bytes, or an object that nobody else has.
        make_of: makes a copy of it.
        codec: whose payload the bytes are; None: of no codec.
    """

    source: Any
    make_of: Callable[[Any], Any]
    codec: Codec | None = None

    def make(self) -> Any:
        """A copy."""
        return self.make_of(self.source)

    def weight(self, most: float) -> int:
        """Its bytes in this process; no closer look if there are more than *most*."""
        return getsizeof(self.source) if isinstance(self.source, bytes) else weigh(self.source, most)


def copied(kept: Any) -> Any:
    """What a caller gets of *kept*, the value in an entry of L1 with ``l1_copy``."""
    return kept.make_of(kept.source) if kept.__class__ is Master else kept


def master_of(payload: bytes | memoryview, codec: Codec, value: Any) -> Master | None:
    """The master of *value*, which *codec* has just read from *payload*; None if everybody may have the value."""
    if type(value) in IMMUTABLE:
        return None
    codec = settled(codec)
    return Master(bytes(payload), codec.decode, codec)


def a_copy(value: Any) -> Any:
    """A copy of *value*, by no codec; `CodecError` if it cannot be copied."""
    if type(value) in IMMUTABLE:
        return value
    return (_pickled(value) or _deep_copied(value)).make()


class Copier:
    """Takes values apart.

    Args:
        registry: finds a codec for a value.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def master(self, value: Any, codec: Codec | None) -> Master | None:
        """The master of *value*; None if everybody may have the value. `CodecError` if it cannot be copied."""
        if type(value) in IMMUTABLE:
            return None
        codec = codec or self._registry.for_value(value)
        if not isinstance(codec, CustomCodec):  # a serializer of the user's is not checked
            try:
                payload = codec.encode(value)
            except CodecError:
                pass
            else:
                codec = settled(codec)
                return Master(payload, codec.decode, codec)
        try:
            return _pickled(value) or _deep_copied(value)
        except CodecError:
            if not isinstance(codec, CustomCodec):
                raise
            payload = codec.encode(value)
            if type(codec.decode(payload)) is not type(value):
                raise
            return Master(payload, codec.decode, codec)

    def copy(self, value: Any) -> Any:
        """A copy of *value*, or the value itself if it cannot be copied."""
        try:
            master = self.master(value, None)
        except CodecError:
            return value
        return value if master is None else master.make()


def _pickled(value: Any) -> Master | None:
    """A master by `pickle`; None if that cannot take the value, or makes something else of it."""
    try:
        source = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
        back = pickle.loads(source)  # noqa: S301 - made here, a line above
    except _CANNOT_PICKLE:
        return None
    except Exception as error:
        raise _no_copy(value, error) from error
    return Master(source, pickle.loads) if type(back) is type(value) else None


def _deep_copied(value: Any) -> Master:
    try:
        source = deepcopy(value)
        again = deepcopy(source)
    except Exception as error:
        raise _no_copy(value, error) from error
    if type(again) is not type(value):
        raise _no_copy(value, f"its copy is a {type(again).__qualname__}")
    return Master(source, deepcopy)


def _no_copy(value: Any, error: object) -> CodecError:
    return CodecError(f"a {type(value).__qualname__} cannot be copied ({error!r})")
