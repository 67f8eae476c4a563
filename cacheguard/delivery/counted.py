"""Commands for data that is no entry, such as a Bloom filter: their failures are counted."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import Refused, Unreachable
from ..events import Events
from ..faults import Fault
from ..ports import Call, Commands, Reply


class Counted:
    """`Commands` whose failures are counted in *events*, like those of a `Gate`.

    All keys of one call belong to one server, so no call fails in part.
    """

    def __init__(self, commands: Commands, events: Events) -> None:
        self._commands, self._events = commands, events

    @property
    def away(self) -> bool:
        return self._commands.away

    async def send(self, *calls: Call) -> list[Reply]:
        replies = await self.send_each(*calls)
        for reply in replies:
            if isinstance(reply, Refused):
                self._events.redis_refused(reply)
                raise reply
        return replies

    async def send_each(self, *calls: Call) -> list[Reply]:
        events = self._events
        try:
            replies = await self._commands.send_each(*calls)
        except Unreachable as error:
            if error.fault is not Fault.LEFT_ALONE:  # that is counted where it is decided
                events.redis_failed(error)
            raise
        if not events.l2_up:
            events.redis_answered()
        return replies

    async def masters(self) -> Sequence[Commands]:
        return await self._commands.masters()
