"""A pytest plugin: every application that Starlette's TestClient is given stands behind `HTTPCacheMiddleware`."""

from __future__ import annotations

from typing import Any

import starlette.testclient

from cacheguard import CacheGuard
from cacheguard_asgi import HTTPCacheMiddleware

_made = starlette.testclient.TestClient.__init__


def _wrapped(self: Any, *args: Any, **options: Any) -> None:
    _made(self, *args, **options)
    cached: Any = HTTPCacheMiddleware(self.app, CacheGuard("memory://"))
    self.app = self._transport.app = cached


starlette.testclient.TestClient.__init__ = _wrapped  # type: ignore[method-assign]
