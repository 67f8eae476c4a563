"""A template's key in one call, for the plain numbers and short words that most keys are made of.

Made from source text with `exec`, as the wrappers are: a call for each field would cost more than the key.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from ..protocol.names import LONGEST_PLAIN
from .template import TextTemplate

_LARGEST = 10**18
_LONGEST_FIELD = 64
# What `protocol.names` neither escapes nor makes a digest of.
_WORD = re.compile(rf"[!-$&-9;-z|~]{{0,{_LONGEST_FIELD}}}")
_LITERAL = re.compile(r"(?!#)[!-z|~]+")

_SOURCE = """
def _cg_key(_cg_values, _cg_word=_cg_word):{checks}
    return f{text!r}
"""
_CHECK = """
    _cg_{at} = _cg_values[{position}]
    if _cg_{at}.__class__ is int:
        if not -{largest} < _cg_{at} < {largest}:
            return None
    elif _cg_{at}.__class__ is not str or _cg_word(_cg_{at}) is None:
        return None"""


def quick_key(
    template: TextTemplate, prefix: str, positions: Sequence[int]
) -> Callable[[Sequence[Any]], str | None] | None:
    """A function that makes the Redis key of a call, or None if its values need a closer look.

    None if the template is not plain.

    Args:
        prefix: what the keys of the namespace begin with.
        positions: where the values of the template's fields are among those of a call.
    """
    literals, places = template.literals, template.plain_places
    if places is None or "{" in prefix or "}" in prefix or not _LITERAL.fullmatch("".join(literals)) or not literals[0]:
        return None
    if sum(map(len, literals)) + _LONGEST_FIELD * len(places) > LONGEST_PLAIN:
        return None
    used = sorted(set(places))
    checks = "".join(_CHECK.format(at=at, position=positions[at], largest=_LARGEST) for at in used)
    text = prefix + literals[0]
    for at, literal in zip(places, literals[1:], strict=True):
        text += f"{{_cg_{at}}}{literal}"
    scope: dict[str, Any] = {"_cg_word": _WORD.fullmatch}
    exec(_SOURCE.format(checks=checks, text=text), scope)  # noqa: S102 - checked above: no braces, no control characters
    made: Callable[[Sequence[Any]], str | None] = scope["_cg_key"]
    return made
