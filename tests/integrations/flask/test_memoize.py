"""Functions cached by their arguments."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from flask import Flask, g

from cacheguard.errors import ConfigurationError, KeyTemplateError
from cacheguard_flask import CacheGuardFlask
from tests.integrations.flask.conftest import MakeApp
from tests.support.redis_server import RedisServer


@dataclass(frozen=True)
class User:
    number: int
    name: str


class Shop:
    """Told apart by what it says of itself."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __caching_id__(self) -> str:
        return self.name


@pytest.fixture(autouse=True)
def _context(app: Flask) -> Iterator[None]:
    with app.app_context():
        yield


def test_calls_with_the_same_arguments_share_an_answer_however_they_are_written(extension: CacheGuardFlask) -> None:
    runs: list[Any] = []

    @extension.memoize()
    def work(a: int, b: int = 2, *more: int, c: int = 3, **rest: int) -> tuple[int, ...]:
        runs.append((a, b, more, c, rest))
        return (a, b, *more, c)

    assert work(1) == work(1, 2) == work(a=1, b=2) == work(1, c=3) == (1, 2, 3)
    assert len(runs) == 1
    assert work(1, 2, 3) == (1, 2, 3, 3)
    work(1, x=1, y=2)
    work(1, y=2, x=1)
    assert len(runs) == 3
    with pytest.raises(TypeError):
        work()  # type: ignore[call-arg]  # what is tried here
    assert work.uncached(5) == (5, 2, 3)


def test_arguments_that_only_look_alike_share_nothing(extension: CacheGuardFlask) -> None:
    runs: list[Any] = []

    @extension.memoize()
    def work(value: Any) -> str:
        runs.append(value)
        return repr(value)

    values = [1, "1", 1.0, True, b"1", None, "None", (1,), [1], "a:b", ("a", "b"), User(1, "a"), Shop("1")]
    for _ in range(2):
        for value in values:
            work(value)
    assert len(runs) == len(values)


def test_values_come_back_as_annotated(make_app: MakeApp, redis_url: str) -> None:
    extension = CacheGuardFlask()

    @extension.memoize()
    def user(number: int) -> User | None:
        return User(number, "ann") if number else None

    @extension.memoize()
    def users() -> list[User]:
        return [User(1, "ann")]

    for loads in (3, 0):
        app = make_app(extension, url=redis_url)
        with app.app_context():
            assert user(1) == User(1, "ann")
            assert user(0) is None
            assert users() == [User(1, "ann")]
            assert extension.guard.stats().loads == loads


def test_twenty_threads_make_one_run(app: Flask, extension: CacheGuardFlask) -> None:
    runs: list[int] = []
    entered, go = threading.Event(), threading.Event()

    @extension.memoize()
    def work() -> int:
        runs.append(1)
        entered.set()
        go.wait(20)
        return 1

    def call() -> int:
        with app.app_context():
            return work()

    with ThreadPoolExecutor(20) as threads:
        answers = [threads.submit(call) for _ in range(20)]
        assert entered.wait(20)
        go.set()
        assert [answer.result() for answer in answers] == [1] * 20
    assert len(runs) == 1


def test_a_call_a_function_and_an_object_are_deleted_by_themselves(extension: CacheGuardFlask) -> None:
    runs: list[Any] = []

    class Counter(Shop):
        @extension.memoize()
        def add(self, number: int) -> int:
            runs.append((self.name, number))
            return len(runs)

        @classmethod
        @extension.memoize()
        def of_class(cls, number: int) -> int:
            runs.append((cls, number))
            return len(runs)

        @staticmethod
        @extension.memoize()
        def plain(number: int) -> int:
            runs.append(number)
            return len(runs)

    one, two = Counter("one"), Counter("two")

    def answers() -> list[int]:
        return [one.add(1), one.add(2), two.add(1), Counter.of_class(1), Counter.of_class(2), Counter.plain(1)]

    assert answers() == answers() == [1, 2, 3, 4, 5, 6]
    extension.delete_memoized(one.add, 1)
    assert answers() == [7, 2, 3, 4, 5, 6]
    extension.delete_memoized(Counter.add, one, number=1)
    assert answers() == [8, 2, 3, 4, 5, 6]
    extension.delete_memoized(one.add)
    assert answers() == [9, 10, 3, 4, 5, 6]
    extension.delete_memoized(Counter.add)
    assert answers() == [11, 12, 13, 4, 5, 6]
    extension.delete_memoized(Counter.of_class, 1)
    assert answers() == [11, 12, 13, 14, 5, 6]
    extension.delete_memoized(Counter.of_class, Counter, 2)
    assert answers() == [11, 12, 13, 14, 15, 6]
    extension.delete_memoized(Counter.of_class)
    assert answers() == [11, 12, 13, 16, 17, 6]
    extension.delete_memoized_verhash(Counter.plain)
    assert answers() == [11, 12, 13, 16, 17, 18]
    extension.delete_memoized_verhash(two.add)
    assert answers() == [11, 12, 19, 16, 17, 18]
    Counter.add.delete_memoized()
    assert answers()[:3] == [20, 21, 22]
    with pytest.raises(TypeError, match="memoize"):
        extension.delete_memoized(len)


