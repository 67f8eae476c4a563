"""Questions and answers over a connection that redis-py has opened, without redis-py in between.

URLs, TLS, authentication, Sentinel and Cluster stay the client's. Once a connection stands, its commands are one piece
of bytes, and its replies are taken from hiredis as they come: all that a piece holds, instead of one for each walk
through the client. Where a connection is not made as this file knows it, `exchange` says so by None, and the client has
to read itself.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

from ..ports import Reply
from .deadline import Deadline
from .resp import refused

_BYTES = False  # whether the reader makes text of what it has read
_PIECE = 65536  # bytes that are taken from a stream at a time


def exchange(connection: Any, payload: bytes, count: int) -> list[Reply] | None:
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
    if reader is None or reader.has_data():
        return None  # something came unasked
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
    if source.has_data():
        return None  # something came unasked
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
    except OSError as error:
        raise known.lost(f"Error on the socket: {error}") from error
    return answers


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
    """None where hiredis is missing, or redis-py is another one."""
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
