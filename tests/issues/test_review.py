"""Bugs that a review has found, one test each."""

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
import redis

from cacheguard import CacheGuard
from cacheguard.errors import CacheGuardError
from cacheguard.tiers.weighing import weigh
from tests.support.layout import claims_of


class MissingError(LookupError):
    pass


class NoRowError(MissingError):
    def __init__(self, ident: int) -> None:
        super().__init__(f"no row {ident}")
        self.ident = ident


@pytest.fixture
def guard(redis_url: str) -> Iterator[CacheGuard]:
    with CacheGuard(redis_url) as made:
        yield made


def test_the_loaders_own_absence_is_raised_unchanged_and_replayed_as_its_own_class(guard: CacheGuard) -> None:
    said = NoRowError(5)

    @guard.cached("row:{row_id}", not_found=MissingError)
    def row(row_id: int) -> str:
        raise said

    with pytest.raises(NoRowError) as first:
        row(5)
    assert first.value is said
    for _ in range(2):
        with pytest.raises(NoRowError) as again:
            row(5)
        assert again.value is not said
        assert again.value.args == ("no row 5",)


class Unspeakable:
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize("argument", ["a\udc80b", Unspeakable(), "x" * 10_000, 2**80])
def test_a_loaders_exception_that_cannot_be_described_stays_itself_and_leaves_no_lease(
    guard: CacheGuard, redis_url: str, argument: Any
) -> None:
    said = ValueError(argument)

    def load() -> str:
        raise said

    with pytest.raises(ValueError) as caught:  # noqa: PT011 - identity is what counts
        guard.get_or_set("key", load, error_backoff=None)
    assert caught.value is said
    with redis.Redis.from_url(redis_url) as client:
        raw = client.get("cg:cacheguard:e:key")
        assert raw is None or "l" not in claims_of(raw)


def test_a_hit_does_not_skip_a_validation_of_what_is_not_in_the_key(guard: CacheGuard) -> None:
    @guard.cached("doc:{doc_id}", validate=lambda doc_id, org_id: org_id > 0)
    def doc(doc_id: int, org_id: int) -> str:
        return "secret"

    assert [doc(1, 5), doc(1, 5), doc(1, -1), doc(1, 5)] == ["secret", "secret", None, "secret"]
    assert guard.stats().l1_hits == 2


def test_an_invalidation_reaches_redis_whatever_tiers_the_guard_uses_itself(redis_url: str) -> None:
    answers = iter(["old", "new"])
    with CacheGuard(redis_url) as guard:
        local = guard.namespace("local", policy=None)
        child = guard.namespace("l1 only")

        @child.cached("key:{key}", l2=True)
        def load(key: int) -> str:
            return next(answers)

        assert load(1) == "old"
        child.invalidate(load.key(1))
        assert load(1) == "new"
        assert local.get("key:1") is None


def test_a_full_pool_is_no_outage(redis_url: str) -> None:
    with CacheGuard(redis_url) as guard:
        guard.set("key", "value")
        barrier = threading.Barrier(150)

        def read(_: int) -> set[str]:
            barrier.wait()
            return {guard.get_or_set("key", lambda: "loaded", l1=False) for _ in range(20)}

        with ThreadPoolExecutor(150) as threads:
            answers = set().union(*threads.map(read, range(150)))
        assert answers == {"value"}
        assert guard.stats().redis_errors == 0
        assert guard.stats().loads == 0


