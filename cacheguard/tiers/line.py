"""The way to Redis on which nothing is asked before what is owed has been delivered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

from ..errors import Refused, Unreachable
from ..events import Events
from ..faults import Fault
from ..lua import load
from ..ports import AnotherServer, Call, Commands, Reply
from .bus import Bus
from .outbox import Invalidation, Outbox

RELEASE = load("release")

FAILURE_KEPT_MS = 2_000  # several of a waiter's longest polls
PART = 1000  # of what is owed, in one round trip
MOST_ANNOUNCED = 10_000  # dirty keys, every second
CHANGES = 3  # servers in a row that turn out to be others


class Line:
    """One way to Redis, under one runtime; the outbox is shared by all ways of a guard."""

    def __init__(self, commands: Commands, events: Events, outbox: Outbox, bus: Bus) -> None:
        self._commands, self._events, self._outbox, self.bus = commands, events, outbox, bus

    async def send(self, *calls: Call) -> list[Reply]:
        """`Commands.send_each`, counted, after whatever invalidation is still owed.

        Raises `Unreachable` if the server could not be asked.
        """
        events = self._events
        try:
            replies = await self._sent(calls)
        except Unreachable as error:
            self._failed(error)
            raise
        if not events.l2_up:
            events.redis_answered()
        return replies

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
            names, following = await self._scanned(at, cursor, pattern, count)
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
        for _ in range(CHANGES):
            if self._outbox.owes:
                await self._settle()
            masters = await self._commands.masters()
            if at >= len(masters):
                return [], None
            try:
                ((cursor_then, names),) = await masters[at].send(("SCAN", cursor, "MATCH", pattern, "COUNT", count))
            except AnotherServer:
                continue
            following = (at, bytes(cursor_then).decode()) if cursor_then != b"0" else (at + 1, "0")
            texts = [name.decode("utf-8", "surrogatepass") for name in names]
            return texts, following if following[0] < len(masters) else None
        raise Unreachable(f"the server was another one {CHANGES} times in a row")

    async def _sent(self, calls: Sequence[Call]) -> list[Reply]:
        for _ in range(CHANGES):
            changes = self._outbox.changes
            # Where Redis is left alone, saying so must not cost the making of a thousand calls.
            if self._outbox.owes and not self._commands.away:
                await self._settle()
            try:
                replies = await self._commands.send_each(*calls)
            except AnotherServer:  # the outbox has been told what the old one may have lost
                continue
            if changes == self._outbox.changes:
                return replies
            # Another thread has noticed a change meanwhile; this one may have asked before anything was repeated.
        raise Unreachable(f"the server was another one {CHANGES} times in a row")

    async def _settle(self) -> None:
        """Deliver the invalidations that Redis has not acknowledged; nothing is read before that."""
        for _ in range(CHANGES):
            try:
                await self._release_orphans()
                while self._outbox.owed:
                    await self._deliver()
                return
            except AnotherServer:
                continue
        raise Unreachable(f"the server was another one {CHANGES} times in a row")

    async def _release_orphans(self) -> None:
        while self._outbox.orphans:
            orphans = self._outbox.some_orphans(PART)
            await self._commands.send_each(*(RELEASE(key)(token, b"", FAILURE_KEPT_MS) for key, token in orphans))
            self._outbox.released(orphans)

    async def _deliver(self) -> None:
        part = self._outbox.part(PART)
        missed, refusal = await self._told(list(part))
        if missed:
            raise refusal or Unreachable("an invalidation was not acknowledged")
        self._outbox.settled(part)

    async def _told(self, items: Sequence[Invalidation]) -> tuple[list[Invalidation], Refused | None]:
        """Say *items*; those that were not taken, and what the server said to one of them.

        Nothing of it counts as said by ourselves: the copies of this process are dropped when it is heard.
        """
        calls = [item.calls(self.bus.channel, "-") for item in items]
        replies = await self._commands.send_each(*(call for each in calls for call in each))
        return _missed(items, calls, replies)

    async def settle(self) -> None:
        """Deliver what is owed, and say which keys are dirty where Redis takes no writes; for whoever has time.

        Raises `Unreachable` if Redis cannot be asked.
        """
        if self._outbox.owes:
            try:
                await self._settle()
            except Refused:
                items = list(self._outbox.part(MOST_ANNOUNCED))
                with suppress(AnotherServer):
                    for at in range(0, len(items), PART):
                        await self.announce_dirty(items[at : at + PART])
                raise

    async def announce_dirty(self, items: Sequence[Invalidation]) -> None:
        """Tell all processes to go past what Redis does not let go of: a full or failing server still publishes."""
        await self._commands.send_each(
            *(("PUBLISH", self.bus.channel, f"dirty {item.key}") for item in items if not item.begins)
        )

    async def tell(
        self, items: Sequence[Invalidation], calls_of: Callable[[str], list[list[Call]]] | None = None
    ) -> bool:
        """Deliver *items* now. One round trip.

        False if Redis did not acknowledge all of them; they are owed then, and delivered before anything else is asked.

        Args:
            items: what is owed if it fails.
            calls_of: what to send for each of them, with the mark of this round trip; their own calls if left out.
        """
        return (await self.told(items, calls_of))[0]

    async def told(
        self,
        items: Sequence[Invalidation],
        calls_of: Callable[[str], list[list[Call]]] | None = None,
        first: Sequence[Call] = (),
    ) -> tuple[bool, list[Reply]]:
        """`tell`, and what was answered, to *first* and then to each call; nothing if nobody answered."""
        bus, outbox = self.bus, self._outbox
        echo = bus.begin()
        calls = [item.calls(bus.channel, echo) for item in items] if calls_of is None else calls_of(echo)
        missed, refusal = list(items), None
        replies: list[Reply] = []
        try:
            replies = await self.send(*first, *(call for each in calls for call in each))
            missed, refusal = _missed(items, calls, replies[len(first) :])
        except Refused as error:  # something that was owed before is refused: so would this be
            refusal = error
        except Unreachable:
            pass
        except BaseException:
            bus.void(echo)
            outbox.owe(items)
            raise
        if not missed:
            outbox.acknowledged(items)
            return True, replies
        bus.void(echo)
        outbox.acknowledged([item for item in items if item not in missed])
        outbox.owe(missed)
        if refusal is not None:
            self._events.redis_refused(refusal)
            try:
                await self.announce_dirty(missed)
            except AnotherServer as error:
                self._events.redis_failed(error)
            except Unreachable as error:
                self._failed(error)
        return False, replies

    def owe(self, items: Sequence[Invalidation]) -> None:
        """Deliver *items* before anything else is asked."""
        self._outbox.owe(items)

    def acknowledged(self, items: Sequence[Invalidation]) -> None:
        """Remember that Redis has taken a write which, if a failover loses it, leaves something old behind."""
        self._outbox.acknowledged(items)

    def orphaned(self, tokens: dict[str, str]) -> None:
        """Nobody knows whether these leases were granted: give them back before anything else is asked."""
        self._outbox.orphaned(tokens)


def _missed(
    items: Sequence[Invalidation], calls: Sequence[Sequence[Call]], replies: Sequence[Reply]
) -> tuple[list[Invalidation], Refused | None]:
    missed: list[Invalidation] = []
    refusal: Refused | None = None
    at = 0
    for item, each in zip(items, calls, strict=True):
        refusals = [
            reply for reply in replies[at : at + len(each)] if isinstance(reply, Refused) and not is_foreign(reply)
        ]
        at += len(each)
        if refusals:
            missed.append(item)
            refusal = refusals[0]
    return missed, refusal


def is_foreign(reply: Refused) -> bool:
    """Whether something of another type lives under our key: nothing of ours can be stale there."""
    return reply.fault is Fault.WRONG_TYPE
