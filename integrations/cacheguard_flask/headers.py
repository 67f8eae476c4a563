"""Which headers of the request are read: all ways to them lead through the WSGI environment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any, cast

from werkzeug.datastructures import EnvironHeaders

# Read without consequence: part of the key, looked after elsewhere, or answered with a status that is not stored.
_OF_NO_MATTER = frozenset(
    [
        "host",
        "cookie",
        "authorization",
        "content-length",
        "range",
        "if-match",
        "if-none-match",
        "if-modified-since",
        "if-unmodified-since",
        "if-range",
    ]
)
# What is read of these before the view is for logs, traces, limits and redirections.
_OF_NO_MATTER_BEFORE = frozenset(
    [
        "baggage",
        "connection",
        "content-type",
        "forwarded",
        "origin",
        "referer",
        "remote-addr",
        "remote-host",
        "remote-port",
        "sentry-trace",
        "traceparent",
        "tracestate",
        "upgrade-insecure-requests",
        "user-agent",
        "via",
        "x-amzn-trace-id",
        "x-cloud-trace-context",
        "x-correlation-id",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-port",
        "x-forwarded-prefix",
        "x-forwarded-proto",
        "x-http-method-override",
        "x-real-ip",
        "x-request-id",
    ]
)
QUERY_READ, BODY_READ = "?query", "?body"  # noted like headers; no header has such a name
_NOTED = {
    "AUTH_TYPE": "auth-type",
    "CONTENT_TYPE": "content-type",
    "QUERY_STRING": QUERY_READ,
    "REQUEST_URI": QUERY_READ,
    "RAW_URI": QUERY_READ,
    "wsgi.input": BODY_READ,
}
_OF_WHO_ASKS = ("REMOTE_", "SSL_CLIENT_")  # the address, the name, the certificate
# What werkzeug keeps of a header or the query once it is parsed.
PARSED = [
    "accept_mimetypes",
    "accept_charsets",
    "accept_encodings",
    "accept_languages",
    "user_agent",
    "authorization",
    "cache_control",
    "pragma",
    "access_route",
    "_parsed_content_type",
    "url",  # with the query
    "full_path",
]
BODY = ("stream", "form", "files", "_cached_data")
ANY = "*"


class WatchedEnviron(dict[str, Any]):
    """A WSGI environment that notes which headers are read. What is written here is written to *environ*, too."""

    def __init__(self, environ: dict[str, Any]) -> None:
        super().__init__(environ)
        self._environ = environ
        self.read: set[str] = set()  # in lower case

    def _note(self, key: Any) -> None:
        if not isinstance(key, str):
            return
        if key.startswith("HTTP_"):
            self.read.add(key[5:].replace("_", "-").lower())
        elif key in _NOTED:
            self.read.add(_NOTED[key])
        elif key.startswith(_OF_WHO_ASKS):
            self.read.add(key.replace("_", "-").lower())

    def __getitem__(self, key: str) -> Any:
        self._note(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self._note(key)
        return super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self._note(key)
        return super().get(key, default)

    def items(self) -> Any:
        self.read.add(ANY)
        return super().items()

    def values(self) -> Any:
        self.read.add(ANY)
        return super().values()

    def __iter__(self) -> Iterator[str]:  # with this, `dict(…)` and `{**…}` do not pass by
        self.read.add(ANY)
        return super().__iter__()

    def keys(self) -> Any:
        self.read.add(ANY)
        return super().keys()

    def copy(self) -> dict[str, Any]:
        self.read.add(ANY)
        return super().copy()

    def __or__(self, other: Any) -> Any:
        self.read.add(ANY)
        return super().__or__(other)

    def __ror__(self, other: Any) -> Any:
        self.read.add(ANY)
        return super().__ror__(other)

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        self._environ[key] = value

    def __delitem__(self, key: str) -> None:
        super().__delitem__(key)
        self._environ.pop(key, None)

    def pop(self, key: str, *default: Any) -> Any:
        self._note(key)
        self._environ.pop(key, None)
        return super().pop(key, *default)

    def setdefault(self, key: str, default: Any = None) -> Any:
        self._note(key)
        self._environ.setdefault(key, default)
        return super().setdefault(key, default)

    def update(self, *args: Any, **kwargs: Any) -> None:
        super().update(*args, **kwargs)
        self._environ.update(*args, **kwargs)

    def __ior__(self, other: Any) -> Any:
        self.update(other)
        return self


class WatchedHeaders(EnvironHeaders):
    """The headers in a `WatchedEnviron`."""

    def getlist(self, key: str, type: Callable[[str], Any] | None = None) -> list[Any]:  # noqa: A002 - as werkzeug calls it
        """The values of one header. A WSGI environment has one at most, and no others need to be looked at."""
        value = self.get(key, type=type) if type is not None else self.get(key)
        return [] if value is None else [value]


def value_of(request: Any, name: str) -> str:
    """The value of a header without a note; empty if there is none."""
    key = name.upper().replace("-", "_")
    plain: Any = dict
    text: str = plain.get(request.environ, key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}", "")
    return text


def copy_of(environ: dict[str, Any]) -> dict[str, Any]:
    """A plain copy of *environ*, without a note."""
    plain: Any = dict
    copied: dict[str, Any] = plain(plain.items(environ))
    return copied


def watch(request: Any) -> None:
    """From now on, note which headers of *request* are read. Idempotent."""
    if not isinstance(request.environ, WatchedEnviron):
        watched = WatchedEnviron(request.environ)
        request.environ, request.headers = watched, WatchedHeaders(watched)
        request.__class__ = _watched_class(cast("Any", type(request)))


@cache
def _watched_class(kind: Any) -> Any:
    """The class of requests *kind*, which notes that the query or the client's address is read.

    Werkzeug takes both out of the environment when it makes the request.
    """

    def noting(name: str, as_read: str) -> property:
        def get(request: Any) -> Any:
            kept = cast("dict[str, Any]", vars(request))
            environ: object = kept.get("environ")
            if isinstance(environ, WatchedEnviron):
                environ.read.add(as_read)
            if name not in kept:
                raise AttributeError(f"{kind.__name__!r} object has no attribute {name!r}")
            return kept[name]

        def put(request: Any, value: Any) -> None:
            vars(request)[name] = value

        return property(get, put)

    properties = {
        "query_string": noting("query_string", QUERY_READ),
        "remote_addr": noting("remote_addr", "remote-addr"),
    }
    made: Any = type(kind.__name__, (kind,), {"__module__": kind.__module__, "__doc__": kind.__doc__, **properties})
    return made


def strange(read: Iterable[str], *, before: bool, named: frozenset[str]) -> list[str]:
    """The headers of *read* that the answer may depend on, and that are not in *named*.

    Args:
        read: in lower case.
        before: True if they were read before the view.
        named: what is part of the key, or makes no difference.
    """
    plain = _OF_NO_MATTER | _OF_NO_MATTER_BEFORE if before else _OF_NO_MATTER
    return sorted(name for name in read if name not in plain and name not in named and not name.startswith("?"))
