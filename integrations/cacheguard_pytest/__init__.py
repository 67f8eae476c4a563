"""The pytest plugin of cacheguard: fixtures for what is in `cacheguard.testing`.

It is loaded in every run of every project beside which cacheguard is installed, so it imports nothing but pytest until
a test asks for a fixture; it is no part of the package `cacheguard`, so that neither coverage nor anybody's patience
suffers by it. It needs no plugin for coroutines and works with any. Under pytest-xdist each worker has a server of its
own.

PYTEST_DONT_REWRITE: it asserts nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from cacheguard import CacheGuard
    from cacheguard.testing import CountingLoader, FaultProxy, RedisServer, StalenessChecker, VirtualClock


@pytest.fixture(scope="session")
def cacheguard_redis() -> Generator[RedisServer]:
    """A redis-server of this test session (scope: session); `NoRedisError` where there is none to be had.

    Ask for `cacheguard_redis_url` as well to get it clean. Tests may freeze, kill and configure it:
    `cacheguard_redis_url` undoes that for the next one.
    """
    from cacheguard.testing import RedisServer

    with RedisServer() as server:
        yield server


@pytest.fixture
def cacheguard_redis_url(cacheguard_redis: RedisServer) -> str:
    """The address of the server, which is alive and empty, with the settings of its start (scope: function)."""
    cacheguard_redis.reset()
    return cacheguard_redis.url


@pytest.fixture
def cacheguard_proxy(cacheguard_redis: RedisServer, cacheguard_redis_url: str) -> Generator[FaultProxy]:  # noqa: ARG001 - clean
    """A wire to the (clean) server that can be broken; give guards its `url` (scope: function)."""
    from cacheguard.testing import FaultProxy

    with FaultProxy(cacheguard_redis.port) as proxy:
        yield proxy


@pytest.fixture
def cacheguard_clock() -> VirtualClock:
    """A clock that stands still until the test moves it; no guard goes by it unless built under it (scope: function).

    ``cacheguard_guard(clock=cacheguard_clock)`` builds one, or ``with cacheguard_clock:`` around your own.
    """
    from cacheguard.testing import VirtualClock

    return VirtualClock()


@pytest.fixture
def cacheguard_loader() -> Generator[CountingLoader]:
    """A loader that counts its runs, and is slow, fails or stands still as told (scope: function).

    Whatever stands still in the end goes on, so that no thread is left behind.
    """
    from cacheguard.testing import CountingLoader

    loader = CountingLoader()
    yield loader
    loader.go_on()


@pytest.fixture
def cacheguard_checker() -> Generator[StalenessChecker]:
    """Looks for stale reads; if it has seen any, the test fails in the end (scope: function)."""
    from cacheguard.testing import StalenessChecker

    checker = StalenessChecker()
    yield checker
    if checker.reads:
        checker.verify()


@pytest.fixture
def cacheguard_guard() -> Generator[Callable[..., CacheGuard]]:
    """Builds guards, and closes them in the end (scope: function).

    ``cacheguard_guard(url="memory://", *, clock=None, **options)``: *options* are those of `CacheGuard`; with a *clock*
    (`cacheguard_clock`), the guard goes by it.
    """
    from contextlib import ExitStack, nullcontext

    from cacheguard import CacheGuard

    with ExitStack() as guards:

        def build(url: str = "memory://", *, clock: VirtualClock | None = None, **options: Any) -> CacheGuard:
            with clock or nullcontext():
                return guards.enter_context(CacheGuard(url, **options))

        yield build
