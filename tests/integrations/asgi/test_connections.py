"""What servers do with a connection: the next request may begin in the context of the last message."""

from __future__ import annotations

import asyncio
from typing import Any

from cacheguard import CacheGuard
from cacheguard_asgi import HTTPCacheMiddleware
from tests.integrations.asgi.conftest import Origin

SCOPE = {"type": "http", "method": "GET", "path": "/", "raw_path": b"/", "query_string": b"", "scheme": "http"}


async def test_the_next_request_of_a_connection_is_a_hit_though_the_application_is_still_at_work(
    guard: CacheGuard,
) -> None:
    next_is_answered = asyncio.Event()
    origin = Origin().says(("cache-control", "max-age=60"), ("content-length", "5"))

    async def with_background_task(scope: Any, receive: Any, send: Any) -> None:
        await origin(scope, receive, send)
        await next_is_answered.wait()

    cached = HTTPCacheMiddleware(with_background_task, guard)
    scope = {**SCOPE, "headers": [(b"host", b"shop.example")]}
    second: list[Any] = []
    begun: list[asyncio.Task[None]] = []

    async def keep(message: Any) -> None:
        second.append(message)

    async def next_request() -> None:
        await cached(scope, receive, keep)
        next_is_answered.set()

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body"):
            begun.append(asyncio.create_task(next_request()))  # as uvicorn does with what has come meanwhile

    async with asyncio.timeout(10):
        await cached(scope, receive, send)
        await begun[0]
    assert origin.runs == 1
    assert dict(second[0]["headers"])[b"cache-status"].startswith(b"cacheguard; hit")
