"""Who the master is: Sentinel says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, Self, cast

from ..ports import Reply
from ..runtime import run_now
from . import redispy
from .endpoints import Address, Endpoint


class Newest:
    """The latest that sentinels have said of one master: theirs is a number that rises with every failover."""

    def __init__(self) -> None:
        self._epoch = -1

    def takes(self, epoch: int) -> bool:
        """Whether what was said under *epoch* is no older than what is known."""
        if epoch < self._epoch:
            return False
        self._epoch = epoch
        return True

    def begin_again(self) -> None:
        """All sentinels say something older: they have been set up anew."""
        self._epoch = -1


class _Talk(Protocol):
    """A talk with one sentinel, from threads or from an event loop."""

    def __init__(self, connection: Any) -> None: ...

    async def ask(self, *questions: tuple[str, ...]) -> list[Reply]:
        """What it answers; an error that it answers is a value."""
        ...

    async def end(self) -> None: ...


class _Blocking:
    """From threads."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def ask(self, *questions: tuple[str, ...]) -> list[Reply]:
        self._connection.connect()
        return [redispy.say(self._connection, *words) for words in questions]

    async def end(self) -> None:
        self._connection.disconnect()


class _Running:
    """From an event loop."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def ask(self, *questions: tuple[str, ...]) -> list[Reply]:
        await self._connection.connect()
        return [await redispy.asay(self._connection, *words) for words in questions]

    async def end(self) -> None:
        await redispy.hang_up(self._connection)


@dataclass
class Finder:
    """Asks sentinels who the master is. Stands where a managed connection expects its pool.

    A sentinel may hear of a failover seconds after the others, and meanwhile names a server that, back from the dead,
    believes it still is the master. So what one says counts only if it is no older than what another has said before.

    Args:
        endpoints: the sentinels; one that did not answer is asked last the next time.
    """

    endpoints: list[Endpoint]
    service: str
    forced_host: str | None = None
    timeout: float = 0.1
    newest: Newest = field(default_factory=Newest)
    is_master: bool = field(default=True, init=False)
    check_connection: bool = field(default=False, init=False)
    _talk: ClassVar[type[_Talk]]

    def within(self, timeout: float) -> Self:
        """The same; two sentinels can be asked in *timeout*."""
        return replace(self, endpoints=list(self.endpoints), timeout=timeout / 2)

    def twin(self) -> BlockingFinder:
        endpoints = [endpoint.twin() for endpoint in self.endpoints]
        return BlockingFinder(endpoints, self.service, self.forced_host, self.timeout, self.newest)

    async def _master(self) -> Address:
        """Where the master is; the sentinels are asked one after the other, until one is not behind the times."""
        causes: list[Exception] = []
        older: list[Address] = []
        for _ in range(len(self.endpoints)):
            endpoint, talk = self._next()
            try:
                found = self._found(endpoint, await self._told(talk), older)
                if found is not None:
                    return found
            except Exception as error:  # noqa: BLE001 - the next one may know
                causes.append(error)
            finally:
                await talk.end()
        if older:
            self.newest.begin_again()
            return older[0]
        raise self._lost(causes)

    def _next(self) -> tuple[Endpoint, _Talk]:
        """The sentinel whose turn it is; the next time it comes last, unless it answers."""
        endpoint = self.endpoints.pop(0)
        self.endpoints.append(endpoint)
        settings = {
            name: value
            for name, value in endpoint.connection_kwargs.items()
            if name not in ("retry", "retry_on_error", "retry_on_timeout")
        }
        settings |= {
            "socket_timeout": self.timeout,
            "socket_connect_timeout": self.timeout,
            "health_check_interval": 0,
        }
        return endpoint, self._talk(endpoint.connection_class(**settings))

    def _ask_first(self, endpoint: Endpoint) -> None:
        self.endpoints.remove(endpoint)
        self.endpoints.insert(0, endpoint)

    async def _told(self, talk: _Talk) -> tuple[Address, int] | None:
        """What a sentinel says of the master: its address, and the number of the failover that it knows of."""
        address = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service)
        return self._said(*await talk.ask(address, ("SENTINEL", "MASTER", self.service)))

    def _said(self, answer: Any, details: Any) -> tuple[Address, int] | None:
        """The address that a sentinel has named, and the number of the failover that it knows of; -1 if untold."""
        if not isinstance(answer, list):
            return None
        host, port = map(_text, cast("Any", answer))
        words = [_text(word) for word in cast("Any", details)] if isinstance(details, list) else []
        epoch = dict(zip(words[::2], words[1::2], strict=False)).get("config-epoch", "")
        return (self.forced_host or host, int(port)), int(epoch) if epoch.isdecimal() else -1

    def _found(self, endpoint: Endpoint, said: tuple[Address, int] | None, older: list[Address]) -> Address | None:
        """The address of *said*; if that is behind the times, it is noted as *older*."""
        if said is None:
            return None
        address, epoch = said
        if epoch >= 0 and not self.newest.takes(epoch):
            older.append(address)
            return None
        self._ask_first(endpoint)
        return address

    def _lost(self, causes: Sequence[Exception]) -> Exception:
        said = ", ".join(f"{type(cause).__name__}: {cause}" for cause in causes)
        from redis.sentinel import MasterNotFoundError

        return MasterNotFoundError(f"no sentinel names a master for {self.service!r}{said and f' ({said})'}")

    def doubt(self) -> None:
        """Whoever was asked last named a server that is no master: ask the others first."""
        self.endpoints.append(self.endpoints.pop(0))


class BlockingFinder(Finder):
    """For threads."""

    _talk = _Blocking

    def get_master_address(self) -> Address:
        """Where the master is now."""
        return run_now(self._master())

    def latest(self) -> Address | None:
        """Where the master is by the word of whoever heard of it last: all are asked."""
        return run_now(self._latest())

    def replicas(self) -> list[Address]:
        """Where the replicas are that follow the master, as the first sentinel says that answers; none if none does."""
        return run_now(self._replicas())

    async def _latest(self) -> Address | None:
        heard: list[tuple[int, Address]] = []
        for _ in range(len(self.endpoints)):
            _, talk = self._next()
            try:
                said = await self._told(talk)
                if said is not None:
                    heard.append((said[1], said[0]))
            except Exception:  # noqa: BLE001, S112 - the next one may know
                continue
            finally:
                await talk.end()
        epoch, address = max(heard, default=(-1, None))
        return address if address is not None and (epoch < 0 or self.newest.takes(epoch)) else None

    async def _replicas(self) -> list[Address]:
        for _ in range(len(self.endpoints)):
            endpoint, talk = self._next()
            try:
                (answer,) = await talk.ask(("SENTINEL", "REPLICAS", self.service))
            except Exception:  # noqa: BLE001, S112 - the next one may know
                continue
            finally:
                await talk.end()
            if isinstance(answer, list):
                self._ask_first(endpoint)
                return [found for each in cast("Any", answer) if (found := _follower(each)) is not None]
        return []


class AsyncFinder(Finder):
    """For event loops; bound to none."""

    _talk = _Running

    async def get_master_address(self) -> Address:
        """Where the master is now."""
        return await self._master()


def _follower(details: Any) -> Address | None:
    """Where a replica is; None if it does not follow."""
    words = [_text(word) for word in details]
    said = dict(zip(words[::2], words[1::2], strict=False))
    flags = set(said.get("flags", "").split(","))
    if flags & {"s_down", "o_down", "disconnected"} or said.get("master-link-status") != "ok":
        return None
    return said["ip"], int(said["port"])


def _text(word: Any) -> str:
    return word.decode() if isinstance(word, bytes) else str(word)
