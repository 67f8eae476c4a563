"""What the processes of a guard tell one another, and how far this one can be sure to have heard everything.

Every invalidation publishes the name of what it has removed, in the same script. Whoever listens drops it from L1.
Pub/sub has no memory, reconnects silently and does not notice a dead link, so L1 rests on proof: a heartbeat goes out
through a data connection and must come back. Redis delivers in order, so a heartbeat that is back proves that all which
was published before it has been heard. L1 may answer for `HORIZON` seconds from the moment when the last proven
heartbeat was sent, and not longer; no timer is needed for that, and a process that was stopped finds its L1 closed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from typing import TYPE_CHECKING, Any, Protocol

from ..events import Events
from ..protocol.messages import DIRTY, DROP, heard

if TYPE_CHECKING:
    from ..ports import Runtime, Signal

HORIZON = 3.0  # seconds
BEAT_EVERY = 1.0
PATIENCE = 0.2  # seconds that a first read waits; without the bus, L1 stays empty for a moment
MOST_ECHOES = 4096
MOST_DIRTY = 100_000
MOST_NOTED = 100_000  # names heard of within one horizon
DIRTY_FOR = 60.0  # seconds after the last word about it; whoever has it pending repeats it every second


class Kept(Protocol):
    """The in-process tier, as the bus needs it."""

    def pause(self) -> None: ...

    def drop_shared(self) -> None: ...

    def trust(self, until: float) -> None: ...


class Bus:
    """One process on the bus of a guard.

    Args:
        channel: where all of them listen.
        me: the name of this process, another one after a fork.
        forget: drops one name from everything that this process keeps.
        local: answers only as long as it is trusted.
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
        forget: Callable[[str], None],
        local: Kept,
        events: Events,
        *,
        now: Callable[[], float],
    ) -> None:
        self.channel, self._forget, self._local, self._events, self.now = channel, forget, local, events, now
        self.start: Callable[[], None] | None = None  # begins to listen; None: nobody has to
        self._noting: AbstractContextManager[Any] | None = None  # guards the notes; None: none are kept
        self._dirty: dict[str, float] = {}  # invalidated, although Redis could not be told; until when
        self.rename(me)

    def rename(self, me: str) -> None:
        """Begin anew under another name, as a forked child does."""
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
        """Remember for a while what was heard of: without that, `vouches` never does."""
        self._noting = lock

    def note(self, name: str) -> None:
        """Something about *name* has changed, by us or by another: older copies of it count no more."""
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
        """Whether it is proven that this process hears what others invalidate."""
        return self.joined_in and self.now() < self._trusted_until

    def vouches(self, since: float, names: Iterable[str]) -> bool:
        """Whether something that may be old from *since* on contains all that this process has heard about *names*."""
        if not self.hears or since <= max(self._floor, self.now() - HORIZON) or self._noting is None:
            return False
        noted, before = self._noted
        return all(noted.get(name, 0.0) < since and before.get(name, 0.0) < since for name in names)

    # What this process says

    def begin(self) -> str:
        """A mark for what is said in one round trip: whoever says it has dropped its own copies by itself.

        The message may come after a later reader here has cached the new value; to heed it would cost that.
        """
        self._numbers += 1
        echo = f"{self.me}.{self._numbers}"
        self._echoes[echo] = None
        while len(self._echoes) > MOST_ECHOES:
            with suppress(KeyError):
                self._echoes.popitem(last=False)
        return echo

    def disown(self, echo: str) -> None:
        """It is not known what became of that round trip: if its message comes, it is heeded."""
        self._echoes.pop(echo, None)

    # What this process hears

    def hear(self, message: str) -> None:
        """A message on the channel of all."""
        what, echo, key = heard(message)
        if what == DROP:
            self._dirty.pop(key, None)
            self.note(key)
            if echo not in self._echoes:
                self._events.bus_messages += 1
                self._forget(key)
        elif what == DIRTY:
            self._events.bus_messages += 1
            self._mark_dirty(key)
            self.note(key)
            self._forget(key)

    def _mark_dirty(self, key: str) -> None:
        self._dirty.pop(key, None)
        while len(self._dirty) >= MOST_DIRTY:
            self._dirty.pop(next(iter(self._dirty)), None)
        self._dirty[key] = self.now() + DIRTY_FOR

    def is_dirty(self, key: str, markers: Iterable[str]) -> bool:
        """Whether somebody could not invalidate this in Redis: what is stored there must not be used."""
        if not self._dirty:
            return False
        now = self.now()
        return any(self._dirty.get(name, 0.0) > now for name in (key, *markers))

    def joined(self, now: float) -> None:
        """The subscription stands: what was kept until now may have missed something."""
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
        """A heartbeat is back; whether its round is complete."""
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
        """Whether no heartbeat came back for too long, although they could be sent."""
        return now >= self._since + HORIZON

    def lost(self) -> None:
        """A sign of a gap: what is kept may have missed something, so none of it is served."""
        if self.joined_in or self._events.bus_up:
            self._events.bus_gaps += 1
        if self._events.bus_up:
            self._events.bus_changed(up=False, why="interrupted: the in-process tier is off until it is proven again")
        self.joined_in = False
        self._rounds.clear()
        self._local.pause()

    def alone(self, now: float) -> None:
        """Redis could not be reached just now, so nobody can have told us: what is kept serves on, for a while."""
        self._trust(now + HORIZON, up=False)
        self._make_known()

    def mute(self, why: str) -> None:
        """The bus works, but not for this process: L1 stays off."""
        self._events.once(f"bus {why}", "the in-process tier stays off: %s", why)
        self._make_known()

    def _trust(self, until: float, *, up: bool) -> None:
        self._local.trust(until)
        self._trusted_until = until
        if up and not self._events.bus_up:
            self._events.bus_changed(up=True, why="proven: the in-process tier is on")
        if up:
            self._make_known()

    # Who waits for the first proof

    def _make_known(self) -> None:
        self._known = True
        waiting, self._waiting = self._waiting, []
        for signal in waiting:
            signal.set()

    @property
    def ready(self) -> bool:
        """Whether it is known if L1 can be used."""
        return self._known or self.start is None

    def listen(self) -> None:
        """Begin to listen, unless nobody has to."""
        if self.start is not None:
            self.start()

    async def begin_listening(self, runtime: Runtime, patience: float = PATIENCE) -> None:
        """Begin to listen, and wait until it is known whether that works, but not for long."""
        if not self._begun:
            self._begun = True
            self.listen()
        signal = runtime.signal()
        self._waiting.append(signal)
        if not self._known:
            await signal.wait(patience)
        self._known = True  # whoever comes later does not wait
