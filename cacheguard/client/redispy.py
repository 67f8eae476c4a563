"""All that is private or undocumented of redis-py, and of asyncio's transports beneath it; only `wire` needs it, too.

Checked against redis-py 6.4.0, 7.4.1 and 8.1.0; `pyproject.toml` allows ``redis>=6.4,<9``. Before that range grows, run
``tests/unit/test_redispy.py`` under the new release: for each row of `PRIVATE` that is not true any more it fails by
name. What stands here is plain functions, because two of them are on the way of every read.

Nothing of redis-py is imported before it is used, so that `import cacheguard` stays light.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from socket import SHUT_RDWR
from typing import Any, NamedTuple

from ..ports import Reply
from . import resp
from .deadline import Deadline
from .wire import aexchange, exchange

FINDER = "connection_pool"  # the setting of a managed connection that says whom it asks for its master

# What a connection of either colour understands alike.
_SHARED = frozenset({
    "host", "port", "path", "db", "username", "password", "client_name", "credential_provider", "protocol",
    "socket_keepalive", "socket_keepalive_options", "socket_type", "encoding", "encoding_errors",
})  # fmt: skip
# Settings that tie a connection to the client it was made for: its pool hears what a server tells of maintenance, and
# gives the connection the client's host and timeouts again when that is over.
_TIES = ("himport_registry", "maint_", "oss_", "orig_")
# What a cluster client does on each connection is about reading from replicas.
_OF_A_CLUSTER = ("redis_connect_func", "response_callbacks")


class Private(NamedTuple):
    """Something that redis-py does not promise.

    Args:
        of: the module or the class that has it; of a class, its instances have it.
        name: of the attribute, or ``method(parameter)``.
        why: what it is used for.
    """

    of: str
    name: str
    why: str


PRIVATE = (
    # The connections of threads
    Private("redis.connection.Connection", "_connect", "returns the socket, around which a deadline is put"),
    Private("redis.connection.SSLConnection", "_connect", "likewise"),
    Private("redis.connection.UnixDomainSocketConnection", "_connect", "likewise"),
    Private("redis.connection.Connection", "_sock", "the socket with its deadline; shut down, it wakes who waits"),
    Private("redis.connection.Connection", "socket_timeout", "how long the answer to one question may take"),
    Private("redis.connection.Connection", "host", "resolved beforehand; says which server was reached"),
    Private("redis.connection.Connection", "port", "says which server was reached"),
    Private("redis.connection.Connection", "connect", "connects and greets, with no retry if we say so"),
    Private("redis.connection.Connection", "disconnect", "closes the socket; the connection may be used again"),
    Private("redis.connection.Connection", "send_packed_command(check_health)", "sends what `resp.pack` has made"),
    Private("redis.connection.Connection", "send_command", "sends the few words of a greeting or a subscription"),
    Private("redis.connection.Connection", "read_response(disable_decoding)", "values are bytes"),
    Private("redis.connection.Connection", "read_response(push_request)", "messages come as pushes under RESP 3"),
    Private("redis.connection.Connection", "can_read(timeout)", "waits for a message"),
    # What `wire` reads itself
    Private("redis.connection.Connection", "_parser", "has the reader of the replies"),
    Private("redis._parsers.hiredis", "NOT_ENOUGH_DATA", "what its reader returns where a reply is not there yet"),
    Private("redis._parsers.hiredis", "_HiredisParser", "the only parser that is known well enough"),
    Private("redis._parsers.hiredis._HiredisParser", "_reader", "takes bytes, gives replies; None if unconnected"),
    Private("redis._parsers.hiredis._HiredisParser", "_buffer", "into which the socket's bytes are read"),
    Private("redis._parsers.hiredis._HiredisParser", "_hiredis_PushNotificationType", "tells pushes from replies"),
    Private("redis._parsers.hiredis._HiredisParser", "handle_push_response(response)", "tells the client of a push"),
    Private("redis.asyncio.connection.Connection", "_parser", "likewise"),
    Private("redis._parsers.hiredis", "_AsyncHiredisParser", "likewise"),
    Private("redis._parsers.hiredis._AsyncHiredisParser", "_reader", "takes bytes, gives replies"),
    Private("redis._parsers.hiredis._AsyncHiredisParser", "_hiredis_PushNotificationType", "tells pushes from replies"),
    Private("redis._parsers.hiredis._AsyncHiredisParser", "handle_push_response(response)", "tells the client"),
    # The connections of event loops
    Private("redis.asyncio.connection.Connection", "_reader", "dropped where the event loop is gone"),
    Private("redis.asyncio.connection.Connection", "_writer", "closed where the event loop is gone"),
    Private("redis.asyncio.connection.Connection", "connect", "connects and greets, with no retry if we say so"),
    Private("redis.asyncio.connection.Connection", "disconnect(nowait)", "closes without waiting for the other side"),
    Private("redis.asyncio.connection.Connection", "send_packed_command(check_health)", "as for threads"),
    Private("redis.asyncio.connection.Connection", "send_command", "as for threads"),
    Private("redis.asyncio.connection.Connection", "read_response(disable_decoding)", "as for threads"),
    Private("asyncio.StreamReader", "_buffer", "what has come and was not read; a transport is taken over without any"),
    Private("asyncio.StreamReaderProtocol", "_paused", "whether the transport takes no more; likewise"),
    Private("asyncio.selector_events._SelectorSocketTransport", "_sock", "closed where the event loop is closed"),
    Private("asyncio.sslproto._SSLProtocolTransport", "_ssl_protocol", "leads to the transport beneath TLS"),
    Private("asyncio.sslproto.SSLProtocol", "_transport", "the transport beneath TLS"),
    # Sentinel
    Private("redis.sentinel.SentinelManagedConnection", "connection_pool", "asked for the master: our finder"),
    Private("redis.asyncio.sentinel.SentinelManagedConnection", "connection_pool", "likewise"),
    # Clients that lend their settings
    Private("redis.Redis", "connection_pool", "has the settings that a client lends"),
    Private("redis.asyncio.Redis", "connection_pool", "likewise"),
    Private("redis.ConnectionPool", "connection_class", "of the connections of a client"),
    Private("redis.ConnectionPool", "connection_kwargs", "what they are made with"),
    Private("redis.asyncio.ConnectionPool", "connection_class", "of the connections of a client"),
    Private("redis.asyncio.ConnectionPool", "connection_kwargs", "what they are made with"),
    Private("redis.sentinel.SentinelConnectionPool", "sentinel_manager", "knows the sentinels"),
    Private("redis.sentinel.SentinelConnectionPool", "service_name", "what they call the master"),
    Private("redis.sentinel.SentinelConnectionPool", "is_master", "tells a client of the master from one of replicas"),
    Private("redis.asyncio.sentinel.SentinelConnectionPool", "sentinel_manager", "knows the sentinels"),
    Private("redis.asyncio.sentinel.SentinelConnectionPool", "service_name", "what they call the master"),
    Private("redis.asyncio.sentinel.SentinelConnectionPool", "is_master", "as for threads"),
    Private("redis.sentinel.Sentinel", "sentinels", "the clients of the sentinels"),
    Private("redis.sentinel.Sentinel", "_force_master_ip", "where the master is, whatever they say"),
    Private("redis.asyncio.sentinel.Sentinel", "sentinels", "the clients of the sentinels"),
    Private("redis.asyncio.sentinel.Sentinel", "_force_master_ip", "where the master is, whatever they say"),
    Private("redis.cluster.RedisCluster", "nodes_manager", "knows the nodes; tells a cluster client from others"),
    Private("redis.asyncio.cluster.RedisCluster", "nodes_manager", "likewise"),
    Private("redis.cluster.NodesManager", "startup_nodes", "the nodes that the client was told of"),
    Private("redis.cluster.NodesManager", "nodes_cache", "the nodes that it has found"),
    Private("redis.cluster.NodesManager", "address_remap", "where a node is to be found from here"),
    Private("redis.asyncio.cluster.NodesManager", "startup_nodes", "the nodes that the client was told of"),
    Private("redis.asyncio.cluster.NodesManager", "nodes_cache", "the nodes that it has found"),
    Private("redis.asyncio.cluster.NodesManager", "address_remap", "where a node is to be found from here"),
    Private("redis.cluster.ClusterNode", "host", "where a node is"),
    Private("redis.cluster.ClusterNode", "port", "where a node is"),
    Private("redis.cluster.ClusterNode", "redis_connection", "the client of a node, which has the settings"),
    Private("redis.asyncio.cluster.ClusterNode", "host", "where a node is"),
    Private("redis.asyncio.cluster.ClusterNode", "port", "where a node is"),
    Private("redis.asyncio.cluster.ClusterNode", "connection_class", "of the connections to a node"),
    Private("redis.asyncio.cluster.ClusterNode", "connection_kwargs", "what they are made with"),
    # Clients that are made for a user
    Private("redis.cluster", "REDIS_ALLOWED_KEYS", "what a cluster client hands on to its connections"),
    # What the nodes of a cluster answer
    Private("redis.exceptions.MovedError", "host", "the node that owns the slot"),
    Private("redis.exceptions.MovedError", "port", "the node that owns the slot"),
    Private("redis.exceptions.AskError", "host", "the node that takes the slot over"),
    Private("redis.exceptions.AskError", "port", "the node that takes the slot over"),
)


# Asking, from threads


def ask(connection: Any, payload: bytes, count: int) -> list[Reply]:
    """Send what `resp.pack` has made of *count* calls, and read that many replies within one timeout."""
    replies = exchange(connection, payload, count)
    if replies is not None:
        return replies
    expect_answer(connection)
    connection.send_packed_command([payload], check_health=False)
    if count == 1:
        return [_reply(connection)]
    return [_reply(connection) for _ in range(count)]


def _reply(connection: Any) -> Reply:
    try:
        return connection.read_response(disable_decoding=True)
    except _refusal() as error:
        return resp.refused(error)


def say(connection: Any, *words: str) -> Reply:
    """Send one command, and read its reply; each piece of it has the socket's own time."""
    connection.send_command(*words, check_health=False)
    return _reply(connection)


