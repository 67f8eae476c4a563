"""What real applications and clients send although they seldom should, and what RFC 9110 and 9111 make of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cacheguard import CacheGuard
from cacheguard.errors import ConfigurationError
from cacheguard_asgi import HTTPCacheMiddleware, url_key
from tests.integrations.asgi.conftest import Client, OpenClient, Origin

FRESH = ("cache-control", "max-age=60")
OLD = ("age", "100")
TAGGED = ("etag", '"a"')


@pytest.fixture
async def guard() -> AsyncIterator[CacheGuard]:
    async with CacheGuard("memory://") as guard:
        yield guard


async def sent(app: Any, method: str = "GET", **headers: str) -> list[dict[str, Any]]:
    """The messages that a server gets for one request."""
    messages: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        messages.append(message)

    fields = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope: dict[str, Any] = {
        "type": "http", "method": method, "scheme": "http", "path": "/", "raw_path": b"/", "query_string": b"",
        "headers": [(b"host", b"shop.example"), *fields], "client": ("192.0.2.1", 9), "extensions": {},
    }  # fmt: skip
    await app(scope, receive, send)
    return messages


# Cache-Control


@pytest.mark.parametrize(
    "lines",
    [
        ["no-cache=, max-age=60"],
        ['no-cache="", max-age=60'],
        ['no-cache="x-a", no-cache, max-age=60'],
        ['no-cache, no-cache="x-a", max-age=60'],
        ['no-cache="x-a", max-age=60', "no-cache"],
        ["private; foo, max-age=60"],
        ["foo; private, max-age=60"],
        ["private =x, max-age=60"],
        ["no-store; max-age=60, max-age=60"],
        ["no-cache;, max-age=60"],
    ],
)
async def test_of_what_forbids_reuse_the_strictest_counts(origin: Origin, client: Client, lines: list[str]) -> None:
    origin.says(*(("cache-control", line) for line in lines), TAGGED)
    for _ in range(3):
        await client.get()
    assert origin.runs == 3


async def test_the_strictest_counts_in_a_targeted_field(origin: Origin, client: Client) -> None:
    origin.says(("cdn-cache-control", 'no-cache="", max-age=60'), TAGGED)
    await client.get()
    await client.get()
    assert origin.runs == 2


async def test_all_fields_that_no_cache_names_are_left_out(origin: Origin, client: Client) -> None:
    origin.says(("cache-control", 'no-cache="x-a", max-age=60, no-cache="x-b"'), ("x-a", "1"), ("x-b", "2"))
    await client.get()
    answer = await client.get()
    assert origin.runs == 1
    assert not {"x-a", "x-b"} & answer.headers.keys()


@pytest.mark.parametrize(("control", "runs"), [("max-age=60", 2), ("public, max-age=60", 1), ("s-maxage=60", 1)])
async def test_a_targeted_field_shares_answers_to_authorization_only_if_it_says_so(
    origin: Origin, client: Client, control: str, runs: int
) -> None:
    origin.says(("cdn-cache-control", control))
    await client.get(authorization="Basic YW5u")
    await client.get(authorization="Basic Ym9i")
    assert origin.runs == runs


@pytest.mark.parametrize("raises", [False, True])
async def test_no_cache_is_never_served_in_the_place_of_a_failure(origin: Origin, client: Client, raises: bool) -> None:
    origin.says(("cache-control", "no-cache, max-age=60"), TAGGED)
    await client.get()
    origin.says(status=500)
    origin.error = RuntimeError("down") if raises else None
    try:
        status = (await client.get()).status_code
    except RuntimeError:
        status = 500
    assert status == 500


async def test_heuristic_freshness_needs_no_date(origin: Origin, open_client: OpenClient) -> None:
    origin.says(("last-modified", "Thu, 01 Jan 2015 00:00:00 GMT"))
    client = open_client(heuristic=0.1)
    await client.get()
    await client.get()
    assert origin.runs == 1


# Vary


@pytest.mark.parametrize(
    ("field", "one", "other"),
    [
        ("cookie", ["user=ann, x"], ["user=ann,x"]),
        ("cookie", ['user="a  b"'], ['user="a b"']),
        ("cookie", ["a=1", "b=2"], ["a=1, b=2"]),
        ("authorization", ["Digest a, b"], ["Digest a,b"]),
        ("x-user", ["Ann  Lee"], ["Ann Lee"]),
        ("x-user", ["Ann\tLee"], ["Ann Lee"]),
        ("x-user", ['"Lee, Ann"'], ['"Lee,Ann"']),
    ],
)
async def test_values_that_an_application_can_tell_apart_have_pages_of_their_own(
    origin: Origin, open_client: OpenClient, field: str, one: list[str], other: list[str]
) -> None:
    origin.says(("cache-control", "public, max-age=60"), ("vary", field))
    cache = open_client().app
    for values in (one, other):

        async def as_asked(scope: Any, receive: Any, send: Any, values: list[str] = values) -> None:
            fields = [(field.encode(), value.encode()) for value in values]
            await cache({**scope, "headers": [*scope["headers"], *fields]}, receive, send)

        await sent(as_asked)
    assert origin.runs == 2


async def test_two_lines_of_cookies_are_one(origin: Origin, client: Client) -> None:
    origin.says(FRESH, ("vary", "cookie"))

    async def split(scope: Any, receive: Any, send: Any) -> None:
        lines = [(b"cookie", b"a=1"), (b"cookie", b"b=2")]
        await client.app({**scope, "headers": [*scope["headers"], *lines]}, receive, send)

    await sent(split)
    await sent(client.app, cookie="a=1; b=2")
    assert origin.runs == 1


# Validation


async def test_the_client_of_a_validation_gets_nothing_of_the_connection(origin: Origin, client: Client) -> None:
    origin.says(FRESH, OLD, TAGGED)
    await client.get()
    origin.says(TAGGED, ("connection", "x-a"), ("x-a", "1"), ("transfer-encoding", "chunked"), body=b"", status=304)
    answer = await client.get()
    assert not {"connection", "x-a", "transfer-encoding"} & answer.headers.keys()
    assert answer.headers["content-length"] == "5"


@pytest.mark.parametrize("said", [("cache-control", "private, max-age=5"), ("set-cookie", "visit=2")])
async def test_the_client_gets_what_a_304_says_though_it_may_not_be_stored(
    origin: Origin, client: Client, said: tuple[str, str]
) -> None:
    origin.says(FRESH, OLD, TAGGED, ("content-type", "text/plain"))
    await client.get()
    origin.says(TAGGED, said, body=b"", status=304)
    answer = await client.get()
    assert (answer.status_code, answer.content, answer.headers[said[0]]) == (200, b"hello", said[1])
    assert answer.headers["content-type"] == "text/plain"
    assert answer.headers["cache-status"] == "cacheguard; fwd=stale; fwd-status=304"
    assert len(answer.headers.get_list("age")) == 1


async def test_the_client_of_a_validation_gets_what_no_cache_keeps_from_others(origin: Origin, client: Client) -> None:
    origin.says(("cache-control", 'max-age=60, no-cache="x-a"'), OLD, TAGGED)
    await client.get()
    origin.says(("cache-control", 'max-age=60, no-cache="x-a"'), TAGGED, ("x-a", "1"), body=b"", status=304)
    assert (await client.get()).headers["x-a"] == "1"
    assert "x-a" not in (await client.get()).headers


async def test_a_304_with_an_earlier_last_modified_is_about_another_page(origin: Origin, client: Client) -> None:
    origin.says(("cache-control", "max-age=0"), ("last-modified", "Thu, 01 Jan 2026 00:00:00 GMT"), body=b"new")
    await client.get()
    back = (FRESH, ("last-modified", "Wed, 01 Jan 2025 00:00:00 GMT"))  # an older release is deployed again
    origin.answer = lambda asked: (
        304 if b"if-modified-since" in asked else 200,
        [(name.encode(), value.encode()) for name, value in back],
        [b"" if b"if-modified-since" in asked else b"old"],
    )
    assert (await client.get()).content == b"old"
    assert (await client.get()).content == b"old"
    assert origin.runs == 3


# Ranges and other fields that are no part of the key


@pytest.mark.parametrize(
    ("status", "asked"), [(416, {"range": "bytes=9-"}), (417, {"expect": "x"}), (412, {"if_range": '"a"'})]
)
async def test_the_answer_to_a_field_of_one_request_is_not_for_others(
    origin: Origin, client: Client, status: int, asked: dict[str, str]
) -> None:
    for _ in range(4):
        origin.says(FRESH, status=status)
        assert (await client.get(**asked)).status_code == status
    origin.says(FRESH)
    answer = await client.get()
    assert answer.status_code == 200
    assert answer.headers["cache-status"] == "cacheguard; fwd=uri-miss; stored"  # such answers do not end caching


@pytest.mark.parametrize("kind", ["bytes=-5", "bytes=-" + "9" * 30])
async def test_the_last_bytes_of_nothing_are_the_whole(origin: Origin, client: Client, kind: str) -> None:
    origin.says(FRESH, body=b"")
    for _ in range(2):
        answer = await client.get(range=kind, if_none_match='"x"')
        assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize(
    ("asked", "body"),
    [("bytes=-" + "9" * 30, b"hello"), ("bytes=1-" + "9" * 30, b"ello"), ("bytes=" + "0" * 30 + "1-2", b"el")],
)
async def test_positions_of_any_length_are_read(origin: Origin, client: Client, asked: str, body: bytes) -> None:
    origin.says(FRESH)
    await client.get()
    answer = await client.get(range=asked)
    assert (answer.status_code, answer.content) == (206, body)


async def test_after_a_part_one_request_gets_the_whole_for_all(origin: Origin, client: Client) -> None:
    async def slow() -> None:
        await asyncio.sleep(0.02)

    origin.before = slow
    origin.answer = lambda asked: (
        (206, [(b"cache-control", b"max-age=60"), (b"content-range", b"bytes 0-1/5"), (b"etag", b'"a"')], [b"he"])
        if asked.get(b"range") == b"bytes=0-1"
        else (200, [(b"cache-control", b"max-age=60"), (b"etag", b'"a"')], [b"hello"])
    )
    part, *whole = await asyncio.gather(client.get(range="bytes=0-1"), *(client.get() for _ in range(20)))
    assert part.content == b"he"
    assert {answer.content for answer in whole} == {b"hello"}
    assert origin.runs == 2


# Messages


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize("control", [b"max-age=60", b"no-store"])
async def test_headers_may_be_any_iterable(guard: CacheGuard, method: str, control: bytes) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({
            "type": "http.response.start", "status": 200,
            "headers": (each for each in [(b"cache-control", control), (b"x-a", b"1")]),
        })  # fmt: skip
        await send({"type": "http.response.body", "body": b"x"})

    cache = HTTPCacheMiddleware(app, guard)
    for _ in range(6):
        assert (b"x-a", b"1") in (await sent(cache, method))[0]["headers"]


async def test_names_of_fields_in_upper_case_are_cut_too(origin: Origin, client: Client) -> None:
    origin.says(("Cache-Control", "no-store"), ("Content-Length", "5"), ("Content-Type", "text/plain"), ("ETag", '"a"'))
    part = await sent(client.app, range="bytes=0-1", if_none_match='"x"')
    assert [value for name, value in part[0]["headers"] if name.lower() == b"content-length"] == [b"2"]
    same = await sent(client.app, if_none_match='"a"')
    assert not {b"content-length", b"content-type"} & {name.lower() for name, _ in same[0]["headers"]}


async def test_who_gets_no_body_is_promised_no_trailers(guard: CacheGuard) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({
            "type": "http.response.start", "status": 200, "trailers": True,
            "headers": [(b"cache-control", b"max-age=60"), (b"etag", b'"a"')],
        })  # fmt: skip
        await send({"type": "http.response.body", "body": b"x"})
        await send({"type": "http.response.trailers", "headers": []})

    cache = HTTPCacheMiddleware(app, guard)
    messages = await sent(cache, if_none_match='"a"')
    assert [message["type"] for message in messages] == ["http.response.start", "http.response.body"]
    assert not messages[0].get("trailers")
    assert [message["type"] for message in await sent(cache)][-1] == "http.response.trailers"


# What is said of it


async def test_cache_status_says_that_the_request_wanted_no_stored_response(origin: Origin, client: Client) -> None:
    origin.says(FRESH)
    await client.get()
    assert "fwd=request" in (await client.get(cache_control="no-cache")).headers["cache-status"]
    assert "fwd=request" in (await client.ask("HEAD", cache_control="max-age=0")).headers["cache-status"]


async def test_cache_status_says_that_a_variant_is_missing(origin: Origin, client: Client) -> None:
    origin.says(FRESH, ("vary", "x-a"))
    await client.get(x_a="1")
    assert (await client.ask("HEAD", x_a="2")).headers["cache-status"] == "cacheguard; fwd=vary-miss"
    assert (await client.ask("HEAD", "/other")).headers["cache-status"] == "cacheguard; fwd=uri-miss"
    for _ in range(2):
        assert (await client.get(x_a="a" * 5000)).headers["cache-status"] == "cacheguard; fwd=vary-miss"


@pytest.mark.parametrize("status", ["caché", "1st", "a b", "", "-a"])
async def test_the_name_in_cache_status_is_a_token(origin: Origin, guard: CacheGuard, status: str) -> None:
    with pytest.raises(ConfigurationError, match="status must be a name"):
        HTTPCacheMiddleware(origin, guard, status=status)


# URLs


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("http://shop.example/x/../b", "/b"),
        ("http://shop.example/./b?c=/../d", "/b?c=/../d"),
        ("http://shop.example", "/"),
        ("  /b ", "/b"),
        ("/caf\u00c3\u00a9", "/caf%C3%A9"),
        ("/caf%C3%A9?x=%2F", "/caf%C3%A9?x=%2F"),
        ("?page=2", "/a?page=2"),
    ],
)
async def test_location_names_the_url_that_a_client_would_ask_for(
    origin: Origin, client: Client, location: str, url: str
) -> None:
    origin.says(FRESH)
    await client.get(url)
    origin.says(("location", location), status=201)
    await client.ask("POST", "/a")
    origin.says(FRESH)
    await client.get(url)
    assert origin.runs == 3


@pytest.mark.parametrize("url", [None, 5, b"http://shop.example/"])
def test_url_key_wants_text(url: Any) -> None:
    with pytest.raises(ValueError, match="url must be absolute"):
        url_key(url)
