"""One deadline for an answer, however many pieces it comes in.

The client's own timeout begins anew with each piece, so a server, or a network, that hands out a byte at a time could
hold a caller for as long as it likes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from time import monotonic
from typing import Any

LEAST = 0.0001  # seconds; zero would mean that the socket does not block


class Deadline:
    """A socket whose pieces of one answer have to arrive within one timeout; it does everything else as it did.

    Args:
        plain: the socket, connected.
    """

    __slots__ = ("_first", "_plain", "_recv", "_recv_into", "_until", "sendall")

    def __init__(self, plain: Any) -> None:
        self._plain = plain
        self._recv, self._recv_into, self.sendall = plain.recv, plain.recv_into, plain.sendall
        self._until = 0.0  # 0: none
        self._first = True  # the next piece has the whole time, as the socket itself has it

    def begin(self, seconds: float) -> None:
        """All that is read from now on is one answer."""
        self._until, self._first = monotonic() + seconds, True

    def end(self) -> None:
        """What comes now comes unasked: each piece has the socket's own time."""
        self._until = 0.0

    def recv(self, *args: Any) -> Any:
        return self._within(self._recv, args)

    def recv_into(self, *args: Any) -> Any:
        if self._first:
            self._first = False
            return self._recv_into(*args)
        return self._within(self._recv_into, args)

    def _within(self, read: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        if self._first or not self._until:
            self._first = False
            return read(*args)
        usual = self._plain.gettimeout()
        self._plain.settimeout(max(LEAST, self._until - monotonic()))
        try:
            return read(*args)
        finally:
            self._plain.settimeout(usual)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plain, name)


@cache
def _with_deadline(kind: Any) -> Any:
    """*kind*, a class of connections, with sockets that have a deadline."""

    def connect(self: Any) -> Deadline:
        socket = Deadline(kind._connect(self))  # noqa: SLF001 - the client has no other place to put a socket in
        if self.socket_timeout:
            socket.begin(self.socket_timeout)  # for all of the greeting
        return socket

    return type(kind.__name__, (kind,), {"_connect": connect})


def dressed(connect: Callable[[], Any]) -> Callable[[], Any]:
    """*connect*, whose connections have a deadline for each answer; those of an unknown make stay as they are."""

    def make() -> Any:
        connection: Any = connect()
        if hasattr(connection, "_connect"):
            connection.__class__ = _with_deadline(connection.__class__)
        return connection

    return make


def begin(connection: Any) -> None:
    """What is read over *connection* from now on is the answer to what is asked now, and has one timeout for all."""
    socket = getattr(connection, "_sock", None)
    if type(socket) is Deadline and connection.socket_timeout:
        socket.begin(connection.socket_timeout)


def end(connection: Any) -> None:
    """What comes over *connection* from now on comes unasked, when it likes."""
    socket = getattr(connection, "_sock", None)
    if type(socket) is Deadline:
        socket.end()
