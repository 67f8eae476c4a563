"""Questions and answers over a connection that redis-py has opened, in threads, without redis-py in between.

URLs, TLS, authentication, Sentinel and Cluster stay the client's. Once a connection stands, its commands are one piece
of bytes, and its replies are taken from hiredis as they come: all that a piece holds, instead of one for each walk
through the client. Where a connection is not made as this file knows it, `exchange` says so by None, and the client has
to read itself.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from ..ports import Reply
from .deadline import Deadline
from .resp import refused

_BYTES = False  # whether the reader makes text of what it has read


def exchange(connection: Any, payload: bytes, count: int) -> list[Reply] | None:
    """Send *payload*, read *count* replies within the connection's timeout; None where the client has to do it.

    Raises what the client raises: ``TimeoutError`` and ``ConnectionError`` of redis-py. The connection is of no use
    then.
    """
    sock, parser = getattr(connection, "_sock", None), getattr(connection, "_parser", None)
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


def _refusal(reply: Exception, known: _Known) -> Reply:
    """A server's error as a value; raises one that says that the connection is of no use."""
    if isinstance(reply, known.refusal):
        return refused(reply)
    raise reply


class _Known(NamedTuple):
    """What of redis-py is needed here."""

    parser: type[Any]
    nothing: object
    refusal: type[Exception]
    lost: type[Exception]
    timeout: type[Exception]


@cache
def _known() -> _Known | None:
    """None where hiredis is missing, or redis-py is another one."""
    try:
        import hiredis  # noqa: F401 - whether it is there
        from redis._parsers.hiredis import NOT_ENOUGH_DATA, _HiredisParser
    except ImportError:
        return None
    from redis.exceptions import ConnectionError as Lost
    from redis.exceptions import ResponseError
    from redis.exceptions import TimeoutError as TimedOut

    return _Known(_HiredisParser, NOT_ENOUGH_DATA, ResponseError, Lost, TimedOut)
