"""The Bloom filter in front of the loader: bits in Redis that all processes share, mirrored in each of them.

The answer is "absent" only when that is certain, by these rules:

- The filter in Redis knows whether it is *complete* (every row was added), and of which server: another run or
  replication history may have lost items, so it makes the filter incomplete, and so does a lost chunk.
- A mirror may answer "absent" without asking only while its *lease* lasts. `bloom_sync` grants it, with every item the
  mirror lacked, and notes in Redis when the last one ends.
- An `add` waits until every lease granted before it has ended::

    reader:  sync, granted 50 ms ........ "absent" ... lease over, has to sync, learns of x: "maybe"
    writer:      add x, told to wait 49 ms .................... add returns, row is committed

- Anything else (no filter, no connection, foreign hash functions, a load under way) is "maybe".

Leases are counted by the server's clock there and by the monotonic clock here, from before the question was sent. A
server clock that is set forward may end them early for the adders, by no more than one lease; a machine that was
suspended may trust its mirror for the rest of one.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, aclosing
from itertools import islice
from typing import Any

from ...checks import number_of
from ...errors import CacheGuardError, ConfigurationError, Unreachable
from ...events import Events, log
from ...ports import Reply, Runtime
from .adding import ITEMS_PER_CALL, Plan, add_call, grow_call
from .alone import Alone
from .bits import Layers, Mirror
from .info import BloomInfo, State
from .items import Items, Texts, batches_of, text_to_ask
from .layout import CHUNK_BYTES, HEADER_BYTES, Shape, checked_plan, describe, parse, probe
from .rebuild import Rebuild, checked_lag
from .stored import (
    CHUNKS_PER_SEND,
    DAMAGE,
    MARK,
    SYNC,
    Keys,
    News,
    UnusableError,
    header_of,
    news_of,
    refusal,
    text_of,
)

SYNC_MOST = 4096  # further behind, a mirror loads the filter anew
RECHECK = 1.0  # seconds before a filter that was no help is asked about again
RELOAD = 5.0  # seconds before a load that came to nothing is tried again
LONGEST_LEASE = 5.0

_CALLS_PER_SEND = 8
_ATTEMPTS = 100
_LOADS = 3
_FAIR_BITS = 2**30  # what is in Redis may take 128 MB here, or 64 times what was declared
_FAIR_GROWTH = 64
_NOBODY, _DISCORD = ("", ""), ("-", "-")

_STATES: dict[str, State] = {"complete": "complete", "incomplete": "incomplete", "damaged": "lost"}


class BloomTier:
    """One named Bloom filter: knows for certain that some items were never added.

    Every coroutine takes the runtime of its caller's door. If Redis fails, a reader gets "maybe", never an error. An
    `add` that Redis has not acknowledged raises `Unreachable`; the item may or may not be in the filter.

    Args:
        namespace: filters of one name in different namespaces have nothing in common.
        lock: guards the mirror; held for a few microseconds per item learned.
        shared: false where there is no Redis; then this process's bits are all there is.
        mirror_lease: seconds (at most 5) for which "absent" is answered without asking Redis, and which an add waits at
            most. All processes should use the same. None: every "absent" costs a round trip, and adds never wait.
    """

    capacity: int
    error_rate: float

    def __init__(
        self,
        name: str,
        *,
        capacity: int,
        error_rate: float = 0.001,
        lock: AbstractContextManager[Any],
        events: Events,
        namespace: str = "",
        shared: bool = True,
        mirror_lease: float | None = 0.05,
    ) -> None:
        self.name: str = _checked_name(name)
        self.capacity, self.error_rate = capacity, error_rate
        self._first = checked_plan(capacity, error_rate)
        self._lease = _checked_lease(mirror_lease)
        self._lock, self._events = lock, events
        self._keys = Keys(namespace, name)
        self._mirror = Mirror("", Layers(()))
        self._again = -math.inf  # until then "maybe" is answered without asking
        self._loading = False
        self._plan: Plan | None = None
        self._met = False
        self._witness = _NOBODY
        self._alone = None if shared else Alone(self._first)
        if self._alone is not None:
            self._mirror, self._again = self._alone.mirror, math.inf

    def after_fork(self, lock: AbstractContextManager[Any]) -> None:
        """Forget what other threads of the parent were about; the bits stay good, they are asked for again."""
        self._lock = lock
        self._loading = False

    def known(self, item: object, now: float) -> bool | None:
        """True if *item* is certainly absent, False for "maybe", None if only Redis can tell: then ask `absent`.

        Costs no I/O and no lock. *now* is `Runtime.now`, read before the call.
        """
        mirror = self._mirror
        # The order matters when the lease is over and another thread renews it at this moment:
        #   here:   bits lack x ........................... lease is good -> "absent", though x was added long ago
        #   there:              learns of x, renews the lease
        # Read first, an old lease ends the question, and a renewed one has the bits that belong to it.
        until = mirror.until
        if now >= until and now < self._again:
            return False
        text = text_to_ask(item)
        if text is None:
            return False
        for layer in mirror.layers.filters:
            if text in layer:
                return False
        return True if now < until else None

    async def absent(self, runtime: Runtime, item: object) -> bool:
        """True only if *item* was certainly not added, in any process.

        Free if `known` can answer, else a round trip. At the first call, and after a rebuild in another process, it
        fetches the whole filter; other callers get "maybe" meanwhile.
        """
        verdict, text = self.known(item, runtime.now()), text_to_ask(item)
        if verdict is not None or text is None:
            return verdict is True
        try:
            mirror = await self._confirm(runtime)
        except (Unreachable, UnusableError) as error:
            self._rest(runtime, RECHECK)
            if isinstance(error, UnusableError):
                self._events.once(str(error), "%s", error)
            return False
        return mirror is not None and not mirror.layers.holds(text)

    async def add_many(self, runtime: Runtime, items: Items) -> None:
        """Add *items*, so that no process answers "absent" for them. Call it before their rows are committed.

        Costs a round trip per 400 items. Then it waits until the mirrors' leases have ended: at most `mirror_lease`.
        Raises `Unreachable` if Redis cannot be reached; then call it again, or do not commit.
        """
        waits_until = -math.inf
        async with aclosing(batches_of(items, ITEMS_PER_CALL * _CALLS_PER_SEND)) as batches:
            async for texts in batches:
                if self._alone is not None:
                    with self._lock:
                        self._alone.add(texts)
                else:
                    waits_until = max(waits_until, await self._add(runtime, texts))
        pause = waits_until - runtime.now()
        if pause > 0:
            await runtime.sleep(pause)

    async def mark_complete(self, runtime: Runtime) -> None:
        """Declare that every existing row was added. From now on the filter may answer "absent".

        Call it in the process that added the rows. Raises `CacheGuardError` if items may have been lost since then,
        because Redis was restarted, replaced or flushed, or evicted a part of the filter; `Unreachable` as `add_many`.
        """
        if self._alone is not None:
            with self._lock:
                self._alone.complete()
            return
        (reply,) = await runtime.commands.send(MARK(self._keys.meta)(*self._witness))
        self._witness = _NOBODY
        if text_of(reply) != "OK":
            raise refusal(self.name, text_of(reply))
        self._again = -math.inf

    async def rebuild(self, runtime: Runtime, items: Items, *, settle: float = 0.0) -> None:
        """Replace the filter with a new, complete one of *items* and of everything added meanwhile.

        The old filter answers until the new one takes its place. *items* is read once, after the call has begun, and
        must yield every row that is committed by then: give a query or a generator, not a list made earlier. Rows that
        were added before and are not committed yet come along, the last 65,536 of them.

        Costs the new filter's memory once more, here and in Redis. Raises `CacheGuardError` if another rebuild began
        later, or if Redis lost the filter meanwhile; the old filter, if any, is then as it was. After `Unreachable`
        it may have been replaced or not; call again.

        Args:
            settle: seconds that pass at most between an `add` and the commit of its row. If Redis lost the memory of
                what was added within that time (it was flushed, restarted, or is new), the rebuild waits for the rest
                of it, and for a lease at least, before it reads *items*.
        """
        lag_ms = checked_lag(settle)
        if self._alone is not None:
            await self._rebuild_alone(runtime, self._alone, items)
            return
        mirror = await Rebuild(self._keys, self._first, self._lease, runtime).run(items, lag_ms)
        with self._lock:
            self._mirror, self._again = mirror, -math.inf
        self._plan, self._met = Plan(mirror.epoch, mirror.layers.shapes), True
        self._witness = _NOBODY

    async def info(self, runtime: Runtime) -> BloomInfo:
        """The filter as it is now; one round trip. Raises `Unreachable`."""
        if self._alone is not None:
            alone = self._alone
            layers = alone.mirror.layers
            return self._info("complete" if alone.mirror.until > 0 else "incomplete", "", layers.count, layers.shapes)
        try:
            news = await self._ask(runtime, "", 0, 0)
            if news.state == "none":
                return self._info("lost" if self._met else "incomplete", "", 0, ())
            shapes = self._usable(news)
        except UnusableError:
            return self._info("lost", "", 0, ())
        return self._info(_STATES[news.state], news.epoch, news.count, shapes)

    def _info(self, state: State, epoch: str, count: int, shapes: tuple[Shape, ...]) -> BloomInfo:
        bits = sum(shape.bits for shape in shapes)
        return BloomInfo(
            name=self.name,
            state=state,
            epoch=epoch,
            count=count,
            capacity=sum(shape.capacity for shape in shapes),
            error_rate=shapes[0].error_rate / 0.8 if shapes else self.error_rate,
            layers=len(shapes),
            bits=bits,
            memory=-(-bits // 8),
        )

    async def _rebuild_alone(self, runtime: Runtime, alone: Alone, items: Items) -> None:
        with self._lock:
            mine = alone.begin()
        layers = await alone.gather(runtime, items)
        with self._lock:
            if not alone.switch(mine, layers):
                raise refusal(self.name, "OVERTAKEN")
            self._mirror = alone.mirror

    # Reading

    async def _confirm(self, runtime: Runtime) -> Mirror | None:
        """The mirror, if this round trip makes it certain that it lacks nothing; else None."""
        mirror, asked = self._mirror, runtime.now()
        news = await self._ask(runtime, mirror.epoch, mirror.seq, self._lease)
        if self._learn(mirror, news, asked):
            return mirror
        if news.state != "complete":
            if self._mirror.epoch:  # it was complete once
                self._lose()
            self._rest(runtime, RECHECK)
            return None
        with self._lock:
            if self._loading:
                return None
            self._loading = True
        try:
            loaded = await self._load(runtime, news)
        finally:
            self._loading = False
        if loaded is None:
            self._rest(runtime, RELOAD)
        return loaded

    async def _ask(self, runtime: Runtime, epoch: str, seq: int, lease: int) -> News:
        (reply,) = await runtime.commands.send(SYNC(self._keys.meta, self._keys.log)(epoch, seq, lease, SYNC_MOST))
        return news_of(reply)

    def _learn(self, mirror: Mirror, news: News, asked: float) -> bool:
        """Put what is new into *mirror*, then trust it as far as it was granted; False if it is of no use for that."""
        if news.state != "complete" or news.items is None or news.epoch != mirror.epoch:
            return False
        shapes = self._usable(news)
        with self._lock:
            for shape in shapes[len(mirror.layers.shapes) :]:
                mirror.layers.append(shape)
            for text in news.items:
                mirror.layers.put(text)
            mirror.seq = max(mirror.seq, news.seq)
            if self._lease:
                mirror.until = max(mirror.until, asked + self._lease / 1000)
        self._met, self._again = True, -math.inf
        return True

    async def _load(self, runtime: Runtime, news: News) -> Mirror | None:
        """Fetch the whole filter; None if it changed faster than that, or lacks bits."""
        for _ in range(_LOADS):
            mirror = Mirror(news.epoch, Layers(self._usable(news)), news.seq)
            found = await self._fetch(runtime, mirror)
            asked = runtime.now()
            later = await self._ask(runtime, mirror.epoch, mirror.seq, self._lease)
            # As many chunks found as were ever made: then none was evicted, not even to be made again since.
            if later.chunks == found and self._learn(mirror, later, asked):
                with self._lock:
                    self._mirror = mirror
                self._note_shape(mirror.layers.shapes)
                return mirror
            if found < news.chunks and later.epoch == news.epoch:
                await runtime.commands.send(DAMAGE(self._keys.meta)(news.epoch))
                self._lose()
                return None
            if later.state != "complete":
                return None
            news = later
        return None

    async def _fetch(self, runtime: Runtime, mirror: Mirror) -> int:
        """Read every chunk there is into *mirror*; return how many there were."""
        header, found = header_of(mirror.epoch), 0
        every = self._keys.chunks(mirror.epoch, mirror.layers.shapes)
        while part := list(islice(every, CHUNKS_PER_SEND)):
            chunks = await runtime.commands.send(*(("GET", key) for _, _, key in part))
            for (layer, number, _), chunk in zip(part, chunks, strict=True):
                if chunk is not None and chunk[:HEADER_BYTES] == header and len(chunk) == HEADER_BYTES + CHUNK_BYTES:
                    mirror.layers.load(layer, number, chunk[HEADER_BYTES:])
                    found += 1
        return found

    def _usable(self, news: News) -> tuple[Shape, ...]:
        """The layers of the filter in Redis. Raises `UnusableError` if this process cannot work with them."""
        if self._mirror.epoch == news.epoch and describe(self._mirror.layers.shapes) == news.layers:
            return self._mirror.layers.shapes
        try:
            shapes = parse(news.layers)
            same = probe(shapes[0]) == news.probe
        except ValueError:
            same, shapes = False, ()
        if not same:
            raise UnusableError(f"Bloom filter {self.name!r} was built with other hash functions; rebuild it")
        if sum(shape.bits for shape in shapes) > max(_FAIR_BITS, _FAIR_GROWTH * self._first.bits):
            raise UnusableError(f"Bloom filter {self.name!r} is far larger than declared here; rebuild it")
        return shapes

    def _rest(self, runtime: Runtime, seconds: float) -> None:
        self._again = runtime.now() + seconds

    def _note_shape(self, shapes: tuple[Shape, ...]) -> None:
        if shapes[0] != self._first:
            warning = (
                f"Bloom filter {self.name!r} is declared with capacity={self.capacity}, error_rate={self.error_rate}, "
                f"but the one in Redis was built for {shapes[0].capacity} items; it is used until the next rebuild"
            )
            self._events.once(warning, "%s", warning)

    def _lose(self) -> None:
        """Count a filter that this process has worked with and that is not what it was."""
        self._met, self._mirror = False, Mirror("", Layers(()))
        self._events.bloom_losses += 1
        log.warning(
            "Bloom filter %r was lost, or Redis was restarted or replaced; it answers 'maybe' until it is rebuilt",
            self.name,
        )

    # Adding

    async def _add(self, runtime: Runtime, texts: Texts) -> float:
        """Add *texts* in Redis; return until when mirrors may not know of them."""
        with self._lock:
            for text in texts if self._mirror.layers.filters else ():
                self._mirror.layers.put(text)
        waits_until = -math.inf
        for _ in range(_ATTEMPTS):
            plan = self._plan or Plan.new(runtime, self._first)
            size = plan.items_per_call
            parts = [texts[start : start + size] for start in range(0, len(texts), size)]
            # Only the first may create the filter: were it flushed between two calls, the second would create it anew
            # under the same epoch, and nobody could tell that the items of the first are gone.
            replies = await runtime.commands.send(
                *(
                    add_call(plan, self._keys, part, self._lease, create=plan.fresh and number == 0)
                    for number, part in enumerate(parts)
                )
            )
            answered = runtime.now()
            texts = []
            for part, reply in zip(parts, replies, strict=True):
                texts += part[reply[1] :]
                self._witness_add(reply)
                if reply[2] > 0:
                    waits_until = max(waits_until, answered + (reply[2] + 1) / 1000)
            if not texts:
                plan.fresh = False
                self._plan, self._met = plan, True
                return waits_until
            await self._replan(runtime, plan, replies)
        raise CacheGuardError(f"Bloom filter {self.name!r} kept changing while items were added; try again")

    def _witness_add(self, reply: Reply) -> None:
        """Remember where items went: only if all went to one filter on one server, none was lost on the way."""
        if reply[1]:
            here = text_of(reply[4]), text_of(reply[3])
            self._witness = here if self._witness in (_NOBODY, here) else _DISCORD

    async def _replan(self, runtime: Runtime, plan: Plan, replies: list[Reply]) -> None:
        """Something came between: find out where items go now."""
        for reply in replies:
            status = text_of(reply[0])
            if status == "NONE":
                self._plan = None
                if self._met:
                    self._lose()
                return
            if status == "STALE":
                self._plan = Plan.read(text_of(reply[4]), text_of(reply[5]), text_of(reply[6]))
                return
        grown = plan.grown()
        await runtime.commands.send(grow_call(plan, grown, self._keys))
        self._plan = grown


def _checked_name(name: object) -> str:
    if not isinstance(name, str) or not name:
        raise ConfigurationError(f"the name of a Bloom filter must be a non-empty str, got {name!r}")
    return name


def _checked_lease(seconds: object) -> int:
    """A lease in whole milliseconds."""
    if seconds is None:
        return 0
    if not 0 <= number_of(seconds) <= LONGEST_LEASE:
        raise ConfigurationError(f"mirror_lease must be None or seconds from 0 to {LONGEST_LEASE}, got {seconds!r}")
    return math.floor(number_of(seconds) * 1000)
