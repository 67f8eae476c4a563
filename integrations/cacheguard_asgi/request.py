"""A request as the cache sees it: its key and its caching directives."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any, TypeAlias, cast
from urllib.parse import SplitResult, quote, urljoin, urlsplit, urlunsplit

from .address import Address, Proxies, address_of, without_port
from .fields import Headers, combined, directives

Scope: TypeAlias = MutableMapping[str, Any]

SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PROPFIND", "REPORT", "SEARCH", "QUERY"})

NO_PROXIES = Proxies(())
_ASCII = bytes(range(33, 127))  # clients percent-encode all else
LONGEST_KEY = 16_384  # bytes of a URL; nothing longer is cached


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


def request_of(scope: Scope, proxies: Proxies = NO_PROXIES, root: str = "") -> Request | None:
    """The request of *scope*, or None if the cache must not handle it.

    None for a request whose target is uncertain (no Host field, several, or an invalid one; a field that names another
    URL or method), one with a body, one that asks for an upgrade of the connection, and one with a precondition that
    only the application can check (If-Match, If-Unmodified-Since).

    Args:
        root: the root_path that the application inside sets by itself.
    """
    headers = combined(scope["headers"])
    if b"transfer-encoding" in headers or b"upgrade" in headers or headers.get(b"content-length", b"0") != b"0":
        return None
    if b"if-match" in headers or b"if-unmodified-since" in headers:
        return None
    address = address_of(scope, headers, proxies, root)
    if address is None or not address.certain:
        return None
    key = key_of(address)
    return None if key is None else Request(key, headers, is_head=scope["method"] == "HEAD")


def key_of(address: Address) -> str | None:
    """The key text of a URL; None if nothing under it is cached."""
    # A host contains no "/" and no "?", a path no "?", and neither a space. So no two URLs share a text.
    url = b"%s://%s%s?%s" % (address.scheme.encode(), address.host, address.path, address.query)
    if b" " in url or len(url) > LONGEST_KEY or not address.path.startswith(b"/"):
        return None
    return "http " + url.decode("latin-1")


def url_key(url: str) -> str:
    """Return the key text under which the response to a GET of *url* is stored, for `guard.invalidate`.

    Args:
        url: absolute, as clients request it, before any proxy: ``https://shop.example/products?page=2``.

    Raises `ValueError` if *url* is not absolute, not http or https, or not percent-encoded. No round trip.
    """
    key, text = None, cast("object", url)
    if isinstance(text, str) and text.isascii():
        try:
            address = _address_in(urlsplit(text))
        except ValueError:
            address = None
        key = None if address is None else key_of(address)
    if key is None:
        raise ValueError(f"url must be absolute, http or https, and percent-encoded, got {url!r}")
    return key


def _address_in(parts: SplitResult) -> Address | None:
    """The address that an absolute URL names; None if it is none of a web page."""
    path, query = (parts.path or "/").encode("latin-1", "replace"), parts.query.encode("latin-1", "replace")
    scope = {"scheme": parts.scheme, "path": parts.path, "raw_path": path, "query_string": query}
    return address_of(scope, {b"host": parts.netloc.encode("latin-1", "replace")}, NO_PROXIES)


def invalidated_by(own: Address, seen: tuple[str, bytes], headers: Headers) -> list[str]:
    """The keys that a successful response to an unsafe request to *own* invalidates (RFC 9111 §4.4).

    They are those of its own URL, and of the URLs in Location and Content-Location if these are of the same host. An
    application behind a proxy may name them as it sees them, or as the client does: both mean the client's URL.

    Args:
        seen: scheme and host as the application sees them.
        headers: of the response.
    """
    addresses = [own]
    base = f"{own.scheme}://{own.host.decode('latin-1')}{own.path.decode('latin-1')}"
    for name, value in headers:
        if name not in {b"location", b"content-location"}:
            continue
        try:
            parts = urlsplit(urljoin(base, quote(value.strip(), safe=_ASCII)))
            path = urlunsplit(("", "", parts.path, parts.query, ""))  # of an absolute URL, perhaps with dots
            named = _address_in(urlsplit(urljoin(urlunsplit((*parts[:2], "/", "", "")), path)))
        except ValueError:
            continue
        if named is None or named[:2] not in {own[:2], seen}:
            continue
        named = named._replace(scheme=own.scheme, host=own.host)
        addresses.append(named)
        if own.prefix and named.path != own.prefix and not named.path.startswith(own.prefix + b"/"):
            addresses.append(named._replace(path=own.prefix + named.path))
    return [key for key in map(key_of, addresses) if key is not None]


def seen_by_application(scope: Scope, asked: Mapping[bytes, bytes]) -> tuple[str, bytes]:
    """Scheme and host of *scope*, without regard to proxies."""
    scheme: str = scope.get("scheme", "http")
    return scheme, without_port(scheme, asked.get(b"host", b"").lower())
