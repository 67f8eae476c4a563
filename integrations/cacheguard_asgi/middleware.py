"""A shared HTTP cache in front of an ASGI application."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Iterable
from time import time
from typing import Any

from cacheguard import CacheGuard
from cacheguard.extending import Duration, count, flag, seconds

from .address import Proxies, address_of
from .answer import Message, Receive, Send, covers, send_page, send_plain, settled
from .exchange import Fate
from .fields import Headers, combined
from .lead import App, Lead, Part, is_led_here
from .order import warn_of_order
from .page import Page, Stored, Variants, unpacked
from .request import SAFE, Request, Scope, invalidated_by, request_of, seen_by_application
from .rules import Rules, Verdict, judge, page_of, why_asked
from .settings import field_names, guard_of, name_of, root_of, share_of
from .shelf import Call, Shelf
from .variants import variant_key

_log = logging.getLogger("cacheguard.asgi")

PATIENCES = 16  # steps of `wait`
BYPASSED = b"; fwd=bypass"
CLOSED = b"; fwd=bypass; detail=closed"
INNER = b"; fwd=bypass; detail=inner"
REFUSED = b"; fwd=request"
ADVICE = (
    "a request for %s came with fields like X-Forwarded-Host or X-Forwarded-Proto that name another URL. Such requests "
    "are not cached. If a proxy of yours sends them, name it: HTTPCacheMiddleware(trusted_proxies=…)"
)


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
            application itself, and what it gets is not stored.
        longest_run: how long the application may take for a response, its body included, that is stored; it may be
            longer than `wait`.
        trusted_proxies: addresses, networks (``"10.0.0.0/8"``) or names of proxies whose Forwarded and
            X-Forwarded-Proto, -Host and -Prefix say what the public URL is. Each proxy must set or remove these fields.
            If others send them and they name another URL, the request is not cached.
        strip_tags: True: the fields in `tags` are not sent to clients.

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
        longest_run: Duration = "5m",
        trusted_proxies: Iterable[str] = (),
        strip_tags: bool = False,
    ) -> None:
        rules = Rules(
            targets=field_names("targets", targets),
            heuristic=share_of(heuristic),
            longest_heuristic=seconds(longest_heuristic, "longest_heuristic"),
            stale_if_error=0.0 if stale_if_error is None else seconds(stale_if_error, "stale_if_error"),
            keep=0.0 if keep is None else seconds(keep, "keep"),
            obey_requests=flag("obey_requests", obey_requests),
        )
        self.app = app
        self._is_new = True
        names = field_names("tags", tags)
        self._shelf = Shelf(
            guard_of(guard),
            rules,
            tags=names,
            name=name_of(status),
            most=count("max_body_bytes", max_body_bytes),
            longest=seconds(longest_run, "longest_run"),
        )
        self._wait = seconds(wait, "wait")
        self._proxies = Proxies(trusted_proxies)
        self._root = root_of(app)
        self._hidden = frozenset(names) if flag("strip_tags", strip_tags) else frozenset[bytes]()
        self._is_advised = False
        self._behind: dict[str, asyncio.Task[None]] = {}  # background validations, by key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._is_new:
            self._is_new = False
            warn_of_order(self, scope)
        if scope["type"] != "http" or not _under_asyncio():
            await self.app(scope, receive, send)
            return
        if self._hidden:
            send = _without(self._hidden, send)
        method: str = scope["method"]
        if method not in {"GET", "HEAD"}:
            await (self.app if method in SAFE else self._unsafe)(scope, receive, send)
            return
        request = request_of(scope, self._proxies, self._root)
        said = self._reason(scope, request)
        if request is None or said is not None:
            await self._past(scope, receive, send, said or BYPASSED)
        elif b"only-if-cached" in request.control and self._shelf.rules.obey_requests:
            await self._only_if_cached((scope, receive, send, request))
        elif self._shelf.guard.closed:
            await self._past(scope, receive, send, CLOSED)
        elif request.is_head and not request.is_conditional:
            await self._head((scope, receive, send, request))
        else:
            await self._get((scope, receive, send, request))

    def _reason(self, scope: Scope, request: Request | None) -> bytes | None:
        """Why the cache has nothing to do with this request, for Cache-Status; None if it has."""
        if request is None:
            self._advise(scope)
            return BYPASSED
        if b"no-store" in request.control:
            return REFUSED
        return INNER if is_led_here(request.key) else None

    # GET, and HEAD with conditions

    async def _get(self, call: Call) -> None:
        request = call[3]
        if self._shelf.is_passed(request.key):
            await self._watch(call)
            return
        key: str | None = request.key
        variants, lead, until, is_second = None, None, math.inf, False
        now = asyncio.get_running_loop().time
        while key is not None:
            at_hand = unpacked(self._shelf.guard.at_hand(key))
            stored: Stored | Part | None = at_hand
            if not self._is_of_use(at_hand, request):
                patience = self._wait if until == math.inf else self._left(until - now())
                until = min(until, now() + patience)
                lead = Lead(self.app, self._shelf, call, key, variants, patience=patience)
                stored = await lead.take_part()
            if stored is Part.ANSWERED:
                return
            if isinstance(stored, Page) and covers(stored, request):
                if lead is not None and lead.has_waited:
                    await self._share(call, stored, lead)
                else:
                    await self._hit(call, key, variants, stored)
                return
            if isinstance(stored, Variants) and variants is None:
                variants, key = stored, variant_key(request.key, stored, request.headers)
            elif isinstance(stored, Page) and not is_second and not request.wants_part:
                is_second = True  # the other request has got a part: one of those that want all gets that for them
            elif stored is not Part.AGAIN or now() >= until:
                break
        await self._alone_after(call, lead, is_too_long=key is None)

    async def _alone_after(self, call: Call, lead: Lead | None, *, is_too_long: bool) -> None:
        if lead is None or is_too_long:  # there are variants, but what selects one is too long for a key
            await self._past(*call[:3], b"; fwd=vary-miss")
            return
        await self._alone(call, lead.old, lead.why, is_cut_off=lead.is_cut_off)

    def _left(self, left: float) -> float:
        """The patience of a request that has waited before: in steps, because the guard remembers each policy."""
        step = self._wait / PATIENCES
        return max(1, math.ceil(left / step)) * step

    def _is_of_use(self, stored: Stored | None, request: Request) -> bool:
        return isinstance(stored, Variants) or (stored is not None and self._shelf.serves(stored, request))

    async def _share(self, call: Call, page: Page, lead: Lead) -> None:
        """Answer with what another request's run of the application has brought."""
        if page.lifetime <= 0 or page.validate_always:
            await self._alone(call, page, b"stale")  # it may only be served after a validation
            return
        await send_page(page, call[3], call[2], time(), self._shelf.said(b"; fwd=%s; collapsed" % lead.why))

    async def _hit(self, call: Call, key: str, variants: Variants | None, page: Page) -> None:
        _, _, send, request = call
        now = time()
        left = math.floor(page.born + page.lifetime - now)
        if left <= 0 and judge(page, request, now, self._shelf.rules) is Verdict.SERVE_AND_VALIDATE:
            self._validate_behind(call, key, variants)
        await send_page(page, request, send, now, self._shelf.said(b"; hit; ttl=%d" % left))

    async def _only_if_cached(self, call: Call) -> None:
        found = None if self._shelf.guard.closed else await self._shelf.find(call[3])
        if found is not None and found.page is not None and self._shelf.serves(found.page, call[3]):
            await self._hit(call, found.key, found.variants, found.page)
            return
        text = b"The cache has no response that could be used, and the request allows nothing else."
        said = self._shelf.said(b"; detail=only-if-cached")
        await send_plain(call[2], 504, text, [] if said is None else [(b"cache-status", said)], is_head=call[3].is_head)

    async def _alone(self, call: Call, old: Page | None, why: bytes, *, is_cut_off: bool = False) -> None:
        """Run the application for this request only."""
        if old is None or not old.whole:
            scope, receive, send, _ = call
            await self._past(scope, receive, send, BYPASSED if is_cut_off else b"; fwd=" + why)
            return
        exchange = self._shelf.exchange(call, old, _keep_nothing, why)
        await exchange.run(self.app)

    async def _past(self, scope: Scope, receive: Receive, send: Send, said: bytes) -> None:
        """Pass the request on as it is; *said* becomes Cache-Status."""
        label = self._shelf.said(said)

        async def labelled(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), (b"cache-status", label)]}
            await send(message)

        await self.app(scope, receive, send if label is None else labelled)

    async def _watch(self, call: Call) -> None:
        """Pass the request on. If its answer can be stored, note that, so that the next request uses the cache."""
        scope, receive, send, request = call
        label = self._shelf.said(BYPASSED)

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = settled(message)
                headers, now = _lowered(message), time()
                if page_of(request, message["status"], headers, now, now, self._shelf.rules) is not None:
                    self._shelf.note(request.key, storable=True)
                if label is not None:
                    message = {**message, "headers": [*message.get("headers", ()), (b"cache-status", label)]}
            await send(message)

        await self.app(scope, receive, watched)

    def _advise(self, scope: Scope) -> None:
        """Log, once, that proxies which are not trusted send fields that name another URL."""
        if self._is_advised:
            return
        address = address_of(scope, combined(scope["headers"]), self._proxies, self._root)
        if address is not None and not address.certain:
            self._is_advised = True
            _log.warning(ADVICE, scope["path"])

    # HEAD and unsafe methods

    async def _head(self, call: Call) -> None:
        scope, receive, send, request = call
        key, variants, page = await self._shelf.find(request)
        if page is not None and self._shelf.serves(page, request):
            await self._hit(call, key, variants, page)
            return

        async def compared(message: Message) -> None:
            # RFC 9110 §9.3.2: if the answer shows that the resource has changed, the stored response is invalidated.
            if page is not None and message["type"] == "http.response.start" and _is_another(page, message):
                await self._shelf.invalidate([request.key])
            await send(message)

        why = b"uri-miss" if variants is None else b"vary-miss"
        await self._past(scope, receive, compared, b"; fwd=" + (why if page is None else why_asked(page, time())))

    async def _unsafe(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on an unsafe request. A response without an error invalidates its URLs before it is sent."""
        asked = combined(scope["headers"])
        # Before the application runs, which may change its scope.
        own, seen = address_of(scope, asked, self._proxies, self._root), seen_by_application(scope, asked)

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start" and 200 <= message["status"] < 400:  # noqa: PLR2004
                message = settled(message)
                keys = [] if own is None else invalidated_by(own, seen, _lowered(message))
                await self._shelf.invalidate(keys)
            await send(message)

        await self.app(scope, receive, watched)

    # In the background

    def _validate_behind(self, call: Call, key: str, variants: Variants | None) -> None:
        if key in self._behind:
            return
        scope, _, _, request = call
        asked = [each for each in scope["headers"] if not each[0].startswith(b"if-") and each[0] != b"range"]
        asked = [each for each in asked if each[0] not in {b"cache-control", b"pragma"}]
        quiet: Scope = {**scope, "method": "GET", "headers": asked}
        behind = Request(request.key, combined(asked), is_head=False)
        call = quiet, _no_client(), _swallow, behind
        lead = Lead(self.app, self._shelf, call, key, variants, patience=self._wait, fresh_only=True)
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


async def _keep_nothing(page: Page | None, headers: Headers, fate: Fate) -> bool:  # noqa: ARG001 - as `Keep` says
    """Store nothing: the answer is for this request only."""
    return False


def _without(hidden: frozenset[bytes], send: Send) -> Send:
    """A `send` that leaves out the fields in *hidden*."""

    async def stripped(message: Message) -> None:
        if message["type"] == "http.response.start":
            kept = [each for each in message.get("headers", ()) if bytes(each[0]).lower() not in hidden]
            message = {**message, "headers": kept}
        await send(message)

    return stripped


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
