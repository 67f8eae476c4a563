"""The stable names for integrations with frameworks.

An integration imports only from `cacheguard`, `cacheguard.errors` and `cacheguard.extending`. All other modules are
inner: they may move or change in any release.

The promise: within a minor version (0.1.0, 0.1.1, …) each name in ``__all__`` keeps its meaning and its signature. A
new minor version may change one; the changelog then names it and its replacement. Names may be added at any time.

Settings

- `GUARD_OPTIONS`: the names of the parameters of `CacheGuard`, without ``policy``.
- `POLICY_FIELDS`: the names of the fields of `Policy`.
- `DEFAULTS`: the default policy of a guard.
- `keeps_in_redis`: True if a guard with these options stores entries outside of the process.
- `count`: checks that an option is a whole number of at least 1.
- `flag`: checks that an option is True or False.

Durations

- `Duration`: the type of a duration as users write it: seconds, a `timedelta`, or text like ``"5m"``.
- `seconds`: checks a duration and returns it in seconds.
- `seconds_up_to_forever`: the same for a framework's timeout: one that is too long is cut, which is logged once.
- `settle_seconds`: the same for the option ``settle``: 0 for None, at most a day.
- `FOREVER`: the TTL, in seconds, of an entry without expiry: a key in Redis always has a TTL.

Keys

- `TextTemplate`: a key text with fields over the parameters of a function: ``"user:{user_id}"``.
- `row_template`: a `TextTemplate` over the attributes of a row.
- `row_item`: makes the item of a Bloom filter from the attributes of a row, as ``bloom_item=`` makes it from arguments.
- `roots_of`: the names that the fields of a template begin with.
- `CallText`: the key text of a call: the function's name and all arguments, each with its type.
- `call_text`: makes a `CallText` from a name and a list of parameters.
- `Binder`: binds the calls of a function, which decorators may have wrapped, to its parameters.
- `KeyOwner`: refuses a key that functions of the same code with other variables would share.
- `take_closures`: lets a guard cache functions that are made inside of others without a template.
- `bus_channel`: the Redis channel on which the processes of a namespace publish their invalidations.

Loads

- `load_here`: returns the load that this code is part of. Unlike `current_load`, it has no side effect.
- `at_thread_end`: calls a function at the end of each thread in which a guard has run loads behind.

Writes

- `Mode`: how a write is guarded: ``"fence"``, ``"delete"`` or ``"double"``.
- `Version`: the type of a source version: a whole number, an aware `datetime`, or a log position as text.
- `OfResult`: the type of a function of a result that names keys or tags.
- `DELAY`, `INTENT`: the defaults of these two options of `CacheGuard.writing`.
- `Writing`: a block that guards writes; `CacheGuard.writing` returns it.
- `Write`: the running write that such a block yields.
- `OpenBlocks`: finds the block to end if several tasks and threads have entered one object.
- `check_writing`: checks the options of `CacheGuard.writing` without a guard.
- `decorate_writes`: makes a decorator like `CacheGuard.invalidates` from a function that opens blocks.

Values

- `TAGGED`: the codec for plain data without a stated type: builtin types, dates, `Decimal`, `UUID`, nested.
- `Oversize`: the error for a value that is larger than ``max_value_bytes``.
- `refuse_once`: raises `CodecError` for a value that can be read only once, such as an iterator.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from inspect import Parameter, Signature, signature
from string import Formatter
from typing import Any, Final, cast

from .checks import count, flag
from .codec import TAGGED
from .codec.once import refuse as refuse_once
from .current_load import CURRENT, Load
from .defenses.consistency import Version
from .doors.bloom import item_of
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
from .durations import FOREVER, Duration, any_seconds, seconds
from .errors import ConfigurationError
from .events import log
from .guard import CacheGuard
from .keys import Binder, CallText, Owner, TextTemplate
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
    "Binder",
    "CallText",
    "Duration",
    "KeyOwner",
    "Mode",
    "OfResult",
    "OpenBlocks",
    "Oversize",
    "TextTemplate",
    "Version",
    "Write",
    "Writing",
    "at_thread_end",
    "bus_channel",
    "call_text",
    "check_writing",
    "count",
    "decorate_writes",
    "flag",
    "keeps_in_redis",
    "load_here",
    "refuse_once",
    "roots_of",
    "row_item",
    "row_template",
    "seconds",
    "seconds_up_to_forever",
    "settle_seconds",
    "take_closures",
]

GUARD_OPTIONS: Final[tuple[str, ...]] = tuple(name for name in signature(CacheGuard).parameters if name != "policy")
POLICY_FIELDS: Final[tuple[str, ...]] = tuple(field.name for field in fields(Policy))


def keeps_in_redis(url: object = None, client: object = None, aclient: object = None) -> bool:
    """Return True if a guard with these options stores entries outside of the process.

    Without a client and a URL, the environment variable ``CACHEGUARD_URL`` decides, as for `CacheGuard`.
    """
    if client is not None or aclient is not None:
        return True
    address = url or os.environ.get("CACHEGUARD_URL") or "memory://"
    return str(address).partition(":")[0].lower() != "memory"


_cut: set[str] = set()


def seconds_up_to_forever(value: object, name: str) -> float:
    """Return *value* in seconds, at most `FOREVER`. The first time that a longer one is cut, this is logged.

    For timeouts that come with a call: a framework allows any, and a caller should not fail because of it.
    """
    number = any_seconds(value, name)
    if number > FOREVER and name not in _cut:
        _cut.add(name)
        log.warning("%s=%r is too long: an entry is cached for 365 days at most", name, value)
    return min(number, FOREVER)


def load_here() -> Load | None:
    """Return the load that this code is part of; None outside of a load.

    If a loader calls `current_load` and then returns a value older than the newest known version, it is called again.
    This function has no such effect: it is for code that only reads.
    """
    return CURRENT.get()


def at_thread_end(guard: CacheGuard, end: Callable[[], object]) -> None:
    """Call *end* at the end of each thread that *guard* starts for loads: refreshes behind, and `CacheGuard.warm`.

    For what a load opens once in each thread, such as a database connection: nobody else can close it. *end* is called
    in that thread and in the context of the load; what it raises is logged. No round trip.
    """
    guard._hub.thread_ends.append(end)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - of this package


def check_writing(mode: Mode, settle: Duration | None, delay: Duration, intent: Duration) -> None:
    """Check the options of `CacheGuard.writing`; `ConfigurationError` names the one that cannot work."""
    WriteTerms(mode, settle, delay, intent)


def roots_of(template: str) -> tuple[str, ...]:
    """Return the names that the fields of *template* begin with: ``id`` for ``{id}`` and for ``{id.hex}``.

    Empty if the text is not a valid template; `TextTemplate` then raises the error.
    """
    try:
        names = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    except ValueError:
        return ()
    return tuple(dict.fromkeys(name.partition(".")[0].partition("[")[0] for name in names))


def row_template(template: str, attributes: Iterable[str], called: str) -> TextTemplate:
    """Make a template over the attributes of a row; `KeyTemplateError` if a field begins with another name.

    Args:
        template: like ``"user:{id}"``.
        attributes: the names that its fields may begin with.
        called: the name of the row's class in messages.
    """
    return TextTemplate(template, _stand_in(called, ()), more=attributes)


def row_item(template: str, attributes: Iterable[str], called: str) -> Callable[[Mapping[str, Any]], object]:
    """Make the function that returns the item of a Bloom filter for a row: a mapping of attributes to values.

    The item is the one that ``bloom_item=`` of `CacheGuard.cached` makes of the same values. The function raises
    `ConfigurationError` for values that readers may have in other forms; the row must not be committed then.

    Args:
        template: like ``"{id}"``; `KeyTemplateError` if a field begins with another name than *attributes*.
        attributes: the names that its fields may begin with.
        called: the name of the row's class in messages.
    """
    made = TextTemplate(template, _stand_in(called, ()), escaped=False, more=attributes)
    if not made.fields:
        raise ConfigurationError(f"bloom={template!r} names no attribute of {called}")

    def item(values: Mapping[str, Any]) -> object:
        found = item_of(made, [values[name] for name in made.fields])
        if found is None:
            raise ConfigurationError(
                f"the Bloom filter of {called} takes text and whole numbers for {template!r}, got {dict(values)!r:.200}"
            )
        return found

    return item


def call_text(name: str, parameters: Sequence[str]) -> CallText:
    """Make the key texts of calls from a name and parameters, without the function itself.

    Args:
        name: module and qualified name, like ``"shop.views.works"``.
        parameters: the names of the parameters, in the order in which `CallText.text_of` takes their values. For
            ``self``, give a value that identifies the object.
    """
    # `CallText` refuses a parameter named self, as nothing would identify the object. Here the value does.
    return CallText(_stand_in(name, [f"{each}_" if each == "self" else each for each in parameters]), closure=())


def take_closures(guard: CacheGuard) -> None:
    """Let *guard* cache a function that uses variables of the function around it, without a key template.

    For frameworks whose users decorate inside of factories. A second function of the same code with other variables is
    refused when it is decorated.
    """
    cast("Any", guard)._hub.owners.closures = True  # noqa: SLF001 - fronts have no way to it but this function


class KeyOwner:
    """A function of a front's decorator, which makes its own keys.

    Args:
        fn: the function; what it uses of the function around it is read now.
    """

    def __init__(self, fn: Any) -> None:
        self._owner = Owner(fn)

    def claim(self, guard: CacheGuard, key: str) -> None:
        """Note that *key* of *guard* is the function's. No round trip.

        `KeyTemplateError` if a function of the same code with other variables had it before.
        """
        if self._owner.is_closure:
            inner: Any = guard
            owners, prefix = inner._hub.owners, inner._scope.prefix  # noqa: SLF001 - as above
            owners.claim(prefix, f"={key}", self._owner, templated=False)


def _stand_in(name: str, parameters: Iterable[str]) -> Any:
    """Make a function with this name and these parameters; only its signature is read."""

    def stand_in() -> None:
        """Never called."""

    module, _, own = name.rpartition(".")
    stand_in.__module__, stand_in.__qualname__ = module, own
    kinds = [Parameter(each, Parameter.KEYWORD_ONLY) for each in parameters]
    cast("Any", stand_in).__signature__ = Signature(kinds)
    return stand_in
