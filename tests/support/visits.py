"""One request to an ASGI application, message by message: it leaves when it likes, and reads as slowly as it likes."""

from __future__ import annotations

import asyncio
from typing import Any


class Visit:
    """A client of *app*.

    Args:
        url: path and query.
        headers: of the request; ``host`` is ``shop.example`` if none is given.
        reads: False: nothing that is sent is taken before `read_on`.
        scope: what else the server says.
        body: of the request, as HTTP/2 has it: without Content-Length and Transfer-Encoding.
        refusal: what the server raises when it is to send something.
    """

    def __init__(
        self,
        app: Any,
        url: str = "/",
        *,
        method: str = "GET",
        headers: dict[str, str] | None = None,
        reads: bool = True,
        scope: dict[str, Any] | None = None,
        body: bytes = b"",
        refusal: Exception | None = None,
    ) -> None:
        path, _, query = url.partition("?")
        lines = {"host": "shop.example", **(headers or {})}
        self._app, self._told, self._body, self._refusal = app, False, body, refusal
        self.scope: dict[str, Any] = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": method,
            "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": query.encode(), "root_path": "",
            "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in lines.items()],
            "client": ("127.0.0.1", 50_000), "server": ("127.0.0.1", 80), **(scope or {}),
        }  # fmt: skip
        self._left, self._reads = asyncio.Event(), asyncio.Event()
        if reads:
            self._reads.set()
        self.messages: list[dict[str, Any]] = []
        self._task: asyncio.Task[Any] | None = None

    def begin(self) -> Visit:
        """Ask, and do not wait."""
        self._task = asyncio.create_task(self._app(self.scope, self._receive, self._send))
        return self

    def leave(self) -> None:
        """The connection is gone: the application hears it if it asks."""
        self._left.set()
        self._reads.set()

    def read_on(self) -> None:
        self._reads.set()

    async def over(self) -> Visit:
        """Wait for the end of the request."""
        assert self._task is not None
        async with asyncio.timeout(10):
            await self._task
        return self

    async def _receive(self) -> Any:
        if not self._told:
            self._told = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if self._refusal is not None:
            raise self._refusal
        await self._reads.wait()
        if not self._left.is_set():
            self.messages.append(message)

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.messages[0]["headers"]}

    @property
    def said(self) -> str:
        """Cache-Status, without the name of the cache and the time to live."""
        return "; ".join(each for each in self.headers["cache-status"].split("; ")[1:] if not each.startswith("ttl="))

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)

    @property
    def is_whole(self) -> bool:
        """True if the last message of the body has come."""
        return bool(self.messages) and not self.messages[-1].get("more_body", False)


async def visit(app: Any, url: str = "/", **options: Any) -> Visit:
    """One request, to its end."""
    return await Visit(app, url, **options).begin().over()


async def until(condition: Any) -> None:
    """Wait until *condition* returns True."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)
