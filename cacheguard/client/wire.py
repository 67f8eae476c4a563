"""Questions and answers over a connection that redis-py has opened, without redis-py in between.

URLs, TLS, authentication, Sentinel and Cluster stay the client's. Once a connection stands, its commands are one piece
of bytes, and its replies are taken from hiredis as they come: all that a piece holds, instead of one for each walk
through the client. In an event loop, the transport itself is taken over: `stream.Stream` is its protocol from then on.
Where a connection is not made as this file knows it, the client has to read itself: `exchange` says so by None,
`way_of` and `standing` say why.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

from ..ports import Reply
from .deadline import Deadline
from .resp import refused

_BYTES = False  # whether the reader makes text of what it has read
_PIECE = 65536  # bytes that are taken from a stream at a time

LEAN = "lean"  # the way of a connection that is read by ourselves
_MISSING = "redis-py: hiredis is missing"
# What may be given another protocol while nothing is under way: read in their sources, and tried.
_TRANSPORTS = frozenset({
    "asyncio.selector_events._SelectorSocketTransport", "asyncio.sslproto._SSLProtocolTransport",
    "uvloop.loop.TCPTransport", "uvloop.loop.UnixTransport", "uvloop.loop._SSLProtocolTransport",
})  # fmt: skip


def exchange(connection: Any, payload: bytes, count: int) -> list[Reply] | None:  # noqa: C901 - one loop, on the way of every hit
    """Send *payload*, read *count* replies within the connection's timeout; None where the client has to do it.

    Raises what the client raises: ``TimeoutError`` and ``ConnectionError`` of redis-py. The connection is of no use
    then.
    """
    sock: Any = getattr(connection, "_sock", None)
    parser: Any = getattr(connection, "_parser", None)
    known = _known()
    if known is None or type(sock) is not Deadline or type(parser) is not known.parser:
        return None
    reader, push = parser._reader, parser._hiredis_PushNotificationType  # noqa: SLF001 - see redispy.PRIVATE
    if reader is None:
        return None
    if reader.has_data():
        _take_pushes(parser, known)
    buffer, gets, nothing = parser._buffer, reader.gets, known.nothing  # noqa: SLF001 - likewise
    replies: list[Reply] = []
    sock.begin()
    try:
        sock.sendall(payload)
        while True:
            size = sock.recv_into(buffer)
            if size == 0:
                raise known.lost("Connection closed by server.")
            reader.feed(buffer, 0, size)
            while (reply := gets(_BYTES)) is not nothing:
                if push is not None and type(reply) is push:
                    parser.handle_push_response(reply)
                    continue
                replies.append(_refusal(reply, known) if isinstance(reply, Exception) else reply)
                if len(replies) == count:
                    if reader.has_data():
                        _take_pushes(parser, known)
                    return replies
    except TimeoutError as error:
        raise known.timeout("Timeout on the socket") from error
    except OSError as error:
        raise known.lost(f"Error on the socket: {error}") from error


async def aexchange(connection: Any, payloads: list[bytes], counts: list[int]) -> list[list[Reply]] | None:
    """`exchange` in an event loop: several payloads in one piece, and the replies of each.

    The caller watches the time.
    """
    reader: Any = getattr(connection, "_reader", None)
    writer: Any = getattr(connection, "_writer", None)
    parser: Any = getattr(connection, "_parser", None)
    known = _known()
    if known is None or reader is None or writer is None or type(parser) is not known.running_parser:
        return None
    source, push = parser._reader, parser._hiredis_PushNotificationType  # noqa: SLF001 - see redispy.PRIVATE
    for message in _unasked(parser, known):
        await parser.handle_push_response(message)
    gets, nothing = source.gets, known.nothing
    answers: list[list[Reply]] = []
    try:
        writer.write(payloads[0] if len(payloads) == 1 else b"".join(payloads))
        await writer.drain()
        for count in counts:
            replies: list[Reply] = []
            while len(replies) < count:
                reply = gets(_BYTES)
                if reply is nothing:
                    piece = await reader.read(_PIECE)
                    if not piece:
                        raise known.lost("Connection closed by server.")
                    source.feed(piece)
                elif push is not None and type(reply) is push:
                    await parser.handle_push_response(reply)
                else:
                    replies.append(_refusal(reply, known) if isinstance(reply, Exception) else reply)
            answers.append(replies)
        for message in _unasked(parser, known):
            await parser.handle_push_response(message)
    except OSError as error:
        raise known.lost(f"Error on the socket: {error}") from error
    return answers


class Standing(NamedTuple):
    """A connection of an event loop, connected and greeted, over which nothing is under way.

    Args:
        transport: takes what is sent; gets another protocol.
        feed: takes bytes that have come.
        gets: the next reply; *nothing* while it is not whole.
        push: the type of what comes unasked; None if this hiredis knows none.
        pushed: tells the client of it.
        refusal: the type of an error that is a reply; any other says that the connection is of no use.
        lost: makes the exception of a connection that is gone.
    """

    transport: asyncio.Transport
    feed: Callable[[bytes], None]
    gets: Callable[[bool], Any]
    nothing: object
    push: type[Any] | None
    pushed: Callable[[Any], Coroutine[Any, Any, Any]]
    refusal: type[Exception]
    lost: type[Exception]


def way_of(connection: Any) -> str:
    """How the replies of a thread's connection are read: `LEAN`, or ``redis-py: `` and why not."""
    known = _known()
    if known is None:
        return _MISSING
    parser: Any = getattr(connection, "_parser", None)
    if type(parser) is not known.parser:
        return f"redis-py: unknown parser {type(parser).__name__}"
    sock: Any = getattr(connection, "_sock", None)
    return LEAN if type(sock) is Deadline else f"redis-py: unknown socket {type(sock).__name__}"