def test_a_thread_that_cannot_be_started_leaves_no_flight_behind(
    guard: CacheGuard, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = 0

    @guard.cached("key:{key}", rebuild="logical")
    def load(key: int) -> int:
        nonlocal runs
        runs += 1
        return runs

    assert load(1) == 1
    load.expire(1)
    with monkeypatch.context() as broken:

        def fail(_thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        broken.setattr(threading.Thread, "start", fail)
        assert load(1) == 1
    assert load.refresh(1) == 2


def test_without_redis_an_uncached_absence_is_loaded_once_for_all_who_wait() -> None:
    loads = 0

    def load() -> None:
        nonlocal loads
        loads += 1
        time.sleep(0.2)

    with CacheGuard("redis://127.0.0.1:1/0") as guard, ThreadPoolExecutor(20) as threads:
        answers = threads.map(lambda _: guard.get_or_set("key", load, null_ttl=None), range(20))
        assert set(answers) == {None}
        assert loads == 1


@dataclass(slots=True)
class Slotted:
    text: str


class Struct(msgspec.Struct):
    text: str


@pytest.mark.parametrize("kind", [Slotted, Struct])
def test_the_weight_of_an_object_counts_its_slots(kind: Any) -> None:
    assert weigh(kind("x" * 100_000)) > 100_000


def test_one_value_that_is_too_large_empties_no_store() -> None:
    with CacheGuard("memory://", l1_max_bytes=100_000) as guard:
        for number in range(20):
            guard.set(f"small:{number}", "x")
        guard.set("large", "x" * 200_000)
        assert len(guard.get_many([f"small:{number}" for number in range(20)])) == 20
        assert guard.get("large") is None


def test_many_calls_of_a_method_need_its_instance(guard: CacheGuard) -> None:
    class Repository:
        @guard.cached("row:{row_id}")
        def row(self, row_id: int) -> str:
            return f"{type(self).__name__} {row_id}"

    repository = Repository()
    with pytest.raises(TypeError, match="needs its self"):
        repository.row.many([1, 2])
    assert Repository.row.many([(repository, 1), (repository, 2)]) == ["Repository 1", "Repository 2"]


async def test_a_closed_guard_says_so_at_both_doors(redis_url: str) -> None:
    guard = CacheGuard(redis_url)
    assert await guard.aget_or_set("key", lambda: 1) == 1
    guard.close()
    with pytest.raises(CacheGuardError, match="closed"):
        await guard.aget_or_set("other", lambda: 1)
    with pytest.raises(CacheGuardError, match="closed"):
        guard.get_or_set("other", lambda: 1)
    await guard.aclose()


async def test_closing_during_a_load_tells_those_who_wait(redis_url: str) -> None:
    guard = CacheGuard(redis_url)
    loads = 0

    async def load() -> None:
        nonlocal loads
        loads += 1
        await asyncio.sleep(60)

    waiting = [asyncio.ensure_future(guard.aget_or_set("key", load)) for _ in range(3)]
    while not loads:
        await asyncio.sleep(0.01)
    await guard.aclose()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [CacheGuardError] * 3
    assert loads == 1


async def test_a_reader_that_asked_before_a_refresh_leaves_nothing_old_behind(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter(["old", "new"])
    async with CacheGuard(redis_url) as guard:

        @guard.cached("key:{key}")
        async def load(key: int) -> str:
            return next(answers)

        assert await load(1) == "old"
        guard._hub.local.drop_all()  # noqa: SLF001 - the moment in question lies inside
        go_on, remote = asyncio.Event(), guard._hub.running().remote  # noqa: SLF001 - the moment in question lies inside
        read = remote.read

        async def slow(*args: Any, **near: Any) -> Any:
            found = await read(*args, **near)
            await go_on.wait()
            return found

        monkeypatch.setattr(remote, "read", slow)
        reader = asyncio.ensure_future(load(1))
        await asyncio.sleep(0.05)
        monkeypatch.setattr(remote, "read", read)
        assert await load.refresh(1) == "new"
        go_on.set()
        assert await reader == "old"  # it began before
        assert await load(1) == "new"


def test_without_redis_a_batch_asks_it_once() -> None:
    with CacheGuard("redis://127.0.0.1:1/0") as guard:
        assert guard.get_or_set_many(["a", "b"], lambda keys: dict.fromkeys(keys, 1)) == {"a": 1, "b": 1}
        assert guard.stats().redis_errors == 1


async def test_what_a_loader_has_left_running_is_inside_it_no_longer(redis_url: str) -> None:
    async with CacheGuard(redis_url) as guard:
        go_on, left = asyncio.Event(), set[asyncio.Task[str]]()

        @guard.cached("key:{key}")
        async def load(key: int) -> str:
            if not left:
                left.add(asyncio.ensure_future(afterwards()))
            return "value"

        async def afterwards() -> str:
            await go_on.wait()
            return await load(1)

        assert await load(1) == "value"
        await load.invalidate(1)
        go_on.set()
        assert await left.pop() == "value"


async def test_a_busy_event_loop_is_no_outage(redis_url: str) -> None:
    async with CacheGuard(redis_url, operation_timeout="100ms") as guard:
        await guard.aset("key", "value")
        for _ in range(3):
            reading = asyncio.ensure_future(guard.aget_or_set("key", lambda: "loaded", l1=False))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            time.sleep(0.2)
            assert await reading == "value"
        assert guard.stats().redis_errors == 0


def test_without_redis_an_absence_hides_no_row_beyond_its_time(redis_server: Any) -> None:
    rows: dict[int, str] = {}
    with CacheGuard(redis_server.url, namespace="outage") as guard:

        @guard.cached("row:{row_id}", null_ttl="100ms", jitter=None)
        def row(row_id: int) -> str | None:
            return rows.get(row_id)

        assert row(1) is None
        rows[1] = "row"
        redis_server.kill()
        try:
            time.sleep(0.15)
            assert row(1) == "row"
        finally:
            redis_server.start()
