"""What one client is sent of a response: all of it, a part, or 304; at its own pace."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable

from .answer import Message, Send, place_of, without_body
from .fields import Headers
from .page import Page
from .request import Request
from .rules import is_not_modified, range_applies

OK = 200
_OF_THE_PART = frozenset({b"content-length", b"content-range"})
HOLD = 0.05  # seconds that the head of a response waits for its body


class Sender:
    """Sends messages to one client, in order: `send` waits for the client, `post` does not.

    What is posted is sent by a task of its own. So a client that does not read holds up nobody but itself.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._queue: deque[Message] = deque()
        self._task: asyncio.Task[None] | None = None

    @property
    def failed(self) -> bool:
        """True if the server has refused what was posted: the client has left."""
        task = self._task
        return task is not None and task.done() and not task.cancelled() and task.exception() is not None

    async def send(self, message: Message) -> None:
        """Send *message* when all that was posted has been sent. Raises what the server has raised."""
        if self._task is not None:
            await self.drain()
        await self._send(message)

    def post(self, message: Message) -> None:
        """Queue *message*. Raises what the server has raised for one before."""
        if self._task is not None and self._task.done():
            self._task.result()
            self._task = None
        self._queue.append(message)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._write())

    async def drain(self) -> None:
        """Wait until all that was posted has been sent. Raises what the server has raised."""
        if self._task is not None:
            await asyncio.wait((self._task,))
            self._task.result()

    def stop(self) -> None:
        """Send nothing more of what was posted."""
        self._queue.clear()
        if self._task is not None:
            self._task.cancel()
            self._task.add_done_callback(_noticed)

    async def _write(self) -> None:
        while self._queue:
            await self._send(self._queue.popleft())


def _noticed(task: asyncio.Task[None]) -> None:
    """Retrieve the exception, so that asyncio does not log that it was never retrieved."""
    if not task.cancelled():
        task.exception()


class Reply:
    """The response of one run as one client gets it.

    The application runs for all, without this client's conditions. So the response may be cut to the part that the
    client wants, or to a 304. The head waits for the body, but not for long: if the whole body comes at once,
    Cache-Status can tell if the response was stored.

    Args:
        sender: of the client.
        request: of the client.
        message: the head.
        page: the head as a page, if the client's conditions apply to it; None: the client gets it as it is.
        length: of the whole body in bytes; None: not announced.
        label: makes Cache-Status; its argument is True if the response is stored. None: the field is not sent.
    """

    def __init__(
        self,
        sender: Sender,
        request: Request,
        message: Message,
        *,
        page: Page | None,
        length: int | None,
        label: Callable[[bool], bytes | None],
    ) -> None:
        self._sender, self._request, self._head, self._page, self._length = sender, request, message, page, length
        self._label = label
        self._held: list[Message] = []
        self._timer: asyncio.Handle | None = None
        self._is_open = False  # the head has been sent or posted
        self._wanted: tuple[int, int] | None = (0, 0) if request.is_head else None  # bytes; None: all
        self._at = 0
        self._is_over = False

    # While the response is copied: nobody waits for the client

    def hold(self) -> None:
        """Keep the head back for a moment."""
        self._timer = asyncio.get_running_loop().call_later(HOLD, self._let_go)

    def copy(self, message: Message) -> None:
        """Take a part of the body that is not the last one."""
        if self._is_open:
            self._post(message)
            return
        if not self._held:
            self._stop_timer()
            self._timer = asyncio.get_running_loop().call_soon(self._let_go)
        self._held.append(message)

    def stop_waiting(self) -> None:
        """The last part has come: the head may wait until the response is stored."""
        self._stop_timer()

    async def finish(self, message: Message, length: int, *, stored: bool) -> None:
        """Send the last part of the body, of *length* bytes in all."""
        if self._is_open:
            self._post(message)
            return
        self._length = length
        for each in self._opened([message], stored=stored):
            await self._sender.send(each)

    def _let_go(self) -> None:
        self._timer = None
        if not self._may_be_part() or (self._held and self._length is not None):
            for each in self._opened([], stored=False):
                self._sender.post(each)

    def _may_be_part(self) -> bool:
        """True if the client gets a part, once the length of the body is known."""
        page, request = self._page, self._request
        if page is None or page.status != OK or not request.wants_part or request.is_head:
            return False
        return not is_not_modified(page, request) and range_applies(page, request)

    def _post(self, message: Message) -> None:
        cut = self._cut(message)
        if cut is not None:
            self._sender.post(cut)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # When it is only passed on

    async def pass_on(self, message: Message) -> None:
        """Send *message*, and what was held, at the pace of the client."""
        if not self._is_open:
            if message["type"] != "http.response.body":
                self._length = None  # the server sends a file by itself: nothing can be cut out of it
            for each in self._opened([], stored=False):
                await self._sender.send(each)
        cut = self._cut(message)
        if cut is not None:
            await self._sender.send(cut)

    async def open(self) -> None:
        """Send the head now, unless it depends on what comes next."""
        if not self._may_be_part():
            for each in self._opened([], stored=False):
                await self._sender.send(each)

    async def end(self) -> None:
        """No more comes: send what was held."""
        if not self._is_open:
            for each in self._opened([], stored=False):
                await self._sender.send(each)

    # What the client gets

    def _opened(self, more: Iterable[Message], *, stored: bool) -> list[Message]:
        self._stop_timer()
        self._is_open = True
        messages = [self._headed(stored=stored)]
        messages += [each for each in map(self._cut, [*self._held, *more]) if each is not None]
        self._held.clear()
        return messages

    def _headed(self, *, stored: bool) -> Message:
        page, request, head = self._page, self._request, self._head
        headers: Headers = list(head.get("headers", ()))
        status: int = head["status"]
        if page is not None:
            headers = [(bytes(name).lower(), value) for name, value in headers]
        if page is not None and is_not_modified(page, request):
            status, headers, self._wanted = 304, without_body(headers), (0, 0)
        elif page is not None and self._length is not None:
            code, wanted, place = place_of(page, request, self._length)
            if wanted is not None and place is not None:
                status, self._wanted = code, wanted
                headers = [(name, value) for name, value in headers if name not in _OF_THE_PART]
                headers += [(b"content-range", place), (b"content-length", b"%d" % (wanted[1] - wanted[0]))]
        label = self._label(stored)
        if label is not None:
            headers.append((b"cache-status", label))
        headed: Message = {**head, "status": status, "headers": headers}
        if self._wanted is not None:
            headed.pop("trailers", None)  # they belong to the whole body, and a server would wait for them
        return headed

    def _cut(self, message: Message) -> Message | None:
        """What the client gets of *message*; None: nothing."""
        if self._wanted is None:
            return message
        if self._is_over:
            return None
        is_body = message["type"] == "http.response.body"
        chunk: bytes = message.get("body", b"") if is_body else b""
        first, after = (max(0, each - self._at) for each in self._wanted)
        self._at += len(chunk)
        # Once the server has the last message, it tells the application that the client has left. The application may
        # still be at work for the others, so the server gets that message when the application is done.
        self._is_over = not (is_body and message.get("more_body", False))
        piece = chunk[first:after]
        if not piece and not self._is_over:
            return None
        return {"type": "http.response.body", "body": piece, "more_body": not self._is_over}
