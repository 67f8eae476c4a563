"""A shared HTTP cache in front of an ASGI application."""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextvars import ContextVar
from enum import Enum, auto
from time import monotonic, time
from typing import Any, TypeAlias

from cacheguard import CacheGuard, current_load
from cacheguard.errors import CacheGuardError, ConfigurationError
from cacheguard.options import count, flag
from cacheguard.policy import Duration, seconds

from .answer import Message, Receive, Send, covers, send_page, send_plain
from .exchange import Exchange, Fate
from .fields import Headers, combined, joined, names_in
from .page import UNSTORABLE, Page, Stored, Variants, packed, unpacked
from .request import SAFE, Request, Scope, also_invalidated, key_of, request_of
from .rules import Rules, Verdict, judge, kept_for, may_stand_in
from .variants import variant_key

App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

DAY = 86_400.0
ATTEMPTS = 4  # leaders that went away before a follower goes on its own
MOST_TAGS = 64
MOST_REMEMBERED = 4096
UNSTORABLE_IN_A_ROW = 3  # after that a URL is not asked for in the cache for a while
REMEMBERED_FOR = 5.0  # seconds

_LEADING: ContextVar[frozenset[str]] = ContextVar("cacheguard_asgi_leading", default=frozenset())


class _LeaderLeftError(Exception):
    """Whoever ran the application for all has gone before it had answered."""


class _OriginFailedError(Exception):
    """The application failed; who has a stale response serves it."""