def test_an_object_that_nothing_tells_apart_is_refused_with_a_way_out(extension: CacheGuardFlask) -> None:
    class Nameless:
        @extension.memoize(args_to_ignore=["self"])
        def same_for_all(self, number: int) -> int:
            return number

    @extension.memoize()
    def work(_value: Any) -> int:
        return 1

    with pytest.raises(KeyTemplateError, match="__caching_id__"):
        work(Nameless())
    assert Nameless().same_for_all(1) == Nameless().same_for_all(1)
    extension.delete_memoized(Nameless().same_for_all)


@pytest.mark.parametrize("l1", [True, False])
def test_the_objects_of_a_method_are_told_apart_while_they_live(
    make_app: MakeApp, redis_server: RedisServer, redis_url: str, l1: bool
) -> None:
    extension = CacheGuardFlask()
    runs: list[int] = []

    class Adder:
        @extension.memoize()
        def add(self, number: int) -> int:
            runs.append(number)
            return len(runs)

    class Slotted:
        __slots__ = ()

        @extension.memoize()
        def add(self, number: int) -> int:
            return number

    with make_app(extension, url=redis_url, l1=l1).app_context():
        one, two = Adder(), Adder()
        assert [one.add(1), two.add(1), one.add(1), two.add(1)] == [1, 2, 1, 2]
        extension.delete_memoized(one.add, 1)
        assert [one.add(1), two.add(1)] == [3, 2]
        extension.delete_memoized(two.add)
        assert [one.add(1), two.add(1)] == [3, 4]
        extension.delete_memoized(Adder.add)
        assert [one.add(1), two.add(1)] == [5, 6]
        # What no other process can ask for is in Redis only where there is nothing else.
        assert bool(redis_server.entries()) is not l1
        for number in range(50):  # their addresses come again
            assert Adder().add(1) == number + 7
        assert len(runs) == 56
        with pytest.raises(KeyTemplateError, match="__caching_id__"):
            Slotted().add(1)


@pytest.mark.parametrize("whole", [True, False])
def test_a_run_that_began_before_a_deletion_fills_nothing(app: Flask, extension: CacheGuardFlask, whole: bool) -> None:
    runs: list[int] = []
    entered, go = threading.Event(), threading.Event()

    @extension.memoize()
    def work(number: int) -> int:
        runs.append(number)
        if len(runs) == 1:
            entered.set()
            assert go.wait(20)
            return 1
        return 2

    def call() -> int:
        with app.app_context():
            return work(0)

    with ThreadPoolExecutor(1) as threads:
        old = threads.submit(call)
        assert entered.wait(20)
        extension.delete_memoized(work, *([] if whole else [0]))
        go.set()
        assert old.result() == 1
    assert work(0) == work(0) == 2


def test_a_deletion_reaches_the_other_processes(make_app: MakeApp, redis_url: str) -> None:
    extension = CacheGuardFlask()
    runs: list[int] = []

    @extension.memoize()
    def work() -> int:
        runs.append(1)
        return len(runs)

    here, there = make_app(extension, url=redis_url, l1=False), make_app(extension, url=redis_url, l1=False)
    with here.app_context():
        assert work() == 1
    with there.app_context():
        assert work() == 1
        work.delete_memoized()
    with here.app_context():
        assert work() == 2


def test_none_is_kept_as_asked_for(extension: CacheGuardFlask) -> None:
    runs: list[str] = []

    def work(name: str) -> None:
        runs.append(name)

    usual = extension.memoize(timeout=100)(work)
    kept = extension.memoize(timeout=100, cache_none=True, make_name=lambda name: f"{name}_kept")(work)
    never = extension.memoize(cache_none=False, make_name=lambda name: f"{name}_never")(work)
    for fn, name, expected in ((usual, "usual", 1), (kept, "kept", 1), (never, "never", 2)):
        fn(name)
        fn(name)
        assert runs.count(name) == expected
    left = [
        extension.guard.inspect(fn.make_cache_key(fn.uncached, name)).ttl_left
        for fn, name in ((usual, "usual"), (kept, "kept"))
    ]
    assert left[0] is not None
    assert left[0] <= 30
    assert left[1] is not None
    assert left[1] > 80
    forever = extension.memoize(timeout=0, cache_none=True, make_name=lambda name: f"{name}_forever")(work)
    forever("forever")
    found = extension.guard.inspect(forever.make_cache_key(forever.uncached, "forever")).ttl_left
    assert found is not None
    assert found > 86_400


