"""Notices what a session does without a statement: it returns an object that it holds, or such an object is changed.

SQLAlchemy has no event for either. Both go through the identity map of the session, so its class is replaced.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import cache
from typing import Any, cast

from sqlalchemy import inspect
from sqlalchemy.orm import Session

from cacheguard import Load
from cacheguard.extending import load_here

OfSession = Callable[[Session], None]


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


@cache
def _noticing(base: type) -> type:
    """The class of identity maps *base*, so that it notices."""
    plain = cast("Any", base)

    class Noticing(plain):  # type: ignore[misc]  # its base is known only at run time
        cacheguard_load: Load | None = None  # the load that has added `cacheguard_keys`
        cacheguard_keys: set[Any]

        def get(self, key: Any, default: Any = None) -> Any:
            found = plain.get(self, key, default)
            load = load_here()
            if load is not None and found is not None and not load.private and not self._is_of(load, key, found):
                load.private = True  # its values are those of when it was loaded, or uncommitted ones
            return found

        def _is_of(self, load: Load, key: Any, found: Any) -> bool:
            """True if the object was loaded by *load*, or its values are about to be."""
            return (self.cacheguard_load is load and key in self.cacheguard_keys) or inspect(found).expired

        def _note(self, key: Any) -> None:
            load = load_here()
            if load is None:
                return
            if self.cacheguard_load is not load:
                self.cacheguard_load, self.cacheguard_keys = load, set()
            self.cacheguard_keys.add(key)

        def add(self, state: Any) -> Any:
            added = plain.add(self, state)
            if added:
                self._note(state.key)
            return added

        def _add_unpresent(self, state: Any, key: Any) -> None:
            plain._add_unpresent(self, state, key)  # noqa: SLF001 - what loads an object calls this
            self._note(key)

    return Noticing


def notice(session: Session, on_change: OfSession) -> None:
    """From now on, a load that gets an object which *session* held before is private. Idempotent.

    Args:
        session: the session.
        on_change: called with *session* in the thread or task that changes an object of it, at least for the first
            change of each object after a flush.
    """
    held = cast("Any", session.identity_map)
    if type(held).__name__ == "Noticing":
        return
    held.__class__ = _noticing(type(held))
    held._modified = _Modified(held._modified, weakref.ref(session), on_change)  # noqa: SLF001 - nothing else tells of a change
