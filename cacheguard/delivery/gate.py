"""The gate to Redis: pending invalidations are delivered before anything is read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import cast

from ..errors import Refused, Unreachable
from ..events import Events
from ..faults import Fault
from ..ports import AnotherServer, Call, Commands, PartlyUnreachable, Replicas, Reply, ShortCommands, until_steady
from ..protocol import calls as protocol
from .bus import Bus
from .outbox import Invalidation, Outbox

PART = 250  # pending invalidations in one round trip; an event loop stands still while they are packed
MOST_ANNOUNCED = 10_000  # dirty keys, every second
_ANSWERS = frozenset({list, tuple, dict})  # to MGET, and to TIME: of one server, of the model, of several servers


class Gate:
    """The gate of one runtime; all gates of a guard share one outbox."""

    bus: Bus

    def __init__(
        self, commands: Commands, events: Events, outbox: Outbox, bus: Bus, replicas: Replicas | None = None
    ) -> None:
        self.replicas = replicas
        self._commands, self._events, self._outbox, self.bus = commands, events, outbox, bus
        self._short: ShortCommands | None = commands if isinstance(commands, ShortCommands) else None

    async def read_entry(self, key: str, markers: tuple[str, ...]) -> list[Reply]:
        """`ask`, for one entry and the markers around it: a shorter way, while nothing is out of the ordinary."""
        short, outbox = self._short, self._outbox
        if short is not None and self._events.l2_up and not outbox.has_pending:
            changes = outbox.changes
            try:
                replies = await short.read_entry(key, markers)
            except AnotherServer:
                pass  # as in `_sent`: the usual way sends what the other server may lack, and asks again
            except Unreachable as error:
                self._failed(error)
                raise
            else:
                if changes == outbox.changes:
                    return self._sensible(replies)
        return await self.ask(*protocol.read(key, markers))

    async def send(self, *calls: Call, reading: bool = True) -> list[Reply]:
        """Deliver pending invalidations, then `Commands.send_each`; failures are counted.

        With ``reading=False`` the calls read nothing that could be old.

        Raises `Unreachable` if the server does not answer.
        """
        events = self._events
        try:
            try:
                replies = await self._sent(calls, reading=reading)
            except AnotherServer:  # the first time is tried here: a hit in Redis pays for no loop
                replies = await until_steady(partial(self._sent, calls, reading=reading), failed=1)
        except PartlyUnreachable as error:
            if error.replies and all(map(_is_away, error.replies)):
                self._failed(error)
            elif error.fault is not Fault.LEFT_ALONE:
                events.redis_partly_failed(error)
            raise
        except Unreachable as error:
            self._failed(error)
            raise
        if not events.l2_up:
            events.redis_answered()
        return replies

    async def ask(self, *calls: Call) -> list[Reply]:
        """`send`, for plain questions; `Refused`, which is counted, if one of them has no answer that makes sense."""
        return self._sensible(await self.send(*calls))

    def _sensible(self, replies: list[Reply]) -> list[Reply]:
        """*replies*, if all make sense."""
        if _ANSWERS.issuperset(map(type, replies)):
            return replies
        reply = next(each for each in replies if type(each) not in _ANSWERS)
        refused = reply if isinstance(reply, Refused) else Refused(f"unexpected reply {type(reply).__name__}")
        self._events.redis_refused(refused)
        raise refused

    async def ask_replicas(self, *calls: Call) -> tuple[list[Reply], Reply] | None:
        """The answers of replicas, and their times by key.

        None if they may lack an invalidation that this process knows of or has pending.

        An answer is as good as a copy in L1: it is used only while this process provably receives invalidations, and
        only if it includes all that have arrived. One round trip.
        """
        replicas, outbox, bus = self.replicas, self._outbox, self.bus
        if replicas is None or outbox.has_pending or not bus.hears:
            return None
        changes = outbox.changes
        answer = await replicas.ask(*calls)
        if answer is None or changes != outbox.changes:
            return None
        replies, times, since = answer
        return (replies, times) if bus.vouches(since, protocol.keys_of(calls)) else None

    @property
    def changes(self) -> int:
        """How often the answering server has changed."""
        return self._outbox.changes

    async def scan(self, at: int, cursor: str, pattern: str, count: int) -> tuple[list[str], tuple[int, str] | None]:
        """The names that match *pattern* in one page of one server, and where to go on; None at the end.

        Args:
            at: which of the servers.
            cursor: where to go on in it, "0" at its beginning.
            pattern: as Redis understands it.
            count: about how many names to look at.
        """
        events = self._events
        try:
            names, following = await until_steady(partial(self._scanned, at, cursor, pattern, count))
        except Unreachable as error:
            self._failed(error)
            raise
        if not events.l2_up:
            events.redis_answered()
        return names, following

    def _failed(self, error: Unreachable) -> None:
        if error.fault is not Fault.LEFT_ALONE:  # that is counted where it is decided
            self._events.redis_failed(error)

    async def _scanned(
        self, at: int, cursor: str, pattern: str, count: int
    ) -> tuple[list[str], tuple[int, str] | None]:
        if self._outbox.has_pending:
            await self._empty(())
        masters = await self._commands.masters()
        if at >= len(masters):
            return [], None
        (page,) = await masters[at].send(protocol.scan(cursor, pattern, count))
        cursor_then, names = protocol.scanned(page)
        following = (at, cursor_then) if cursor_then != "0" else (at + 1, "0")
        return names, following if following[0] < len(masters) else None

    async def _sent(self, calls: Sequence[Call], *, reading: bool) -> list[Reply]:
        """The answers of one server; `AnotherServer` if it has changed, which the outbox knows by then."""
        outbox = self._outbox
        changes = outbox.changes
        # While the breaker is open, finding that out must not cost building a thousand calls.
        if outbox.has_pending and not self._commands.away:
            await self._empty(set(protocol.keys_of(calls)) if reading else frozenset())
        replies = await self._commands.send_each(*calls)
        # Another thread may notice a change that this one does not see:
        #
        # this thread:   asks .............................. is answered "old" by the new server
        # that thread:          meets the new server, queues what the old one may have lost
        if changes != outbox.changes:
            raise AnotherServer
        return replies

    async def _empty(self, keys: Collection[str]) -> None:
        """Deliver the pending invalidations; no entry that they affect is read before that.

        If one of several servers is unreachable, its pending invalidations are set aside, and other keys are read as
        usual. Only a pending invalidation of its own key, or of a marker of its tags or namespaces, makes an answer
        old; and an answer is used only after all of these have been read. So it is enough to look at *keys*, which are
        about to be read.
        """
        await until_steady(partial(self._empty_once, keys))

    async def _empty_once(self, keys: Collection[str]) -> None:
        await self._release_orphans(keys)
        while self._outbox.pending:  # other threads may queue more meanwhile
            await self._deliver()
        if self._outbox.parked:
            await self._deliver_these(self._outbox.parked_part(keys))
            # Still there after that try: an answer about these keys could be old, so there is none.
            if any(key in self._outbox.parked for key in keys):
                away = Unreachable("an invalidation was not acknowledged: its server cannot be asked")
                raise PartlyUnreachable([], away)

    async def _release_orphans(self, keys: Collection[str]) -> None:
        outbox = self._outbox
        if outbox.orphans_aside:
            outbox.orphans_back(keys)
        while outbox.orphans:
            orphans = outbox.some_orphans(PART)
            channel = self.bus.channel
            release = [protocol.release(key, token=token, channel=channel) for key, token in orphans]
            replies = await self._answers(release)
            outbox.orphans_away(orphan for orphan, reply in zip(orphans, replies, strict=True) if _is_away(reply))
            outbox.released(orphans)

    async def _deliver(self) -> None:
        await self._deliver_these(self._outbox.part(PART))

    async def _deliver_these(self, part: dict[Invalidation, object]) -> None:
        if not part:
            return
        outcome = await self._deliver_again(list(part))
        left = {*outcome.missed, *outcome.away}
        self._outbox.delivered({item: mark for item, mark in part.items() if item not in left})
        self._outbox.park(outcome.away)
        if outcome.missed:
            raise outcome.refusal or Unreachable("an invalidation was not acknowledged")

    async def _deliver_again(self, items: Sequence[Invalidation]) -> Outcome:
        """Deliver *items* without an echo id: this process also drops its copies when the message comes back."""
        calls = [item.calls(self.bus.channel, "-") for item in items]
        return _outcome(items, calls, await self._answers([call for each in calls for call in each]))

    async def _answers(self, calls: Sequence[Call]) -> list[Reply]:
        """The answers of the servers that can be reached; `Unreachable` if none can."""
        try:
            return await self._commands.send_each(*calls)
        except PartlyUnreachable as error:
            return error.replies

    async def deliver_pending(self) -> None:
        """Deliver pending invalidations. Where Redis takes no writes, announce which keys are dirty.

        Raises `Unreachable` if Redis cannot be asked.
        """
        outbox = self._outbox
        try:
            if outbox.has_pending:
                await self._empty(())
            parked = list(outbox.all_parked().items())
            for at in range(0, len(parked), PART):
                with suppress(AnotherServer):
                    await self._deliver_these(dict(parked[at : at + PART]))
        except Refused:
            await self._announce_pending()
            raise
        if outbox.parked:
            await self._announce_pending()

    async def _announce_pending(self) -> None:
        outbox = self._outbox
        items = [*outbox.part(MOST_ANNOUNCED), *outbox.all_parked()][:MOST_ANNOUNCED]
        with suppress(AnotherServer):
            for at in range(0, len(items), PART):
                await self.announce_dirty(items[at : at + PART])

    async def announce_dirty(self, items: Sequence[Invalidation]) -> None:
        """Tell all processes to ignore entries that Redis cannot remove: a full or failing server still publishes."""
        await self._commands.send_each(
            *(protocol.dirty(self.bus.channel, item.key) for item in items if not item.begins)
        )

    async def tell(self, key: str) -> None:
        """Tell all other processes to drop their copies of *key*, which has a new value in Redis."""
        with suppress(Unreachable):  # it is counted; their copies end with their L1 TTL
            await self.send(protocol.news(self.bus.channel, self.bus.begin(), key), reading=False)

    async def deliver(
        self,
        items: Sequence[Invalidation],
        calls_of: Callable[[str], list[list[Call]]] | None = None,
        first: Sequence[Call] = (),
    ) -> tuple[bool, list[Reply]]:
        """Deliver *items* now. One round trip.

        Returns True if Redis has acknowledged all of them; the others are pending, and delivered before anything else
        is read. Also the replies to *first* and then to each call; none unless all servers answered.

        Args:
            items: the invalidations, which become pending if they fail.
            calls_of: the calls for each of them, by the echo id of this round trip; their own calls if left out.
            first: calls to send before them.
        """
        bus, outbox = self.bus, self._outbox
        echo = bus.begin()
        calls = [item.calls(bus.channel, echo) for item in items] if calls_of is None else calls_of(echo)
        try:
            outcome = await self._first_try(items, calls, first)
        except BaseException:  # interrupted: nobody knows whether it has arrived
            bus.disown(echo)
            outbox.queue(items)
            raise
        if not outcome.missed and not outcome.away:
            outbox.acknowledged(items)
            bus.listen()  # who listens notices that the server has lost them
            return True, outcome.replies
        # Some of it may have arrived, and its message may be on its way with this echo. This process then drops its
        # copies once more, for a reader here may have cached the old value meanwhile.
        bus.disown(echo)
        await self._keep(items, outcome)
        return False, outcome.replies

    async def _first_try(
        self, items: Sequence[Invalidation], calls: Sequence[Sequence[Call]], first: Sequence[Call]
    ) -> Outcome:
        """Send *first* and *calls*. An error of Redis is in the outcome, not raised."""
        try:
            replies = await self.send(*first, *(call for each in calls for call in each), reading=False)
        except PartlyUnreachable as error:
            return _outcome(items, calls, error.replies[len(first) :])
        except Refused as error:  # something that was pending before is refused: so would this be
            return Outcome(list(items), refusal=error)
        except Unreachable:
            return Outcome(list(items))
        outcome = _outcome(items, calls, replies[len(first) :])
        outcome.replies = replies
        return outcome

    async def _keep(self, items: Sequence[Invalidation], outcome: Outcome) -> None:
        """Queue the *items* that were not acknowledged; if Redis still publishes, announce them as dirty."""
        outbox, left = self._outbox, dict.fromkeys((*outcome.missed, *outcome.away))
        outbox.acknowledged([item for item in items if item not in left])
        outbox.queue(outcome.missed)
        outbox.queue(outcome.away, aside=True)
        if outcome.refusal is not None:
            self._events.redis_refused(outcome.refusal)
        elif not outcome.away:  # no server was reached, so nobody could be told
            return
        try:
            await self.announce_dirty(list(left))
        except AnotherServer as error:
            self._events.redis_failed(error)
        except Unreachable as error:
            self._failed(error)

    def queue(self, items: Sequence[Invalidation]) -> None:
        """Queue *items*: they are delivered before anything else is read."""
        self._outbox.queue(items)

    def acknowledged(self, items: Sequence[Invalidation]) -> None:
        """Put *items* in the journal: if a failover loses this acknowledged write, an old value comes back."""
        self._outbox.acknowledged(items)

    def orphaned(self, tokens: dict[str, str]) -> None:
        """Queue leases that may have been granted: they are given back before anything else is read."""
        self._outbox.orphaned(tokens)


def _is_away(reply: Reply) -> bool:
    """True if the server of this call could not be reached."""
    if isinstance(reply, list):
        parts = cast("list[Reply]", reply)  # type: ignore[redundant-cast]  # for pyright
        return bool(parts) and all(map(_is_away, parts))
    return reply == {} or (isinstance(reply, Unreachable) and not isinstance(reply, Refused))


@dataclass(slots=True)
class Outcome:
    """The outcome of some invalidations.

    Args:
        missed: those that were refused, or all if no server could be reached.
        away: those whose server could not be reached, while others could.
        refusal: the server's error for one of the missed.
        replies: to everything that was sent; empty unless all servers answered.
    """

    missed: list[Invalidation]
    away: list[Invalidation] = field(default_factory=list[Invalidation])
    refusal: Refused | None = None
    replies: list[Reply] = field(default_factory=list[Reply])


def _outcome(items: Sequence[Invalidation], calls: Sequence[Sequence[Call]], replies: Sequence[Reply]) -> Outcome:
    """The outcome of *items*, by the *replies* to the *calls* of each."""
    missed: list[Invalidation] = []
    away: list[Invalidation] = []
    refusal: Refused | None = None
    at = 0
    for item, each in zip(items, calls, strict=True):
        mine = replies[at : at + len(each)]
        refusals = [reply for reply in mine if isinstance(reply, Refused) and not is_foreign(reply)]
        at += len(each)
        if refusals:
            missed.append(item)
            refusal = refusals[0]
        elif any(map(_is_away, mine)):
            away.append(item)
    return Outcome(missed, away, refusal)


def is_foreign(reply: Refused) -> bool:
    """True if data of another type is stored under our key: no stale entry of ours can be there."""
    return reply.fault is Fault.WRONG_TYPE
