"""L2 without Redis: the same protocol in this process, for ``memory://`` and for ``l2=False``.

It answers the calls of the remote tier exactly as a server running our scripts would, so the engine above has one way
of working, and a schedule that is safe here is safe there.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from ..errors import Refused
from ..ports import Call, Command, Commands, Reply, ScriptCall
from . import messages
from .calls import ALWAYS, FLOOR_MS
from .glob import glob
from .layout import NONCE_BYTES, Record
from .names import is_marker
from .state import State, proves, same_names

LEAST_MARKERS = 10_000
MOST_CLAIMED, LEAST_CLAIMED = 10_000, 1000
BYTES_OF_CLAIMS = 1000  # of one key, about
_GRANTED = 4  # parts of a lease; behind them the version and the names of the quarantine that it was granted in


class MemoryCommands:
    """Entries under their keys; the least recently used goes when there are more than *size*.

    A value goes, but the claims of its key (fence, quarantine, floor, lease, …) stay until their own ends, for the last
    10,000 such keys; with *max_bytes* for fewer.

    Args:
        size: most entries.
        lock: held while a call runs; calls never wait for one another inside.
        now: seconds, monotonic; this is the "server's" clock.
        max_bytes: most bytes, as `weigh` counts the values; None: no bound.
    """

    sorts = True

    def __init__(
        self,
        size: int,
        lock: AbstractContextManager[Any],
        now: Callable[[], float],
        *,
        max_bytes: int | None = None,
        weigh: Callable[[Any], int] = lambda _value: 0,
    ) -> None:
        self._size, self._lock, self._now = size, lock, now
        self._max_bytes, self._weigh = max_bytes, weigh
        self._weights: dict[str, int] = {}
        self._bytes = 0
        self._states: OrderedDict[str, State] = OrderedDict()
        self._claimed: OrderedDict[str, State] = OrderedDict()  # whose values had to go; they take no room from others
        self._most_claimed = MOST_CLAIMED
        if max_bytes is not None:
            self._most_claimed = min(MOST_CLAIMED, max(LEAST_CLAIMED, max_bytes // BYTES_OF_CLAIMS))
        self.woken: Callable[[str], object] = str  # called with a key whose lease is gone that somebody waits for
        self._ended: list[str] = []  # such keys, until the lock is free
        self._markers: MemoryCommands | None = None  # of namespaces and tags; they take no room from the entries

    def after_fork(self, lock: AbstractContextManager[Any]) -> None:
        """Go on with another *lock*, and without leases: in a forked child, who held them does not exist."""
        self._lock = lock
        for key, state in [*self._states.items(), *self._claimed.items()]:
            state.lease = None
            if not state.end():
                self._delete(key)

    away = False

    async def send(self, *calls: Call) -> list[Reply]:
        replies = await self.send_each(*calls)
        for reply in replies:
            if isinstance(reply, Refused):
                raise reply
        return replies

    async def send_each(self, *calls: Call) -> list[Reply]:
        with self._lock:
            replies = [self.run(call) for call in calls]
            ended, self._ended = self._ended, []
        for key in ended:
            self.woken(key)
        return replies

    async def masters(self) -> Sequence[Commands]:
        """The servers whose entries are all there are: this one."""
        return [self]

    def now_ms(self) -> int:
        return math.floor(self._now() * 1000)

    def run(self, call: Call) -> Reply:
        """Answer one call; the lock is held."""
        if not isinstance(call, ScriptCall):
            return self._plain(call)
        now, key = self.now_ms(), call.keys[0]
        if self.sorts and is_marker(key):
            return self._of_markers().run(call)
        state = self._opened(key, now) or State()
        reply = getattr(self, f"_{call.script.name}")(state, now, key, *call.args)
        if state.end() <= now:
            self._delete(key)
        else:
            self._claimed.pop(key, None)
            self._states[key] = state
            self._make_room(key)
        return reply

    def _plain(self, call: Command) -> Reply:
        """Answer a command that is no script."""
        name, now = str(call[0]), self.now_ms()
        if name == "MGET":
            return [self._read(str(key), now) for key in call[1:]]
        if name in {"GET", "GETRANGE"}:  # an object has no beginning
            return self._read(str(call[1]), now)
        if name == "TIME":
            return now // 1000, now % 1000 * 1000
        if name == "SCAN":
            return self._scan(str(call[3]), now)
        if name == "PUBLISH":
            self.publish(str(call[1]), str(call[2]))
            return 0
        return Refused(f"ERR unknown command {name!r}")

    def _read(self, key: str, now: int) -> Record | None:
        if self.sorts and is_marker(key):
            return self._of_markers()._read(key, now)  # noqa: SLF001 - another of this class
        state = self._there(key, now)
        if state is None or not state.holds(
            now
        ):  # as in Redis, a read changes nothing: the version stays beside the value
            return None
        if key in self._states:
            self._states.move_to_end(key)
        return state.raw()

    @property
    def empty(self) -> bool:
        """True if nothing is kept: no value, no lease, nothing noted for later."""
        return not self._states and not self._claimed and (self._markers is None or self._markers.empty)

    def limit(self, key: str, version: str) -> float:
        """For how many seconds a value that is loaded now may be kept; 0: not at all."""
        if self.sorts and is_marker(key):
            return math.inf if self._markers is None else self._markers.limit(key, version)
        with self._lock:
            now = self.now_ms()
            state = self._opened(key, now)
            if state is None:
                return math.inf
            if state.writes or state.is_old(version, b""):
                return 0.0
            end = state.quarantined(version, b"")
            return math.inf if end is None else (end - now) / 1000

    def _of_markers(self) -> MemoryCommands:
        if self._markers is None:
            self._markers = _Markers(self, max(self._size, LEAST_MARKERS), self._lock, self._now)
        return self._markers

    def _make_room(self, key: str) -> None:
        if self._max_bytes is not None:
            weight = self._weigh(self._states[key].value)
            self._bytes += weight - self._weights.get(key, 0)
            self._weights[key] = weight
            if weight > self._max_bytes:
                self._evict(key)
                return
            self._states.move_to_end(key)
        while len(self._states) > self._size or (self._max_bytes is not None and self._bytes > self._max_bytes):
            self._evict(next(iter(self._states)))

    def _evict(self, key: str) -> None:
        """Let go of the value under *key*."""
        state = self._states[key]
        self._delete(key)
        state.strip()
        if state.end() > self.now_ms():
            self._claimed[key] = state
            if len(self._claimed) > self._most_claimed:
                self._claimed.popitem(last=False)

    def _there(self, key: str, now: int) -> State | None:
        """What is under *key*, as it was left; None once all of it is over."""
        state = self._states.get(key) or self._claimed.get(key)
        if state is None or state.end() > now:
            return state
        self._delete(key)  # and with it the version of a value that nobody has seen ending
        return None

    def _opened(self, key: str, now: int) -> State | None:
        """What is under *key* and not over."""
        state = self._there(key, now)
        if state is None:
            return None
        state.open(now)
        if state.end() > now:
            return state
        self._delete(key)
        return None

    def _delete(self, key: str) -> None:
        self._states.pop(key, None)
        self._claimed.pop(key, None)
        self._bytes -= self._weights.pop(key, 0)

    def is_stamp(self, stamp: Any, value: Any) -> bool:
        """Whether *stamp* is what the packing knows *value* by: here, the object itself."""
        return stamp is value

    def _is_usable(self, state: State, unusable: Any) -> bool:
        return state.value is not None and not self.is_stamp(unusable, state.value)

    def publish(self, channel: str, message: str) -> None:
        """Tell those who listen: nobody does, in a process of its own."""

    def _wake(self, lease: list[Any], key: str, channel: str) -> None:
        """Tell those who wait for this *lease* that it is gone, if anybody does."""
        if lease[3]:
            self._ended.append(key)
            self.publish(channel, messages.filled(key))

    def _tell(self, state: State, now: int, key: str, channel: str, echo: str) -> None:
        """Publish what has changed, and what else has to be known of it."""
        quarantine, write = state.quarantine, state.written_until()
        news = messages.Drop(
            key,
            echo,
            quarantine[0] - now if quarantine is not None else 0,
            write - now if write else 0,
            state.floor[2] if state.floor is not None else "",
        )
        self.publish(channel, news.text())

    # The calls, in the order of `calls`

    def _scan(self, pattern: str, now: int) -> Reply:
        """All names that match *pattern*, at once."""
        matches = glob(pattern)
        names = [name for name in [*self._states, *self._claimed] if matches(name) and self._there(name, now)]
        return [b"0", [name.encode("utf-8", "surrogatepass") for name in names]]

    def _mark(self, state: State, now: int, key: str, nonce: bytes, keep: int) -> Reply:  # noqa: ARG002 - as all are called
        if state.value is None:
            state.value, state.fresh, state.span, state.born = nonce + bytes(NONCE_BYTES), 0, 0, now
            state.dead = now + 2 * keep
        elif state.dead - now < keep:
            state.dead = now + 2 * keep
        quarantine = state.quarantine
        left = quarantine[0] - now if quarantine is not None else 0
        beneath = state.beneath[0] - now if state.beneath is not None else 0
        return [state.value[:NONCE_BYTES], state.value[NONCE_BYTES:], left, beneath]

    def _tagged(self, state: State, now: int, _key: str, nonce: bytes, lag: int) -> int:
        if state.value is not None:
            state.value = state.value[:NONCE_BYTES] + nonce
        if lag and (state.beneath is None or state.beneath[0] <= now + lag):
            state.beneath = [now + lag, lag]
        return 1

    def _lease(
        self,
        state: State,
        now: int,
        _key: str,
        token: str,
        lease: int,
        grace: int,
        floor: int,
        awaited: str,
        unusable: Any,
    ) -> Reply:
        usable = self._is_usable(state, unusable)
        raw = state.raw() if usable else None
        if usable and state.is_fresh(now) and state.fresh - now > floor:
            return [b"HIT", now, raw]
        failure = state.failure
        failed = (failure[3], failure[5]) if failure is not None else (0, 0)
        if state.lease is not None and state.lease[2] == token:
            return [b"GRANTED", now, raw, *failed]
        write = state.written_until()
        if write:
            return [b"BYPASS", now, None, write - now]
        if state.lease is not None:
            state.lease[3] = 1
            return [b"WAIT", now, raw, state.lease[0] - now, state.lease[2]]
        if failure is not None:
            paused = failure[0] - failure[1] + failure[5] - now
            if floor >= ALWAYS:
                state.failure, failed = None, (0, 0)
            elif paused > 0 or (awaited and failure[2] == awaited):
                return [b"FAILED", now, raw, failure[4], failure[3], max(0, paused)]
        state.lease = [now + lease, lease, token, 0]
        if state.quarantine is not None:  # loaded in a quarantine, even if that is over by the time of the fill
            state.lease += state.quarantine[2:]
        state.outlives(now, lease + grace)
        return [b"GRANTED", now, state.raw() if usable else None, *failed]

    def _fill(
        self,
        state: State,
        now: int,
        key: str,
        token: str,
        envelope: Any,
        fresh: int,
        stale: int,
        version: str,
        under: bytes,
        latest: int,
        channel: str,
    ) -> int:
        held = state.lease
        if held is None or held[2] != token:
            return 0
        state.lease = None
        self._wake(held, key, channel)
        if state.is_old(version, under):
            return -1
        state.failure = None
        if len(held) > _GRANTED and state.quarantine is None and not proves(version, under, *held[_GRANTED:]):
            return 0
        if latest and latest <= now:
            return 0
        return 2 if state.replace(now, envelope, fresh, stale, version, under, latest=latest) else 1

    def _renew(self, state: State, now: int, _key: str, token: str, lease: int, grace: int) -> int:
        held = state.lease
        if held is None or held[2] != token:
            return 0
        held[0], held[1] = now + lease, lease
        state.outlives(now, lease + grace)
        return 1

    def _release(
        self,
        state: State,
        now: int,
        key: str,
        token: str,
        failure: Any,
        failures: int,
        pause: int,
        kept: int,
        channel: str,
    ) -> int:
        held = state.lease
        if held is None or held[2] != token:
            return 0
        state.lease = None
        self._wake(held, key, channel)
        if failure:
            state.failure = [now + kept, kept, token, failures, failure, min(pause, kept)]
        return 1

    def _invalidate(
        self,
        state: State,
        now: int,
        key: str,
        channel: str,
        echo: str,
        quarantine: int,
        floor: str,
        under: bytes,
        floor_ms: int,
        begin: str,
        intent: int,
        end: str,
        most: Any,
    ) -> Reply:
        raw, known = state.raw(), state.version
        stays = bool(floor) and not begin and known is not None and same_names(known[1], under) and floor <= known[0]
        if not stays:
            state.let_go(now)
        state.void()
        state.writes.pop(end, None)
        if begin:
            state.writes[begin] = [now + intent, intent]
        if quarantine:
            self._quarantine(state, now, quarantine, floor, under)
        if floor:
            state.raise_floor(now, floor, under, floor_ms)
        self._tell(state, now, key, channel, echo)
        if most != "":
            return [raw, now]
        return 2 if stays else 1

    def _quarantine(self, state: State, now: int, ms: int, version: str, under: bytes) -> None:
        """Begin a quarantine, or let the one that goes on last as long."""
        last, life, old = now + ms, ms, state.quarantine
        if old is not None:
            if old[0] > last:
                last, life = old[0], old[1]
            if not version or not old[2] or not same_names(old[3], under):
                version, under = "", b""
            else:
                version = max(version, old[2])
        state.quarantine = [last, life, version, under]

    def _expire(self, state: State, now: int, key: str, channel: str, echo: str) -> int:
        state.void()
        state.fresh = min(state.fresh, now)
        self._tell(state, now, key, channel, echo)
        return 0 if state.value is None else 1

    def _touch(self, state: State, now: int, key: str, fresh: int, stale: int, channel: str, echo: str) -> int:
        if not state.is_fresh(now):
            return 0
        if state.latest is not None:
            fresh, stale = min(fresh, state.latest - now), 0
        state.fresh, state.span, state.dead = now + fresh, fresh, now + fresh + stale
        self._tell(state, now, key, channel, echo)
        return 1

    def _store(
        self,
        state: State,
        now: int,
        key: str,
        envelope: Any,
        fresh: int,
        stale: int,
        version: str,
        under: bytes,
        channel: str,
        echo: str,
    ) -> int:
        if state.is_old(version, under):
            return -1
        state.void()
        free = not state.writes
        if free:
            state.replace(now, envelope, fresh, stale, version, under)
        else:
            state.let_go(now)
            if version:
                state.raise_floor(now, version, under, FLOOR_MS)
        self._tell(state, now, key, channel, echo)
        return int(free)

    def _add(
        self,
        state: State,
        now: int,
        key: str,
        token: str,
        envelope: Any,
        fresh: int,
        stale: int,
        unusable: Any,
        channel: str,
        echo: str,
    ) -> Reply:
        if token in state.repeated:
            return [1]
        if state.is_fresh(now) and self._is_usable(state, unusable):
            return [2, now, state.raw()]
        state.void()
        free = not state.writes
        if free:
            state.remember(now, token)
            state.replace(now, envelope, fresh, stale, "", b"")
        self._tell(state, now, key, channel, echo)
        return [int(free)]

    def _replace(
        self,
        state: State,
        now: int,
        key: str,
        token: str,
        stamp: Any,
        envelope: Any,
        channel: str,
        echo: str,
    ) -> Reply:
        if token in state.repeated:
            return [1]
        if not state.is_fresh(now):
            return [0]
        if not self.is_stamp(stamp, state.value):
            return [2, now, state.raw()]
        state.void()
        latest, end = state.latest, state.quarantined("", b"")
        state.let_go(now)
        state.latest, state.born, state.value = latest, now, envelope
        if end is not None:  # the value before may have been proven, this one is not
            state.end_by(end)
        state.remember(now, token)
        self._tell(state, now, key, channel, echo)
        return [1]


class _Markers(MemoryCommands):
    """The markers beside some entries; what they publish is the entries' to publish."""

    sorts = False

    def __init__(
        self, entries: MemoryCommands, size: int, lock: AbstractContextManager[Any], now: Callable[[], float]
    ) -> None:
        super().__init__(size, lock, now)
        self.publish = entries.publish  # type: ignore[method-assign]  # theirs
