"""A proxy in front of Redis that injects faults and counts round trips."""

from __future__ import annotations

import array
import contextlib
import fcntl
import select
import socket
import struct
import termios
import threading
import time
from collections.abc import Generator
from typing import Self

from .faults import (
    DRIBBLE_PAUSE,
    GARBAGE,
    LASTING,
    STANDING,
    THROTTLED_PIECES,
    WHOLE,
    Fault,
    Strike,
    Traffic,
    is_heartbeat,
)

CHUNK = 65536
PATIENCE = 1.0  # seconds that a client has to take the last bytes
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class FaultProxy:
    """A proxy on loopback between clients and a redis-server; `close` ends all its threads and connections.

    ``with FaultProxy(server.port) as proxy:`` closes it. Give `url` to a guard, and inject faults with `inject`.

    Args:
        upstream: the port of the server.
        host: where the server is.
    """

    host: str
    upstream: int

    def __init__(self, upstream: int, host: str = "127.0.0.1") -> None:
        self.upstream, self.host = upstream, host
        self._lock = threading.Lock()
        self._terms = Strike(Fault.NONE)
        self._left: int | None = None  # replies that the fault still strikes
        self._struck = 0
        self._watching: list[Traffic] = []
        self._links: dict[_Link, threading.Thread] = {}
        self._closed = False
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port: int = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, name="fault-proxy", daemon=True)
        self._acceptor.start()

    @property
    def url(self) -> str:
        """The URL that clients connect to."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def struck(self) -> int:
        """The number of replies struck since the last `inject`: proves that the fault of a test took place."""
        return self._struck

    def inject(
        self,
        fault: Fault,
        *,
        times: int | None = None,
        only: bytes = b"",
        seconds: float = 0.0,
        at: int = 0,
        rate: float | None = None,
        data: bytes = GARBAGE,
    ) -> None:
        """Inject a fault from now on.

        Args:
            fault: the fault.
            times: heal automatically after this number of replies; None: only with `heal`.
            only: strike only replies to requests that contain these bytes, such as a command's name or a key.
            seconds: `DELAY`: the delay; `DRIBBLE`: the pause between two bytes (default: a millisecond).
            at: `CUT` and `RESET`: the number of bytes of the reply that pass before.
            rate: `THROTTLE`: bytes a second.
            data: `GARBAGE`: the bytes sent instead of the reply.

        Raises:
            ValueError: an argument does not fit *fault*.
        """
        if fault in STANDING and (times is not None or only):
            raise ValueError(f"{fault.name} strikes the wire, not replies; leave out times= and only=")
        if fault is Fault.THROTTLE and not (rate is not None and rate > 0):
            raise ValueError(f"THROTTLE needs rate=, in bytes a second and above zero, got {rate!r}")
        if at < 0 or seconds < 0:
            raise ValueError(f"at and seconds must not be negative, got at={at!r}, seconds={seconds!r}")
        with self._lock:
            self._terms.over.set()
            self._terms, self._left, self._struck = Strike(fault, only, seconds, at, rate or 0.0, data), times, 0
            links = list(self._links) if fault is Fault.REFUSE else []
        for link in links:
            link.cut()

    def heal(self) -> None:
        """Let everything pass. Connections that lost bytes end at their next message, as after a network failure."""
        self.inject(Fault.NONE)

    def cut(self) -> None:
        """Close every open connection, once; new ones pass."""
        with self._lock:
            links = list(self._links)
        for link in links:
            link.cut()

    def deafen(self) -> None:
        """Discard all messages pushed to the current subscribers; their connections stay open."""
        with self._lock:
            links = list(self._links)
        for link in links:
            link.deafen()

    @property
    def connections(self) -> int:
        """The number of open connections."""
        with self._lock:
            return len(self._links)

    @contextlib.contextmanager
    def watching(self) -> Generator[Traffic]:
        """Collect requests sent in the block: ``with proxy.watching() as seen: …; assert seen.round_trips == 1``."""
        traffic = Traffic()
        with self._lock:
            self._watching.append(traffic)
        try:
            yield traffic
        finally:
            with self._lock:
                self._watching = [other for other in self._watching if other is not traffic]

    def close(self) -> None:
        """End every connection and thread."""
        with self._lock:
            self._closed = True
            self._terms.over.set()
            links = dict(self._links)
        # shutdown, for a close alone does not wake the thread inside accept().
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join()
        with self._lock:
            links |= self._links
        for link, thread in links.items():
            link.cut()
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._open(client)

    def _open(self, client: socket.socket) -> None:
        if self._refuses():
            _reset(client)
            return
        try:
            server = socket.create_connection((self.host, self.upstream), timeout=5)
        except OSError:
            _reset(client)
            return
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            end.settimeout(None)
        link = _Link(self, client, server)
        thread = threading.Thread(target=link.run, name="fault-proxy-link", daemon=True)
        with self._lock:
            unwanted = self._closed or self._refuses()
            if not unwanted:
                self._links[link] = thread
                thread.start()
        if unwanted:
            link.close()

    def asked(self, request: bytes, *, anew: bool) -> None:
        """Note a piece of a request; *anew* if it begins one."""
        if is_heartbeat(request):
            return
        with self._lock:
            for traffic in self._watching:
                if anew or not traffic.requests:
                    traffic.requests.append(request)
                else:
                    traffic.requests[-1] += request

    def _refuses(self) -> bool:
        return self._terms.fault is Fault.REFUSE

    def swallows(self) -> bool:
        return self._terms.fault is Fault.BLACKHOLE

    def strike(self, request: bytes) -> Strike:
        """Return the fault for the reply to *request*, and count it."""
        with self._lock:
            terms = self._terms
            spared = terms.only not in request or (not terms.only and is_heartbeat(request))
            if self._left == 0 or terms.fault is Fault.NONE or spared:
                return WHOLE
            self._struck += 1
            if self._left is not None:
                self._left -= 1
            return terms

    def forget(self, link: _Link) -> None:
        with self._lock:
            self._links.pop(link, None)


class _Link:
    """One client's connection and the one to the server behind it, served by one thread."""

    def __init__(self, proxy: FaultProxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._poll = select.poll()
        self._poll.register(client, select.POLLIN)
        self._poll.register(server, select.POLLIN)
        self._lock = threading.Lock()
        self._open = True
        self._request = b""
        self._answering = True  # so that the first bytes begin a request
        self._struck_by = WHOLE  # the fault that strikes the current reply
        self._passing = 0  # bytes of it that may still pass
        self._lost = False
        self._subscribed = self._deaf = False

    def run(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            while self._turn():
                pass
        self._proxy.forget(self)
        self.close()

    def cut(self) -> None:
        """End the connection from outside; the thread notices and cleans up."""
        with self._lock:
            if not self._open:
                return
            for end in (self._client, self._server):
                with contextlib.suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
                    end.shutdown(socket.SHUT_RDWR)

    def deafen(self) -> None:
        """Swallow what the server sends, if this is a subscription."""
        self._deaf = self._subscribed

    def close(self) -> None:
        with self._lock:
            self._open = False
            _reset(self._client)
            self._server.close()

    def _turn(self) -> bool:
        ready = {number for number, _ in self._poll.poll()}
        return all(self._pass_on(end) for end in (self._client, self._server) if end.fileno() in ready)

    def _pass_on(self, source: socket.socket) -> bool:
        data = source.recv(CHUNK)
        if not data:
            return False
        if self._proxy.swallows():
            self._lost = True
            return True
        if self._lost:
            return False
        if self._deaf and source is self._server:
            return True
        return self._ask(data) if source is self._client else self._answer(data)

    def _ask(self, data: bytes) -> bool:
        self._subscribed |= b"SUBSCRIBE" in data
        self._proxy.asked(data, anew=self._answering)
        self._request = data if self._answering else self._request + data
        self._answering = False
        self._server.sendall(data)
        return True

    def _answer(self, data: bytes) -> bool:
        begins = not self._answering
        self._answering = True
        if begins:
            self._struck_by = self._proxy.strike(self._request)
            self._passing = self._struck_by.at
        elif self._struck_by.fault not in LASTING or self._subscribed:
            self._struck_by = WHOLE
        return self._strike(data, self._struck_by)

    def _strike(self, data: bytes, terms: Strike) -> bool:
        """Send the part of *data* that *terms* let pass; False if the connection ends with it."""
        last = self._last_words(data, terms)
        if last is not None:
            if terms.fault is Fault.RESET:
                self._break_off(last)
            elif terms.fault is not Fault.LOSE_REPLY:
                self._farewell(last)
            return False
        if terms.fault is Fault.DRIBBLE:
            self._trickle(data, 1, terms.seconds or DRIBBLE_PAUSE, terms.over)
        elif terms.fault is Fault.THROTTLE:
            size = max(1, int(terms.rate / THROTTLED_PIECES))
            self._trickle(data, size, size / terms.rate, terms.over)
        else:
            if terms.fault is Fault.DELAY:
                terms.over.wait(terms.seconds)
            self._client.sendall(data)
        return True

    def _last_words(self, data: bytes, terms: Strike) -> bytes | None:
        """The bytes still sent before the connection ends; None if it does not end here."""
        match terms.fault:
            case Fault.LOSE_REPLY:
                return b""
            case Fault.HALF_REPLY:
                return data[: len(data) // 2]
            case Fault.GARBAGE:
                return terms.data
            case Fault.CUT | Fault.RESET if len(data) > self._passing:
                return data[: self._passing]
            case _:
                self._passing -= len(data)
        return None

    def _trickle(self, data: bytes, size: int, every: float, over: threading.Event) -> None:
        """Send *data* in pieces, one at a time; the rest at once when it is over."""
        begun = time.monotonic()
        for number, at in enumerate(range(0, len(data), size), 1):
            if over.is_set():
                self._client.sendall(data[at:])
                return
            self._client.sendall(data[at : at + size])
            over.wait(max(0.0, begun + number * every - time.monotonic()))

    def _break_off(self, data: bytes) -> None:
        self._client.sendall(data)
        deadline = time.monotonic() + PATIENCE
        while _unsent(self._client) and time.monotonic() < deadline:  # the reset would discard it
            time.sleep(0.001)
        # No shutdown before: that would be an orderly end.
        self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self._client.close()

    def _farewell(self, data: bytes) -> None:
        # An orderly end, for a reset could overtake the last bytes and discard them.
        self._client.sendall(data)
        self._client.shutdown(socket.SHUT_WR)
        self._client.settimeout(PATIENCE)
        with contextlib.suppress(OSError):
            while self._client.recv(CHUNK):
                pass


def _unsent(end: socket.socket) -> int:
    """The number of bytes that the system has not sent yet; 0 if it cannot tell."""
    left = array.array("i", [0])
    with contextlib.suppress(OSError):
        fcntl.ioctl(end, termios.TIOCOUTQ, left)
    return left[0]


def _reset(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        # A forked child may hold a copy, which would keep the connection alive.
        end.shutdown(socket.SHUT_RDWR)
    end.close()
