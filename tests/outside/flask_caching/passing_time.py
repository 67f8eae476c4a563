"""A pytest plugin: time that passes when a test says so, for what reads the clock here, and for what Redis keeps.

It must be loaded before cacheguard is: the clock of whoever imports it earlier stays the real one.
"""

from __future__ import annotations

import time

import redis

_real = time.monotonic
_passed = 0.0


def _monotonic() -> float:
    return _real() + _passed


time.monotonic = _monotonic


def let_pass(seconds: float, url: str | None) -> None:
    """As if *seconds* went by: clocks here are that much later, and what is in Redis has that much less to live.

    Of an entry or a marker of ours, each deadline within it comes nearer; of anything else, its TTL.
    """
    global _passed  # noqa: PLW0603 - there is one time
    _passed += seconds
    if url is None:
        return
    with redis.Redis.from_url(url) as client:
        from tests.support.ageing import AGE  # not earlier: see above

        ms = round(seconds * 1000)
        for key in set(client.scan_iter()):
            left = client.pttl(key)
            if client.type(key) == b"string" and client.getrange(key, 0, 0) == b"\xc2":
                client.eval(AGE, 1, key, ms)
            elif left >= 0:
                client.pexpire(key, max(0, left - ms))