def subscribe(connection: Any, *channels: str) -> None:
    """Subscribe; returns when that is confirmed, within one timeout."""
    expect_answer(connection)
    connection.send_command("SUBSCRIBE", *channels, check_health=False)
    for _ in channels:
        _message(connection)
    expect_anything(connection)


def next_message(connection: Any, seconds: float) -> Any:
    """The next message on a subscribed connection; None if none comes in time."""
    return _message(connection) if connection.can_read(timeout=seconds) else None


def _message(connection: Any) -> Any:
    """A message in bytes, under either protocol."""
    return connection.read_response(disable_decoding=True, push_request=True)


def _refusal() -> type[Exception]:
    """What is raised where a server answers with an error."""
    from redis.exceptions import ResponseError

    return ResponseError


# One deadline for an answer, from threads


def limited(connect: Callable[[], Any]) -> Callable[[], Any]:
    """*connect*, whose connections have a deadline for each answer; those of an unknown make stay as they are."""

    def make() -> Any:
        connection: Any = connect()
        if hasattr(connection, "_connect"):
            connection.__class__ = _with_deadline(connection.__class__)
        return connection

    return make


@cache
def _with_deadline(kind: Any) -> Any:
    """*kind*, a class of connections, with sockets that have a deadline."""

    def connect(self: Any) -> Deadline:
        # One for all of the greeting, to begin with.
        return Deadline(kind._connect(self), self.socket_timeout)  # noqa: SLF001 - the client has no other place for it

    return type(kind.__name__, (kind,), {"_connect": connect})


