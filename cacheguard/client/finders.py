"""Who the master is: Sentinel says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self, cast

from .places import Address, Place


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


@dataclass
class Finder:
    """Asks sentinels who the master is. Stands where a managed connection expects its pool.

    A sentinel may hear of a failover seconds after the others, and meanwhile names a server that, back from the dead,
    believes it still is the master. So what one says counts only if it is no older than what another has said before.

    Args:
        places: the sentinels; one that did not answer is asked last the next time.
    """

    places: list[Place]
    service: str
    forced_host: str | None = None
    timeout: float = 0.1
    newest: Newest = field(default_factory=Newest)
    is_master: bool = field(default=True, init=False)
    check_connection: bool = field(default=False, init=False)

    def within(self, timeout: float) -> Self:
        """The same; two sentinels can be asked in *timeout*."""
        return replace(self, places=list(self.places), timeout=timeout / 2)

    def twin(self) -> BlockingFinder:
        places = [place.twin() for place in self.places]
        return BlockingFinder(places, self.service, self.forced_host, self.timeout, self.newest)

    def _next(self) -> tuple[Place, Any]:
        place = self.places.pop(0)
        self.places.append(place)
        settings = {
            name: value
            for name, value in place.connection_kwargs.items()
            if name not in ("retry", "retry_on_error", "retry_on_timeout")
        }
        settings |= {
            "socket_timeout": self.timeout,
            "socket_connect_timeout": self.timeout,
            "health_check_interval": 0,
        }
        return place, place.connection_class(**settings)

    def _said(self, answer: Any, details: Any) -> tuple[Address, int] | None:
        """The address that a sentinel has named, and the number of the failover that it knows of; -1 if untold."""
        if not isinstance(answer, list):
            return None
        host, port = map(_text, cast("Any", answer))
        words = [_text(word) for word in cast("Any", details)] if isinstance(details, list) else []
        epoch = dict(zip(words[::2], words[1::2], strict=False)).get("config-epoch", "")
        return (self.forced_host or host, int(port)), int(epoch) if epoch.isdecimal() else -1

    def _found(self, place: Place, said: tuple[Address, int] | None, older: list[Address]) -> Address | None:
        """The address of *said*; if that is behind the times, it is noted as *older*."""
        if said is None:
            return None
        address, epoch = said
        if epoch >= 0 and not self.newest.takes(epoch):
            older.append(address)
            return None
        self.places.remove(place)
        self.places.insert(0, place)
        return address

    def _lost(self, causes: Sequence[Exception]) -> Exception:
        said = ", ".join(f"{type(cause).__name__}: {cause}" for cause in causes)
        from redis.sentinel import MasterNotFoundError

        return MasterNotFoundError(f"no sentinel names a master for {self.service!r}{said and f' ({said})'}")

    def doubt(self) -> None:
        """Whoever was asked last named a server that is no master: ask the others first."""
        self.places.append(self.places.pop(0))

    @property
    def _questions(self) -> tuple[tuple[str, ...], ...]:
        return ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service), ("SENTINEL", "MASTER", self.service)


class BlockingFinder(Finder):
    """For threads."""

    def get_master_address(self) -> Address:
        """Where the master is now."""
        causes: list[Exception] = []
        older: list[Address] = []
        for _ in range(len(self.places)):
            place, connection = self._next()
            try:
                found = self._found(place, self._consult(connection), older)
                if found is not None:
                    return found
            except Exception as error:  # noqa: BLE001 - the next one may know
                causes.append(error)
            finally:
                connection.disconnect()
        if older:
            self.newest.begin_again()
            return older[0]
        raise self._lost(causes)

    def latest(self) -> Address | None:
        """Where the master is by the word of whoever heard of it last: all are asked."""
        heard: list[tuple[int, Address]] = []
        for _ in range(len(self.places)):
            _, connection = self._next()
            try:
                said = self._consult(connection)
                if said is not None:
                    heard.append((said[1], said[0]))
            except Exception:  # noqa: BLE001, S112 - the next one may know
                continue
            finally:
                connection.disconnect()
        epoch, address = max(heard, default=(-1, None))
        return address if address is not None and (epoch < 0 or self.newest.takes(epoch)) else None

    def replicas(self) -> list[Address]:
        """Where the replicas are that follow the master, as the first sentinel says that answers; none if none does."""
        for _ in range(len(self.places)):
            place, connection = self._next()
            try:
                connection.connect()
                answer = self._ask(connection, ("SENTINEL", "REPLICAS", self.service))
            except Exception:  # noqa: BLE001, S112 - the next one may know
                continue
            finally:
                connection.disconnect()
            if isinstance(answer, list):
                self.places.remove(place)
                self.places.insert(0, place)
                return [found for each in cast("Any", answer) if (found := _follower(each)) is not None]
        return []

    def _consult(self, connection: Any) -> tuple[Address, int] | None:
        connection.connect()
        answer, details = [self._ask(connection, words) for words in self._questions]
        return self._said(answer, details)

    def _ask(self, connection: Any, words: tuple[str, ...]) -> Any:
        connection.send_command(*words, check_health=False)
        try:
            return connection.read_response(disable_decoding=True)
        except _refusal() as error:
            return error


class AsyncFinder(Finder):
    """For event loops; bound to none."""

    async def get_master_address(self) -> Address:
        """Where the master is now."""
        causes: list[Exception] = []
        older: list[Address] = []
        for _ in range(len(self.places)):
            place, connection = self._next()
            try:
                found = self._found(place, await self._consult(connection), older)
                if found is not None:
                    return found
            except Exception as error:  # noqa: BLE001 - the next one may know
                causes.append(error)
            finally:
                await connection.disconnect(nowait=True)
        if older:
            self.newest.begin_again()
            return older[0]
        raise self._lost(causes)

    async def _consult(self, connection: Any) -> tuple[Address, int] | None:
        await connection.connect()
        answer, details = [await self._ask(connection, words) for words in self._questions]
        return self._said(answer, details)

    async def _ask(self, connection: Any, words: tuple[str, ...]) -> Any:
        await connection.send_command(*words, check_health=False)
        try:
            return await connection.read_response(disable_decoding=True)
        except _refusal() as error:
            return error


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


def _refusal() -> type[Exception]:
    """What the client raises where a server answers with an error."""
    from redis.exceptions import ResponseError

    return ResponseError
