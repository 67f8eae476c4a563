"""What has to be done around a fork, for every guard that is alive."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Protocol

from ..engine import permits
from ..ports import Home


class Forked(Protocol):
    """Something that lives on in a forked child."""

    def before_fork(self) -> list[Callable[[], None]]:
        """Get ready, in the thread that forks; what to call in the parent afterwards."""
        ...

    def after_fork(self) -> None:
        """Begin anew, in the child."""
        ...


_alive: weakref.WeakSet[Forked] = weakref.WeakSet()
leases: dict[str, Home] = {}
"""By token, where the loads under the leases of this process go on, whichever guard holds them."""
_held = threading.local()  # what this thread, which forks, has to give back


def register(each: Forked) -> None:
    """Have *each* told of forks, as long as somebody holds it."""
    _alive.add(each)


def forget(each: Forked) -> None:
    """Tell *each* no more."""
    _alive.discard(each)


def _before() -> None:
    _held.releases = [release for each in list(_alive) for release in each.before_fork()]


def _after_in_parent() -> None:
    releases, _held.releases = _held.releases, []
    for release in releases:
        release()


def _after_in_child() -> None:
    _held.releases = []
    leases.clear()
    permits.after_fork()
    for each in list(_alive):
        each.after_fork()


os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
