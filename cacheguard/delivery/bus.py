"""The bus: invalidations between processes, and the proof that this process receives all of them.

Every invalidation publishes the name that it has removed, in the same script. Every process then drops it from its L1.
Pub/Sub has no memory, reconnects silently and does not notice a dead link, so L1 needs proof: a heartbeat goes out
through a data connection and must come back. Redis delivers in order: a heartbeat that is back proves that every
message published before it has arrived. L1 may answer for `HORIZON` seconds after the last proven heartbeat was sent,
and no longer. This needs no timer, and a process that was stopped finds its L1 closed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from typing import TYPE_CHECKING, Any, Protocol

from ..events import Events
from ..protocol.messages import Dirty, Drop, UnknownFormat, Woken, heard

if TYPE_CHECKING:
    from ..ports import Runtime, Signal

HORIZON = 3.0  # seconds
BEAT_EVERY = 1.0
PATIENCE = 0.2  # seconds that a first read waits; without the bus, L1 stays empty for a moment
MOST_ECHOES = 4096
MOST_DIRTY = 100_000
MOST_NOTED = 100_000  # names received within one horizon
SLACK = 1.0  # seconds that another thread may look at the clock later; further away is a deadline of another clock
DIRTY_FOR = 60.0  # seconds after its last message; the process that has it pending repeats it every second


class Kept(Protocol):
    """The in-process tier, as the bus needs it."""

    def pause(self) -> None: ...

    def drop_shared(self) -> None: ...

    def trust(self, until: float) -> None: ...


class Bus:
    """One process on the bus of a guard.

    Args:
        channel: the Pub/Sub channel of all processes of the guard.
        me: the name of this process; a forked child gets a new one.
        forget: drops a name from everything that this process keeps, and notes what else is said of it; it also gets to
            know whose load has ended.
        local: the in-process tier, which answers only while it is trusted.
        now: monotonic seconds.
    """

    channel: str
    joined_in: bool
    now: Callable[[], float]
    own_channel: str
    proven_at: float

    def __init__(
        self,
        channel: str,
        me: str,
        forget: Callable[[Drop | Woken], None],
        local: Kept,
        events: Events,
        *,
        now: Callable[[], float],
    ) -> None:
        self.channel, self._forget, self._local, self._events, self.now = channel, forget, local, events, now
        self.start: Callable[[], None] | None = None  # starts the listener; None: none is needed
        self._noting: AbstractContextManager[Any] | None = None  # guards the notes; None: none are kept
        self._dirty: dict[str, float] = {}  # invalidated, but not in Redis; until when
        self.rename(me)

    def rename(self, me: str) -> None:
        """Start again under another name, as a forked child does."""
        self.me = me
        self.own_channel = f"{self.channel}:{me}"
        self._numbers = 0
        self._echoes: OrderedDict[str, None] = OrderedDict()  # its popitem is one step, whatever other threads do
        self._begun = self._known = False
        self._waiting: list[Signal] = []
        self._round = 0
        self._rounds: dict[int, tuple[float, set[str]]] = {}
        self._since = 0.0
        self.proven_at = float("-inf")  # when the last heartbeat was sent that came back
        self.joined_in = False
        self._trusted_until = float("-inf")
        self._noted: tuple[dict[str, float], dict[str, float]] = {}, {}  # names heard of in this horizon, in the last
        self._turned = self._floor = self.now()

    # What this process knows

    def keep_notes(self, lock: AbstractContextManager[Any]) -> None:
        """Remember recent invalidations for a while; without them, `vouches` is always False."""
        self._noting = lock

    def note(self, name: str) -> None:
        """Note that this or another process has changed *name*: older copies of it are void."""
        if self._noting is None:
            return
        now = self.now()
        with self._noting:
            noted, _ = self._noted
            if now >= self._turned + HORIZON:
                self._noted, self._turned = ({}, noted if now < self._turned + 2 * HORIZON else {}), now
                noted = self._noted[0]
            if len(noted) >= MOST_NOTED:
                self._floor = now
                noted.clear()
            noted[name] = now

    @property
    def hears(self) -> bool:
        """True while a heartbeat proves that invalidations from other processes arrive."""
        now = self.now()
        return self.joined_in and now < self._trusted_until <= now + HORIZON + SLACK

    def vouches(self, since: float, names: Iterable[str]) -> bool:
        """True if data that was current at *since* includes every change of *names* that this process knows of."""
        if not self.hears or since <= max(self._floor, self.now() - HORIZON) or self._noting is None:
            return False
        noted, before = self._noted
        return all(noted.get(name, 0.0) < since and before.get(name, 0.0) < since for name in names)

    # Sending

    def begin(self) -> str:
        """An echo id for the messages of one round trip: this process drops its own copies without them.

        A message may come back after a later reader here has cached the new value, which it would then drop.
        """
        self._numbers += 1
        echo = f"{self.me}.{self._numbers}"
        self._echoes[echo] = None
        while len(self._echoes) > MOST_ECHOES:
            with suppress(KeyError):
                self._echoes.popitem(last=False)
        return echo

    def disown(self, echo: str) -> None:
        """Forget *echo*, as the outcome of its round trip is unknown: its messages drop copies here, too."""
        self._echoes.pop(echo, None)

    # Receiving

    def hear(self, message: str) -> None:
        """Handle a message from the channel of all processes."""
        try:
            news = heard(message)
        except UnknownFormat:
            self._not_understood(message)
            return
        if isinstance(news, Woken):
            self._forget(news)
            return
        if isinstance(news, Dirty):
            self._mark_dirty(news.key)
            news = Drop(news.key, "")
        else:
            self._dirty.pop(news.key, None)
        self.note(news.key)
        if news.echo not in self._echoes:
            self._events.bus_messages += 1
            self._forget(news)

    def _not_understood(self, message: str) -> None:
        """Handle a message of another release: it may be an invalidation of anything."""
        self._events.bus_gaps += 1
        self._events.once(
            "bus format", "a message of another release is on the bus; L1 is emptied at each of them: %.40r", message
        )
        self._floor = self.now()
        self._local.drop_shared()

    def _mark_dirty(self, key: str) -> None:
        self._dirty.pop(key, None)
        while len(self._dirty) >= MOST_DIRTY:
            self._dirty.pop(next(iter(self._dirty)), None)
        self._dirty[key] = self.now() + DIRTY_FOR

    @property
    def has_dirty(self) -> bool:
        """True if `is_dirty` may be true of anything."""
        return bool(self._dirty)

    def is_dirty(self, key: str, markers: Iterable[str]) -> bool:
        """True if a process could not invalidate *key* or a marker in Redis: the entry there must not be used."""
        if not self._dirty:
            return False
        now = self.now()
        return any(now < self._dirty.get(name, 0.0) <= now + DIRTY_FOR + SLACK for name in (key, *markers))

    def joined(self, now: float) -> None:
        """Handle a confirmed subscription: L1 may have missed messages until now, so it is dropped."""
        self._local.pause()
        self._local.drop_shared()
        self._rounds.clear()
        self._floor, self._trusted_until = self.now(), float("-inf")
        self._since, self.joined_in = now, True

    def beat(self, now: float, posts: Sequence[str]) -> list[tuple[str, str]]:
        """The heartbeats of one round, to be sent now through each of *posts* (the servers that take writes)."""
        self._round += 1
        self._rounds[self._round] = now, set(posts)
        while len(self._rounds) > HORIZON / BEAT_EVERY + 2:
            self._rounds.pop(next(iter(self._rounds)))
        return [(post, f"{self._round} {post}") for post in posts]

    def hear_beat(self, message: str) -> bool:
        """Handle a heartbeat that is back; True if its round is complete."""
        number, _, post = message.partition(" ")
        sent_at, missing = self._rounds.get(int(number) if number.isdecimal() else 0, (0.0, None))
        if missing is None or not self.joined_in:
            return False
        missing.discard(post)
        if missing:
            return False
        for earlier in [each for each in self._rounds if each <= int(number)]:
            del self._rounds[earlier]
        self._since = self.proven_at = sent_at
        self._trust(sent_at + HORIZON, up=True)
        return True

    def silent(self, now: float) -> bool:
        """True if no heartbeat has come back for `HORIZON` seconds, although they were sent."""
        return now >= self._since + HORIZON

    def lost(self) -> None:
        """Handle a gap: L1 may have missed messages, so it serves nothing."""
        if self.joined_in or self._events.bus_up:
            self._events.bus_gaps += 1
        if self._events.bus_up:
            self._events.bus_changed(up=False, why="interrupted: the in-process tier is off until it is proven again")
        self.joined_in = False
        self._rounds.clear()
        self._local.pause()

    def alone(self, now: float) -> None:
        """Handle an unreachable Redis: no message can arrive, so L1 goes on serving for `HORIZON` seconds."""
        self._trust(now + HORIZON, up=False)
        self._make_known()

    def mute(self, why: str) -> None:
        """Keep L1 off: the bus works, but not for this process."""
        self._events.once(f"bus {why}", "the in-process tier stays off: %s", why)
        self._make_known()

    def _trust(self, until: float, *, up: bool) -> None:
        self._local.trust(until)
        self._trusted_until = until
        if up and not self._events.bus_up:
            self._events.bus_changed(up=True, why="proven: the in-process tier is on")
        if up:
            self._make_known()

    # Waiting for the first proof

    def _make_known(self) -> None:
        self._known = True
        waiting, self._waiting = self._waiting, []
        for signal in waiting:
            signal.set()

    @property
    def ready(self) -> bool:
        """True once it is known if L1 can be used."""
        return self._known or self.start is None

    def listen(self) -> None:
        """Start the listener, if there is one."""
        if self.start is not None:
            self.start()

    async def begin_listening(self, runtime: Runtime, patience: float = PATIENCE) -> None:
        """Start the listener and wait until it is known whether it works, at most *patience* seconds."""
        if not self._begun:
            self._begun = True
            self.listen()
        signal = runtime.signal()
        self._waiting.append(signal)
        if not self._known:
            await signal.wait(patience)
        self._known = True  # later readers do not wait
