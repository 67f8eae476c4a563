"""Conditional requests, second runs of the application, and what Cache-Status says of all that."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

from cacheguard import CacheGuard
from cacheguard_asgi import HTTPCacheMiddleware, url_key
from tests.support.visits import Visit, until, visit

SINCE = "Mon, 02 Nov 2026 10:00:00 GMT"
BEFORE, AFTER = "Sun, 01 Nov 2026 10:00:00 GMT", "Tue, 03 Nov 2026 10:00:00 GMT"
TEXT = b"0123456789"
HEAD = [(b"cache-control", b"max-age=60"), (b"etag", b'"v1"'), (b"last-modified", SINCE.encode())]
URL = "http://shop.example/"


@pytest.fixture
async def guard() -> AsyncIterator[CacheGuard]:
    async with CacheGuard("memory://") as guard:
        yield guard


class Origin:
    """An application that honours conditions and ranges as RFC 9110 says, and counts its runs.

    Args:
        parts: the body comes in so many messages.
        announced: it says Content-Length.
    """

    def __init__(self, *headers: tuple[bytes, bytes], parts: int = 1, announced: bool = False) -> None:
        self.headers, self.parts, self.announced = [*HEAD, *headers], parts, announced
        self.asked: list[dict[bytes, bytes]] = []
        self.methods: list[str] = []

    @property
    def runs(self) -> int:
        return len(self.asked)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        asked = dict(scope["headers"])
        self.asked.append(asked)
        self.methods.append(scope["method"])
        await asyncio.sleep(0)
        has = (
            asked.get(b"if-none-match") in {b'"v1"', b'W/"v1"', b"*"}
            or asked.get(b"if-modified-since") == SINCE.encode()
        )
        status, body = (304, b"") if has else (200, TEXT)
        headers = list(self.headers)
        if self.announced and not has:
            headers.append((b"content-length", b"%d" % len(body)))
        if b"range" in asked and not has:
            status, body = 206, TEXT[:4]
            headers = [*self.headers, (b"content-range", b"bytes 0-3/10")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        step = -(-len(body) // self.parts) or 1
        pieces = [body[at : at + step] for at in range(0, len(body), step)] or [b""]
        for piece in pieces[:-1]:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": pieces[-1] if scope["method"] != "HEAD" else b""})


# Request fields, and what a correct cache answers: status and body.
CONDITIONS: dict[str, tuple[dict[str, str], int, bytes]] = {
    "nothing": ({}, 200, TEXT),
    "if-none-match": ({"if-none-match": '"v1"'}, 304, b""),
    "if-none-match, weak": ({"if-none-match": 'W/"v1"'}, 304, b""),
    "if-none-match, several": ({"if-none-match": '"v0", "v1"'}, 304, b""),
    "if-none-match, any": ({"if-none-match": "*"}, 304, b""),
    "if-none-match, another": ({"if-none-match": '"v0"'}, 200, TEXT),
    "if-modified-since": ({"if-modified-since": SINCE}, 304, b""),
    "if-modified-since, later": ({"if-modified-since": AFTER}, 304, b""),
    "if-modified-since, earlier": ({"if-modified-since": BEFORE}, 200, TEXT),
    "both": ({"if-none-match": '"v1"', "if-modified-since": BEFORE}, 304, b""),
    "both, another": ({"if-none-match": '"v0"', "if-modified-since": SINCE}, 200, TEXT),
    "with a range": ({"if-none-match": '"v1"', "range": "bytes=0-3"}, 304, b""),
    "another with a range": ({"if-none-match": '"v0"', "range": "bytes=2-3"}, 206, b"23"),
    "another with a suffix": ({"if-none-match": '"v0"', "range": "bytes=-2"}, 206, b"89"),
    "another with a range outside": ({"if-none-match": '"v0"', "range": "bytes=99-"}, 416, b""),
    "another with if-range": ({"if-none-match": '"v0"', "range": "bytes=2-3", "if-range": '"v0"'}, 200, TEXT),
}


# How the body comes: in so many messages, with Content-Length or without.
BODIES = [(1, False), (1, True), (3, False), (3, True)]


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("name", [name for name in CONDITIONS if name != "nothing"])
async def test_conditions_on_a_cold_url_are_one_run_and_the_whole_page_is_stored(
    guard: CacheGuard, name: str, method: str
) -> None:
    headers, status, body = CONDITIONS[name]
    if method == "HEAD":  # a range means nothing there
        status, body = (200 if status in {206, 416} else status), b""
    for parts, announced in BODIES:
        origin, url = Origin(parts=parts, announced=announced), f"/{parts}/{announced}"
        app = HTTPCacheMiddleware(origin, guard)
        visits = [Visit(app, url, method=method, headers=headers).begin() for _ in range(5)]
        for each in visits:
            await each.over()
            assert (each.status, each.body, each.is_whole) == (status, body, True)
            if status == 206:
                assert int(each.headers["content-length"]) == len(body)
            if status == 304:
                assert "content-length" not in each.headers
                assert each.headers["etag"] == '"v1"'
        assert ((await visit(app, url)).body, origin.runs, origin.methods) == (TEXT, 1, ["GET"])


async def test_all_conditions_at_once_are_one_run(guard: CacheGuard) -> None:
    origin = Origin()
    app = HTTPCacheMiddleware(origin, guard)
    visits = {name: Visit(app, headers=headers).begin() for name, (headers, _, _) in CONDITIONS.items()}
    for name, each in visits.items():
        await each.over()
        assert (each.status, each.body) == CONDITIONS[name][1:], name
    assert origin.runs == 1


@pytest.mark.parametrize("why", ["private", "too long", "set-cookie"])
@pytest.mark.parametrize("name", CONDITIONS)
async def test_conditions_hold_for_what_is_not_stored_too(guard: CacheGuard, name: str, why: str) -> None:
    headers, status, body = CONDITIONS[name]
    extra = {"private": [(b"cache-control", b"private")], "set-cookie": [(b"set-cookie", b"a=b")]}.get(why, [])
    for parts, announced in BODIES:
        origin, url = Origin(*extra, parts=parts, announced=announced), f"/{parts}/{announced}"
        app = HTTPCacheMiddleware(origin, guard, max_body_bytes=5 if why == "too long" else 100)
        got = await visit(app, url, headers=headers)
        allowed = [(status, body)]
        if "range" in headers and not announced and status != 304:  # a part of what? The whole is always right
            allowed.append((200, TEXT))
        assert (got.status, got.body) in allowed
        assert got.is_whole
        assert "stored" not in got.said
        assert await guard.aget(url_key(f"http://shop.example{url}")) is None


async def test_static_files_answer_browsers_from_one_run(guard: CacheGuard, tmp_path: Path) -> None:
    (tmp_path / "a.css").write_bytes(TEXT)
    runs = 0
    inner = Starlette(routes=[Mount("/static", StaticFiles(directory=tmp_path))])

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal runs
        runs += 1

        async def dated(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"cache-control", b"max-age=60")]}
            await send(message)

        await inner(scope, receive, dated)

    cached = HTTPCacheMiddleware(app, guard)
    first = await visit(HTTPCacheMiddleware(app, guard), "/static/a.css?other")
    runs = 0
    tests = {"if-none-match": first.headers["etag"]}, {"if-modified-since": first.headers["last-modified"]}
    visits = [Visit(cached, "/static/a.css", headers=each).begin() for each in [*tests, {}] * 4]
    assert sorted([(await each.over()).status for each in visits]) == [200] * 4 + [304] * 8
    assert (await visit(cached, "/static/a.css", headers={"range": "bytes=1-2"})).body == b"12"
    assert runs == 1


async def test_a_part_that_nobody_has_asked_the_application_for_is_passed_on(guard: CacheGuard) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [*HEAD, (b"content-range", b"bytes 2-5/10"), (b"content-length", b"4")]
        await send({"type": "http.response.start", "status": 206, "headers": headers})
        await send({"type": "http.response.body", "body": TEXT[2:6]})

    got = await visit(HTTPCacheMiddleware(app, guard), headers={"if-none-match": '"v1"', "range": "bytes=2-5"})
    assert (got.status, got.body, got.headers["content-range"]) == (206, TEXT[2:6], "bytes 2-5/10")


@pytest.mark.parametrize(("etag", "status"), [('"v1"', 304), ('"v0"', 200)])
@pytest.mark.parametrize("control", [b"max-age=60", b"private"])
async def test_a_file_that_the_server_sends_is_not_cut(
    guard: CacheGuard, control: bytes, etag: str, status: int
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"cache-control", control), *HEAD[1:], (b"content-length", b"10")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.pathsend", "path": "/a"})

    got = await visit(HTTPCacheMiddleware(app, guard), headers={"if-none-match": etag, "range": "bytes=2-3"})
    kind = "http.response.body" if status == 304 else "http.response.pathsend"
    assert [got.status, *(message["type"] for message in got.messages)] == [status, "http.response.start", kind]


@pytest.mark.parametrize("condition", ["if-match", "if-unmodified-since"])
async def test_what_only_the_application_can_check_is_left_to_it(guard: CacheGuard, condition: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        status = 412 if condition.encode() in dict(scope["headers"]) else 200
        await send({"type": "http.response.start", "status": status, "headers": HEAD})
        await send({"type": "http.response.body", "body": b"%d" % status})

    cached = HTTPCacheMiddleware(app, guard)
    value = '"v0"' if condition == "if-match" else BEFORE
    for _ in range(2):
        assert (await visit(cached, headers={condition: value})).status == 412
        assert (await visit(cached)).status == 200


# Second runs


class Changing:
    """An application whose page is validated with another ETag than it was stored with.

    Args:
        first: the ETag of the page.
        then: that of the 304; None: it has none.
        reads: it reads the whole request, and then until its client leaves.
    """

    def __init__(self, first: str, then: str | None, *, reads: bool) -> None:
        self.first, self.then, self.reads = first, then, reads
        self.asked: list[dict[bytes, bytes]] = []
        self.control = b"max-age=1"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        asked = dict(scope["headers"])
        self.asked.append(asked)
        listening = None
        if self.reads:
            message = await receive()
            assert message == {"type": "http.request", "body": b"", "more_body": False}
            listening = asyncio.create_task(receive())
            await asyncio.sleep(0)
            assert not listening.done()
        has = b"if-none-match" in asked
        etag = self.then if has else self.first
        headers = [(b"cache-control", self.control), *([(b"etag", etag.encode())] if etag else [])]
        if len(self.asked) == 1:
            headers.append((b"age", b"1"))
        await send({"type": "http.response.start", "status": 304 if has else 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if has else b"page %d" % len(self.asked)})
        if listening:
            listening.cancel()


@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize(
    ("first", "then", "runs"),
    [
        ('"a"', '"a"', 2),
        ('"a"', 'W/"a"', 2),
        ('W/"a"', '"a"', 2),  # as after a GZip that made it weak
        ('W/"a"', 'W/"a"', 2),
        ('"a"', None, 2),
        ('"a"', '"b"', 3),
        ('"a-gzip"', '"a"', 3),  # as Apache's mod_deflate has it
        ('W/"a"', 'W/"b"', 3),
        ('W/"a"', '"b"', 3),
    ],
)
async def test_a_304_with_another_etag_is_a_second_run_at_most_and_stored(
    guard: CacheGuard, first: str, then: str | None, runs: int, reads: bool
) -> None:
    app = Changing(first, then, reads=reads)
    cached = HTTPCacheMiddleware(app, guard)
    await visit(cached)
    app.control = b"max-age=60"
    visits = [Visit(cached, headers={"if-none-match": '"mine"', "x-a": "1"}).begin() for _ in range(3)]
    whole = b"page 3" if runs == 3 else b"page 1"
    for each in visits:
        assert ((await each.over()).status, each.body) == (200, whole)
    assert len(app.asked) == runs
    assert app.asked[1][b"if-none-match"] == first.encode()
    if runs == 3:
        assert not {b"if-none-match", b"if-modified-since", b"range"} & app.asked[2].keys()
        assert app.asked[2][b"x-a"] == b"1"
        assert visits[0].said == "fwd=stale; stored; detail=second-run"
    else:
        assert visits[0].said == "fwd=stale; fwd-status=304; stored"
    assert (await visit(cached)).said == "hit"
    assert len(app.asked) == runs


async def test_a_second_run_that_is_left_is_for_nobody(guard: CacheGuard) -> None:
    gate, runs = asyncio.Event(), 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal runs
        runs += 1
        assert (await receive())["type"] == "http.request"
        has, body = b"if-none-match" in dict(scope["headers"]), b"page"
        headers = [(b"cache-control", b"max-age=60"), (b"etag", b'"b"' if runs > 1 else b'"a"')]
        if runs == 1:
            headers[0] = (b"expires", b"0")
        if runs == 3:
            gate.set()
            assert (await receive())["type"] == "http.disconnect"
            body = b"pa"
        await send({"type": "http.response.start", "status": 304 if has else 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if has else body})

    cached = HTTPCacheMiddleware(app, guard)
    await visit(cached)
    leader = Visit(cached).begin()
    await gate.wait()
    follower = Visit(cached).begin()
    await asyncio.sleep(0.01)
    leader.leave()
    await leader.over()
    assert (await follower.over()).body == b"page"
    assert (await visit(cached)).body == b"page"


async def test_django_s_conditional_get_behind_its_gzip_is_validated(guard: CacheGuard) -> None:
    """What Django 5 answers: its GZip makes the ETag of a page weak, and does not touch that of a short 304."""
    zipped = gzip.compress(b"x" * 300)
    asked: list[bytes | None] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        has = dict(scope["headers"]).get(b"if-none-match")
        asked.append(has)
        control = (b"cache-control", b"max-age=60" if has else b"max-age=0")
        if has in {b'"a"', b'W/"a"'}:
            await send({"type": "http.response.start", "status": 304, "headers": [control, (b"etag", b'"a"')]})
            await send({"type": "http.response.body", "body": b""})
            return
        headers = [control, (b"etag", b'W/"a"'), (b"content-encoding", b"gzip"), (b"vary", b"Accept-Encoding")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": zipped})

    cached = HTTPCacheMiddleware(app, guard)
    for number in range(4):
        got = await visit(cached, headers={"accept-encoding": "gzip"})
        assert (got.body, got.headers["etag"], got.headers["content-encoding"]) == (zipped, 'W/"a"', "gzip"), number
    assert asked == [None, b'W/"a"']


# What Cache-Status says


async def test_stored_is_said_only_where_it_was(guard: CacheGuard) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/purged":
            await guard.ainvalidate(url_key("http://shop.example/purged"))
        headers = [*HEAD, *([(b"vary", b"x-a")] if scope["path"] == "/varied" else [])]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for _ in range(3):
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
        if scope["path"] == "/broken":
            return
        await send({"type": "http.response.body", "body": b"."})

    cached = HTTPCacheMiddleware(app, guard)
    for path, said in {
        "/kept": "fwd=uri-miss; stored",
        "/varied": "fwd=uri-miss; stored",
        "/purged": "fwd=uri-miss",
        "/broken": "fwd=uri-miss",
    }.items():
        assert (await visit(cached, path)).said == said
        is_kept = (await visit(cached, path, headers={"cache-control": "only-if-cached"})).status == 200
        assert is_kept == ("stored" in said)
    assert (await visit(cached, "/varied", headers={"x-a": "1"})).said == "fwd=vary-miss; stored"
    with guard.disabled():
        assert (await visit(cached, "/new")).said == "fwd=uri-miss"


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"cache-control": "no-store"}, "fwd=request"),
        ({"upgrade": "h2c"}, "fwd=bypass"),
        ({"content-length": "5"}, "fwd=bypass"),
        ({"x-forwarded-host": "evil.example"}, "fwd=bypass"),
        ({"if-match": '"v1"'}, "fwd=bypass"),
    ],
)
async def test_requests_that_the_cache_does_not_answer_are_said(
    guard: CacheGuard, headers: dict[str, str], said: str
) -> None:
    cached = HTTPCacheMiddleware(Origin(), guard)
    await visit(cached)
    got = await visit(cached, headers=headers)
    assert got.said == said


async def test_a_page_that_cannot_be_stored_and_one_that_stands_in_are_said(guard: CacheGuard) -> None:
    status, control = 200, b"private"

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.01)
        headers = [(b"cache-control", control), (b"age", b"1")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"x"})

    cached = HTTPCacheMiddleware(app, guard)
    assert [(await visit(cached)).said for _ in range(4)] == ["fwd=uri-miss"] * 3 + ["fwd=bypass"]
    control = b"max-age=1, stale-if-error=60"
    await visit(cached, "/other")
    status = 503
    said = [(await each.over()).said for each in [Visit(cached, "/other").begin() for _ in range(2)]]
    assert said == ["fwd=stale; fwd-status=503; detail=stale-if-error", "fwd=stale; collapsed; detail=stale-if-error"]


@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize(
    ("method", "headers", "status", "said"),
    [
        ("GET", {}, 200, "fwd=bypass; detail=closed"),
        ("GET", {"if-none-match": '"v1"'}, 304, "fwd=bypass; detail=closed"),
        ("HEAD", {}, 200, "fwd=bypass; detail=closed"),
        ("HEAD", {"if-none-match": '"v1"'}, 304, "fwd=bypass; detail=closed"),
        ("GET", {"cache-control": "only-if-cached"}, 504, "detail=only-if-cached"),
        ("HEAD", {"cache-control": "only-if-cached"}, 504, "detail=only-if-cached"),
        ("POST", {}, 200, None),
    ],
)
async def test_a_closed_guard_leaves_the_application(
    method: str, headers: dict[str, str], status: int, said: str | None, warm: bool
) -> None:
    guard = CacheGuard("memory://")
    cached = HTTPCacheMiddleware(Origin(), guard)
    if warm:
        await visit(cached)
    await guard.aclose()
    for _ in range(2):
        got = await visit(cached, method=method, headers=headers)
        assert got.status == status
        assert method != "HEAD" or got.body == b""
        assert said is None or got.said == said


@pytest.mark.parametrize("way", ["stored", "passed", "HEAD", "POST", "304", "stale"])
async def test_tags_can_be_kept_from_clients(guard: CacheGuard, way: str) -> None:
    control = {"passed": b"private", "stale": b"max-age=0"}.get(way, b"max-age=60")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"Cache-Tag", b"t"), (b"surrogate-key", b"u"), (b"cache-control", control), (b"etag", b'"a"')]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"x"})

    cached = HTTPCacheMiddleware(app, guard, strip_tags=True)
    method = way if way in {"HEAD", "POST"} else "GET"
    for _ in range(2):
        got = await visit(cached, method=method, headers={"if-none-match": '"a"'} if way == "304" else {})
        assert not {"cache-tag", "surrogate-key"} & {name.lower() for name in got.headers}
    if way == "stored":
        await guard.ainvalidate_tags("t")
        assert (await visit(cached)).said == "fwd=uri-miss; stored"
        assert "Cache-Tag" in (await visit(HTTPCacheMiddleware(app, guard), "/other")).headers


async def test_preferences_of_equal_weight_keep_their_order(guard: CacheGuard) -> None:
    languages = {"de, en;q=0.8", "en, de;q=0.8", "en;q=0.8, de", "de, en", "en, de", "de,en", "DE , EN", "en, de;q=1.0"}
    runs: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        asked: dict[bytes, bytes] = dict(scope["headers"])
        first = asked.get(b"accept-language", asked.get(b"accept", asked.get(b"accept-charset", b"")))
        runs.append(first)
        weighed = [each.strip().lower().partition(b";q=") for each in first.split(b",")]
        best = max(weighed, key=lambda one: float(one[2] or 1))[0]  # the first one of those with the greatest weight
        headers = [*HEAD[:1], (b"vary", b"Accept-Language, Accept, Accept-Charset")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": best})

    cached = HTTPCacheMiddleware(app, guard)
    for name in ("accept-language", "accept", "accept-charset"):
        runs.clear()
        for _ in range(2):
            for value in sorted(languages):
                best = b"en" if value in {"en, de;q=0.8", "en, de", "en, de;q=1.0"} else b"de"
                assert (await visit(cached, headers={name: value})).body == best, value
        assert len(runs) == 4, "de before en, en before de, and each with a weight"


async def test_a_head_with_a_condition_does_not_take_the_page_away(guard: CacheGuard) -> None:
    origin = Origin()
    cached = HTTPCacheMiddleware(origin, guard)
    await visit(cached)
    await visit(cached, method="HEAD", headers={"if-none-match": '"v1"', "cache-control": "no-cache"})
    await until(lambda: origin.runs == 2)
    assert (await visit(cached)).said == "hit"
