"""What redis-py does not promise, and we rely on: whatever is gone is reported by its name."""

from __future__ import annotations

import asyncio
import asyncio.selector_events
import asyncio.sslproto
import importlib
import inspect
import re
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
import redis.asyncio.cluster
import redis.asyncio.connection
import redis.asyncio.sentinel
import redis.cluster
import redis.connection
import redis.exceptions
import redis.sentinel

import cacheguard
from cacheguard.client import redispy, wire
from cacheguard.client.finders import BlockingFinder
from cacheguard.client.redispy import PRIVATE, Private

BLOCKING: Any = redis  # some of its classes have no types
RUNNING: Any = redis.asyncio
# Names that things of ours have, too.
OURS_TOO = {"connect", "connection_class", "connection_kwargs", "disconnect", "host", "is_master", "port", "sentinels"}
# What redis-py documents, or could not take away without breaking everybody.
PUBLIC = {
    "redis", "redis.asyncio", "redis.asyncio.cluster", "redis.asyncio.retry", "redis.backoff", "redis.cluster",
    "redis.exceptions", "redis.retry", "redis.sentinel",
}  # fmt: skip


@contextmanager
def socket_transport() -> Iterator[Any]:
    ours, theirs = socket.socketpair()
    loop = asyncio.SelectorEventLoop()

    async def transport() -> asyncio.Transport:
        made, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
        return made

    async def close(made: asyncio.Transport) -> None:
        made.close()
        await asyncio.sleep(0)

    made = loop.run_until_complete(transport())
    yield made
    loop.run_until_complete(close(made))
    loop.close()
    theirs.close()


@contextmanager
def stream_reader() -> Iterator[Any]:
    loop = asyncio.SelectorEventLoop()
    yield asyncio.StreamReader(loop=loop)
    loop.close()


@contextmanager
def stream_protocol() -> Iterator[Any]:
    loop = asyncio.SelectorEventLoop()
    yield asyncio.StreamReaderProtocol(asyncio.StreamReader(loop=loop), loop=loop)
    loop.close()


@contextmanager
def tls_protocol() -> Iterator[Any]:
    loop = asyncio.SelectorEventLoop()
    made: Any = asyncio.sslproto.SSLProtocol(
        loop, asyncio.Protocol(), ssl.create_default_context(), loop.create_future()
    )
    yield made
    made._get_app_transport().close()  # noqa: SLF001 - so that it does not warn
    loop.close()


@contextmanager
def tls_transport() -> Iterator[Any]:
    with tls_protocol() as protocol:
        yield protocol._get_app_transport()  # noqa: SLF001 - that is how it is made


