"""Clients that leave, read slowly, or wait for slow pages: what the others get, and what is stored."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from cacheguard import CacheGuard
from cacheguard_asgi import HTTPCacheMiddleware, url_key
from tests.support.visits import Visit, until, visit

CC = {"Cache-Control": "max-age=60"}
FRESH = [(b"cache-control", b"max-age=60")]
KEY = url_key("http://shop.example/")


@pytest.fixture
async def guard() -> AsyncIterator[CacheGuard]:
    async with CacheGuard("memory://") as guard:
        yield guard


class Pages:
    """An application that looks for its client as Starlette does, and then answers as *ends* says."""

    def __init__(self, ends: Callable[[Any], Any]) -> None:
        self.ends, self.runs, self.gate, self.looking = ends, 0, asyncio.Event(), asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.runs += 1
        self.looking.set()
        await receive()
        gone = asyncio.create_task(receive())
        await asyncio.wait((gone, asyncio.create_task(self.gate.wait())), return_when=asyncio.FIRST_COMPLETED)
        if gone.done() and gone.result()["type"] == "http.disconnect":
            await self.ends(send)
            return
        gone.cancel()
        await answers(send, 200, b"whole")


async def answers(send: Any, status: int, *parts: bytes, headers: Any = FRESH) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    for part in parts[:-1]:
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": parts[-1]})


async def a_part(send: Any) -> None:
    await answers(send, 200, b"who")


async def a_part_of_a_stream(send: Any) -> None:
    await answers(send, 200, b"w", b"h", b"o")


async def nothing(send: Any) -> None:
    await answers(send, 200, b"")


async def another_status(send: Any) -> None:
    await answers(send, 499, b"left")


async def an_error(send: Any) -> None:
    await answers(send, 503, b"down")


async def an_empty_page_for_years(send: Any) -> None:
    await answers(send, 204, b"", headers=[(b"cache-control", b"public, immutable, max-age=31536000")])


async def a_redirect(send: Any) -> None:
    await answers(send, 301, b"", headers=[(b"location", b"/login"), *FRESH])


async def silence(send: Any) -> None:
    return


async def half_a_head(send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": FRESH})


async def a_crash(send: Any) -> None:
    raise ConnectionError("the client has left")


async def an_unfinished_stream(send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": FRESH})
    await send({"type": "http.response.body", "body": b"wh", "more_body": True})


ENDS = [
    a_part, a_part_of_a_stream, nothing, another_status, an_error, an_empty_page_for_years, a_redirect, silence,
    half_a_head, a_crash, an_unfinished_stream,
]  # fmt: skip


@pytest.mark.parametrize("how", ["cold", "stale", "variant"])
@pytest.mark.parametrize("ends", ENDS, ids=lambda ends: ends.__name__)
async def test_what_is_answered_to_a_client_that_left_is_for_nobody(guard: CacheGuard, ends: Any, how: str) -> None:
    pages = Pages(ends)
    app = HTTPCacheMiddleware(pages, guard)
    if how != "cold":
        old = "max-age=1, stale-if-error=60" if how == "stale" else "max-age=60"
        vary = [(b"vary", b"x-kind")] if how == "variant" else []

        async def first(scope: Any, receive: Any, send: Any) -> None:
            await answers(send, 200, b"old", headers=[(b"cache-control", old.encode()), (b"age", b"1"), *vary])

        app.app = first
        await visit(app, headers={"x-kind": "other"})
        app.app = pages
    leader = Visit(app).begin()
    await pages.looking.wait()
    followers = [Visit(app).begin() for _ in range(5)]
    await asyncio.sleep(0.01)
    leader.leave()
    await asyncio.gather(leader.over(), return_exceptions=True)
    await until(lambda: pages.runs == 2)
    pages.gate.set()
    for follower in followers:
        assert (await follower.over()).body == b"whole"
    assert (await visit(app)).body == b"whole"
    assert pages.runs == 2


async def test_leaders_that_leave_one_after_another_are_each_followed_by_one(guard: CacheGuard) -> None:
    pages = Pages(a_part)
    app = HTTPCacheMiddleware(pages, guard)
    visits = [Visit(app).begin() for _ in range(10)]
    for run, leader in enumerate(visits[:8], 1):
        await until(lambda run=run: pages.runs == run)
        leader.leave()
    await until(lambda: pages.runs == 9)
    pages.gate.set()
    assert {(await each.over()).body for each in visits[8:]} == {b"whole"}
    assert (await visit(app)).said == "hit"
    assert pages.runs == 9


async def test_a_client_that_leaves_when_all_was_answered_changes_nothing(guard: CacheGuard) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await answers(send, 200, b"who", b"le")
        await receive()  # hears it, too late to answer otherwise

    cached = HTTPCacheMiddleware(app, guard)
    first = Visit(cached).begin()
    await until(lambda: first.is_whole)
    first.leave()
    await first.over()
    assert (await visit(cached)).said == "hit"


async def test_starlette_s_own_ways_to_hear_of_it(guard: CacheGuard) -> None:
    runs: list[int] = []

    async def rows(request: Request) -> Response:
        runs.append(1)
        got: list[int] = []
        for number in range(4):
            if await request.is_disconnected():
                break
            await asyncio.sleep(0.01)
            got.append(number)
        return JSONResponse(got, headers=CC)

    async def stream(request: Request) -> Response:
        async def parts() -> AsyncIterator[str]:
            runs.append(1)
            for number in range(4):
                yield str(number)
                await asyncio.sleep(0.01)

        return StreamingResponse(parts(), headers=CC)

    app = HTTPCacheMiddleware(Starlette(routes=[Route("/rows", rows), Route("/stream", stream)]), guard)
    for url, whole in (("/rows", b"[0,1,2,3]"), ("/stream", b"0123")):
        runs.clear()
        leader = Visit(app, url).begin()
        await until(lambda: runs)
        follower = Visit(app, url).begin()
        await asyncio.sleep(0.015)
        leader.leave()
        await leader.over()
        assert (await follower.over()).body == whole
        assert (await visit(app, url)).body == whole
        assert len(runs) == 2


async def test_a_body_that_is_no_part_of_the_key_is_shared_with_nobody(guard: CacheGuard) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await answers(send, 200, (await receive())["body"] or b"clean")

    cached = HTTPCacheMiddleware(app, guard)
    evil = await visit(cached, body=b"evil")
    assert evil.body == b"evil"
    assert "stored" not in evil.said
    assert (await visit(cached)).body == b"clean"
    assert (await visit(cached)).said == "hit"


# Slow readers


SIZES = {"one message": [b"x" * 1000], "stream": [b"x" * 100] * 10, "stream with pauses": [b"x" * 100, b"", b"y" * 100]}


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("parts", SIZES.values(), ids=SIZES)
async def test_a_client_that_does_not_read_holds_up_nobody(
    guard: CacheGuard, parts: list[bytes], announced: bool
) -> None:
    done: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        length = [(b"content-length", b"%d" % len(b"".join(parts)))] if announced else []
        await send({"type": "http.response.start", "status": 200, "headers": [*FRESH, *length]})
        for number, part in enumerate(parts, 1):
            if not part:
                await asyncio.sleep(0.01)
            await send({"type": "http.response.body", "body": part, "more_body": number < len(parts)})
        done.append(1)

    cached = HTTPCacheMiddleware(app, guard)
    lazy = Visit(cached, reads=False).begin()
    others = [Visit(cached).begin() for _ in range(5)]
    for other in others:
        assert (await other.over()).body == b"".join(parts)
    assert not lazy.messages
    lazy.read_on()
    assert (await lazy.over()).body == b"".join(parts)
    assert len(done) == 1


async def test_what_is_too_long_is_made_at_the_pace_of_its_client_and_others_go_on(guard: CacheGuard) -> None:
    runs, sent = 0, 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal runs, sent
        runs += 1
        await send({"type": "http.response.start", "status": 200, "headers": FRESH})
        for _ in range(100):
            await send({"type": "http.response.body", "body": b"x" * 10, "more_body": True})
            sent += runs == 1
        await send({"type": "http.response.body", "body": b"."})

    cached = HTTPCacheMiddleware(app, guard, max_body_bytes=100)
    lazy = Visit(cached, reads=False).begin()
    await until(lambda: sent == 10)
    other = await visit(cached)
    assert (len(other.body), sent) == (1001, 10), "the copy is bounded"
    lazy.read_on()
    assert (await lazy.over()).body == other.body


async def test_a_server_that_refuses_to_send_ends_the_run_and_another_one_begins(guard: CacheGuard) -> None:
    runs = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal runs
        runs += 1
        await send({"type": "http.response.start", "status": 200, "headers": FRESH})
        for _ in range(3):
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            await asyncio.sleep(0.01)
        await send({"type": "http.response.body", "body": b"."})

    cached = HTTPCacheMiddleware(app, guard)

    leader = Visit(cached, refusal=OSError("the connection is closed")).begin()  # as ASGI 2.4 says
    followers = [Visit(cached).begin() for _ in range(5)]
    with pytest.raises(OSError, match="the connection is closed"):
        await leader.over()
    assert {(await each.over()).body for each in followers} == {b"xxx."}
    assert runs == 2


# Slow pages


@pytest.mark.parametrize("kind", ["page", "stream", "part"])
async def test_a_page_slower_than_the_patience_of_others_is_stored(guard: CacheGuard, kind: str) -> None:
    gate, runs = asyncio.Event(), 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal runs
        runs += 1
        number = b"%d" % runs
        if kind == "page":
            await gate.wait()
        part = [(b"content-range", b"bytes 0-3/9")] if kind == "part" else []
        await send({"type": "http.response.start", "status": 206 if part else 200, "headers": [*FRESH, *part]})
        await send({"type": "http.response.body", "body": b"run", "more_body": True})
        await gate.wait()
        await send({"type": "http.response.body", "body": number})

    cached = HTTPCacheMiddleware(app, guard, wait="50ms")
    headers = {"range": "bytes=0-3"} if kind == "part" else {}
    leader = Visit(cached, headers=headers).begin()
    await until(lambda: runs == 1)
    follower = Visit(cached, headers=headers).begin()
    await until(lambda: runs == 2)  # its patience has ended
    gate.set()
    assert (await leader.over()).body == b"run1"
    assert (await follower.over()).body == b"run2"
    assert "stored" not in follower.said
    again = await visit(cached, headers=headers)
    assert (again.body, again.said, runs) == (b"run1", "hit", 2)


async def test_a_run_that_takes_too_long_gives_its_place_up(guard: CacheGuard) -> None:
    gate, runs = asyncio.Event(), 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            await gate.wait()
        await answers(send, 200, b"page")

    cached = HTTPCacheMiddleware(app, guard, longest_run="50ms")
    hung = Visit(cached).begin()
    await until(lambda: runs == 1)
    assert (await visit(cached)).body == b"page"
    assert (await visit(cached)).body == b"page"
    assert (await visit(cached)).said == "hit"
    gate.set()
    assert "stored" not in (await hung.over()).said


async def test_the_head_of_a_slow_stream_is_not_held_back(guard: CacheGuard) -> None:
    gate = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": FRESH})
        await gate.wait()
        await send({"type": "http.response.body", "body": b"late"})

    slow = Visit(HTTPCacheMiddleware(app, guard)).begin()
    await until(lambda: slow.messages)
    gate.set()
    assert (await slow.over()).body == b"late"
    assert slow.said == "fwd=uri-miss", "nobody could know yet that it would be stored"


# Pages that ask for themselves


@pytest.mark.parametrize("by", ["coroutine", "task", "thread", "another page", "HEAD", "stale"])
async def test_a_page_that_asks_for_itself_does_not_wait_for_itself(guard: CacheGuard, by: str) -> None:
    async def inner(url: str, method: str = "GET") -> bytes:
        return (await visit(cached, url, method=method, headers={"x-inner": "1"})).body or b"inner"

    async def page(request: Request) -> Response:
        if "x-inner" in request.headers:
            return PlainTextResponse("inner", headers=CC)
        if by == "task":
            body = await asyncio.create_task(inner("/x"))
        elif by == "thread":
            body = await asyncio.to_thread(lambda: asyncio.run(inner("/x")))
        elif by == "another page":
            body = (await visit(cached, "/y")).body
        else:
            body = await inner("/x", "HEAD" if by == "HEAD" else "GET")
        return Response(body + b" outer", headers={"Cache-Control": "max-age=1", "Age": "1"} if by == "stale" else CC)

    async def other(request: Request) -> Response:
        return Response(await inner("/x"), headers=CC)

    app = Starlette(routes=[Route("/x", page), Route("/y", other)])
    cached = HTTPCacheMiddleware(app, guard)
    for _ in range(2):
        assert (await visit(cached, "/x")).body == b"inner outer"


# Two workers on one Redis


async def test_another_worker_runs_the_application_when_the_client_of_one_has_left(redis_url: str) -> None:
    async with CacheGuard(redis_url) as one, CacheGuard(redis_url) as two:
        pages = Pages(a_part)
        here, there = HTTPCacheMiddleware(pages, one), HTTPCacheMiddleware(pages, two)
        leader = Visit(here).begin()
        await pages.looking.wait()
        followers = [Visit(app).begin() for app in (here, there) for _ in range(3)]
        await asyncio.sleep(0.05)
        leader.leave()
        await leader.over()
        await until(lambda: pages.runs == 2)
        pages.gate.set()
        assert {(await each.over()).body for each in followers} == {b"whole"}
        assert {(await visit(app)).body for app in (here, there)} == {b"whole"}
        assert pages.runs == 2


async def test_a_page_slower_than_the_patience_of_another_worker_is_stored_for_both(redis_url: str) -> None:
    async with CacheGuard(redis_url) as one, CacheGuard(redis_url) as two:
        pages = Pages(a_part)
        here, there = (HTTPCacheMiddleware(pages, guard, wait="50ms") for guard in (one, two))
        leader = Visit(here, reads=False).begin()
        await until(lambda: pages.runs == 1)
        follower = Visit(there).begin()
        await until(lambda: pages.runs == 2)
        pages.gate.set()
        assert ((await follower.over()).body, follower.said) == (b"whole", "fwd=uri-miss")
        async with asyncio.timeout(10):
            while (await visit(there, headers={"cache-control": "only-if-cached"})).status != 200:
                await asyncio.sleep(0.01)
        leader.read_on()
        assert (await leader.over()).body == b"whole"
        assert pages.runs == 2
