"""What is stored of an application's responses, where, and on which terms."""

from __future__ import annotations

from time import monotonic, time
from typing import Any, NamedTuple, TypeAlias

from cacheguard import CacheGuard
from cacheguard.errors import CacheGuardError
from cacheguard.extending import FOREVER

from .answer import Receive, Send, covers
from .exchange import Exchange, Keep
from .fields import Headers, joined
from .page import Page, Variants, unpacked
from .request import Request, Scope
from .rules import Rules, Verdict, judge, kept_for
from .variants import variant_key

Call: TypeAlias = tuple[Scope, Receive, Send, Request]

DAY = 86_400.0
MOST_TAGS = 64
MOST_REMEMBERED = 4096
UNSTORABLE_IN_A_ROW = 3  # after that a URL is not asked for in the cache for a while
REMEMBERED_FOR = 5.0  # seconds


class Found(NamedTuple):
    """What is stored for a request, and where it is."""

    key: str
    variants: Variants | None
    page: Page | None


class Shelf:
    """One guard as a store of responses, and what this process has learned of their URLs.

    Args:
        tags: response fields that name tags.
        name: of the cache, for Cache-Status; None: nothing is said.
        most: bytes of the longest body.
        longest: seconds that a run of the application may take and still be stored.
    """

    guard: CacheGuard
    rules: Rules

    def __init__(
        self, guard: CacheGuard, rules: Rules, *, tags: tuple[bytes, ...], name: bytes | None, most: int, longest: float
    ) -> None:
        self.guard, self.rules = guard, rules
        self._tags, self._name, self._most = tags, name, most
        # The policy of everything that is stored here: its times are HTTP's own.
        self.terms: dict[str, Any] = {
            "ttl": self._ttl, "jitter": None, "null_ttl": None, "not_found": (), "rebuild": "mutex",
            "stale_while_revalidate": None, "stale_if_error": None, "soft_timeout": None, "hard_timeout": longest,
            "wait_timeout": None, "error_backoff": None,
        }  # fmt: skip
        self._unstorable: dict[str, tuple[int, float]] = {}  # by key, how often in a row, and until when it counts
        self._varied: dict[str, tuple[bytes, ...]] = {}  # by key, fields that its responses have differed by

    def terms_with(self, patience: float) -> dict[str, Any]:
        """These terms for a request that waits for *patience* seconds for another one."""
        return {**self.terms, "wait_timeout": patience}

    def _ttl(self, raw: bytes) -> float:
        """For how long what was made is kept, in seconds."""
        stored = unpacked(raw)
        return min(max(0.001, kept_for(stored, self.rules, time())), FOREVER) if isinstance(stored, Page) else DAY

    def said(self, said: bytes) -> bytes | None:
        """Cache-Status."""
        return None if self._name is None else self._name + said

    def exchange(self, call: Call, old: Page | None, keep: Keep, why: bytes) -> Exchange:
        """A run of the application."""
        return Exchange(call, self.rules, old, keep, most=self._most, name=self._name, why=why)

    def serves(self, page: Page, request: Request) -> bool:
        """Whether *page* answers *request* as it is."""
        return judge(page, request, time(), self.rules) is not Verdict.VALIDATE and covers(page, request)

    async def find(self, request: Request) -> Found:
        """What is stored for *request*; at most one round trip, two for a URL with variants."""
        key: str | None = request.key
        variants = None
        try:
            stored = unpacked(await self.guard.aget(request.key))
            if isinstance(stored, Variants):
                variants, key = stored, variant_key(request.key, stored, request.headers)
                stored = None if key is None else unpacked(await self.guard.aget(key))
        except CacheGuardError:
            stored = None
        return Found(key or request.key, variants, stored if isinstance(stored, Page) else None)

    def tags_of(self, headers: Headers) -> list[str] | None:
        """The tags that a response names; None if there are too many."""
        found: dict[str, None] = {}
        for name in self._tags:
            value = joined(headers, name)
            if value is not None:
                found.update(dict.fromkeys(value.decode("latin-1").replace(",", " ").split()))
        return list(found) if len(found) <= MOST_TAGS else None

    async def invalidate(self, keys: list[str]) -> None:
        """Invalidate *keys*, now or, if Redis cannot be reached, as soon as it can."""
        try:
            await self.guard.ainvalidate(*dict.fromkeys(keys))
        except CacheGuardError:
            return  # it is owed, and will be delivered: the response to a write that was done is no error

    def names_of(self, key: str, names: tuple[bytes, ...]) -> tuple[bytes, ...]:
        """*names*, and those that responses of *key* have differed by before."""
        known = self._varied.pop(key, ())
        self._varied[key] = every = tuple(sorted({*known, *names}))
        while len(self._varied) > MOST_REMEMBERED:
            self._varied.pop(next(iter(self._varied)), None)
        return every

    # What is known not to be storable

    def is_passed(self, key: str) -> bool:
        """Whether requests for *key* go to the application without a look: nothing was storable lately."""
        if not self._unstorable:
            return False
        times, until = self._unstorable.get(key, (0, 0.0))
        return times >= UNSTORABLE_IN_A_ROW and monotonic() < until

    def note(self, key: str, *, storable: bool) -> None:
        """Remember whether what the application answers for *key* could be stored."""
        if storable:
            self._unstorable.pop(key, None)
            return
        times, until = self._unstorable.pop(key, (0, 0.0))
        if until < monotonic():
            times = 0
        self._unstorable[key] = times + 1, monotonic() + REMEMBERED_FOR
        while len(self._unstorable) > MOST_REMEMBERED:
            self._unstorable.pop(next(iter(self._unstorable)), None)
