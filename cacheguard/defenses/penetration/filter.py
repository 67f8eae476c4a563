"""The Bloom filter in front of the loader: bits in Redis that all processes share, mirrored in each of them.

"Absent" is said only when it is certain, by these rules:

- The filter in Redis knows whether it is *complete* (every row was added), and of which server: another run or
  replication history may have lost items, so it makes the filter incomplete, and so does a lost chunk.
- A mirror may answer "absent" without asking only while its *lease* lasts. `bloom_sync` grants it, with every item the
  mirror lacked, and notes in Redis when the last one ends.
- Whoever adds an item waits until every lease granted before has ended::

    reader:  sync, granted 50 ms ........ "absent" ... lease over, has to sync, learns of x: "maybe"
    writer:      add x, told to wait 49 ms .................... add returns, row is committed

- Anything else (no filter, no connection, foreign hash functions, a load under way) is "maybe".

Leases are counted by the server's clock there and by the monotonic clock here, from before the question was sent. A
server clock that is set forward may end them early for the adders, by no more than one lease; a machine that was
suspended may trust its mirror for the rest of one.
"""

from __future__ import annotations

import logging
import math
from base64 import urlsafe_b64encode
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Iterator
from contextlib import AbstractContextManager, aclosing, suppress
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from struct import Struct
from typing import Any, Literal

from ...errors import CacheGuardError, ConfigurationError, Unreachable
from ...ports import Command, Reply, Runtime, ScriptCall
from ...protocol.lua import load
from .layout import (
    CHUNK_BYTES,
    HEADER_BYTES,
    LONGEST_TEXT,
    Hashes,
    Layers,
    Shape,
    checked_plan,
    describe,
    hashes_of,
    item_text,
    next_shape,
    parse,
    place,
    positions,
    probe,
)

_ROOM = "defenses/penetration"
ADD, SYNC, GROW, MARK = (load(f"bloom_{name}", _ROOM) for name in ("add", "sync", "grow", "mark"))
BEGIN, SWITCH, ABORT, DAMAGE = (load(f"bloom_{name}", _ROOM) for name in ("begin", "switch", "abort", "damage"))

LOG_LENGTH = 65_536  # items kept so that mirrors, and a rebuild that begins later, learn of them
SYNC_MOST = 4096  # further behind, a mirror loads the filter anew
RECHECK = 1.0  # seconds before a filter that was no help is asked about again
RELOAD = 5.0  # seconds before a load that came to nothing is tried again
REBUILD_ALLOWANCE = 3600.0  # seconds of silence after which a rebuild counts as dead
REBUILD_SIGN = 60.0  # seconds between its signs of life
LONGEST_LEASE = 5.0

_ITEMS_PER_CALL = 50
_PLACES_PER_CALL = 1000
_CALLS_PER_SEND = 8
_CHUNKS_PER_SEND = 64
_COMMANDS_PER_SEND = 512
_ITEMS_PER_BREATH = 1000
_ATTEMPTS = 100
_LOADS = 3
_ALLOWANCE_MS = int(REBUILD_ALLOWANCE * 1000)
_FAIR_BITS = 2**30  # what is in Redis may take 128 MB here, or 64 times what was declared
_FAIR_GROWTH = 64
_NOBODY, _DISCORD = ("", ""), ("-", "-")

_log = logging.getLogger("cacheguard")

Items = Iterable[object] | AsyncIterable[object]
Texts = list[str]
State = Literal["complete", "incomplete", "lost"]

_STATES: dict[str, State] = {"complete": "complete", "incomplete": "incomplete", "damaged": "lost"}


@dataclass(frozen=True, slots=True)
class BloomInfo:
    """What is known of a filter at one moment.

    Args:
        state: ``"complete"``: it can say "absent"; ``"incomplete"``: not yet, or not on this server;
            ``"lost"``: it is gone or lacks bits, only a rebuild helps.
        count: items added that were not there before.
        capacity: items that fit into the layers it has; it grows.
        memory: bytes its bits take, in Redis and again in each process that asks.
    """

    name: str
    state: State
    epoch: str
    count: int
    capacity: int
    error_rate: float
    layers: int
    bits: int
    memory: int


