"""What a filter is asked about, as text."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterable, Iterable
from decimal import Decimal
from hashlib import blake2b

from ...errors import ConfigurationError

LONGEST_TEXT = 64
ITEMS_PER_BREATH = 1000  # in an event loop, others have their turn after so many

Items = Iterable[object] | AsyncIterable[object]
Texts = list[str]


async def batches_of(items: Items, size: int) -> AsyncGenerator[Texts]:
    """The texts of *items*, so many at a time, without repetition inside a batch."""
    if isinstance(items, str | bytes | bytearray):
        raise ConfigurationError(f"expected an iterable of Bloom filter items, got one {type(items).__name__}")
    batch: dict[str, None] = {}
    if isinstance(items, AsyncIterable):
        async for item in items:
            batch[item_text(item)] = None
            if len(batch) >= size:
                yield list(batch)
                batch.clear()
    else:
        for item in items:
            batch[item_text(item)] = None
            if len(batch) >= size:
                yield list(batch)
                batch.clear()
    if batch:
        yield list(batch)


def item_text(item: object) -> str:
    """The text that stands for *item* in a filter: at most 64 characters, always encodable as UTF-8.

    All forms of one text are one item: ``42``, ``"42"``, ``b"42"``, ``42.0``, ``Decimal(42)``, an `IntEnum` of 42.
    Taking two forms for one item can only make the answer "maybe"; telling them apart could hide a row that was added
    as a number and is asked for as text. Text longer than 64 characters is replaced by its digest.

    Raises `ConfigurationError` for what has no text of its own: ``None``, bools, NaN, containers, plain objects.
    """
    if isinstance(item, str):
        text = str.__str__(item)
    elif isinstance(item, bool) or item is None:
        raise _unfit(item)
    elif isinstance(item, int):
        text = int.__repr__(item) if item.bit_length() <= LONGEST_TEXT * 3 else hex(item)
    elif isinstance(item, float | Decimal):
        text = _number_text(item)
    elif isinstance(item, bytes | bytearray):
        text = item.decode("utf-8", "surrogateescape")
    elif type(item).__str__ is object.__str__:
        raise _unfit(item)
    else:
        text = str(item)
    return text if text.isascii() and len(text) <= LONGEST_TEXT else _bounded(text)


def _number_text(item: float | Decimal) -> str:
    if not (item.is_finite() if isinstance(item, Decimal) else math.isfinite(item)):
        raise _unfit(item)
    # The size is looked at first: int(Decimal("1e999999999")) would fill the memory.
    small = -(10**LONGEST_TEXT) < item < 10**LONGEST_TEXT
    return str(int(item)) if small and item == int(item) else str(item)


def _bounded(text: str) -> str:
    encoded = text.encode("utf-8", "surrogatepass")
    if len(text) <= LONGEST_TEXT and not _has_surrogates(text):
        return text
    return "#" + blake2b(encoded, digest_size=16).hexdigest()


def _has_surrogates(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _unfit(item: object) -> ConfigurationError:
    return ConfigurationError(
        f"a Bloom filter item must be a str, int, bytes, finite float, UUID or another object whose class defines "
        f"__str__, got {type(item).__name__} {item!r:.80}; pass the row's key as text"
    )