def standing(connection: Any) -> Standing | str:
    """What it takes to read *connection*, of an event loop, by ourselves; else, why that is left to the client.

    Nothing may be under way. From this call to `set_protocol` of the transport the loop must not turn, so that no byte
    comes in between.
    """
    known = _known()
    if known is None:
        return _MISSING
    parser: Any = getattr(connection, "_parser", None)
    if type(parser) is not known.running_parser:
        return f"redis-py: unknown parser {type(parser).__name__}"
    source: Any = getattr(connection, "_reader", None)
    transport: Any = getattr(getattr(connection, "_writer", None), "transport", None)
    if f"{type(transport).__module__}.{type(transport).__qualname__}" not in _TRANSPORTS:
        return f"redis-py: unknown transport {type(transport).__name__}"
    protocol: Any = transport.get_protocol()
    if (type(source), type(protocol)) != (asyncio.StreamReader, asyncio.StreamReaderProtocol):
        return f"redis-py: unknown protocol {type(protocol).__name__}"
    reader, push = parser._reader, parser._hiredis_PushNotificationType  # noqa: SLF001 - see redispy.PRIVATE
    if reader.has_data() or source._buffer or protocol._paused or source.exception() or source.at_eof():  # noqa: SLF001 - likewise
        return "redis-py: something came unasked"
    return Standing(
        transport, reader.feed, reader.gets, known.nothing, push, parser.handle_push_response, known.refusal, known.lost
    )


def _take_pushes(parser: Any, known: _Known) -> None:
    """Take what has come unasked from the parser of a thread's connection."""
    for message in _unasked(parser, known):
        parser.handle_push_response(message)


def _unasked(parser: Any, known: _Known) -> list[Any]:
    """The messages that have come unasked; ``ConnectionError`` for a reply, which would be the answer to nothing."""
    reader, push = parser._reader, parser._hiredis_PushNotificationType  # noqa: SLF001 - see redispy.PRIVATE
    found: list[Any] = []
    while (reply := reader.gets(_BYTES)) is not known.nothing:
        if push is None or type(reply) is not push:
            raise known.lost("a reply came that nobody had asked for")
        found.append(reply)
    if reader.has_data():
        raise known.lost("half a reply came that nobody had asked for")
    return found


def _refusal(reply: Exception, known: _Known) -> Reply:
    """A server's error as a value; raises one that says that the connection is of no use."""
    if isinstance(reply, known.refusal):
        return refused(reply)
    raise reply


class _Known(NamedTuple):
    """What of redis-py is needed here."""

    parser: type[Any]
    running_parser: type[Any]
    nothing: object
    refusal: type[Exception]
    lost: type[Exception]
    timeout: type[Exception]


@cache
def _known() -> _Known | None:
    """None where hiredis is missing, or redis-py does not know how to use it."""
    if find_spec("hiredis") is None:
        return None
    try:
        parsers: Any = import_module("redis._parsers.hiredis")
        blocking, running, nothing = parsers._HiredisParser, parsers._AsyncHiredisParser, parsers.NOT_ENOUGH_DATA  # noqa: SLF001 - see redispy.PRIVATE
    except (ImportError, AttributeError):
        return None
    from redis.exceptions import ConnectionError as Lost
    from redis.exceptions import ResponseError
    from redis.exceptions import TimeoutError as TimedOut

    return _Known(blocking, running, nothing, ResponseError, Lost, TimedOut)