def cut(connection: Any) -> None:
    """Wake the thread that waits on *connection*, from another one: it finds the connection at its end."""
    sock = getattr(connection, "_sock", None)
    if sock is not None:
        with suppress(OSError, ValueError):
            sock.shutdown(SHUT_RDWR)


def expect_answer(connection: Any) -> None:
    """What is read over *connection* from now on is the answer to what is asked now, and has one timeout for all."""
    socket = getattr(connection, "_sock", None)
    if type(socket) is Deadline:
        socket.begin()


def expect_anything(connection: Any) -> None:
    """What comes over *connection* from now on comes unasked, when it likes."""
    socket = getattr(connection, "_sock", None)
    if type(socket) is Deadline:
        socket.end()


# Asking, from an event loop


async def aask(connection: Any, payloads: list[bytes], counts: list[int]) -> list[list[Reply]]:
    """Send what `resp.pack` has made, several times over; for each of *counts*, that many replies."""
    received = await aexchange(connection, payloads, counts)
    if received is not None:
        return received
    await connection.send_packed_command(payloads, check_health=False)
    answers: list[list[Reply]] = []
    for count in counts:
        replies: list[Reply] = []
        for _ in range(count):  # no comprehension: until Python 3.12 each is a call, and this is on every read's way
            replies.append(await _areply(connection))  # noqa: PERF401 - see above
        answers.append(replies)
    return answers


