"""The Bloom filter in front of the loader: bits in Redis that all processes share, mirrored in each of them.

The answer is "absent" only when that is certain, by these rules:

- The filter in Redis knows whether it is *complete* (every row was added), and of which server: another run or
  replication history may have lost items, so it makes the filter incomplete, and so does a lost chunk.
- A mirror may answer "absent" without asking only while its *lease* lasts. `bloom_sync` grants it, with every item the
  mirror lacked, and notes in Redis when the last one ends.
- An `add` waits until every lease granted before it has ended::

    reader:  sync, granted 50 ms ........ "absent" ... lease over, has to sync, learns of x: "maybe"
    writer:      add x, told to wait 49 ms .................... add returns, row is committed

- Anything else (no filter, no connection, foreign hash functions, a wrong signature, a load under way, items that wait
  to be added) is "maybe".

Leases are counted by the server's clock there and by the monotonic clock here, from before the question was sent. A
server clock that is set forward may end them early for the adders, by no more than one lease; a machine that was
suspended may trust its mirror for the rest of one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, aclosing
from functools import partial
from typing import Any

from ...checks import number_of
from ...errors import CacheGuardError, ConfigurationError, Unreachable
from ...events import Events, log
from ...ports import Home, Runtime
from .adding import ITEMS_PER_CALL
from .alone import Alone
from .bits import Mirror
from .info import BloomInfo, Ensured
from .items import Items, Made, Texts, batches_of, text_to_ask
from .layout import checked_plan
from .rebuild import SILENCE, Begin, checked_lag
from .shared import RECHECK, Shared
from .signed import Signed
from .stored import Keys, Refusal

LONGEST_LEASE = 5.0
MOST_QUEUED = 100_000  # items that wait for Redis
QUEUE_REST = 3.0  # seconds after a failure in which a filter whose adds may wait says "maybe"
POLLS = (0.05, 0.5)  # seconds between looks at the rebuild of another process: the first, and at most

_CALLS_PER_SEND = 8
_FIRST_TRY, _LONGEST_PAUSE = 0.05, 0.5  # seconds between attempts to add what waits


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
        secrets: the filter is signed with the first of them; all are good for what is read.
        queues: true: what cannot be added because Redis is unreachable is added later.
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
        secrets: Sequence[bytes] = (),
        queues: bool = False,
    ) -> None:
        self.name: str = _checked_name(name)
        self.capacity, self.error_rate = capacity, error_rate
        self.queues: bool = queues
        first, lease = checked_plan(capacity, error_rate), _checked_lease(mirror_lease)
        self._lock, self._events, self._lease = lock, events, lease
        self._hooks: dict[int, tuple[object, Callable[[], object]]] = {}
        self._waiting: dict[str, None] = {}  # items that are to be added once Redis answers
        self._delivering = False
        self._builders: list[Home] = []  # where it is being built, in this process
        self._rests = QUEUE_REST if queues else RECHECK
        keys = Keys(namespace, name)
        kind = partial(Signed, secrets=secrets) if secrets else Shared
        self._held: Shared | Alone = (
            kind(keys, first, lease, lock, events, self._lost) if shared else Alone(name, first, lock)
        )

    def after_fork(self, lock: AbstractContextManager[Any]) -> None:
        """Forget what other threads of the parent were about; the bits stay good, they are asked for again."""
        self._lock = lock
        self._delivering = False
        self._builders.clear()
        self._held.after_fork(lock)

    def on_lost(self, whose: object, hook: Callable[[], object]) -> None:
        """Call *hook* whenever this process finds the filter lost; one for each *whose*."""
        self._hooks[id(whose)] = (whose, hook)

    async def _lost(self, runtime: Runtime, why: str) -> None:
        self._events.bloom_losses += 1
        log.warning("Bloom filter %r %s; it answers 'maybe' until it is rebuilt", self.name, why)
        for _, hook in list(self._hooks.values()):
            if not await runtime.start(self._call(runtime, hook), detached=True):
                log.warning("on_lost of Bloom filter %r was not called: there is no thread for it", self.name)

    async def _call(self, runtime: Runtime, hook: Callable[[], object]) -> None:
        try:
            await runtime.call(hook)
        except Exception:  # noqa: BLE001 - whatever it is, it is not the reader's
            log.exception("on_lost of Bloom filter %r failed", self.name)

    # Reading

    def known(self, item: object, now: float) -> bool | None:
        """True if *item* is certainly absent, False for "maybe", None if only Redis can tell: then ask `absent`.

        Costs no I/O and no lock. *now* is `Runtime.now`, read before the call.
        """
        held = self._held
        mirror = held.mirror
        # The order matters when the lease is over and another thread renews it at this moment:
        #   here:   bits lack x ........................... lease is good -> "absent", though x was added long ago
        #   there:              learns of x, renews the lease
        # Read first, an old lease ends the question, and a renewed one has the bits that belong to it.
        until = mirror.until
        if now >= until and now < held.again:
            return False
        text = text_to_ask(item)
        if text is None:
            return False
        for layer in mirror.layers.filters:
            if text in layer:
                return False
        if self._waiting:
            return False if now < held.again else None
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
            await self._deliver(runtime)
            mirror = await self._held.confirm(runtime)
        except Unreachable:
            self._held.rest(runtime, self._rests)
            return False
        return self._denies(mirror, text)

    def _denies(self, mirror: Mirror | None, text: str) -> bool:
        return mirror is not None and not self._waiting and not mirror.layers.holds(text)

    # Adding

    async def add_many(self, runtime: Runtime, items: Items) -> None:
        """Add *items*, so that no process answers "absent" for them. Call it before their rows are committed.

        Costs a round trip per 400 items. Then it waits until the mirrors' leases have ended: at most `mirror_lease`.
        Raises `Unreachable` if Redis cannot be reached; then call it again, or do not commit. If the filter *queues*,
        it returns instead, and what was not added is added as soon as Redis answers.
        """
        waits_until = -math.inf
        async with aclosing(batches_of(items, ITEMS_PER_CALL * _CALLS_PER_SEND)) as batches:
            async for texts in batches:
                waits_until = max(waits_until, await self._add(runtime, texts))
        pause = waits_until - runtime.now()
        if pause > 0:
            await runtime.sleep(pause)

    async def _add(self, runtime: Runtime, texts: Texts) -> float:
        try:
            await self._deliver(runtime)
            return await self._held.add(runtime, texts)
        except Unreachable:
            self._held.rest(runtime, self._rests)
            if not self.queues:
                raise
            with self._lock:
                if len(self._waiting) + len(texts) > MOST_QUEUED:
                    raise
                self._waiting.update(dict.fromkeys(texts))
            self._events.once(
                f"{self.name} waits",
                "items for Bloom filter %r wait in this process until Redis answers; processes that reach Redis may "
                "answer 'absent' for them",
                self.name,
            )
        await self._deliver_later(runtime)
        return runtime.now() + self._lease / 1000

    async def _deliver(self, runtime: Runtime) -> None:
        """Add what waits. Raises `Unreachable`."""
        while self._waiting:
            texts = list(self._waiting)[: ITEMS_PER_CALL * _CALLS_PER_SEND]
            await self._held.add(runtime, texts)
            with self._lock:
                for text in texts:
                    self._waiting.pop(text, None)

    async def _deliver_later(self, runtime: Runtime) -> None:
        with self._lock:
            if self._delivering:
                return
            self._delivering = True
        if not await runtime.start(self._keep_trying(runtime), detached=True):
            self._delivering = False  # then the next use of the filter does it

    async def _keep_trying(self, runtime: Runtime) -> None:
        pause = _FIRST_TRY
        try:
            while not self._all_delivered():
                over = self._events.over  # looked at before the last attempt
                try:
                    await self._deliver(runtime)
                except CacheGuardError:
                    if over:
                        return
                    await runtime.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE)
        finally:
            self._delivering = False
            if self._waiting and self._events.over:
                log.error(
                    "%d items were not added to Bloom filter %r before the guard was closed: other processes may "
                    "answer 'absent' for them until it is rebuilt",
                    len(self._waiting),
                    self.name,
                )

    def _all_delivered(self) -> bool:
        with self._lock:
            self._delivering = bool(self._waiting)
            return not self._waiting

    # Building

    async def mark_complete(self, runtime: Runtime) -> None:
        """Declare that every existing row was added. From now on the filter may answer "absent".

        Call it in the process that added the rows. Raises `CacheGuardError` if items may have been lost since then,
        because Redis was restarted, replaced or flushed, or evicted a part of the filter; `Unreachable` as `add_many`.
        """
        await self._deliver(runtime)
        await self._held.mark_complete(runtime)

    async def rebuild(self, runtime: Runtime, items: Made, *, settle: float = 0.0) -> None:
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
                of it, and for a lease at least, before it reads *items*. A signed filter always waits.
        """
        await self._deliver(runtime)
        await self._build(runtime, items, Begin(checked_lag(settle)))

    async def ensure(self, runtime: Runtime, items: Made, *, settle: float = 0.0, wait: float = 0.0) -> Ensured:
        """`rebuild`, unless the filter is complete or another process is at it: then wait for that one.

        Never raises because another process rebuilds or Redis is away. Who rebuilds and is silent for 10 s counts as
        dead, and one of those who wait takes over.
        """
        lag_ms, until = checked_lag(settle), runtime.now() + wait
        spent, pause = False, POLLS[0]
        while True:
            try:
                await self._deliver(runtime)
                whole, epoch = await self._held.whole(runtime)
                if whole:
                    return "complete"
                if not spent:
                    spent = not callable(items) and iter_is_self(items)
                    await self._build(runtime, items, Begin(lag_ms, int(SILENCE * 1000), epoch))
                    return "complete"
            except Unreachable:
                self._held.rest(runtime, self._rests)
                return "unreachable"
            except Refusal as refusal:
                if refusal.outcome in ("BUSY", "CHANGED"):
                    spent = False  # nothing was read yet
                elif refusal.outcome not in ("OVERTAKEN", "LOST"):
                    raise
            left = until - runtime.now()
            if left <= 0 or self._waits_for_itself(runtime):
                return "incomplete"
            await runtime.sleep(min(pause, left))
            pause = min(1.5 * pause, POLLS[1])

    async def _build(self, runtime: Runtime, items: Made, begin: Begin) -> None:
        home = runtime.here()
        if home is not None:
            self._builders.append(home)
        try:
            await self._held.rebuild(runtime, items, begin)
        finally:
            if home is not None:
                self._builders.remove(home)

    def _waits_for_itself(self, runtime: Runtime) -> bool:
        """True if the filter is being built by a task of the event loop that this caller has stopped."""
        here = runtime.here()
        return here is not None and any(each.held_up_by(here) for each in list(self._builders))

    async def info(self, runtime: Runtime) -> BloomInfo:
        """The filter as it is now; one round trip. Raises `Unreachable`."""
        return await self._held.info(runtime)


def iter_is_self(items: object) -> bool:
    """True if *items* can be read only once."""
    return getattr(items, "__next__", None) is not None or getattr(items, "__anext__", None) is not None


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
