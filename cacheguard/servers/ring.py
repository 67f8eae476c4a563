"""L2 on several Redis nodes that know nothing of one another: each key belongs to one of them.

Each node is complete by itself: it has its own markers with nonces of its own, its own bus, and its own list of what is
pending for it. An entry depends on the markers of the node in which it lives and on no others, so the protocol holds on
each node as it does on a single Redis, and one that is away concerns its own keys only. What invalidates by a marker (a
tag, a namespace) is said to all of them.

With ``on_dead="move"`` the keys of a node that is away are looked for in the node behind it on the ring, their standby:

    P1:  writes, invalidates on home and standby: home is away, so it is pending; the standby has acknowledged it
    P2:  thinks that home is alive: it reads there what P1 could not yet remove, as it would from a single Redis
    P3:  thinks that home is away: it reads the standby, where nothing older is left

That is as safe as a single Redis because both are told of every invalidation, whoever thinks what of them: what one
of them keeps while nobody asks it loses what is invalidated meanwhile. If it could not be told, the invalidation is
pending, and it is delivered before that node is read. A home that is back is left alone for a while, so that pending
invalidations arrive first.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from ..delivery.outbox import Invalidation
from ..errors import Refused, Unreachable
from ..protocol.entry import CUT_OFF, CutOff, Fill, Filled
from ..protocol.names import is_marker
from ..tiers.remote import Remote
from .members import Members

if TYPE_CHECKING:
    from ..codec import Codec
    from ..ports import Runtime
    from ..protocol.entry import Found, LeaseOutcome, Stored, Usable
    from ..protocol.names import Scope

P = TypeVar("P")
T = TypeVar("T")


class Ring:
    """`Entries` over several nodes, each a `Remote` of its own.

    Calls for one key go to its node; calls for many are split by node, answered side by side in an event loop, one
    after the other in a thread, and put together. A node that cannot be asked makes `CUT_OFF` of its keys among many,
    `Unreachable` of a call for one.

    Args:
        runtime: of the engine that this serves.
        remotes: by the names of the nodes.
        abreast: nodes that are asked at the same time.
    """

    abreast: int

    def __init__(self, runtime: Runtime, remotes: Mapping[str, Remote], members: Members, abreast: int) -> None:
        self._runtime, self._remotes, self._members, self.abreast = runtime, remotes, members, abreast

    # Places

    def of(self, key: str) -> Remote:
        """The node that is asked for *key* now."""
        return self._remotes[self._members.current(key)]

    def groups(self, keys: Iterable[str]) -> list[list[str]]:
        """*keys*, put together by the nodes that are asked for them now."""
        return list(self._split(keys).values())

    def _split(self, keys: Iterable[str]) -> dict[str, list[str]]:
        parts: dict[str, list[str]] = {}
        for key in keys:
            parts.setdefault(self._members.current(key), []).append(key)
        return parts

    async def elsewhere(self, items: Sequence[Invalidation], stored_in: Remote) -> None:
        """Invalidate *items* in the nodes that may hold something older than what was just stored in one.

        No round trip, unless keys move. What is not acknowledged is pending.
        """
        parts: dict[str, list[Invalidation]] = {}
        for item in items:
            for name in self._members.candidates(item.key):
                if self._remotes[name] is not stored_in:
                    parts.setdefault(name, []).append(item)
        if not all(await self._deliver(parts, Remote.invalidate)):  # who listens delivers it
            for name in parts:
                self._members.buses[name].listen()

    # Asking one node

    async def _ask(self, key: str, ask: Callable[[Remote], Awaitable[T]]) -> T:
        name = self._members.current(key)
        try:
            return await ask(self._remotes[name])
        except Unreachable:
            standby = self._members.instead_of(name, key)
            if standby is None:
                raise
        return await ask(self._remotes[standby])

    async def read(
        self,
        key: str,
        codec: Codec | None,
        scope: Scope,
        tags: tuple[str, ...],
        usable: Usable | None = None,
        *,
        near: bool = False,
    ) -> Found | None:
        return await self._ask(key, lambda remote: remote.read(key, codec, scope, tags, usable, near=near))

    async def look(self, key: str, scope: Scope) -> Found | None:
        return await self._ask(key, lambda remote: remote.look(key, scope))

    async def lease(
        self,
        key: str,
        codec: Codec | None,
        scope: Scope,
        tags: tuple[str, ...],
        *,
        usable: Usable | None = None,
        token: str,
        floor_ms: int,
        awaited: str,
        unusable: Any,
        keep_ms: int,
    ) -> LeaseOutcome:
        return await self._ask(
            key,
            lambda remote: remote.lease(
                key,
                codec,
                scope,
                tags,
                usable=usable,
                token=token,
                floor_ms=floor_ms,
                awaited=awaited,
                unusable=unusable,
                keep_ms=keep_ms,
            ),
        )

    def pack(self, key: str, stored: Stored, codec: Codec | None) -> Any:
        return self.of(key).pack(key, stored, codec)

    def learn(self, key: str, tags: tuple[str, ...]) -> None:
        self.of(key).learn(key, tags)

    # Asking several nodes

    async def _each(
        self, parts: Mapping[str, P], ask: Callable[[Remote, P], Awaitable[T]]
    ) -> dict[str, T | Unreachable]:
        """What each node says to its part; the error where one could not be asked."""
        said: dict[str, T | Unreachable] = {}

        async def answer(name: str, part: P) -> None:
            try:
                said[name] = await ask(self._remotes[name], part)
            except Unreachable as error:
                said[name] = error

        works = [partial(answer, name, part) for name, part in parts.items()]
        if len(works) == 1:
            await works[0]()
        else:
            await self._runtime.each(works, self.abreast)
        return {name: said[name] for name in parts}

    async def _gathered(
        self, keys: Iterable[str], ask: Callable[[Remote, list[str]], Awaitable[Mapping[str, T]]]
    ) -> dict[str, T]:
        """What the nodes say of *keys*; nothing of those that nobody can be asked for."""
        parts, found = self._split(keys), dict[str, T]()
        moved: dict[str, list[str]] = {}
        for name, said in (await self._each(parts, ask)).items():
            if not isinstance(said, Unreachable):
                found.update(said)
                continue
            for key in parts[name]:
                standby = self._members.instead_of(name, key)
                if standby is not None:
                    moved.setdefault(standby, []).append(key)
        if moved:
            for said in (await self._each(moved, ask)).values():
                if not isinstance(said, Unreachable):
                    found.update(said)
        return found

    async def read_many(
        self,
        keys: Sequence[str],
        codec: Codec | None,
        scope: Scope,
        tags: Sequence[tuple[str, ...]],
        *,
        near: bool = False,
    ) -> Sequence[Found | CutOff | None]:
        """The entries of *keys*; one round trip to each of their nodes."""
        tags_of = dict(zip(keys, tags, strict=True)) if tags else {}

        async def ask(remote: Remote, mine: list[str]) -> Mapping[str, Found | CutOff | None]:
            tags_of_mine = [tags_of[key] for key in mine] if tags else ()
            found = await remote.read_many(mine, codec, scope, tags_of_mine, near=near)
            return dict(zip(mine, found, strict=True))

        found = await self._gathered(dict.fromkeys(keys), ask)
        return [found.get(key, CUT_OFF) for key in keys]

    async def lease_many(
        self,
        tokens: dict[str, str],
        codec: Codec | None,
        scope: Scope,
        tags: Mapping[str, tuple[str, ...]],
        *,
        unusable: Mapping[str, Any],
        keep_ms: int,
    ) -> Mapping[str, LeaseOutcome | CutOff]:
        """Leases for several keys; one round trip to each of their nodes."""

        def ask(remote: Remote, mine: list[str]) -> Awaitable[Mapping[str, Any]]:
            own = {key: tokens[key] for key in mine}
            return remote.lease_many(own, codec, scope, tags, unusable=unusable, keep_ms=keep_ms)

        found = await self._gathered(tokens, ask)
        return {key: found.get(key, CUT_OFF) for key in tokens}

    async def fill_many(self, fills: Sequence[Fill]) -> list[Filled]:
        """Several fills, one round trip to each of their nodes; `Filled.FAILED` where one of these took nothing.

        A fill is refused if the node of its key has changed since the lease: it has no lease there.
        """
        parts: dict[str, list[Fill]] = {}
        for fill in fills:
            parts.setdefault(self._members.current(fill.key), []).append(fill)

        async def ask(remote: Remote, mine: list[Fill]) -> list[Filled]:
            try:
                return await remote.fill_many(mine)
            except Refused:  # a full server: nobody shall wait for leases that nothing comes of
                await remote.release({fill.key: fill.token for fill in mine})
                raise

        outcomes: dict[str, Filled] = {}
        for name, said in (await self._each(parts, ask)).items():
            filled = [Filled.FAILED] * len(parts[name]) if isinstance(said, Unreachable) else said
            outcomes |= {fill.key: each for fill, each in zip(parts[name], filled, strict=True)}
        return [outcomes[fill.key] for fill in fills]

    async def release(
        self,
        tokens: dict[str, str],
        failure: Stored | None = None,
        marks: Mapping[str, bytes] | None = None,
        *,
        failures: int = 0,
        kept_ms: int = 0,
    ) -> bool:
        """Give leases back, as `Remote.release`; *marks* are those of one node."""

        def ask(remote: Remote, mine: list[str]) -> Awaitable[bool]:
            return remote.release(
                {key: tokens[key] for key in mine}, failure, marks, failures=failures, kept_ms=kept_ms
            )

        return all(_answers(await self._each(self._split(tokens), ask)))

    async def renew(self, tokens: dict[str, str]) -> None:
        """Keep leases for another while, as `Remote.renew`."""

        def ask(remote: Remote, mine: list[str]) -> Awaitable[None]:
            return remote.renew({key: tokens[key] for key in mine})

        _answers(await self._each(self._split(tokens), ask))

    async def scan(
        self, scope: Scope, at: int, cursor: str, pattern: str, count: int
    ) -> tuple[list[str], tuple[int, str] | None]:
        """One page of the fresh entries of one node, and where to go on: the nodes stand in the order of their names.

        What lies in a node that is not asked for it (it was put there when there were other nodes) is left out.
        """
        names = self._members.names
        if at >= len(names):
            return [], None
        keys, following = await self._remotes[names[at]].scan(scope, 0, cursor, pattern, count)
        here = [key for key in keys if self._members.current(key) == names[at]]
        if following is not None:
            return here, (at, following[1])
        return here, (at + 1, "0") if at + 1 < len(names) else None

    # Telling

    async def invalidate(self, items: Sequence[Invalidation]) -> bool:
        """Invalidate entries where they may be; tags and namespaces in all nodes.

        One round trip to each of them. False if one of them did not acknowledge it; it is pending there then.
        """
        parts: dict[str, list[Invalidation]] = {}
        for item in items:
            names = self._members.names if is_marker(item.key) else self._members.candidates(item.key)
            for name in names:
                parts.setdefault(name, []).append(item)
        return all(await self._deliver(parts, Remote.invalidate))

    async def _deliver(
        self, parts: Mapping[str, list[Invalidation]], tell: Callable[[Remote, list[Invalidation]], Awaitable[T]]
    ) -> list[T]:
        """Tell each node its part. If that is interrupted, the parts of nodes not asked yet are pending."""
        waiting = {id(self._remotes[name]): (self._remotes[name], mine) for name, mine in parts.items()}

        async def ask(remote: Remote, mine: list[Invalidation]) -> T:
            del waiting[id(remote)]
            return await tell(remote, mine)

        try:
            return _answers(await self._each(parts, ask)) if parts else []
        finally:
            for remote, mine in waiting.values():
                remote.queue(mine)

    def _where(self, keys: Iterable[str], *, current: bool) -> dict[str, list[Invalidation]]:
        """By node, the entries that are asked for there now; or those that may be there nevertheless."""
        parts: dict[str, list[Invalidation]] = {}
        for key in keys:
            asked = self._members.current(key)
            for name in self._members.candidates(key):
                if (name == asked) is current:
                    parts.setdefault(name, []).append(Invalidation(key))
        return parts

    async def remove(self, keys: Sequence[str], scope: Scope) -> tuple[bool, int]:
        """Invalidate entries; whether all nodes acknowledged it, and how many fresh ones they held."""
        here, rest = self._where(keys, current=True), self._where(keys, current=False)

        def tell(remote: Remote, mine: list[Invalidation]) -> Awaitable[tuple[bool, int]]:
            return remote.remove([item.key for item in mine], scope)

        try:
            answers = await self._deliver(here, tell)
        except BaseException:
            for name, items in rest.items():
                self._remotes[name].queue(items)
            raise
        done = all(await self._deliver(rest, Remote.invalidate))
        return done and all(each for each, _ in answers), sum(count for _, count in answers)

    async def expire(self, keys: Sequence[str]) -> bool:
        """Make entries stale, wherever they are."""
        parts: dict[str, list[Invalidation]] = {}
        for key in keys:
            for name in self._members.candidates(key):
                parts.setdefault(name, []).append(Invalidation(key))
        return all(await self._deliver(parts, lambda remote, mine: remote.expire([item.key for item in mine])))


def _answers(said: Mapping[str, T | Unreachable]) -> list[T]:
    """What the nodes have said; raised is the error of the first that could not be asked."""
    answers: list[T] = []
    for each in said.values():
        if isinstance(each, Unreachable):
            raise each
        answers.append(each)
    return answers
