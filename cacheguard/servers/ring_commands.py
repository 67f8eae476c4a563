"""`Commands` over several nodes, for what is no entry."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import Refused
from ..ports import Call, Commands, Reply, ScriptCall
from .members import Members


class RingCommands:
    """`Commands` for what is no entry: each call goes to the node of its key."""

    def __init__(self, nodes: Mapping[str, Commands], members: Members) -> None:
        self._nodes, self._members = nodes, members

    async def send(self, *calls: Call) -> list[Reply]:
        replies = await self.send_each(*calls)
        for reply in replies:
            if isinstance(reply, Refused):
                raise reply
        return replies

    async def send_each(self, *calls: Call) -> list[Reply]:
        parts: dict[str, list[int]] = {}
        for index, call in enumerate(calls):
            key = call.keys[0] if isinstance(call, ScriptCall) else call[1]
            text = key.decode("utf-8", "surrogateescape") if isinstance(key, bytes) else str(key)
            parts.setdefault(self._members.home_of(text), []).append(index)
        replies: list[Reply] = [None] * len(calls)
        for name, indices in parts.items():
            answers = await self._nodes[name].send_each(*(calls[index] for index in indices))
            for index, reply in zip(indices, answers, strict=True):
                replies[index] = reply
        return replies

    @property
    def away(self) -> bool:
        return all(node.away for node in self._nodes.values())

    async def masters(self) -> list[Commands]:
        return [each for name in self._members.names for each in await self._nodes[name].masters()]