def test_what_may_be_asked_for_works_as_with_views(extension: CacheGuardFlask) -> None:
    state: dict[str, Any] = {"unless": False, "force": False, "stale": False}
    runs: list[int] = []

    @extension.memoize(
        unless=lambda fn, number: state["unless"],
        forced_update=lambda number: state["force"],
        is_stale=lambda value, number: state["stale"],
        response_filter=lambda value: value != 1,
        tags=["number:{number}"],
    )
    def work(number: int) -> int:
        runs.append(number)
        return len(runs)

    assert [work(7), work(7), work(7)] == [1, 2, 2]
    for name, expected in (("unless", 3), ("force", 4), ("stale", 5)):
        state[name] = True
        assert work(7) == expected
        state[name] = False
        assert work(7) == (2 if name == "unless" else expected)
    extension.guard.invalidate_tags("number:8")
    assert work(7) == 5
    extension.guard.invalidate_tags("number:7")
    assert work(7) == 6


def test_arguments_may_be_ignored_and_the_source_may_count(extension: CacheGuardFlask) -> None:
    runs: list[Any] = []

    @extension.memoize(args_to_ignore=["log"])
    def work(number: int, log: Any = None) -> int:
        runs.append(number)
        return number

    work(1, print)
    work(1, object())
    assert len(runs) == 1

    def first() -> int:
        return 1

    def second() -> int:
        return 2

    second.__qualname__ = first.__qualname__
    assert extension.memoize(source_check=True)(first)() == 1
    assert extension.memoize(source_check=True)(second)() == 2
    with pytest.raises(ConfigurationError, match="args_to_ignore"):
        extension.memoize(args_to_ignore=["colour"])(first)


def test_coroutine_functions_stay_ones(app: Flask, extension: CacheGuardFlask) -> None:
    runs: list[int] = []

    @extension.memoize(unless=lambda fn, number: number < 0)
    async def work(number: int) -> User:
        await asyncio.sleep(0.01)
        assert "left" not in g
        runs.append(number)
        return User(number, "ann")

    async def many() -> list[User]:
        return list(await asyncio.gather(*(work(1) for _ in range(20))))

    async def once() -> User:
        try:
            return await work(1)
        finally:
            await extension.guard.aclose()

    assert asyncio.run(many()) == [User(1, "ann")] * 20
    assert len(runs) == 1
    assert asyncio.run(work(-1)) == User(-1, "ann")
    assert asyncio.run(once()) == User(1, "ann")
    assert len(runs) == 2


def test_coroutine_functions_work_in_async_views(app: Flask, extension: CacheGuardFlask) -> None:
    runs: list[int] = []

    @extension.memoize()
    async def work(number: int) -> int:
        await asyncio.sleep(0)
        runs.append(number)
        return number

    @app.get("/<int:number>")
    async def view(number: int) -> str:
        return str(await work(number))

    client = app.test_client()
    assert [client.get("/1").text for _ in range(5)] == ["1"] * 5
    assert client.get("/2").text == "2"
    assert runs == [1, 2]


def test_iterators_are_handed_on_and_generators_refused(extension: CacheGuardFlask) -> None:
    @extension.memoize()
    def items() -> Iterator[int]:
        return iter([1, 2])

    assert list(items()) == list(items()) == [1, 2]
    with pytest.raises(ConfigurationError, match="generator"):

        @extension.memoize()
        def generated() -> Iterator[int]:
            yield 1


def test_a_refresh_behind_has_an_app_context_of_its_own(app: Flask, extension: CacheGuardFlask) -> None:
    ended: list[int] = []
    refreshed = threading.Event()

    @app.teardown_appcontext
    def end(_error: BaseException | None) -> None:
        if "resource" in g:
            ended.append(g.resource)
            refreshed.set()

    runs: list[int] = []

    @extension.memoize(stale_while_revalidate="1h")
    def work() -> int:
        runs.append(1)
        if len(runs) == 2:
            g.resource = 2
        return len(runs)

    assert work() == 1
    extension.guard.expire(work.make_cache_key(work.uncached))
    assert work() == 1
    assert refreshed.wait(20)
    assert ended == [2]
    assert "resource" not in g
