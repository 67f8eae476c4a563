"""Redis over TLS: alone, behind a sentinel, as a cluster; and what a reader gets when the two sides do not agree."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import selectors
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import redis
import redis.asyncio

from cacheguard import CacheGuard
from cacheguard.errors import ConfigurationError
from cacheguard.testing import Fault, FaultProxy
from tests.conftest import OpenDoor
from tests.support.loader import Loader
from tests.support.tls import SERVICE, Authority, TlsCluster, TlsSentinel, TlsServer, binary_with_tls

PATIENCE = "2s"  # other tests run beside this one
QUICK = 0.2


class World(NamedTuple):
    authority: Authority
    stranger: Authority
    good: tuple[Path, Path]
    server: TlsServer


@pytest.fixture(scope="module")
def binary() -> Path:
    found = binary_with_tls()
    if found is None:
        pytest.skip("no redis-server here was built with TLS")
    return found


@pytest.fixture(scope="module", autouse=True)
def a_system_that_trusts_nobody(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Each handshake reads all certificates of the system first; here they vouch for nobody."""
    directory = tmp_path_factory.mktemp("nobody")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(Authority(directory).file))
        patch.setenv("SSL_CERT_DIR", str(directory / "none"))
        yield


@pytest.fixture(scope="module")
def world(binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("tls")
    authority, stranger = Authority(directory / "ours"), Authority(directory / "theirs")
    good = authority.issue("good", "localhost", "127.0.0.1")
    server = TlsServer(binary, directory / "server", authority, good).start()
    yield World(authority, stranger, good, server)
    server.stop()


@pytest.fixture
def server(world: World) -> TlsServer:
    """It, with a good certificate, and empty."""
    world.server.present(world.good)
    world.server.command("FLUSHALL")
    return world.server


async def assert_served(open_door: OpenDoor, url: str) -> CacheGuard:
    """Both tiers work at *url*: what one guard has loaded, another one finds."""
    door = open_door(CacheGuard(url, operation_timeout=PATIENCE))
    assert await door.get_or_set("k", Loader("value")) == "value"
    other = open_door(CacheGuard(url, operation_timeout=PATIENCE))
    assert await other.get("k") == "value"
    await other.invalidate("k")
    for stats in (door.guard.stats(), other.guard.stats()):
        assert stats.l2_up
        assert stats.redis_errors == 0
        assert stats.wire == "lean"
    return door.guard


def test_a_closed_guard_waits_for_no_goodbye_and_leaves_no_socket(server: TlsServer) -> None:
    selector = selectors.DefaultSelector()

    async def use(proxy: FaultProxy) -> None:
        before = len(selector.get_map())
        guard = CacheGuard(server.tls_url().replace(f":{server.port}", f":{proxy.port}"), operation_timeout=PATIENCE)
        assert await guard.aget_or_set("k", lambda: 1) == 1
        assert len(selector.get_map()) > before
        proxy.inject(Fault.BLACKHOLE)  # nobody answers a goodbye, which TLS waits for
        await guard.aclose()
        assert len(selector.get_map()) == before

    loop = asyncio.SelectorEventLoop(selector)
    with FaultProxy(server.port) as proxy, asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(use(proxy))


async def test_a_server_is_reached_over_tls(open_door: OpenDoor, server: TlsServer) -> None:
    await assert_served(open_door, server.tls_url())
    await assert_served(open_door, server.tls_url("client_name=shop", "protocol=3", "socket_keepalive=yes"))
    assert " name=shop " in str(server.command("CLIENT", "LIST"))


async def test_a_client_certificate_is_shown(open_door: OpenDoor, world: World, server: TlsServer) -> None:
    certificate, key = world.authority.issue("client", "shop")
    server.present(world.good, auth_clients="yes")
    await assert_served(open_door, server.tls_url(f"ssl_certfile={certificate}", f"ssl_keyfile={key}"))


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ("authority", "CERTIFICATE_VERIFY_FAILED"),
        ("host", "Hostname mismatch"),
        ("address", "IP address mismatch"),
        ("expired", "certificate has expired"),
        ("plain client", "speak TLS"),
        ("plain server", "TLS"),
        ("client certificate", "certificate"),
    ],
)
async def test_where_two_sides_do_not_agree_the_loader_answers_and_the_reason_is_said_once(
    open_door: OpenDoor, world: World, server: TlsServer, caplog: pytest.LogCaptureFixture, wrong: str, reason: str
) -> None:
    url = server.tls_url()
    if wrong == "authority":
        url = url.replace(str(world.authority.file), str(world.stranger.file))
    elif wrong == "host":
        server.present(world.authority.issue("elsewhere", "elsewhere.example"))
    elif wrong == "address":
        server.present(world.authority.issue("name-only", "localhost"))
        url = server.tls_url(host="127.0.0.1")
    elif wrong == "expired":
        server.present(world.authority.issue("old", "localhost", valid_for=dt.timedelta(days=-1)))
    elif wrong == "plain client":
        url = f"redis://localhost:{server.tls_port}/0"
    elif wrong == "plain server":
        url = url.replace(str(server.tls_port), str(server.port))
    else:
        server.present(world.good, auth_clients="yes")
    # Where both wait for the other, that takes as long as it is allowed to.
    timeout = QUICK if wrong == "plain server" else PATIENCE
    door = open_door(CacheGuard(url, operation_timeout=timeout))
    with caplog.at_level(logging.WARNING):
        assert await door.get_or_set("k", Loader("loaded")) == "loaded"
        assert await door.get("other", "nothing") == "nothing"
        await door.invalidate("k")
        assert await door.get_or_set("k", Loader("loaded again")) == "loaded again"
    assert not door.guard.stats().l2_up
    assert server.command("DBSIZE") == 0
    said = [record.getMessage() for record in caplog.records if "out of reach" in record.getMessage()]
    assert len(said) == 1
    assert reason in said[0]


