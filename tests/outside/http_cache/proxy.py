"""A small reverse proxy behind the cache: what the HTTP cache test suite is run against."""

from __future__ import annotations

import os
from typing import Any

import httpx

from cacheguard import CacheGuard
from cacheguard_asgi import HTTPCacheMiddleware

ORIGIN = os.environ.get("ORIGIN", "http://127.0.0.1:8000")
OF_THE_CONNECTION = {b"transfer-encoding", b"keep-alive", b"connection", b"upgrade", b"te", b"proxy-connection"}


class Proxy:
    """Forwards every request to `ORIGIN` and passes the response on as it comes."""

    def __init__(self) -> None:
        self._client: httpx.AsyncClient | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self._client is None:
            # The suite lies about lengths: no connection to it is used twice.
            limits = httpx.Limits(max_connections=300, max_keepalive_connections=0)
            self._client = httpx.AsyncClient(limits=limits, timeout=30, follow_redirects=False, trust_env=False)
            self._client.headers.clear()
        url = httpx.URL(ORIGIN).copy_with(
            raw_path=scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
        )
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers = [
            (name, value) for name, value in scope["headers"] if name not in OF_THE_CONNECTION | {b"content-length"}
        ]
        request = self._client.build_request(scope["method"], url, headers=headers, content=body or None)
        response = await self._client.send(request, stream=True)
        try:
            kept = [
                (name.lower(), value)
                for name, value in response.headers.raw
                if name.lower() not in OF_THE_CONNECTION - {b"connection"}
            ]
            await send({"type": "http.response.start", "status": response.status_code, "headers": kept})
            async for chunk in response.aiter_raw():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            await response.aclose()


async def lifespan(receive: Any, send: Any) -> None:
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return


guard = CacheGuard(os.environ.get("REDIS_URL", "memory://"), namespace="conformance", operation_timeout=2)
cached = HTTPCacheMiddleware(Proxy(), guard, heuristic=0.1)


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return

    async def once(message: Any) -> None:
        if message["type"] == "http.response.start" and not any(
            name == b"connection" for name, _ in message["headers"]
        ):
            message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
        await send(message)

    await cached(scope, receive, once)
