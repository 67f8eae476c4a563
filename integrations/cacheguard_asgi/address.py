"""The public URL of a request, as its client sees it: what the server says, and what trusted proxies say.

Nothing but this URL is the key of a response. A request whose fields name another URL is not cached: an application
may answer it for that URL.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import quote

from cacheguard.errors import ConfigurationError

from .fields import forwarded, listed

# The scope of a request, as ASGI has it.
_Scope: TypeAlias = Mapping[str, Any]

# Applications, frameworks and servers take parts of the URL, or the method, from these fields.
# See "Practical Web Cache Poisoning" and "Web Cache Entanglement" (J. Kettle, 2018 and 2020).
_SCHEMES = frozenset({b"x-forwarded-proto", b"x-forwarded-scheme", b"x-forwarded-ssl", b"front-end-https"})
_HOSTS = frozenset({b"x-forwarded-host", b"x-host", b"x-original-host"})
_PREFIXES = frozenset({b"x-forwarded-prefix", b"x-script-name"})
_PATHS = frozenset({b"x-original-url", b"x-rewrite-url", b"x-forwarded-uri", b"x-forwarded-path"})
_METHODS = frozenset({b"x-http-method", b"x-http-method-override", b"x-method-override"})
URL_FIELDS = _SCHEMES | _HOSTS | _PREFIXES | _PATHS | _METHODS | {b"x-forwarded-port", b"forwarded"}

_OF_PROXIES = frozenset({  # what these say is used if a trusted proxy says it
    b"forwarded", b"x-forwarded-proto", b"x-forwarded-host", b"x-forwarded-prefix", b"x-forwarded-port",
})  # fmt: skip

_HOST = re.compile(rb"[a-z0-9_.-]+(?::[0-9]{1,5})?|\[[0-9a-f:.]+\](?::[0-9]{1,5})?")
_PORTS = {"http": b":80", "https": b":443"}
_MEANT = {"ws": "http", "wss": "https", "on": "https", "off": "http", "1": "https", "0": "http"}
_PORT = re.compile(rb":([0-9]+)$")
_PREFIX = re.compile(rb"/[^?# ]*")
_SAFE = "/!$&'()*+,;=:@~%-._"
LONGEST_NAME = 253  # characters of an address that is looked at


class Address(NamedTuple):
    """Where a request goes.

    Args:
        scheme: ``"http"`` or ``"https"``.
        host: in lower case, without the scheme's own port.
        path: as it was sent, with what a proxy has stripped of it.
        query: as it was sent.
        prefix: what the path begins with although the application does not see it, or sees it as its root_path.
        certain: False if a field of the request, which no trusted proxy has sent, names another URL or method.
    """

    scheme: str
    host: bytes
    path: bytes
    query: bytes
    prefix: bytes = b""
    certain: bool = True


class Proxies:
    """The proxies whose forwarded fields are believed.

    Args:
        trusted: addresses, networks, ``"localhost"``, ``"unix"`` for a Unix socket, other names as the server puts them
            into the scope, or ``"*"`` for all.

    Raises `ConfigurationError` for anything else.
    """

    def __init__(self, trusted: Iterable[str] | str) -> None:
        names = _names_in(trusted)
        self._all = "*" in names
        self._names: set[str] = set()
        self._networks: list[IPv4Network | IPv6Network] = []
        for name in sorted(names):
            self._add(name)
        self.none: bool = not names
        self._is_trusted = lru_cache(1024)(self._look)

    def _add(self, name: str) -> None:
        try:
            self._networks.append(ip_network(name))
        except ValueError as error:
            if "/" in name or ":" in name or name.replace(".", "").isdigit():
                raise ConfigurationError(
                    f"trusted_proxies: {name!r} is neither an address nor a network: {error}"
                ) from error
            self._names.add(name)
            if name == "localhost":
                self._networks += [ip_network("127.0.0.0/8"), ip_network("::1")]

    def _look(self, name: str) -> bool:
        if self._all or name in self._names:
            return True
        address = _ip_of(name)
        return address is not None and any(address in network for network in self._networks)

    def trusts(self, name: str) -> bool:
        """True if *name* is the address of one of these proxies."""
        return len(name) <= LONGEST_NAME and self._is_trusted(name.lower())

    def hops(self, scope: _Scope, headers: Mapping[bytes, bytes]) -> int:
        """How many trusted proxies in a row, counted from this server, the request has come through; 0: none."""
        if self.none:
            return 0
        chain = [_bare(each) for each in listed(headers.get(b"x-forwarded-for", b""))]
        if not chain and b"forwarded" in headers:
            chain = [_bare(each.get(b"for", b"")) for each in forwarded(headers[b"forwarded"]) or ()]
        client = scope.get("client")
        name, port = ("unix", 1) if not client or not client[0] else (str(client[0]), client[1])
        if port == 0 and name in chain:
            # The server has put the client's address in the place of its peer's: its peer is a proxy that it trusts.
            return chain[::-1].index(name) + 1
        hops = 0
        for each in [name, *reversed(chain)]:
            if not self.trusts(each):
                break
            hops += 1
        return hops


def address_of(scope: _Scope, headers: Mapping[bytes, bytes], proxies: Proxies, root: str = "") -> Address | None:
    """The public URL of *scope*; None if it has none, as with several Host fields.

    Args:
        headers: of the request, by lower-case name, lines combined.
        root: the root_path that the application inside sets by itself.
    """
    host = headers.get(b"host", b"").lower()
    scheme = scope.get("scheme", "http")
    if scheme not in _PORTS or _HOST.fullmatch(host) is None:
        return None
    raw = scope.get("raw_path")
    path = raw.partition(b"?")[0] if raw else quote(scope["path"], safe=_SAFE).encode()
    prefix = (root or scope.get("app_root_path") or scope.get("root_path") or "").rstrip("/")
    if prefix:
        written = quote(prefix, safe=_SAFE).encode()
        if not _is_below(scope["path"], prefix):
            path = written + path
        address = Address(scheme, host.removesuffix(_PORTS[scheme]), path, scope.get("query_string", b""), written)
    else:
        address = Address(scheme, host.removesuffix(_PORTS[scheme]), path, scope.get("query_string", b""))
    told = URL_FIELDS & headers.keys()
    return _told(address, scope, headers, told, proxies) if told else address


def _told(
    address: Address, scope: _Scope, headers: Mapping[bytes, bytes], told: AbstractSet[bytes], proxies: Proxies
) -> Address:
    """The address that the fields in *told* name, if they may; else *address*, which is uncertain if they differ."""
    public = address
    hops = proxies.hops(scope, headers)
    if hops:
        named = _named(address, headers, hops)
        if named is None:
            return address._replace(certain=False)
        public = named
        told = told - _OF_PROXIES
    path = scope.get("raw_path", b"").partition(b"?")[0]
    for name in told:
        if not _agrees(name, headers[name], scope["method"], (address, public, address._replace(path=path))):
            return public._replace(certain=False)
    return public


def _named(address: Address, headers: Mapping[bytes, bytes], hops: int) -> Address | None:
    """What trusted proxies say of *address*; None if that cannot be read, or if two fields differ."""
    scheme, host = _by_hop(headers, b"x-forwarded-proto", hops), _by_hop(headers, b"x-forwarded-host", hops)
    prefix = (_by_hop(headers, b"x-forwarded-prefix", hops) or b"").rstrip(b"/")
    if b"forwarded" in headers:
        elements = forwarded(headers[b"forwarded"])
        if elements is None:
            return None
        said = [next((each[name] for each in elements[-hops:] if name in each), None) for name in (b"proto", b"host")]
        if any(None not in pair and pair[0] != pair[1] for pair in zip(said, (scheme, host), strict=True)):
            return None  # a proxy that sets one of them often passes the other one on as the client has sent it
        scheme, host = said[0] or scheme, said[1] or host
    name = address.scheme if scheme is None else _scheme(scheme)
    host = address.host if host is None else host
    if name not in _PORTS or _HOST.fullmatch(host) is None:
        return None
    path, before = address.path, address.prefix
    if prefix:
        if _PREFIX.fullmatch(prefix) is None:
            return None
        if path != prefix and not path.startswith(prefix + b"/"):
            path, before = prefix + path, prefix + before
        before = before or prefix
    return Address(name, host.removesuffix(_PORTS[name]), path, address.query, before)


def _by_hop(headers: Mapping[bytes, bytes], name: bytes, hops: int) -> bytes | None:
    """The value that the outermost of *hops* trusted proxies has set or added; None if there is none."""
    values = listed(headers.get(name, b""))
    if not values:
        return None
    value = values[-min(hops, len(values))]
    return value if name == b"x-forwarded-prefix" else value.lower()


def _agrees(name: bytes, value: bytes, method: str, known: tuple[Address, ...]) -> bool:
    """True if the field says nothing but what is *known*."""
    if name in _METHODS:
        return value.strip().upper() == method.encode()
    if name == b"forwarded":
        elements = forwarded(value)
        return elements is not None and all(
            (b"proto" not in each or _agrees(b"x-forwarded-proto", each[b"proto"], method, known))
            and (b"host" not in each or _agrees(b"x-forwarded-host", each[b"host"], method, known))
            for each in elements
        )
    return all(any(_is_of(name, each, one) for one in known) for each in listed(value))


def _is_of(name: bytes, value: bytes, address: Address) -> bool:
    if name in _SCHEMES:
        return _scheme(value.lower()) == address.scheme
    if name in _HOSTS:
        return value.lower().removesuffix(_PORTS[address.scheme]) == address.host
    if name == b"x-forwarded-port":
        port = _PORT.search(address.host)
        return value == (port[1] if port else _PORTS[address.scheme][1:])
    if name in _PREFIXES:
        return value.rstrip(b"/") == address.prefix
    start = b"%s://%s" % (address.scheme.encode(), address.host)
    return value.removeprefix(start) in {address.path, b"%s?%s" % (address.path, address.query)}


def without_port(scheme: str, host: bytes) -> bytes:
    """*host* without the port that *scheme* has anyway."""
    return host.removesuffix(_PORTS.get(scheme, b""))


def _scheme(value: bytes) -> str:
    """The scheme that *value* means: of a websocket's, or of a switch, too."""
    text = value.decode("latin-1")
    return _MEANT.get(text, text)


def _names_in(trusted: Any) -> set[str]:
    try:
        names: list[Any] = [trusted] if isinstance(trusted, str) else list(trusted)
    except TypeError:
        names = [trusted]
    if not all(isinstance(name, str) and name.strip() for name in names):
        raise ConfigurationError(
            f"trusted_proxies must be a tuple of addresses, networks or names of proxies, got {trusted!r}"
        )
    return {part.strip().lower() for name in names for part in name.split(",")}


def _is_below(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(prefix + "/")


def _bare(value: bytes) -> str:
    """The address in an element of X-Forwarded-For, or in a ``for`` of Forwarded: without port and brackets."""
    text = value.decode("latin-1").lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text


def _ip_of(name: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(name)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
