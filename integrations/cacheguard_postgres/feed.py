"""`PostgresFeed`: receives NOTIFY and applies it to the guard, in a thread or in an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
import random
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from cacheguard import BloomFilter, CacheGuard, Change
from cacheguard.errors import ConfigurationError, Unreachable
from cacheguard.extending import count

from .items import brought, fed
from .payload import Heard
from .trigger import check_channel

log: logging.Logger = logging.getLogger("cacheguard")

OnGap: TypeAlias = Literal["clear", "ignore"] | Callable[[], object]

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0  # between attempts to connect
SILENCE, PATIENCE = 5.0, 5.0  # seconds of silence before the server is probed, and seconds until the probe fails
LOOKS_UP_EVERY = 0.5  # seconds after which a blocking wait notices that the feed was closed
PATIENCE_AT_CLOSE = 2.0

# TCP keepalive notices a dead connection after 10 s + 3 * 5 s. The probe notices a server that hangs.
_DEFAULTS: dict[str, Any] = {
    "application_name": "cacheguard",
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedStats:
    """The counters of a feed since it was made.

    Args:
        applied: events that were applied to the guard.
        garbage: notifications, or events in them, that could not be read.
        gaps: how often notifications may have been missed.
        connected: True while it listens.
    """

    applied: int
    garbage: int
    gaps: int
    connected: bool


class PostgresFeed:
    """Applies PostgreSQL's notifications to a guard.

    Use `run` in your own thread, `start` (or ``with``) for a new thread, or `arun` in an asyncio event loop. A feed
    runs once. It reconnects by itself, after pauses that double from 100 ms to 5 s. NOTIFY is not stored: commits
    during a disconnect are missed. So after a connection was lost, or the first one failed, *on_gap* runs as soon as
    LISTEN is active again. A connection that is cut silently, or a server that hangs, is noticed within 10 s.

    A payload is JSON: ``{"key": "user:42"}`` or ``{"tag": "org:7"}``; a key may have a ``"version"`` (a whole number,
    a log position, or an ISO time with its zone); ``{"gap": true}``; or an array of these. Anything else is garbage:
    it is counted, and the first one is logged.

    Args:
        guard: the guard to invalidate in; keys and tags are those of its namespace.
        conninfo: a connection string or URL for libpq. It must reach a primary directly, not through a pooler in
            transaction mode.
        channel: the channel to listen on.
        on_gap: ``"clear"``: call `CacheGuard.clear`; ``"ignore"``: do nothing; or a function to call instead (a
            coroutine function if the feed runs in `arun`). If it raises, the feed reconnects and calls it again.
        batch: the largest number of events that are applied at once.
        bloom: Bloom filters, each with the template of the keys whose events bring an item: ``{users: "user:{id}"}``.
            The template has one field, and nothing else of it varies; the item is what stands there. It is added
            before the event is applied. The event comes after COMMIT: for some milliseconds the filter hides a new
            row. After a gap the filter is incomplete: *on_gap* must be a function that calls `BloomFilter.rebuild`.

    Raises:
        ConfigurationError: an option that cannot work.
    """

    def __init__(
        self,
        guard: CacheGuard,
        conninfo: str,
        *,
        channel: str = "cacheguard",
        on_gap: OnGap = "clear",
        batch: int = 500,
        bloom: Mapping[BloomFilter, str] | None = None,
    ) -> None:
        check_channel(channel)
        self._fed = fed(bloom)
        if self._fed and not callable(on_gap):
            raise ConfigurationError(
                f"on_gap must be a function with bloom=: after a gap the filters are incomplete, got {on_gap!r}"
            )
        if on_gap not in ("clear", "ignore") and not callable(on_gap):
            raise ConfigurationError(f"on_gap must be 'clear', 'ignore' or a function, got {on_gap!r}")
        try:
            given = conninfo_to_dict(conninfo)
        except psycopg.Error as error:
            # libpq's own message may quote a part of the password.
            raise ConfigurationError(
                f"conninfo is no connection string or URL for libpq ({type(error).__name__})"
            ) from None
        self._guard, self._on_gap, self._batch = guard, on_gap, count("batch", batch)
        self._channel = channel
        self._parameters: dict[str, Any] = {**_DEFAULTS, **given, "client_encoding": "utf8"}
        self._listen = sql.SQL("LISTEN {}").format(sql.Identifier(channel))
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._awake: Callable[[], object] | None = None
        self._thread: threading.Thread | None = None
        self._running = False
        self._applied = self._garbage = self._gaps = 0
        self._connected = self._missed = self._down = False
        self._pause, self._stood_since = 0.0, 0.0

    def __repr__(self) -> str:
        return f"<PostgresFeed of {self._channel!r} into {self._guard!r}>"

    def stats(self) -> FeedStats:
        """The counters of the feed, and its state. No round trip."""
        return FeedStats(applied=self._applied, garbage=self._garbage, gaps=self._gaps, connected=self._connected)

    # Running

    def start(self) -> Self:
        """Run in a new thread. It does not survive a fork: start it in the process that needs it."""
        self._begin()
        self._thread = threading.Thread(target=self._run, name="cacheguard-postgres", daemon=True)
        self._thread.start()
        return self

    def run(self) -> None:
        """Run in this thread, until `close`."""
        self._begin()
        self._run()

    async def arun(self) -> None:
        """Run in this task, until `close` or cancellation."""
        self._begin(blocking=False)
        loop, closed = asyncio.get_running_loop(), asyncio.Event()
        with self._lock:
            self._awake = lambda: loop.call_soon_threadsafe(closed.set)
        if self._wake.is_set():
            return
        work = asyncio.create_task(self._arun())
        end = asyncio.create_task(closed.wait())
        try:
            await asyncio.wait((work, end), return_when=asyncio.FIRST_COMPLETED)
        finally:
            with self._lock:
                self._awake = None
            for task in (work, end):
                task.cancel()
            await asyncio.gather(work, end, return_exceptions=True)
            self._connected = False

    def close(self) -> None:
        """End the feed, within two seconds even while it connects."""
        with self._lock:
            self._wake.set()
            awake, thread = self._awake, self._thread
            if awake is not None:
                awake()
        if thread is not None and thread is not threading.current_thread():
            thread.join(PATIENCE_AT_CLOSE)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self, *, blocking: bool = True) -> None:
        if blocking and inspect.iscoroutinefunction(self._on_gap):
            raise ConfigurationError(f"on_gap is the coroutine function {self._on_gap!r}; use arun, or a function")
        with self._lock:
            if self._running:
                raise RuntimeError("a feed runs once, and this one was started already; make another")
            self._running = True

    # In the thread

    def _run(self) -> None:
        while not self._wake.is_set():
            try:
                with contextlib.closing(psycopg.connect(**self._parameters, autocommit=True)) as connection:
                    connection.execute(self._listen)
                    if self._missed:
                        self._fill_gap()
                    self._stands()
                    heard_at = time.monotonic()
                    while not self._wake.is_set():
                        payloads = [each.payload for each in connection.notifies(timeout=LOOKS_UP_EVERY, stop_after=1)]
                        if payloads:
                            heard_at = time.monotonic()
                        elif time.monotonic() - heard_at >= SILENCE:
                            self._ask(connection)
                            heard_at = time.monotonic()
                        while payloads and len(payloads) < self._batch:
                            more = [each.payload for each in connection.notifies(timeout=0)]
                            if not more:
                                break
                            payloads += more
                        self._handle(payloads)
            except Exception as error:  # noqa: BLE001 - the wire's, the callback's, a closed guard's: all are a gap
                self._lost(error)
                self._wake.wait(self._next_pause())
            finally:
                self._connected = False

    def _ask(self, connection: psycopg.Connection[Any]) -> None:
        """Probe the server. If it does not answer, this raises, and that is a gap."""
        watchdog = threading.Timer(PATIENCE, _cut, [connection])
        watchdog.daemon = True
        watchdog.start()
        try:
            connection.execute("SELECT 1")
        finally:
            watchdog.cancel()

    async def _aask(self, connection: psycopg.AsyncConnection[Any]) -> None:
        watchdog = asyncio.get_running_loop().call_later(PATIENCE, _cut, connection)
        try:
            await connection.execute("SELECT 1")
        finally:
            watchdog.cancel()

    def _handle(self, payloads: Iterable[str]) -> None:
        heard = self._read(payloads)
        for part in self._parts(heard):
            try:
                for bloom, items in brought(self._fed, part):
                    bloom.add_many(items)  # where it raises, the filter is incomplete: that is a gap
            finally:
                with contextlib.suppress(Unreachable):  # then it is pending
                    self._guard.apply(part)
            self._applied += len(part)
        if heard.gap:
            self._fill_gap()

    def _fill_gap(self) -> None:
        self._count_gap()
        if callable(self._on_gap):
            self._on_gap()
        elif self._on_gap == "clear":
            self._say_everything()
            with contextlib.suppress(Unreachable):
                self._guard.clear()
        self._missed = False

    # In the event loop

    async def _arun(self) -> None:
        while True:
            try:
                connection = await psycopg.AsyncConnection.connect(**self._parameters, autocommit=True)
                try:
                    await connection.execute(self._listen)
                    if self._missed:
                        await self._afill_gap()
                    self._stands()
                    while True:
                        payloads = [each.payload async for each in connection.notifies(timeout=SILENCE, stop_after=1)]
                        if not payloads:
                            await self._aask(connection)
                        while payloads and len(payloads) < self._batch:
                            more = [each.payload async for each in connection.notifies(timeout=0)]
                            if not more:
                                break
                            payloads += more
                        await self._ahandle(payloads)
                finally:
                    await connection.close()
            except Exception as error:  # noqa: BLE001 - as in the thread
                self._lost(error)
                await asyncio.sleep(self._next_pause())
            finally:
                self._connected = False

    async def _ahandle(self, payloads: Iterable[str]) -> None:
        heard = self._read(payloads)
        for part in self._parts(heard):
            try:
                for bloom, items in brought(self._fed, part):
                    await bloom.aadd_many(items)
            finally:
                with contextlib.suppress(Unreachable):
                    await self._guard.aapply(part)
            self._applied += len(part)
        if heard.gap:
            await self._afill_gap()

    async def _afill_gap(self) -> None:
        self._count_gap()
        if callable(self._on_gap):
            answer = self._on_gap()
            if isinstance(answer, Awaitable):
                await answer
        elif self._on_gap == "clear":
            self._say_everything()
            with contextlib.suppress(Unreachable):
                await self._guard.aclear()
        self._missed = False

    # In either

    def _read(self, payloads: Iterable[str]) -> Heard:
        heard = Heard()
        for payload in payloads:
            heard.take(payload)
        if heard.garbage and not self._garbage:
            log.warning("garbage on the channel %r, the rest is only counted: %s", self._channel, heard.garbage[0])
        self._garbage += len(heard.garbage)
        return heard

    def _parts(self, heard: Heard) -> list[list[Change]]:
        return [heard.changes[at : at + self._batch] for at in range(0, len(heard.changes), self._batch)]

    def _count_gap(self) -> None:
        self._missed = True  # until it is filled
        self._gaps += 1

    def _say_everything(self) -> None:
        if not self._down:  # else it is said when the feed listens again
            log.warning("%r clears the whole namespace: notifications on %r are missing", self._guard, self._channel)

    def _stands(self) -> None:
        self._connected, self._stood_since = True, time.monotonic()
        if self._down:
            self._down = False
            cleared = "; the whole namespace was cleared" if self._on_gap == "clear" else ""
            log.warning("the change feed of %r listens again%s", self._channel, cleared)

    def _lost(self, error: Exception) -> None:
        if self._connected and time.monotonic() - self._stood_since > LONGEST_PAUSE:
            self._pause = 0.0
        self._connected, self._missed = False, True
        if not self._down:
            self._down = True
            log.warning("the change feed of %r does not listen (%s: %s)", self._channel, type(error).__name__, error)

    def _next_pause(self) -> float:
        self._pause = min(LONGEST_PAUSE, max(FIRST_PAUSE, 2 * self._pause))
        return self._pause * random.uniform(0.75, 1.0)


def _cut(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    """End a connection from outside: libpq waits for an answer forever, but notices that its socket is shut down."""
    with contextlib.suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as wire:
        wire.shutdown(socket.SHUT_RDWR)
