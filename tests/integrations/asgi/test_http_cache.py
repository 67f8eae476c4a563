"""The cache does what RFC 9111, 5861, 9110, 9211 and 9213 say, in front of an application and a real Redis."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from typing import Any

import httpx
import pytest

from cacheguard import CacheGuard
from cacheguard.errors import ConfigurationError
from cacheguard_asgi import HTTPCacheMiddleware, url_key
from tests.integrations.asgi.conftest import Client, OpenClient, Origin

FRESH = ("cache-control", "max-age=60")
URL = "http://shop.example/"


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_fresh_response_is_served_byte_for_byte(origin: Origin, client: Client) -> None:
    origin.says(FRESH, ("x-a", "1"), ("x-a", "2"), ("content-type", "text/plain"), body=[b"he", b"llo"])
    first, second = await client.get(), await client.get()
    assert origin.runs == 1
    assert first.content == second.content == b"hello"
    assert first.headers["cache-status"] == "cacheguard; fwd=uri-miss; stored"
    assert second.headers["cache-status"].startswith("cacheguard; hit; ttl=")
    assert second.headers["age"] == "0"
    assert second.headers["content-length"] == "5"
    of_origin = [
        (name, value) for name, value in second.headers.raw if name in {b"x-a", b"content-type", b"cache-control"}
    ]
    assert of_origin == origin.headers or sorted(of_origin) == sorted(origin.headers)


async def test_a_response_is_stored_before_its_last_byte_is_sent(origin: Origin, guard: CacheGuard) -> None:
    origin.says(FRESH)
    seen: list[tuple[bool, bool]] = []

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            seen.append((message.get("more_body", False), (await guard.aget(url_key(URL))) is not None))

    scope = {"type": "http", "method": "GET", "path": "/", "raw_path": b"/", "query_string": b"", "scheme": "http"}
    await HTTPCacheMiddleware(origin, guard)({**scope, "headers": [(b"host", b"shop.example")]}, receive_nothing, send)
    assert seen[-1] == (False, True)


async def test_a_response_that_is_fresh_for_more_than_a_year_is_stored_without_a_word(
    origin: Origin, client: Client, guard: CacheGuard, caplog: pytest.LogCaptureFixture
) -> None:
    origin.says(("cache-control", "max-age=2147483648"))
    for _ in range(2):
        assert (await client.get("/")).status_code == 200
    assert origin.runs == 1
    assert not [record for record in caplog.records if record.name == "cacheguard"]


async def receive_nothing() -> Any:
    return {"type": "http.request", "body": b"", "more_body": False}


@pytest.mark.parametrize(
    "headers",
    [
        [("cache-control", "private, max-age=60")],
        [("cache-control", "no-store, max-age=60")],
        [("cache-control", "max-age=60"), ("set-cookie", "a=b")],
        [("cache-control", "public"), ("set-cookie", "a=b"), ("last-modified", "Mon, 02 Nov 2026 10:00:00 GMT")],
        [("cache-control", "max-age=60"), ("vary", "*")],
        [("cache-control", "max-age=60"), ("vary", "accept, *")],
        [("cache-control", "max-age=60"), ("vary", ",".join(f"x-{number}" for number in range(17)))],
        [("cache-control", "max-age=0")],
        [("expires", "0")],
        [("cache-control", "max-age=60"), ("content-type", "text/event-stream")],
        [("cdn-cache-control", "no-store"), ("cache-control", "max-age=60")],
        [("cache-control", "max-age=60"), ("cache-tag", " ".join(f"t{number}" for number in range(65)))],
        [("cache-control", "max-age=60"), ("content-length", "99")],
        [],
    ],
    ids=lambda headers: " ".join(value for _, value in headers)[:40] or "nothing",
)
async def test_what_may_not_be_stored_is_not(origin: Origin, client: Client, headers: list[tuple[str, str]]) -> None:
    origin.says(*headers)
    for times in (1, 2, 3, 4, 5):
        assert (await client.get()).content == b"hello"
        assert origin.runs == times


@pytest.mark.parametrize(
    ("control", "stored"),
    [
        ("max-age=60", False),
        ("public, max-age=60", True),
        ("s-maxage=60", True),
        ("max-age=60, must-revalidate", True),
    ],
)
async def test_answers_to_the_authorized_are_stored_where_the_rfc_allows(
    origin: Origin, client: Client, control: str, stored: bool
) -> None:
    origin.says(("cache-control", control))
    await client.get(authorization="Bearer a")
    await client.get()
    assert origin.runs == (1 if stored else 2)


async def test_a_cookie_is_stored_only_with_public_and_explicit_freshness(origin: Origin, client: Client) -> None:
    origin.says(("cache-control", "public, max-age=60"), ("set-cookie", "banner=1"))
    await client.get()
    assert (await client.get()).headers["set-cookie"] == "banner=1"
    assert origin.runs == 1


async def test_targeted_cache_control_counts_instead(origin: Origin, open_client: OpenClient) -> None:
    origin.says(("cache-control", "no-store"), ("cdn-cache-control", "max-age=60"))
    client = open_client()
    await client.get()
    assert (await client.get()).headers["cache-control"] == "no-store"
    assert origin.runs == 1
    other = open_client(targets=())
    await other.get("/other")
    await other.get("/other")
    assert origin.runs == 3


async def test_a_body_over_the_limit_streams_through(origin: Origin, open_client: OpenClient) -> None:
    client = open_client(max_body_bytes=8)
    origin.says(FRESH, body=[b"12345", b"67890"])
    assert (await client.get()).content == (await client.get()).content == b"1234567890"
    assert origin.runs == 2
    origin.says(FRESH, body=b"12345678")
    await client.get("/fits")
    await client.get("/fits")
    assert origin.runs == 3


async def test_a_body_over_the_limit_keeps_nobody_waiting(origin: Origin, guard: CacheGuard) -> None:
    gate, streaming = asyncio.Event(), asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        origin.requests.append({})
        await send({"type": "http.response.start", "status": 200, "headers": [(b"cache-control", b"max-age=60")]})
        await send({"type": "http.response.body", "body": b"0123456789", "more_body": True})
        streaming.set()
        await gate.wait()
        await send({"type": "http.response.body", "body": b"end"})

    client = Client(HTTPCacheMiddleware(app, guard, max_body_bytes=8))
    first = asyncio.create_task(client.get())
    await streaming.wait()
    second = asyncio.create_task(client.get())
    await until(lambda: origin.runs == 2)
    gate.set()
    assert (await first).content == (await second).content == b"0123456789end"
    await client.close()


async def test_a_body_that_breaks_off_leaves_the_work_to_one_other(origin: Origin, guard: CacheGuard) -> None:
    started = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        origin.requests.append({})
        run = origin.runs
        await send({"type": "http.response.start", "status": 200, "headers": [(b"cache-control", b"max-age=60")]})
        started.set()
        await asyncio.sleep(0.1)
        if run > 1:
            await send({"type": "http.response.body", "body": b"whole"})

    client = Client(HTTPCacheMiddleware(app, guard))
    first = asyncio.create_task(client.get())
    await started.wait()
    others = [client.get() for _ in range(5)]
    assert {answer.content for answer in await asyncio.gather(*others)} == {b"whole"}
    await asyncio.gather(first, return_exceptions=True)
    assert origin.runs == 2
    await client.close()


async def test_loads_inside_the_application_have_the_places_to_themselves(redis_url: str) -> None:
    async with CacheGuard(redis_url, max_loads=1, load_wait=0.05) as narrow:

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await asyncio.sleep(0.2)
            body = await narrow.aget_or_set("row " + scope["path"], lambda: b"row")
            await send({"type": "http.response.start", "status": 200, "headers": [(b"cache-control", b"max-age=60")]})
            await send({"type": "http.response.body", "body": body})

        client = Client(HTTPCacheMiddleware(app, narrow))
        answers = await asyncio.gather(*(client.get(f"/{number}") for number in range(5)))
        assert {(answer.status_code, answer.content) for answer in answers} == {(200, b"row")}
        await client.close()


async def test_what_is_never_storable_is_not_looked_for_and_is_stored_once_it_can_be(
    origin: Origin, client: Client, guard: CacheGuard
) -> None:
    for _ in range(3):
        await client.get()
    looked = guard.stats().misses
    await client.get()
    assert guard.stats().misses == looked
    origin.says(FRESH)
    for _ in range(3):
        await client.get()
    assert origin.runs == 6


async def test_a_response_with_trailers_is_not_stored(origin: Origin, guard: CacheGuard) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        origin.requests.append({})
        headers = [(b"cache-control", b"max-age=60")]
        await send({"type": "http.response.start", "status": 200, "headers": headers, "trailers": True})
        await send({"type": "http.response.body", "body": b"hello"})
        await send({"type": "http.response.trailers", "headers": [(b"x-sum", b"1")]})

    cached, sent = HTTPCacheMiddleware(app, guard), list[str]()

    async def send(message: Any) -> None:
        sent.append(message["type"])

    scope = {"type": "http", "method": "GET", "path": "/", "raw_path": b"/", "query_string": b"", "scheme": "http"}
    for _ in range(2):
        await cached({**scope, "headers": [(b"host", b"shop.example")]}, receive_nothing, send)
    assert sent == ["http.response.start", "http.response.body", "http.response.trailers"] * 2
    assert origin.runs == 2


async def test_one_run_answers_all_who_ask_at_once(
    origin: Origin, guard: CacheGuard, redis_url: str, open_client: OpenClient
) -> None:
    async with CacheGuard(redis_url) as other:  # as another process would have it
        clients = [open_client(), open_client(guard=other)]
        origin.says(FRESH)
        origin.before = lambda: asyncio.sleep(0.3)
        answers = await asyncio.gather(*(client.get() for client in clients for _ in range(50)))
        assert {answer.content for answer in answers} == {b"hello"}
        assert origin.runs == 1
        assert sum("collapsed" in answer.headers["cache-status"] for answer in answers) >= 49


@pytest.mark.parametrize("requests", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])
async def test_two_identities_never_get_each_others_answers(
    origin: Origin, open_client: OpenClient, requests: int
) -> None:
    def answer(headers: dict[bytes, bytes]) -> Any:
        who = headers.get(b"authorization") or headers[b"cookie"]
        return 200, CONTROLS[headers[b"x-way"]], [who]

    origin.answer = answer
    origin.before = lambda: asyncio.sleep(0)
    client = open_client()
    ways = list(CONTROLS)

    async def ask(number: int) -> None:
        who, way = f"user{number % 2}", ways[number % 5]
        named = {"authorization": who} if number % 3 else {"cookie": who}
        response = await client.get(f"/{way.decode()}", x_way=way.decode(), **named)
        assert response.text == who

    for start in range(0, requests, 500):
        await asyncio.gather(*(ask(number) for number in range(start, start + 500)))


CONTROLS: dict[bytes, list[tuple[bytes, bytes]]] = {
    b"private": [(b"cache-control", b"private, max-age=60")],
    b"vary": [(b"cache-control", b"public, max-age=60"), (b"vary", b"cookie, authorization")],
    b"nothing": [],
    b"no-store": [(b"cache-control", b"no-store")],
    b"set-cookie": [(b"cache-control", b"max-age=60, private"), (b"set-cookie", b"id=1")],
}


@pytest.mark.parametrize("how", ["error", "disconnect"])
async def test_an_aborted_body_is_never_stored(origin: Origin, guard: CacheGuard, how: str) -> None:
    async def breaks_off(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"cache-control", b"max-age=60")]})
        await send({"type": "http.response.body", "body": b"hal", "more_body": True})
        if how == "error":
            raise ValueError("broken off")

    cached = HTTPCacheMiddleware(breaks_off, guard)
    scope = {"type": "http", "method": "GET", "path": "/", "raw_path": b"/", "query_string": b"", "scheme": "http"}
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    for _ in range(2):
        sent.clear()
        try:
            await cached({**scope, "headers": [(b"host", b"shop.example")]}, receive_nothing, send)
        except ValueError:
            assert how == "error"
        assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert await guard.aget(url_key(URL)) is None


async def test_a_leader_that_goes_away_leaves_the_work_to_another(origin: Origin, guard: CacheGuard) -> None:
    origin.says(FRESH)
    started = asyncio.Event()

    async def hang() -> None:
        started.set()
        if origin.runs == 1:
            await asyncio.sleep(3600)

    origin.before = hang
    client = Client(HTTPCacheMiddleware(origin, guard))
    leader = asyncio.create_task(client.get())
    await started.wait()
    followers = [asyncio.create_task(client.get()) for _ in range(10)]
    await asyncio.sleep(0.05)
    leader.cancel()
    assert {answer.content for answer in await asyncio.gather(*followers)} == {b"hello"}
    assert origin.runs == 2
    await client.close()


async def test_stale_while_revalidate_answers_at_once_and_reloads_once(origin: Origin, client: Client) -> None:
    origin.says(("cache-control", "max-age=1, stale-while-revalidate=60"), ("age", "1"), body=b"old")
    await client.get()
    origin.says(("cache-control", "max-age=60"), body=b"new")
    gate = asyncio.Event()
    origin.before = gate.wait
    answers = await asyncio.gather(*(client.get() for _ in range(20)))
    assert {answer.content for answer in answers} == {b"old"}
    gate.set()
    await until(lambda: origin.runs == 2)
    async with asyncio.timeout(10):
        while (await client.get()).content != b"new":
            await asyncio.sleep(0.01)
    assert origin.runs == 2


async def test_a_validation_behind_the_answer_that_fails_is_said(
    origin: Origin, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    origin.says(("cache-control", "max-age=1, stale-while-revalidate=60, stale-if-error=0"), ("age", "1"))
    await client.get()
    origin.error = ValueError("down")
    with caplog.at_level(logging.WARNING, "cacheguard.asgi"):
        assert (await client.get()).content == b"hello"
        await until(lambda: "ValueError: down" in caplog.text)


async def test_a_validation_behind_the_answer_asks_nothing_of_its_client_s(origin: Origin, client: Client) -> None:
    origin.says(("cache-control", "max-age=1, stale-while-revalidate=60"), ("age", "1"))
    await client.get()
    await client.get("/", if_none_match='"x"', range="bytes=0-1", cache_control="max-stale")
    await client.get("/", if_none_match='"x"', range="bytes=0-1")
    await until(lambda: origin.runs == 2)
    assert not {b"if-none-match", b"range", b"cache-control"} & origin.requests[1].keys()


async def test_must_revalidate_rules_out_stale_while_revalidate(origin: Origin, client: Client) -> None:
    origin.says(("cache-control", "max-age=1, must-revalidate, stale-while-revalidate=60"), ("age", "1"))
    await client.get()
    origin.says(FRESH, body=b"new")
    assert (await client.get()).content == b"new"


@pytest.mark.parametrize("failure", [500, 503, "exception"])
async def test_a_stale_response_stands_in_for_a_failing_application(
    origin: Origin, client: Client, failure: Any, caplog: pytest.LogCaptureFixture
) -> None:
    origin.says(("cache-control", "max-age=1"), ("age", "1"))
    await client.get()
    if failure == "exception":
        origin.error = ValueError("down")
    else:
        origin.says(status=failure, body=b"down")
    origin.before = lambda: asyncio.sleep(0.05)
    with caplog.at_level(logging.WARNING, "cacheguard.asgi"):
        answers = await asyncio.gather(*(client.get() for _ in range(20)))
    assert {(answer.status_code, answer.content) for answer in answers} == {(200, b"hello")}
    assert origin.runs == 2, "one request finds out for all"
    assert ("ValueError: down" in caplog.text) is (failure == "exception")


@pytest.mark.parametrize(
    "control", ["must-revalidate", "proxy-revalidate", "s-maxage=1", "no-cache", "stale-if-error=0"]
)
async def test_a_stale_response_does_not_stand_in_where_it_must_not(
    origin: Origin, client: Client, control: str
) -> None:
    origin.says(("cache-control", f"max-age=1, {control}"), ("age", "1"), ("etag", '"a"'))
    await client.get()
    origin.says(status=503, body=b"down")
    assert (await client.get()).status_code == 503


async def test_a_304_freshens_what_is_stored(origin: Origin, client: Client) -> None:
    origin.says(("cache-control", "max-age=1"), ("age", "1"), ("etag", '"a"'), ("x-part", "old"))
    await client.get()
    origin.says(("cache-control", "max-age=60"), ("etag", '"a"'), ("x-part", "new"), status=304, body=b"")
    second = await client.get()
    assert origin.requests[1][b"if-none-match"] == b'"a"'
    assert (second.status_code, second.content, second.headers["x-part"]) == (200, b"hello", "new")
    assert "fwd-status=304" in second.headers["cache-status"]
    assert (await client.get()).headers["x-part"] == "new"
    assert origin.runs == 2


async def test_a_304_about_something_else_is_asked_again(origin: Origin, client: Client) -> None:
    origin.says(("cache-control", "max-age=1"), ("age", "1"), ("etag", '"a"'))
    await client.get()

    def answer(headers: dict[bytes, bytes]) -> Any:
        if b"if-none-match" in headers:
            return 304, [(b"etag", b'"b"')], [b""]
        return 200, [(b"etag", b'"b"')], [b"other"]

    origin.answer = answer
    assert (await client.get()).content == b"other"


async def test_a_304_without_tags_leaves_them_as_they_are(origin: Origin, client: Client, guard: CacheGuard) -> None:
    origin.says(("cache-control", "max-age=1"), ("age", "1"), ("etag", '"a"'), ("cache-tag", "t"))
    await client.get()
    origin.says(("cache-control", "max-age=60"), ("etag", '"a"'), status=304, body=b"")
    await client.get()
    await guard.ainvalidate_tags("t")
    origin.says(FRESH, body=b"new")
    assert (await client.get()).content == b"new"


async def test_what_was_invalidated_stands_in_for_nothing(origin: Origin, client: Client, guard: CacheGuard) -> None:
    origin.says(("cache-control", "max-age=1"), ("age", "1"), ("cache-tag", "t"), ("etag", '"a"'))
    await client.get()
    await guard.ainvalidate_tags("t")
    origin.says(status=503, body=b"down")
    answer = await client.get()
    assert (answer.status_code, answer.content) == (503, b"down")
    assert b"if-none-match" not in origin.requests[-1]


@pytest.mark.parametrize("control", ["max-age=0", "no-cache", "max-age=60, no-cache"])
async def test_what_must_be_validated_each_time_is_validated_by_each_who_waited(
    origin: Origin, client: Client, control: str
) -> None:
    origin.says(("cache-control", control), ("etag", '"a"'))
    origin.before = lambda: asyncio.sleep(0.1)
    answers = await asyncio.gather(*(client.get() for _ in range(5)))
    assert {answer.content for answer in answers} == {b"hello"}
    assert origin.runs == 5
    assert [b"if-none-match" in request for request in origin.requests] == [False, True, True, True, True]


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ({"if_none_match": '"a"'}, 304),
        ({"if_none_match": 'W/"a"'}, 304),
        ({"if_none_match": '"x", "a"'}, 304),
        ({"if_none_match": "*"}, 304),
        ({"if_none_match": '"x"', "if_modified_since": "Tue, 03 Nov 2026 10:00:00 GMT"}, 200),
        ({"if_modified_since": "Mon, 02 Nov 2026 10:00:00 GMT"}, 304),
        ({"if_modified_since": "Sun, 01 Nov 2026 10:00:00 GMT"}, 200),
        ({"if_modified_since": "yesterday"}, 200),
    ],
)
async def test_a_client_that_has_it_gets_304(
    origin: Origin, client: Client, asked: dict[str, str], status: int
) -> None:
    origin.says(
        FRESH, ("etag", '"a"'), ("last-modified", "Mon, 02 Nov 2026 10:00:00 GMT"), ("content-type", "text/plain")
    )
    await client.get()
    answer = await client.get("/", **asked)
    assert answer.status_code == status
    assert origin.runs == 1
    if status == 304:
        assert answer.content == b""
        assert {"etag", "cache-control"} <= set(answer.headers)
        assert "content-type" not in answer.headers


@pytest.mark.parametrize(
    ("asked", "status", "body", "place"),
    [
        ({"range": "bytes=0-1"}, 206, b"he", "bytes 0-1/5"),
        ({"range": "bytes=1-"}, 206, b"ello", "bytes 1-4/5"),
        ({"range": "bytes=-2"}, 206, b"lo", "bytes 3-4/5"),
        ({"range": "bytes=-99"}, 206, b"hello", "bytes 0-4/5"),
        ({"range": "bytes=1-999999999999999999"}, 206, b"ello", "bytes 1-4/5"),
        ({"range": "bytes=9-"}, 416, b"", "bytes */5"),
        ({"range": "bytes=-0"}, 416, b"", "bytes */5"),
        ({"range": "bytes=1-" + "9" * 400}, 206, b"ello", "bytes 1-4/5"),
        ({"range": "bytes=3-1"}, 200, b"hello", None),
        ({"range": "bytes=0-1,3-4"}, 200, b"hello", None),
        ({"range": "lines=0-1"}, 200, b"hello", None),
        ({"range": "bytes=0-1", "if_range": '"a"'}, 206, b"he", "bytes 0-1/5"),
        ({"range": "bytes=0-1", "if_range": '"b"'}, 200, b"hello", None),
        ({"range": "bytes=0-1", "if_range": 'W/"a"'}, 200, b"hello", None),
        ({"range": "bytes=0-1", "if_range": "Mon, 02 Nov 2026 10:00:00 GMT"}, 206, b"he", "bytes 0-1/5"),
        ({"range": "bytes=0-1", "if_range": "Mon, 02 Nov 2026 10:00:01 GMT"}, 200, b"hello", None),
    ],
)
async def test_ranges_are_cut_from_a_whole_response(
    origin: Origin, client: Client, asked: dict[str, str], status: int, body: bytes, place: str | None
) -> None:
    origin.says(FRESH, ("etag", '"a"'), ("last-modified", "Mon, 02 Nov 2026 10:00:00 GMT"))
    await client.get()
    answer = await client.get("/", **asked)
    assert (answer.status_code, answer.content, answer.headers.get("content-range")) == (status, body, place)
    assert answer.headers["content-length"] == str(len(body))
    assert origin.runs == 1


async def test_parts_are_stored_joined_and_completed(origin: Origin, client: Client) -> None:
    text = b"0123456789"

    def answer(headers: dict[bytes, bytes]) -> Any:
        fields = [(b"cache-control", b"max-age=60"), (b"etag", b'"a"')]
        asked = headers.get(b"range")
        if asked is None:
            return 200, fields, [text]
        first, last = asked.removeprefix(b"bytes=").split(b"-")
        start, after = int(first), int(last) + 1 if last else 10
        return 206, [*fields, (b"content-range", b"bytes %d-%d/10" % (start, after - 1))], [text[start:after]]

    origin.answer = answer
    assert (await client.get("/", range="bytes=0-3")).content == b"0123"
    assert (await client.get("/", range="bytes=1-2")).content == b"12"
    assert origin.runs == 1
    assert (await client.get("/", range="bytes=4-6")).content == b"456"
    assert (await client.get("/", range="bytes=2-5")).content == b"2345"
    assert origin.runs == 2
    whole = await client.get()
    assert (whole.status_code, whole.content) == (200, text)
    assert origin.requests[2][b"range"] == b"bytes=7-"
    assert origin.requests[2][b"if-range"] == b'"a"'
    assert (await client.get()).content == text
    assert (await client.get("/", range="bytes=-1")).content == b"9"
    assert origin.runs == 3


async def test_parts_of_different_versions_are_never_joined(origin: Origin, client: Client) -> None:
    origin.says(FRESH, ("etag", '"a"'), ("content-range", "bytes 0-3/10"), status=206, body=b"aaaa")
    await client.get("/", range="bytes=0-3")
    origin.says(FRESH, ("etag", '"b"'), ("content-range", "bytes 4-9/10"), status=206, body=b"bbbbbb")
    await client.get("/", range="bytes=4-9")

    def answer(headers: dict[bytes, bytes]) -> Any:
        fields = [(b"cache-control", b"max-age=60"), (b"etag", b'"b"')]
        if headers.get(b"if-range") == b'"b"':
            return 206, [*fields, (b"content-range", b"bytes 0-3/10")], [b"bbbb"]
        return 200, fields, [b"b" * 10]

    origin.answer = answer
    assert (await client.get()).content == b"b" * 10


async def test_a_part_shorter_than_it_says_is_not_stored(origin: Origin, client: Client) -> None:
    origin.says(FRESH, ("content-range", "bytes 0-9/10"), status=206, body=b"short")
    await client.get("/", range="bytes=0-9")
    await client.get("/", range="bytes=0-1")
    assert origin.runs == 2


async def test_a_missing_part_of_another_version_is_asked_for_again_as_a_whole(origin: Origin, client: Client) -> None:
    origin.says(FRESH, ("etag", '"a"'), ("content-range", "bytes 0-3/10"), status=206, body=b"aaaa")
    await client.get("/", range="bytes=0-3")

    def answer(headers: dict[bytes, bytes]) -> Any:  # it does not look at If-Range
        fields = [(b"cache-control", b"max-age=60"), (b"etag", b'"b"')]
        if b"range" in headers:
            return 206, [*fields, (b"content-range", b"bytes 4-9/10")], [b"bbbbbb"]
        return 200, fields, [b"b" * 10]

    origin.answer = answer
    assert (await client.get()).content == b"b" * 10


async def test_variants_are_kept_apart_and_found_again(origin: Origin, client: Client) -> None:
    def answer(headers: dict[bytes, bytes]) -> Any:
        language = headers.get(b"accept-language", b"none")
        return 200, [(b"cache-control", b"max-age=60"), (b"vary", b"Accept-Language")], [language]

    origin.answer = answer
    for _ in range(2):
        assert (await client.get("/", accept_language="de, en;q=0.5")).content == b"de, en;q=0.5"
        assert (await client.get("/", accept_language="fr")).content == b"fr"
    assert (await client.get("/", accept_language="EN ;q=0.5,DE")).content == b"de, en;q=0.5"
    assert origin.runs == 2
    answers = await asyncio.gather(*(client.get("/", accept_language=language) for language in ("it", "es") * 10))
    assert sorted({answer.content for answer in answers}) == [b"es", b"it"]
    assert origin.runs == 4


async def test_a_url_that_comes_to_vary_by_more_keeps_its_variants_apart(origin: Origin, client: Client) -> None:
    origin.says(FRESH, ("vary", "x-a"), body=b"first")
    await client.get("/", x_a="1")
    origin.says(FRESH, ("vary", "x-b"), body=b"second")
    await client.get("/", x_a="2", x_b="1")
    origin.says(FRESH, ("vary", "x-b"), body=b"third")
    assert (await client.get("/", x_a="2", x_b="2")).content == b"third"
    origin.says(FRESH, ("vary", "x-a"), body=b"fourth")
    assert (await client.get("/", x_a="2", x_b="2")).content == b"third"
    assert (await client.get("/", x_a="3", x_b="2")).content == b"fourth"


async def test_a_purged_url_takes_its_variants_with_it(origin: Origin, client: Client, guard: CacheGuard) -> None:
    origin.says(FRESH, ("vary", "x-a"), body=b"old")
    await client.get("/", x_a="1")
    await client.get("/", x_a="2")
    await guard.ainvalidate(url_key(URL))
    origin.says(FRESH, ("vary", "x-a"), body=b"new")
    assert (await client.get("/", x_a="1")).content == b"new"
    assert (await client.get("/", x_a="2")).content == b"new"


async def test_a_purged_tag_takes_its_responses_with_it(origin: Origin, client: Client, guard: CacheGuard) -> None:
    origin.says(FRESH, ("cache-tag", "product-1, products"), ("vary", "x-a"))
    await client.get("/a", x_a="1")
    origin.says(FRESH, ("surrogate-key", "other"))
    await client.get("/b")
    await guard.ainvalidate_tags("products")
    await client.get("/a", x_a="1")
    await client.get("/b")
    assert origin.paths == ["/a", "/b", "/a"]


async def test_a_response_made_before_a_purge_is_not_stored_after_it(
    origin: Origin, client: Client, guard: CacheGuard
) -> None:
    for headers in ([FRESH, ("cache-tag", "t")], [FRESH, ("cache-tag", "t"), ("vary", "x-a")]):
        for purge in (lambda: guard.ainvalidate_tags("t"), lambda: guard.ainvalidate(url_key(URL)), guard.aclear):
            await guard.aclear()
            origin.requests.clear()
            origin.says(*headers, body=b"old")
            origin.before = purge
            assert (await client.get("/", x_a="1")).content == b"old"
            origin.before = None
            origin.says(*headers, body=b"new")
            assert (await client.get("/", x_a="1")).content == b"new"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "MKCOL"])
async def test_an_unsafe_request_invalidates_its_urls(origin: Origin, client: Client, method: str) -> None:
    origin.says(FRESH)
    for url in ("/a", "/b", "/c", "/d"):
        await client.get(url)
    origin.says(("location", "/b"), ("content-location", "http://shop.example/c"), ("x", "/d"))
    await client.ask(method, "/a")
    origin.says(FRESH)
    origin.paths.clear()
    for url in ("/a", "/b", "/c", "/d"):
        await client.get(url)
    assert origin.paths == ["/a", "/b", "/c"]


@pytest.mark.parametrize(("status", "location"), [(500, "/b"), (404, "/b"), (200, "http://other.example/b")])
async def test_an_unsafe_request_invalidates_no_more_than_that(
    origin: Origin, client: Client, status: int, location: str
) -> None:
    origin.says(FRESH)
    await client.get("/b")
    origin.says(("location", location), status=status)
    await client.ask("POST", "/a")
    origin.paths.clear()
    await client.get("/b")
    assert origin.paths == []


async def test_head_is_answered_from_a_stored_get(origin: Origin, client: Client) -> None:
    origin.says(FRESH, ("etag", '"a"'))
    await client.get()
    answer = await client.ask("HEAD")
    assert (answer.status_code, answer.content, answer.headers["content-length"]) == (200, b"", "5")
    assert origin.runs == 1
    await client.ask("HEAD", "/other")
    await client.get("/other")
    assert origin.runs == 3, "an answer to HEAD is nothing that a GET could be answered with"


async def test_a_head_that_says_something_else_takes_the_stored_get_with_it(origin: Origin, client: Client) -> None:
    origin.says(FRESH, ("etag", '"a"'))
    await client.get()
    origin.says(FRESH, ("etag", '"b"'))
    await client.ask("HEAD", cache_control="no-cache")
    await client.get()
    assert origin.runs == 3


async def test_a_request_may_ask_for_more_than_freshness(origin: Origin, client: Client) -> None:
    origin.says(FRESH, ("age", "30"))
    await client.get()
    for control in ("no-cache", "max-age=10", "min-fresh=50", "max-age=0"):
        runs = origin.runs
        await client.get("/", cache_control=control)
        assert origin.runs == runs + 1, control
    await client.get("/", cache_control="max-age=40")
    await client.get("/", pragma="no-cache", cache_control="x")
    runs = origin.runs
    await client.get("/", pragma="no-cache")
    assert origin.runs == runs + 1
    origin.says(("cache-control", "max-age=10"), ("age", "20"), ("etag", '"a"'))
    await client.get("/stale")
    runs = origin.runs
    await client.get("/stale", cache_control="max-stale=30")
    await client.get("/stale", cache_control="max-stale")
    assert origin.runs == runs
    await client.get("/stale", cache_control="max-stale=5")
    assert origin.runs == runs + 1


async def test_requests_are_not_obeyed_where_that_is_switched_off(origin: Origin, open_client: OpenClient) -> None:
    client = open_client(obey_requests=False)
    origin.says(FRESH)
    await client.get()
    await client.get("/", cache_control="no-cache")
    assert origin.runs == 1


async def test_only_if_cached_asks_nobody(origin: Origin, client: Client) -> None:
    origin.says(FRESH)
    assert (await client.get("/", cache_control="only-if-cached")).status_code == 504
    await client.get()
    assert (await client.get("/", cache_control="only-if-cached")).content == b"hello"
    assert origin.runs == 1


async def test_no_store_in_a_request_keeps_the_cache_out_of_it(origin: Origin, client: Client) -> None:
    origin.says(FRESH)
    await client.get("/", cache_control="no-store")
    await client.get()
    await client.get("/", cache_control="no-store")
    assert origin.runs == 3


async def test_heuristic_freshness_is_an_option(origin: Origin, open_client: OpenClient) -> None:
    origin.says(("last-modified", "Mon, 02 Nov 2020 10:00:00 GMT"), ("date", "Mon, 02 Nov 2026 10:00:00 GMT"))
    plain, heuristic = open_client(), open_client(heuristic=0.1, longest_heuristic="365d")
    await plain.get("/a")
    await plain.get("/a")
    assert origin.runs == 2
    await heuristic.get("/b")
    await heuristic.get("/b")
    assert origin.runs == 3
    await heuristic.get("/c", cookie="who=me")
    await heuristic.get("/c", cookie="who=me")
    assert origin.runs == 5, "a guess is not made about what may be somebody's own"


async def test_redis_gone_leaves_the_application_and_the_process(origin: Origin, open_client: OpenClient) -> None:
    async with CacheGuard("redis://127.0.0.1:1/0") as lonely:
        client = open_client(guard=lonely)
        origin.says(FRESH)
        answers = [await client.get() for _ in range(3)]
        assert {answer.content for answer in answers} == {b"hello"}
        assert (await client.ask("POST")).status_code == 200


async def test_messages_that_are_no_body_end_the_copy(origin: Origin, guard: CacheGuard) -> None:
    async def sends_a_file(scope: Any, receive: Any, send: Any) -> None:
        origin.requests.append({})
        await send({"type": "http.response.start", "status": 200, "headers": [(b"cache-control", b"max-age=60")]})
        await send({"type": "http.response.pathsend", "path": "/etc/hostname"})

    cached = HTTPCacheMiddleware(sends_a_file, guard)
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message["type"])

    scope = {"type": "http", "method": "GET", "path": "/", "raw_path": b"/", "query_string": b"", "scheme": "http"}
    for _ in range(2):
        await cached({**scope, "headers": [(b"host", b"shop.example")]}, receive_nothing, send)
    assert sent == ["http.response.start", "http.response.pathsend"] * 2
    assert origin.runs == 2


async def test_a_failing_application_that_sends_a_file_is_stood_in_for(guard: CacheGuard) -> None:
    runs = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal runs
        runs += 1
        headers = [(b"cache-control", b"max-age=1"), (b"age", b"1")]
        await send({"type": "http.response.start", "status": 200 if runs == 1 else 503, "headers": headers})
        if runs == 1:
            await send({"type": "http.response.body", "body": b"hello"})
        else:
            await send({"type": "http.response.pathsend", "path": "/etc/hostname"})

    cached = HTTPCacheMiddleware(app, guard)
    scope = {"type": "http", "method": "GET", "path": "/", "raw_path": b"/", "query_string": b"", "scheme": "http"}
    for _ in range(2):
        sent: list[Any] = []

        async def send(message: Any, sent: list[Any] = sent) -> None:
            sent.append(message)

        await cached({**scope, "headers": [(b"host", b"shop.example")]}, receive_nothing, send)
        assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
        assert (sent[0]["status"], sent[1]["body"]) == (200, b"hello")
    assert runs == 2


async def test_a_stored_error_is_not_something_that_a_client_has(origin: Origin, client: Client) -> None:
    origin.says(FRESH, ("etag", '"a"'), status=404)
    await client.get()
    assert (await client.get("/", if_none_match="*")).status_code == 404
    assert (await client.get("/", if_none_match='"a"')).status_code == 404
    assert origin.runs == 1


async def test_clients_that_have_it_do_not_keep_a_url_out_of_the_cache(origin: Origin, client: Client) -> None:
    origin.says(status=304, body=b"")
    for _ in range(4):
        assert (await client.get("/", if_none_match='"a"')).status_code == 304
    origin.says(FRESH)
    await client.get()
    await client.get()
    assert origin.runs == 5


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
async def test_what_is_not_http_passes_through_untouched(guard: CacheGuard, kind: str) -> None:
    seen: list[Any] = []

    async def app(*arguments: Any) -> None:
        seen.append(arguments)

    arguments = ({"type": kind}, receive_nothing, receive_nothing)
    await HTTPCacheMiddleware(app, guard)(*arguments)  # type: ignore[arg-type]
    assert seen[0] == arguments
    assert seen[0][0] is arguments[0]


async def test_an_application_that_asks_for_its_own_url_is_not_stuck(guard: CacheGuard) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = dict(scope["headers"])
        if b"x-inner" not in headers:
            inner = httpx.AsyncClient(transport=httpx.ASGITransport(cached), base_url="http://shop.example")
            async with inner:
                body = (await inner.get("/", headers={"x-inner": "1"})).content + b" outer"
        else:
            body = b"inner"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"cache-control", b"max-age=60")]})
        await send({"type": "http.response.body", "body": body})

    cached = HTTPCacheMiddleware(app, guard)
    client = Client(cached)
    async with asyncio.timeout(10):
        assert (await client.get()).content == b"inner outer"
    await client.close()


async def test_a_context_that_outlives_its_request_does_not_go_past_the_cache(origin: Origin, client: Client) -> None:
    """As uvicorn's do, which reads a connection again in the context of the request that it had stopped for."""
    contexts: list[contextvars.Context] = []

    async def leave() -> None:
        contexts.append(contextvars.copy_context())

    origin.before = leave
    origin.says(FRESH)
    await client.get()
    answer = await contexts[0].run(asyncio.ensure_future, client.get())
    assert answer.headers["cache-status"].startswith("cacheguard; hit")
    assert origin.runs == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guard": "redis://"}, "guard must be a CacheGuard, got 'redis://'"),
        ({"max_body_bytes": 0}, "max_body_bytes must be a whole number >= 1, got 0"),
        ({"heuristic": 2}, "heuristic must be a share in"),
        ({"heuristic": True}, "heuristic must be a share in"),
        ({"stale_if_error": -1}, "stale_if_error"),
        ({"keep": "soon"}, "keep"),
        ({"wait": 0}, "wait"),
        ({"longest_run": "soon"}, "longest_run"),
        ({"strip_tags": 1}, "strip_tags must be True or False, got 1"),
        ({"targets": "cdn-cache-control"}, "targets must be a tuple of field names, got 'cdn-cache-control'"),
        ({"tags": (1,)}, "tags must be a tuple of field names"),
        ({"obey_requests": "yes"}, "obey_requests must be True or False, got 'yes'"),
        ({"status": "a b"}, "status must be a name for Cache-Status"),
    ],
)
def test_a_setting_that_cannot_work_is_said_by_its_name(options: dict[str, Any], message: str) -> None:
    with CacheGuard() as guard:
        settings: dict[str, Any] = {"guard": guard, **options}
        with pytest.raises(ConfigurationError, match=message):
            HTTPCacheMiddleware(Origin(), **settings)
