"""A request as the cache sees it: its key and its caching directives."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any, TypeAlias
from urllib.parse import quote, urljoin, urlsplit

from .fields import combined, directives

Scope: TypeAlias = MutableMapping[str, Any]

SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PROPFIND", "REPORT", "SEARCH", "QUERY"})

# Applications and frameworks let these fields change the answer without naming them in Vary. They are part of the
# key, so a response to a request with such a field is only served to requests with the same field.
# See "Practical Web Cache Poisoning" and "Web Cache Entanglement" (J. Kettle, 2018 and 2020).
KEYED = frozenset({
    b"x-forwarded-host", b"x-forwarded-proto", b"x-forwarded-scheme", b"x-forwarded-ssl", b"x-forwarded-port",
    b"x-forwarded-prefix", b"x-forwarded-server", b"x-forwarded-path", b"x-forwarded-uri", b"x-host",
    b"x-original-host", b"x-original-url", b"x-rewrite-url", b"x-http-method", b"x-http-method-override",
    b"x-method-override", b"x-script-name", b"front-end-https", b"forwarded",
})  # fmt: skip
_HOST = re.compile(rb"[a-z0-9_.-]+(?::[0-9]{1,5})?|\[[0-9a-f:.]+\](?::[0-9]{1,5})?")
_DEFAULT_PORTS = {"http": b":80", "https": b":443"}
_FORWARDED = re.compile(rb'(?:^|[;,])\s*(host|proto)\s*=\s*("[^"]*"|[^\s;,]*)', re.IGNORECASE)
LONGEST_KEY = 16_384  # bytes of URL and keyed fields; nothing longer is cached


class Request:
    """A GET or HEAD request, as far as the cache needs it.

    Args:
        key: the key text of its URL in the guard.
        headers: by lower-case name, lines combined.
    """

    __slots__ = ("control", "headers", "is_head", "key")

    headers: Mapping[bytes, bytes]
    is_head: bool
    key: str

    def __init__(self, key: str, headers: Mapping[bytes, bytes], *, is_head: bool) -> None:
        self.key, self.headers, self.is_head = key, headers, is_head
        self.control: dict[bytes, bytes | None] = directives(headers.get(b"cache-control"))
        if not self.control and b"pragma" in headers and b"cache-control" not in headers:
            # RFC 9111 §5.4: old clients send Pragma.
            self.control = {b"no-cache": None} if b"no-cache" in directives(headers[b"pragma"]) else {}

    @property
    def is_conditional(self) -> bool:
        return b"if-none-match" in self.headers or b"if-modified-since" in self.headers

    @property
    def wants_part(self) -> bool:
        return b"range" in self.headers

    @property
    def is_authorized(self) -> bool:
        return b"authorization" in self.headers


def request_of(scope: Scope) -> Request | None:
    """The request of *scope*, or None if the cache must not handle it.

    None for a request whose target is uncertain (no Host field, several, or an invalid one), one with a body, and one
    that asks for an upgrade of the connection.
    """
    headers = combined(scope["headers"])
    if b"transfer-encoding" in headers or b"upgrade" in headers or headers.get(b"content-length", b"0") != b"0":
        return None
    key = key_of(scope, headers)
    return None if key is None else Request(key, headers, is_head=scope["method"] == "HEAD")


def key_of(scope: Scope, headers: Mapping[bytes, bytes]) -> str | None:
    """The key text of the URL of *scope*; None if the URL is uncertain, as with several Host fields."""
    host = headers.get(b"host", b"").lower()
    scheme = scope.get("scheme", "http")
    if scheme not in _DEFAULT_PORTS or _HOST.fullmatch(host) is None:
        return None
    path = scope.get("raw_path") or quote(scope["path"], safe="/!$&'()*+,;=:@~%-._").encode()
    extra = b"".join(_keyed(name, headers[name]) for name in sorted(KEYED & headers.keys()))
    host = host.removesuffix(_DEFAULT_PORTS[scheme])
    return _text(scheme, host, path.partition(b"?")[0], scope.get("query_string", b""), extra)


def _keyed(name: bytes, value: bytes) -> bytes:
    if name == b"forwarded":  # the rest describes the client, which is not part of any key
        value = b";".join(b"=".join(pair).lower() for pair in _FORWARDED.findall(value))
        if not value:
            return b""
    return b"%s:%d:%s," % (name, len(value), value)


def _text(scheme: str, host: bytes, path: bytes, query: bytes, extra: bytes) -> str | None:
    # A host contains no "/" and no "?", a path no "?", and neither a space. So no two requests share a text.
    url = b"%s://%s%s?%s" % (scheme.encode(), host, path, query)
    if b" " in url or len(url) + len(extra) > LONGEST_KEY or not path.startswith(b"/"):
        return None
    return "http " + (url + (b" " + extra if extra else b"")).decode("latin-1")


def url_key(url: str) -> str:
    """Return the key text under which the response to a GET of *url* is stored, for `guard.invalidate`.

    Args:
        url: absolute, as clients request it: ``https://shop.example/products?page=2``.

    Responses to requests with X-Forwarded-Host and similar fields have other keys; use tags to invalidate all of them.
    Raises `ValueError` if *url* is not absolute, not http or https, or not percent-encoded. No round trip.
    """
    parts = urlsplit(url)
    host = parts.netloc.lower().encode("latin-1", "replace")
    scope: Scope = {
        "scheme": parts.scheme,
        "path": parts.path,
        "raw_path": (parts.path or "/").encode("ascii", "replace"),
    }
    scope["query_string"] = parts.query.encode("ascii", "replace")
    key = key_of(scope, {b"host": host})
    if key is None or not url.isascii():
        raise ValueError(f"url must be absolute, http or https, and percent-encoded, got {url!r}")
    return key


def also_invalidated(scope: Scope, headers: Iterable[tuple[bytes, bytes]]) -> list[str]:
    """The keys of the URLs of the same host that the response to an unsafe request names (RFC 9111 §4.4)."""
    asked = combined(scope["headers"])
    keys: list[str] = []
    for name, value in headers:
        if name not in {b"location", b"content-location"}:
            continue
        path = scope.get("raw_path", b"").partition(b"?")[0].decode("latin-1") or quote(scope["path"])
        host = asked.get(b"host", b"").decode("latin-1")
        scheme = scope.get("scheme", "http")
        try:
            target = urlsplit(urljoin(f"{scheme}://{host}{path}", value.decode("latin-1")))
        except ValueError:
            continue
        if target.scheme != scheme or target.netloc.lower() != host.lower():
            continue
        named: Scope = {**scope, "raw_path": (target.path or "/").encode("latin-1")}
        named["query_string"] = target.query.encode("latin-1")
        key = key_of(named, asked)
        if key is not None:
            keys.append(key)
    return keys
