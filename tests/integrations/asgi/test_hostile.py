"""What attackers try with caches, and what comes of it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cacheguard import CacheGuard
from cacheguard_asgi import HTTPCacheMiddleware, url_key
from cacheguard_asgi.address import URL_FIELDS
from cacheguard_asgi.fields import content_range, date, directives, etags, span, targeted
from tests.integrations.asgi.conftest import Client, Origin

FRESH = ("cache-control", "max-age=60")


@pytest.mark.parametrize("name", sorted(URL_FIELDS - {b"forwarded"}))
async def test_a_field_that_nobody_varies_by_poisons_only_its_like(origin: Origin, client: Client, name: bytes) -> None:
    origin.answer = lambda headers: (200, [(b"cache-control", b"max-age=60")], [headers.get(name, b"clean")])
    assert (await client.ask("GET", "/", **{name.decode(): "evil.example"})).content == b"evil.example"
    assert (await client.get()).content == b"clean"
    assert (await client.ask("GET", "/", **{name.decode(): "other.example"})).content == b"other.example"


async def test_forwarded_tells_no_clients_apart(origin: Origin, client: Client) -> None:
    origin.answer = lambda headers: (200, [(b"cache-control", b"max-age=60")], [headers.get(b"forwarded", b"")])
    await client.get("/", forwarded="for=1.2.3.4;proto=http")
    assert (await client.get("/", forwarded="for=5.6.7.8;host=shop.example")).content == b"for=1.2.3.4;proto=http"
    assert (await client.get("/", forwarded="for=5.6.7.8;host=evil")).content == b"for=5.6.7.8;host=evil"
    assert origin.runs == 2


@pytest.mark.parametrize(
    "hosts",
    [
        [],
        [b"a.example", b"b.example"],
        [b"a.example/x"],
        [b"a.example?x"],
        [b"a b"],
        [b""],
        [b"a.example:99999999"],
        [b"\xff"],
    ],
)
async def test_a_request_whose_host_is_not_certain_is_not_cached(
    origin: Origin, guard: CacheGuard, hosts: list[bytes]
) -> None:
    origin.says(FRESH)
    await raw(origin, guard, [(b"host", host) for host in hosts])
    await raw(origin, guard, [(b"host", host) for host in hosts])
    assert origin.runs == 2


@pytest.mark.parametrize(
    "headers",
    [
        [(b"content-length", b"5")],
        [(b"transfer-encoding", b"chunked")],
        [(b"upgrade", b"h2c")],
        [(b"content-length", b"0"), (b"content-length", b"5")],
    ],
)
async def test_a_get_with_a_body_or_an_upgrade_is_not_cached(origin: Origin, guard: CacheGuard, headers: Any) -> None:
    origin.says(FRESH)
    for _ in range(2):
        await raw(origin, guard, [(b"host", b"shop.example"), *headers])
    assert origin.runs == 2


async def raw(
    origin: Any, guard: CacheGuard, headers: list[tuple[bytes, bytes]], path: bytes = b"/", query: bytes = b""
) -> bytes:
    body = b""

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        nonlocal body
        body += message.get("body", b"")

    scope = {"type": "http", "method": "GET", "path": path.decode("latin-1"), "raw_path": path, "query_string": query}
    await HTTPCacheMiddleware(origin, guard)({**scope, "scheme": "http", "headers": headers}, receive, send)
    return body


async def test_no_two_paths_share_a_response(guard: CacheGuard) -> None:
    async def echo(scope: Any, receive: Any, send: Any) -> None:
        control = [(b"cache-control", b"max-age=60")]
        await send({"type": "http.response.start", "status": 200, "headers": control})
        await send({"type": "http.response.body", "body": scope["raw_path"] + b"|" + scope["query_string"]})

    paths = [
        b"/account",
        b"/account/",
        b"/account/x.css",
        b"/account;x.css",
        b"/account%2fx.css",
        b"/account%3fx.css",
        b"//account",
        b"/./account",
        b"/a/../account",
        b"/ACCOUNT",
        b"/account%00",
        b"/account%20",
        b"/acc%6funt",
        b"/account\x85",
        b"/:::",
    ]
    for _ in range(2):
        for path in paths:
            for query in (b"", b"a=1&b=2", b"b=2&a=1", b"a=1&a=1", b"?", b"http /"):
                assert await raw(echo, guard, [(b"host", b"shop.example")], path, query) == path + b"|" + query


async def test_hosts_and_schemes_are_kept_apart(guard: CacheGuard, origin: Origin) -> None:
    origin.answer = lambda headers: (200, [(b"cache-control", b"max-age=60")], [headers[b"host"]])
    for _ in range(2):
        for host in (b"a.example", b"b.example", b"a.example:8080", b"[::1]", b"[::1]:80"):
            body = await raw(origin, guard, [(b"host", host)])
            assert body.removesuffix(b":80") == host.removesuffix(b":80")
    assert await raw(origin, guard, [(b"host", b"A.Example:80")]) == b"a.example"


async def test_a_range_of_nonsense_brings_nothing_else_into_the_cache(origin: Origin, client: Client) -> None:
    origin.says(FRESH, ("content-range", "bytes 0-1/2, bytes 5-6/9"), status=206, body=b"xx")
    await client.get("/", range="bytes=0-1")
    origin.says(FRESH, body=b"whole")
    assert (await client.get()).content == b"whole"
    origin.says(FRESH, ("content-range", "bytes 0-1/5"), status=206, body=b"yy")
    assert (await client.get("/", range="bytes=0-1")).content == b"wh"


async def test_a_selecting_field_of_any_length_is_no_key(origin: Origin, client: Client) -> None:
    origin.says(FRESH, ("vary", "x-a"))
    await client.get("/", x_a="a" * 5000)
    await client.get("/", x_a="a" * 5000)
    assert origin.runs == 2


@given(st.binary(max_size=60))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_fields_of_any_bytes_are_read_without_an_error(value: bytes) -> None:
    directives(value)
    targeted(value)
    date(value)
    etags(value)
    content_range(value)
    try:
        found = span(value, 10)
    except ValueError:
        return
    assert found is None or 0 <= found[0] < found[1] <= 10


@pytest.mark.parametrize("url", ["/relative", "ftp://a.example/", "http://a b/", "http://ä.example/", "http:///x", "x"])
def test_the_key_of_what_is_no_url_is_an_error(url: str) -> None:
    with pytest.raises(ValueError, match="url must be absolute"):
        url_key(url)


def test_the_key_of_a_url_is_the_one_it_is_stored_under() -> None:
    assert url_key("HTTPS://Shop.Example:443") == url_key("https://shop.example/")
    assert url_key("http://shop.example/a?b=1") != url_key("http://shop.example/a?b=2")
