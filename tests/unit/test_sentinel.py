"""Which sentinel is believed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest
import redis.exceptions

from cacheguard.client.endpoints import Endpoint
from cacheguard.client.finders import AsyncFinder, BlockingFinder

Says = tuple[int, int | None]  # the port of the master, and the number of its failover

OLD, NEW = 1, 2


class Sentinel:
    """What a connection to one sentinel is asked and answers."""

    def __init__(self, says: Callable[[], Says | None], **_: Any) -> None:
        self._says = says
        self._words: tuple[str, ...] = ()

    def connect(self) -> None:
        if self._says() is None:
            raise redis.exceptions.ConnectionError

    def send_command(self, *words: str, **_: Any) -> None:
        self._words = words

    def read_response(self, **_: Any) -> Any:
        says = self._says()
        assert says is not None
        port, epoch = says
        if self._words[1] == "MASTER":
            if epoch is None:
                raise redis.exceptions.NoPermissionError
            return [b"name", b"main", b"config-epoch", str(epoch).encode()]
        return [b"here", str(port).encode()]

    def disconnect(self, **_: Any) -> None:
        pass


class RunningSentinel:
    """The same for event loops."""

    def __init__(self, **settings: Any) -> None:
        self._sentinel = Sentinel(**settings)

    def __getattr__(self, name: str) -> Any:
        async def ask(*words: Any, **options: Any) -> Any:
            return getattr(self._sentinel, name)(*words, **options)

        return ask


@pytest.fixture(params=["blocking", "async"])
def ask(request: pytest.FixtureRequest) -> Callable[[dict[str, Says | None]], Callable[[], int]]:
    """Makes a finder for sentinels that say what stands in the mapping; call it for the port that it finds."""

    def made(said: dict[str, Says | None]) -> Callable[[], int]:
        kind: Any = Sentinel if request.param == "blocking" else RunningSentinel
        places = [Endpoint(kind, {"says": lambda name=name: said[name]}) for name in said]
        if request.param == "blocking":
            finder = BlockingFinder(places, "main")
            return lambda: finder.get_master_address()[1]
        running = AsyncFinder(places, "main")
        return lambda: anyio.run(running.get_master_address)[1]

    return made


Ask = Callable[[dict[str, Says | None]], Callable[[], int]]


def test_a_sentinel_that_has_not_heard_of_a_failover_is_not_believed(ask: Ask) -> None:
    said: dict[str, Says | None] = {"one": (OLD, 7), "two": (OLD, 7)}
    find = ask(said)
    assert find() == OLD
    said |= {"one": (NEW, 8)}
    assert find() == NEW
    said |= {"one": None}  # only who is behind the times is left, and the old master is back from the dead
    assert find() == OLD
    said |= {"one": (NEW, 8), "two": (OLD, 7)}
    assert find() == NEW


def test_who_is_behind_the_times_is_passed_over_for_who_is_not(ask: Ask) -> None:
    said: dict[str, Says | None] = {"one": (NEW, 8), "two": (OLD, 7), "three": (NEW, 8)}
    find = ask(said)
    assert find() == NEW
    said |= {"one": None}
    assert find() == NEW
    said |= {"three": (NEW, 9)}
    assert find() == NEW


def test_sentinels_that_were_set_up_anew_are_believed(ask: Ask) -> None:
    said: dict[str, Says | None] = {"one": (OLD, 7), "two": (OLD, 7)}
    find = ask(said)
    assert find() == OLD
    said |= {"one": (NEW, 0), "two": (NEW, 0)}
    assert [find(), find()] == [NEW, NEW]


def test_a_sentinel_that_does_not_tell_the_number_is_believed(ask: Ask) -> None:
    said: dict[str, Says | None] = {"one": (OLD, None)}
    find = ask(said)
    assert find() == OLD
    said |= {"one": (NEW, None)}
    assert find() == NEW


def test_nobody_answers(ask: Ask) -> None:
    with pytest.raises(redis.exceptions.ConnectionError, match="no sentinel names a master"):
        ask({"one": None})()
