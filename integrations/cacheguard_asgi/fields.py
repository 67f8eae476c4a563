"""HTTP fields as a cache has to read them: directives, dates, entity tags, ranges."""

from __future__ import annotations

import re
from calendar import timegm
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeAlias

from http_sfv.dictionary import Dictionary

Headers: TypeAlias = list[tuple[bytes, bytes]]  # names in lower case

LONGEST = 2**31  # seconds; RFC 9111 §1.2.2: a larger number counts as this one

_DIRECTIVE = re.compile(rb'\s*([!#$%&\'*+.^_`|~0-9A-Za-z-]+)(?:=(?:"((?:[^"\\]|\\.)*)"|([^\s,;"]*)))?\s*(?:,|$)')
_OTHER = re.compile(rb'(?:"(?:[^"\\]|\\.)*"|[^,"])*(?:,|$)')
_DIGITS = re.compile(rb"[0-9]+")
_ETAG = re.compile(rb'\s*((?:[Ww]/)?"[^"]*"|[^\s,"]+)\s*(?:,|$)')
_TOKENS = re.compile(rb"[^\s,]+")
_FORBIDDING = re.compile(rb"(?:^|;)\s*(no-store|no-cache|private)(?![!#$%&'*+.^_`|~0-9A-Za-z-])", re.IGNORECASE)
# Without an argument that names fields they forbid the most, so then they count however they are written.
_FORBID = frozenset({b"no-store", b"no-cache", b"private"})
_MONTHS = (b"jan", b"feb", b"mar", b"apr", b"may", b"jun", b"jul", b"aug", b"sep", b"oct", b"nov", b"dec")
_CLOCK = rb"(\d\d):(\d\d):(\d\d)"
_FIXDATE = re.compile(rb"[a-z]{3}, (\d\d) ([a-z]{3}) (\d{4}) " + _CLOCK + rb" gmt")
_RFC850 = re.compile(rb"[a-z]{6,9}, (\d\d)-([a-z]{3})-(\d\d) " + _CLOCK + rb" gmt")
_ASCTIME = re.compile(rb"[a-z]{3} ([a-z]{3}) ([ \d]\d) " + _CLOCK + rb" (\d{4})")
_RANGE = re.compile(rb"bytes=\s*(\d*)-(\d*)\s*", re.IGNORECASE)
_FORWARDED = re.compile(rb'\s*(?:([!#$%&\'*+.^_`|~0-9A-Za-z-]+)=("(?:[^"\\]|\\.)*"|[^\s",;]*))?\s*([,;]|$)')
_CONTENT_RANGE = re.compile(rb"bytes (\d+)-(\d+)/(\d+)", re.IGNORECASE)