@contextmanager
def cluster() -> Iterator[Any]:
    """A cluster client as it is before it has found any node."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redis.cluster.NodesManager, "initialize", lambda *_, **__: None)
        patch.setattr(redis.cluster, "CommandsParser", lambda *_: None)
        yield BLOCKING.cluster.RedisCluster(startup_nodes=[BLOCKING.cluster.ClusterNode("here", 1)])


@contextmanager
def nodes_manager() -> Iterator[Any]:
    with cluster() as client:
        yield client.nodes_manager


def made(make: Callable[[], Any]) -> Callable[[], AbstractContextManager[Any]]:
    @contextmanager
    def instance() -> Iterator[Any]:
        yield make()

    return instance


def parser() -> Any:
    """A parser of hiredis as it is when its connection stands."""
    module = importlib.import_module("redis._parsers.hiredis")
    connection = BLOCKING.connection.Connection()
    standing = module._HiredisParser(1024)  # noqa: SLF001 - that is its name
    standing.on_connect(connection)
    return standing


def running_parser() -> Any:
    """`parser`, of an event loop."""
    module = importlib.import_module("redis._parsers.hiredis")
    standing = module._AsyncHiredisParser(1024)  # noqa: SLF001 - that is its name
    standing.on_connect(RUNNING.connection.Connection())
    return standing


def running_cluster() -> Any:
    return RUNNING.cluster.RedisCluster(startup_nodes=[RUNNING.cluster.ClusterNode("here", 1)])


SENTINEL = BLOCKING.sentinel.Sentinel([("here", 1)])
RUNNING_SENTINEL = RUNNING.sentinel.Sentinel([("here", 1)])

# An instance of each class whose instances have something that the class has not.
INSTANCES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "redis.connection.Connection": made(redis.connection.Connection),
    "redis.asyncio.connection.Connection": made(redis.asyncio.connection.Connection),
    "redis._parsers.hiredis._HiredisParser": made(parser),
    "redis._parsers.hiredis._AsyncHiredisParser": made(running_parser),
    "asyncio.StreamReader": stream_reader,
    "asyncio.StreamReaderProtocol": stream_protocol,
    "asyncio.selector_events._SelectorSocketTransport": socket_transport,
    "asyncio.sslproto.SSLProtocol": tls_protocol,
    "asyncio.sslproto._SSLProtocolTransport": tls_transport,
    "redis.sentinel.SentinelManagedConnection": made(
        lambda: BLOCKING.sentinel.SentinelManagedConnection(connection_pool=object())
    ),
    "redis.asyncio.sentinel.SentinelManagedConnection": made(
        lambda: RUNNING.sentinel.SentinelManagedConnection(connection_pool=object())
    ),
    "redis.Redis": made(redis.Redis),
    "redis.asyncio.Redis": made(redis.asyncio.Redis),
    "redis.ConnectionPool": made(redis.ConnectionPool),
    "redis.asyncio.ConnectionPool": made(redis.asyncio.ConnectionPool),
    "redis.sentinel.Sentinel": made(lambda: SENTINEL),
    "redis.asyncio.sentinel.Sentinel": made(lambda: RUNNING_SENTINEL),
    "redis.sentinel.SentinelConnectionPool": made(lambda: SENTINEL.master_for("main").connection_pool),
    "redis.asyncio.sentinel.SentinelConnectionPool": made(lambda: RUNNING_SENTINEL.master_for("main").connection_pool),
    "redis.cluster.RedisCluster": cluster,
    "redis.cluster.NodesManager": nodes_manager,
    "redis.cluster.ClusterNode": made(lambda: BLOCKING.cluster.ClusterNode("here", 1)),
    "redis.asyncio.cluster.RedisCluster": made(running_cluster),
    "redis.asyncio.cluster.NodesManager": made(lambda: running_cluster().nodes_manager),
    "redis.asyncio.cluster.ClusterNode": made(lambda: RUNNING.cluster.ClusterNode("here", 1)),
    "redis.exceptions.MovedError": made(lambda: redis.exceptions.MovedError("1 here:6379")),
    "redis.exceptions.AskError": made(lambda: redis.exceptions.AskError("1 here:6379")),
}


def holder_of(row: Private) -> AbstractContextManager[Any]:
    """What has the attribute: an instance, the class, or the module."""
    try:
        found: Any = importlib.import_module(row.of)
    except ImportError:
        module, _, name = row.of.rpartition(".")
        found = getattr(importlib.import_module(module), name)
    if row.of not in INSTANCES:
        return made(lambda: found)()
    return INSTANCES[row.of]()


def missing(row: Private) -> str | None:
    """The name of what is gone; None if it is there."""
    name, _, parameter = row.name.rstrip(")").partition("(")
    try:
        with holder_of(row) as holder:
            attribute = getattr(holder, name)
            if parameter and parameter not in inspect.signature(attribute).parameters:
                return f"{row.of}.{row.name}"
    except (ImportError, AttributeError):
        return f"{row.of}.{row.name}"
    return None


@pytest.mark.parametrize("row", PRIVATE, ids=lambda row: f"{row.of}.{row.name}")
def test_what_is_relied_on_is_there(row: Private) -> None:
    gone = missing(row)
    assert gone is None, f"redis-py {redis.__version__} has no {gone} any more: {row.why}"


@pytest.mark.parametrize(
    ("of", "name"),
    [
        ("redis.connection.Connection", "_no_such_socket"),
        ("redis.connection.Connection", "_no_such_method(disable_decoding)"),
        ("redis.connection.Connection", "read_response(no_such_parameter)"),
        ("redis.connection.NoSuchConnection", "_sock"),
        ("redis.no_such_module.Connection", "_sock"),
        ("redis.cluster.NodesManager", "no_such_cache"),
        ("redis.cluster", "NO_SUCH_KEYS"),
    ],
)
def test_what_is_gone_is_reported_by_its_name(of: str, name: str) -> None:
    assert missing(Private(of, name, "planted")) == f"{of}.{name}"


def test_an_attribute_that_a_release_takes_away_is_reported_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    row = next(row for row in PRIVATE if row.name == "_force_master_ip")
    assert missing(row) is None
    monkeypatch.delattr(SENTINEL, "_force_master_ip")
    assert missing(row) == "redis.sentinel.Sentinel._force_master_ip"


def test_nothing_is_named_twice() -> None:
    rows = [(row.of, row.name) for row in PRIVATE]
    assert len(rows) == len(set(rows))


THOSE_WHO_MAY = {Path(inspect.getfile(each)) for each in (redispy, wire)}
SOURCES = [path for path in Path(inspect.getfile(cacheguard)).parent.rglob("*.py") if path not in THOSE_WHO_MAY]


def test_no_other_module_relies_on_it() -> None:
    names = {row.name.partition("(")[0] for row in PRIVATE} - OURS_TOO
    used = re.compile(rf"(?<!self)\.({'|'.join(names)})\b|\"({'|'.join(names - {'socket_timeout'})})\"")
    found = [f"{path.name}: {match[0]}" for path in SOURCES for match in used.finditer(path.read_text())]
    assert found == []


def test_other_modules_import_what_redis_py_documents() -> None:
    imported = re.compile(r"^\s*(?:from|import) (redis[\w.]*)", re.MULTILINE)
    found = {f"{path.name}: {each}" for path in SOURCES for each in imported.findall(path.read_text())}
    assert {each for each in found if each.partition(": ")[2] not in PUBLIC} == set()


@pytest.mark.parametrize("kind", redispy.kinds_that_ask(tls=False))
def test_a_managed_connection_asks_no_more_of_its_pool_than_a_finder_answers(kind: Any) -> None:
    asked = set(re.findall(r"self\.connection_pool\.(\w+)", inspect.getsource(kind)))
    assert asked - set(dir(BlockingFinder([], "main"))) <= {"rotate_slaves"}, "asked only of who is no master"


ALL_KINDS = [
    *redispy.kinds(tls=False),
    *redispy.kinds(tls=True),
    *redispy.kinds_of_file_sockets(),
    *redispy.kinds_that_ask(tls=False),
    *redispy.kinds_that_ask(tls=True),
]


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_every_kind_of_connection_can_be_silenced(kind: Any) -> None:
    settings = {redispy.FINDER: None} if issubclass(kind, redispy.kinds_that_ask(tls=False)) else {}
    quiet = redispy.silence(kind, settings)
    assert quiet
    assert quiet.keys() <= redispy.parameters_of(kind)
    kind(**settings, **quiet)  # a deprecated one would warn, which is an error here
    assert redispy.silence(kind, {"lib_name": "mine"}) == {}


def lent_by_a_cluster(client: Any) -> redispy.Lent:
    manager = client.nodes_manager
    for node in manager.startup_nodes.values():
        if isinstance(node, redis.cluster.ClusterNode):
            node.redis_connection = manager.create_redis_node("here", 1, **manager.connection_kwargs)
    return redispy.lent_by(client)


@pytest.mark.parametrize("client", [cluster, made(running_cluster)])
def test_a_cluster_client_lends_nothing_that_is_tied_to_it(client: Callable[[], AbstractContextManager[Any]]) -> None:
    with client() as mine:
        lent = lent_by_a_cluster(mine)
    assert lent.nodes == (("here", 1),)
    assert lent.kind(**{"host": "here", **lent.settings}).host == "here"
    assert_untied(lent.settings)


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("module", [BLOCKING, RUNNING])
def test_a_client_lends_nothing_that_is_tied_to_it(module: Any, protocol: int) -> None:
    sentinel = module.sentinel.Sentinel([("here", 1)], {"protocol": protocol}, protocol=protocol)
    for client in (module.Redis(host="here", protocol=protocol), sentinel.master_for("main")):
        lent = redispy.lent_by(client)
        settings = [lent.settings, *(each for _, each in lent.sentinels or ())]
        for each in settings:
            assert_untied({name: value for name, value in each.items() if name != redispy.FINDER})
    assert redispy.lent_by(sentinel.master_for("main")).service == "main"


def assert_untied(settings: dict[str, Any]) -> None:
    """Plain values, and what any number of connections may share."""
    modules = {type(value).__module__ for value in settings.values()}
    assert modules <= {"builtins", "redis.retry", "redis.asyncio.retry", "redis.driver_info"}
    assert not [name for name, value in settings.items() if callable(value)]
