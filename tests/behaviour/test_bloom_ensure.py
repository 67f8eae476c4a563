"""A fleet that starts at once, a filter that is lost, and rows that are added while Redis is away."""

from __future__ import annotations

import asyncio
import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from cacheguard import BloomFilter, CacheGuard
from cacheguard.defenses.penetration import filter as tiers
from cacheguard.defenses.penetration import rebuild
from cacheguard.errors import CacheGuardError, ConfigurationError, Unreachable
from tests.faults.test_bus import until
from tests.support.faults import Fault, FaultProxy
from tests.support.redis_server import RedisServer

AWAY = "redis://127.0.0.1:1/0"
SECRET = b"a secret of 16 b"
signed_or_not = pytest.mark.parametrize("secret", [None, SECRET], ids=["unsigned", "signed"])


def counted(asked: list[int], rows: int = 3000, pause: float = 0.0) -> Callable[[], Iterator[int]]:
    def items() -> Iterator[int]:
        asked.append(1)
        time.sleep(pause)
        yield from range(rows)

    return items


def together(work: Callable[[int], object], number: int) -> None:
    threads = [threading.Thread(target=work, args=(each,)) for each in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# ensure


@signed_or_not
def test_of_many_that_start_at_once_one_builds_and_none_fails(redis_url: str, secret: bytes | None) -> None:
    asked: list[int] = []
    states: list[str] = []
    with ExitStack() as stack:
        guards = [stack.enter_context(CacheGuard(redis_url, secret=secret)) for _ in range(6)]
        filters = [guard.bloom("rows", capacity=5000) for guard in guards]
        together(lambda each: states.append(filters[each].ensure(counted(asked)())), 6)
        assert states == ["complete"] * 6
        assert asked == [1]
        for each in filters:
            assert each.absent("x")
            assert not each.absent(2999)
            assert each.ensure(counted(asked)) == "complete"
        assert asked == [1]


@signed_or_not
def test_a_function_that_asks_the_database_at_once_is_called_by_who_builds_alone(
    redis_url: str, secret: bytes | None
) -> None:
    asked: list[int] = []
    states: list[str] = []

    def all_rows() -> list[int]:
        asked.append(1)
        time.sleep(0.2)  # the others ask several times meanwhile
        return [1, 2, 3]

    with ExitStack() as stack:
        guards = [stack.enter_context(CacheGuard(redis_url, secret=secret)) for _ in range(4)]
        filters = [guard.bloom("rows", capacity=10) for guard in guards]
        together(lambda each: states.append(filters[each].ensure(all_rows)), 4)
        assert states == ["complete"] * 4
        assert asked == [1]


@pytest.mark.parametrize("verb", ["ensure", "rebuild"])
def test_a_function_is_called_when_the_time_to_settle_is_over(redis_url: str, verb: str) -> None:
    committed: list[int] = []
    with CacheGuard(redis_url) as guard:
        ids = guard.bloom("rows", capacity=10)
        threading.Timer(0.1, committed.append, [7]).start()  # it was added before Redis lost all
        getattr(ids, verb)(lambda: list(committed), settle="400ms")
        assert not ids.absent(7)
        assert ids.absent(8)


@pytest.mark.parametrize("url", ["memory://", "redis"])
@pytest.mark.parametrize("verb", ["aensure", "arebuild"])
async def test_a_blocking_call_waits_for_no_task_of_the_loop_that_it_has_stopped(
    redis_url: str, url: str, verb: str
) -> None:
    begun = asyncio.Event()

    async def rows() -> AsyncIterator[int]:
        begun.set()
        await asyncio.sleep(0.01)
        yield 1

    async with CacheGuard(redis_url if url == "redis" else url) as guard:
        ids = guard.bloom("rows", capacity=10)
        building = asyncio.ensure_future(getattr(ids, verb)(rows()))
        await begun.wait()
        assert ids.ensure([1], wait="1h") == "incomplete"
        await building
        assert ids.ensure([1]) == "complete"


@signed_or_not
async def test_of_many_coroutines_one_builds(redis_url: str, secret: bytes | None) -> None:
    asked: list[int] = []

    async def rows() -> AsyncIterator[int]:
        asked.append(1)
        for number in range(3000):
            await asyncio.sleep(0)
            yield number

    guards = [CacheGuard(redis_url, secret=secret) for _ in range(4)]
    try:
        filters = [guard.bloom("rows", capacity=5000) for guard in guards]
        assert await asyncio.gather(*(each.aensure(rows) for each in filters)) == ["complete"] * 4
        assert asked == [1]
        assert [await each.aabsent(7) for each in filters] == [False] * 4
        assert [await each.aabsent("x") for each in filters] == [True] * 4
    finally:
        for guard in guards:
            await guard.aclose()


def test_in_one_process_one_thread_builds() -> None:
    asked: list[int] = []
    states: list[str] = []
    with CacheGuard("memory://") as guard:
        ids = guard.bloom("rows", capacity=5000)
        together(lambda _: states.append(ids.ensure(counted(asked, pause=0.05))), 5)
        assert states == ["complete"] * 5
        assert asked == [1]
        assert ids.absent("x")


async def test_in_one_event_loop_one_task_builds() -> None:
    asked: list[int] = []
    async with CacheGuard("memory://") as guard:
        ids = guard.bloom("rows", capacity=5000)
        assert await asyncio.gather(*(ids.aensure(counted(asked)) for _ in range(5))) == ["complete"] * 5
    assert asked == [1]


def test_without_redis_nobody_fails_and_nothing_is_read() -> None:
    asked: list[int] = []
    with CacheGuard(AWAY) as guard:
        ids = guard.bloom("rows", capacity=10)
        assert ids.ensure(counted(asked)) == "unreachable"
        assert not ids.absent("x")
    assert not asked


def test_redis_that_goes_away_while_one_builds_fails_nobody(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiers, "SILENCE", 0.3)
    with CacheGuard(proxy.url) as guard:
        ids = guard.bloom("rows", capacity=10)

        def rows() -> Iterator[int]:
            yield 1
            proxy.inject(Fault.REFUSE)

        assert ids.ensure(rows) == "unreachable"
        proxy.heal()
        until(lambda: ids.ensure([1, 2]) == "complete")
        assert not ids.absent(2)


def test_who_does_not_wait_is_told_that_another_builds(redis_url: str) -> None:
    with CacheGuard(redis_url) as here, CacheGuard(redis_url) as there:
        ours, theirs = here.bloom("rows", capacity=10), there.bloom("rows", capacity=10)
        states: list[str] = []

        def rows() -> Iterator[int]:
            states.append(theirs.ensure([1], wait=None))
            states.append(theirs.ensure([1], wait="50ms"))
            yield 1

        assert ours.ensure(rows) == "complete"
        assert states == ["incomplete", "incomplete"]
        assert theirs.ensure([1]) == "complete"


@pytest.mark.parametrize("url", ["memory://", "redis"])
def test_an_error_while_the_rows_are_read_is_raised_and_the_next_one_builds(redis_url: str, url: str) -> None:
    with CacheGuard(redis_url if url == "redis" else url) as guard:
        ids = guard.bloom("rows", capacity=10)

        def rows() -> Iterator[int]:
            yield 1
            raise LookupError("no such table")

        with pytest.raises(LookupError, match="no such table"):
            ids.ensure(rows)
        assert not ids.absent("x")
        assert ids.ensure([1], wait=None) == "complete"
        assert ids.absent("x")


@signed_or_not
@pytest.mark.parametrize("once", [True, False])
def test_a_filter_that_is_lost_while_one_builds_is_built_again_if_the_rows_can_be_read_again(
    redis_url: str, redis_server: RedisServer, once: bool, secret: bytes | None
) -> None:
    asked: list[int] = []

    def rows() -> Iterator[int]:
        asked.append(1)
        yield 1
        if len(asked) == 1:
            redis_server.command("FLUSHALL")

    with CacheGuard(redis_url, secret=secret) as guard:
        ids = guard.bloom("rows", capacity=10)
        assert ids.ensure(rows() if once else rows, wait="300ms") == ("incomplete" if once else "complete")
        assert ids.absent("x") is not once


WORKER = """
import sys
from cacheguard import CacheGuard
from cacheguard.defenses.penetration import rebuild
rebuild.BEAT = 0.05
ids = CacheGuard(sys.argv[1]).bloom("rows", capacity=100)
def rows():
    print("reading", flush=True)
    sys.stdin.readline()
    yield 1
ids.{how}(rows)
"""


@pytest.mark.parametrize("how", ["ensure", "rebuild"])
def test_who_dies_half_way_is_succeeded_and_who_is_slow_is_not(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(tiers, "SILENCE", 0.5)
    asked: list[int] = []
    with (
        CacheGuard(redis_url) as guard,
        subprocess.Popen(
            [sys.executable, "-c", WORKER.format(how=how), redis_url], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as worker,
    ):
        assert worker.stdout
        assert worker.stdout.readline() == b"reading\n"
        ids = guard.bloom("rows", capacity=100)
        assert ids.ensure(counted(asked), wait="1200ms") == "incomplete"
        assert not asked
        worker.send_signal(signal.SIGKILL)
        assert ids.ensure(counted(asked), wait="10s") == "complete"
        assert asked == [1]


async def test_signs_of_life_come_from_an_event_loop_too(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiers, "SILENCE", 0.4)
    monkeypatch.setattr(rebuild, "BEAT", 0.05)
    asked: list[int] = []

    async def rows() -> AsyncIterator[int]:
        yield 1
        await asyncio.sleep(1)

    async with CacheGuard(redis_url) as here, CacheGuard(redis_url) as there:
        ours, theirs = here.bloom("rows", capacity=100), there.bloom("rows", capacity=100)
        building = asyncio.ensure_future(ours.aensure(rows))
        await asyncio.sleep(0.1)
        assert await theirs.aensure(counted(asked)) == "complete"
        assert await building == "complete"
    assert not asked


@signed_or_not
def test_a_rebuild_takes_the_place_of_an_ensure(redis_url: str, secret: bytes | None) -> None:
    with CacheGuard(redis_url, secret=secret) as guard:
        ids = guard.bloom("rows", capacity=10)

        def rows() -> Iterator[int]:
            yield 1
            ids.rebuild([1, 2])

        assert ids.ensure(rows()) == "complete"
        assert not ids.absent(2)


@signed_or_not
def test_a_filter_that_cannot_be_verified_is_built_anew(redis_url: str, secret: bytes | None) -> None:
    other = SECRET if secret is None else None
    with CacheGuard(redis_url, secret=other) as before, CacheGuard(redis_url, secret=secret) as after:
        before.bloom("rows", capacity=10).rebuild([1])
        ids = after.bloom("rows", capacity=10)
        assert ids.ensure([1, 2]) == "complete"
        assert ids.absent(3)
        assert not ids.absent(2)


def test_a_filter_with_forged_bits_is_built_anew_once_they_were_found(
    redis_url: str, redis_server: RedisServer
) -> None:
    with CacheGuard(redis_url, secret=SECRET) as here, CacheGuard(redis_url, secret=SECRET) as there:
        here.bloom("rows", capacity=10).rebuild([1])
        (chunk,) = redis_server.command("KEYS", "cg:*:0:0")
        redis_server.command("SETRANGE", chunk, 8, "\0" * 100)
        ids = there.bloom("rows", capacity=10)
        assert not ids.absent(1)
        assert ids.info().state == "lost"
        assert ids.ensure([1]) == "complete"
        assert ids.absent(2)
        assert not ids.absent(1)


# on_lost


@signed_or_not
def test_a_lost_filter_is_told_of_and_may_be_built_at_once(
    redis_url: str, redis_server: RedisServer, secret: bytes | None
) -> None:
    told: list[BloomFilter] = []

    def build(ids: BloomFilter) -> None:
        told.append(ids)
        ids.ensure([1, 2])

    with CacheGuard(redis_url, secret=secret) as guard:
        ids = guard.bloom("rows", capacity=10, mirror_lease=None, on_lost=build)
        guard.bloom("rows", capacity=10, mirror_lease=None, on_lost=build)  # is told once, whoever asks for it
        assert ids.ensure([1]) == "complete"
        for losses in (1, 2):
            redis_server.command("FLUSHALL")
            assert not ids.absent("x")
            until(lambda: ids.absent("x"))
            assert not ids.absent(2)
            assert len(told) == losses
        assert told[0].tier is ids.tier
        assert guard.stats().bloom_losses == 2


async def test_a_coroutine_function_may_be_told(redis_url: str, redis_server: RedisServer) -> None:
    async def build(ids: BloomFilter) -> None:
        await ids.aensure([1, 2])

    async with CacheGuard(redis_url) as guard:
        ids = guard.bloom("rows", capacity=10, mirror_lease=None, on_lost=build)
        await ids.arebuild([1])
        redis_server.command("FLUSHALL")
        assert not await ids.aabsent("x")
        for _ in range(500):
            if await ids.aabsent("x"):
                break
            await asyncio.sleep(0.01)
        assert await ids.aabsent("x")
        assert not await ids.aabsent(2)


def test_an_error_of_who_is_told_is_logged(
    redis_url: str, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: BloomFilter) -> None:
        raise LookupError

    with CacheGuard(redis_url) as guard:
        ids = guard.bloom("rows", capacity=10, mirror_lease=None, on_lost=fail)
        ids.rebuild([1])
        redis_server.command("FLUSHALL")
        with caplog.at_level(logging.ERROR, "cacheguard"):
            assert not ids.absent("x")
            until(lambda: "on_lost of Bloom filter 'rows' failed" in caplog.text)


@pytest.mark.parametrize("options", [{"on_lost": 7}, {"on_unreachable": "ignore"}, {"on_unreachable": None}])
def test_options_that_cannot_work_are_refused(options: Any) -> None:
    with CacheGuard("memory://") as guard, pytest.raises(ConfigurationError, match=next(iter(options))):
        guard.bloom("rows", capacity=10, **options)


# Adding while Redis is away


@signed_or_not
def test_an_item_that_could_not_be_added_is_added_once_redis_answers(
    proxy: FaultProxy, redis_url: str, secret: bytes | None
) -> None:
    with CacheGuard(proxy.url, secret=secret) as here, CacheGuard(redis_url, secret=secret) as there:
        ours = here.bloom("rows", capacity=100, on_unreachable="queue")
        theirs = there.bloom("rows", capacity=100)
        ours.rebuild([1])
        assert ours.absent(2)
        proxy.inject(Fault.REFUSE)
        ours.add(2)
        ours.add_many([3, 4])
        assert not any(ours.absent(row) for row in (1, 2, 3, 4, "x"))
        assert not any(ours.known(row) for row in (1, 2, 3, 4, "x"))
        proxy.heal()
        until(lambda: not any(theirs.absent(row) for row in (2, 3, 4)))  # nobody has used ours
        assert theirs.absent("x")
        until(lambda: ours.absent("x"))
        assert not any(ours.absent(row) for row in (1, 2, 3, 4))


async def test_so_it_is_behind_the_other_door(proxy: FaultProxy, redis_url: str) -> None:
    async with CacheGuard(proxy.url) as here, CacheGuard(redis_url) as there:
        ours, theirs = here.bloom("rows", capacity=100, on_unreachable="queue"), there.bloom("rows", capacity=100)
        await ours.arebuild([1])
        proxy.inject(Fault.REFUSE)
        await ours.aadd(2)
        assert not await ours.aabsent(2)
        proxy.heal()
        for _ in range(500):
            if not await theirs.aabsent(2):
                break
            await asyncio.sleep(0.02)
        assert not await theirs.aabsent(2)


def test_what_waits_is_added_before_the_filter_denies_anything(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiers.BloomTier, "_deliver_later", _nobody)
    monkeypatch.setattr(tiers, "QUEUE_REST", 0.0)
    with CacheGuard(proxy.url) as here, CacheGuard(f"redis://127.0.0.1:{proxy.upstream}") as there:
        ours, theirs = here.bloom("rows", capacity=100, on_unreachable="queue"), there.bloom("rows", capacity=100)
        ours.rebuild([1])
        proxy.inject(Fault.REFUSE)
        ours.add(2)
        proxy.heal()
        until(lambda: ours.absent("x"))
        assert not theirs.absent(2)
        for use in (lambda: ours.add(4), lambda: ours.rebuild([1]), ours.mark_complete, lambda: ours.ensure([1])):
            proxy.inject(Fault.REFUSE)
            ours.add(3)
            proxy.heal()
            until(lambda use=use: _works(use))  # type: ignore[misc]  # bound at once
            assert not theirs.absent(3)
            theirs.rebuild([1])


async def _nobody(*_: object) -> None:
    """Only who uses the filter delivers."""


def _works(use: Callable[[], object]) -> bool:
    try:
        return use() != "unreachable"
    except Unreachable:
        return False


def test_more_than_can_wait_is_refused_and_by_default_everything_is(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiers, "MOST_QUEUED", 3)
    with CacheGuard(proxy.url) as guard:
        queueing, raising = guard.bloom("a", capacity=10, on_unreachable="queue"), guard.bloom("b", capacity=10)
        queueing.rebuild([0])
        proxy.inject(Fault.REFUSE)
        queueing.add_many([1, 2])
        with pytest.raises(Unreachable):
            queueing.add_many([3, 4])
        queueing.add(3)
        with pytest.raises(Unreachable):
            raising.add(1)
        proxy.heal()
        until(lambda: queueing.absent("x"))
        assert not any(queueing.absent(row) for row in (1, 2, 3))


def test_items_that_wait_when_the_guard_is_closed_are_named_in_the_log(
    proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "cacheguard"):
        with CacheGuard(proxy.url) as guard:
            ids = guard.bloom("rows", capacity=10, on_unreachable="queue")
            proxy.inject(Fault.REFUSE)
            ids.add_many([1, 2])
        until(lambda: "2 items were not added to Bloom filter 'rows'" in caplog.text)
    assert "wait in this process" in caplog.text


def test_without_redis_nothing_has_to_wait() -> None:
    with CacheGuard("memory://") as guard:
        ids = guard.bloom("rows", capacity=10, on_unreachable="queue")
        ids.rebuild([1])
        ids.add(2)
        assert ids.absent(3)
        assert not ids.absent(2)


def test_a_closed_guard_adds_nothing() -> None:
    guard = CacheGuard(AWAY)
    ids = guard.bloom("rows", capacity=10, on_unreachable="queue")
    guard.close()
    with pytest.raises(CacheGuardError, match="closed"):
        ids.add(1)
