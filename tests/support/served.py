"""A small application, as prefork servers run it: one guard, made before the workers are."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qsl

from cacheguard import CacheGuard

guard = CacheGuard(os.environ["CACHEGUARD_URL"])
ROWS: dict[str, int] = {}  # of this worker: its "database"
assert guard.get_or_set("made", lambda: "before the fork") == "before the fork"  # pool, bus and engine are there


@guard.cached("row:{key}", ttl="1m")
def row(key: str) -> str:
    return f"{key} loaded by {os.getpid()} at {time.monotonic()}"


@guard.cached("arow:{key}", ttl="1m")
async def arow(key: str) -> str:
    return f"{key} loaded by {os.getpid()} at {time.monotonic()}"


def said(path: str, key: str, value: str | None) -> dict[str, Any]:
    stats = guard.stats()
    return {
        "pid": os.getpid(),
        "path": path,
        "key": key,
        "value": value,
        "bus": stats.bus_up,
        "l1_hits": stats.l1_hits,
        "errors": stats.redis_errors,
        "threads": sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("cacheguard")),
    }


def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """``/get?key=…`` and ``/drop?key=…`` for threads."""
    path, key = environ["PATH_INFO"], dict(parse_qsl(environ["QUERY_STRING"])).get("key", "k")
    if path == "/drop":
        row.invalidate(key)
    answer = json.dumps(said(path, key, row(key) if path == "/get" else None)).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(answer)))])
    return [answer]


async def asgi(scope: dict[str, Any], receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
    """The same for event loops."""
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            if kind == "lifespan.shutdown":
                await guard.aclose()
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                return
    path, key = scope["path"], dict(parse_qsl(scope["query_string"].decode())).get("key", "k")
    if path == "/drop":
        await arow.invalidate(key)
    answer = json.dumps(said(path, key, await arow(key) if path == "/get" else None)).encode()
    headers = [(b"content-length", str(len(answer)).encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})
