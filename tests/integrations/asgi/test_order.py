"""The cache says at the start if a middleware stands on its wrong side, and the docs tell the truth about sides."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, AuthenticationError, SimpleUser
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from cacheguard import CacheGuard
from cacheguard_asgi import HTTPCacheMiddleware

FRESH = {"Cache-Control": "max-age=60"}


class Backend(AuthenticationBackend):
    """Lets in who says ``token``."""

    async def authenticate(self, conn: Any) -> tuple[AuthCredentials, SimpleUser] | None:
        if conn.headers.get("x-token") != "token":
            raise AuthenticationError("who are you?")
        return AuthCredentials(["in"]), SimpleUser("ann")


class OwnSessions(SessionMiddleware):
    """A class derived from a known one."""


SESSION = Middleware(SessionMiddleware, secret_key="secret")
OWN = Middleware(OwnSessions, secret_key="secret")
AUTH = Middleware(AuthenticationMiddleware, backend=Backend())
CORS = Middleware(CORSMiddleware, allow_origins=["https://other.example"])
GZIP = Middleware(GZipMiddleware)
HOSTS = Middleware(TrustedHostMiddleware, allowed_hosts=["*"])
PROXY: Any = Middleware(ProxyHeadersMiddleware)


@pytest.fixture
def memory() -> Iterator[CacheGuard]:
    with CacheGuard("memory://") as guard:
        yield guard


async def page(request: Request) -> Response:
    name = request.session.get("name", "nobody") if "session" in request.scope else "nobody"
    return PlainTextResponse(f"for {name}", headers=FRESH)


async def enter(request: Request) -> Response:
    request.session["name"] = request.query_params["name"]
    return PlainTextResponse("in")


ROUTES = [Route("/", page), Route("/enter", enter)]


def said_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage().split(" belongs ")[0] for record in caplog.records if record.name == "cacheguard.asgi"]


def build(memory: CacheGuard, outside: list[Middleware], inside: list[Middleware], kind: type[Starlette]) -> Starlette:
    return kind(routes=ROUTES, middleware=[*outside, Middleware(HTTPCacheMiddleware, guard=memory), *inside])


@pytest.mark.parametrize("kind", [Starlette, FastAPI])
@pytest.mark.parametrize(
    ("outside", "inside", "wrong"),
    [
        ([], [], []),
        ([CORS, HOSTS, AUTH], [SESSION, GZIP], []),
        ([PROXY, GZIP], [HOSTS], []),
        ([SESSION], [], ["SessionMiddleware"]),
        ([GZIP, OWN], [], ["OwnSessions"]),
        ([], [AUTH], ["AuthenticationMiddleware"]),
        ([], [CORS], ["CORSMiddleware"]),
        ([], [PROXY], ["ProxyHeadersMiddleware"]),
        ([SESSION], [GZIP, AUTH, CORS], ["SessionMiddleware", "AuthenticationMiddleware", "CORSMiddleware"]),
        ([], [SESSION, AUTH], []),
        ([], [AUTH, SESSION], ["AuthenticationMiddleware"]),
    ],
    ids=lambda value: "+".join(getattr(each, "cls", type(each)).__name__ for each in value) or "none",
)
async def test_a_middleware_on_the_wrong_side_is_named_once(
    memory: CacheGuard,
    caplog: pytest.LogCaptureFixture,
    kind: type[Starlette],
    outside: list[Middleware],
    inside: list[Middleware],
    wrong: list[str],
) -> None:
    app = build(memory, outside, inside, kind)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop.example") as client:
        for _ in range(2):
            await client.get("/", headers={"x-token": "token"})
    assert said_of(caplog) == wrong


async def test_it_is_said_when_the_application_starts(memory: CacheGuard, caplog: pytest.LogCaptureFixture) -> None:
    app = build(memory, [SESSION], [], Starlette)
    messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

    async def receive() -> Any:
        return next(messages)

    async def send(_: Any) -> None:
        return

    await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)
    assert said_of(caplog) == ["SessionMiddleware"]


async def test_a_cache_around_a_whole_application_sees_what_is_inside(
    memory: CacheGuard, caplog: pytest.LogCaptureFixture
) -> None:
    inner = Starlette(routes=ROUTES, middleware=[CORS, SESSION])
    app = HTTPCacheMiddleware(GZipMiddleware(inner), memory)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop.example") as client:
        await client.get("/")
    assert said_of(caplog) == ["CORSMiddleware"]


async def test_an_application_of_another_kind_is_left_alone(
    memory: CacheGuard, caplog: pytest.LogCaptureFixture
) -> None:
    class Ring:
        app: Any

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await PlainTextResponse("hello")(scope, receive, send)

    ring = Ring()
    ring.app = ring
    app = HTTPCacheMiddleware(ring, memory)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop.example") as client:
        assert (await client.get("/")).text == "hello"
    caplog.set_level(logging.WARNING)
    assert said_of(caplog) == []


# What the page about the order says of each of them


def client_of(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop.example")


@pytest.mark.parametrize(("outside", "inside", "shared"), [([SESSION], [], True), ([], [SESSION], False)])
async def test_pages_of_a_session_are_shared_only_if_the_session_is_outside(
    memory: CacheGuard, outside: list[Middleware], inside: list[Middleware], shared: bool
) -> None:
    app = build(memory, outside, inside, Starlette)
    async with client_of(app) as ann, client_of(app) as bob:
        for client, name in ((ann, "ann"), (bob, "bob")):
            await client.get("/enter", params={"name": name})
        assert (await ann.get("/")).text == "for ann"
        assert (await bob.get("/")).text == ("for ann" if shared else "for bob")


@pytest.mark.parametrize(("outside", "inside", "refused"), [([AUTH], [], True), ([], [AUTH], False)])
async def test_strangers_are_refused_at_a_hit_only_if_authentication_is_outside(
    memory: CacheGuard, outside: list[Middleware], inside: list[Middleware], refused: bool
) -> None:
    async with client_of(build(memory, outside, inside, Starlette)) as client:
        assert (await client.get("/", headers={"x-token": "token"})).status_code == 200
        assert (await client.get("/")).status_code == (400 if refused else 200)


@pytest.mark.parametrize(("outside", "inside", "hits"), [([CORS], [], True), ([], [CORS], False)])
async def test_all_sites_share_a_page_only_if_cors_is_outside(
    memory: CacheGuard, outside: list[Middleware], inside: list[Middleware], hits: bool
) -> None:
    async with client_of(build(memory, outside, inside, Starlette)) as client:
        await client.get("/")
        hit = await client.get("/", headers={"origin": "https://other.example"})
        assert ("; hit" in hit.headers["cache-status"]) is hits
        assert hit.headers["access-control-allow-origin"] == "https://other.example" or not hits


@pytest.mark.parametrize(("outside", "inside"), [([GZIP], []), ([], [GZIP])])
async def test_compression_works_on_either_side(
    memory: CacheGuard, outside: list[Middleware], inside: list[Middleware]
) -> None:
    async def long(_: Request) -> Response:
        return PlainTextResponse("x" * 5000, headers=FRESH)

    middleware = [*outside, Middleware(HTTPCacheMiddleware, guard=memory), *inside]
    async with client_of(Starlette(routes=[Route("/", long)], middleware=middleware)) as client:
        for accepted in ("gzip", "identity", "gzip", "identity"):
            answer = await client.get("/", headers={"accept-encoding": accepted})
            assert answer.text == "x" * 5000
            assert answer.headers.get("content-encoding", "identity") == accepted