async def _areply(connection: Any) -> Reply:
    try:
        return await connection.read_response(disable_decoding=True)
    except _refusal() as error:
        return resp.refused(error)


async def asay(connection: Any, *words: str) -> Reply:
    """Send one command, and read its reply."""
    await connection.send_command(*words, check_health=False)
    return await _areply(connection)


async def hang_up(connection: Any) -> None:
    """Disconnect without waiting for the other side.

    TLS says goodbye, and its transport would then wait half a minute for the other side to do so, too: longer than many
    a loop lives, which would leave an open socket behind.
    """
    transport = getattr(getattr(connection, "_writer", None), "transport", None)
    await connection.disconnect(nowait=True)
    if transport is not None:
        transport.abort()


def let_go(connection: Any) -> None:
    """Close a connection outside its event loop, where the client's own way to do so does not work."""
    writer, connection._writer, connection._reader = connection._writer, None, None  # noqa: SLF001 - so that it does not warn
    if writer is None:
        return
    try:
        writer.close()
    except RuntimeError:  # the loop is closed, and cannot close the socket any more
        transport = writer.transport
        transport = getattr(getattr(transport, "_ssl_protocol", transport), "_transport", transport)
        sock = getattr(transport, "_sock", None)
        if sock is not None:
            sock.close()
            transport._sock = None  # noqa: SLF001 - likewise


# Who was reached


def address_of(connection: Any) -> tuple[Any, Any]:
    """Where *connection* leads, or led when it was connected last; nothing for a socket of the file system."""
    return getattr(connection, "host", None), getattr(connection, "port", None)


def finder_of(connection: Any) -> Any:
    """Whom a managed connection asks for its master; None if it is none."""
    return getattr(connection, FINDER, None)


def redirection_of(error: BaseException | None) -> tuple[str, tuple[str, int]] | None:
    """Where a node of a cluster sends a call, and whether for good, ``MOVED``, or this once, ``ASK``."""
    from redis.exceptions import AskError, MovedError

    if not isinstance(error, AskError):
        return None
    target: Any = error
    return "MOVED" if isinstance(error, MovedError) else "ASK", (target.host, target.port)


# Kinds of connections


def kinds(*, tls: bool) -> tuple[Any, Any]:
    """The classes of connections to a host, for threads and for event loops."""
    import redis.asyncio.connection as running
    import redis.connection as blocking

    return (blocking.SSLConnection, running.SSLConnection) if tls else (blocking.Connection, running.Connection)


def kinds_of_file_sockets() -> tuple[Any, Any]:
    """The classes of connections to a socket of the file system, for threads and for event loops."""
    import redis.asyncio.connection as running
    import redis.connection as blocking

    return blocking.UnixDomainSocketConnection, running.UnixDomainSocketConnection


def kinds_that_ask(*, tls: bool) -> tuple[Any, Any]:
    """The classes of connections that ask a finder for their master, for threads and for event loops."""
    import redis.asyncio.sentinel as running
    import redis.sentinel as blocking

    if tls:
        return blocking.SentinelManagedSSLConnection, running.SentinelManagedSSLConnection
    return blocking.SentinelManagedConnection, running.SentinelManagedConnection


def is_tls(kind: Any) -> bool:
    """Whether connections of this class are encrypted."""
    return any(each.__name__ == "SSLConnection" for each in kind.__mro__)


def plain(kind: Any) -> Any:
    """The class of connections like *kind* that ask nobody for their master."""
    modules = ("redis.connection", "redis.asyncio.connection")
    return next(each for each in kind.__mro__ if each.__module__ in modules)


@cache
def parameters_of(kind: Any) -> frozenset[str]:
    """What a connection class takes, by itself and by those it is made of."""
    makers: list[Any] = [each.__dict__["__init__"] for each in kind.__mro__[:-1] if "__init__" in each.__dict__]
    return frozenset(name for each in makers for name in inspect.signature(each).parameters)


