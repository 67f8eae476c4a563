"""The thread that hears what other processes have invalidated, and proves that it hears."""

from __future__ import annotations

import contextlib
import random
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import redis.exceptions

from ..delivery.bus import BEAT_EVERY, HORIZON, Bus
from ..delivery.gate import Gate
from ..errors import Refused, Unreachable
from ..events import Events, log
from ..faults import Fault, fault_of
from ..ports import AnotherServer, Commands, Reply
from ..runtime import run_now
from ..runtime.bell import Bell
from . import redispy
from .circuits import wait_freely
from .identity import LOOK

FIRST_PAUSE, LONGEST_PAUSE = 0.02, 1.0  # between attempts to subscribe


class Post(Protocol):
    """One server that takes writes."""

    def every_master(self) -> list[tuple[str, Commands]]:
        """All of them, each with a name of its own."""
        ...

    def subscriber(self) -> Any:
        """A new connection for a subscription."""
        ...


class Listener:
    """Listens on a bus, in a thread of its own that begins when it is first needed.

    The thread holds no reference to the guard: when nobody has one any more, it ends.

    Args:
        bus: what is heard goes there.
        post: a way to the servers, for heartbeats and for subscribing.
        gate: the same way, for pending invalidations. They are delivered as soon as Redis is back, without any request.
        on_beat: called with those servers, once a second.
        on_look: called after each round of heartbeats: when it was sent, what each server said of itself with it, and
            whether all of them did.
    """

    def __init__(
        self,
        bus: Bus,
        post: Post,
        gate: Gate,
        events: Events,
        has_pending: Callable[[], bool],
        *,
        on_beat: Callable[[list[tuple[str, Commands]]], None] | None = None,
        on_look: Callable[[float, dict[str, Sequence[Reply]], bool], None] | None = None,
    ) -> None:
        self._bus, self._post, self._gate, self._events, self._has_pending = bus, post, gate, events, has_pending
        self._on_beat, self._on_look = on_beat, on_look
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._wake = Bell()
        self._closed = False
        self._next_beat = 0.0
        self._pause = 0.0
        self._posts: list[tuple[str, Commands]] = []
        self._changes = 0  # of the server, when the subscription was begun
        self._heard_on: Any = None  # the connection with the subscription

    def start(self) -> None:
        """Begin to listen, unless that has begun."""
        with self._lock:
            if self._thread is not None or self._closed:
                return
            me = weakref.ref(self)
            self._thread = threading.Thread(target=_run, args=(me, self._wake), name="cacheguard-bus", daemon=True)
            try:
                self._thread.start()
            except RuntimeError as error:  # the system has no thread to give
                self._thread = None
                self._bus.mute(f"no thread to listen with: {error}")

    @property
    def busy(self) -> bool:
        """Whether `close` would have to wait."""
        return self._thread is not None and not (self._bus.joined_in and self._events.l2_up)

    def stop(self) -> None:
        """Let the thread end: it waits for no message any more."""
        with self._lock:
            self._closed = True
            connection = self._heard_on
        self._wake.set()
        if connection is not None:
            redispy.cut(connection)

    def close(self, until: float = float("inf")) -> None:
        """End the thread; *until* (monotonic seconds) is how long to wait for that."""
        self.stop()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(min(threading.TIMEOUT_MAX, max(0.0, until - time.monotonic())))

    def after_fork(self) -> None:
        """Forget the parent's thread and its connection, without touching the socket."""
        self._reset()

    # In the thread

    @property
    def over(self) -> bool:
        return self._closed

    def turn(self, connection: Any) -> tuple[Any, float]:
        """Do what is due; the connection to wait for, if there is one, and how long."""
        now = self._bus.now()
        if connection is not None and (self._bus.silent(now) or self._gate.changes != self._changes):
            if self._gate.changes == self._changes:
                log.warning("no heartbeat came back over the invalidation bus for %g s", HORIZON)
            drop(connection)  # where another server answers now, what others say is not said here any more
            connection = None
            self._bus.lost()
        if connection is None:
            connection = self._subscribed()
            if connection is None:
                self._pause = min(LONGEST_PAUSE, max(FIRST_PAUSE, 2 * self._pause))
                return None, self._pause * (0.75 + 0.25 * random.random())
            self._pause = 0.0
            self._next_beat = 0.0
        now = time.monotonic()
        if now >= self._next_beat:
            self._next_beat = now + BEAT_EVERY
            self._beat(self._bus.now())
            self._pay()
        if self._closed or self._gate.changes != self._changes:  # which this heartbeat may have shown
            return connection, 0.0
        return connection, max(0.0, self._next_beat - time.monotonic())

    def _subscribed(self) -> Any:
        """A connection on which the subscription stands; None if that cannot be had now."""
        bus = self._bus
        connection = None
        self._changes = self._gate.changes
        try:
            connection = self._post.subscriber()
            redispy.subscribe(connection, bus.channel, bus.own_channel)
        except Exception as error:  # noqa: BLE001 - a resolver's, a credential provider's: all mean no subscription
            if connection is not None:
                drop(connection)
            if isinstance(error, redis.exceptions.ResponseError) or fault_of(error) is Fault.AUTHENTICATION:
                bus.mute(f"SUBSCRIBE was refused ({error})")
            self._look_around()
            return None
        bus.joined(bus.now())
        with self._lock:
            self._heard_on = connection
            if not self._closed:
                return connection
        drop(connection)  # nobody will cut it any more
        return None

    def _look_around(self) -> None:
        """Whether Redis can be reached at all: where not, nobody can have told us anything."""
        if self._publish_to_all(self._bus.now(), lambda posts: [(post, "hello") for post in posts]):
            self._pay()

    def _beat(self, now: float) -> None:
        """Send a heartbeat through every server that takes writes, and look whether its data are still the same."""

        def beats(posts: list[str]) -> list[tuple[str, str]]:
            return [(post, f"beat {text}") for post, text in self._bus.beat(now, posts)]

        looks: dict[str, Sequence[Reply]] = {}
        self._publish_to_all(now, beats, looks)
        if self._on_look is not None:
            self._on_look(now, looks, len(looks) == len(self._posts))
        if self._on_beat is not None and self._posts:
            self._on_beat(self._posts)

    def _publish_to_all(
        self,
        now: float,
        texts: Callable[[list[str]], list[tuple[str, str]]],
        looks: dict[str, Sequence[Reply]] | None = None,
    ) -> bool:
        """Say something to ourselves through every server that takes writes; whether one of them could be reached.

        Alone is who reaches none: through one that is left, others may invalidate.

        Args:
            looks: takes in what each of them says of itself.
        """
        asked = () if looks is None else LOOK
        errors: list[Unreachable] = []
        reached = False
        try:
            self._posts = self._post.every_master()
            posts = dict(self._posts)
            for post, text in texts(list(posts)):
                if self._closed:
                    break
                try:
                    said, *look = run_now(posts[post].send_each(("PUBLISH", self._bus.own_channel, text), *asked))
                    if looks is not None:
                        looks[post] = look
                    if isinstance(said, Refused):
                        errors.append(said)
                    else:
                        reached = True
                except Unreachable as error:
                    errors.append(error)
        except AnotherServer:
            self._next_beat = 0.0
            return False
        except Unreachable as error:  # nobody could say which servers there are
            errors.append(error)
        if errors and not reached:
            self._unreachable(errors, now)
        return reached

    def _unreachable(self, errors: list[Unreachable], now: float) -> None:
        if all(not isinstance(error, Refused) or error.fault is Fault.LOADING for error in errors):
            self._bus.alone(now)
        elif any(error.fault is Fault.PERMISSION for error in errors):
            self._bus.mute(f"PUBLISH was refused ({errors[0]})")

    def _pay(self) -> None:
        """Deliver pending invalidations, if Redis takes it."""
        if self._has_pending():
            try:
                run_now(self._gate.deliver_pending())
            except Unreachable as error:
                self._events.redis_failed(error)

    def hear(self, message: Any) -> None:
        """A message, or a sign of a gap: a second confirmation means that the client has subscribed once more."""
        kind, channel, text = (bytes(message[0]), _text(message[1]), _text(message[2]))
        if kind != b"message":
            raise redis.exceptions.ConnectionError(f"unexpected on the invalidation bus: {kind!r}")
        if channel == self._bus.channel:
            self._bus.hear(text)
        elif text.startswith("beat "):
            self._bus.hear_beat(text[5:])

    def gap(self, error: BaseException) -> None:
        """The connection has broken."""
        if not self._closed:
            log.info("the connection of the invalidation bus broke: %s", error)
        self._bus.lost()


def _run(me: weakref.ref[Listener], wake: Bell) -> None:
    connection: Any = None
    wait_freely()
    try:
        while True:
            listener = me()
            if listener is None or listener.over:
                return
            connection, seconds = listener.turn(connection)
            del listener
            if connection is None:
                wake.pause(seconds)
                continue
            try:
                # Waits without a reference to the listener, so that it can be collected meanwhile.
                message = redispy.next_message(connection, seconds)
                if message is not None and (listener := me()) is not None:
                    listener.hear(message)
            except Exception as error:  # noqa: BLE001 - whatever it is, what was missed cannot be known
                drop(connection)
                connection = None
                if (listener := me()) is not None:
                    listener.gap(error)
            listener = None
    finally:
        if connection is not None:
            drop(connection)


def drop(connection: Any) -> None:
    """Close a connection, whatever state it is in."""
    with contextlib.suppress(Exception):
        connection.disconnect()


def _text(raw: Any) -> str:
    return raw.decode("utf-8", "replace") if isinstance(raw, bytes) else str(raw)
