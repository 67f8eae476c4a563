"""A view's answer ↔ what is cached of it, and which answers must not be."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from flask import Flask
from werkzeug.datastructures import Headers
from werkzeug.exceptions import Gone, HTTPException, NotFound, default_exceptions
from werkzeug.wrappers import Response

from cacheguard.extending import FOREVER, seconds

from .use import RequestUse

Stored: TypeAlias = Any
"""A tuple that begins with `PAGE` or `ABORT`; or what a function returned, if it was no response object."""

PAGE, ABORT = "cacheguard_flask:page:1", "cacheguard_flask:abort:1"
_ABORT_KINDS = ((str, int, str), (str, int, type(None)))

_STATUS = re.compile(r"\d{3}\b")
_LEAST_STATUS, _GREATEST_STATUS = 100, 599

# Those that may be kept without being asked to (RFC 9110, 15.1), without 206, and the two redirections that name a
# method; what else there is concerns one request.
STORABLE = frozenset({200, 203, 204, 300, 301, 302, 307, 308, 404, 405, 410, 414, 501})

_ABSENT: tuple[type[HTTPException], ...] = (NotFound, Gone)


def pages_tag(key: str) -> str:
    """The tag of all pages under *key*: there is one for each host, method and varying header."""
    return f"cacheguard_flask:pages:{key}"


def is_stored_page(value: Any) -> bool:
    """Whether *value* is a page as `packed` writes it."""
    if not issubclass(type(value), tuple):
        return False
    parts: tuple[Any, ...] = value
    kinds = tuple(map(type, parts))
    if kinds == (str, str, list, bytes):
        return bool(parts[0] == PAGE)
    return kinds in _ABORT_KINDS and parts[0] == ABORT and parts[1] in default_exceptions


def packed(answer: Any) -> Stored:
    """What to cache of *answer*: for a response its status, headers and body; for the rest itself."""
    if not isinstance(answer, Response):
        return answer
    return (PAGE, answer.status, [(name, value) for name, value in answer.headers], answer.get_data())


def packed_absence(error: HTTPException) -> Stored | None:
    """What to cache of a 404 or 410 that was raised; None if *error* is another one, or more than its code and text."""
    if type(error) not in _ABSENT or error.response is not None:
        return None
    described: object = error.description if error.description != type(error).description else None
    if type(described) not in (str, type(None)):  # for an error handler of the application: no text, and not ours
        return None
    return (ABORT, error.code, described)


def unpacked(app: Flask, stored: Stored) -> Any:
    """The answer again; raises the `HTTPException` that it was."""
    if not is_stored_page(stored):
        return stored
    if stored[0] == ABORT:
        raise default_exceptions[stored[1]](stored[2])
    _, status, headers, body = stored
    return app.response_class(body, status=status, headers=[(name, value) for name, value in headers])


def as_response(app: Flask, answer: Any) -> Response | None:
    """*answer* as a response, to look at; None for what is no answer of a view, or has nothing but a body.

    A tuple is taken for (body, status), (body, headers) or (body, status, headers) if it looks like one.
    """
    if isinstance(answer, Response):
        return answer
    if not issubclass(type(answer), tuple):
        return None
    parts: tuple[Any, ...] = answer
    rest = parts[1:]
    if len(rest) not in (1, 2) or not _could_follow_a_body(rest[0]):
        return None
    try:
        # Looking at a body may use it up, and here it does not matter.
        return cast("Response", app.make_response(("", *rest)))
    except (TypeError, ValueError, AttributeError):
        return None


def _could_follow_a_body(part: Any) -> bool:
    if isinstance(part, str):
        return _STATUS.match(part) is not None
    if isinstance(part, int):
        return _LEAST_STATUS <= part <= _GREATEST_STATUS
    return isinstance(part, dict | list | Headers)


def why_private(
    app: Flask, answer: Any, use: RequestUse, *, page: bool, varies: frozenset[str], ignore_credentials: bool
) -> str | None:
    """Why *answer* is for this one request alone; None if it may be another one's as well.

    Args:
        app: whose it is.
        answer: what the view returned or raised.
        use: what was looked at in the request.
        page: whether it answers the request, rather than being something that a function found out.
        varies: names of headers, in lower case, that are part of the key.
        ignore_credentials: whether the user has answered for the session and cookies being read.
    """
    if use.session_changed:
        return "the session was changed"
    of_caller = use.of_caller if page else use.of_caller_within
    if of_caller is not None and not ignore_credentials:
        return of_caller
    if callable(answer) and not isinstance(answer, Response):
        return "it is a WSGI application"
    if hasattr(answer, "__next__") or hasattr(answer, "__anext__"):
        return "it is a stream"
    response = as_response(app, answer) if page else None
    return None if response is None else _why_not_shared(response, varies)


def _why_not_shared(response: Response, varies: frozenset[str]) -> str | None:
    if response.direct_passthrough or not response.is_sequence:
        return "it is a stream"
    if "Set-Cookie" in response.headers:
        return "it sets a cookie"
    if response.cache_control.no_store or response.cache_control.private:
        return "its Cache-Control says so"
    strange = sorted({name.lower() for name in response.vary} - varies)
    return f"it varies by {', '.join(strange)}, which is not part of the key" if strange else None


def is_storable(app: Flask, answer: Any, *, page: bool) -> bool:
    """Whether its status lets *answer* be kept for later requests."""
    response = as_response(app, answer) if page or isinstance(answer, Response) else None
    return response is None or response.status_code in STORABLE


@dataclass(frozen=True, slots=True)
class PageTtl:
    """How long something may be kept: an absence for a short time, the rest as *usual*. Equal ones are one policy."""

    usual: Any
    absence: float | None

    def __call__(self, stored: Stored) -> Any:
        usual = self.usual(stored) if callable(self.usual) else self.usual
        if self.absence is None or not is_stored_page(stored) or stored[0] != ABORT:
            return usual
        return min(self.absence, FOREVER if usual is None else seconds(usual, "ttl"))
