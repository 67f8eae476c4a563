"""Redis from threads."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Any, NoReturn

import redis.exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry

from ..defenses.outage import Outcome
from ..errors import Unreachable
from ..faults import Fault
from ..ports import AnotherServer, Call, Commands, Reply
from . import redispy, resp
from .circuits import Circuit
from .connecting import connector, hint_of
from .endpoints import Endpoint
from .finders import BlockingFinder
from .identity import Identity, facts_of, is_wrong
from .names import resolve_within
from .wire import way_of


class BlockingCommands:
    """A pool of connections, each used by one thread at a time.

    The Redis client is used for what it is good at (URLs, TLS, authentication, parsing); its command layer, which
    costs more than the server does, is not on the way.

    Args:
        connect: makes one connection, unconnected.
        most: connections at once; a thread that finds none free waits for one, at most `timeout` seconds.
        timeout: seconds for connecting and for each reply.
        identity: is told whom each connection has reached.
        circuit: says whether the server is to be left alone, and is told how each call went.
        finder: knows whether it still is the master.
    """

    def __init__(
        self,
        connect: Callable[[], Any],
        most: int,
        timeout: float,
        identity: Identity,
        circuit: Circuit,
        finder: BlockingFinder | None = None,
    ) -> None:
        self._connect, self._most, self._timeout = connect, most, timeout
        self._finder = finder
        self._reached: Any = None
        self._identity, self._circuit, self._name = identity, circuit, circuit.name
        self._reset()

    @property
    def away(self) -> bool:
        return self._circuit.away

    def _reset(self) -> None:
        self._idle: deque[tuple[Any, int]] = deque()  # connections, and the generation of each
        self._free = threading.Condition(threading.RLock())  # a signal handler may come in between
        self._made = 0
        self._waiting = 0
        self._closed = False
        self._packer = resp.EntryPacker()

    async def send(self, *calls: Call) -> list[Reply]:
        return resp.first_error(await self.send_each(*calls))

    async def send_each(self, *calls: Call) -> list[Reply]:
        since = self._identity.generation
        replies = self._exchange(resp.pack(calls), len(calls), since)
        known = resp.unknown_from(calls, replies)
        if known < len(calls):
            again = calls[known:]
            replies[known:] = self._exchange(resp.pack(again, sources=True), len(again), since)
        return replies

    async def read_entry(self, key: str, markers: tuple[str, ...]) -> list[Reply]:
        return self._exchange(self._packer.packed(key, markers), 2, self._identity.generation)

    def _exchange(self, payload: bytes, count: int, since: int) -> list[Reply]:
        circuit = self._circuit
        turn = circuit.ask()
        try:
            replies, faults, took, ended = self._asked(payload, count, since)
        except Unreachable as error:
            circuit.failed(turn, error.fault)
            raise
        except BaseException:
            circuit.leave(turn, Outcome.NONE)
            raise
        if faults and (worst := resp.worst_of(faults)) is not None:
            circuit.failed(turn, worst)
        else:
            circuit.leave(turn, Outcome.OK, took, ended)
        return replies

    def _asked(self, payload: bytes, count: int, since: int) -> tuple[list[Reply], AbstractSet[Fault], float, float]:
        """What the server has answered, its faults, the seconds that it took for it, and when that was."""
        connection, generation = self._take()
        used = generation == self._identity.generation
        try:
            try:
                if not used:
                    generation = self._greet(connection)
                self._check(since)
                began = time.monotonic()
                replies = redispy.ask(connection, payload, count)
            except redis.exceptions.TimeoutError:
                raise
            except (redis.exceptions.ConnectionError, OSError):
                if not used:
                    raise
                # The server was restarted or dropped an idle link: its fellows are as dead as this one.
                self._drop_idle()
                generation = self._greet(connection)
                self._check(since)
                began = time.monotonic()
                replies = redispy.ask(connection, payload, count)
        except AnotherServer:
            self._give_back(connection, generation)
            raise
        except Exception as error:  # the client's own, a credential provider's, a resolver's: all mean no answer
            connection.disconnect()
            self._discard()
            if isinstance(error, Unreachable):
                raise
            raise resp.unreachable(error, "" if used else hint_of(connection, error)) from error
        except BaseException:
            connection.disconnect()
            self._discard()
            raise
        ended = time.monotonic()
        faults = resp.faults_of(replies)
        if Fault.READONLY in faults:  # a master no more; a new connection may find the one that is
            self._drop_idle()
            connection.disconnect()
            self._discard()
        else:
            self._give_back(connection, generation)
        return replies, faults, ended - began, ended

    def _greet(self, connection: Any) -> int:
        """Connect anew, and find out whom that has reached; the generation of the connection."""
        connection.disconnect()
        self._open(connection)
        facts = facts_of(*redispy.ask(connection, Identity.QUESTION, Identity.ANSWERS))
        if is_wrong(connection, facts):
            redispy.finder_of(connection).doubt()
            raise redis.exceptions.ConnectionError("the server that Sentinel named is no master")
        self._reached = redispy.address_of(connection)
        self._circuit.wired("threads", way_of(connection))
        return self._identity.tell(self._name, facts)

    def _open(self, connection: Any) -> None:
        """Connect, unless that was refused a moment ago for something that will not change soon."""
        self._circuit.admit()
        try:
            resolve_within(connection, self._timeout)
            connection.connect()
            redispy.expect_anything(connection)
        except Exception as error:
            self._circuit.connected(resp.unreachable(error))
            raise
        self._circuit.connected(None)

    def _check(self, since: int) -> None:
        if self._identity.generation != since:
            raise AnotherServer

    def _give_back(self, connection: Any, generation: int) -> None:
        if self._closed:
            connection.disconnect()
            self._discard()
            return
        self._idle.append((connection, generation))
        if self._waiting:
            with self._free:
                self._free.notify()

    def _take(self) -> tuple[Any, int]:
        """A connection, and its generation, -1 for a new one; waits in line while all are in use.

        Whoever holds one gives it back within its timeout, so the line moves, and a full pool is no outage.
        """
        if not self._waiting:
            try:
                return self._idle.pop()
            except IndexError:
                pass
        with self._free:
            self._waiting += 1  # before the look: who gives one back after it will see that somebody waits
            try:
                while True:
                    try:
                        return self._idle.pop()
                    except IndexError:
                        pass
                    if self._made < self._most:
                        self._made += 1
                        break
                    if not self._free.wait(self._timeout):
                        self._full()
                    if self._circuit.away:
                        self._circuit.ask_now()
            except Unreachable:
                self._free.notify()  # what woke this one is for the next
                raise
            finally:
                self._waiting -= 1
        try:
            return self._connect(), -1
        except BaseException:
            self._discard()
            raise

    def _full(self) -> NoReturn:
        raise Unreachable(f"no connection of {self._most} came free within {self._timeout:g} s", Fault.POOL)

    def _discard(self) -> None:
        with self._free:
            self._made -= 1
            self._free.notify()

    def _drop_idle(self) -> None:
        while self._idle:
            try:
                connection, _ = self._idle.pop()
            except IndexError:
                return
            connection.disconnect()
            self._discard()

    async def masters(self) -> list[Commands]:
        return [self]

    def every_master(self) -> list[tuple[str, Commands]]:
        """The servers that take writes: this one.

        Who asks, once a second, finds out on the way whether Sentinel has another master meanwhile: the old one may
        have come back in the belief that it still is, and would answer for seconds.
        """
        if self._finder is not None and self._reached is not None:
            latest = self._finder.latest()
            if latest not in {None, self._reached}:
                self._drop_idle()  # a new connection meets the other one, and tells all the rest
        return [("", self)]

    def subscriber(self) -> Any:
        """A new connection to the same server, for a subscription."""
        connection = self._connect()
        try:
            self._open(connection)
        except BaseException:
            connection.disconnect()
            raise
        return connection

    def server(self, _name: str) -> Commands:
        """The server of that name: there is but one."""
        return self

    def close(self) -> None:
        """Close every connection; one that is in use, when it is given back."""
        self._closed = True
        self._drop_idle()

    def after_fork(self) -> None:
        """Forget the parent's connections without touching their sockets."""
        self._identity.after_fork()
        self._reset()


def redis_commands(
    endpoint: Endpoint, most: int, timeout: float, identity: Identity, circuit: Circuit
) -> BlockingCommands:
    """Commands that reach the server of *endpoint*; `ConfigurationError` if its settings make no connection."""
    connect = redispy.limited(connector(endpoint, Retry(NoBackoff(), 0), timeout=timeout, reply_timeout=timeout))
    finder = endpoint.finder
    mine = finder.within(timeout) if isinstance(finder, BlockingFinder) else None
    return BlockingCommands(connect, most, timeout, identity, circuit, mine)
