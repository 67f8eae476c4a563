"""`AppCache`: what one app has, held by the app and not by the extension, which may serve several."""

from __future__ import annotations

import weakref
from contextlib import ExitStack

from flask import Flask

from cacheguard import CacheGuard, Change
from cacheguard.extending import DEFAULTS, FOREVER, seconds

from .pages import pages_tag
from .passes import Passes
from .settings import HashMethod, Settings
from .timeouts import Timeout, is_never

NAME = "cacheguard"


class AppCache:
    """What one app has: ``app.extensions["cacheguard"]``.

    Args:
        extension: the `CacheGuardFlask` that has set it up.
        app: the app. It is held weakly, and its end closes the guard.
        settings: as the app's configuration has them.
    """

    def __init__(self, extension: object, app: Flask, settings: Settings) -> None:
        self.extension: object = extension
        self.guard: CacheGuard = settings.guard
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
        # Flask tells nobody that an app is done with.
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
        """Seconds for which a None is kept that is worth as much as any other answer."""
        ttl = self.ttl if timeout is None else None if is_never(timeout) else timeout
        return seconds(DEFAULTS.ttl if callable(ttl) else FOREVER if ttl is None else ttl, "timeout")

    def forget(self, *keys: str) -> None:
        """Invalidate *keys*, and the pages under them. One round trip."""
        self.guard.apply([change for key in keys for change in (Change(key), Change(tag=pages_tag(key)))])

    def close(self) -> None:
        """End the guard's threads and connections. Twice is once; it happens by itself at the end of the app."""
        self._end()
