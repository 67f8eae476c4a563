"""The items of a filter as text: every known form of one item has one text."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from contextlib import suppress
from decimal import Decimal, InvalidOperation
from enum import Enum
from fractions import Fraction
from hashlib import blake2b
from numbers import Integral
from uuid import UUID

from ...errors import ConfigurationError

LONGEST_TEXT = 64
ITEMS_PER_BREATH = 1000  # in an event loop, others have their turn after so many

Items = Iterable[object] | AsyncIterable[object]
Made = Items | Callable[[], Items]
Texts = list[str]

_EXACT_FLOAT = 2.0**53
_MOST_BITS = 14_000  # of a whole number; Python itself writes 4,300 digits
_UUID_BYTES = 16
_DOTLESS = str.maketrans("ıİ", "ii")  # what a Turkish lower() and upper() make of I and i
_IGNORED = frozenset({"Mn", "Me", "Cf"})  # accents, and characters that nobody sees
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d{1,6})?", re.ASCII)
_PART = re.compile(r"(\d+)(?:\.(\d+))?", re.ASCII)
_UUID = re.compile(
    r"(?:urn:uuid:)?\{?([0-9a-f]{8})-([0-9a-f]{4})-([0-9a-f]{4})-([0-9a-f]{4})-([0-9a-f]{12})\}?"
    r"|(?:urn:uuid:|\{)([0-9a-f]{32})\}?"
)


def made(items: Made) -> Items:
    """*items*, or what they return if they are a function: it may be a query, so it is called when they are read."""
    return items() if callable(items) else items


async def batches_of(items: Items, size: int) -> AsyncGenerator[Texts]:
    """The texts of *items*, so many at a time, without repetition inside a batch."""
    if isinstance(items, str | bytes | bytearray):
        raise ConfigurationError(f"expected an iterable of Bloom filter items, got one {type(items).__name__}")
    batch: dict[str, None] = {}
    if isinstance(items, AsyncIterable):
        async for item in items:
            batch.update(dict.fromkeys(texts_to_add(item)))
            if len(batch) >= size:
                yield list(batch)
                batch.clear()
    else:
        for item in items:
            batch.update(dict.fromkeys(texts_to_add(item)))
            if len(batch) >= size:
                yield list(batch)
                batch.clear()
    if batch:
        yield list(batch)


def texts_to_add(item: object) -> Texts:
    """The texts to add for *item*: one, or two for 16 bytes that may be a text or a UUID.

    Raises `ConfigurationError` for what cannot be an item.
    """
    if (raw := _bytes_of(item)) is not None and (both := _of_sixteen(raw)):
        return both
    return [item_text(item)]


def text_to_ask(item: object) -> str | None:
    """The text to look for, or None: *item* cannot be an item, or it may have been added in a form unknown here."""
    if (raw := _bytes_of(item)) is not None and _of_sixteen(raw):
        return None
    return _form(item)


def part_text(value: object) -> str | None:
    """The text of *value* as a part of an item, or None if such parts may have been written in another way."""
    if isinstance(value, Enum) and not isinstance(value, str | int):
        return part_text(value.value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, UUID):
        return value.hex
    text = None if _bytes_of(value) is not None else _form(value)
    return text if (text or "-").removeprefix("-").isdigit() else None


def item_text(item: object) -> str:
    """The text that stands for *item* in a filter: at most 64 characters, always encodable as UTF-8.

    All known forms of one item have one text. To take two items for one can only make the answer "maybe"; to take two
    forms of one item for two would hide a row. So upper and lower case, accents, spaces around a text and zeros
    in front of a number make no difference:

    - numbers that are equal, and their texts: ``42``, ``"42"``, ``b"42"``, ``42.0``, ``Decimal("42.00")``, ``"042"``
    - a `UUID`, its texts (with and without hyphens, braces, ``urn:uuid:``) and its 16 bytes
    - a member of an `Enum` and its value

    A text longer than 64 characters is replaced by its digest. Raises `ConfigurationError` for all other types, bools,
    infinities, and floats from 2**53 on, which are no longer exact.
    """
    text = _form(item)
    if text is None:
        shown = f"of {item.bit_length()} bits" if isinstance(item, int) else f"{item!r:.80}"
        raise ConfigurationError(
            "a Bloom filter item must be a str, int, bytes, UUID, Enum, or an exact finite float, Decimal or Fraction, "
            f"got {type(item).__name__} {shown}; pass the row's key as text"
        )
    return text


def _form(item: object) -> str | None:  # noqa: PLR0911 - one case per type
    if isinstance(item, bool) or item is None:
        return None
    if isinstance(item, str):
        return _bounded(_text_form(str.__str__(item)))
    if isinstance(item, int):
        return _whole(item)
    if isinstance(item, float | Decimal | Fraction):
        return _number(item)
    raw = _bytes_of(item)
    if raw is not None:
        return _bounded(_text_form(_decoded(raw)))
    if isinstance(item, UUID):
        return _bounded(_text_form(item.hex))
    if isinstance(item, Enum):
        return _form(item.value)
    return _whole(int(item)) if isinstance(item, Integral) else None  # such as numpy's


def _bytes_of(item: object) -> bytes | None:
    if isinstance(item, memoryview):
        return item.tobytes()
    return bytes(item) if isinstance(item, bytes | bytearray) else None


def _of_sixteen(item: bytes) -> Texts:
    """The texts of 16 bytes that are text, and may be those of a UUID instead; none for other bytes."""
    if len(item) != _UUID_BYTES:
        return []
    try:
        text = item.decode()
    except UnicodeDecodeError:
        return []
    return [_bounded(_text_form(text)), _bounded(_text_form(item.hex()))]


def _decoded(item: bytes) -> str:
    try:
        return item.decode()
    except UnicodeDecodeError:
        return item.hex()


def _text_form(text: str) -> str:
    """The one form of a text and of everything that it may be a form of."""
    if text.isascii():
        text = text.strip().lower()
        if text.isdigit() and len(text) <= LONGEST_TEXT:
            return text.lstrip("0") or "0"
    else:
        text = _plain_letters(text).strip()
    if "-" in text or "{" in text or ":" in text:
        text = _UUID.sub(_without_hyphens, text)
    if _NUMBER.fullmatch(text):
        with suppress(InvalidOperation):  # beyond what any Decimal can be: a text like others
            return _number(Decimal(text)) or text
    return _PART.sub(_part, text)


def _plain_letters(text: str) -> str:
    """Letters without case and accents, as a database may compare them."""
    for _ in range(2):  # what is folded may have to be taken apart once more
        # Folded first: what is an accent in lower case may be a letter in upper case.
        apart = unicodedata.normalize("NFKD", text.translate(_DOTLESS).casefold())
        text = "".join(map(_letter, apart))
    return text


def _letter(letter: str) -> str:
    category = unicodedata.category(letter)
    if category == "Nd":
        return str(unicodedata.decimal(letter))
    return "" if category in _IGNORED else letter


def _without_hyphens(found: re.Match[str]) -> str:
    return "".join(group for group in found.groups() if group)


def _part(found: re.Match[str]) -> str:
    """A number inside a text, without zeros that mean nothing."""
    whole, fraction = found[1].lstrip("0") or "0", (found[2] or "").rstrip("0")
    return f"{whole}.{fraction}" if fraction else whole


def _whole(number: int) -> str | None:
    if -(10**LONGEST_TEXT) < number < 10**LONGEST_TEXT:
        return int.__repr__(number)
    return _scientific(Decimal(number)) if number.bit_length() <= _MOST_BITS else None


def _number(number: float | Decimal | Fraction) -> str | None:
    if isinstance(number, float):
        if not -_EXACT_FLOAT < number < _EXACT_FLOAT:  # NaN, too
            return None
        return str(int(number)) if number.is_integer() else float.__repr__(number)
    return _decimal(number) if isinstance(number, Decimal) else _fraction(Fraction(number))


def _fraction(number: Fraction) -> str | None:
    return _whole(number.numerator) if number.denominator == 1 else _nearest(number)


def _decimal(number: Decimal) -> str | None:
    if not number.is_finite() or abs(number.adjusted()) > _MOST_BITS:
        return None
    if number.adjusted() >= LONGEST_TEXT:
        return _scientific(number)
    return str(int(number)) if number == number.to_integral_value() else _nearest(number)


def _nearest(number: Decimal | Fraction) -> str | None:
    """The nearest float: so a float, the decimal that shows it and the decimal that is equal to it are one item."""
    try:
        nearest = float(number)
    except OverflowError:
        return None
    return str(int(nearest)) if nearest.is_integer() else repr(nearest)


def _scientific(number: Decimal) -> str:
    """A number of more than 64 digits, in one form."""
    sign, digits, exponent = number.as_tuple()
    text = "".join(map(str, digits))
    short = text.lstrip("0").rstrip("0")
    return _bounded(f"{'-' * sign}{short}e{int(exponent) + len(text) - len(text.rstrip('0'))}")


def _bounded(text: str) -> str:
    if len(text) <= LONGEST_TEXT and (text.isascii() or not _has_surrogates(text)):
        return text
    return "#" + blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _has_surrogates(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
