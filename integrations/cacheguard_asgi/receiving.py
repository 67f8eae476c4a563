"""What a run of the application receives from its client."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable

from .answer import Message, Receive


class Receiver:
    """The `receive` of a run: it hears the client leave, and can say everything once more to a second run.

    Args:
        receive: the server's.
        share_nothing: called before the application gets what only this client has said: that it has left, or a body,
            which is no part of any key.
        again: True if a second run may follow.
    """

    def __init__(self, receive: Receive, share_nothing: Callable[[], Awaitable[None]], *, again: bool) -> None:
        self._receive, self._share_nothing, self._again = receive, share_nothing, again
        self._heard: list[Message] = []
        self._to_say: deque[Message] = deque()

    async def __call__(self) -> Message:
        if self._to_say:
            return self._to_say.popleft()
        message = await self._receive()
        kind = message["type"]
        if kind == "http.request" and self._again:
            self._heard.append(message)
        if kind == "http.disconnect" or message.get("body"):
            await self._share_nothing()
        return message

    def rewind(self) -> None:
        """Begin anew, for a second run: it gets what the first one has received, and then what is still to come."""
        self._to_say.extend(self._heard)
        self._again = False
        self._heard.clear()
