"""A call's function and arguments → key text, and key text → Redis key.

Key text is what people write, read and pass to ``invalidate``: ``user:42``. Two different sets of field values never
make the same text, because whatever could end a field is percent-encoded inside it.

Inner: not for import; use `cacheguard` or `cacheguard.extending`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .call import CallText
from .template import TextTemplate
from .text import KeyMaker

__all__ = [
    "CallText",
    "KeyMaker",
    "TextTemplate",
    "compile_key",
]


def compile_key(template: str | None, fn: Callable[..., Any]) -> KeyMaker:
    """Return the key maker for the calls of *fn*: from *template*, or from all arguments and their types.

    `KeyTemplateError` if the template does not fit the function, or if no unique text can be made without a template.
    """
    return CallText(fn) if template is None else TextTemplate(template, fn)
