"""What does the HTTP cache cost a request that passes, and what does it save one that hits?"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Coroutine
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from benchmarks.common import Target, awaited, claim, headline, options, private_redis, rounds, table
from benchmarks.compare.racing import awaits, race_runs
from cacheguard import CacheGuard
from cacheguard_asgi import HTTPCacheMiddleware

ROWS = 100  # about 10 kB of JSON
TIMES = range(100)
HEADERS = [(b"host", b"shop.example"), (b"accept", b"*/*"), (b"accept-encoding", b"gzip"), (b"user-agent", b"bench")]
OVERHEAD = 15e-6  # seconds
OK: dict[str, Any] = {"type": "http.response.start", "status": 200, "headers": [(b"cache-control", b"no-store")]}


def asker(app: Any, method: str, path: bytes) -> Callable[[int], Coroutine[Any, Any, None]]:
    """Ask *app* over ASGI as a server would, without the wire."""

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(_: Any) -> None:
        return

    async def ask(_: int) -> None:
        await app(
            {
                "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
                "path": path.decode(), "raw_path": path, "query_string": b"", "root_path": "", "headers": HEADERS,
                "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
            },
            receive,
            send,
        )  # fmt: skip

    return ask


async def nothing(scope: Any, receive: Any, send: Any) -> None:
    """The least that an application can do."""
    await send(OK)
    await send({"type": "http.response.body", "body": b""})


def shop() -> Starlette:
    """Ten kilobytes of JSON out of SQLite."""
    database = sqlite3.connect(":memory:", check_same_thread=False)
    database.execute("CREATE TABLE product (id INTEGER PRIMARY KEY, name TEXT, price INTEGER)")
    rows = [(number, f"product number {number} " + "x" * 40, number) for number in range(ROWS)]
    database.executemany("INSERT INTO product VALUES (?, ?, ?)", rows)

    async def products(request: Request) -> JSONResponse:
        found = database.execute("SELECT id, name, price FROM product").fetchall()
        products = [{"id": number, "name": name, "price": price} for number, name, price in found]
        return JSONResponse(products, headers={"Cache-Control": "max-age=3600"})

    return Starlette(routes=[Route("/products", products)])


def main() -> None:
    """An in-process driver, one request after another, one core."""
    chosen = options(__doc__ or "")
    with private_redis() as url, asyncio.Runner() as runner:
        headline(__doc__ or "", url)
        guard = CacheGuard(url, operation_timeout=5)
        passing(guard, runner, rounds(chosen, 40))
        hits(guard, runner, rounds(chosen, 40))
        runner.run(guard.aclose())


def passing(guard: CacheGuard, runner: asyncio.Runner, count: int) -> None:
    """What passes: a request that changes something, and one whose responses are known not to be storable."""
    cached = HTTPCacheMiddleware(nothing, guard)
    names = "bare application", "passes, OPTIONS", "passes, GET (no-store)"
    asks = asker(nothing, "GET", b"/"), asker(cached, "OPTIONS", b"/"), asker(cached, "GET", b"/")
    times = race_runs({name: awaited(runner, awaits(ask, TIMES)) for name, ask in zip(names, asks, strict=True)}, count)
    table(times, names[0])
    for name in names[1:]:
        more = times[name].p10 - times[names[0]].p10
        claim(f"overhead, {name}", f"{more * 1e6:.1f} µs", f"≤ {OVERHEAD * 1e6:.0f} µs", ok=more <= OVERHEAD)


def hits(guard: CacheGuard, runner: asyncio.Runner, count: int) -> None:
    """What hits, in the process and in Redis, against the application that renders the page."""
    app = shop()
    names = "Starlette, 10 kB from SQLite", "stored hit"
    asks = asker(app, "GET", b"/products"), asker(HTTPCacheMiddleware(app, guard), "GET", b"/products")
    times = race_runs({name: awaited(runner, awaits(ask, TIMES)) for name, ask in zip(names, asks, strict=True)}, count)
    table(times, names[0], Target(names[1], 1 / 3))


if __name__ == "__main__":
    main()
