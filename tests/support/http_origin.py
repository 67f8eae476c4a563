"""The application of random HTTP programs. It knows its history, and nothing of caches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, NoReturn

import anyio

from tests.support.http_model import NOBODY, Forgetting, History, Rep, Run, language_of, other, same_tag, span_of, weak
from tests.support.http_shapes import Ask, Page, Post


async def turns(count: int) -> None:
    """Let the others go on."""
    for _ in range(count):
        await asyncio.sleep(0)


class Origin:
    """An ASGI application that answers the same way whether a cache stands before it or not.

    Args:
        place: the place of a worker: those that share a guard are one.
    """

    def __init__(self, history: History, pages: dict[str, Page], host: str, place: Callable[[int], int]) -> None:
        self.history, self.pages, self.host, self.place = history, pages, host, place
        self.names = list(pages)
        self.broken = dict.fromkeys(self.names, "")
        self.asks: dict[int, Ask | Post] = {}
        self.pending: dict[int, list[Forgetting]] = {}  # by request: the invalidations that its answer ends

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """The application. It answers the same way whether the cache stands before it or not."""
        fields = {key.decode(): value.decode() for key, value in scope["headers"]}
        name = scope["path"].removeprefix("/")
        number = int(fields["x-number"])
        action = self.asks[number]
        page = self.pages[name]
        if scope["method"] == "POST":
            await self._changed(number, name, action, scope, fields, send)
            return
        run = Run(number, name, self.history.tick())
        self.history.runs.append(run)
        try:
            if page.reads:
                while (await receive()).get("more_body"):
                    pass
            await turns(action.work)
            if self.broken[name]:
                run.failed = True
            if self.broken[name] == "raises":
                fail()
            if self.broken[name] == "says":
                await respond(send, 503, {}, [f"failure {number}".encode()] if scope["method"] == "GET" else [])
                return
            await self._answered(scope["method"], name, fields, action.work, receive, send)
        except OriginError:
            run.failed = True
            raise
        finally:
            run.ended = self.history.tick()

    async def _answered(
        self, method: str, name: str, fields: dict[str, str], work: int, receive: Any, send: Any
    ) -> None:
        kind, page = self.history.kinds[name], self.pages[name]
        user = fields.get("authorization") or (fields.get("cookie") if kind.personal else None) or NOBODY
        language = language_of(fields.get("accept-language")) if kind.varies else "en"
        host = fields.get("x-forwarded-host", fields["host"])
        rep = Rep(name, self.history.version(name), language, user, host)
        said = {"x-rep": str(rep), "cache-control": kind.control, "cache-tag": f"{self.host}-{name}"}
        if kind.age:
            said["age"] = str(kind.age)
        if kind.varies:
            said["vary"] = "Accept-Language" + (", X-Side" if kind.restless and rep.version % 2 else "")
        if kind.cookie:
            said["set-cookie"] = f"seen={user}"
        validators = {"etag": rep.tag(kind), "last-modified": rep.date(kind)}
        said |= {key: value for key, value in validators.items() if value is not None}
        whole = rep.body
        if has_it(fields, said):
            tag = said.get("etag")
            rewritten = {"weak": weak, "other": other}.get(page.rewrites, str)
            await respond(send, 304, said if tag is None else {**said, "etag": str(rewritten(tag))}, [])
            return
        status, body = 200, whole
        if kind.ranges and method == "GET" and "range" in fields and fields.get("if-range") in {None, said.get("etag")}:
            first, after = span_of(fields["range"], len(whole))
            if first >= len(whole):
                await respond(send, 416, {"content-range": f"bytes */{len(whole)}"}, [])
                return
            status, body = 206, whole[first:after]
            said["content-range"] = f"bytes {first}-{after - 1}/{len(whole)}"
        if page.length:
            said["content-length"] = str(len(body))
        chunks = [] if method == "HEAD" else [body[at : at + 60] for at in range(0, len(body), 60)]
        midway = self.broken[name] == "midway"
        await respond(send, status, said, chunks, work, receive if page.listens else None, midway=midway)

    async def _changed(
        self, number: int, name: str, action: Any, scope: Any, fields: dict[str, str], send: Any
    ) -> None:
        await turns(action.work)
        names = [name] if action.other is None else [name, self.names[action.other]]
        for each in dict.fromkeys(names):
            self.history.change(each)
        await turns(action.work)
        said: dict[str, str] = {}
        if action.other is not None:
            host = fields.get("x-forwarded-host", fields["host"])
            said["location"] = (f"http://{host}" if action.absolute else "") + f"/{names[-1]}"
        if action.status < 400:
            self.pending[number] = [
                self.history.begin_forgetting(each, self.place(action.worker)) for each in dict.fromkeys(names)
            ]
        await respond(send, action.status, said, [b"changed"])


class OriginError(Exception):
    """The application fails."""


def fail() -> NoReturn:
    """Fail, as the application does."""
    raise OriginError


def has_it(fields: dict[str, str], said: dict[str, str]) -> bool:
    """Whether the origin answers 304, as StaticFiles does."""
    if "if-none-match" in fields:
        wanted = fields["if-none-match"]
        tag = said.get("etag")
        return wanted == "*" or (tag is not None and any(same_tag(each, tag) for each in wanted.split(", ")))
    return "last-modified" in said and fields.get("if-modified-since") == said["last-modified"]


async def respond(
    send: Any,
    status: int,
    fields: dict[str, str],
    chunks: list[bytes],
    work: int = 0,
    receive: Any = None,
    *,
    midway: bool = False,
) -> None:
    """Send an answer. *receive*: end early if the client has left. *midway*: fail in the middle."""
    headers = [(key.encode(), value.encode()) for key, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    for number, chunk in enumerate(chunks):
        await turns(work)
        if receive is not None and await is_disconnected(receive):
            break
        if midway and number == 1:
            fail()
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def is_disconnected(receive: Any) -> bool:
    """Starlette's way to ask."""
    message: Any = {}
    with anyio.CancelScope() as scope:
        scope.cancel()
        message = await receive()
    return bool(message.get("type") == "http.disconnect")
