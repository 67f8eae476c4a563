"""Redis from one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

import redis.exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from ..defenses.outage import Outcome
from ..errors import Unreachable
from ..faults import Fault
from ..ports import AnotherServer, Call, Commands, Reply
from . import redispy, resp
from .circuits import Circuit
from .connecting import connector, hint_of
from .endpoints import Endpoint
from .identity import Identity, facts_of, is_wrong

Packet = list[tuple[bytes, int, asyncio.Future[list[Reply]]]]

LATE = 0.1  # of a timeout; a timer later than this says more about this loop than about the server


class AsyncCommands:
    """One connection, on which everything that waits in the same turn travels together.

    A caller hands its bytes over and waits for a future; a task of our own writes them and reads the replies. So a
    cancelled caller leaves nothing half read behind: its reply arrives, finds nobody, and the next one is in order.

    Args:
        connect: makes one connection, unconnected.
        timeout: seconds for a packet to be answered.
        identity: is told whom each connection has reached.
        circuit: says whether the server is to be left alone, and is told how each packet went.
    """

    def __init__(self, connect: Callable[[], Any], timeout: float, identity: Identity, circuit: Circuit) -> None:
        self._connect, self._timeout = connect, timeout
        self._identity, self._circuit, self._name = identity, circuit, circuit.name
        self._generation = -1  # of the connection
        self._connection: Any = None
        self._used = False
        self._began = 0.0  # when the last packet was sent
        self._queue: Packet = []
        self._queued_in = 0  # the oldest generation in which something of the queue was decided
        self._pump: asyncio.Task[None] | None = None
        self.beside: list[Any] = []  # what else belongs to this event loop, and ends with it
        self._closed = False
        self._packer = resp.EntryPacker()

    @property
    def away(self) -> bool:
        return self._circuit.away

    async def send(self, *calls: Call) -> list[Reply]:
        return resp.first_error(await self.send_each(*calls))

    async def send_each(self, *calls: Call) -> list[Reply]:
        since = self._identity.generation
        replies = await self._exchange(resp.pack(calls), len(calls), since)
        known = resp.unknown_from(calls, replies)
        if known < len(calls):
            again = calls[known:]
            replies[known:] = await self._exchange(resp.pack(again, sources=True), len(again), since)
        return replies

    async def read_entry(self, key: str, markers: tuple[str, ...]) -> list[Reply]:
        return await self._exchange(self._packer.packed(key, markers), 2, self._identity.generation)

    async def masters(self) -> list[Commands]:
        return [self]

    def _exchange(self, payload: bytes, count: int, since: int) -> asyncio.Future[list[Reply]]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[Reply]] = loop.create_future()
        if self._closed:
            answer.set_exception(Unreachable("the guard is closed"))
            return answer
        if self._circuit.away:
            self._circuit.ask_now()
        self._queued_in = min(since, self._queued_in) if self._queue else since
        self._queue.append((payload, count, answer))
        if self._pump is None or self._pump.done():  # an eager task may be over before it is assigned
            self._pump = loop.create_task(self._run())
        return answer

    async def _run(self) -> None:
        """Send what is queued, packet after packet, until nothing is left."""
        packet: Packet = []
        try:
            while self._queue:
                packet, self._queue = self._queue, []
                try:
                    await self._one_packet(packet, self._queued_in)
                except AnotherServer as change:
                    _fail_all(packet, change)
        except Unreachable as error:
            self._fail(packet, error)
        except BaseException as error:
            self._fail(packet, resp.unreachable(error))
            await self._disconnect()
            raise
        finally:
            self._pump = None

    async def _one_packet(self, packet: Packet, since: int) -> None:
        circuit = self._circuit
        turn = await circuit.asked()
        try:
            replies = await self._asked(packet, since)
        except Unreachable as error:
            circuit.failed(turn, error.fault)
            raise
        except BaseException:
            circuit.leave(turn, Outcome.NONE)
            raise
        self._used = True
        for (_, _, answer), reply in zip(packet, replies, strict=True):
            if not answer.done():
                answer.set_result(reply)
        faults = {fault for each in replies for fault in resp.faults_of(each)}
        worst = resp.worst_of(faults)
        if worst is None:
            ended = time.monotonic()
            circuit.leave(turn, Outcome.OK, ended - self._began, ended)
        else:
            circuit.failed(turn, worst)
        if Fault.READONLY in faults:  # a master that is none any more; a new connection may find the one that is
            await self._disconnect()

    async def _asked(self, packet: Packet, since: int) -> list[list[Reply]]:
        try:
            async with _Deadline(self._timeout):
                try:
                    return await self._ask(packet, since)
                except redis.exceptions.TimeoutError:
                    raise
                except (redis.exceptions.ConnectionError, OSError):
                    if not self._used:
                        raise
                    await self._disconnect()  # an idle link that the server has dropped: once more, on a new one
                    return await self._ask(packet, since)
        except (redis.exceptions.RedisError, OSError, ValueError, TimeoutError) as error:
            hint = "" if self._used else hint_of(self._connection, error)
            await self._disconnect()
            raise resp.unreachable(error, hint) from error
        except Unreachable:
            await self._disconnect()
            raise

    async def _ask(self, packet: Packet, since: int) -> list[list[Reply]]:
        if self._connection is not None and self._generation != self._identity.generation:
            await self._disconnect()
        connection = self._connection
        if connection is None:
            self._used = False
            connection = self._connection = self._connect()
            await self._open(connection)
            await self._greet(connection)
        if self._identity.generation != since:
            raise AnotherServer
        self._began = time.monotonic()
        return await redispy.aask(connection, [payload for payload, _, _ in packet], [count for _, count, _ in packet])

    async def _open(self, connection: Any) -> None:
        """Connect, unless that was refused a moment ago for something that will not change soon."""
        self._circuit.admit()
        try:
            await connection.connect()
        except Exception as error:
            self._circuit.connected(resp.unreachable(error))
            raise
        self._circuit.connected(None)

    async def _greet(self, connection: Any) -> None:
        """Find out whom a new connection has reached."""
        (replies,) = await redispy.aask(connection, [Identity.QUESTION], [Identity.ANSWERS])
        facts = facts_of(*replies)
        if is_wrong(connection, facts):
            redispy.finder_of(connection).doubt()
            raise redis.exceptions.ConnectionError("the server that Sentinel named is no master")
        self._generation = self._identity.tell(self._name, facts)

    def _fail(self, packet: Packet, error: Unreachable) -> None:
        # What queued up meanwhile would meet the same server: nobody loses more than one timeout.
        queued, self._queue = self._queue, []
        _fail_all(packet + queued, error)

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        self._used = False
        if connection is not None:
            with contextlib.suppress(Exception):
                await redispy.hang_up(connection)

    async def aclose(self) -> None:
        """End the task and the connection."""
        self._closed = True
        pump = self._pump
        if pump is not None:
            pump.cancel()
            await asyncio.wait([pump])
        # A task that was cancelled before its first step has told nobody.
        self._fail([], Unreachable("the guard is closed"))
        await self._disconnect()
        for each in self.beside:
            await each.aclose()

    def abandon(self) -> None:
        """Let go of a connection whose event loop is gone."""
        connection, self._connection = self._connection, None
        if connection is not None:
            redispy.let_go(connection)
        for each in self.beside:
            each.abandon()


def _fail_all(packet: Packet, error: Exception) -> None:
    """Raise *error* for everybody who still waits."""
    for _, _, answer in packet:
        if not answer.done():
            answer.set_exception(error)


class _Deadline:
    """`asyncio.timeout`, except that a timer which comes late itself gives the server its time once more.

    In a loop that is busy the timer and the reply are found in the same turn, and the timer would win.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._passed = self._extended = False

    async def __aenter__(self) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        self._start()

    def _start(self) -> None:
        self._due = self._loop.time() + self._seconds
        self._timer = self._loop.call_at(self._due, self._ring)

    def _ring(self) -> None:
        if not self._extended and self._loop.time() - self._due > self._seconds * LATE:
            self._extended = True
            self._start()
        elif self._task is not None:
            self._passed = True
            self._task.cancel()

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._timer.cancel()
        if self._passed and self._task is not None and self._task.uncancel() <= 0 and kind is asyncio.CancelledError:
            raise TimeoutError(f"no reply within {self._seconds:g} s")


def redis_connector(endpoint: Endpoint, timeout: float) -> Callable[[], Any]:
    """Makes connections to the server of *endpoint*; `ConfigurationError` if its settings make none."""
    # One timer for a packet is ours; the client's own, one for each reply, would cost more than the reply does.
    return connector(endpoint, Retry(NoBackoff(), 0), timeout=timeout, reply_timeout=None)