def silence(kind: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings under which a new connection does not tell the server what library it is of, unless a user wants it.

    CLIENT SETINFO would cost each new connection two round trips, and a user with few rights a line in ACL LOG.
    """
    if settings.keys() & {"driver_info", "lib_name", "lib_version"}:
        return {}
    # Since 7.2 the two older ones are deprecated: to give them warns.
    quiet = ("driver_info",) if "driver_info" in parameters_of(kind) else ("lib_name", "lib_version")
    return dict.fromkeys(quiet)


def blocking_form(kind: Any, settings: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A connection class of redis.asyncio, and what it is made with, for threads; the finder stays behind."""
    pairs = (
        kinds_that_ask(tls=True),
        kinds_that_ask(tls=False),
        kinds_of_file_sockets(),
        kinds(tls=True),
        kinds(tls=False),
    )
    twin = next((blocking for blocking, running in pairs if issubclass(kind, running)), kinds(tls=False)[0])
    taken = parameters_of(twin)
    return twin, {
        name: value
        for name, value in settings.items()
        if name in _SHARED or (name.startswith("ssl_") and name in taken)
    }


# Clients


@dataclass(frozen=True)
class Lent:
    """What a client lends: how its connections are made, never a connection.

    Args:
        nodes: in a cluster, those that it knows.
        remap: where a node that the cluster names is to be found from here.
        sentinels: the kind and the settings of connections to each sentinel; None if none is asked.
        service: what they call the master.
        forced_host: where the master is, whatever they say.
        is_master: false for a client that reads from replicas.
    """

    kind: Any
    settings: dict[str, Any]
    nodes: tuple[tuple[str, int], ...] = ()
    remap: Callable[[tuple[str, int]], tuple[str, int]] | None = None
    sentinels: tuple[tuple[Any, dict[str, Any]], ...] | None = None
    service: str = ""
    forced_host: str | None = None
    is_master: bool = True


def is_async(client: Any) -> bool | None:
    """Whether *client* is one of redis.asyncio; None if it is no client at all."""
    pool: Any = getattr(client, "connection_pool", None)
    if not hasattr(client, "nodes_manager") and not hasattr(pool, "connection_class"):
        return None
    classes = (*type(client).__mro__, *type(pool).__mro__)
    return any(each.__module__.startswith("redis.asyncio") for each in classes)


def lent_by(client: Any) -> Lent:
    """What *client* lends."""
    if hasattr(client, "nodes_manager"):
        return _lent_by_cluster(client)
    pool = client.connection_pool
    manager = getattr(pool, "sentinel_manager", None)
    settings = _untied(pool.connection_kwargs)
    if manager is None:
        return Lent(pool.connection_class, settings)
    asked = [each.connection_pool for each in manager.sentinels]
    return Lent(
        pool.connection_class,
        settings,
        sentinels=tuple((each.connection_class, _untied(each.connection_kwargs)) for each in asked),
        service=pool.service_name,
        forced_host=getattr(manager, "_force_master_ip", None),
        is_master=pool.is_master,
    )


def _lent_by_cluster(client: Any) -> Lent:
    manager = client.nodes_manager
    known = [*manager.startup_nodes.values(), *manager.nodes_cache.values()]
    if is_async(client):
        kind, settings = known[0].connection_class, known[0].connection_kwargs
    else:
        ready = [node.redis_connection for node in known if node.redis_connection is not None]
        pool = ready[0].connection_pool
        kind, settings = pool.connection_class, pool.connection_kwargs
    mine = {name: value for name, value in _untied(settings).items() if name not in _OF_A_CLUSTER}
    addresses = tuple(dict.fromkeys((str(node.host), int(node.port)) for node in known))
    return Lent(kind, mine, addresses, getattr(manager, "address_remap", None))


def _untied(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if not name.startswith(_TIES)}


def dropped_by_a_cluster_client(settings: dict[str, Any], *, asynchronous: bool) -> list[str]:
    """The settings of TLS that such a client would drop without a word, although its connections take them."""
    import redis.asyncio.cluster
    import redis.cluster

    kind: Any = redis.asyncio.cluster.RedisCluster if asynchronous else redis.cluster.RedisCluster
    taken = {*inspect.signature(kind).parameters, *(() if asynchronous else redis.cluster.REDIS_ALLOWED_KEYS)}
    return sorted(name for name, value in settings.items() if name.startswith("ssl_") and value and name not in taken)
