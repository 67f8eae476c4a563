"""What a function looks at in the request, and what it does to the session."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from flask import has_request_context
from flask.globals import request_ctx

from .headers import BODY, BODY_READ, PARSED, QUERY_READ, WatchedEnviron, watch

COOKIES, QUERY = "cookies", "args"  # werkzeug keeps what it has parsed under these names, once somebody asks
WATCHED = "cacheguard_flask.cookies_are_watched"


class RequestUse:
    """What is looked at while this is open, and what was looked at before.

    That a page may depend on the session or a cookie counts from the beginning of the request (`of_caller`): who
    looked up the user before the view ran may have left the name for the view to show. What the function itself does
    is `of_caller_within`, `query_within`, `headers_within` and `session_changed`; what is done before each function is
    done before a cached answer, too. Before it, ``request.args`` counts; the URL is read there for logs.
    """

    query_before: bool
    query_within: bool
    session_changed: bool

    def __init__(self) -> None:
        self.of_caller: str | None = None
        self.of_caller_within: str | None = None
        self.query_before = self.query_within = self.session_changed = False
        self._context: Any = _context()
        self._session: Any = None
        self._read_before = self._changed_before = False
        self._parsed_before: dict[str, Any] = {}
        self.headers_before: set[str] = set()
        self.headers_within: set[str] = set()
        self.body: bool = False  # the body of the request was read

    def __enter__(self) -> Self:
        if self._context is None:
            return self
        session = self._session = _session_of(self._context)
        if session is not None:
            self._read_before = bool(getattr(session, "accessed", False))
            self._changed_before = bool(getattr(session, "modified", False))
            session.accessed = session.modified = False
        parsed = _parsed(self._context)
        self._parsed_before = {name: parsed.pop(name) for name in (COOKIES, QUERY) if name in parsed}
        self.query_before = QUERY in self._parsed_before
        for name in PARSED:
            parsed.pop(name, None)  # who asks again looks at the header again
        environ = self._context.request.environ
        if isinstance(environ, WatchedEnviron):
            self.headers_before, environ.read = environ.read, set()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._context is None:
            return
        parsed, session = _parsed(self._context), self._session
        self.query_within = QUERY in parsed
        self.body = any(name in parsed for name in BODY)
        environ = self._context.request.environ
        if isinstance(environ, WatchedEnviron):
            self.headers_within = environ.read
            environ.read = self.headers_before | self.headers_within
        self.query_within = self.query_within or QUERY_READ in self.headers_within
        self.body = self.body or BODY_READ in self.headers_within
        if COOKIES in parsed or "cookie" in self.headers_within:
            self.of_caller_within = "cookies were read"
        if session is not None:
            self.session_changed = bool(session.modified)
            if session.accessed:
                self.of_caller_within = "the session was read"
            session.accessed = session.accessed or self._read_before
            session.modified = session.modified or self._changed_before
        before = "the session was read" if self._read_before else None
        if before is None and COOKIES in self._parsed_before and WATCHED in self._context.request.environ:
            before = "cookies were read"
        if before is None and "cookie" in self.headers_before:
            before = "cookies were read"
        self.of_caller = self.of_caller_within or before
        for name, value in self._parsed_before.items():
            parsed.setdefault(name, value)


@contextmanager
def of_no_matter() -> Generator[None]:
    """A question of the user's, such as ``unless``, may look at the query: the view does not know of it."""
    context = _context()
    parsed: dict[str, Any] = {} if context is None else _parsed(context)
    known = QUERY in parsed
    try:
        yield
    finally:
        if not known:
            parsed.pop(QUERY, None)


def nothing_is_read(_app: object = None, **_: object) -> None:
    """From now on, who asks for cookies and headers is noticed. Opening the session has asked for cookies already."""
    context = _context()
    if context is not None:
        watch(context.request)
        _parsed(context).pop(COOKIES, None)
        context.request.environ[WATCHED] = True


def _context() -> Any:
    proxy: Any = request_ctx
    return proxy._get_current_object() if has_request_context() else None  # noqa: SLF001 - the way out of a proxy


def _parsed(context: Any) -> dict[str, Any]:
    request: object = context.request
    return vars(request)


def _session_of(context: object) -> Any:
    """The session, without the touch of asking for it: since Flask 3.1.3 that counts as reading it."""
    held: dict[str, Any] = vars(context)
    return held.get("_session", held.get("session"))
