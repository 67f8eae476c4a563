"""What RFC 9111 and its companions say, as functions of values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto

from .fields import (
    Headers,
    combined,
    content_range,
    date,
    delta,
    directives,
    etags,
    is_strong,
    joined,
    names_in,
    targeted,
    weakly_equal,
)
from .page import Page
from .request import Request

# Those that RFC 9110 §15.1 calls heuristically cacheable, less 206, which is not stored as itself.
HEURISTIC = frozenset({200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501})
# Final status codes of which this cache knows what they mean: for must-understand (RFC 9111 §5.2.2.3).
UNDERSTOOD = frozenset({
    200, 201, 202, 203, 204, 205, 206, 300, 301, 302, 303, 305, 307, 308, 400, 401, 402, 403, 404, 405, 406, 407, 408,
    409, 410, 411, 412, 413, 414, 415, 416, 417, 421, 422, 426, 500, 501, 502, 503, 504, 505,
})  # fmt: skip
# Answers to a field of one request that is no part of any key: its conditions, its Range, its Expect.
OF_ONE_REQUEST = frozenset({304, 412, 416, 417})
FAILURES = frozenset({500, 502, 503, 504})  # RFC 5861 §4

# RFC 9110 §7.6.1 and RFC 9111 §3.1: of one connection, not of the response.
_HOP_BY_HOP = frozenset({
    b"connection", b"keep-alive", b"proxy-connection", b"te", b"transfer-encoding", b"upgrade", b"trailer",
    b"proxy-authenticate", b"proxy-authentication-info", b"proxy-authorization",
})  # fmt: skip
_MADE_ANEW = frozenset({b"age", b"content-length"})
# A 304 says nothing about these, which belong to the bytes that are stored (RFC 9111 §3.2).
_OF_THE_BODY = frozenset({b"content-length", b"content-encoding", b"content-range", b"content-md5", b"etag"})
MOST_VARYING = 16  # names in Vary; with more the response is not stored


class Verdict(Enum):
    """What may be done with a stored response."""

    SERVE = auto()
    SERVE_AND_VALIDATE = auto()  # behind the answer
    VALIDATE = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What the middleware was asked for, in seconds."""

    targets: tuple[bytes, ...]
    heuristic: float
    longest_heuristic: float
    stale_if_error: float
    keep: float
    obey_requests: bool


def page_of(request: Request, status: int, headers: Headers, asked_at: float, now: float, rules: Rules) -> Page | None:
    """The response as it may be stored, without its body; None if it may not be (RFC 9111 §3).

    Args:
        asked_at: when the request was sent on, in seconds since 1970.
        now: when the response came.
    """
    control, is_targeted = _control(headers, rules.targets)
    if not _may_store(request, status, headers, control, is_targeted=is_targeted):
        return None
    fields = combined(headers)
    born = now - _age(fields, asked_at, now)
    lifetime = _lifetime(status, fields, control, request, (rules, now), is_targeted=is_targeted)
    if lifetime is None:
        return None
    validate_always = b"no-cache" in control and control[b"no-cache"] is None
    must = bool({b"must-revalidate", b"proxy-revalidate"} & control.keys()) or validate_always
    revalidate, if_error = delta(control.get(b"stale-while-revalidate")), delta(control.get(b"stale-if-error"))
    default = 0.0 if b"s-maxage" in control else rules.stale_if_error
    page = Page(
        status=200 if status == 206 else status,  # noqa: PLR2004 - a part is of a 200
        headers=stored_headers(status, headers, control),
        body=b"",
        born=born,
        lifetime=float(lifetime),
        revalidate=0.0 if must else float(revalidate or 0),
        if_error=0.0 if must else float(default if if_error is None else if_error),
        validate_always=validate_always,
        must_validate=must or b"s-maxage" in control,
    )
    if status == 206:  # noqa: PLR2004
        place = content_range(fields.get(b"content-range"))
        if place is None:
            return None
        page.first, page.total = place[0], place[2]
    return page if kept_for(page, rules, now) > 0 else None


def _control(headers: Headers, targets: Iterable[bytes]) -> tuple[dict[bytes, bytes | None], bool]:
    """The directives that count for this cache, and whether they come from a field meant for caches like it."""
    for name in targets:
        value = joined(headers, name)
        found = None if value is None else targeted(value)
        if found is not None:
            return found, True
    return directives(joined(headers, b"cache-control")), False


