"""Whoever opens something in our threads is called at their end."""

from __future__ import annotations

import logging
import threading
import time

import pytest

from cacheguard import CacheGuard, Policy
from cacheguard.extending import at_thread_end


def test_a_thread_of_ours_says_that_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    ended: list[threading.Thread] = []
    over = threading.Event()

    def broken() -> None:
        raise ZeroDivisionError

    def end() -> None:
        ended.append(threading.current_thread())
        over.set()

    loaded: list[threading.Thread] = []
    with CacheGuard("memory://", policy=Policy(ttl="10ms", jitter=None, stale_while_revalidate="1h")) as guard:
        at_thread_end(guard, broken)
        at_thread_end(guard, end)

        def load() -> int:
            loaded.append(threading.current_thread())
            return len(loaded)

        assert guard.get_or_set("k", load) == 1
        assert ended == []  # it was the caller's own
        time.sleep(0.02)
        with caplog.at_level(logging.ERROR):
            guard.get_or_set("k", load)
            assert over.wait(10)
        assert ended == loaded[1:]
        assert threading.current_thread() not in ended
        assert "at the end of a thread" in caplog.text

        @guard.cached("n:{number}")
        def same(number: int) -> int:
            return number

        guard.warm(same, [(1,), (2,), (3,)], concurrency=2)
        assert len(ended) == 3