class HTTPCacheMiddleware:
    """A shared HTTP cache (RFC 9111) as pure ASGI.

    It stores what the application's own Cache-Control, CDN-Cache-Control or Expires allow, and nothing else.
    ``app.add_middleware(HTTPCacheMiddleware, guard=guard)`` in Starlette and FastAPI.

    Args:
        app: the ASGI application.
        guard: where responses are stored, in the process and in Redis.
        max_body_bytes: the longest body that is stored; longer ones are passed on as they come.
        heuristic: which share of the time since Last-Modified a response without any lifetime is fresh, as 0.1;
            None: such a response is validated each time.
        longest_heuristic: at most that long.
        stale_if_error: for how long a stale response stands in for a failing application (5xx, or an exception), where
            the response says nothing of it and does not forbid it; None: not at all.
        keep: for how long after its end a response that can be validated is kept for that.
        targets: response fields for caches like this one (RFC 9213), the most specific first; the first that is valid
            counts instead of Cache-Control and Expires.
        tags: response fields that name tags for `guard.invalidate_tags`, with commas or spaces in between.
        obey_requests: whether a request's Cache-Control (no-cache, max-age, …) counts; False keeps clients from sending
            requests past the cache at will.
        status: the name of this cache in Cache-Status (RFC 9211); None: no such field.
        wait: how long requests for one URL wait for the one that runs the application; then they run it themselves.

    A hit in the process costs no round trip, a hit in Redis one, a miss three (one more for the first response of a URL
    that has Vary). N requests for one storable URL run the application once, in all processes together.
    Raises `ConfigurationError` for what cannot work.
    """

    def __init__(
        self,
        app: App,
        guard: CacheGuard,
        *,
        max_body_bytes: int = 1024 * 1024,
        heuristic: float | None = None,
        longest_heuristic: Duration = "1d",
        stale_if_error: Duration | None = "1m",
        keep: Duration | None = "1h",
        targets: tuple[str, ...] = ("cdn-cache-control",),
        tags: tuple[str, ...] = ("cache-tag", "surrogate-key"),
        obey_requests: bool = True,
        status: str | None = "cacheguard",
        wait: Duration = "30s",
    ) -> None:
        self.app, self.guard = app, _guard(guard)
        self._most = count("max_body_bytes", max_body_bytes)
        self._rules = Rules(
            targets=_fields("targets", targets),
            heuristic=_share(heuristic),
            longest_heuristic=seconds(longest_heuristic, "longest_heuristic"),
            stale_if_error=0.0 if stale_if_error is None else seconds(stale_if_error, "stale_if_error"),
            keep=0.0 if keep is None else seconds(keep, "keep"),
            obey_requests=flag("obey_requests", obey_requests),
        )
        self._tags = _fields("tags", tags)
        self._name = _name(status)
        self._wait = seconds(wait, "wait")
        self._behind: dict[str, asyncio.Task[None]] = {}  # validations that nobody waits for, by key
        self._unstorable: dict[str, tuple[int, float]] = {}  # by key, how often in a row, and until when it counts
        self._varied: dict[str, tuple[bytes, ...]] = {}  # by key, fields that its responses have differed by

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _under_asyncio():
            await self.app(scope, receive, send)
            return
        method: str = scope["method"]
        if method in {"GET", "HEAD"}:
            request = request_of(scope)
            if request is None or b"no-store" in request.control or request.key in _LEADING.get():
                await self.app(scope, receive, send)
            elif request.is_head:
                await self._head(scope, receive, send, request)
            else:
                await self._get(scope, receive, send, request)
        elif method in SAFE:
            await self.app(scope, receive, send)
        else:
            await self._unsafe(scope, receive, send)

    # GET

    async def _get(self, scope: Scope, receive: Receive, send: Send, request: Request) -> None:
        if b"only-if-cached" in request.control and self._rules.obey_requests:
            await self._only_if_cached(send, request)
            return
        call = scope, receive, send, request
        if self._unstorable and self._is_passed(request.key):
            await self._watch(call)
            return
        key: str | None = request.key
        variants, lead = None, None
        for _ in range(ATTEMPTS):
            if key is None:
                break
            at_hand = unpacked(self.guard.at_hand(key))
            stored: Stored | _Part | None = at_hand
            if not self._is_of_use(at_hand, request):
                lead = _Lead(self, call, key, variants)
                stored = await lead.take_part()
            if stored is _Part.ANSWERED:
                return
            if isinstance(stored, Page) and covers(stored, request):
                waited = lead is not None and lead.has_waited
                await self._serve(call, key, variants, stored, collapsed=waited)
                return
            if isinstance(stored, Variants) and variants is None:
                variants, key = stored, variant_key(request.key, stored, request.headers)
            elif stored is not _Part.AGAIN:
                break
        await self._alone(call, None if lead is None else lead.old)

    def _is_of_use(self, stored: Stored | None, request: Request) -> bool:
        return isinstance(stored, Variants) or (stored is not None and self._serves(stored, request))

    async def _serve(self, call: _Call, key: str, variants: Variants | None, page: Page, *, collapsed: bool) -> None:
        _, _, send, request = call
        if collapsed and (page.lifetime <= 0 or page.validate_always):
            await self._alone(call, page)  # nobody is answered with it without asking
            return
        now = time()
        left = math.floor(page.born + page.lifetime - now)
        if left <= 0 and judge(page, request, now, self._rules) is Verdict.SERVE_AND_VALIDATE:
            self._validate_behind(call, key, variants)
        said = b"; fwd=uri-miss; collapsed" if collapsed else b"; hit; ttl=%d" % left
        await send_page(page, request, send, now, self._said(said))

    def _serves(self, page: Page, request: Request) -> bool:
        return judge(page, request, time(), self._rules) is not Verdict.VALIDATE and covers(page, request)

    async def _only_if_cached(self, send: Send, request: Request) -> None:
        page = await self._find(request)
        if page is not None and self._serves(page, request):
            left = math.floor(page.born + page.lifetime - time())
            await send_page(page, request, send, time(), self._said(b"; hit; ttl=%d" % left))
            return
        text = b"The cache has no response that could be used, and the request allows nothing else."
        said = self._said(b"; fwd=miss; fwd-status=504")
        await send_plain(send, 504, text, [] if said is None else [(b"cache-status", said)])

    async def _find(self, request: Request) -> Page | None:
        """What is stored for *request*; at most one round trip, two for a URL with variants."""
        stored = unpacked(await self.guard.aget(request.key))
        if isinstance(stored, Variants):
            key = variant_key(request.key, stored, request.headers)
            stored = None if key is None else unpacked(await self.guard.aget(key))
        return stored if isinstance(stored, Page) else None

    async def _alone(self, call: _Call, old: Page | None) -> None:
        """Run the application for this request only."""
        exchange = Exchange(
            call, self._rules, old if old is not None and old.whole else None, _keep_nothing,
            most=self._most, name=self._name, why=b"bypass",
        )  # fmt: skip
        await exchange.run(self.app)

    # What is known not to be storable

    def _is_passed(self, key: str) -> bool:
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

    async def _watch(self, call: _Call) -> None:
        """Pass the request on; if its answer could be stored after all, the next one is."""
        scope, receive, send, request = call

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start" and _may_be_storable(message):
                self.note(request.key, storable=True)
            await send(message)

        await self.app(scope, receive, watched)

    # HEAD, and what changes things

    async def _head(self, scope: Scope, receive: Receive, send: Send, request: Request) -> None:
        page = await self._find(request)
        if page is not None and self._serves(page, request):
            left = math.floor(page.born + page.lifetime - time())
            await send_page(page, request, send, time(), self._said(b"; hit; ttl=%d" % left))
            return

        async def compared(message: Message) -> None:
            # RFC 9110 §9.3.2: what says that it has changed takes the stored response with it.
            if page is not None and message["type"] == "http.response.start" and _is_another(page, message):
                await self.invalidate([request.key])
            await send(message)

        await self.app(scope, receive, compared)

    async def _unsafe(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what may change something; a response without an error invalidates its URLs before it is sent."""

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start" and 200 <= message["status"] < 400:  # noqa: PLR2004
                headers = [(bytes(name).lower(), bytes(value)) for name, value in message.get("headers", ())]
                own = key_of(scope, combined(scope["headers"]))
                await self.invalidate([*([] if own is None else [own]), *also_invalidated(scope, headers)])
            await send(message)

        await self.app(scope, receive, watched)

    async def invalidate(self, keys: list[str]) -> None:
        """Invalidate *keys*, now or, if Redis cannot be reached, as soon as it can."""
        try:
            await self.guard.ainvalidate(*dict.fromkeys(keys))
        except CacheGuardError:
            return  # it is owed, and will be delivered: the response to a write that was done is no error

    # Behind the answer

    def _validate_behind(self, call: _Call, key: str, variants: Variants | None) -> None:
        if key in self._behind:
            return
        scope, _, _, request = call
        asked = [each for each in scope["headers"] if not each[0].startswith(b"if-") and each[0] != b"range"]
        asked = [each for each in asked if each[0] not in {b"cache-control", b"pragma"}]
        quiet: Scope = {**scope, "headers": asked}
        behind = Request(request.key, combined(asked), is_head=False)
        lead = _Lead(self, (quiet, _no_client(), _swallow, behind), key, variants, fresh_only=True)
        task = asyncio.get_running_loop().create_task(_quietly(lead.take_part()))
        self._behind[key] = task
        task.add_done_callback(lambda _: self._behind.pop(key, None))

    # What the parts share

    async def send_stale(self, page: Page, request: Request, send: Send, now: float) -> None:
        """Answer with a page that stands in for the application."""
        left = math.floor(page.born + page.lifetime - now)
        await send_page(page, request, send, now, self._said(b"; hit; ttl=%d; collapsed" % left))

    def _said(self, said: bytes) -> bytes | None:
        return None if self._name is None else self._name + said

    def tags_of(self, headers: Headers) -> list[str] | None:
        """The tags that a response names; None if there are too many."""
        found: dict[str, None] = {}
        for name in self._tags:
            value = joined(headers, name)
            if value is not None:
                found.update(dict.fromkeys(value.decode("latin-1").replace(",", " ").split()))
        return list(found) if len(found) <= MOST_TAGS else None

    def ttl(self, raw: bytes) -> float:
        """For how long what was made is kept, in seconds."""
        stored = unpacked(raw)
        return max(0.001, kept_for(stored, self._rules, time())) if isinstance(stored, Page) else DAY

    def terms(self) -> dict[str, Any]:
        """The policy of everything that is stored here: its times are HTTP's own."""
        return {
            "ttl": self.ttl, "jitter": None, "null_ttl": None, "not_found": (), "rebuild": "mutex",
            "stale_while_revalidate": None, "stale_if_error": None, "soft_timeout": None, "hard_timeout": self._wait,
            "wait_timeout": None, "error_backoff": None,
        }  # fmt: skip

    def names_of(self, key: str, names: tuple[bytes, ...]) -> tuple[bytes, ...]:
        """*names*, and those that responses of *key* have differed by before."""
        known = self._varied.pop(key, ())
        self._varied[key] = every = tuple(sorted({*known, *names}))
        while len(self._varied) > MOST_REMEMBERED:
            self._varied.pop(next(iter(self._varied)), None)
        return every

    @property
    def rules(self) -> Rules:
        return self._rules

    def exchange(self, call: _Call, old: Page | None, keep: Any, why: bytes) -> Exchange:
        """A run of the application."""
        return Exchange(call, self._rules, old, keep, most=self._most, name=self._name, why=why)


_Call: TypeAlias = tuple[Scope, Receive, Send, Request]


class _Part(Enum):
    """How a request's part in filling a key ended, if not with what it holds."""

    ANSWERED = auto()  # the request has had its answer
    AGAIN = auto()  # whoever ran the application has gone; somebody else must


class _Lead:
    """One request's part in filling a key: it runs the application for all, or waits for who does.

    The guard decides, by its flights and leases. Its loader does not run the application, but waits for this request to
    have run it: so the application runs where it would without a cache, and its messages go straight to its client.
    """

    def __init__(
        self, cache: HTTPCacheMiddleware, call: _Call, key: str, variants: Variants | None, *, fresh_only: bool = False
    ) -> None:
        self._cache, self._call, self._key, self._variants, self._fresh_only = cache, call, key, variants, fresh_only
        self._request = call[3]
        loop = asyncio.get_running_loop()
        self._begun: asyncio.Future[None] = loop.create_future()
        self._outcome: asyncio.Future[tuple[bytes, tuple[str, ...]]] = loop.create_future()
        self._outcome.add_done_callback(_noticed)
        self._left = False
        self._task: asyncio.Task[Any] | None = None
        self._found = False  # what was stored already serves this request
        self.old: Page | None = None  # stored, but of no use for this request as it is
        self.has_waited = False

    async def take_part(self) -> Stored | _Part | None:
        """What the key holds now, or None if nothing can be shared."""
        work: Coroutine[Any, Any, Any] = self._cache.guard.aget_or_set(
            self._key, self._load, usable=self._usable, bounded=False, **self._cache.terms()
        )
        self._task = task = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(_noticed)
        try:
            await asyncio.wait((task, self._begun), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self._left = True
            self._end(_LeaderLeftError())
            task.cancel()
            raise
        if self._begun.done():
            await self._run()
            return _Part.ANSWERED
        try:
            raw = task.result()
        except _LeaderLeftError:
            return _Part.AGAIN
        except _OriginFailedError:
            return await self._stand_in()
        except CacheGuardError:
            return None
        self.has_waited = not self._found
        return unpacked(raw)

    async def _stand_in(self) -> _Part | None:
        """Answer with a stale response, if there is one that may stand in for the application that failed."""
        now, old = time(), self.old
        if old is None or not covers(old, self._request) or not may_stand_in(old, now):
            return None
        await self._cache.send_stale(old, self._request, self._call[2], now)
        return _Part.ANSWERED

    def _usable(self, raw: bytes) -> bool:
        stored = unpacked(raw)
        if isinstance(stored, Variants):
            self._found = self._variants is None
            return self._found
        if stored is None:
            return False
        verdict = judge(stored, self._request, time(), self._cache.rules)
        serves = verdict is Verdict.SERVE if self._fresh_only else verdict is not Verdict.VALIDATE
        self._found = serves and covers(stored, self._request)
        if not self._found:
            self.old = stored
        return self._found

    async def _load(self) -> bytes:
        if self._left:
            raise _LeaderLeftError
        if not self._begun.done():
            self._begun.set_result(None)
        raw, tags = await self._outcome
        load = current_load()
        if raw == UNSTORABLE:
            load.cacheable = False
        else:
            load.add_tags(*tags)
        return raw

    async def _run(self) -> None:
        why = b"uri-miss" if self.old is None else b"stale" if self.old.whole else b"partial"
        if self._variants is not None and self.old is None:
            why = b"vary-miss"
        leading = _LEADING.set(_LEADING.get() | {self._request.key})
        exchange = self._cache.exchange(self._call, self.old, self._keep, why)
        try:
            await exchange.run(self._cache.app)
        finally:
            _LEADING.reset(leading)

    def _end(self, error: Exception) -> None:
        if not self._outcome.done():
            self._outcome.set_exception(error)

    async def _keep(self, page: Page | None, headers: Headers, fate: Fate) -> None:
        """Store *page* under the lease that this request holds, and let the others have it."""
        if fate is not Fate.ANSWERED:
            self._end(_OriginFailedError() if fate is Fate.FAILED else _LeaderLeftError())
            return
        # A 304 that leaves the tags out leaves them as they are.
        raw, tags = UNSTORABLE, self._cache.tags_of(headers if page is None else page.headers)
        if page is not None and tags is not None:
            raw = await self._placed(page, tags)
        if raw != UNSTORABLE or not self._request.is_conditional:  # a 304 says nothing of what a 200 would be
            self._cache.note(self._request.key, storable=raw != UNSTORABLE)
        if self._outcome.done():
            return
        self._outcome.set_result((raw, tuple(tags or ())))
        assert self._task is not None  # noqa: S101 - it has begun
        if raw != UNSTORABLE:
            await asyncio.wait((self._task,))

    async def _placed(self, page: Page, tags: list[str]) -> bytes:
        """What the key is to hold, now that the page is there; `UNSTORABLE` if it can hold nothing."""
        names = names_in(joined(page.headers, b"vary"))
        url, cache = self._request.key, self._cache
        if self._variants is not None:
            if set(names) <= set(self._variants.names):
                return packed(page)
            # The keys of this URL must tell more apart. Their record goes, and with it all of them.
            cache.names_of(url, tuple({*names, *self._variants.names}))
            await cache.invalidate([url])
            return UNSTORABLE
        if not names:
            return packed(page)
        variants = Variants(cache.names_of(url, names), secrets.token_hex(8))
        key = variant_key(url, variants, self._request.headers)
        if key is None:
            return UNSTORABLE
        try:
            # Nobody knows this key until the record with its generation is there, which is stored under the lease: what
            # was invalidated meanwhile never gets there.
            await cache.guard.aset(key, packed(page), tags=tags, **cache.terms())
        except CacheGuardError:
            return UNSTORABLE
        return packed(variants)


def _under_asyncio() -> bool:
    """Whether an asyncio loop runs: under another one there is no cache."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _noticed(future: asyncio.Future[Any]) -> None:
    """Take notice of an exception, so that nobody complains that none did."""
    if not future.cancelled():
        future.exception()


async def _keep_nothing(page: Page | None, headers: Headers, fate: Fate) -> None:
    """What one request got is for nobody else."""


async def _quietly(work: Awaitable[Any]) -> None:
    try:
        await work
    except Exception:  # noqa: BLE001 - nobody waits for it; whoever asks next sees for himself
        return


def _no_client() -> Receive:
    """What a request without a client receives: no body, and never that the client has gone."""
    told = False

    async def receive() -> Message:
        nonlocal told
        if told:
            await asyncio.get_running_loop().create_future()
        told = True
        return {"type": "http.request", "body": b"", "more_body": False}

    return receive


async def _swallow(_: Message) -> None:
    return


def _may_be_storable(message: Message) -> bool:
    for name, value in message.get("headers", ()):
        if name.lower() in {b"cache-control", b"cdn-cache-control", b"expires"}:
            return b"no-store" not in value and b"private" not in value
    return False


def _is_another(page: Page, message: Message) -> bool:
    """Whether the answer to a HEAD request is about something else than what is stored."""
    fields: Mapping[bytes, bytes] = combined(
        [(bytes(name).lower(), bytes(value)) for name, value in message.get("headers", ())]
    )
    if message["status"] >= 500:  # noqa: PLR2004
        return False
    if message["status"] != page.status:
        return True
    length = fields.get(b"content-length")
    if page.whole and length is not None and length != b"%d" % len(page.body):
        return True
    return any(name in fields and fields[name] != page.header(name) for name in (b"etag", b"last-modified"))


def _guard(guard: object) -> CacheGuard:
    if not isinstance(guard, CacheGuard):
        raise ConfigurationError(f"guard must be a CacheGuard, got {guard!r}")
    return guard


def _fields(name: str, value: Any) -> tuple[bytes, ...]:
    if isinstance(value, str) or not all(isinstance(each, str) and each.isascii() and each for each in value):
        raise ConfigurationError(f"{name} must be a tuple of field names, got {value!r}")
    return tuple(each.lower().encode() for each in value)


def _share(value: object) -> float:
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise ConfigurationError(f"heuristic must be a share in (0, 1] or None, got {value!r}")
    return float(value)


def _name(value: object) -> bytes | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise ConfigurationError(
            f"status must be a name for Cache-Status (letters, digits, -_.) or None, got {value!r}"
        )
    return value.encode("ascii", "replace")