def _may_store(
    request: Request,
    status: int,
    headers: Headers,
    control: Mapping[bytes, bytes | None],
    *,
    is_targeted: bool,
) -> bool:
    if status < 200 or status in OF_ONE_REQUEST or b"no-store" in request.control:  # noqa: PLR2004
        return False
    # With must-understand, no-store is for those who do not (RFC 9111 §5.2.2.3).
    forbidden = status not in UNDERSTOOD if b"must-understand" in control else b"no-store" in control
    # private with names, too: what would be left without those fields is the origin's to say, not ours to guess.
    if forbidden or b"private" in control:
        return False
    names = names_in(joined(headers, b"vary"))
    if b"*" in names or len(names) > MOST_VARYING:
        return False
    if request.is_authorized and not {b"public", b"s-maxage", b"must-revalidate"} & control.keys():
        return False
    present = {name for name, _ in headers}
    explicit = {b"s-maxage", b"max-age"} & control.keys() or b"expires" in present
    for_all = is_targeted or (b"public" in control and bool(explicit))
    return for_all or not present & {b"set-cookie", b"set-cookie2"}


def _age(fields: Mapping[bytes, bytes], asked_at: float, now: float) -> float:
    """RFC 9111 §4.2.3: the corrected initial age, in seconds."""
    said = fields.get(b"age")
    aged = 0.0
    if said is not None:
        # Of several the first counts, and what is no number is no age (RFC 9111 §5.1).
        aged = float(delta(said.split(b",", 1)[0].strip()) or 0)
    dated = date(fields.get(b"date"))
    apparent = 0.0 if dated is None else max(0.0, now - dated)
    delay = max(0.0, now - asked_at)
    # Dates have whole seconds: what seems less than one second old and was asked for just now has no age.
    return max(apparent if apparent >= 1.0 else 0.0, aged + delay)


def _lifetime(
    status: int,
    fields: Mapping[bytes, bytes],
    control: Mapping[bytes, bytes | None],
    request: Request,
    terms: tuple[Rules, float],
    *,
    is_targeted: bool,
) -> float | None:
    """RFC 9111 §4.2.1: for how many seconds the response is fresh; None if it may not be stored for want of that."""
    rules, now = terms
    for name in (b"s-maxage", b"max-age"):
        if name in control:
            return float(delta(control[name]) or 0)
    if not is_targeted and b"expires" in fields:
        expires, dated = date(fields[b"expires"]), date(fields.get(b"date"))
        if expires is None:
            return 0.0
        return max(0.0, expires - (now if dated is None else dated))
    modified = date(fields.get(b"last-modified"))
    if status not in HEURISTIC and b"public" not in control:
        return None
    if not rules.heuristic or modified is None or b"cookie" in request.headers or b"no-cache" in control:
        return 0.0
    dated = date(fields.get(b"date"))
    since = (now if dated is None else dated) - modified  # servers set Date later than applications
    return min(max(0.0, since * rules.heuristic), rules.longest_heuristic)


def stored_headers(status: int, headers: Headers, control: Mapping[bytes, bytes | None]) -> Headers:
    """What is stored of the header section if *control* are its directives (RFC 9111 §3.1)."""
    left_out = _HOP_BY_HOP | _MADE_ANEW | set(names_in(joined(headers, b"connection")))
    if status == 206:  # noqa: PLR2004
        left_out |= {b"content-range"}
    listed = control.get(b"no-cache")
    if listed:
        left_out |= set(names_in(listed))
    return [(name, value) for name, value in headers if name not in left_out]


def judge(page: Page, request: Request, now: float, rules: Rules) -> Verdict:
    """RFC 9111 §4.2 and §5.2.1, RFC 5861 §3: may *page* answer *request*?"""
    if page.validate_always:
        return Verdict.VALIDATE
    age = now - page.born
    left = page.lifetime - age
    if request.control and rules.obey_requests:
        if _refuses(request.control, age, left):
            return Verdict.VALIDATE
        if left <= 0 and not page.must_validate and _puts_up_with(request.control, -left):
            return Verdict.SERVE
    if left > 0:
        return Verdict.SERVE
    return Verdict.SERVE_AND_VALIDATE if -left < page.revalidate else Verdict.VALIDATE


