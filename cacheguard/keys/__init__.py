"""A call's function and arguments → key text, and key text → Redis key.

Key text is what people write, read and pass to ``invalidate``: ``user:42``. Two different sets of field values never
make the same text, because whatever could end a field is percent-encoded inside it.

Inner: not for import; use `cacheguard` or `cacheguard.extending`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .call import CallText
from .identity import leaves_of
from .owners import Owner, Owners
from .parameters import UNBOUND, VARIADIC, Binder, called_as_bound, given_values, signature_of
from .quick import quick_key
from .template import TextTemplate
from .text import KeyMaker

__all__ = [
    "UNBOUND",
    "VARIADIC",
    "Binder",
    "CallText",
    "KeyMaker",
    "Owner",
    "Owners",
    "TextTemplate",
    "called_as_bound",
    "compile_key",
    "given_values",
    "quick_key",
    "signature_of",
]


def compile_key(template: str | None, fn: Callable[..., Any], *, closures: bool = False) -> KeyMaker:
    """Return the key maker for the calls of *fn*: from *template*, or from all arguments and their types.

    *closures*: without a template, take a function that other variables make different from others of its name.

    `KeyTemplateError` if the template does not fit the function, or if no unique text can be made without a template.
    """
    if template is not None:
        return TextTemplate(template, fn)
    return CallText(fn, closure=leaves_of(fn) if closures else None)
