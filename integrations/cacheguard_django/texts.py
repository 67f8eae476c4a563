"""Django's keys as key texts of a guard that can be listed, and patterns over them."""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

_PLAIN = re.compile(r"(?!#)[!-$&-z|~]*")  # what is stored as it reads, except the percent sign
_KEPT = "!\"#$&'()*+,-./:;<=>?@[\\]^_`|~"
_IN_PATTERN = re.compile(r"[^!-$&-z|~]")
_MAGIC = re.compile(r"[*?\[\]\\]")


def text_of(key: str) -> str:
    """*key* with spaces, braces, ``%`` and what is no printable ASCII percent-encoded."""
    if _PLAIN.fullmatch(key):
        return key
    text = quote(key, safe=_KEPT, errors="surrogatepass")
    return f"%23{text[1:]}" if text.startswith("#") else text


def key_of(text: str) -> str:
    """The key that has this text."""
    return unquote(text, errors="surrogatepass") if "%" in text else text


def pattern_of(pattern: str) -> str:
    """*pattern* over keys, as one over their texts: what has a meaning in it keeps that."""
    text = _IN_PATTERN.sub(lambda char: quote(char[0], safe="", errors="surrogatepass"), pattern)
    return f"%23{text[1:]}" if text.startswith("#") else text


def literal(text: str) -> str:
    """A pattern that matches *text* alone."""
    return _MAGIC.sub(r"\\\g<0>", text)