class _Mirror:
    """The bits in this process, and until when they may be trusted to lack nothing."""

    __slots__ = ("epoch", "layers", "seq", "until")

    def __init__(self, epoch: str, layers: Layers, seq: int = 0) -> None:
        self.epoch, self.layers, self.seq = epoch, layers, seq
        self.until = -math.inf


@dataclass(frozen=True, slots=True)
class _News:
    """What `bloom_sync` says."""

    state: str
    run: str
    epoch: str
    seq: int
    layers: str
    probe: str
    count: int
    chunks: int
    items: Texts | None


class _Plan:
    """Where items go: the epoch and the layers of the filter in Redis. Without `shapes`, they are not ours to fill."""

    __slots__ = ("epoch", "fresh", "hashes", "items_per_call", "layers", "probe", "shapes")

    def __init__(self, epoch: str, shapes: tuple[Shape, ...], *, fresh: bool = False) -> None:
        self.epoch, self.shapes, self.fresh = epoch, shapes, fresh
        self.layers = describe(shapes)
        self.probe = probe(shapes[0]) if shapes else ""
        self.hashes: tuple[Hashes, ...] = tuple(map(hashes_of, shapes))
        places = sum(shape.slices for shape in shapes) or 1
        self.items_per_call = max(1, min(_ITEMS_PER_CALL, _PLACES_PER_CALL // places))

    @classmethod
    def foreign(cls, epoch: str, layers: str) -> _Plan:
        plan = cls(epoch, ())
        plan.layers = layers
        return plan


class BloomTier:
    """One named Bloom filter: knows for certain that some items were never added.

    Every coroutine takes the runtime of its caller's door. A reader never sees an error of Redis, it gets "maybe";
    whoever adds gets `Unreachable`, for then nothing was promised.

    Args:
        namespace: filters of one name in different namespaces have nothing in common.
        lock: guards the mirror; held for a few microseconds per item learned.
        shared: false where there is no Redis; then this process's bits are all there is.
        mirror_lease: seconds (at most 5) for which "absent" is answered without asking Redis, and which an add waits at
            most. All processes should use the same. None: every "absent" costs a round trip, and adds never wait.
    """

    def __init__(
        self,
        name: str,
        *,
        capacity: int,
        error_rate: float = 0.001,
        lock: AbstractContextManager[Any],
        namespace: str = "",
        shared: bool = True,
        mirror_lease: float | None = 0.05,
    ) -> None:
        self.name = _checked_name(name)
        self.capacity, self.error_rate = capacity, error_rate
        self.losses = 0
        self._first = checked_plan(capacity, error_rate)
        self._lease = _checked_lease(mirror_lease)
        self._lock = lock
        self._keys = _Keys(namespace, name)
        self._mirror = _Mirror("", Layers(()))
        self._again = -math.inf  # until then "maybe" is answered without asking
        self._loading = False
        self._plan: _Plan | None = None
        self._met = False
        self._witness = _NOBODY
        self._said: set[str] = set()
        self._alone = None if shared else _Alone(self._first)
        if self._alone is not None:
            self._mirror, self._again = self._alone.mirror, math.inf

    def after_fork(self, lock: AbstractContextManager[Any]) -> None:
        """Forget what other threads of the parent were about; the bits stay good, they are asked for again."""
        self._lock = lock
        self._loading = False

    def known(self, item: object, now: float) -> bool | None:
        """True if *item* is certainly absent, False for "maybe", None if only Redis can tell: then ask `absent`.

        Costs no I/O and no lock. *now* is `Runtime.now`, read before the call. Raises `ConfigurationError` for an item
        without a text of its own.
        """
        mirror = self._mirror
        # The order matters when the lease is over and another thread renews it at this moment:
        #   here:   bits lack x ........................... lease is good -> "absent", though x was added long ago
        #   there:              learns of x, renews the lease
        # Read first, an old lease ends the question, and a renewed one has the bits that belong to it.
        until = mirror.until
        if now >= until and now < self._again:
            return False
        text = item if type(item) is str and item.isascii() and len(item) <= LONGEST_TEXT else item_text(item)
        for layer in mirror.layers.filters:
            if text in layer:
                return False
        return True if now < until else None

    async def absent(self, runtime: Runtime, item: object) -> bool:
        """True only if *item* is certainly not among the items added, in any process.

        Costs nothing for what `known` answers, else a round trip; the first time, and after a rebuild elsewhere, the
        whole filter is fetched, while other callers get "maybe".
        """
        text = item_text(item)
        verdict = self.known(text, runtime.now())
        if verdict is not None:
            return verdict
        try:
            mirror = await self._confirm(runtime)
        except (Unreachable, _UnusableError) as error:
            self._rest(runtime, RECHECK)
            if isinstance(error, _UnusableError):
                self._say(str(error))
            return False
        return mirror is not None and not mirror.layers.holds(text)

    async def add_many(self, runtime: Runtime, items: Items) -> None:
        """Make sure that nobody is told that one of *items* is absent; call it before their rows are committed.

        Takes a round trip for 400 items, and in the end as long as mirrors may still go without asking: at most
        `mirror_lease`. Raises `Unreachable` if Redis cannot be asked; then call it again, or do not commit.
        """
        waits_until = -math.inf
        async with aclosing(_batches(items, _ITEMS_PER_CALL * _CALLS_PER_SEND)) as batches:
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
        """Promise that every row that exists was added; from here on "absent" may be answered.

        Meant for the process that added them. Raises `CacheGuardError` if items may have been lost since it did:
        because Redis was restarted, replaced or flushed, or evicted a part of the filter; `Unreachable` as `add_many`.
        """
        if self._alone is not None:
            with self._lock:
                self._alone.complete()
            return
        (reply,) = await runtime.commands.send(MARK(self._keys.meta)(*self._witness))
        self._witness = _NOBODY
        if _text(reply) != "OK":
            raise _refusal(self.name, _text(reply))
        self._again = -math.inf

    async def rebuild(self, runtime: Runtime, items: Items, *, settle: float = 0.0) -> None:
        """Replace the filter by one of *items* and of what is added meanwhile; afterwards it is complete.

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
        settle_ms = _checked_settle(settle)
        if self._alone is not None:
            await self._rebuild_alone(runtime, self._alone, items)
            return
        mirror = await _Rebuild(self._keys, self._first, self._lease, runtime).run(items, settle_ms)
        with self._lock:
            self._mirror, self._again = mirror, -math.inf
        self._plan, self._met = _Plan(mirror.epoch, mirror.layers.shapes), True
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
        except _UnusableError:
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

    # Reading

    async def _confirm(self, runtime: Runtime) -> _Mirror | None:
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

    async def _ask(self, runtime: Runtime, epoch: str, seq: int, lease: int) -> _News:
        (reply,) = await runtime.commands.send(SYNC(self._keys.meta, self._keys.log)(epoch, seq, lease, SYNC_MOST))
        return _news(reply)

    def _learn(self, mirror: _Mirror, news: _News, asked: float) -> bool:
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

    async def _load(self, runtime: Runtime, news: _News) -> _Mirror | None:
        """Fetch the whole filter; None if it changed faster than that, or lacks bits."""
        for _ in range(_LOADS):
            mirror = _Mirror(news.epoch, Layers(self._usable(news)), news.seq)
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

    async def _fetch(self, runtime: Runtime, mirror: _Mirror) -> int:
        """Read every chunk there is into *mirror*; return how many there were."""
        header, found = _header(mirror.epoch), 0
        every = self._keys.chunks(mirror.epoch, mirror.layers.shapes)
        while part := list(islice(every, _CHUNKS_PER_SEND)):
            chunks = await runtime.commands.send(*(("GET", key) for _, _, key in part))
            for (layer, number, _), chunk in zip(part, chunks, strict=True):
                if chunk is not None and chunk[:HEADER_BYTES] == header and len(chunk) == HEADER_BYTES + CHUNK_BYTES:
                    mirror.layers.load(layer, number, chunk[HEADER_BYTES:])
                    found += 1
        return found

    def _usable(self, news: _News) -> tuple[Shape, ...]:
        """The layers of the filter in Redis. Raises `_UnusableError` if this process cannot work with them."""
        if self._mirror.epoch == news.epoch and describe(self._mirror.layers.shapes) == news.layers:
            return self._mirror.layers.shapes
        try:
            shapes = parse(news.layers)
            same = probe(shapes[0]) == news.probe
        except ValueError:
            same, shapes = False, ()
        if not same:
            raise _UnusableError(f"Bloom filter {self.name!r} was built with other hash functions; rebuild it")
        if sum(shape.bits for shape in shapes) > max(_FAIR_BITS, _FAIR_GROWTH * self._first.bits):
            raise _UnusableError(f"Bloom filter {self.name!r} is far larger than declared here; rebuild it")
        return shapes

    def _rest(self, runtime: Runtime, seconds: float) -> None:
        self._again = runtime.now() + seconds

    def _note_shape(self, shapes: tuple[Shape, ...]) -> None:
        if shapes[0] != self._first:
            self._say(
                f"Bloom filter {self.name!r} is declared with capacity={self.capacity}, error_rate={self.error_rate}, "
                f"but the one in Redis was built for {shapes[0].capacity} items; it is used until the next rebuild"
            )

    def _say(self, warning: str) -> None:
        if warning not in self._said:
            self._said.add(warning)
            _log.warning("%s", warning)

    def _lose(self) -> None:
        """Count a filter that this process has worked with and that is not what it was."""
        self._met, self._mirror = False, _Mirror("", Layers(()))
        self.losses += 1
        _log.warning(
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
            plan = self._plan or self._new_plan(runtime)
            size = plan.items_per_call
            parts = [texts[start : start + size] for start in range(0, len(texts), size)]
            # Only the first may create the filter: were it flushed between two calls, the second would create it anew
            # under the same epoch, and nobody could tell that the items of the first are gone.
            replies = await runtime.commands.send(
                *(self._add_call(plan, part, create=plan.fresh and number == 0) for number, part in enumerate(parts))
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

    def _add_call(self, plan: _Plan, texts: Texts, *, create: bool) -> ScriptCall:
        keys: dict[str, int] = {}
        slices = [shape.slices for shape in plan.shapes]
        packed = Struct(f">{2 * sum(slices)}H")
        args: list[str | bytes | int] = []
        for text in texts:
            pairs: list[int] = []
            for layer, (shape, hashes) in enumerate(zip(plan.shapes, plan.hashes, strict=True)):
                for position in positions(shape, hashes, text):
                    chunk, bit = place(position)
                    key = self._keys.chunk(plan.epoch, layer, chunk)
                    pairs += keys.setdefault(key, len(keys) + 4), bit
            args += text, packed.pack(*pairs)
        room, total = (plan.shapes[-1].capacity, _chunks(plan.shapes)) if plan.shapes else (0, 0)
        return ADD(self._keys.meta, self._keys.log, self._keys.side, *keys)(
            plan.epoch,
            _header(plan.epoch),
            plan.layers,
            plan.probe,
            ",".join(map(str, slices)),
            self._lease,
            int(create),
            room,
            total,
            LOG_LENGTH,
            *args,
        )

    def _new_plan(self, runtime: Runtime) -> _Plan:
        return _Plan(_epoch(runtime), (self._first,), fresh=True)

    def _witness_add(self, reply: Reply) -> None:
        """Remember where items went: only if all went to one filter on one server, none was lost on the way."""
        if reply[1]:
            here = _text(reply[4]), _text(reply[3])
            self._witness = here if self._witness in (_NOBODY, here) else _DISCORD

    async def _replan(self, runtime: Runtime, plan: _Plan, replies: list[Reply]) -> None:
        """Something came between: find out where items go now."""
        for reply in replies:
            status = _text(reply[0])
            if status == "NONE":
                self._plan = None
                if self._met:
                    self._lose()
                return
            if status == "STALE":
                self._plan = self._plan_of(_text(reply[4]), _text(reply[5]), _text(reply[6]))
                return
        grown = _Plan(plan.epoch, (*plan.shapes, next_shape(plan.shapes)))
        await runtime.commands.send(
            GROW(self._keys.meta)(
                plan.epoch, plan.layers, grown.layers, grown.shapes[-1].capacity, _chunks(grown.shapes)
            )
        )
        self._plan = grown

    def _plan_of(self, epoch: str, layers: str, expected: str) -> _Plan:
        try:
            shapes = parse(layers)
        except ValueError:
            return _Plan.foreign(epoch, layers)
        return _Plan(epoch, shapes) if probe(shapes[0]) == expected else _Plan.foreign(epoch, layers)

    async def _rebuild_alone(self, runtime: Runtime, alone: _Alone, items: Items) -> None:
        with self._lock:
            mine = alone.begin()
        layers = Layers((self._first,))
        async with aclosing(_batches(items, _ITEMS_PER_BREATH)) as batches:
            async for texts in batches:
                for text in texts:
                    layers.add(text)
                await runtime.sleep(0)
        with self._lock:
            if not alone.switch(mine, layers):
                raise _refusal(self.name, "OVERTAKEN")
            self._mirror = alone.mirror


class _Rebuild:
    """One rebuild in Redis, from its beginning to its switch."""

    def __init__(self, keys: _Keys, first: Shape, lease: int, runtime: Runtime) -> None:
        self._keys, self._first, self._lease, self._runtime = keys, first, lease, runtime
        self._epoch = _epoch(runtime)
        self._layers = Layers((first,))
        self._uploaded = 0  # layers whose chunks are in Redis
        self._taken = 0  # items taken over from those who added meanwhile
        self._heard = runtime.now()

    async def run(self, items: Items, settle_ms: int) -> _Mirror:
        """Build, upload, switch; returns the mirror of the new filter."""
        pause, replaced = await self._begin(settle_ms)
        try:
            await self._pause(pause)
            await self._gather(items)
            while await self._follow():
                pass
            seq, *old = await self._switch()
        except Exception:
            with suppress(Unreachable):
                await self._runtime.commands.send(ABORT(self._keys.meta, self._keys.side)(self._epoch))
            raise
        await self._keep()
        for epoch, layers in [*replaced, old]:
            with suppress(Unreachable, ValueError):  # then the next rebuild does it, or nobody can tell what is there
                await self._discard(epoch, layers)
        return _Mirror(self._epoch, self._layers, seq)

    async def _begin(self, settle_ms: int) -> tuple[float, list[list[str]]]:
        """Seconds to wait before the rows are read, and what earlier rebuilds left behind."""
        plan = _Plan(_epoch(self._runtime), (self._first,))
        (reply,) = await self._runtime.commands.send(
            BEGIN(self._keys.meta, self._keys.log, self._keys.side)(
                self._epoch,
                _ALLOWANCE_MS,
                settle_ms,
                LOG_LENGTH,
                plan.epoch,
                plan.layers,
                plan.probe,
                self._first.capacity,
                self._first.chunks,
                self._lease,
            )
        )
        if _text(reply[0]) != "OK":
            raise _refusal(self._keys.name, _text(reply[0]))
        old = [_text(part) for part in reply[2:]]
        pause = (reply[1] + 1) / 1000 if reply[1] else 0.0
        return pause, [old[start : start + 2] for start in range(0, len(old), 2)]

    async def _pause(self, seconds: float) -> None:
        while seconds > 0:
            await self._runtime.sleep(min(seconds, REBUILD_SIGN))
            seconds -= REBUILD_SIGN
            await self._follow()

    async def _gather(self, items: Items) -> None:
        async with aclosing(_batches(items, _ITEMS_PER_BREATH)) as batches:
            async for texts in batches:
                for text in texts:
                    self._layers.add(text)
                if self._runtime.now() - self._heard >= REBUILD_SIGN:
                    await self._follow()
                await self._runtime.sleep(0)

    async def _follow(self) -> bool:
        """Take over what others added; false if that was nothing."""
        _, texts = await self._step()
        await self._take_over(texts)
        return bool(texts)

    async def _switch(self) -> tuple[int, str, str]:
        while True:
            # In Redis before the switch, not with it: whoever loads the new filter must find every bit.
            await self._upload()
            shapes = self._layers.shapes
            outcome, *rest = await self._step(
                describe(shapes),
                probe(shapes[0]),
                self._layers.count,
                self._layers.filled,
                shapes[-1].capacity,
                _chunks(shapes),
            )
            if outcome == "SWITCHED":
                return rest[0], _text(rest[1]), _text(rest[2])
            await self._take_over(rest[0])

    async def _step(self, *switch: str | int) -> list[Any]:
        (reply,) = await self._runtime.commands.send(
            SWITCH(self._keys.meta, self._keys.log, self._keys.side)(
                self._epoch, _ALLOWANCE_MS, self._taken, _ITEMS_PER_BREATH, *switch
            )
        )
        self._heard = self._runtime.now()
        outcome = _text(reply[0])
        if outcome not in ("BEHIND", "SWITCHED"):
            raise _refusal(self._keys.name, outcome)
        return [outcome, *reply[1:]]

    async def _take_over(self, texts: list[Reply]) -> None:
        bits: list[Command] = []
        for text in texts:
            for position in self._layers.add(_text(text)):
                layer = len(self._layers.shapes) - 1
                if layer < self._uploaded:
                    chunk, bit = place(position)
                    bits.append(("SETBIT", self._keys.chunk(self._epoch, layer, chunk), bit, 1))
        await self._send_in_parts(bits, _COMMANDS_PER_SEND)
        self._taken += len(texts)

    async def _upload(self) -> None:
        header, lifetime = _header(self._epoch), 2 * _ALLOWANCE_MS
        for layer in range(self._uploaded, len(self._layers.shapes)):
            await self._send_in_parts(
                (
                    (
                        "SET",
                        self._keys.chunk(self._epoch, layer, number),
                        header + self._layers.chunk(layer, number),
                        "PX",
                        lifetime,
                    )
                    for number in range(self._layers.shapes[layer].chunks)
                ),
                _CHUNKS_PER_SEND,
            )
            self._uploaded = layer + 1

    async def _keep(self) -> None:
        every = self._keys.chunks(self._epoch, self._layers.shapes)
        await self._send_in_parts((("PERSIST", key) for _, _, key in every), _COMMANDS_PER_SEND)

    async def _discard(self, epoch: str, layers: str) -> None:
        """Remove a replaced filter's chunks, a few at a time."""
        every = self._keys.chunks(epoch, parse(layers))
        await self._send_in_parts((("UNLINK", key) for _, _, key in every), _COMMANDS_PER_SEND)
        await self._runtime.commands.send(("HDEL", self._keys.meta, f"old:{epoch}"))

    async def _send_in_parts(self, commands: Iterable[Command], size: int) -> None:
        every = iter(commands)
        while part := list(islice(every, size)):
            await self._runtime.commands.send(*part)


class _Alone:
    """The filter of a process without Redis. Its methods are called with the tier's lock held."""

    __slots__ = ("_rebuild", "_recent", "_side", "mirror")

    def __init__(self, first: Shape) -> None:
        self.mirror = _Mirror("", Layers((first,)))
        self._recent: deque[str] = deque(maxlen=LOG_LENGTH)
        self._side: Texts = []
        self._rebuild: object = None

    def add(self, texts: Texts) -> None:
        for text in texts:
            self.mirror.layers.add(text)
        self._recent.extend(texts)
        if self._rebuild is not None:
            self._side.extend(texts)

    def complete(self) -> None:
        self.mirror.until = math.inf

    def begin(self) -> object:
        self._rebuild, self._side = object(), list(self._recent)
        return self._rebuild

    def switch(self, rebuild: object, layers: Layers) -> bool:
        """False if another rebuild began since."""
        if rebuild is not self._rebuild:
            return False
        for text in self._side:
            layers.add(text)
        self._rebuild, self._side = None, []
        self.mirror = _Mirror("", layers)
        self.complete()
        return True


class _Keys:
    """A filter's keys: one slot, chosen by a digest, never by what the user wrote."""

    __slots__ = ("_prefix", "log", "meta", "name", "side")

    def __init__(self, namespace: str, name: str) -> None:
        self.name = name
        self._prefix = filter_prefix(namespace, name)
        self.meta, self.log, self.side = f"{self._prefix}:m", f"{self._prefix}:l", f"{self._prefix}:s"

    def chunk(self, epoch: str, layer: int, number: int) -> str:
        return f"{self._prefix}:{epoch}:{layer}:{number}"

    def chunks(self, epoch: str, shapes: tuple[Shape, ...]) -> Iterator[tuple[int, int, str]]:
        """Layer, number and key of every chunk there may be."""
        for layer, shape in enumerate(shapes):
            for number in range(shape.chunks):
                yield layer, number, self.chunk(epoch, layer, number)


def filter_prefix(namespace: str, name: str) -> str:
    """What the keys of a filter begin with; *namespace* has the names from the root down, with slashes between."""
    owner = f"{len(namespace)}:{namespace}{name}".encode("utf-8", "surrogatepass")
    return f"cg:{{b:{blake2b(owner, digest_size=10).hexdigest()}}}"


class _UnusableError(Exception):
    """What is in Redis is not a filter that this process can work with."""


_REASONS = {
    "NONE": "there is none in Redis yet, or it was lost; add every row's item first, or rebuild it",
    "DAMAGED": "Redis lost a part of it; rebuild it",
    "CHANGED": (
        "it was lost, or Redis was restarted or replaced, since this process began to add, so items may be missing; "
        "add every item again and then mark it, or rebuild it"
    ),
    "BLIND": "this Redis user may not run INFO, so a restart that loses items would go unnoticed; allow +info",
    "OVERTAKEN": "another rebuild began later and takes its place, or this one was silent for an hour",
    "LOST": "Redis was restarted or flushed, or evicted keys, during the rebuild; rebuild it again",
}


def _refusal(name: str, outcome: str) -> CacheGuardError:
    return CacheGuardError(f"Bloom filter {name!r} was not made complete: {_REASONS[outcome]}")


def _checked_name(name: object) -> str:
    if not isinstance(name, str) or not name:
        raise ConfigurationError(f"the name of a Bloom filter must be a non-empty str, got {name!r}")
    return name


def _checked_lease(seconds: object) -> int:
    """A lease in whole milliseconds."""
    if seconds is None:
        return 0
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= LONGEST_LEASE:
        raise ConfigurationError(f"mirror_lease must be None or seconds from 0 to {LONGEST_LEASE}, got {seconds!r}")
    return math.floor(seconds * 1000)


def _checked_settle(seconds: object) -> int:
    """A time to settle in whole milliseconds."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= REBUILD_ALLOWANCE:
        raise ConfigurationError(f"settle must be seconds from 0 to {REBUILD_ALLOWANCE:.0f}, got {seconds!r}")
    return math.ceil(seconds * 1000)


async def _batches(items: Items, size: int) -> AsyncGenerator[Texts]:
    """The texts of *items*, so many at a time, without repetition inside a batch."""
    if isinstance(items, str | bytes | bytearray):
        raise ConfigurationError(f"expected an iterable of Bloom filter items, got one {type(items).__name__}")
    batch: dict[str, None] = {}
    if isinstance(items, AsyncIterable):
        async for item in items:
            batch[item_text(item)] = None
            if len(batch) >= size:
                yield list(batch)
                batch.clear()
    else:
        for item in items:
            batch[item_text(item)] = None
            if len(batch) >= size:
                yield list(batch)
                batch.clear()
    if batch:
        yield list(batch)


def _news(reply: Reply) -> _News:
    try:
        state, run, *rest = reply
        if _text(state) == "none":
            return _News("none", _text(run), "", 0, "", "", 0, 0, None)
        epoch, seq, layers, probe_text, count, chunks, items = rest
        return _News(
            state=_text(state),
            run=_text(run),
            epoch=_text(epoch),
            seq=int(seq),
            layers=_text(layers),
            probe=_text(probe_text),
            count=int(count),
            chunks=int(chunks),
            items=None if items is None else [_text(item) for item in items],
        )
    except (TypeError, ValueError) as error:
        raise _UnusableError(f"what Redis keeps is not a Bloom filter: {error}") from error


def _text(reply: Reply) -> str:
    return reply if isinstance(reply, str) else bytes(reply or b"").decode("utf-8", "replace")


def _header(epoch: str) -> bytes:
    return epoch.encode()


def _epoch(runtime: Runtime) -> str:
    """A new epoch: 48 random bits as `HEADER_BYTES` characters."""
    return urlsafe_b64encode(blake2b(runtime.token().encode(), digest_size=6).digest()).decode()


def _chunks(shapes: tuple[Shape, ...]) -> int:
    return sum(shape.chunks for shape in shapes)
