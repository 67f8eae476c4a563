"""The key is the URL as the client sees it, whatever proxies, servers and applications say of it."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Mount
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from cacheguard import CacheGuard
from cacheguard.errors import ConfigurationError
from cacheguard_asgi import HTTPCacheMiddleware, url_key
from cacheguard_asgi.address import URL_FIELDS, Proxies, address_of
from cacheguard_asgi.fields import forwarded
from cacheguard_asgi.request import key_of
from tests.support.visits import Visit, visit

TRAEFIK = {
    "x-forwarded-for": "203.0.113.7", "x-forwarded-host": "shop.example", "x-forwarded-port": "80",
    "x-forwarded-proto": "http", "x-forwarded-server": "traefik-a", "x-real-ip": "203.0.113.7",
}  # fmt: skip


@pytest.fixture
async def guard() -> AsyncIterator[CacheGuard]:
    async with CacheGuard("memory://") as guard:
        yield guard


class Shop:
    """A price that a POST raises, and that says what it has been told."""

    def __init__(self) -> None:
        self.price, self.runs, self.location = 1, 0, ""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"cache-control", b"max-age=60")]
        if scope["method"] == "POST":
            self.price += 1
            headers = [(b"location", self.location.encode())] if self.location else []
        else:
            self.runs += 1
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"%d" % self.price})


async def price(app: Any, url: str = "/x", method: str = "GET", **options: Any) -> int:
    return int((await visit(app, url, method=method, **options)).body)


# What forwarded fields do, without and with trusted proxies

HARMLESS = {
    "none": {},
    "for": {"x-forwarded-for": "203.0.113.7"},
    "server": {"x-forwarded-server": "traefik-a"},
    "host, the same": {"x-forwarded-host": "Shop.Example"},
    "host with port, the same": {"x-forwarded-host": "shop.example:80"},
    "proto, the same": {"x-forwarded-proto": "http"},
    "proto of two, the same": {"x-forwarded-proto": "http, http"},
    "port, the same": {"x-forwarded-port": "80"},
    "prefix, empty": {"x-forwarded-prefix": ""},
    "prefix, the root": {"x-forwarded-prefix": "/"},
    "ssl, off": {"x-forwarded-ssl": "off"},
    "Forwarded for": {"forwarded": 'for="[2001:db8::1]:4711";by=10.0.0.1'},
    "Forwarded, the same": {"forwarded": "proto=http;host=shop.example"},
    "original url": {"x-original-url": "/x"},
    "uri": {"x-forwarded-uri": "/x"},
    "method": {"x-http-method-override": "GET"},
    "all of Traefik": TRAEFIK,
}


async def test_fields_that_say_nothing_new_neither_split_nor_hide_an_entry(guard: CacheGuard) -> None:
    shop = Shop()
    app = HTTPCacheMiddleware(shop, guard)
    for fields in HARMLESS.values():
        assert await price(app, headers=fields) == 1
    assert shop.runs == 1
    for one in HARMLESS.values():
        unsafe = {name: value for name, value in one.items() if name != "x-http-method-override"}
        assert await price(app, method="POST", headers=unsafe) == shop.price
        for other in HARMLESS.values():
            assert await price(app, headers=other) == shop.price
        shop.price += 1
        await guard.ainvalidate(url_key("http://shop.example/x"))
        assert await price(app, headers=one) == shop.price


@pytest.mark.parametrize("field", sorted(URL_FIELDS | {b"x-forwarded-server"}))
async def test_no_field_of_a_stranger_gets_into_a_page_of_others(guard: CacheGuard, field: bytes) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"cache-control", b"max-age=60")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": dict(scope["headers"]).get(field, b"clean")})

    cached = HTTPCacheMiddleware(app, guard)
    evil = {field.decode(): "host=evil.example" if field == b"forwarded" else "evil.example"}
    await visit(cached, headers=evil)
    assert (await visit(cached)).body == b"clean"
    await visit(cached, headers=evil)
    assert (await visit(cached)).said == "hit"


async def test_a_stranger_s_fields_are_logged_once(guard: CacheGuard, caplog: pytest.LogCaptureFixture) -> None:
    app = HTTPCacheMiddleware(Shop(), guard)
    with caplog.at_level(logging.WARNING, "cacheguard.asgi"):
        for _ in range(3):
            await visit(app, "/x", headers={"x-forwarded-proto": "https"})
            await visit(app, "/x", headers={"content-length": "3"})
    assert [record.message.count("trusted_proxies") for record in caplog.records] == [1]


# What a trusted proxy sends to http://10.0.0.5:8000/x (Host: as named), and the URL that its client has asked for.
PROXIED: dict[str, tuple[dict[str, str], str]] = {
    "nothing": ({}, "http://shop.example/x"),
    "proto": ({"x-forwarded-proto": "https"}, "https://shop.example/x"),
    "host": ({"host": "app:8000", "x-forwarded-host": "shop.example"}, "http://shop.example/x"),
    "host and proto": (
        {"host": "app:8000", "x-forwarded-host": "shop.example", "x-forwarded-proto": "https"},
        "https://shop.example/x",
    ),
    "host with the default port": (
        {"host": "app:8000", "x-forwarded-host": "shop.example:443", "x-forwarded-proto": "https"},
        "https://shop.example/x",
    ),
    "host with a port": ({"host": "app", "x-forwarded-host": "shop.example:8443"}, "http://shop.example:8443/x"),
    "prefix": ({"x-forwarded-prefix": "/api"}, "http://shop.example/api/x"),
    "prefix with slash": ({"x-forwarded-prefix": "/api/"}, "http://shop.example/api/x"),
    "port besides": ({"x-forwarded-proto": "https", "x-forwarded-port": "443"}, "https://shop.example/x"),
    "Forwarded": ({"host": "app", "forwarded": "for=1.2.3.4;proto=https;host=shop.example"}, "https://shop.example/x"),
    "Forwarded, quoted": ({"host": "app", "forwarded": 'host="shop.example:8443"'}, "http://shop.example:8443/x"),
    "both, the same": ({"forwarded": "proto=https", "x-forwarded-proto": "https"}, "https://shop.example/x"),
    "two proxies": (
        {
            "host": "app", "x-forwarded-for": "203.0.113.7, 10.0.0.8", "x-forwarded-host": "shop.example, inner",
            "x-forwarded-proto": "https, http",
        },
        "https://shop.example/x",
    ),
    "what the client has put before": (
        {"host": "app", "x-forwarded-for": "6.6.6.6, 203.0.113.7", "x-forwarded-host": "evil.example, shop.example"},
        "http://shop.example/x",
    ),
    "Forwarded of two": (
        {"host": "app", "forwarded": "for=203.0.113.7;host=shop.example;proto=https, for=10.0.0.8;host=in;proto=http"},
        "https://shop.example/x",
    ),
    "Forwarded with the client's": (
        {"host": "app", "forwarded": "for=6.6.6.6;host=evil.example, for=203.0.113.7;host=shop.example"},
        "http://shop.example/x",
    ),
    "all of Traefik": (TRAEFIK | {"x-forwarded-proto": "https", "x-forwarded-port": "443"}, "https://shop.example/x"),
}  # fmt: skip


@pytest.mark.parametrize("client", [("10.0.0.9", 1234), ("::ffff:10.0.0.9", 1234)])
@pytest.mark.parametrize("name", PROXIED)
async def test_a_trusted_proxy_says_the_public_url(guard: CacheGuard, name: str, client: Any) -> None:
    headers, url = PROXIED[name]
    shop = Shop()
    app = HTTPCacheMiddleware(shop, guard, trusted_proxies=["10.0.0.0/8"])
    options: dict[str, Any] = {"headers": headers, "scope": {"client": client}}
    assert [await price(app, **options), await price(app, **options), shop.runs] == [1, 1, 1]
    assert await guard.aget(url_key(url)) is not None
    assert await price(app, method="POST", **options) == 2
    assert [await price(app, **options), await price(app, **options), shop.runs] == [2, 2, 2]
    shop.location = url
    await price(app, "/other", method="POST", **options)
    assert await guard.aget(url_key(url)) is None


@pytest.mark.parametrize("name", [name for name in PROXIED if name != "nothing"])
async def test_the_same_from_others_says_nothing(guard: CacheGuard, name: str) -> None:
    headers, url = PROXIED[name]
    app = HTTPCacheMiddleware(Shop(), guard, trusted_proxies=["10.0.0.1"])
    for client in (("6.6.6.6", 5), ("10.0.0.9", 5), None, ("10.0.0.1.evil.example", 5)):
        await visit(app, "/x", headers=headers, scope={"client": client})
    assert await guard.aget(url_key(url)) is None


@pytest.mark.parametrize(
    "headers",
    [
        {"forwarded": "host=a.example", "x-forwarded-host": "b.example"},
        {"forwarded": "proto=https", "x-forwarded-proto": "http"},
        {"forwarded": 'host="a.example'},
        {"forwarded": "host=a.example;host=b.example"},
        {"x-forwarded-host": "a.example/x"},
        {"x-forwarded-host": "a b"},
        {"x-forwarded-proto": "gopher"},
        {"x-forwarded-prefix": "api"},
        {"x-forwarded-prefix": "/a?b"},
        {"x-original-url": "/admin"},
        {"x-http-method-override": "DELETE"},
        {"x-script-name": "/evil"},
    ],
)
async def test_what_a_trusted_proxy_says_twice_or_unreadably_is_not_cached(guard: CacheGuard, headers: Any) -> None:
    shop = Shop()
    app = HTTPCacheMiddleware(shop, guard, trusted_proxies="*")
    for _ in range(2):
        assert (await visit(app, headers=headers)).said == "fwd=bypass"
    assert shop.runs == 2


@pytest.mark.parametrize(
    ("trusted", "client", "is_trusted"),
    [
        ("10.0.0.9", "10.0.0.9", True),
        ("10.0.0.9", "10.0.0.10", False),
        ("10.0.0.0/8, 192.168.0.0/16", "192.168.3.4", True),
        (["::1"], "::1", True),
        (["2001:db8::/32"], "2001:db8::7", True),
        (["2001:db8::/32"], "2001:db9::7", False),
        (["localhost"], "127.0.0.1", True),
        (["localhost"], "::1", True),
        (["testclient"], "testclient", True),
        (["TestClient"], "testclient", True),
        (["unix"], None, True),
        (["unix"], "6.6.6.6", False),
        (["10.0.0.9"], None, False),
        (["*"], "6.6.6.6", True),
        ([], "127.0.0.1", False),
    ],
)
def test_proxies_are_named_by_address_network_or_name(trusted: Any, client: str | None, is_trusted: bool) -> None:
    scope = {"client": None if client is None else (client, 5)}
    assert bool(Proxies(trusted).hops(scope, {})) is is_trusted


@pytest.mark.parametrize("trusted", [[""], [1], 7, None, ["10.0.0.0/99"], ["10.0.0.1/8"], ["300.1.1.1"], [":::"]])
def test_a_proxy_that_cannot_be_meant_is_an_error(trusted: Any) -> None:
    with CacheGuard("memory://") as guard, pytest.raises(ConfigurationError, match="trusted_proxies"):
        HTTPCacheMiddleware(Shop(), guard, trusted_proxies=trusted)


async def test_behind_uvicorn_s_own_proxy_headers(guard: CacheGuard) -> None:
    """It puts the client's address and scheme into the scope, and takes the proxy's address away."""
    headers = TRAEFIK | {"host": "app:8000", "x-forwarded-proto": "https", "x-forwarded-port": "443"}
    shop = Shop()
    plain = ProxyHeadersMiddleware(HTTPCacheMiddleware(shop, guard), "127.0.0.1")  # type: ignore[arg-type]
    assert (await visit(plain, "/x", headers=headers)).said == "fwd=bypass", "nobody has named the proxy to the cache"
    assert (await visit(plain, "/x", headers=headers | {"host": "shop.example"})).said == "fwd=uri-miss; stored"
    await guard.aclear()
    named = HTTPCacheMiddleware(shop, guard, trusted_proxies=["127.0.0.1"])
    behind = ProxyHeadersMiddleware(named, "127.0.0.1")  # type: ignore[arg-type]
    await visit(behind, "/x", headers=headers)
    assert (await visit(behind, "/x", headers=headers)).said == "hit"
    assert await guard.aget(url_key("https://shop.example/x")) is not None
    # A stranger who connects directly gains nothing by the same fields.
    stranger = {"client": ("6.6.6.6", 5)}
    assert (await visit(behind, "/x", headers=headers, scope=stranger)).said == "fwd=bypass"
    forged = headers | {"x-forwarded-for": "6.6.6.6:5, 6.6.6.6"}
    assert (await visit(behind, "/x", headers=forged, scope=stranger)).said == "fwd=bypass"


# Paths that a proxy has stripped: every set-up of FastAPI's page "Behind a Proxy"


def fastapi_app(prices: list[int], **options: Any) -> FastAPI:
    app = FastAPI(**options)

    @app.get("/p/1", name="one")
    def one() -> JSONResponse:
        return JSONResponse(prices[0], headers={"Cache-Control": "max-age=60"})

    @app.post("/p")
    def create(request: Request) -> JSONResponse:
        prices[0] += 1
        named = {
            "absolute": str(request.url_for("one")),
            "path": request.url_for("one").path,
            "inner path": "/p/1",
            "relative": "p/1",
        }[request.query_params["as"]]
        return JSONResponse({}, 201, {request.query_params.get("field", "Location"): named})

    @app.post("/p/1")
    def change() -> JSONResponse:
        prices[0] += 1
        return JSONResponse({})

    return app


def added(app: Any, guard: CacheGuard, **options: Any) -> Any:
    app.add_middleware(HTTPCacheMiddleware, guard=guard, **options)
    return app


def wrapped(app: Any, guard: CacheGuard, **options: Any) -> Any:
    return HTTPCacheMiddleware(app, guard, **options)


# options of FastAPI, what the server says, path before the route, fields, public prefix
SETUPS: dict[str, tuple[dict[str, Any], dict[str, Any], str, dict[str, str], str]] = {
    "no proxy": ({}, {}, "", {}, ""),
    "root_path of the server, as uvicorn has it": ({}, {"root_path": "/api"}, "/api", {}, "/api"),
    "root_path of the server, path without it": ({}, {"root_path": "/api"}, "", {}, "/api"),
    "root_path with a slash": ({}, {"root_path": "/api/"}, "", {}, "/api"),
    "root_path of the application": ({"root_path": "/api"}, {}, "", {}, "/api"),
    "root_path of both": ({"root_path": "/api"}, {"root_path": "/api"}, "/api", {}, "/api"),
    "deep root_path": ({"root_path": "/api/v1"}, {}, "", {}, "/api/v1"),
    "the proxy says its prefix": ({}, {}, "", {"x-forwarded-prefix": "/api"}, "/api"),
    "prefix and root_path": ({"root_path": "/api"}, {}, "", {"x-forwarded-prefix": "/api"}, "/api"),
    "Traefik with TLS": (
        {"root_path": "/api"}, {"scheme": "https"}, "",
        TRAEFIK | {"x-forwarded-proto": "https", "x-forwarded-port": "443", "x-forwarded-prefix": "/api"}, "/api",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::fastapi.exceptions.FastAPIDeprecationWarning")
@pytest.mark.parametrize("stands", [added, wrapped], ids=["added", "wrapped"])
@pytest.mark.parametrize("name", SETUPS)
async def test_location_purge_and_posts_reach_the_page_in_every_set_up_of_fastapi(
    guard: CacheGuard, name: str, stands: Any
) -> None:
    options, server, before, fields, prefix = SETUPS[name]
    prices = [1]
    app = stands(fastapi_app(prices, **options), guard, trusted_proxies=["127.0.0.1"])
    public = f"{server.get('scheme', 'http')}://shop.example{prefix}"

    async def ask(url: str, method: str = "GET") -> Visit:
        return await visit(app, before + url, method=method, headers=fields, scope=dict(server))

    assert (await ask("/p/1")).body == b"1"
    assert (await ask("/p/1")).said == "hit"
    for field in ("Location", "Content-Location"):
        for way in ("absolute", "path", "inner path", "relative"):
            assert (await ask(f"/p?as={way}&field={field}", "POST")).status == 201
            assert (await ask("/p/1")).body == b"%d" % prices[0], (field, way)
    await ask("/p/1", "POST")
    assert (await ask("/p/1")).body == b"%d" % prices[0]
    prices[0] += 1
    await guard.ainvalidate(url_key(f"{public}/p/1"))
    assert (await ask("/p/1")).body == b"%d" % prices[0]


async def test_a_mounted_application_has_the_urls_of_the_whole(guard: CacheGuard) -> None:
    shop = Shop()
    inner = Starlette(routes=[Mount("/", shop)], middleware=[Middleware(HTTPCacheMiddleware, guard=guard)])
    for root in ("", "/api"):
        app = Starlette(routes=[Mount("/sub", inner)])
        scope = {"root_path": root}
        for path in ("/sub/x", *([root + "/sub/x"] if root else [])):
            await guard.aclear()
            assert await price(app, path, scope=scope) == shop.price
            assert await guard.aget(url_key(f"http://shop.example{root}/sub/x")) is not None, (root, path)


@pytest.mark.parametrize(
    ("location", "is_reached"),
    [
        ("http://shop.example/x", True),
        ("http://SHOP.example:80/x", True),
        ("//shop.example/x", True),
        ("/x", True),
        ("x", True),
        ("./x#part", True),
        ("http://app:8000/x", True),  # as the application sees its host
        ("https://shop.example/x", False),
        ("http://other.example/x", False),
        ("http://shop.example:8080/x", False),
        ("http://user@shop.example/x", False),
        ("http://[bad/x", False),
        ("mailto:shop@shop.example", False),
    ],
)
async def test_a_location_of_the_same_host_is_reached(guard: CacheGuard, location: str, is_reached: bool) -> None:
    shop = Shop()
    shop.location = location
    app = HTTPCacheMiddleware(shop, guard, trusted_proxies=["127.0.0.1"])
    proxied = {"host": "app:8000", "x-forwarded-host": "shop.example"}
    assert await price(app, headers=proxied) == 1
    await price(app, "/other", method="POST", headers=proxied)
    assert await price(app, headers=proxied) == (2 if is_reached else 1)


# Any fields at all

VALUES = st.sampled_from([
    "", "http", "https", "wss", "on", "80", "443", "shop.example", "shop.example:443", "evil.example", "/", "/api",
    "/x", "for=1.1.1.1", "host=evil.example", "proto=https;host=shop.example", 'host="a,b"', "a, b", "\x00",
])  # fmt: skip
FIELDS = st.dictionaries(st.sampled_from(sorted(URL_FIELDS | {b"x-forwarded-for"})), VALUES.map(str.encode), max_size=4)


@given(FIELDS)
def test_without_trusted_proxies_an_entry_has_the_url_of_the_server_or_there_is_none(
    fields: dict[bytes, bytes],
) -> None:
    scope = {
        "method": "GET",
        "scheme": "http",
        "path": "/x",
        "raw_path": b"/x",
        "query_string": b"",
        "client": ("::1", 5),
    }
    headers = {b"host": b"shop.example", **fields}
    address = address_of(scope, headers, Proxies(()))
    assert address is not None
    assert key_of(address) == url_key("http://shop.example/x")
    named = address_of(scope, headers, Proxies("*"))
    assert named is not None
    assert not named.certain or (key_of(named) or "").endswith("/x?")


@given(st.binary(max_size=60) | st.text('ab=;," \\', max_size=20).map(str.encode))
def test_forwarded_of_any_bytes_is_read_or_refused(value: bytes) -> None:
    elements = forwarded(value)
    assert elements is None or all(name and b" " not in name for each in elements for name in each)
