"""A filter that processes share: its bits are in Redis, and mirrored in this process."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any

from ...errors import CacheGuardError
from ...events import Events
from ...ports import Reply, Runtime
from .adding import Plan, add_call, grow_call
from .bits import Layers, Mirror
from .info import BloomInfo, State, info_of
from .items import Made, Texts
from .layout import CHUNK_BYTES, FIRST_SHARE, HEADER_BYTES, Shape, describe, parse, probe
from .rebuild import Begin, Rebuild
from .signatures import is_signed
from .stored import (
    CHUNKS_PER_SEND,
    DAMAGE,
    MARK,
    SYNC,
    Keys,
    News,
    Refusal,
    UnusableError,
    header_of,
    news_of,
    text_of,
)

SYNC_MOST = 4096  # further behind, a mirror loads the filter anew
RECHECK = 1.0  # seconds before a filter that was no help is asked about again
RELOAD = 5.0  # seconds before a load that came to nothing is tried again

ATTEMPTS = 100
_LOADS = 3
_FAIR_BITS = 2**30  # what is in Redis may take 128 MB here, or 64 times what was declared
_FAIR_GROWTH = 64
NOBODY, DISCORD = ("", ""), ("-", "-")

STATES: dict[str, State] = {"complete": "complete", "incomplete": "incomplete", "damaged": "lost"}

Lost = Callable[[Runtime, str], Awaitable[None]]


class Shared:
    """One filter in Redis and its mirror here.

    Args:
        first: its first layer, if this process makes it.
        lease: milliseconds for which the mirror answers without asking.
        lock: guards the mirror.
        lost: told when the filter was lost, and why.
    """

    def __init__(
        self,
        keys: Keys,
        first: Shape,
        lease: int,
        lock: AbstractContextManager[Any],
        events: Events,
        lost: Lost,
    ) -> None:
        self.mirror: Mirror = Mirror("", Layers(()))
        self.again: float = -math.inf  # until then "maybe" is answered without asking
        self.lock: AbstractContextManager[Any] = lock
        self._keys, self._first, self._lease, self._events, self._lost = keys, first, lease, events, lost
        self._loading = False
        self._plan: Plan | None = None
        self._met = False  # it was there when this process last heard of it
        self._whole = False  # and complete
        self._witness = NOBODY

    def after_fork(self, lock: AbstractContextManager[Any]) -> None:
        """Forget what other threads of the parent were about; the bits stay good, they are asked for again."""
        self.lock = lock
        self._loading = False

    def rest(self, runtime: Runtime, seconds: float) -> None:
        """Answer "maybe" without asking for some time."""
        self.again = runtime.now() + seconds

    # Reading

    async def confirm(self, runtime: Runtime) -> Mirror | None:
        """The mirror, if this round trip makes it certain that it lacks nothing; else None. Raises `Unreachable`."""
        try:
            return await self._confirm(runtime)
        except UnusableError as error:
            self.rest(runtime, RECHECK)
            if self._events.first(f"{self._keys.name} {error}") or self._whole:
                await self._lose(runtime, str(error))
            return None

    async def _confirm(self, runtime: Runtime) -> Mirror | None:
        mirror = self.mirror
        tail, asked = mirror.tail, runtime.now()
        news = await self._ask(runtime, mirror.epoch, tail[0], self._lease)
        if self._learn(mirror, tail, news, asked):
            return mirror
        if news.state != "complete":
            if self._whole:
                await self._lose(runtime)
            self.rest(runtime, RECHECK)
            return None
        with self.lock:
            if self._loading:
                return None
            self._loading = True
        try:
            loaded = await self._load(runtime, news)
        finally:
            self._loading = False
        if loaded is None:
            self.rest(runtime, RELOAD)
        return loaded

    async def _ask(self, runtime: Runtime, epoch: str, seq: int, lease: int) -> News:
        (reply,) = await runtime.commands.send(SYNC(self._keys.meta, self._keys.log)(epoch, seq, lease, SYNC_MOST))
        return news_of(reply)

    def _learn(self, mirror: Mirror, tail: tuple[int, bytes], news: News, asked: float) -> bool:  # noqa: ARG002 - the signed one needs it
        """Put what is new into *mirror*, then trust it as far as it was granted; False if it is of no use for that."""
        if news.state != "complete" or news.items is None or news.epoch != mirror.epoch:
            return False
        shapes = self._usable(news)
        with self.lock:
            for shape in shapes[len(mirror.layers.shapes) :]:
                mirror.layers.append(shape)
            for item in news.items:
                mirror.layers.put(text_of(item))
            mirror.tail = (max(mirror.tail[0], news.seq), b"")
            self._trust(mirror, asked)
        return True

    def _trust(self, mirror: Mirror, asked: float) -> None:
        if self._lease:
            mirror.until = max(mirror.until, asked + self._lease / 1000)
        self._met = self._whole = True
        self.again = -math.inf

    async def _load(self, runtime: Runtime, news: News) -> Mirror | None:
        """Fetch the whole filter; None if it changed faster than that, or lacks bits."""
        for _ in range(_LOADS):
            mirror = Mirror(news.epoch, Layers(self._usable(news)), (news.seq, b""))
            found = await self._fetch(runtime, mirror)
            asked = runtime.now()
            later = await self._ask(runtime, mirror.epoch, news.seq, self._lease)
            # As many chunks found as were ever made: then none was evicted, not even to be made again since.
            if later.chunks == found and self._learn(mirror, mirror.tail, later, asked):
                with self.lock:
                    self.mirror = mirror
                self._note_shape(mirror.layers.shapes)
                return mirror
            if found < news.chunks and later.epoch == news.epoch:
                await self._damage(runtime, news.epoch)
                return None
            if later.state != "complete":
                return None
            news = later
        return None

    async def _damage(self, runtime: Runtime, epoch: str) -> None:
        """Tell everybody that bits are missing."""
        await runtime.commands.send(DAMAGE(self._keys.meta)(epoch))
        await self._lose(runtime)

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
        if self.mirror.epoch == news.epoch and describe(self.mirror.layers.shapes) == news.layers:
            return self.mirror.layers.shapes
        if is_signed(news.layers):
            raise UnusableError("is signed, and this guard has no secret")
        try:
            shapes = parse(news.layers)
        except ValueError:
            shapes = ()
        return self._checked(shapes, news)

    def _checked(self, shapes: tuple[Shape, ...], news: News) -> tuple[Shape, ...]:
        if not shapes or probe(shapes[0]) != news.probe:
            raise UnusableError("was built with other hash functions")
        if sum(shape.bits for shape in shapes) > max(_FAIR_BITS, _FAIR_GROWTH * self._first.bits):
            raise UnusableError("is far larger than declared here")
        return shapes

    def _note_shape(self, shapes: tuple[Shape, ...]) -> None:
        first = self._first
        if shapes[0] != first:
            rate = f"{first.error_rate / FIRST_SHARE:.6g}"
            warning = (
                f"Bloom filter {self._keys.name!r} is declared with capacity={first.capacity}, error_rate={rate}, but "
                f"the one in Redis was built for {shapes[0].capacity} items; it is used until the next rebuild"
            )
            self._events.once(warning, "%s", warning)

    async def _lose(self, runtime: Runtime, why: str = "was lost, or Redis was restarted or replaced") -> None:
        """Note that a filter which this process has worked with is not what it was."""
        self._met = self._whole = False
        self.mirror = Mirror("", Layers(()))
        await self._lost(runtime, why)

    # Adding

    async def add(self, runtime: Runtime, texts: Texts) -> float:
        """Add *texts* in Redis; return until when mirrors may not know of them."""
        self._note(texts)
        waits_until = -math.inf
        for _ in range(ATTEMPTS):
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
                if reply[1]:
                    self._witness_add(text_of(reply[4]), text_of(reply[3]))
                if reply[2] > 0:
                    waits_until = max(waits_until, answered + (reply[2] + 1) / 1000)
            if not texts:
                plan.fresh = False
                self._plan, self._met = plan, True
                return waits_until
            await self._replan(runtime, plan, replies)
        raise self._gave_up()

    def _note(self, texts: Texts) -> None:
        """Never deny, in this process, what it is about to add."""
        with self.lock:
            for text in texts if self.mirror.layers.filters else ():
                self.mirror.layers.put(text)

    def _gave_up(self) -> CacheGuardError:
        return CacheGuardError(f"Bloom filter {self._keys.name!r} kept changing while items were added; try again")

    def _witness_add(self, filled: str, server: str) -> None:
        """Remember where items went: only if all went to one filter on one server, none was lost on the way."""
        self._witness = (filled, server) if self._witness in (NOBODY, (filled, server)) else DISCORD

    async def _replan(self, runtime: Runtime, plan: Plan, replies: list[Reply]) -> None:
        """Something came between: find out where items go now."""
        for reply in replies:
            status = text_of(reply[0])
            if status == "NONE":
                self._plan = None
                if self._met:
                    await self._lose(runtime)
                return
            if status == "STALE":
                self._plan = Plan.read(text_of(reply[4]), text_of(reply[5]), text_of(reply[6]))
                return
        grown = plan.grown()
        await runtime.commands.send(grow_call(plan, grown, self._keys))
        self._plan = grown

    async def mark_complete(self, runtime: Runtime) -> None:
        """Declare that every existing row was added."""
        await self._mark(runtime, *self._witness, "")

    async def _mark(self, runtime: Runtime, epoch: str, server: str, seal: str) -> None:
        (reply,) = await runtime.commands.send(MARK(self._keys.meta)(epoch, server, seal))
        self._witness = NOBODY
        if text_of(reply) != "OK":
            raise Refusal(self._keys.name, text_of(reply))
        self.again = -math.inf

    # Building

    async def whole(self, runtime: Runtime) -> tuple[bool, str]:
        """Whether the filter in Redis is complete and of use here, and its epoch. One round trip."""
        epoch = "-"
        try:
            news = await self._ask(runtime, "", 0, 0)
            epoch = news.epoch
            whole = news.state == "complete" and self._is_sound(news)
        except UnusableError:
            return False, epoch
        if whole:
            self._met = self._whole = True
            self.again = -math.inf
        return whole, news.epoch

    def _is_sound(self, news: News) -> bool:
        self._usable(news)
        return True

    async def rebuild(self, runtime: Runtime, items: Made, begin: Begin) -> None:
        """Replace the filter by one of *items* and of everything added meanwhile."""
        mirror = await Rebuild(self._keys, self._first, self._lease, runtime).run(items, begin)
        self._plan = Plan(mirror.epoch, mirror.layers.shapes)
        self._adopt(mirror)

    def _adopt(self, mirror: Mirror) -> None:
        with self.lock:
            self.mirror, self.again = mirror, -math.inf
        self._met = self._whole = True
        self._witness = NOBODY

    async def info(self, runtime: Runtime) -> BloomInfo:
        """The filter as it is now; one round trip."""
        try:
            news = await self._ask(runtime, "", 0, 0)
            if news.state == "none":
                return info_of(self._keys.name, "lost" if self._met else "incomplete", self._first)
            return self._info(news)
        except UnusableError:
            return info_of(self._keys.name, "lost", self._first)

    def _info(self, news: News) -> BloomInfo:
        shapes = self._usable(news)
        return info_of(self._keys.name, STATES[news.state], self._first, news.epoch, news.count, shapes)
