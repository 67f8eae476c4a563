"""A wire to Redis that can be cut, delayed, or made to lie, and that counts what passes."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Self

CHUNK = 65536
GARBAGE = b"\x00\xff this is no reply\r\n"
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Fault(Enum):
    """What happens to the wire.

    All but `REFUSE` and `BLACKHOLE` strike a reply, so the command has been executed. Messages that a server pushes to
    a subscriber are no replies and pass.
    """

    NONE = auto()
    REFUSE = auto()  # open connections end, new ones too
    LOSE_REPLY = auto()  # the command arrives, its reply does not, the connection ends
    HALF_REPLY = auto()  # the first half of the reply, then the end
    DELAY = auto()  # the reply comes late
    BLACKHOLE = auto()  # connections stay open, bytes vanish both ways
    GARBAGE = auto()  # something that is no reply, then the end


STANDING = (Fault.REFUSE, Fault.BLACKHOLE)


@dataclass
class Traffic:
    """The requests seen while watching, one entry for everything sent before the next reply.

    Heartbeats of the invalidation bus do not count: they go out by the clock, whatever a test does. Handshakes of new
    connections do: warm the client up before watching. A request that the server begins
    to answer before it was sent in full (megabytes of pipeline) counts more than once.
    """

    requests: list[bytes] = field(default_factory=list)

    @property
    def round_trips(self) -> int:
        return len(self.requests)


def is_heartbeat(request: bytes) -> bool:
    """Whether a process has sent something to itself over the invalidation bus."""
    return request.startswith(b"*3\r\n$7\r\nPUBLISH") and b":bus:" in request


class FaultProxy:
    """Stands on loopback between a client and a redis-server; ends all its threads and connections in `close`."""

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self._lock = threading.Lock()
        self._fault = Fault.NONE
        self._left: int | None = None
        self._only: bytes = b""
        self._seconds = 0.0
        self._struck = 0
        self._watching: list[Traffic] = []
        self._links: dict[_Link, threading.Thread] = {}
        self._changed = threading.Event()
        self._closed = False
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port: int = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, name="fault-proxy", daemon=True)
        self._acceptor.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def struck(self) -> int:
        """How many replies were hit since the last `inject`: a test proves by it that its fault took place."""
        return self._struck

    def inject(self, fault: Fault, *, times: int | None = None, only: bytes = b"", seconds: float = 0.0) -> None:
        """Break the wire from now on.

        Args:
            fault: What happens.
            times: Heal by itself after so many replies; `None` lasts until `heal`.
            only: Strike replies to requests that contain these bytes, such as a command's name or a key.
            seconds: How late a `DELAY` is.
        """
        if fault in STANDING and (times is not None or only):
            raise ValueError(f"{fault.name} strikes the wire, not replies; leave out times= and only=")
        with self._lock:
            self._fault, self._left, self._only, self._seconds = fault, times, only, seconds
            self._struck = 0
            self._changed.set()
            self._changed = threading.Event()
            links = list(self._links) if fault is Fault.REFUSE else []
        for link in links:
            link.cut()

    def heal(self) -> None:
        """Let everything pass; connections whose bytes vanished end at their next word, as in a network that forgot."""
        self.inject(Fault.NONE)

    def cut(self) -> None:
        """End every open connection, once; new ones pass."""
        with self._lock:
            links = list(self._links)
        for link in links:
            link.cut()

    def deafen(self) -> None:
        """What is pushed to those who subscribe now vanishes, while their connections stay open."""
        with self._lock:
            links = list(self._links)
        for link in links:
            link.deafen()

    @property
    def connections(self) -> int:
        with self._lock:
            return len(self._links)

    @contextlib.contextmanager
    def watching(self) -> Iterator[Traffic]:
        """Collect the requests sent meanwhile: ``with proxy.watching() as seen: …; assert seen.round_trips == 1``."""
        traffic = Traffic()
        with self._lock:
            self._watching.append(traffic)
        try:
            yield traffic
        finally:
            with self._lock:
                self._watching = [other for other in self._watching if other is not traffic]

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._changed.set()
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
            server = socket.create_connection(("127.0.0.1", self.upstream), timeout=5)
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
        return self._fault is Fault.REFUSE

    def swallows(self) -> bool:
        return self._fault is Fault.BLACKHOLE

    def strike(self, request: bytes) -> Fault:
        """The fault for the reply to *request*; counts it."""
        with self._lock:
            if self._fault is Fault.NONE or self._only not in request or (not self._only and is_heartbeat(request)):
                return Fault.NONE
            fault = self._fault
            self._struck += 1
            if self._left is not None:
                self._left -= 1
                if self._left <= 0:
                    self._fault = Fault.NONE
            return fault

    def linger(self) -> None:
        """Wait out a delay; over early when the fault changes."""
        with self._lock:
            changed, seconds = self._changed, self._seconds
        changed.wait(seconds)

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
        self._answering = True  # so that the first word begins a request
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
        fault = Fault.NONE if self._answering else self._proxy.strike(self._request)
        self._answering = True
        match fault:
            case Fault.LOSE_REPLY:
                return False
            case Fault.HALF_REPLY:
                self._farewell(data[: len(data) // 2])
                return False
            case Fault.GARBAGE:
                self._farewell(GARBAGE)
                return False
            case Fault.DELAY:
                self._proxy.linger()
            case _:
                pass
        self._client.sendall(data)
        return True

    def _farewell(self, data: bytes) -> None:
        # An orderly end, for a reset could overtake the last bytes and discard them.
        self._client.sendall(data)
        self._client.shutdown(socket.SHUT_WR)
        self._client.settimeout(1)
        with contextlib.suppress(OSError):
            while self._client.recv(CHUNK):
                pass


def _reset(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        # A forked child may hold a copy, which would keep the connection alive.
        end.shutdown(socket.SHUT_RDWR)
    end.close()
