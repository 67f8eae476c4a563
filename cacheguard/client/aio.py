"""Redis from one event loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from ..ports import Call, Commands, Reply
from . import resp
from .circuits import Circuit
from .connecting import connector
from .endpoints import Endpoint
from .identity import Identity
from .lane import Lane
from .stream import Answer, Large

MOST_WORDS = 16  # of a question that one reply of one small value answers: a key, and the markers around it


class AsyncCommands:
    """Two connections, each of which carries what several tasks ask, one behind the other.

    Readings of one entry have one of them for themselves. Scripts, questions about many keys, and readings of entries
    that were large when they were last read go over the other, so that none of these holds up a small reading.

    Args:
        connect: makes one connection, unconnected.
        timeout: seconds for whatever is sent to be answered.
        identity: is told whom each connection has reached.
        circuit: says whether the server is to be left alone, and is told how things went.
    """

    def __init__(self, connect: Callable[[], Any], timeout: float, identity: Identity, circuit: Circuit) -> None:
        self._identity, self._circuit = identity, circuit
        self._large = Large()
        self._reads, self._rest = (
            Lane(connect, timeout, identity, circuit, self._large, self._demoted) for _ in range(2)
        )
        self.beside: list[Any] = []  # what else belongs to this event loop, and ends with it
        self._packer = resp.EntryPacker()

    @property
    def away(self) -> bool:
        return self._circuit.away

    async def send(self, *calls: Call) -> list[Reply]:
        return resp.first_error(await self.send_each(*calls))

    async def send_each(self, *calls: Call) -> list[Reply]:
        since = self._identity.generation
        key = _entry_of(calls)
        lane = self._rest if key is None or key in self._large.keys else self._reads
        replies = await lane.ask(resp.pack(calls), len(calls), since, key)
        known = resp.unknown_from(calls, replies)
        if known < len(calls):
            again = calls[known:]
            replies[known:] = await self._rest.ask(resp.pack(again, sources=True), len(again), since)
        return replies

    def read_entry(self, key: str, markers: tuple[str, ...]) -> Answer:
        lane, circuit, since = self._reads, self._circuit, self._identity.generation
        payload = self._packer.packed(key, markers)
        if key in self._large.keys:
            lane = self._rest
        stream = lane.stream
        if stream is not None and circuit.closed and stream.generation == since:
            return stream.ask(payload, 2, key)  # what `Lane.ask` would do, on the way of every hit
        return lane.ask(payload, 2, since, key)

    async def masters(self) -> list[Commands]:
        return [self]

    def _demoted(self) -> None:
        """The server is a master no more; new connections may find the one that is."""
        self._reads.leave()
        self._rest.leave()

    async def aclose(self) -> None:
        """End the tasks and the connections."""
        await self._reads.aclose()
        await self._rest.aclose()
        for each in self.beside:
            await each.aclose()

    def abandon(self) -> None:
        """Let go of connections whose event loop is gone."""
        self._reads.abandon()
        self._rest.abandon()
        for each in self.beside:
            each.abandon()


def _entry_of(calls: Sequence[Call]) -> str | None:
    """The key of the one entry that *calls* read, with the markers around it; None if they are something else."""
    if len(calls) != 2 or calls[1] != ("TIME",):  # noqa: PLR2004 - what `calls.read` makes of one key
        return None
    words = calls[0]
    if type(words) is not tuple or words[0] != "MGET" or len(words) > MOST_WORDS or type(words[1]) is not str:
        return None
    return words[1]


def redis_connector(endpoint: Endpoint, timeout: float) -> Callable[[], Any]:
    """Makes connections to the server of *endpoint*; `ConfigurationError` if its settings make none."""
    # One timer for all that is sent is ours; the client's own, one for each reply, would cost more than the reply does.
    return connector(endpoint, Retry(NoBackoff(), 0), timeout=timeout, reply_timeout=None)