def joined(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """All lines of the field *name*, combined as in RFC 9110 §5.3; None if the field is absent."""
    values = [value for each, value in headers if each == name]
    return b", ".join(values) if values else None


def directives(value: bytes | None) -> dict[bytes, bytes | None]:
    """The directives of Cache-Control, by lower-case name. If a name occurs twice, the first one counts.

    Anything that is not a directive is skipped. A quoted argument is returned without its quotes. Of what forbids
    something the strictest counts (RFC 9111 §4.2.1), and it counts if only its name can be read, as in ``private; x``.
    """
    found: dict[bytes, bytes | None] = {}
    at = 0
    while value and at < len(value):
        match = _DIRECTIVE.match(value, at)
        if match is None:
            skipped = _OTHER.match(value, at)
            end = len(value) if skipped is None else max(skipped.end(), at + 1)
            for name in _FORBIDDING.findall(value[at:end]):
                found[name.lower()] = None
            at = end
            continue
        name, quoted, token = match.groups()
        _add(found, name.lower(), quoted if quoted is not None else token)
        at = match.end()
    return found


def _add(found: dict[bytes, bytes | None], name: bytes, argument: bytes | None) -> None:
    if name not in _FORBID:
        found.setdefault(name, argument)
    elif not argument or not found.get(name, argument):
        found[name] = None
    else:
        found[name] = b", ".join(each for each in (found.get(name), argument) if each)


def targeted(value: bytes) -> dict[bytes, bytes | None] | None:
    """The directives of a targeted field (RFC 9213), a Dictionary of RFC 8941; None if it cannot be parsed or is empty.

    A directive whose value has the wrong type is ignored.
    """
    parsed: Any = Dictionary()
    try:
        parsed.parse(value)
    except Exception:  # noqa: BLE001 - the parser raises ValueError, and other errors on malformed bytes
        return None
    found: dict[bytes, bytes | None] = {}
    for name, item in parsed.items():
        member: Any = getattr(item, "value", None)
        if member is True:
            found[name.encode()] = None
        elif isinstance(member, int) and not isinstance(member, bool):
            found[name.encode()] = b"%d" % member
        elif name in {"no-cache", "private"} and isinstance(member, str):
            found[name.encode()] = member.encode() or None
    return found or None


def delta(value: bytes | None) -> int | None:
    """Read a number of seconds as in RFC 9111 §1.2.2; None for anything else."""
    if value is None or _DIGITS.fullmatch(value) is None:
        return None
    return min(int(value), LONGEST) if len(value) < 20 else LONGEST  # noqa: PLR2004 - digits; more would be slow


def names_in(value: bytes | None) -> tuple[bytes, ...]:
    """A list of field names, in lower case, each once."""
    return tuple(dict.fromkeys(name.lower() for name in _TOKENS.findall(value or b"")))


def date(value: bytes | None) -> float | None:
    """Read an HTTP date in one of its three forms, as seconds since 1970; None for anything else."""
    if value is None:
        return None
    text = value.strip().lower()
    if match := _FIXDATE.fullmatch(text):
        day, month, year, *clock = match.groups()
    elif match := _RFC850.fullmatch(text):
        day, month, year, *clock = match.groups()
        year = b"%d" % _full_year(int(year))
    elif match := _ASCTIME.fullmatch(text):
        month, day, *clock, year = match.groups()
    else:
        return None
    if month not in _MONTHS:
        return None
    hours, minutes, seconds = map(int, clock)
    try:
        moment = datetime(int(year), _MONTHS.index(month) + 1, int(day), hours, minutes, min(seconds, 59), tzinfo=UTC)
    except ValueError:
        return None
    return float(timegm(moment.utctimetuple()))


def _full_year(short: int) -> int:
    """RFC 9110 §5.6.7: a two-digit year more than 50 years ahead means the past century."""
    this = datetime.now(UTC).year
    year = this - this % 100 + short
    return year - 100 if year > this + 50 else year


def etags(value: bytes) -> list[bytes]:
    """The entity tags of If-None-Match, or ``[b"*"]``."""
    found: list[bytes] = []
    at = 0
    while at < len(value) and (match := _ETAG.match(value, at)):
        found.append(match[1])
        at = match.end()
    return found


def weakly_equal(one: bytes, other: bytes) -> bool:
    """True if two entity tags match by the weak comparison."""
    return _opaque(one) == _opaque(other)


def is_strong(etag: bytes | None) -> bool:
    """True if *etag* is a strong validator."""
    return etag is not None and etag.startswith(b'"') and len(etag) > 1 and etag.endswith(b'"')


def _opaque(etag: bytes) -> bytes:
    return etag[2:] if etag[:2] in {b"W/", b"w/"} else etag


def span(value: bytes | None, total: int) -> tuple[int, int] | None:
    """The requested range of *total* bytes, as [first, after the last); None unless there is exactly one valid range.

    None, too, for the last bytes of an empty body: no Content-Range can name them. Raises `ValueError` if the range
    lies outside of the body.
    """
    match = None if value is None else _RANGE.fullmatch(value)
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        length = _position(match[2])
        if length == 0:
            raise ValueError("out of range")
        return (max(0, total - length), total) if total else None
    first = _position(match[1])
    after = min(_position(match[2]) + 1, total) if match[2] else total
    if match[2] and _position(match[2]) < first:
        return None
    if first >= total:
        raise ValueError("out of range")
    return first, after


def _position(digits: bytes) -> int:
    """A number of bytes. No body is longer than 18 digits can say, and more would be slow to read."""
    return int(digits) if len(digits) < 19 else int(digits.lstrip(b"0")[:19] or b"0")  # noqa: PLR2004


def content_range(value: bytes | None) -> tuple[int, int, int] | None:
    """First byte, byte after the last, and total length; None if one of them is missing."""
    match = None if value is None else _CONTENT_RANGE.fullmatch(value.strip())
    if match is None or any(len(part) > 18 for part in match.groups()):  # noqa: PLR2004 - digits; no body is that long
        return None
    first, last, total = map(int, match.groups())
    return (first, last + 1, total) if first <= last < total else None


def combined(headers: Iterable[tuple[bytes, bytes]]) -> Mapping[bytes, bytes]:
    """Every field with its lines combined. Those of Cookie are no list, so that is joined as RFC 9113 §8.2.3 says."""
    lines = headers if isinstance(headers, list) else list(headers)
    found = dict(lines)
    if len(found) == len(lines):
        return found
    found.clear()
    for name, value in lines:
        found[name] = found[name] + (b"; " if name == b"cookie" else b", ") + value if name in found else value
    return found


def listed(value: bytes) -> list[bytes]:
    """The elements of a list without quoted ones."""
    return [each.strip() for each in value.split(b",") if each.strip()]


def forwarded(value: bytes) -> list[dict[bytes, bytes]] | None:
    """The elements of Forwarded (RFC 7239), the farthest proxy's first, in lower case; None if it cannot be read."""
    elements: list[dict[bytes, bytes]] = [{}]
    at = 0
    while at < len(value):
        match = _FORWARDED.match(value, at)
        if match is None or match.end() == at:
            return None
        name, said, end = match.groups()
        if name:
            name, said = name.lower(), said.lower()
            if said.startswith(b'"'):
                said = re.sub(rb"\\(.)", rb"\1", said[1:-1])
            if name in elements[-1]:
                return None
            elements[-1][name] = said
        if end == b",":
            elements.append({})
        at = match.end()
    return [each for each in elements if each]
