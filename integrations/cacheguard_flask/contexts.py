"""Which app and which request a load belongs to, also when it runs in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from flask import Flask, has_request_context, request

from cacheguard import current_load

from .use import cookies_are_unread


def in_its_context(app: Flask, run: Callable[[], Any], *, as_request: bool = False) -> Callable[[], Any]:
    """*run*, for whichever thread comes to it.

    In the caller's thread it runs in the caller's contexts. In another one, to which a load goes when its caller may
    leave early with an older answer, these are over by then, their teardown included: there it gets contexts of its
    own, with a session of its own. *as_request*: and what the app does before each request is done there, too.
    """
    caller = threading.get_ident()
    environ = dict(request.environ) if has_request_context() else None

    def running() -> Any:
        if threading.get_ident() == caller:
            return run()
        if environ is None:
            with app.app_context():
                return run()
        # The old app context is still known here, so a new request context alone would go on with it.
        with app.app_context(), app.request_context(environ):
            cookies_are_unread()
            if as_request and app.preprocess_request() is not None:
                current_load().private = True  # this request would not reach the view any more
                return None
            return run()

    return running
