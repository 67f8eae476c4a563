"""What the application is asked for one request, and the copy of its response that is stored."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from enum import Enum, auto
from time import time
from typing import Protocol

from .answer import Message, Receive, Send, send_page, settled
from .fields import Headers, combined, content_range, delta, is_strong
from .page import Page
from .receiving import Receiver
from .request import Request, Scope
from .rules import FAILURES, OF_ONE_REQUEST, Rules, is_of, may_stand_in, page_of, stored_headers, updated, validators
from .sending import Reply, Sender

_log = logging.getLogger("cacheguard.asgi")

_CONDITIONS = frozenset({
    b"if-none-match", b"if-modified-since", b"if-match", b"if-unmodified-since", b"if-range", b"range",
})  # fmt: skip
_UNSEEN = frozenset({b"x-forwarded-server"})  # differs by proxy, is no part of the URL, and must not get into a page
_UNTOUCHED = frozenset({"http.response.debug", "http.response.early_hint"})
_ENDLESS = b"text/event-stream"
PARTIAL, NOT_MODIFIED = 206, 304


class Fate(Enum):
    """How a run of the application ended, for the requests that wait for it."""

    ANSWERED = auto()  # with a page, or with nothing that can be shared
    UNKNOWN = auto()  # with an answer that says nothing of what others would get
    FAILED = auto()  # a waiting request serves its stale page, if it has one
    LEFT = auto()  # it was broken off: another request must run the application


class Keep(Protocol):
    """Stores the page of a run."""

    async def __call__(self, page: Page | None, headers: Headers, fate: Fate) -> bool:
        """Store *page*, and wake the requests that wait for it. True if it is stored."""
        ...


class _Way(Enum):
    UNKNOWN = auto()  # the application has not answered yet
    PASS = auto()  # messages are sent on at the pace of the client
    COPY = auto()  # messages are copied, and sent on as the client takes them
    VALIDATED = auto()  # the stored page is still valid: the client gets it
    STAND_IN = auto()  # the application has failed: the client gets the stored page
    COMPLETE = auto()  # the answer is the missing part of the stored page
    AGAIN = auto()  # the answer does not match the stored page: run the application for the whole response
    DONE = auto()


_HELD = frozenset({_Way.VALIDATED, _Way.STAND_IN, _Way.COMPLETE, _Way.AGAIN})  # nothing has been sent to the client


class Exchange:
    """Runs the application for a request. Answers with its response, or with the stored page if that may be used.

    The application is asked for what everybody can be answered from: without the client's conditions, or with those
    that validate the stored page. If its answer is about another page, it is asked once more, without conditions.
    Nothing is stored of a run whose application was told that its client has left.

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
        self._scope, receive, self._send, self._request = call
        self._rules, self._old, self._keep, self._most, self._name, self._why = rules, old, keep, most, name, why
        self._receiver = Receiver(receive, self._share_nothing, again=old is not None)
        self._sender = Sender(self._send)
        self._decided = False
        self._detail = b""
        self._begin()

    def _begin(self) -> None:
        """Forget what an earlier run has answered."""
        self._way = _Way.UNKNOWN
        self._reply: Reply | None = None
        self._chunks: list[bytes] = []
        self._size = 0
        self._page: Page | None = None
        self._status = 0
        self._headers: Headers = []
        self._length: int | None = None
        self._asked_at = 0.0
        self._gap: bytes | None = None
        self._is_bare = False  # the client's conditions were left out

    async def run(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        """Run *app*. However it ends, `keep` has been called when this returns or raises."""
        try:
            await self._run(app, self._asked())
            if self._way is _Way.AGAIN:
                self._begin()
                self._old, self._detail = None, b"; detail=second-run"
                self._receiver.rewind()
                await self._run(app, self._bare([]))
            await self._decide(None, Fate.LEFT)  # no effect if decided already; else the response ended in the middle
            await self._flush()
        except Exception:
            await self._decide(None, Fate.LEFT if self._sender.failed else Fate.ANSWERED)
            if not self._sender.failed:
                await self._flush()
            raise
        except BaseException:
            await self._decide(None, Fate.LEFT)
            raise
        finally:
            if self._reply is not None:
                self._reply.stop_waiting()
            self._sender.stop()

    async def _run(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], scope: Scope) -> None:
        self._asked_at = time()
        try:
            await app(scope, self._receiver, self._take)
        except Exception:
            if self._way is not _Way.UNKNOWN or not self._can_stand_in():
                raise
            _log.warning("the application failed for %s; a stale response was served", self._request.key, exc_info=True)
            await self._answer_instead()
        if self._way in {_Way.VALIDATED, _Way.STAND_IN}:  # it ended without a body
            await self._answer_instead()
        elif self._way is _Way.COMPLETE:
            self._way = _Way.AGAIN

    async def _flush(self) -> None:
        """Send the client all that it has not got yet, whole or not."""
        if self._reply is not None and self._way is not _Way.DONE:
            await self._reply.end()
        await self._sender.drain()

    # What the application is asked

    def _asked(self) -> Scope:
        """The request that validates the stored page, asks for its missing part, or asks for all."""
        old, request = self._old, self._request
        if old is not None and old.whole:
            return self._bare(validators(old))
        self._gap = None if old is None or request.wants_part else gap_in(old, self._most)
        if old is not None and self._gap is not None:
            return self._bare([(b"range", self._gap), (b"if-range", old.header(b"etag") or b"")])
        if request.is_conditional or request.is_head:
            return self._bare([])
        if _UNSEEN & request.headers.keys():
            return {**self._scope, "headers": [each for each in self._scope["headers"] if each[0] not in _UNSEEN]}
        return self._scope

    def _bare(self, conditions: Headers) -> Scope:
        """The request with *conditions* instead of the client's."""
        self._is_bare = True
        left_out = _CONDITIONS | _UNSEEN
        kept = [(name, value) for name, value in self._scope["headers"] if name not in left_out]
        return {**self._scope, "method": "GET", "headers": [*kept, *conditions]}

    def _can_stand_in(self) -> bool:
        return self._old is not None and self._old.whole and may_stand_in(self._old, time())

    # The client's messages

    async def _share_nothing(self) -> None:
        """The application knows what only this client has said: the answer may depend on it."""
        await self._decide(None, Fate.LEFT)
        if self._way is _Way.COPY:
            self._way = _Way.PASS
            self._chunks.clear()

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
            await self._only_pass()
            await self._pass(message)

    async def _take_start(self, message: Message) -> None:
        message = settled(message)
        headers: Headers = [(bytes(name).lower(), bytes(value)) for name, value in message.get("headers", ())]
        self._status, self._headers = message["status"], headers
        self._length = delta(combined(headers).get(b"content-length"))
        self._way = self._way_of(message)
        if self._way not in {_Way.COPY, _Way.PASS}:
            return
        page = None
        if self._is_bare and self._status != PARTIAL:
            page = self._page or _as_page(self._status, headers)
        self._reply = reply = Reply(
            self._sender, self._request, message, page=page, length=self._length, label=self._label
        )
        if self._way is _Way.COPY:
            reply.hold()
            return
        await self._decide(None, Fate.UNKNOWN if self._status in OF_ONE_REQUEST else Fate.ANSWERED)
        await reply.open()

    def _way_of(self, message: Message) -> _Way:
        old, status, headers = self._old, self._status, self._headers
        if old is not None and old.whole and status == NOT_MODIFIED and validators(old):
            return _Way.VALIDATED if is_of(old, headers) else _Way.AGAIN
        if status in FAILURES and self._can_stand_in():
            return _Way.STAND_IN
        page = page_of(self._request, status, headers, self._asked_at, time(), self._rules)
        if self._gap is not None and old is not None and status in {PARTIAL, 416}:
            self._page = page
            return _Way.COMPLETE if page is not None and self._fills_gap(old, page) else _Way.AGAIN
        if self._decided or page is None or message.get("trailers") or not self._fits(combined(headers)):
            return _Way.PASS
        self._page = page
        return _Way.COPY

    def _fits(self, fields: Mapping[bytes, bytes]) -> bool:
        """True if the body ends, and is not announced to be longer than what is stored."""
        if b"content-length" in fields and (self._length is None or self._length > self._most):
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
        if self._way is _Way.COPY:
            await self._copy(message, more=more)
        elif self._way is _Way.PASS:
            await self._pass(message)
        elif self._way is _Way.COMPLETE:
            await self._complete(message, more=more)
        elif not more and self._way in {_Way.VALIDATED, _Way.STAND_IN}:
            await self._answer_instead()

    async def _copy(self, message: Message, *, more: bool) -> None:
        reply = self._reply
        assert reply is not None  # noqa: S101 - made with the head
        if not self._add(message):
            await self._only_pass()
            await self._pass(message)
            return
        if more:
            reply.copy(message)
            return
        self._way = _Way.DONE
        reply.stop_waiting()
        stored = await self._decide(self._copied())
        await reply.finish(message, self._size, stored=stored)

    async def _complete(self, message: Message, *, more: bool) -> None:
        if not self._add(message):
            self._way = _Way.AGAIN
        elif not more:
            page = self._copied()
            if page is None:
                self._way = _Way.AGAIN
                return
            stored = await self._decide(page)
            await self._finish(page, b"; fwd=partial; fwd-status=206" + (b"; stored" if stored else b""))

    def _add(self, message: Message) -> bool:
        """Add a part of the body to the copy; False if it gets too long."""
        chunk = message.get("body", b"")
        self._size += len(chunk)
        if self._size > self._most:
            self._chunks.clear()
            return False
        self._chunks.append(bytes(chunk))
        return True

    async def _only_pass(self) -> None:
        """Copy no more."""
        if self._way is _Way.COPY:
            self._way = _Way.PASS
            await self._decide(None)

    async def _pass(self, message: Message) -> None:
        await (self._sender.send(message) if self._reply is None else self._reply.pass_on(message))

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
            said = b"; fwd=%s%s; detail=stale-if-error" % (
                self._why,
                b"; fwd-status=%d" % self._status if self._status else b"",
            )
            await self._finish(old, said)
            return
        headers = updated(old, self._headers)
        page = page_of(self._request, old.status, headers, self._asked_at, time(), self._rules)
        if page is not None:
            page.body = old.body
        stored = await self._decide(page)
        # This client gets what the 304 says, whether that may be stored or not.
        shown = _as_page(old.status, stored_headers(old.status, headers, {}))
        shown.body, shown.born = old.body, time() if page is None else page.born
        await self._finish(shown, b"; fwd=%s; fwd-status=304" % self._why + (b"; stored" if stored else b""))

    async def _finish(self, page: Page, said: bytes) -> None:
        self._way = _Way.DONE
        await send_page(page, self._request, self._send, time(), self._name and self._name + said)

    async def _decide(self, page: Page | None, fate: Fate = Fate.ANSWERED) -> bool:
        """Say, once, what is stored of this exchange; True if *page* is."""
        if self._decided:
            return False
        self._decided = True
        return await self._keep(page, self._headers, fate)

    def _label(self, stored: bool) -> bytes | None:  # noqa: FBT001 - called by `Reply`
        if self._name is None:
            return None
        return self._name + b"; fwd=" + self._why + (b"; stored" if stored else b"") + self._detail


def _as_page(status: int, headers: Headers) -> Page:
    """The head of a response that is not stored, to apply a client's conditions to it."""
    return Page(status, headers, b"", 0.0, 0.0, 0.0, 0.0, validate_always=False, must_validate=False)


def gap_in(old: Page, most: int) -> bytes | None:
    """The one Range that completes *old* to a body of at most *most* bytes; None if there is none."""
    if not is_strong(old.header(b"etag")) or old.total > most:
        return None
    after = old.first + len(old.body)
    if old.first == 0:
        return b"bytes=%d-" % after
    return b"bytes=0-%d" % (old.first - 1) if after == old.total else None


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
