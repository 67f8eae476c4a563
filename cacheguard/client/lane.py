"""One way to a server from one event loop: it connects, sends, and connects anew where that helps.

Two ways lead through it. A connection that `wire.standing` knows is handed to a `Stream`, and whoever asks is served by
that alone from then on. On any other, a task writes all that waits in one packet, and redis-py reads the replies. In
both cases the caller holds a future, so a cancelled one leaves nothing half read behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

import redis.exceptions

from ..defenses.outage import Outcome
from ..errors import Unreachable
from ..faults import Fault
from ..ports import AnotherServer
from . import redispy, resp
from .circuits import Circuit
from .connecting import hint_of
from .identity import Identity, facts_of, is_wrong
from .stream import LATE, Answer, Ask, Large, Stream
from .wire import LEAN, standing

_LOST = (redis.exceptions.ConnectionError, OSError)
_TIMED_OUT = (redis.exceptions.TimeoutError, TimeoutError)


class Lane:
    """One connection, and those who wait for it.

    Args:
        connect: makes one connection, unconnected.
        timeout: seconds for whatever is sent to be answered.
        identity: is told whom each connection has reached.
        circuit: says whether the server is to be left alone, and is told how each packet went.
        large: is told of large values.
        demoted: called when the server is no master any more.
    """

    def __init__(
        self,
        connect: Callable[[], Any],
        timeout: float,
        identity: Identity,
        circuit: Circuit,
        large: Large,
        demoted: Callable[[], None],
    ) -> None:
        self.stream: Stream | None = None  # while it stands, and is read by ourselves
        self.demoted: Callable[[], None] = demoted
        self._connect, self._timeout, self._large = connect, timeout, large
        self._identity, self._circuit, self._name = identity, circuit, circuit.name
        self._generation = -1  # of the connection
        self._connection: Any = None
        self._spent = False  # no packet may be sent over the connection any more, but by its stream
        self._used = False
        self._began = 0.0  # when the last packet was sent
        self._queue: list[Ask] = []
        self._queued_in = 0  # the oldest generation in which something of the queue was decided
        self._again: list[Ask] = []  # what a lost connection has not answered
        self._again_in = 0
        self._again_since = 0.0  # monotonic: when the oldest of it was sent
        self._pump: asyncio.Task[None] | None = None
        self._closed = False

    def ask(self, payload: bytes, count: int, since: int, key: str | None = None) -> Answer:
        """Send something that was decided in generation *since*; the future of its replies."""
        stream = self.stream
        if stream is not None and self._circuit.closed and stream.generation == since == self._identity.generation:
            return stream.ask(payload, count, key)
        answer: Answer = asyncio.get_running_loop().create_future()
        if self._closed:
            answer.set_exception(Unreachable("the guard is closed"))
            return answer
        if self._circuit.away:
            self._circuit.ask_now()
        self.put_off([(payload, count, [answer], key, False)], since)
        return answer

    def put_off(self, asks: list[Ask], since: int) -> None:
        """Send *asks*, decided in generation *since*, when the server may be asked, over a connection to it."""
        self._queued_in = min(since, self._queued_in) if self._queue else since
        self._queue += asks
        self._start()

    def _start(self) -> None:
        if self._pump is None or self._pump.done():  # an eager task may be over before it is assigned
            self._pump = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        """Send what is queued, packet after packet, until nothing is left."""
        packet: list[Ask] = []
        try:
            while self._again or self._queue:
                if self._again:
                    packet, self._again = self._again, []
                    since, sent = self._again_in, self._again_since
                else:
                    packet, self._queue = self._queue, []
                    since, sent = self._queued_in, None
                try:
                    await self._one_packet(packet, since, sent)
                except AnotherServer as change:
                    _fail_all(packet, change)
        except Unreachable as error:
            self._fail(packet, error)
        except BaseException as error:
            self._fail(packet, Unreachable("the guard is closed") if self._closed else resp.unreachable(error))
            await self._disconnect()
            raise
        finally:
            self._pump = None

    async def _one_packet(self, packet: list[Ask], since: int, sent: float | None) -> None:
        circuit = self._circuit
        turn = await circuit.asked()
        try:
            replies = await self._asked(packet, since, turn, sent)
        except Unreachable as error:
            circuit.failed(turn, error.fault)
            raise
        except BaseException:
            circuit.leave(turn, Outcome.NONE)
            raise
        if replies is None:
            return  # the stream sees to the rest
        self._used = True
        for (_, _, answers, _, _), reply in zip(packet, replies, strict=True):
            for answer in answers:
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
            self.demoted()

    async def _asked(self, packet: list[Ask], since: int, turn: int, sent: float | None) -> list[list[Any]] | None:
        """The replies; None if a stream has taken over. *sent*: since when (monotonic) the time is running."""
        begun = time.monotonic() if sent is None else sent
        try:
            async with _Deadline(self._timeout, 0.0 if sent is None else time.monotonic() - sent):
                try:
                    return await self._ask(packet, since, turn, begun)
                except redis.exceptions.TimeoutError:
                    raise
                except _LOST:
                    if not self._used:
                        raise
                    await self._disconnect()  # an idle link that the server has dropped: once more, on a new one
                    return await self._ask(packet, since, turn, begun)
        except (redis.exceptions.RedisError, OSError, ValueError, TimeoutError) as error:
            hint = "" if self._used else hint_of(self._connection, error)
            await self._disconnect()
            raise resp.unreachable(error, hint) from error
        except Unreachable:
            await self._disconnect()
            raise

    async def _ask(self, packet: list[Ask], since: int, turn: int, begun: float) -> list[list[Any]] | None:
        over = self._spent and self.stream is None
        if self._connection is not None and (over or self._generation != self._identity.generation):
            await self._disconnect()
        connection = self._connection
        if connection is None:
            self._used = False
            connection = self._connection = self._connect()
            await self._open(connection)
            await self._greet(connection)
            self._take_over(connection)
        if self._closed:  # connecting, the client may have swallowed that this task was cancelled
            raise Unreachable("the guard is closed")
        if self._identity.generation != since:
            raise AnotherServer
        if self.stream is not None:
            self.stream.send(packet, turn, begun)
            return None
        self._began = time.monotonic()
        return await redispy.aask(connection, [ask[0] for ask in packet], [ask[1] for ask in packet])

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

    def _take_over(self, connection: Any) -> None:
        """Read the new connection ourselves, if it is of a make that we know."""
        found = standing(connection)
        if isinstance(found, str):
            self._circuit.wired("tasks", found)
            return
        self._spent = True  # redis-py cannot read it any more
        self.stream = Stream(
            self,
            found,
            self._generation,
            timeout=self._timeout,
            identity=self._identity,
            circuit=self._circuit,
            large=self._large,
        )
        self._circuit.wired("tasks", LEAN)

    # What a stream says

    def lost(self, stream: Stream, error: Exception) -> None:
        """The connection of *stream* is of no use any more: an idle link that was dropped is no reason to give up."""
        if self.stream is stream:
            self.stream = None
        asks, pieces = stream.end()
        if not asks:
            return
        again = stream.used and isinstance(error, _LOST) and not isinstance(error, _TIMED_OUT)
        these = [ask for ask in asks if again and not ask[4]]
        self._repeat(stream, these, pieces[0][2] if pieces else time.monotonic())
        given_up = [ask for ask in asks if not (again and not ask[4])]
        for at, (_, turn, _, _) in enumerate(pieces):
            if at or not given_up:
                self._circuit.leave(turn, Outcome.NONE)
        if not given_up:
            return
        unreachable = resp.unreachable(error, "" if stream.used else hint_of(self._connection, error))
        if pieces:
            self._circuit.failed(pieces[0][1], unreachable.fault)
        _fail_all(given_up, unreachable)

    def _repeat(self, stream: Stream, asks: list[Ask], sent: float) -> None:
        """Send *asks* over a new connection, within the time that they have left since they were *sent*."""
        if not asks:
            return
        if self._closed:
            _fail_all(asks, Unreachable("the guard is closed"))
            return
        self._again_in = min(stream.generation, self._again_in) if self._again else stream.generation
        self._again_since = min(sent, self._again_since) if self._again else sent
        self._again += [(payload, count, answers, key, True) for payload, count, answers, key, _ in asks]
        self._start()

    # The end

    def leave(self) -> None:
        """Use this connection no more: what is under way is asked again over a new one."""
        stream, self.stream = self.stream, None
        self._spent = self._connection is not None
        if stream is None:
            return
        asks, pieces = stream.end()
        for _, turn, _, _ in pieces:
            self._circuit.leave(turn, Outcome.NONE)
        self._repeat(stream, asks, pieces[0][2] if pieces else time.monotonic())

    def _fail(self, packet: list[Ask], error: Unreachable) -> None:
        # What queued up meanwhile would meet the same server: nobody loses more than one timeout.
        queued, self._queue, self._again = self._again + self._queue, [], []
        _fail_all(packet + queued, error)

    async def _disconnect(self) -> None:
        self.leave()
        connection, self._connection = self._connection, None
        self._used = self._spent = False
        if connection is not None:
            with contextlib.suppress(Exception):
                await redispy.hang_up(connection)

    async def aclose(self) -> None:
        """End the task and the connection."""
        self._closed = True
        stream, self.stream = self.stream, None
        left, _ = ([], []) if stream is None else stream.end()
        pump = self._pump
        if pump is not None:
            pump.cancel()
            await asyncio.wait([pump])
        # A task that was cancelled before its first step has told nobody.
        self._fail(left, Unreachable("the guard is closed"))
        await self._disconnect()

    def abandon(self) -> None:
        """Let go of a connection whose event loop is gone."""
        self.stream = None
        connection, self._connection = self._connection, None
        if connection is not None:
            redispy.let_go(connection)


def _fail_all(asks: list[Ask], error: Exception) -> None:
    """Raise *error* for everybody who still waits."""
    for _, _, answers, _, _ in asks:
        for answer in answers:
            if not answer.done():
                answer.set_exception(error)


class _Deadline:
    """`asyncio.timeout`, except that a timer which comes late itself gives the server its time once more.

    In a loop that is busy the timer and the reply are found in the same turn, and the timer would win.

    Args:
        seconds: the time that there is.
        spent: how much of it is over.
    """

    def __init__(self, seconds: float, spent: float) -> None:
        self._seconds, self._left = seconds, max(0.0, seconds - spent)
        self._passed = self._extended = False

    async def __aenter__(self) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        self._start()

    def _start(self) -> None:
        self._due = self._loop.time() + self._left
        self._timer = self._loop.call_at(self._due, self._ring)

    def _ring(self) -> None:
        if not self._extended and self._loop.time() - self._due > self._seconds * LATE:
            self._extended, self._left = True, self._seconds
            self._start()
        elif self._task is not None:
            self._passed = True
            self._task.cancel()

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._timer.cancel()
        if self._passed and self._task is not None and self._task.uncancel() <= 0 and kind is asyncio.CancelledError:
            raise TimeoutError(f"no reply within {self._seconds:g} s")
