"""Reads that never load: `get`, `at_hand`, `peek`, `inspect`, `scan`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..checks import count
from ..defenses.breakdown import Verdict, judge
from ..errors import Unreachable
from ..missing import MISSING
from ..protocol.entry import CutOff, Found, Stored
from ..protocol.envelope import Kind
from ..tiers.copies import Master
from .ask import Ask

if TYPE_CHECKING:
    from ..codec import Codec
    from ..policy import Rules
    from ..protocol.names import Scope
    from ..tiers.local import Entry
    from .reading import Engine
    from .shared import Shared


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is cached for a key.

    Args:
        state: ``"fresh"``, ``"stale"``, ``"null"`` (a fresh absence) or ``"missing"``.
        tier: ``"l1"``, ``"l2"``, or None if nothing is cached.
        age: seconds since it was stored; None if nothing is cached.
        ttl_left: seconds until it is stale, negative if it already is; None if nothing is cached.
        tags: its tags.
    """

    state: Literal["fresh", "stale", "null", "missing"]
    tier: Literal["l1", "l2"] | None
    age: float | None
    ttl_left: float | None
    tags: tuple[str, ...]


class Looking:
    """Lookups for the callers of one guard, whichever engine they use.

    Args:
        shared: the state that the engines of the guard share.
    """

    def __init__(self, shared: Shared) -> None:
        self._shared, self._local = shared, shared.local

    def at_hand(self, key: str, default: Any, rules: Rules) -> Any:
        """The value of *key* if L1 has it, else *default*. No round trip."""
        entry = self._local.alive(key) if rules.l1 and not self._shared.off else None
        return default if entry is None else self.value_in(entry, default)

    def value_in(self, entry: Entry, default: Any) -> Any:
        """The value in an L1 entry; *default* if it stands for an exception."""
        if entry.kind == Kind.ERROR:
            return default
        value = entry.value
        return value.make() if isinstance(value, Master) else value

    def _value_of(self, stored: Stored, default: Any) -> Any:
        if stored.kind is Kind.ERROR:
            return default
        value = stored.own()
        if self._local.watch is not None:
            self._local.watch.given(value)
        return value

    async def get(self, engine: Engine, key: str, default: Any, rules: Rules, scope: Scope) -> Any:
        """The value of *key* after a miss in L1; *default* if there is none. One round trip."""
        if self._shared.off:
            return default
        found = await peek(engine, [key], None, rules, scope)
        return self._value_of(found[key], default) if found else default

    async def get_many(
        self, engine_of: Callable[..., Engine], names: Sequence[str], rules: Rules, scope: Scope
    ) -> dict[str, Any]:
        """The cached values of *names*; missing ones are left out. At most one round trip."""
        engine = engine_of(l2=rules.l2)
        if self._shared.off:
            return {}
        values: dict[str, Any] = {}
        rest: dict[str, str] = {}
        watched = self._local.watch is not None
        for name in names:
            key = scope.key(name)
            entry = self._local.alive(key) if rules.l1 else None
            if entry is None:
                rest[key] = name
            else:
                values[name] = self.value_in(entry, MISSING)
        if rest:
            for key, stored in (await peek(engine, list(rest), None, rules, scope)).items():
                value = stored.value if stored.kind is Kind.VALUE and not watched else None
                values[rest[key]] = self._value_of(stored, MISSING) if value is None else value
        return {name: values[name] for name in names if values.get(name, MISSING) is not MISSING}

    async def peek(self, engine: Engine, key: str, codec: Codec | None, rules: Rules, scope: Scope) -> Any:
        """The value of *key* without a load; `MISSING` if there is none. No hit in L1 is counted."""
        if self._shared.off:
            return MISSING
        entry = self._local.peek(key) if rules.l1 else None
        if entry is not None:
            return self.value_in(entry, MISSING)
        found = await peek(engine, [key], codec, rules, scope)
        return self._value_of(found[key], MISSING) if found else MISSING

    async def inspect(self, engine: Engine, key: str, rules: Rules, scope: Scope) -> Inspection:
        """What is cached for *key*, and in which tier; no hit is counted. At most one round trip."""
        entry, now = self._local.peek(key), engine.runtime.now()
        if rules.l1 and entry is not None:
            state: Literal["fresh", "null"] = "null" if entry.kind else "fresh"
            return Inspection(state, "l1", max(0.0, now - entry.born), entry.fresh_until - now, entry.tags)
        found = await look(engine, key, scope)
        if found is None or found.stored is None:
            return Inspection("missing", None, None, None, ())
        stored, left = found.stored, found.fresh_left
        fresh: Literal["fresh", "null"] = "null" if stored.kind is not Kind.VALUE else "fresh"
        return Inspection(fresh if left > 0 else "stale", "l2", found.age, left, stored.tags)


async def peek(
    engine: Engine, keys: Iterable[str], codec: Codec | None, rules: Rules, scope: Scope
) -> dict[str, Stored]:
    """The values that may be served for *keys* without a load, fresh or stale. One round trip."""
    shared, keys = engine.shared, list(keys)
    if not shared.bus.ready:
        await shared.bus.begin_listening(engine.runtime)
    ticket, asked_at = shared.local.tickets.take(), engine.runtime.now()
    found = await engine.found_of(keys, codec, scope, (), near=rules.l1)
    answers: dict[str, Stored] = {}
    ages: list[float] = []
    for key, each in zip(keys, found, strict=True):
        if each is None:
            continue
        if isinstance(each, CutOff):
            kept = engine.kept(key, rules, longer=0.0)
            if kept is not None:
                answers[key] = kept
            continue
        stored = each.stored
        if stored is None:
            continue
        if each.fresh_left > 0:
            ages.append(each.age)
            shared.events.null_hits += stored.kind is not Kind.VALUE
            if rules.l1:
                engine.filling.keep_found(Ask(key, rules, codec, _nothing, scope=scope), each, ticket, asked_at)
            answers[key] = stored
        elif judge(each.fresh_left, rules.revalidate) is Verdict.REVALIDATE:
            shared.events.stale_hits += 1
            answers[key] = stored
    shared.events.hits(ages)
    return answers


async def look(engine: Engine, key: str, scope: Scope) -> Found | None:
    """The entry of *key* in Redis, for inspection: no hit is counted. None if Redis is unreachable."""
    try:
        return await engine.remote.look(key, scope)
    except Unreachable:
        return None


async def scan(engine: Engine, scope: Scope, match: str, cursor: str, most: int) -> tuple[list[str], str]:
    """One page of the key texts of fresh entries in Redis, and the cursor of the next page."""
    at, _, there = (cursor or "0-0").partition("-")
    if not (at.isdecimal() and there.isdecimal()):
        raise ValueError(f"cursor must be one that came with a page, got {cursor!r}")
    names, following = await engine.remote.scan(scope, int(at), there, scope.pattern(match), count("count", most))
    plain = [text for name in names if (text := scope.text(name)) is not None]
    return plain, "" if following is None else f"{following[0]}-{following[1]}"


def _nothing() -> None:
    """Load nothing: this is never called."""
