"""Send a stored response to a client."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from .fields import Headers, span
from .page import Page
from .request import Request
from .rules import is_not_modified, range_applies

Message: TypeAlias = MutableMapping[str, Any]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Receive: TypeAlias = Callable[[], Awaitable[Message]]

# RFC 9110 §15.4.5 lists what a 304 must carry. These fields describe the body, which the client already has.
_OF_THE_BODY = frozenset(
    {b"content-type", b"content-encoding", b"content-language", b"content-length", b"content-range"}
)
_BODILESS = frozenset({204, 304})


async def send_page(page: Page, request: Request, send: Send, now: float, status: bytes | None) -> None:
    """Answer *request* with *page*: the whole body, a part of it, or 304.

    Args:
        status: the value of Cache-Status; None: the field is not sent.
    """
    headers: Headers = [*page.headers, (b"age", b"%d" % max(0, int(now - page.born)))]
    if status is not None:
        headers.append((b"cache-status", status))
    if is_not_modified(page, request):
        await _send(send, 304, without_body(headers), b"")
        return
    code, body, place = part_of(page, request)
    if place is not None:
        headers.append((b"content-range", place))
    if code not in _BODILESS:
        headers.append((b"content-length", b"%d" % len(body)))
    await _send(send, code, headers, b"" if request.is_head else body)


def without_body(headers: Headers) -> Headers:
    """The fields of a 304 for a response with *headers*."""
    return [(name, value) for name, value in headers if name not in _OF_THE_BODY]


def part_of(page: Page, request: Request) -> tuple[int, bytes, bytes | None]:
    """Status, body and Content-Range of the answer to *request* from *page*, which `covers` it."""
    if b"range" not in request.headers:
        return page.status, page.body, None
    code, wanted, place = place_of(page, request, len(page.body) if page.whole else page.total)
    if wanted is None:
        return code, page.body, None
    return code, page.body[wanted[0] - page.first : wanted[1] - page.first], place


def place_of(page: Page, request: Request, total: int) -> tuple[int, tuple[int, int] | None, bytes | None]:
    """Status, bytes as [first, after the last) and Content-Range of the answer to *request*, from *total* bytes.

    No bytes and no Content-Range if *request* gets all of them.
    """
    asked = request.headers.get(b"range")
    if asked is None or page.status != 200 or request.is_head or not range_applies(page, request):  # noqa: PLR2004
        return page.status, None, None
    try:
        wanted = span(asked, total)
    except ValueError:
        return 416, (page.first, page.first), b"bytes */%d" % total
    if wanted is None:
        return page.status, None, None
    return 206, wanted, b"bytes %d-%d/%d" % (wanted[0], wanted[1] - 1, total)


def covers(page: Page, request: Request) -> bool:
    """True if *page* holds all the bytes that *request* wants."""
    if page.whole:
        return True
    asked = request.headers.get(b"range")
    if asked is None or request.is_head or not range_applies(page, request):
        return False
    try:
        wanted = span(asked, page.total)
    except ValueError:
        return True
    return wanted is not None and page.first <= wanted[0] and wanted[1] <= page.first + len(page.body)


def settled(message: Message) -> Message:
    """*message* with headers that can be read more than once: ASGI allows any iterable."""
    headers = message.get("headers", ())
    return message if isinstance(headers, list | tuple) else {**message, "headers": list(headers)}


async def send_plain(send: Send, code: int, text: bytes, headers: Headers, *, is_head: bool) -> None:
    """Send a short answer made by the cache itself."""
    length = (b"content-length", b"%d" % len(text))
    await _send(
        send, code, [(b"content-type", b"text/plain; charset=utf-8"), length, *headers], b"" if is_head else text
    )


async def _send(send: Send, code: int, headers: Headers, body: bytes) -> None:
    await send({"type": "http.response.start", "status": code, "headers": headers})
    await send({"type": "http.response.body", "body": body})
