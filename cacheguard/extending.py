"""What an integration may rely on: the names that a front for a framework needs from inside.

An integration imports from `cacheguard`, `cacheguard.errors` and `cacheguard.extending`, and from no other module: all
other modules are inner. They may move or change in any release.

The promise: within a minor version (0.1.0, 0.1.1, …) each name in ``__all__`` keeps its meaning and its signature. A
new minor version may change one; the changelog then says which, and what replaces it. Names may be added at any time.

Settings

- `GUARD_OPTIONS`: the names of the parameters of `CacheGuard`, without ``policy``.
- `POLICY_FIELDS`: the names of the fields of `Policy`.
- `DEFAULTS`: the policy that a guard has if nothing else is asked for.
- `keeps_in_redis`: tells whether a guard with these options stores anything outside of the process.
- `count`: checks that an option is a whole number of at least 1.
- `flag`: checks that an option is True or False.

Durations

- `Duration`: the type of a duration as users write it: seconds, a `timedelta`, or text like ``"5m"``.
- `seconds`: checks a duration, and gives its seconds.
- `settle_seconds`: the same for the option ``settle``: 0 for None, at most a day.
- `FOREVER`: the seconds of an entry without expiry, since a key in Redis always keeps some.

Keys

- `TextTemplate`: a key text with fields over the parameters of a function: ``"user:{user_id}"``.
- `row_template`: a `TextTemplate` over the attributes of a row.
- `roots_of`: the names that the fields of a template begin with.
- `CallText`: the key text of a call: the function's name and all arguments, each with its type.
- `call_text`: a `CallText` for a name and a list of parameters.
- `bus_channel`: the Redis channel on which the processes of a namespace publish their invalidations.

Loads

- `load_here`: the load that this code is part of. Unlike `current_load`, it leaves no trace.

Writes

- `Mode`: how a write is guarded: ``"fence"``, ``"delete"`` or ``"double"``.
- `Version`: the type of a source version: a whole number, an aware `datetime`, or a log position as text.
- `OfResult`: the type of a function of a result that names keys or tags.
- `DELAY`, `INTENT`: the defaults of these two options of `CacheGuard.writing`.
- `Writing`: a block that guards writes, as `CacheGuard.writing` makes it.
- `Write`: the write under way that such a block gives.
- `OpenBlocks`: whose block ends, where several tasks and threads have entered one object.
- `check_writing`: checks the options of `CacheGuard.writing` before there is a guard.
- `decorate_writes`: makes a decorator like `CacheGuard.invalidates` from a function that opens blocks.

Values

- `TAGGED`: the codec for plain data without a stated type: builtin types, dates, `Decimal`, `UUID`, nested.
- `Oversize`: the error of a value that is larger than ``max_value_bytes``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import fields
from inspect import Parameter, Signature, signature
from string import Formatter
from typing import Any, Final, cast

from .checks import count, flag
from .codec import TAGGED
from .current_load import CURRENT, Load
from .defenses.consistency import Version
from .doors.writing import (
    DELAY,
    INTENT,
    Mode,
    OfResult,
    Write,
    WriteTerms,
    Writing,
    decorate_writes,
    settle_seconds,
)
from .durations import FOREVER, Duration, seconds
from .guard import CacheGuard
from .keys import CallText, TextTemplate
from .policy import DEFAULTS, Policy
from .protocol.envelope import Oversize
from .protocol.names import bus_channel
from .runtime.blocks import OpenBlocks

__all__ = [
    "DEFAULTS",
    "DELAY",
    "FOREVER",
    "GUARD_OPTIONS",
    "INTENT",
    "POLICY_FIELDS",
    "TAGGED",
    "CallText",
    "Duration",
    "Mode",
    "OfResult",
    "OpenBlocks",
    "Oversize",
    "TextTemplate",
    "Version",
    "Write",
    "Writing",
    "bus_channel",
    "call_text",
    "check_writing",
    "count",
    "decorate_writes",
    "flag",
    "keeps_in_redis",
    "load_here",
    "roots_of",
    "row_template",
    "seconds",
    "settle_seconds",
]

GUARD_OPTIONS: Final[tuple[str, ...]] = tuple(name for name in signature(CacheGuard).parameters if name != "policy")
POLICY_FIELDS: Final[tuple[str, ...]] = tuple(field.name for field in fields(Policy))


def keeps_in_redis(url: object = None, client: object = None, aclient: object = None) -> bool:
    """Whether a guard with these options stores anything outside of the process.

    Without a client and a URL the environment's ``CACHEGUARD_URL`` counts, as for `CacheGuard`.
    """
    if client is not None or aclient is not None:
        return True
    address = url or os.environ.get("CACHEGUARD_URL") or "memory://"
    return str(address).partition(":")[0].lower() != "memory"


def load_here() -> Load | None:
    """The load that this code is part of; None outside of one.

    A loader that calls `current_load` is taken for one that may answer otherwise the next time, and is asked again
    after a stale answer. This function changes nothing: it is for code that looks on.
    """
    return CURRENT.get()


def check_writing(mode: Mode, settle: Duration | None, delay: Duration, intent: Duration) -> None:
    """Check the options of `CacheGuard.writing`; `ConfigurationError` names the one that cannot work."""
    WriteTerms(mode, settle, delay, intent)


def roots_of(template: str) -> tuple[str, ...]:
    """The names that the fields of *template* begin with: ``id`` of ``{id}`` and of ``{id.hex}``.

    Nothing of a text that is no template: `TextTemplate` says what is wrong with it.
    """
    try:
        names = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    except ValueError:
        return ()
    return tuple(dict.fromkeys(name.partition(".")[0].partition("[")[0] for name in names))


def row_template(template: str, attributes: Iterable[str], called: str) -> TextTemplate:
    """A template over the attributes of a row; `KeyTemplateError` if a field names another one.

    Args:
        template: like ``"user:{id}"``.
        attributes: the names that its fields may begin with.
        called: the name of the row's class in messages.
    """
    return TextTemplate(template, _stand_in(called, ()), more=attributes)


def call_text(name: str, parameters: Sequence[str]) -> CallText:
    """The key texts of the calls of something that is not at hand as a function.

    Args:
        name: module and qualified name, like ``"shop.views.works"``.
        parameters: the names of its parameters, in the order in which `CallText.text_of` takes their values. Give for
            ``self`` a value that tells the object apart.
    """
    # `CallText` refuses a parameter named self: nothing would tell the objects apart. Here the value does.
    return CallText(_stand_in(name, [f"{each}_" if each == "self" else each for each in parameters]))


def _stand_in(name: str, parameters: Iterable[str]) -> Any:
    """A function with this name and these parameters, to be looked at."""

    def stand_in() -> None:
        """Is never called."""

    module, _, own = name.rpartition(".")
    stand_in.__module__, stand_in.__qualname__ = module, own
    kinds = [Parameter(each, Parameter.KEYWORD_ONLY) for each in parameters]
    cast("Any", stand_in).__signature__ = Signature(kinds)
    return stand_in
