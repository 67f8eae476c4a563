"""Single flight for requests: one runs the application, the others wait for its response."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from enum import Enum, auto
from time import time
from typing import Any, TypeAlias

from cacheguard import Load, current_load
from cacheguard.errors import CacheGuardError

from .answer import Receive, Send, covers, send_page
from .exchange import Fate
from .fields import Headers, joined, names_in
from .page import UNSTORABLE, Page, Stored, Variants, packed, unpacked
from .request import Scope
from .rules import Verdict, judge, may_stand_in, why_asked
from .shelf import Call, Shelf
from .variants import variant_key

App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]


class _Run:
    """One run of the application for *url*. It holds little, because contexts may keep it alive for long."""

    __slots__ = ("goes_on", "url")

    def __init__(self, url: str) -> None:
        self.url, self.goes_on = url, True


# The runs that the current code is inside. Servers and applications let a context live on, in background tasks or for
# the next request of a connection. So a run no longer counts once its answer is known.
_AROUND: ContextVar[tuple[_Run, ...]] = ContextVar("cacheguard_asgi_around", default=())


def is_led_here(url: str) -> bool:
    """True if the current code is inside the application's run for *url*: it must not wait for itself."""
    around = _AROUND.get()
    return bool(around) and any(run.goes_on and run.url == url for run in around)


class _LeaderLeftError(Exception):
    """The request that ran the application ended before there was an answer."""


class _OriginFailedError(Exception):
    """The application failed. A request that has a stale response serves it."""


class Part(Enum):
    """How a request's part in filling a key ended, if not with the content of the key."""

    ANSWERED = auto()  # the request has been answered
    AGAIN = auto()  # the request that ran the application ended early; another one must run it


