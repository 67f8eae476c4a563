"""Names for objects that only differ by identity."""

from __future__ import annotations

import weakref
from typing import Any
from uuid import uuid4


class Identities:
    """A name for each object while it lives. Unlike a memory address, a name is never reused.

    There is no lock, because a fork could leave it locked forever. At worst an object gets a second name: a miss.
    """

    def __init__(self) -> None:
        self._names: dict[int, tuple[weakref.ref[Any], str]] = {}

    def name(self, value: object) -> str | None:
        """The name of *value* in this process; None if *value* does not support weak references."""
        place = id(value)
        known = self._names.get(place)
        if known is not None and known[0]() is value:
            return known[1]
        try:
            made = weakref.ref(value, lambda gone: self._forget(place, gone)), uuid4().hex
        except TypeError:
            return None
        known = self._names.setdefault(place, made)
        if known[0]() is value:
            return known[1]
        self._names[place] = made
        return made[1]

    def _forget(self, place: int, gone: weakref.ref[Any]) -> None:
        known = self._names.get(place)
        if known is not None and known[0] is gone:
            self._names.pop(place, None)
