"""Notices what a session does without a statement: it returns an object that it holds, or such an object is changed.

SQLAlchemy has no event for either. Both go through the identity map of the session, so its class is replaced.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import cache
from typing import Any, TypeAlias, cast

from sqlalchemy import inspect
from sqlalchemy.orm import Session

from cacheguard import Load
from cacheguard.extending import load_here

OfSession: TypeAlias = Callable[[Session], None]

_NAME = "Noticing"


class _Modified(set[Any]):
    """The changed objects of a session."""

    def __init__(self, states: Any, session: weakref.ref[Session], on_change: OfSession) -> None:
        super().__init__(states)
        self._session, self._on_change = session, on_change

    def add(self, state: Any) -> None:
        super().add(state)
        session = self._session()
        if session is not None:
            self._on_change(session)


_LOAD, _KEYS = "cacheguard_load", "cacheguard_keys"  # attributes of a map: a load, and the keys of what it has loaded


@cache
def _noticing(base: Any) -> Any:
    """The class of identity maps *base*, so that it notices."""

    def get(held: Any, key: Any, default: Any = None) -> Any:
        found = base.get(held, key, default)
        load = load_here()
        if load is not None and found is not None and not load.private and not _is_of(load, held, key, found):
            load.private = True  # its values are those of when it was loaded, or uncommitted ones
        return found

    def add(held: Any, state: Any) -> Any:
        added = base.add(held, state)
        if added:
            _note(held, state.key)
        return added

    def add_unpresent(held: Any, state: Any, key: Any) -> None:
        base._add_unpresent(held, state, key)  # noqa: SLF001 - what loads an object calls this
        _note(held, key)

    return type(_NAME, (base,), {"get": get, "add": add, "_add_unpresent": add_unpresent, _LOAD: None, _KEYS: set()})


def _is_of(load: Load, held: Any, key: Any, found: Any) -> bool:
    """True if the object was loaded by *load*, or its values are about to be."""
    return (getattr(held, _LOAD) is load and key in getattr(held, _KEYS)) or inspect(found).expired


def _note(held: Any, key: Any) -> None:
    load = load_here()
    if load is None:
        return
    if getattr(held, _LOAD) is not load:
        setattr(held, _LOAD, load)
        setattr(held, _KEYS, set())
    getattr(held, _KEYS).add(key)


def notice(session: Session, on_change: OfSession) -> None:
    """From now on, a load that gets an object which *session* held before is private. Idempotent.

    Args:
        session: the session.
        on_change: called with *session* in the thread or task that changes an object of it, at least for the first
            change of each object after a flush.
    """
    held = cast("Any", session.identity_map)
    if type(held).__name__ == _NAME:
        return
    held.__class__ = _noticing(held.__class__)
    held._modified = _Modified(held._modified, weakref.ref(session), on_change)  # noqa: SLF001 - nothing else tells of a change
