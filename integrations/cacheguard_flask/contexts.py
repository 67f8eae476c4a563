"""The app and request contexts of a load, also if it runs in another thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from flask import Flask, has_request_context, request

from cacheguard import current_load

from .headers import copy_of
from .use import nothing_is_read


def in_its_context(app: Flask, run: Callable[[], Any], *, as_request: bool = False) -> Callable[[], Any]:
    """Wrap *run* so that it has its contexts in any thread.

    In the caller's thread it runs in the caller's contexts. A load runs in another thread if its caller may return
    early with a stale answer. The caller's contexts may have ended by then, teardown included, so the load gets new
    contexts with their own session. *as_request*: the app's before-request functions run there, too.
    """
    caller = threading.get_ident()
    environ = copy_of(request.environ) if has_request_context() else None

    def running() -> Any:
        if threading.get_ident() == caller:
            return run()
        if environ is None:
            with app.app_context():
                return run()
        # The old app context is still current here, and a new request context alone would reuse it.
        with app.app_context(), app.request_context(environ):
            nothing_is_read()
            if as_request and app.preprocess_request() is not None:
                current_load().private = True  # before-request functions would now answer this request without the view
                return None
            return run()

    return running
