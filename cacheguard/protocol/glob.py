"""Names that match a pattern, as Redis understands it."""

from __future__ import annotations

import re
from collections.abc import Callable

_WILD = {"*": ".*", "?": "."}


def glob(pattern: str) -> Callable[[str], object]:
    r"""A test for names that match *pattern* as Redis understands it: ``*``, ``?``, ``[a-c]``, ``[^a]``, ``\*``."""
    parts: list[str] = []
    at = 0
    while at < len(pattern):
        char = pattern[at]
        if char == "[":
            part, at = _set(pattern, at + 1)
            parts.append(part)
            continue
        if char == "\\" and at + 1 < len(pattern):
            at += 1
            parts.append(re.escape(pattern[at]))
        else:
            parts.append(_WILD.get(char) or re.escape(char))
        at += 1
    return re.compile("".join(parts), re.DOTALL).fullmatch


def _set(pattern: str, at: int) -> tuple[str, int]:
    """The regular expression for a set of characters that begins at *at*, and where the pattern goes on."""
    negated = pattern.startswith("^", at)
    at += negated
    ranges: list[str] = []
    while at < len(pattern) and pattern[at] != "]":
        first = last = pattern[at]
        if first == "\\" and at + 1 < len(pattern):
            at += 1
            first = last = pattern[at]
        elif pattern.startswith("-", at + 1) and at + 2 < len(pattern):
            at += 2
            first, last = sorted((first, pattern[at]))
        ranges.append(f"{re.escape(first)}-{re.escape(last)}")
        at += 1
    among = "|".join(f"[{each}]" for each in ranges) or "(?!)"
    return (f"(?!{among})." if negated else f"(?:{among})"), at + 1