def _refuses(control: Mapping[bytes, bytes | None], age: float, left: float) -> bool:
    """Whether the request wants nothing of that *age*, or nothing that is fresh only for what is *left*."""
    oldest, fresh_for = delta(control.get(b"max-age")), delta(control.get(b"min-fresh"))
    too_old = oldest is not None and (age > oldest or oldest == 0)
    return b"no-cache" in control or too_old or (fresh_for is not None and left < fresh_for)


def _puts_up_with(control: Mapping[bytes, bytes | None], late: float) -> bool:
    """Whether the request takes what has been stale for *late* seconds."""
    if b"max-stale" not in control:
        return False
    limit = delta(control[b"max-stale"])
    return control[b"max-stale"] is None or (limit is not None and late <= limit)


def may_stand_in(page: Page, now: float) -> bool:
    """Whether *page* may be served because its origin fails (RFC 5861 §4)."""
    return not page.validate_always and now - page.born - page.lifetime < page.if_error


def why_asked(page: Page, now: float) -> bytes:
    """Why the application is asked although *page* is stored, in the words of Cache-Status (RFC 9211 §2.2)."""
    if not page.whole:
        return b"partial"
    return b"stale" if page.validate_always or now - page.born >= page.lifetime else b"request"


def kept_for(page: Page, rules: Rules, now: float) -> float:
    """For how many seconds from *now* *page* is of use."""
    stale = max(page.revalidate, page.if_error, rules.keep if page.can_be_validated else 0.0)
    fresh = page.born + page.lifetime - now
    if page.lifetime <= 0 and not page.can_be_validated and not page.revalidate:
        return 0.0  # nobody was ever to see it but in need: not worth its room
    return fresh + stale


def validators(page: Page) -> Headers:
    """The fields that ask the origin whether *page* still holds (RFC 9111 §4.3.1)."""
    asked: Headers = []
    for name, condition in ((b"etag", b"if-none-match"), (b"last-modified", b"if-modified-since")):
        value = page.header(name)
        if value is not None:
            asked.append((condition, value))
    return asked


def is_of(page: Page, headers: Headers) -> bool:
    """Whether a 304 with *headers* is about *page* (RFC 9111 §4.3.4).

    If-None-Match compares weakly (RFC 9110 §13.1.2), and what compresses a response often makes its ETag weak, but not
    that of the 304: so one that is weak matches its strong twin. Two strong ones must be the same. Without them, a
    304 with an earlier Last-Modified is about an older page, which has come back.
    """
    etag, stored = joined(headers, b"etag"), page.header(b"etag")
    if etag is None or stored is None:
        modified, known = date(joined(headers, b"last-modified")), date(page.header(b"last-modified"))
        return modified is None or known is None or modified >= known
    return etag == stored if is_strong(etag) and is_strong(stored) else weakly_equal(etag, stored)


def updated(page: Page, headers: Headers) -> Headers:
    """The header section of *page* after a 304 with *headers* (RFC 9111 §3.2)."""
    new = [(name, value) for name, value in headers if name not in _OF_THE_BODY]
    names = {name for name, _ in new}
    return [*((name, value) for name, value in page.headers if name not in names), *new]


def is_not_modified(page: Page, request: Request) -> bool:
    """Whether a client that asks conditionally has *page* already (RFC 9110 §13.2.2)."""
    if not 200 <= page.status < 300:  # noqa: PLR2004 - RFC 9110 §13.2.1
        return False
    wanted = request.headers.get(b"if-none-match")
    if wanted is not None:
        etag = page.header(b"etag")
        return any(each == b"*" or (etag is not None and weakly_equal(each, etag)) for each in etags(wanted))
    since = date(request.headers.get(b"if-modified-since"))
    if since is None or page.status != 200:  # noqa: PLR2004
        return False
    modified = date(page.header(b"last-modified"))
    if modified is None:
        modified = date(page.header(b"date"))
    return modified is not None and modified <= since


def range_applies(page: Page, request: Request) -> bool:
    """Whether the request's Range is to be honoured (RFC 9110 §13.1.5)."""
    condition = request.headers.get(b"if-range")
    if condition is None:
        return True
    if condition.startswith((b'"', b"W/", b"w/")):
        etag = page.header(b"etag")
        return is_strong(condition) and condition == etag
    modified = page.header(b"last-modified")
    return modified is not None and date(condition) is not None and date(condition) == date(modified)
