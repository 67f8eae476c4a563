"""One deadline for an answer, however many pieces it comes in.

The client's own timeout begins anew with each piece, so a server, or a network, that hands out a byte at a time could
hold a caller for as long as it likes.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

LEAST = 0.0001  # seconds; zero would mean that the socket does not block


class Deadline:
    """A socket whose pieces of one answer have to arrive within one timeout; it does everything else as it did.

    Args:
        plain: the socket, connected.
        seconds: for one answer; None: as long as it takes.
    """

    __slots__ = ("_first", "_limited", "_plain", "_recv", "_recv_into", "_seconds", "_until", "sendall")

    sendall: Any

    def __init__(self, plain: Any, seconds: float | None) -> None:
        self._plain, self._seconds = plain, seconds or 0.0
        self._recv, self._recv_into, self.sendall = plain.recv, plain.recv_into, plain.sendall
        self._until = 0.0
        self.begin()

    def begin(self) -> None:
        """All that is read from now on is one answer; its first piece has the whole time."""
        self._first, self._limited = True, self._seconds > 0

    def end(self) -> None:
        """What comes now comes unasked: each piece has the socket's own time."""
        self._limited = False

    def recv(self, *args: Any) -> Any:
        return self._within(self._recv, args)

    def recv_into(self, *args: Any) -> Any:
        if self._first:
            self._first = False
            self._until = monotonic() + self._seconds
            return self._recv_into(*args)
        return self._within(self._recv_into, args)

    def _within(self, read: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        if self._first:
            self._first = False
            self._until = monotonic() + self._seconds
            return read(*args)
        if not self._limited:
            return read(*args)
        usual = self._plain.gettimeout()
        self._plain.settimeout(max(LEAST, self._until - monotonic()))
        try:
            return read(*args)
        finally:
            self._plain.settimeout(usual)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._plain, name)
