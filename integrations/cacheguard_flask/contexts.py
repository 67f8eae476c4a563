"""Which app and which request a load belongs to, also when it runs in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from flask import Flask, has_request_context
from flask.globals import request_ctx

T = TypeVar("T")


def in_its_context(app: Flask, run: Callable[[], T]) -> Callable[[], T]:
    """*run*, for whichever thread comes to it.

    In the caller's thread it runs in the caller's contexts. In another one, to which a load goes when its caller may
    leave early with an older answer, these are over by then, their teardown included: it gets contexts of its own.
    """
    caller = threading.get_ident()

    def running() -> T:
        if threading.get_ident() == caller:
            return run()
        if not has_request_context():
            with app.app_context():
                return run()
        with app.app_context(), request_ctx.copy():
            return run()

    return running
