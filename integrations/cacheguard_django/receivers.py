"""Receivers of Django's signals, and what they note of a row from one signal to the next."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from django.db import models
from django.db.models.signals import ModelSignal, post_save

from cacheguard.errors import Unreachable

_numbers = iter(range(2**62))
_lock = threading.Lock()


class Receivers:
    """The receivers of one handle, with names that nothing else has."""

    def __init__(self) -> None:
        self._connected: list[tuple[ModelSignal, Any, str]] = []
        with _lock:
            self.name: str = f"cacheguard_django.{next(_numbers)}"

    def connect(self, signal: ModelSignal, sender: Any, name: str, act: Callable[..., Any]) -> None:
        """Call *act* for a signal. For `post_save`, before the receivers of others: one that raises would leave it out.

        Without a transaction the row is committed by then. `Unreachable` is raised in our turn, so that it leaves out
        none of those before us.
        """
        uid, failed = f"{self.name}.{name}", f"{name} failed"

        def first(instance: models.Model, **given: Any) -> None:
            self.noted(instance, failed)
            try:
                act(instance=instance, **given)
            except Unreachable as error:
                self.note(instance, failed, error)

        def in_turn(instance: models.Model, **_: Any) -> None:
            error = self.noted(instance, failed)
            if error is not None:
                raise error

        if signal is post_save:
            signal.connect(first, sender=sender, dispatch_uid=f"{uid} first", weak=False)
            _put_first(signal, f"{uid} first")
            self._connected.append((signal, sender, f"{uid} first"))
            act_in_turn: Callable[..., Any] = in_turn
        else:
            act_in_turn = act
        signal.connect(act_in_turn, sender=sender, dispatch_uid=uid, weak=False)
        self._connected.append((signal, sender, uid))

    def disconnect(self) -> None:
        """Disconnect all of them."""
        for signal, sender, name in self._connected:
            signal.disconnect(sender=sender, dispatch_uid=name)
        self._connected.clear()

    def note(self, instance: models.Model, name: str, what: object) -> None:
        """Remember *what* of a row from one signal to the next."""
        vars(instance._state).setdefault("cacheguard", {})[self.name, name] = what  # noqa: SLF001 - Django's documented place

    def noted(self, instance: models.Model, name: str) -> Any:
        """What `note` has remembered, once; None if it has nothing."""
        noted = vars(instance._state).get("cacheguard", {})  # noqa: SLF001 - as above
        what = noted.pop((self.name, name), None)
        if not noted:
            vars(instance._state).pop("cacheguard", None)  # noqa: SLF001 - as above
        return what


def _put_first(signal: Any, uid: str) -> None:
    """Let the receiver *uid* be called before all that are there."""
    with signal.lock:  # a new list, since `send` looks at it without the lock
        signal.receivers = sorted(signal.receivers, key=lambda receiver: receiver[0][0] != uid)
        signal.sender_receivers_cache.clear()
