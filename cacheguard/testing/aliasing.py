"""Finds who changes what others have: L1 gives all callers the same object."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from ..codec.fidelity import difference
from ..errors import CodecError
from ..tiers.copies import IMMUTABLE, Master, a_copy
from ..tiers.held import DEAD, Entry, Holder, Keyed
from ..tiers.local import Local

if TYPE_CHECKING:
    from ..guard import CacheGuard

MOST_TAKERS = 20
MOST_SHOWN = 5
_OURS = frozenset(
    f"cacheguard{front}"
    for front in ("", "_asgi", "_django", "_flask", "_postgres", "_pytest", "_sqlalchemy", "_prometheus", "_otel")
)
_STANDARD = f"{Path(os.__file__).parent}{os.sep}"


class AliasingError(AssertionError):
    """A value in L1 was changed by somebody who had got it."""


@dataclass(frozen=True, slots=True)
class SharedChange:
    """A value in L1 that is not what it was when it was stored.

    Args:
        key: its Redis key.
        place: the path to what differs, like ``[0].name``; empty for the value itself.
        takers: who had got it by then, as ``file:line in function``; the last one first. One of them has changed it, or
            its loader, which has kept it.
        noticed: where the change was noticed: at the next hit, or at the end of the check.
    """

    key: str
    place: str
    takers: tuple[str, ...]
    noticed: str

    def __str__(self) -> str:
        who = ", ".join(self.takers) or "nobody: its loader has kept it"
        place = f" at {self.place}" if self.place else ""
        return f"{self.key} was changed{place} after it was stored; noticed {self.noticed}; got by {who}"


@dataclass(slots=True)
class _Kept:
    """One object in L1."""

    key: str
    entry: Entry
    value: Any  # held, so that its identity is nobody else's
    before: Any  # as it was when it was stored
    takers: list[str] = field(default_factory=list[str])


class AliasingChecker:
    """Compares the values in L1 with what was stored; `check_aliasing` makes one.

    `changes` has what was found, `unchecked` the keys of values that cannot be copied or compared.
    """

    def __init__(self) -> None:
        self.changes: list[SharedChange] = []
        self.unchecked: list[str] = []
        self._kept: dict[int, _Kept] = {}
        self._lock = threading.RLock()
        self._kinds: dict[type, type] = {kind: _watched_kind(kind, self.given) for kind in (Holder, Keyed)}

    def verify(self) -> None:
        """Compare all values that are in L1 now; `AliasingError` if one of all that were there has been changed."""
        self._compare_all("at the end of the check")
        if self.changes:
            raise AliasingError(str(self))

    def __str__(self) -> str:
        shown = [str(each) for each in self.changes[:MOST_SHOWN]]
        more = len(self.changes) - len(shown)
        return "\n".join([*shown, *([f"and {more} more"] if more else ())]) or "no value in L1 was changed"

    # What L1 reports

    def kept(self, key: str, entry: Entry) -> None:
        """Begin to watch *entry*, which is about to answer callers of *key*."""
        value, kind = entry.value, type(entry)
        if isinstance(value, Master) or type(value) in IMMUTABLE or entry.common.kind:
            return
        with self._lock:
            known = self._kept.get(id(value))
            if known is not None:  # it comes again, from the store of this process
                self._compare(known, "when it was stored again")
                known.key, known.entry = key, entry
            else:
                before = _snapshot(value)
                if before is None:
                    self.unchecked.append(key)
                    return
                self._kept[id(value)] = _Kept(key, entry, value, before)
            entry.__class__ = self._kinds.get(kind, kind)  # pyright: ignore[reportAttributeAccessIssue]

    def given(self, value: Any) -> None:
        """Note that the caller gets *value*, after a look whether it is what it was."""
        with self._lock:
            kept = self._kept.get(id(value))
            if kept is None:
                return
            caller = _caller()
            self._compare(kept, f"by {caller}")
            if caller in kept.takers:
                kept.takers.remove(caller)
            kept.takers.insert(0, caller)
            del kept.takers[MOST_TAKERS:]

    def closing(self) -> None:
        """Compare all values that are in L1, for the last time."""
        self._compare_all("when the guard was closed")

    def _compare_all(self, noticed: str) -> None:
        with self._lock:
            for kept in list(self._kept.values()):
                if kept.entry.common.kept_until != DEAD:  # not dropped
                    self._compare(kept, noticed)

    def end(self) -> None:
        """Stop watching."""
        for kept in self._kept.values():
            kept.entry.__class__ = type(kept.entry).__mro__[1]
        self._kept.clear()

    def _compare(self, kept: _Kept, noticed: str) -> None:
        try:
            place = difference(kept.before, kept.value)
        except Exception:  # noqa: BLE001 - the value's own: it could be compared before
            place = ""
        if place is None:
            return
        self.changes.append(SharedChange(kept.key, place, tuple(kept.takers), noticed))
        try:
            kept.before = a_copy(kept.value)  # the next change is another one
        except CodecError:
            kept.before = kept.value


def _snapshot(value: Any) -> Any:
    """A copy of *value*, to compare with later; None if it cannot be copied or compared."""
    try:
        before = a_copy(value)
        return before if difference(value, before) is None else None
    except Exception:  # noqa: BLE001 - the value's own
        return None


def _watched_kind(kind: type[Holder], seen: Callable[[Any], None]) -> type[Holder]:
    """A class of entries that report whoever reads their value: so no hit outside of a check has to."""
    slot: Any = Holder.__dict__["value"]

    def value(self: Holder) -> Any:
        held = slot.__get__(self, kind)
        seen(held)
        return held

    def replace(self: Holder, new: Any) -> None:
        slot.__set__(self, new)

    return type("WatchedEntry", (kind,), {"__slots__": (), "value": property(value, replace)})


def _caller() -> str:
    """The nearest frame that is neither ours nor of the standard library."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # no other way
    while frame is not None:
        module, file = frame.f_globals.get("__name__"), frame.f_code.co_filename
        # A generated wrapper has no module.
        if module is not None and module.partition(".")[0] not in _OURS and not _is_standard(file):
            return f"{file}:{frame.f_lineno} in {frame.f_code.co_qualname}"
        frame = frame.f_back
    return f"thread {threading.current_thread().name}"


def _is_standard(file: str) -> bool:
    return file.startswith(("<frozen", _STANDARD)) and f"{os.sep}site-packages{os.sep}" not in file


@contextmanager
def check_aliasing(*guards: CacheGuard) -> Generator[AliasingChecker]:
    """Check, in the block, that nobody changes a value that L1 shares: at each hit, and at the end.

    Every value that these guards (and their namespaces) keep in L1 is copied when it is stored, and compared with its
    copy. `AliasingError` at the end of the block names the key, the place in the value, and the callers that had got
    it; if the block raises, its exception gets this as a note. Slow, for tests only. With ``l1_copy=True`` there is
    nothing to find.
    """
    checker = AliasingChecker()
    tiers: list[Local] = [each._hub.local for each in guards]  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    for tier in tiers:
        tier.watch = checker
        for key, entry in tier.pairs():
            checker.kept(key, entry)
    try:
        yield checker
        checker.verify()
    except AliasingError:
        raise
    except BaseException as error:
        if checker.changes:
            error.add_note(str(checker))
        raise
    finally:
        for tier in tiers:
            tier.watch = None
        checker.end()