@pytest.mark.parametrize("option", ["ssl_cert_reqs=none", "ssl_check_hostname=no"])
async def test_who_turns_verification_off_is_told_so(
    open_door: OpenDoor, world: World, server: TlsServer, caplog: pytest.LogCaptureFixture, option: str
) -> None:
    server.present(world.authority.issue("elsewhere", "elsewhere.example"))
    await assert_served(open_door, server.tls_url(option))
    said = [record.getMessage() for record in caplog.records if "does not check who answers" in record.getMessage()]
    assert len(said) == 2  # guards
    assert option.partition("=")[0] in said[0]


async def test_clients_of_ones_own_go_the_same_way(open_door: OpenDoor, server: TlsServer) -> None:
    options = {"ssl": True, "ssl_ca_certs": str(server.authority.file)}
    client = redis.Redis("localhost", server.tls_port, **options)  # type: ignore[arg-type]  # redis-py's own
    aclient = redis.asyncio.Redis(host="localhost", port=server.tls_port, **options)  # type: ignore[arg-type]
    door = open_door(CacheGuard(client=client, aclient=aclient, operation_timeout=PATIENCE))
    await door.set("k", 1)
    assert server.entries()
    client.close()
    await aclient.aclose()


async def test_the_clients_that_a_guard_makes_speak_tls_too(server: TlsServer) -> None:
    with CacheGuard(server.tls_url("client_name=made"), operation_timeout=PATIENCE) as guard:
        with guard.new_client() as client:
            assert client.client_getname() in ("made", b"made")
            assert client.client_info()["laddr"].endswith(f":{server.tls_port}")
        async with guard.new_client(is_async=True) as aclient:
            assert await aclient.client_getname() in ("made", b"made")
            assert (await aclient.client_info())["laddr"].endswith(f":{server.tls_port}")


# ---- Sentinel and Cluster


@pytest.fixture(scope="module")
def sentinel(binary: Path, world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsSentinel]:
    directory = tmp_path_factory.mktemp("tls-sentinel")
    master = TlsServer(binary, directory / "master", world.authority, world.good).start()
    master.commands(("ACL", "SETUSER", "shop", "on", ">w@ter", "~*", "&*", "+@all"))
    watcher = TlsSentinel(binary, directory / "sentinel", master, world.good, password="s3cr3t").start()
    yield watcher
    watcher.stop()
    master.stop()


@pytest.fixture(scope="module")
def cluster(binary: Path, world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsCluster]:
    node = TlsCluster(binary, tmp_path_factory.mktemp("tls-cluster"), world.authority, world.good).start()
    yield node
    node.stop()


async def test_sentinels_are_asked_over_tls_and_under_a_name_of_their_own(
    open_door: OpenDoor, sentinel: TlsSentinel
) -> None:
    url = sentinel.sentinel_url.replace("://", "://shop:w%40ter@")
    guard = await assert_served(open_door, url)
    with guard.new_client() as client:
        assert client.acl_whoami() in ("shop", b"shop")
    async with guard.new_client(is_async=True) as aclient:
        assert await aclient.acl_whoami() in ("shop", b"shop")


async def test_a_sentinel_that_knows_nobody_by_that_password_is_no_outage_of_readers(
    open_door: OpenDoor, sentinel: TlsSentinel, caplog: pytest.LogCaptureFixture
) -> None:
    url = sentinel.sentinel_url.replace("s3cr3t", "wr0ng")
    door = open_door(CacheGuard(url, operation_timeout=PATIENCE))
    assert await door.get_or_set("k", Loader("loaded")) == "loaded"
    said = [record.getMessage() for record in caplog.records if "out of reach" in record.getMessage()]
    assert len(said) == 1
    assert SERVICE in said[0]
    assert "invalid username-password pair" in said[0]
    assert "wr0ng" not in caplog.text


async def test_a_sentinel_of_a_stranger_is_not_believed(
    open_door: OpenDoor, world: World, sentinel: TlsSentinel, caplog: pytest.LogCaptureFixture
) -> None:
    url = sentinel.sentinel_url.replace(str(world.authority.file), str(world.stranger.file))
    door = open_door(CacheGuard(url, operation_timeout=PATIENCE))
    assert await door.get_or_set("k", Loader("loaded")) == "loaded"
    assert "CERTIFICATE_VERIFY_FAILED" in caplog.text


async def test_a_cluster_is_reached_over_tls(open_door: OpenDoor, cluster: TlsCluster) -> None:
    guard = await assert_served(open_door, cluster.cluster_url)
    with guard.new_client() as client:
        assert client.set("plain", 1)
    aclient = guard.new_client(is_async=True)
    try:
        assert await aclient.get("plain") == b"1"
    finally:
        await aclient.aclose()


def test_what_the_client_of_a_cluster_cannot_carry_is_said(cluster: TlsCluster) -> None:
    with (
        CacheGuard(f"{cluster.cluster_url}&ssl_min_version=TLSv1_2") as guard,
        pytest.raises(ConfigurationError, match="ssl_min_version"),
    ):
        guard.new_client()
