"""One run of the application for one request, and the copy of its response that is stored."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from enum import Enum, auto
from time import time
from typing import Protocol

from .answer import Message, Receive, Send, send_page
from .fields import Headers, combined, content_range, delta, is_strong
from .page import Page
from .request import Request, Scope
from .rules import FAILURES, Rules, is_of, may_stand_in, page_of, updated, validators

_log = logging.getLogger("cacheguard.asgi")

_CONDITIONS = frozenset({
    b"if-none-match", b"if-modified-since", b"if-match", b"if-unmodified-since", b"if-range", b"range",
})  # fmt: skip
_UNTOUCHED = frozenset({"http.response.debug", "http.response.early_hint"})
_ENDLESS = b"text/event-stream"


class Fate(Enum):
    """How a run of the application ended, for the requests that wait for it."""

    ANSWERED = auto()  # with a page, or with nothing that can be shared
    FAILED = auto()  # a waiting request serves its stale page, if it has one
    LEFT = auto()  # it was broken off: another request must run the application


class Keep(Protocol):
    """Stores the page of a run."""

    async def __call__(self, page: Page | None, headers: Headers, fate: Fate) -> None:
        """Store *page*, and wake the requests that wait for it."""
        ...


class _Way(Enum):
    UNKNOWN = auto()  # the application has not answered yet
    PASS = auto()  # every message is sent on at once
    COPY = auto()  # messages are sent on and copied; the last one waits until the copy is stored
    VALIDATED = auto()  # the stored page is still valid: the client gets it
    STAND_IN = auto()  # the application has failed: the client gets the stored page
    COMPLETE = auto()  # the answer is the missing part of the stored page
    AGAIN = auto()  # the answer does not match the stored page: run the application with the original request
    DONE = auto()


_HELD = frozenset({_Way.VALIDATED, _Way.STAND_IN, _Way.COMPLETE, _Way.AGAIN})  # nothing has been sent to the client


class Exchange:
    """Runs the application for a request. Answers with its response, or with the stored page if that may be used.

    Args:
        old: a stored page that this run validates or completes, or that replaces a failed answer.
        keep: called once, before the last byte is sent.
        most: the longest body that is stored, in bytes.
        name: the name of this cache in Cache-Status; None: the field is not sent.
        why: for Cache-Status: why the request went to the application.
    """

    def __init__(
        self,
        call: tuple[Scope, Receive, Send, Request],
        rules: Rules,
        old: Page | None,
        keep: Keep,
        *,
        most: int,
        name: bytes | None,
        why: bytes,
    ) -> None:
        self._scope, self._receive, self._send, self._request = call
        self._rules, self._old, self._keep, self._most, self._name, self._why = rules, old, keep, most, name, why
        self._way = _Way.UNKNOWN
        self._chunks: list[bytes] = []
        self._size = 0
        self._page: Page | None = None
        self._headers: Headers = []
        self._length: int | None = None
        self._asked_at = 0.0
        self._gap: bytes | None = None
        self._kept = False

    async def run(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        """Run *app*. However it ends, `keep` has been called when this returns or raises."""
        try:
            scope = self._scope if self._old is None else self._conditional(self._old)
            self._asked_at = time()
            try:
                await app(scope, self._receive, self._take)
            except Exception:
                if self._way is not _Way.UNKNOWN or not self._can_stand_in():
                    raise
                _log.warning(
                    "the application failed for %s; a stale response was served", self._request.key, exc_info=True
                )
                await self._answer_instead()
            if self._way in {_Way.VALIDATED, _Way.STAND_IN}:  # it ended without a body
                await self._answer_instead()
            if self._way in {_Way.AGAIN, _Way.COMPLETE}:
                await self._decide(None)
                await app(self._scope, self._receive, self._send)
            await self._decide(None, Fate.LEFT)  # no effect if decided already; else the response ended in the middle
        except Exception:
            await self._decide(None)
            raise
        except BaseException:
            await self._decide(None, Fate.LEFT)
            raise

    def _conditional(self, old: Page) -> Scope:
        """The request that validates *old*, or asks for its missing part."""
        kept = [(name, value) for name, value in self._scope["headers"] if name not in _CONDITIONS]
        if old.whole:
            asked = validators(old)
            return {**self._scope, "headers": [*kept, *asked]} if asked else self._scope
        etag = old.header(b"etag")
        if etag is None or not is_strong(etag) or self._request.wants_part or old.total > self._most:
            return self._scope
        after = old.first + len(old.body)
        if old.first == 0:
            self._gap = b"bytes=%d-" % after
        elif after == old.total:
            self._gap = b"bytes=0-%d" % (old.first - 1)
        else:
            return self._scope
        return {**self._scope, "headers": [*kept, (b"range", self._gap), (b"if-range", etag)]}

    def _can_stand_in(self) -> bool:
        return self._old is not None and self._old.whole and may_stand_in(self._old, time())

    # The application's messages

    async def _take(self, message: Message) -> None:
        kind = message["type"]
        if kind == "http.response.body":
            await self._take_body(message)
        elif kind == "http.response.start":
            await self._take_start(message)
        elif kind in _UNTOUCHED:
            await self._send(message)
        elif self._way not in _HELD:  # a file that the server sends by itself, trailers, and unknown messages
            if self._way is _Way.COPY:
                self._way = _Way.PASS
                await self._decide(None)
            await self._send(message)

    async def _take_start(self, message: Message) -> None:
        status: int = message["status"]
        headers: Headers = [(bytes(name).lower(), bytes(value)) for name, value in message.get("headers", ())]
        self._headers = headers
        self._way = self._way_of(status, headers, message)
        if self._way is _Way.COPY:
            await self._send(self._labelled(message, b"; stored"))
        elif self._way is _Way.PASS:
            await self._decide(None)
            await self._send(message)

    def _way_of(self, status: int, headers: Headers, message: Message) -> _Way:
        old = self._old
        if old is not None and old.whole and status == 304 and validators(old):  # noqa: PLR2004
            return _Way.VALIDATED if is_of(old, headers) else _Way.AGAIN
        if status in FAILURES and self._can_stand_in():
            return _Way.STAND_IN
        page = page_of(self._request, status, headers, self._asked_at, time(), self._rules)
        if self._gap is not None and old is not None and status in {206, 416}:
            self._page = page
            return _Way.COMPLETE if page is not None and self._fills_gap(old, page) else _Way.AGAIN
        if page is None or message.get("trailers") or not self._fits(combined(headers)):
            return _Way.PASS
        self._page = page
        return _Way.COPY

    def _fits(self, fields: Mapping[bytes, bytes]) -> bool:
        """True if the body ends, and is not announced to be longer than what is stored."""
        length = fields.get(b"content-length")
        self._length = delta(length)
        if length is not None and (self._length is None or self._length > self._most):
            return False
        return not fields.get(b"content-type", b"").lower().startswith(_ENDLESS)

    def _fills_gap(self, old: Page, part: Page) -> bool:
        place = content_range(combined(self._headers).get(b"content-range"))
        if place is None or part.header(b"etag") != old.header(b"etag") or place[2] != old.total:
            return False
        after = old.first + len(old.body)
        return place[:2] == ((after, old.total) if old.first == 0 else (0, old.first))

    async def _take_body(self, message: Message) -> None:
        more = bool(message.get("more_body", False))
        if self._way is _Way.PASS:
            await self._send(message)
        elif self._way in {_Way.COPY, _Way.COMPLETE}:
            await self._copy(message, more=more)
        elif not more and self._way in {_Way.VALIDATED, _Way.STAND_IN}:
            await self._answer_instead()

    async def _copy(self, message: Message, *, more: bool) -> None:
        chunk = message.get("body", b"")
        self._size += len(chunk)
        complete = self._way is _Way.COMPLETE
        if self._size > self._most:
            self._chunks.clear()
            self._way = _Way.AGAIN if complete else _Way.PASS
            await self._decide(None)
        else:
            self._chunks.append(bytes(chunk))
        if more or self._size > self._most:
            if not complete:
                await self._send(message)
            return
        page = self._copied()
        if complete:
            if page is None:
                self._way = _Way.AGAIN
                return
            await self._decide(page)
            await self._finish(page, b"; fwd=partial; fwd-status=206; stored")
            return
        await self._decide(page)
        self._way = _Way.DONE
        await self._send(message)

    def _copied(self) -> Page | None:
        """The page with its body; None if the body is not as long as announced."""
        page, body, old = self._page, b"".join(self._chunks), self._old
        assert page is not None  # noqa: S101 - set when COPY or COMPLETE was chosen
        if self._length is not None and self._length != len(body):
            return None
        page.body = body
        if page.whole:
            return page
        place = content_range(combined(self._headers).get(b"content-range"))
        if place is None or place[1] - place[0] != len(body):
            return None
        return page if old is None or old.whole else merged(old, page)

    # Answers from the stored page

    async def _answer_instead(self) -> None:
        """Answer with the stored page: it is validated, or it replaces a failed answer."""
        old = self._old
        assert old is not None  # noqa: S101 - both cases need a stored page
        if self._way is not _Way.VALIDATED:
            await self._decide(None, Fate.FAILED)
            late = int(time() - old.born - old.lifetime)
            await self._finish(old, b"; hit; ttl=%d; fwd=stale" % -late)
            return
        headers = updated(old, self._headers)
        page = page_of(self._request, old.status, headers, self._asked_at, time(), self._rules)
        if page is not None:
            page.body = old.body
        await self._decide(page)
        shown = page or old
        await self._finish(shown, b"; fwd=stale; fwd-status=304" + (b"" if page is None else b"; stored"))

    async def _finish(self, page: Page, said: bytes) -> None:
        self._way = _Way.DONE
        await send_page(page, self._request, self._send, time(), self._name and self._name + said)

    async def _decide(self, page: Page | None, fate: Fate = Fate.ANSWERED) -> None:
        if not self._kept:
            self._kept = True
            await self._keep(page, self._headers, fate)

    def _labelled(self, message: Message, said: bytes) -> Message:
        if self._name is None:
            return message
        status = self._name + b"; fwd=" + self._why + said
        return {**message, "headers": [*message.get("headers", ()), (b"cache-status", status)]}


def merged(old: Page, new: Page) -> Page:
    """Join two parts of one body, if they touch and have the same strong validator (RFC 9111 §3.4); else *new*."""
    etag = new.header(b"etag")
    if not is_strong(etag) or etag != old.header(b"etag") or new.total != old.total:
        return new
    one, other = (old, new) if old.first <= new.first else (new, old)
    if other.first > one.first + len(one.body):
        return new
    rest = other.body[one.first + len(one.body) - other.first :]
    new.body, new.first = one.body + rest, one.first
    if new.first == 0 and len(new.body) == new.total:
        new.total = -1
    return new
