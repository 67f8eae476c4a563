"""The pytest plugin of cacheguard: fixtures for the tools in `cacheguard.testing`.

pytest loads it in every run if cacheguard is installed. So it imports only pytest until a test uses a fixture, and it
is not part of the package `cacheguard`: it neither slows down the run nor hides imports from coverage. It needs no
plugin for coroutines and works with any. Under pytest-xdist each worker has its own server.

PYTEST_DONT_REWRITE: it asserts nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from cacheguard import CacheGuard
    from cacheguard.testing import (
        AliasingChecker,
        CountingLoader,
        FaultProxy,
        RedisServer,
        StalenessChecker,
        VirtualClock,
    )


@pytest.fixture(scope="session")
def cacheguard_redis() -> Generator[RedisServer]:
    """A redis-server for this test session (scope: session); `NoRedisError` if no redis-server is found.

    Use `cacheguard_redis_url` as well to get it clean. Tests may freeze, kill and configure it:
    `cacheguard_redis_url` undoes that for the next test.
    """
    from cacheguard.testing import RedisServer

    with RedisServer() as server:
        yield server


@pytest.fixture
def cacheguard_redis_url(cacheguard_redis: RedisServer) -> str:
    """The URL of the server. It is running and empty, with the settings of its start (scope: function)."""
    cacheguard_redis.reset()
    return cacheguard_redis.url


@pytest.fixture
def cacheguard_proxy(cacheguard_redis: RedisServer, cacheguard_redis_url: str) -> Generator[FaultProxy]:  # noqa: ARG001 - clean
    """A proxy in front of the (clean) server that injects faults; give guards its `url` (scope: function)."""
    from cacheguard.testing import FaultProxy

    with FaultProxy(cacheguard_redis.port) as proxy:
        yield proxy


@pytest.fixture
def cacheguard_clock() -> VirtualClock:
    """A clock that only moves when the test moves it; only guards built under it use it (scope: function).

    ``cacheguard_guard(clock=cacheguard_clock)`` builds one, or ``with cacheguard_clock:`` around your own.
    """
    from cacheguard.testing import VirtualClock

    return VirtualClock()


@pytest.fixture
def cacheguard_loader() -> Generator[CountingLoader]:
    """A loader that counts its runs; the test can make it slow, fail or stand still (scope: function).

    Runs that stand still at the end of the test go on, so that no thread is left behind.
    """
    from cacheguard.testing import CountingLoader

    loader = CountingLoader()
    yield loader
    loader.go_on()


@pytest.fixture
def cacheguard_checker() -> Generator[StalenessChecker]:
    """A checker for stale reads; if it has seen any, the test fails at its end (scope: function)."""
    from cacheguard.testing import StalenessChecker

    checker = StalenessChecker()
    yield checker
    if checker.reads:
        checker.verify()


@pytest.fixture
def cacheguard_check_aliasing() -> Generator[Callable[..., AliasingChecker]]:
    """A function that begins to check that nobody changes what the L1 of some guards shares (scope: function).

    ``cacheguard_check_aliasing(guard, …)``: for guards that your application has built. The test fails at its end, with
    the key and those who had got the value.
    """
    from contextlib import ExitStack

    from cacheguard.testing import check_aliasing

    with ExitStack() as checks:
        yield lambda *guards: checks.enter_context(check_aliasing(*guards))


@pytest.fixture
def cacheguard_guard() -> Generator[Callable[..., CacheGuard]]:
    """A function that builds guards; they are closed at the end of the test (scope: function).

    ``cacheguard_guard(url="memory://", *, clock=None, check_aliasing=False, **options)``: *options* are those of
    `CacheGuard`; with a *clock* (`cacheguard_clock`), the guard uses it; with *check_aliasing*, the test fails at its
    end if somebody has changed a value that L1 shares (`cacheguard.testing.check_aliasing`).
    """
    from contextlib import ExitStack, nullcontext

    from cacheguard import CacheGuard
    from cacheguard.testing import check_aliasing as checked

    with ExitStack() as guards:

        def build(
            url: str = "memory://", *, clock: VirtualClock | None = None, check_aliasing: bool = False, **options: Any
        ) -> CacheGuard:
            with clock or nullcontext():
                guard = guards.enter_context(CacheGuard(url, **options))
            if check_aliasing:
                guards.enter_context(checked(guard))
            return guard

        yield build