class Lead:
    """One request's part in filling a key: it runs the application for all, or waits for the request that does.

    The guard decides, by its flights and leases. The loader does not run the application; it waits until this request
    has run it. So the application runs where it would run without a cache, and its messages go directly to its client.
    """

    def __init__(
        self,
        app: App,
        shelf: Shelf,
        call: Call,
        key: str,
        variants: Variants | None,
        *,
        patience: float,
        fresh_only: bool = False,
    ) -> None:
        self._app, self._shelf, self._call, self._key, self._variants = app, shelf, call, key, variants
        self._fresh_only, self._patience = fresh_only, patience
        self._request = call[3]
        loop = asyncio.get_running_loop()
        self._begun: asyncio.Future[None] = loop.create_future()
        self._outcome: asyncio.Future[tuple[bytes, tuple[str, ...]]] = loop.create_future()
        self._outcome.add_done_callback(_noticed)
        self._task: asyncio.Task[Any] | None = None
        self._load_here: Load | None = None
        self._led: _Run | None = None
        self._found = False  # the stored response can serve this request
        self.old: Page | None = None  # stored, but this request cannot be served with it as it is
        self.has_waited: bool = False
        self.is_cut_off: bool = False  # the guard could not answer

    async def take_part(self) -> Stored | Part | None:
        """Fill the key, or wait for it. Return what it holds now, or None if nothing can be shared."""
        work: Coroutine[Any, Any, Any] = self._shelf.guard.aget_or_set(
            self._key,
            self._load,
            usable=self._usable,
            bounded=False,
            **self._shelf.terms_with(self._patience),
        )
        self._task = task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(_noticed)
        try:
            await asyncio.wait((task, self._begun), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self._end(_LeaderLeftError())
            task.cancel()
            raise
        if self._begun.done():
            await self._run()
            return Part.ANSWERED
        try:
            raw = task.result()
        except _LeaderLeftError:
            return Part.AGAIN
        except _OriginFailedError:
            return await self._stand_in()
        except CacheGuardError:
            self.is_cut_off = True
            return None
        self.has_waited = not self._found
        return unpacked(raw)

    async def _stand_in(self) -> Part | None:
        """The application failed: answer with a stale response, if there is one that may be served."""
        now, old = time(), self.old
        if old is None or not covers(old, self._request) or not may_stand_in(old, now):
            return None
        said = self._shelf.said(b"; fwd=%s; collapsed; detail=stale-if-error" % self.why)
        await send_page(old, self._request, self._call[2], now, said)
        return Part.ANSWERED

    def _usable(self, raw: bytes) -> bool:
        stored = unpacked(raw)
        if isinstance(stored, Variants):
            self._found = self._variants is None
            return self._found
        if stored is None:
            return False
        verdict = judge(stored, self._request, time(), self._shelf.rules)
        serves = verdict is Verdict.SERVE if self._fresh_only else verdict is not Verdict.VALIDATE
        self._found = serves and covers(stored, self._request)
        if not self._found:
            self.old = stored
        return self._found

    async def _load(self) -> bytes:
        load = self._load_here = current_load()
        if not self._begun.done():
            self._begun.set_result(None)
        raw, tags = await self._outcome
        if raw == UNSTORABLE:
            load.cacheable = False
        else:
            load.add_tags(*tags)
        return raw

    @property
    def why(self) -> bytes:
        """Why the request went to the application, in the words of Cache-Status."""
        if self.old is None:
            return b"uri-miss" if self._variants is None else b"vary-miss"
        return why_asked(self.old, time())

    async def _run(self) -> None:
        self._led = run = _Run(self._request.key)
        around = _AROUND.set((*(each for each in _AROUND.get() if each.goes_on), run))
        exchange = self._shelf.exchange(self._call, self.old, self._keep, self.why)
        try:
            await exchange.run(self._app)
        finally:
            run.goes_on = False
            _AROUND.reset(around)

    def _end(self, error: Exception) -> None:
        if not self._outcome.done():
            self._outcome.set_exception(error)

    async def _keep(self, page: Page | None, headers: Headers, fate: Fate) -> bool:
        """Store *page* under the lease of this request, and pass it to the requests that wait. True if it is stored."""
        if self._led is not None:
            # Nobody waits for this run any more. A server may begin the next request of a connection in its context,
            # while it sends the last message, or while background tasks go on.
            self._led.goes_on = False
        if fate in {Fate.FAILED, Fate.LEFT}:
            self._end(_OriginFailedError() if fate is Fate.FAILED else _LeaderLeftError())
            return False
        # A 304 without tags leaves the stored tags as they are.
        raw, tags = UNSTORABLE, self._shelf.tags_of(headers if page is None else page.headers)
        if page is not None and tags is not None:
            raw = await self._placed(page)
        if fate is not Fate.UNKNOWN:
            self._shelf.note(self._request.key, storable=raw != UNSTORABLE)
        if self._outcome.done():
            return False
        self._outcome.set_result((raw, tuple(tags or ())))
        assert self._task is not None  # noqa: S101 - set by take_part
        if raw == UNSTORABLE:
            return False
        await asyncio.wait((self._task,))
        return self._load_here is not None and self._load_here.stored

    async def _placed(self, page: Page) -> bytes:
        """The bytes to store under the key for *page*; `UNSTORABLE` if nothing can be stored."""
        names = names_in(joined(page.headers, b"vary"))
        url, shelf = self._request.key, self._shelf
        if self._variants is not None:
            if set(names) <= set(self._variants.names):
                return packed(page)
            # The keys of this URL must depend on more fields. Its record is invalidated, and all its keys with it.
            shelf.names_of(url, tuple({*names, *self._variants.names}))
            await shelf.invalidate([url])
            return UNSTORABLE
        if not names:
            return packed(page)
        variants = Variants(shelf.names_of(url, names), secrets.token_hex(8))
        key = variant_key(url, variants, self._request.headers)
        if key is None:
            return UNSTORABLE
        try:
            # The key can only be found through the record with its generation. That record is stored under the lease,
            # so after an invalidation in between (of a tag, too) it is refused, and the key is never found.
            await shelf.guard.aset(key, packed(page), **shelf.terms)
        except CacheGuardError:
            return UNSTORABLE
        return packed(variants)


def _noticed(future: asyncio.Future[Any]) -> None:
    """Retrieve the exception, so that asyncio does not log that it was never retrieved."""
    if not future.cancelled():
        future.exception()
