from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from cacheguard import CacheGuard
from cacheguard_asgi import HTTPCacheMiddleware

Respond = Callable[..., Any]


class Origin:
    """An ASGI application that answers as the test says, and writes down what it was asked."""

    def __init__(self) -> None:
        self.requests: list[dict[bytes, bytes]] = []
        self.paths: list[str] = []
        self.status = 200
        self.headers: list[tuple[bytes, bytes]] = []
        self.body: list[bytes] = [b"hello"]
        self.before: Callable[[], Any] | None = None
        self.error: Exception | None = None
        self.answer: Callable[[dict[bytes, bytes]], tuple[int, list[tuple[bytes, bytes]], list[bytes]]] | None = None

    @property
    def runs(self) -> int:
        return len(self.requests)

    def says(self, *headers: tuple[str, str], body: bytes | list[bytes] | None = None, status: int = 200) -> Origin:
        self.headers = [(name.encode(), value.encode("latin-1")) for name, value in headers]
        if body is not None:
            self.body = [body] if isinstance(body, bytes) else body
        self.status = status
        return self

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        headers = dict(scope["headers"])
        self.requests.append(headers)
        self.paths.append(scope["path"])
        if self.before is not None:
            await self.before()
        if self.error is not None:
            raise self.error
        status, fields, body = self.status, self.headers, self.body
        if self.answer is not None:
            status, fields, body = self.answer(headers)
        await send({"type": "http.response.start", "status": status, "headers": fields})
        for chunk in body:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


class Client:
    """Asks the cache over httpx, in the process."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self._client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop.example")

    async def get(self, url: str = "/", **headers: str) -> httpx.Response:
        return await self.ask("GET", url, **headers)

    async def ask(self, method: str, url: str = "/", **headers: str) -> httpx.Response:
        return await self._client.request(
            method, url, headers={name.replace("_", "-"): value for name, value in headers.items()}
        )

    async def close(self) -> None:
        await self._client.aclose()


@pytest.fixture
def origin() -> Origin:
    return Origin()


@pytest.fixture
async def guard(redis_url: str) -> AsyncIterator[CacheGuard]:
    async with CacheGuard(redis_url) as guard:
        yield guard


OpenClient = Callable[..., Client]


@pytest.fixture
async def open_client(origin: Origin, guard: CacheGuard) -> AsyncIterator[OpenClient]:
    clients: list[Client] = []

    def open_client(app: Any = origin, guard: CacheGuard = guard, **options: Any) -> Client:
        clients.append(Client(HTTPCacheMiddleware(app, guard, **options)))
        return clients[-1]

    yield open_client
    for client in clients:
        await client.close()


@pytest.fixture
def client(open_client: OpenClient) -> Client:
    return open_client()
