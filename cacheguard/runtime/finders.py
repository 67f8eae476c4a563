"""Who the master is: Sentinel says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from .places import Address, Place


@dataclass
class Finder:
    """Asks sentinels who the master is. Stands where a managed connection expects its pool.

    Args:
        places: the sentinels; one that did not answer is asked last the next time.
    """

    places: list[Place]
    service: str
    forced_host: str | None = None
    timeout: float = 0.1
    is_master: bool = field(default=True, init=False)
    check_connection: bool = field(default=False, init=False)

    def within(self, timeout: float) -> Finder:
        """The same; two sentinels can be asked in *timeout*."""
        return replace(self, places=list(self.places), timeout=timeout / 2)

    def twin(self) -> BlockingFinder:
        return BlockingFinder([place.twin() for place in self.places], self.service, self.forced_host, self.timeout)

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

    def _found(self, place: Place, answer: Any) -> Address | None:
        if not isinstance(answer, list):
            return None
        words = cast("Any", answer)
        self.places.remove(place)
        self.places.insert(0, place)
        host, port = map(_text, words)
        return self.forced_host or host, int(port)

    def _lost(self, causes: Sequence[Exception]) -> Exception:
        from redis.sentinel import MasterNotFoundError

        said = ", ".join(f"{type(cause).__name__}: {cause}" for cause in causes)
        return MasterNotFoundError(f"no sentinel names a master for {self.service!r}{said and f' ({said})'}")

    def doubt(self) -> None:
        """Whoever was asked last named a server that is no master: ask the others first."""
        self.places.append(self.places.pop(0))

    @property
    def _words(self) -> tuple[str, ...]:
        return "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service


class BlockingFinder(Finder):
    """For threads."""

    def get_master_address(self) -> Address:
        """Where the master is now."""
        causes: list[Exception] = []
        for _ in range(len(self.places)):
            place, connection = self._next()
            try:
                connection.connect()
                connection.send_command(*self._words, check_health=False)
                found = self._found(place, connection.read_response(disable_decoding=True))
                if found is not None:
                    return found
            except Exception as error:  # noqa: BLE001 - the next one may know
                causes.append(error)
            finally:
                connection.disconnect()
        raise self._lost(causes)


class AsyncFinder(Finder):
    """For event loops; bound to none."""

    async def get_master_address(self) -> Address:
        """Where the master is now."""
        causes: list[Exception] = []
        for _ in range(len(self.places)):
            place, connection = self._next()
            try:
                await connection.connect()
                await connection.send_command(*self._words, check_health=False)
                found = self._found(place, await connection.read_response(disable_decoding=True))
                if found is not None:
                    return found
            except Exception as error:  # noqa: BLE001 - the next one may know
                causes.append(error)
            finally:
                await connection.disconnect(nowait=True)
        raise self._lost(causes)


def _text(word: Any) -> str:
    return word.decode() if isinstance(word, bytes) else str(word)
