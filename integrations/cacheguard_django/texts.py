"""Django's keys as key texts of a guard that can be listed, and patterns over them."""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

_PLAIN = re.compile(r"(?!#)[!-$&-z|~]*")  # characters that are stored unchanged: not the percent sign
_KEPT = "!\"#$&'()*+,-./:;<=>?@[\\]^_`|~"
_IN_PATTERN = re.compile(r"[^!-$&-z|~]")
_MAGIC = re.compile(r"[*?\[\]\\]")


def text_of(key: str) -> str:
    """Percent-encode spaces, braces, ``%`` and everything but printable ASCII in *key*."""
    if _PLAIN.fullmatch(key):
        return key
    text = quote(key, safe=_KEPT, errors="surrogatepass")
    return f"%23{text[1:]}" if text.startswith("#") else text


def key_of(text: str) -> str:
    """The key that has this text."""
    return unquote(text, errors="surrogatepass") if "%" in text else text


def pattern_of(pattern: str) -> str:
    """Convert a pattern over keys into one over key texts; wildcards keep their meaning."""
    text = _IN_PATTERN.sub(lambda char: quote(char[0], safe="", errors="surrogatepass"), pattern)
    return f"%23{text[1:]}" if text.startswith("#") else text


def literal(text: str) -> str:
    """A pattern that matches only *text*."""
    return _MAGIC.sub(r"\\\g<0>", text)
