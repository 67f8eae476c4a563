"""`AppCache`: the cache of one app. The app holds it, because one extension may serve several apps."""

from __future__ import annotations

import weakref
from contextlib import ExitStack

from flask import Flask

from cacheguard import CacheGuard, Change
from cacheguard.extending import DEFAULTS, FOREVER, seconds_up_to_forever, take_closures

from .pages import pages_tag
from .passes import Passes
from .settings import HashMethod, Settings
from .timeouts import Timeout, is_never

NAME = "cacheguard"


class AppCache:
    """The cache of one app: ``app.extensions["cacheguard"]``.

    Args:
        extension: the `CacheGuardFlask` that made it.
        app: the app, held by a weak reference. When the app is garbage-collected, the guard is closed.
        settings: the settings from the app's configuration.
    """

    def __init__(self, extension: object, app: Flask, settings: Settings) -> None:
        self.extension: object = extension
        self.guard: CacheGuard = settings.guard
        take_closures(self.guard)  # apps are made in factories
        self.hash_method: HashMethod = settings.hash_method
        self.source_check: bool = settings.source_check
        self.disabled: bool = settings.disabled
        self.null_ttl: float | None = settings.null_ttl
        self.ttl: object = settings.ttl
        self.l1: bool = settings.l1
        self.passes: Passes = Passes()
        self._app = weakref.ref(app)
        self._stack = ExitStack()
        self._stack.callback(self.guard.close)
        if settings.disabled:
            self._stack.enter_context(self.guard.disabled())
        # Flask has no hook for the end of an app.
        self._end = weakref.finalize(app, self._stack.close)

    def __repr__(self) -> str:
        return f"<AppCache of {self._app()!r}, {self.guard!r}>"

    @property
    def app(self) -> Flask:
        """The app."""
        app = self._app()
        if app is None:
            raise RuntimeError("the app of this cache is gone")
        return app

    def none_ttl(self, timeout: Timeout | None) -> float:
        """Seconds for which None is cached if it counts like any other answer."""
        ttl = self.ttl if timeout is None else None if is_never(timeout) else timeout
        return seconds_up_to_forever(DEFAULTS.ttl if callable(ttl) else FOREVER if ttl is None else ttl, "timeout")

    def forget(self, *keys: str) -> None:
        """Invalidate *keys* and the pages under them. One round trip."""
        self.guard.apply([change for key in keys for change in (Change(key), Change(tag=pages_tag(key)))])

    def close(self) -> None:
        """Close the guard: end its threads and connections. Idempotent; called automatically when the app ends."""
        self._end()
