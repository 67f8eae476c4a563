"""A shared HTTP cache in front of an ASGI application."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable
from time import time
from typing import Any

from cacheguard import CacheGuard
from cacheguard.errors import ConfigurationError
from cacheguard.extending import Duration, count, flag, seconds

from .answer import Message, Receive, Send, covers, send_page, send_plain
from .exchange import Fate
from .fields import Headers, combined
from .lead import App, Lead, Part, is_led_here
from .order import warn_of_order
from .page import Page, Stored, Variants, unpacked
from .request import SAFE, Request, Scope, also_invalidated, key_of, request_of
from .rules import Rules, Verdict, judge, page_of
from .shelf import Call, Shelf
from .variants import variant_key

_log = logging.getLogger("cacheguard.asgi")

ATTEMPTS = 4  # after so many leaders that disconnected, a follower runs the application itself


class HTTPCacheMiddleware:
    """A shared HTTP cache (RFC 9111) as pure ASGI.

    It stores only what the application's own Cache-Control, CDN-Cache-Control or Expires allow.
    In Starlette and FastAPI: ``app.add_middleware(HTTPCacheMiddleware, guard=guard)``.

    Args:
        app: the ASGI application.
        guard: stores the responses, in the process and in Redis.
        max_body_bytes: the longest body that is stored, in bytes; longer bodies are passed on and not stored.
        heuristic: for a response without a lifetime: the share of the time since Last-Modified for which it is fresh,
            such as 0.1; None: such a response is validated on each request.
        longest_heuristic: the upper limit of that lifetime.
        stale_if_error: how long a stale response may replace the answer of a failing application (a 5xx, or an
            exception), if the response itself neither states nor forbids it; None: never.
        keep: how long a stale response that can be validated stays stored; None: not at all.
        targets: response fields for caches like this one (RFC 9213), the most specific first; the first valid one
            replaces Cache-Control and Expires.
        tags: response fields that list tags for `guard.invalidate_tags`, separated by commas or spaces.
        obey_requests: True: a request's Cache-Control (no-cache, max-age, …) is obeyed. False: clients cannot bypass
            the cache.
        status: the name of this cache in Cache-Status (RFC 9211); None: the field is not sent.
        wait: how long a request waits for another one that runs the application for the same URL; then it runs the
            application itself.

    An L1 hit costs no round trip, a hit in Redis one, a miss three (one more for the first response of a URL with
    Vary). N requests for one storable URL run the application once, across all processes.
    Raises `ConfigurationError` for an option that cannot work.
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
        rules = Rules(
            targets=_fields("targets", targets),
            heuristic=_share(heuristic),
            longest_heuristic=seconds(longest_heuristic, "longest_heuristic"),
            stale_if_error=0.0 if stale_if_error is None else seconds(stale_if_error, "stale_if_error"),
            keep=0.0 if keep is None else seconds(keep, "keep"),
            obey_requests=flag("obey_requests", obey_requests),
        )
        self.app = app
        self._is_new = True
        self._shelf = Shelf(
            _guard(guard),
            rules,
            tags=_fields("tags", tags),
            name=_name(status),
            most=count("max_body_bytes", max_body_bytes),
            wait=seconds(wait, "wait"),
        )
        self._behind: dict[str, asyncio.Task[None]] = {}  # background validations, by key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._is_new:
            self._is_new = False
            warn_of_order(self, scope)
        if scope["type"] != "http" or not _under_asyncio():
            await self.app(scope, receive, send)
            return
        method: str = scope["method"]
        if method in {"GET", "HEAD"}:
            request = request_of(scope)
            if request is None or b"no-store" in request.control or is_led_here(request.key):
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
        if b"only-if-cached" in request.control and self._shelf.rules.obey_requests:
            await self._only_if_cached(send, request)
            return
        call = scope, receive, send, request
        if self._shelf.is_passed(request.key):
            await self._watch(call)
            return
        key: str | None = request.key
        variants, lead = None, None
        for _ in range(ATTEMPTS):
            if key is None:
                break
            at_hand = unpacked(self._shelf.guard.at_hand(key))
            stored: Stored | Part | None = at_hand
            if not self._is_of_use(at_hand, request):
                lead = Lead(self.app, self._shelf, call, key, variants)
                stored = await lead.take_part()
            if stored is Part.ANSWERED:
                return
            if isinstance(stored, Page) and covers(stored, request):
                waited = lead is not None and lead.has_waited
                await self._serve(call, key, variants, stored, collapsed=waited)
                return
            if isinstance(stored, Variants) and variants is None:
                variants, key = stored, variant_key(request.key, stored, request.headers)
            elif stored is not Part.AGAIN:
                break
        await self._alone(call, None if lead is None else lead.old)

    def _is_of_use(self, stored: Stored | None, request: Request) -> bool:
        return isinstance(stored, Variants) or (stored is not None and self._shelf.serves(stored, request))

    async def _serve(self, call: Call, key: str, variants: Variants | None, page: Page, *, collapsed: bool) -> None:
        _, _, send, request = call
        if collapsed and (page.lifetime <= 0 or page.validate_always):
            await self._alone(call, page)  # it may only be served after a validation
            return
        now = time()
        left = math.floor(page.born + page.lifetime - now)
        if left <= 0 and judge(page, request, now, self._shelf.rules) is Verdict.SERVE_AND_VALIDATE:
            self._validate_behind(call, key, variants)
        said = b"; fwd=uri-miss; collapsed" if collapsed else b"; hit; ttl=%d" % left
        await send_page(page, request, send, now, self._shelf.said(said))

    async def _only_if_cached(self, send: Send, request: Request) -> None:
        page = await self._shelf.find(request)
        if page is not None and self._shelf.serves(page, request):
            left = math.floor(page.born + page.lifetime - time())
            await send_page(page, request, send, time(), self._shelf.said(b"; hit; ttl=%d" % left))
            return
        text = b"The cache has no response that could be used, and the request allows nothing else."
        said = self._shelf.said(b"; fwd=miss; fwd-status=504")
        await send_plain(send, 504, text, [] if said is None else [(b"cache-status", said)])

    async def _alone(self, call: Call, old: Page | None) -> None:
        """Run the application for this request only."""
        old = old if old is not None and old.whole else None
        exchange = self._shelf.exchange(call, old, _keep_nothing, b"bypass")
        await exchange.run(self.app)

    async def _watch(self, call: Call) -> None:
        """Pass the request on. If its answer can be stored, note that, so that the next request uses the cache."""
        scope, receive, send, request = call

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers, now = _lowered(message), time()
                if page_of(request, message["status"], headers, now, now, self._shelf.rules) is not None:
                    self._shelf.note(request.key, storable=True)
            await send(message)

        await self.app(scope, receive, watched)

    # HEAD and unsafe methods

    async def _head(self, scope: Scope, receive: Receive, send: Send, request: Request) -> None:
        page = await self._shelf.find(request)
        if page is not None and self._shelf.serves(page, request):
            left = math.floor(page.born + page.lifetime - time())
            await send_page(page, request, send, time(), self._shelf.said(b"; hit; ttl=%d" % left))
            return

        async def compared(message: Message) -> None:
            # RFC 9110 §9.3.2: if the answer shows that the resource has changed, the stored response is invalidated.
            if page is not None and message["type"] == "http.response.start" and _is_another(page, message):
                await self._shelf.invalidate([request.key])
            await send(message)

        await self.app(scope, receive, compared)

    async def _unsafe(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on an unsafe request. A response without an error invalidates its URLs before it is sent."""

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start" and 200 <= message["status"] < 400:  # noqa: PLR2004
                headers = _lowered(message)
                own = key_of(scope, combined(scope["headers"]))
                await self._shelf.invalidate([*([] if own is None else [own]), *also_invalidated(scope, headers)])
            await send(message)

        await self.app(scope, receive, watched)

    # In the background

    def _validate_behind(self, call: Call, key: str, variants: Variants | None) -> None:
        if key in self._behind:
            return
        scope, _, _, request = call
        asked = [each for each in scope["headers"] if not each[0].startswith(b"if-") and each[0] != b"range"]
        asked = [each for each in asked if each[0] not in {b"cache-control", b"pragma"}]
        quiet: Scope = {**scope, "headers": asked}
        behind = Request(request.key, combined(asked), is_head=False)
        lead = Lead(self.app, self._shelf, (quiet, _no_client(), _swallow, behind), key, variants, fresh_only=True)
        task = asyncio.get_running_loop().create_task(_quietly(lead.take_part()))
        self._behind[key] = task
        task.add_done_callback(lambda _: self._behind.pop(key, None))


def _under_asyncio() -> bool:
    """True if an asyncio loop runs. Under any other loop the cache is off."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def _keep_nothing(page: Page | None, headers: Headers, fate: Fate) -> None:
    """Store nothing: the answer is for this request only."""


async def _quietly(work: Awaitable[Any]) -> None:
    try:
        await work
    except Exception:  # noqa: BLE001 - nothing waits for it; the next request finds out by itself
        _log.warning("a response could not be validated behind its back", exc_info=True)


def _no_client() -> Receive:
    """A `receive` for a request without a client: an empty body, and never a disconnect."""
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


def _lowered(message: Message) -> Headers:
    return [(bytes(name).lower(), bytes(value)) for name, value in message.get("headers", ())]


def _is_another(page: Page, message: Message) -> bool:
    """True if the answer to a HEAD request describes another representation than the stored one."""
    fields = combined(_lowered(message))
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
