"""Bloom filters in a real Redis, shared by processes that are played by tiers with clients of their own."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from cacheguard.defenses.penetration import adding, rebuild
from cacheguard.defenses.penetration import shared as filter_module
from cacheguard.defenses.penetration.filter import BloomTier
from cacheguard.defenses.penetration.info import BloomInfo
from cacheguard.defenses.penetration.items import Items
from cacheguard.defenses.penetration.layout import checked_plan, describe, probe
from cacheguard.errors import CacheGuardError, ConfigurationError, Unreachable
from cacheguard.events import Events
from cacheguard.ports import Call, Reply, ScriptCall
from cacheguard.runtime import run_now
from tests.support.redis_server import RedisServer

T = TypeVar("T")

LEASE = 0.5  # long enough for a slow machine; nobody waits for it, clocks are moved


class Clock:
    """Monotonic seconds that can be moved forward; the servers' clocks, which are real, never overtake them."""

    def __init__(self) -> None:
        self._ahead = 0.0

    @property
    def now(self) -> float:
        return time.monotonic() + self._ahead

    def advance(self, seconds: float) -> None:
        self._ahead += seconds


class Wire:
    """Commands over a redis-py client; counts what it sends, and can be cut."""

    def __init__(self, url: str) -> None:
        self.client = redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), socket_timeout=5)
        self.sends = 0
        self.cut = False
        self.before: Callable[[tuple[Call, ...]], None] = lambda calls: None

    async def send(self, *calls: Call) -> list[Reply]:
        self.before(calls)
        self.sends += 1
        if self.cut:
            raise Unreachable("the wire is cut")
        pipeline = self.client.pipeline(transaction=False)
        for call in calls:
            if isinstance(call, ScriptCall):
                pipeline.execute_command("EVAL", call.script.source, len(call.keys), *call.keys, *call.args)  # type: ignore[no-untyped-call]  # redis-py left it so
            else:
                pipeline.execute_command(*call)  # type: ignore[no-untyped-call]  # redis-py left it so
        try:
            return list(pipeline.execute())
        except redis.RedisError as error:
            raise Unreachable(str(error)) from error


class Still:
    """A watch that never beats: these tests give signs of life themselves."""

    def stop(self) -> None:
        """There is nothing to stop."""


class StubRuntime:
    """A blocking runtime with a clock that can be moved."""

    def __init__(self, wire: Wire | None, clock: Clock | None) -> None:
        self.wire, self.clock = wire, clock
        self.slept: list[float] = []
        self._tokens = 0

    @property
    def commands(self) -> Wire:
        assert self.wire is not None
        return self.wire

    def now(self) -> float:
        return time.monotonic() if self.clock is None else self.clock.now

    def token(self) -> str:
        self._tokens += 1
        return f"{id(self)}-{self._tokens}-{time.monotonic_ns()}"

    def here(self) -> None:
        """It is at home nowhere: nobody waits for it in an event loop."""

    def random(self) -> float:
        return 0.5

    def watch(self, beat: Any, every: float, late: Any, deadline: float | None) -> Any:
        assert deadline is None
        return Still()

    async def start(self, work: Coroutine[Any, Any, None], *, detached: bool) -> bool:
        assert detached
        await work
        return True

    async def call(self, load: Callable[[], Any]) -> Any:
        return load()

    async def sleep(self, seconds: float) -> None:
        if seconds > 0:
            self.slept.append(seconds)
        if self.clock is None:
            time.sleep(seconds)
        else:
            self.clock.advance(max(0.0, seconds))


class Process:
    """What one process has of a filter: a tier, a connection, a clock (shared with the others on the machine)."""

    def __init__(self, url: str | None, clock: Clock | None = None, **options: Any) -> None:
        self.wire = Wire(url) if url else None
        self.runtime: Any = StubRuntime(self.wire, clock)
        self.events = Events()
        declared: dict[str, Any] = {
            "capacity": 1000,
            "error_rate": 0.001,
            "mirror_lease": LEASE,
            "lock": threading.Lock(),
            "events": self.events,
        }
        self.tier = BloomTier("users", **{**declared, **options})

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return run_now(coroutine)

    def add(self, *items: object) -> None:
        self.run(self.tier.add_many(self.runtime, items))

    def rebuild(self, items: Items) -> None:
        self.run(self.tier.rebuild(self.runtime, items))

    def mark_complete(self) -> None:
        self.run(self.tier.mark_complete(self.runtime))

    def absent(self, item: object) -> bool:
        return self.run(self.tier.absent(self.runtime, item))

    def known(self, item: object) -> bool | None:
        return self.tier.known(item, self.runtime.now())

    def info(self) -> BloomInfo:
        return self.run(self.tier.info(self.runtime))

    def close(self) -> None:
        if self.wire is not None:
            self.wire.client.close()


Fleet = Callable[..., Process]


@pytest.fixture
def clock() -> Clock:
    return Clock()


SECRET = b"a secret of 16 b"
either = pytest.mark.parametrize("fleet", ["unsigned", "signed"], indirect=True)


@pytest.fixture
def fleet(redis_url: str, clock: Clock, request: pytest.FixtureRequest) -> Iterator[Fleet]:
    processes: list[Process] = []
    signed = getattr(request, "param", "") == "signed"

    def start(**options: Any) -> Process:
        options.setdefault("secrets", (SECRET,) if signed else ())
        processes.append(Process(options.pop("url", redis_url), options.pop("clock", clock), **options))
        return processes[-1]

    yield start
    for process in processes:
        process.close()


def command_name(call: Call) -> str:
    return call.script.name if isinstance(call, ScriptCall) else str(call[0])


def keys(server: RedisServer) -> list[str]:
    return sorted(server.command("KEYS", "cg:*"))


def meta_key(server: RedisServer) -> str:
    return next(key for key in keys(server) if key.endswith(":m"))


def chunk_keys(server: RedisServer) -> list[str]:
    return [key for key in keys(server) if key.count(":") == 5]


def hset(server: RedisServer, field: str, value: str) -> None:
    server.command("HSET", meta_key(server), field, value)


# Answers


@either
def test_what_was_added_is_never_absent_and_what_was_not_is(fleet: Fleet) -> None:
    here, there = fleet(), fleet()
    here.add(*range(500), UUID(int=7), b"bytes", "x" * 1000)
    here.mark_complete()
    for process in (here, there):
        assert not any(process.absent(item) for item in (*range(500), *map(str, range(500))))
        assert not any(process.absent(item) for item in (UUID(int=7), str(UUID(int=7)), "bytes", "x" * 1000))
        assert process.absent("nobody")
        assert process.absent(501)


@either
def test_a_filter_that_does_not_exist_says_maybe(fleet: Fleet) -> None:
    process = fleet()
    assert process.known("x") is None
    assert not process.absent("x")
    assert process.known("x") is False
    assert process.info() == BloomInfo("users", "incomplete", "", 0, 0, 0.001, 0, 0, 0)


@either
def test_an_incomplete_filter_says_maybe_and_is_asked_again_after_a_while(fleet: Fleet, clock: Clock) -> None:
    here, there = fleet(), fleet()
    here.add(1, 2, 3)
    assert not there.absent("x")
    sends = there.wire and there.wire.sends
    assert not there.absent("x")
    assert there.wire
    assert there.wire.sends == sends
    here.mark_complete()
    assert here.absent("x")
    clock.advance(filter_module.RECHECK)
    assert there.absent("x")


@either
def test_absence_is_answered_without_a_round_trip_while_the_lease_lasts(fleet: Fleet, clock: Clock) -> None:
    process = fleet()
    process.rebuild(["a"])
    assert process.absent("x")
    assert process.known("x") is True
    assert process.known("a") is False
    clock.advance(LEASE)
    assert process.known("x") is None
    assert process.known("a") is False


@either
def test_add_returns_only_when_no_process_may_say_absent_any_more(fleet: Fleet) -> None:
    reader, writer = fleet(), fleet()
    writer.rebuild(["a"])
    assert reader.absent("x")
    writer.add("x")
    assert sum(writer.runtime.slept) > LEASE * 0.5
    assert reader.known("x") is None
    assert not reader.absent("x")
    assert not writer.absent("x")


def test_add_waits_for_a_lease_longer_than_its_own(fleet: Fleet) -> None:
    reader, writer = fleet(mirror_lease=5.0), fleet(mirror_lease=None)
    writer.rebuild(["a"])
    assert reader.absent("x")
    writer.add("x")
    assert sum(writer.runtime.slept) > 2.5
    assert not reader.absent("x")


@either
def test_add_does_not_wait_when_nobody_trusts_a_mirror(fleet: Fleet) -> None:
    reader, writer = fleet(mirror_lease=None), fleet(mirror_lease=None)
    writer.rebuild(["a"])
    assert reader.absent("x")
    assert reader.known("x") is None
    writer.add("x")
    assert writer.runtime.slept == []
    assert not reader.absent("x")
    assert reader.absent("y")


@either
def test_a_server_clock_that_went_back_does_not_make_add_wait_longer_than_a_lease(
    fleet: Fleet, redis_server: RedisServer
) -> None:
    process = fleet()
    process.rebuild(["a"])
    process.absent("x")
    hset(redis_server, "lease", str(int(time.time() * 1000) + 3_600_000))
    process.runtime.slept.clear()
    process.add("x")
    assert LEASE <= sum(process.runtime.slept) < LEASE + 0.1


@either
def test_a_mirror_that_is_far_behind_loads_the_filter_anew(fleet: Fleet, clock: Clock) -> None:
    reader, writer = fleet(capacity=10_000), fleet(capacity=10_000)
    writer.rebuild(["a"])
    assert reader.absent("x")
    writer.add(*range(filter_module.SYNC_MOST + 1))
    assert not any(reader.absent(number) for number in range(filter_module.SYNC_MOST + 1))
    assert reader.absent("x")


@either
def test_only_one_caller_loads_the_filter_and_the_others_get_maybe(fleet: Fleet) -> None:
    fleet().rebuild(["a"])
    process = fleet()
    assert process.wire
    answers: list[bool] = []

    def ask_meanwhile(calls: tuple[Call, ...]) -> None:
        if command_name(calls[0]) == "GET" and not answers:
            answers.append(True)
            answers[0] = process.absent("x")

    process.wire.before = ask_meanwhile
    assert process.absent("x")
    assert answers == [False]


@either
def test_filters_of_other_names_and_namespaces_have_nothing_in_common(fleet: Fleet) -> None:
    one, other = fleet(namespace="a"), fleet(namespace="b")
    one.rebuild(["x"])
    other.rebuild(["y"])
    assert one.absent("y")
    assert other.absent("x")


@either
def test_items_may_come_from_anything_iterable(fleet: Fleet) -> None:
    async def rows() -> AsyncIterator[int]:
        for number in range(2500):
            yield number

    process = fleet(capacity=5000)
    process.rebuild(rows())
    process.run(process.tier.add_many(process.runtime, (str(number) for number in range(3000, 3100))))
    process.run(process.tier.add_many(process.runtime, rows()))
    process.add()
    assert not any(process.absent(number) for number in (*range(2500), *range(3000, 3100)))
    assert process.absent("x")


@pytest.mark.parametrize("items", ["text", b"bytes"])
@either
def test_one_item_where_many_are_expected_is_refused(fleet: Fleet, items: Any) -> None:
    process = fleet()
    with pytest.raises(ConfigurationError, match="expected an iterable"):
        process.rebuild(items)
    with pytest.raises(ConfigurationError, match="expected an iterable"):
        process.run(process.tier.add_many(process.runtime, items))


@pytest.mark.parametrize(
    "options", [{"capacity": 0}, {"error_rate": 1}, {"mirror_lease": -1}, {"mirror_lease": 6}, {"mirror_lease": True}]
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"must be .*, got"):
        Process(None, **options)


@pytest.mark.parametrize("name", ["", None, 7])
def test_a_filter_without_a_name_is_refused(name: Any) -> None:
    with pytest.raises(ConfigurationError, match="name of a Bloom filter"):
        BloomTier(name, capacity=1, lock=threading.Lock(), events=Events())


# Size


@pytest.mark.parametrize("capacity", [1, 2000])
@either
def test_the_filter_grows_when_it_is_full(fleet: Fleet, clock: Clock, capacity: int) -> None:
    here, there = fleet(capacity=capacity), fleet(capacity=capacity)
    here.add(*range(capacity))
    here.mark_complete()
    assert there.absent("x")
    here.add(*range(capacity, capacity * 4))
    for process in (here, there, fleet(capacity=capacity)):
        assert not any(process.absent(number) for number in range(capacity * 4))
        assert process.absent("x")
    info = here.info()
    assert info.layers == 3
    assert info.capacity == capacity * 7
    assert info.memory * 8 >= info.bits > 0
    assert capacity * 3.9 <= info.count <= capacity * 4
    assert here.info().state == "complete"


def test_adding_again_what_is_there_does_not_make_it_grow(fleet: Fleet) -> None:
    process = fleet(capacity=300)
    for _ in range(3):
        process.add(*range(300))
    assert process.info().layers == 1
    process.add(*range(300, 500))
    for _ in range(3):
        process.add(*range(500))
    assert process.info().layers == 2


@pytest.mark.parametrize("size", [4_000, pytest.param(20_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("by", [pytest.param("add", marks=pytest.mark.slow), "rebuild"])
def test_wrong_answers_stay_as_rare_as_was_asked(fleet: Fleet, clock: Clock, by: str, size: int) -> None:
    asked = 0.01
    here, there = fleet(capacity=size, error_rate=asked), fleet(capacity=size, error_rate=asked)
    if by == "add":
        here.add(*range(size))
        here.mark_complete()
    else:
        here.rebuild(range(size))
    for rows in (size, size * 4):
        here.add(*range(rows - size // 2, rows)) if rows > size else None
        here.rebuild(range(rows)) if by == "rebuild" else here.add(*range(rows))
        clock.advance(filter_module.RECHECK)
        assert not any(there.absent(number) for number in range(0, rows, 7))
        wrong = sum(not there.absent(f"nobody {number}") for number in range(10_000))
        assert wrong <= 1.2 * asked * 10_000


def test_no_value_in_redis_is_larger_than_a_few_kilobytes(fleet: Fleet, redis_server: RedisServer) -> None:
    process = fleet(capacity=100_000)
    process.add(*range(100))
    process.rebuild(range(100))
    sizes = [redis_server.command("STRLEN", key) for key in chunk_keys(redis_server)]
    assert set(sizes) == {4088}
    assert len(sizes) > 40


# Losses


def lose_everything(server: RedisServer) -> None:
    server.command("FLUSHALL")


def lose_meta(server: RedisServer) -> None:
    server.command("DEL", meta_key(server))


def lose_a_chunk(server: RedisServer) -> None:
    server.command("DEL", chunk_keys(server)[0])


def lose_a_chunk_that_comes_back_empty(server: RedisServer) -> None:
    key = chunk_keys(server)[0]
    server.command("DEL", key)
    server.command("SETRANGE", key, 4087, "x")


def lose_a_part_of_a_chunk(server: RedisServer) -> None:
    key = chunk_keys(server)[0]
    server.command("SET", key, redis_server_head(server, key))


def redis_server_head(server: RedisServer, key: str) -> str:
    head: str = server.command("GETRANGE", key, 0, 7)
    return head


def find_another_type(server: RedisServer) -> None:
    key = meta_key(server)
    server.command("DEL", key)
    server.command("SET", key, "garbage")


def find_garbage_in_the_count(server: RedisServer) -> None:
    hset(server, "count", "garbage")


def find_garbage_in_the_layers(server: RedisServer) -> None:
    hset(server, "layers", "9:9")


def find_a_bomb_in_the_layers(server: RedisServer) -> None:
    shape = checked_plan(2**26, 1e-6)
    hset(server, "layers", describe([shape]))
    hset(server, "probe", probe(shape))


def find_other_hash_functions(server: RedisServer) -> None:
    hset(server, "probe", "1,2,3")


def find_another_server(server: RedisServer) -> None:
    hset(server, "run", "0" * 80)


def find_a_foreign_chunk(server: RedisServer) -> None:
    key = chunk_keys(server)[0]
    server.command("DEL", key)
    server.command("RPUSH", key, "garbage")


LOSSES = [
    lose_everything,
    lose_meta,
    lose_a_chunk,
    lose_a_chunk_that_comes_back_empty,
    lose_a_part_of_a_chunk,
    find_another_type,
    find_garbage_in_the_count,
    find_garbage_in_the_layers,
    find_a_bomb_in_the_layers,
    find_other_hash_functions,
    find_another_server,
    find_a_foreign_chunk,
]


@pytest.mark.parametrize("lose", LOSSES)
def test_a_filter_that_was_lost_or_damaged_hides_nothing_until_it_is_rebuilt(
    fleet: Fleet, clock: Clock, redis_server: RedisServer, lose: Callable[[RedisServer], None]
) -> None:
    rows = [str(number) for number in range(900)]
    old, writer = fleet(), fleet()
    old.add(*rows)
    old.mark_complete()
    assert old.absent("x")
    lose(redis_server)
    added = list(rows)
    for number in range(900, 960):
        with suppress(Unreachable):
            writer.add(number)
            added.append(str(number))
        clock.advance(0.1)
    for process in (old, writer, fleet()):
        assert not any(process.absent(row) for row in added)
        clock.advance(filter_module.RELOAD)
        assert not any(process.absent(row) for row in added)
    if lose is find_another_type:
        lose_meta(redis_server)
    writer.rebuild(added)
    clock.advance(filter_module.RELOAD)
    for process in (old, writer, fleet()):
        assert process.absent("x")
        assert not any(process.absent(row) for row in added)
    assert writer.info().state == "complete"


@pytest.mark.parametrize(
    "lose",
    [
        find_another_type,
        find_garbage_in_the_count,
        find_garbage_in_the_layers,
        find_a_bomb_in_the_layers,
        find_other_hash_functions,
    ],
)
@either
def test_a_reader_does_not_load_what_it_cannot_work_with(
    fleet: Fleet, redis_server: RedisServer, lose: Callable[[RedisServer], None]
) -> None:
    fleet().rebuild(["a"])
    lose(redis_server)
    process = fleet()
    assert not process.absent("x")
    assert process.known("x") is False
    assert process.wire
    assert process.wire.sends == 1
    if lose is not find_another_type:
        assert process.info().state == "lost"


@pytest.mark.parametrize(
    "lose", [lose_a_chunk, lose_a_chunk_that_comes_back_empty, lose_a_part_of_a_chunk, find_a_foreign_chunk]
)
@either
def test_a_reader_does_not_trust_what_it_loaded_without_every_chunk(
    fleet: Fleet, redis_server: RedisServer, lose: Callable[[RedisServer], None]
) -> None:
    fleet().rebuild(range(900))
    lose(redis_server)
    process = fleet()
    assert not any(process.absent(row) for row in range(900))
    assert not process.absent("x")
    if lose is not find_a_foreign_chunk:  # whose type makes every load fail, so it needs no note
        assert process.info().state == "lost"


@pytest.mark.parametrize("lose", [lose_everything, lose_meta])
@either
def test_an_add_after_a_loss_waits_for_the_leases_that_were_lost_too(
    fleet: Fleet, redis_server: RedisServer, lose: Callable[[RedisServer], None]
) -> None:
    reader, writer = fleet(), fleet()
    writer.rebuild(["a"])
    assert reader.absent("x")
    lose(redis_server)
    writer.add("x")
    assert sum(writer.runtime.slept) >= LEASE
    assert reader.known("x") is None
    assert not reader.absent("x")
    assert writer.events.bloom_losses == 1
    assert reader.events.bloom_losses == 1
    assert reader.info().state == "incomplete"
    writer.add("y")
    writer.add("z")
    assert sum(writer.runtime.slept) >= LEASE


@pytest.mark.parametrize("toucher", ["add", "sync"])
@either
def test_an_add_on_another_server_waits_for_the_leases_of_the_old_one(
    fleet: Fleet, redis_server: RedisServer, toucher: str
) -> None:
    reader, writer, third = fleet(), fleet(), fleet()
    writer.rebuild(["a"])
    assert reader.absent("x")
    # What a failover leaves behind: the old server's name, and a lease that was not replicated in time.
    hset(redis_server, "run", "0" * 80)
    hset(redis_server, "lease", "0")
    third.add("b") if toucher == "add" else third.absent("b")
    writer.add("x")
    assert sum(writer.runtime.slept) > LEASE * 0.5
    assert reader.known("x") is None


def test_a_lost_chunk_is_noticed_by_the_next_add_that_needs_it(fleet: Fleet, redis_server: RedisServer) -> None:
    process = fleet(capacity=20_000)
    process.rebuild(["a"])
    assert process.info().state == "complete"
    for key in chunk_keys(redis_server)[:3]:
        redis_server.command("DEL", key)
    process.add(*range(100))
    assert process.info().state == "lost"
    with pytest.raises(CacheGuardError, match="lost a part"):
        process.mark_complete()


def test_a_chunk_that_was_lost_and_made_anew_is_noticed_by_who_loads_the_filter(
    fleet: Fleet, redis_server: RedisServer
) -> None:
    process = fleet(capacity=1_000_000)
    process.add(1, 2)
    lost = chunk_keys(redis_server)
    for key in lost[:3]:
        redis_server.command("DEL", key)
    process.add(1)
    process.add(2)
    assert chunk_keys(redis_server) == lost
    process.mark_complete()
    other = fleet(capacity=1_000_000)
    assert not any(other.absent(item) for item in (1, 2, "x"))
    assert other.info().state == "lost"
    assert not fleet(capacity=1_000_000).absent("x")


def test_a_filter_that_other_hash_functions_fill_is_trusted_by_nobody(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = fleet(), fleet()
    here.rebuild(["a"])
    assert here.absent("x")
    with monkeypatch.context() as patch:
        for module in (filter_module, adding):
            patch.setattr(module, "probe", lambda shape: "1,2,3")
        assert not there.absent("x")
        assert there.info().state == "lost"
        there.add("x")
    assert not here.absent("x")
    assert not fleet().absent("x")
    assert here.info().state == "lost"


@either
def test_an_add_gives_up_on_a_filter_that_never_stays_the_same(fleet: Fleet, redis_server: RedisServer) -> None:
    process = fleet()
    process.rebuild(["a"])
    assert process.wire
    epochs = (f"epoch{number:03}" for number in range(1000))
    process.wire.before = lambda calls: hset(redis_server, "epoch", next(epochs))
    with pytest.raises(CacheGuardError, match="kept changing"):
        process.add("x")


@either
def test_a_filter_that_is_filled_while_it_is_loaded_hides_nothing(fleet: Fleet) -> None:
    writer, reader = fleet(capacity=100_000), fleet(capacity=100_000)
    writer.add("a")
    writer.mark_complete()
    added = ["a"]

    def add_meanwhile(calls: tuple[Call, ...]) -> None:
        if not isinstance(calls[0], ScriptCall) and len(added) < 500:
            batch = [f"{len(added)}-{number}" for number in range(40)]
            writer.add(*batch)
            added.extend(batch)

    assert reader.wire
    reader.wire.before = add_meanwhile
    assert not reader.absent("1-1")
    assert not any(reader.absent(item) for item in added)
    reader.wire.before = lambda calls: None
    assert not any(reader.absent(item) for item in added)


@either
def test_a_filter_that_is_replaced_while_it_is_loaded_is_loaded_again(fleet: Fleet) -> None:
    writer, reader = fleet(), fleet()
    writer.rebuild(["a"])
    turns = iter(range(5))

    def rebuild_meanwhile(calls: tuple[Call, ...]) -> None:
        if not isinstance(calls[0], ScriptCall) and next(turns) < 2:
            writer.rebuild(["a", "b"])

    assert reader.wire
    reader.wire.before = rebuild_meanwhile
    assert reader.absent("x")
    assert not reader.absent("b")


@either
def test_a_filter_that_becomes_incomplete_while_it_is_loaded_says_maybe(
    fleet: Fleet, redis_server: RedisServer
) -> None:
    fleet().rebuild(["a"])
    reader = fleet()

    def fail_over(calls: tuple[Call, ...]) -> None:
        if not isinstance(calls[0], ScriptCall):
            find_another_server(redis_server)

    assert reader.wire
    reader.wire.before = fail_over
    assert not reader.absent("x")


@either
def test_a_filter_that_never_stands_still_while_it_is_loaded_says_maybe(fleet: Fleet, clock: Clock) -> None:
    writer, reader = fleet(), fleet()
    writer.rebuild(["a"])

    def rebuild_meanwhile(calls: tuple[Call, ...]) -> None:
        if not isinstance(calls[0], ScriptCall):
            writer.rebuild(["a", "b"])

    assert reader.wire
    reader.wire.before = rebuild_meanwhile
    assert not reader.absent("x")
    reader.wire.before = lambda calls: None
    assert reader.known("x") is False
    clock.advance(filter_module.RELOAD)
    assert reader.absent("x")


@either
def test_a_restarted_server_that_kept_its_data_is_not_believed(
    fleet: Fleet, clock: Clock, redis_server: RedisServer, tmp_path: Path
) -> None:
    server = RedisServer(redis_server.binary, tmp_path).start()
    try:
        process = fleet(url=server.url)
        process.add("a", "b")
        process.mark_complete()
        assert process.absent("x")
        server.command("SAVE")
        process.add("c")
        server.restart()
        assert process.wire
        process.wire.client.close()
        clock.advance(filter_module.RECHECK)
        assert not process.absent("c")
        clock.advance(filter_module.RECHECK)
        assert not fleet(url=server.url).absent("c")
        assert process.info().state == "incomplete"
        with pytest.raises(CacheGuardError, match="restarted"):
            process.mark_complete()
        process.add("a", "b", "c")
        process.mark_complete()
        other = fleet(url=server.url)
        assert other.absent("x")
        assert not other.absent("c")
    finally:
        server.stop()


@either
def test_without_redis_readers_get_maybe_and_writers_an_error(fleet: Fleet, clock: Clock) -> None:
    process = fleet()
    process.rebuild(["a"])
    assert process.absent("x")
    clock.advance(LEASE)
    assert process.wire
    process.wire.cut = True
    sends = process.wire.sends
    assert not process.absent("x")
    assert not process.absent("y")
    assert process.wire.sends == sends + 1
    for call in (lambda: process.add("z"), process.mark_complete, process.info, lambda: process.rebuild(["a"])):
        with pytest.raises(Unreachable):
            call()
    process.wire.cut = False
    clock.advance(filter_module.RECHECK)
    assert process.absent("x")


@either
def test_a_user_who_may_not_run_info_gets_maybe_and_a_clear_error(
    fleet: Fleet, clock: Clock, redis_server: RedisServer
) -> None:
    blind_url = redis_server.url.replace("redis://", "redis://blind:secret@")
    redis_server.command("ACL", "SETUSER", "blind", "on", ">secret", "~*", "&*", "+@all", "-info")
    try:
        blind, seeing = fleet(url=blind_url), fleet()
        blind.add("a")
        for complete in (blind.mark_complete, lambda: blind.rebuild(["a"])):
            with pytest.raises(CacheGuardError, match="may not run INFO"):
                complete()
        assert not blind.absent("x")
        seeing.rebuild(["a"])
        assert seeing.absent("x")
        clock.advance(filter_module.RECHECK)
        assert not blind.absent("x")
        assert seeing.absent("x")
        blind.add("x")
        assert not seeing.absent("x")
        assert not seeing.absent("y")
    finally:
        redis_server.command("ACL", "DELUSER", "blind")


# Completeness


@either
def test_an_empty_filter_in_redis_is_not_declared_complete_by_accident(fleet: Fleet) -> None:
    process = fleet()
    with pytest.raises(CacheGuardError, match="none in Redis"):
        process.mark_complete()
    process.rebuild(())
    assert process.absent("x")


@either
def test_a_filter_that_was_flushed_while_it_was_filled_is_not_declared_complete(
    fleet: Fleet, clock: Clock, redis_server: RedisServer
) -> None:
    process = fleet()
    process.add("a")
    redis_server.command("FLUSHALL")
    process.add("b")
    with pytest.raises(CacheGuardError, match="lost, or Redis was restarted"):
        process.mark_complete()
    clock.advance(filter_module.RECHECK)
    assert not process.absent("a")
    process.add("a", "b")
    process.mark_complete()
    assert not process.absent("a")
    assert process.absent("x")


def test_a_filter_that_was_flushed_between_two_calls_of_one_add_is_not_declared_complete(fleet: Fleet) -> None:
    process = fleet()
    assert process.wire
    client = process.wire.client
    flushed: list[bool] = []

    async def send_with_a_flush(*calls: Call) -> list[Reply]:
        replies: list[Reply] = []
        for call in calls:
            replies += await Wire.send(process.wire, call)  # type: ignore[arg-type]  # checked above
            if not flushed:
                flushed.append(bool(client.flushall()))
        return replies

    process.wire.send = send_with_a_flush  # type: ignore[method-assign]  # one test's wire
    process.add(*range(120))
    with pytest.raises(CacheGuardError, match="lost, or Redis was restarted"):
        process.mark_complete()


@either
def test_a_complete_filter_may_be_declared_complete_again(fleet: Fleet, redis_server: RedisServer) -> None:
    here, there = fleet(), fleet()
    here.add("a")
    there.rebuild(["a", "b"])
    here.mark_complete()
    here.mark_complete()
    hset(redis_server, "run", "0" * 80)
    there.mark_complete()
    assert there.absent("x")


@either
def test_the_filter_in_redis_is_used_even_if_declared_otherwise(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    fleet(capacity=100).rebuild(["a"])
    process = fleet(capacity=5000, error_rate=0.1)
    assert process.absent("x")
    process.add("b")
    assert not process.absent("b")
    assert process.info().capacity == 100
    assert process.info().error_rate == pytest.approx(0.001)
    assert len(caplog.records) == 1
    process.rebuild(["a"])
    assert process.info().capacity == 5000


# Rebuilding


@either
def test_reads_go_on_while_a_filter_is_rebuilt(fleet: Fleet, redis_server: RedisServer) -> None:
    here, there = fleet(), fleet()
    here.rebuild(["a", "old"])
    assert there.absent("x")
    before = set(chunk_keys(redis_server))

    def rows() -> Iterator[str]:
        yield "a"
        for process in (here, there):
            assert process.absent("x")
            assert not process.absent("a")
            assert not process.absent("old")
        there.add("new", "x")
        assert not here.absent("new")
        yield "b"

    here.rebuild(rows())
    for process in (here, there, fleet()):
        assert not any(process.absent(item) for item in ("a", "b", "new", "x"))
        assert process.absent("y")
    after = chunk_keys(redis_server)
    assert not before & set(after)
    assert {redis_server.command("PTTL", key) for key in after} == {-1}


@either
def test_what_a_filter_lost_by_a_rebuild_is_absent_afterwards(fleet: Fleet, clock: Clock) -> None:
    process = fleet()
    process.rebuild(f"{number}" for number in range(100))
    process.rebuild(f"{number}" for number in range(50))
    assert process.absent(99)
    assert not process.absent(49)
    assert process.info().count == 50


@either
def test_a_row_added_before_a_rebuild_and_committed_during_it_is_kept(fleet: Fleet) -> None:
    here, there = fleet(), fleet()
    here.rebuild(["a"])
    there.add("a", "uncommitted")
    here.rebuild(["a"])
    assert not here.absent("uncommitted")
    assert not there.absent("uncommitted")


def lose_the_log(server: RedisServer) -> None:
    server.command("DEL", next(key for key in keys(server) if key.endswith(":l")))


@pytest.mark.parametrize("lose", [lose_everything, lose_meta, lose_the_log, find_another_server])
def test_a_rebuild_after_a_loss_lets_the_transactions_end_of_which_the_memory_was_lost(
    fleet: Fleet, clock: Clock, redis_server: RedisServer, lose: Callable[[RedisServer], None]
) -> None:
    here, there = fleet(), fleet()
    here.run(here.tier.rebuild(here.runtime, ["a"], settle=100))
    assert 99 < sum(here.runtime.slept) < 101
    here.runtime.slept.clear()
    there.add("uncommitted")
    # As if the filter had been there for long.
    hset(redis_server, "since", "0")
    here.run(here.tier.rebuild(here.runtime, ["a"], settle=100))
    assert here.runtime.slept == []
    lose(redis_server)
    there.add("b")
    here.run(here.tier.rebuild(here.runtime, ["a"], settle=100))
    assert sum(here.runtime.slept) > 99
    assert not here.absent("b")


@pytest.mark.parametrize("settle", [-1, True, "1m", 1e9, float("nan")])
@either
def test_a_time_to_settle_out_of_range_is_refused(fleet: Fleet, settle: Any) -> None:
    process = fleet()
    with pytest.raises(ConfigurationError, match="settle must be"):
        process.run(process.tier.rebuild(process.runtime, ["a"], settle=settle))


@either
def test_items_added_while_the_new_filter_is_uploaded_and_switched_are_in_it(fleet: Fleet) -> None:
    here, there = fleet(capacity=100), fleet(capacity=100)
    here.rebuild(["a"])
    assert here.wire
    added: list[str] = []

    def add_meanwhile(calls: tuple[Call, ...]) -> None:
        if len(added) < 1500:
            batch = [f"{len(added)}-{number}" for number in range(100)]
            there.add(*batch)
            added.extend(batch)

    here.wire.before = add_meanwhile
    here.rebuild(["a"])
    here.wire.before = lambda calls: None
    assert len(added) >= 400
    for process in (here, there, fleet()):
        assert not any(process.absent(item) for item in added)
        assert process.absent("x")
    assert here.info().layers > 1


@either
def test_a_rebuild_that_crashes_leaves_the_old_filter_as_it_was(fleet: Fleet, redis_server: RedisServer) -> None:
    process = fleet()
    process.rebuild(["a"])
    before = chunk_keys(redis_server)

    def rows() -> Iterator[str]:
        yield "b"
        raise OSError("the database is gone")

    with pytest.raises(OSError, match="database is gone"):
        process.rebuild(rows())
    assert process.absent("b")
    assert not process.absent("a")
    assert chunk_keys(redis_server) == before
    assert not redis_server.command("HEXISTS", meta_key(redis_server), "next")


@either
def test_a_rebuild_that_dies_before_the_switch_leaves_nothing_for_long(fleet: Fleet, redis_server: RedisServer) -> None:
    process, other = fleet(), fleet()
    process.rebuild(["a"])
    before = set(chunk_keys(redis_server))
    assert process.wire

    def die(calls: tuple[Call, ...]) -> None:
        call = calls[0]
        if isinstance(call, ScriptCall) and call.script.name == "bloom_switch" and len(call.args) > 4:
            raise KeyboardInterrupt

    process.wire.before = die
    with pytest.raises(KeyboardInterrupt):
        process.rebuild(["b"])
    orphans = set(chunk_keys(redis_server)) - before
    assert orphans
    assert all(redis_server.command("PTTL", key) > 0 for key in orphans)
    assert process.absent("b")
    other.add("c")
    assert not process.absent("c")
    other.rebuild(["a", "b"])
    assert not other.absent("c")
    assert not other.absent("b")


@either
def test_of_two_rebuilds_the_later_one_wins(fleet: Fleet) -> None:
    here, there = fleet(), fleet()

    def rows() -> Iterator[str]:
        yield "a"
        there.rebuild(["b"])
        yield "c"

    with pytest.raises(CacheGuardError, match="another rebuild"):
        here.rebuild(rows())
    assert not here.absent("b")
    assert here.absent("a")


@either
def test_a_rebuild_that_was_silent_for_too_long_is_ignored(fleet: Fleet, redis_server: RedisServer) -> None:
    here, there = fleet(), fleet()

    def rows() -> Iterator[str]:
        yield "a"
        hset(redis_server, "next_until", "1")
        there.add("b")

    with pytest.raises(CacheGuardError, match="silent"):
        here.rebuild(rows())


@either
def test_a_rebuild_that_somebody_took_for_dead_does_not_come_back(fleet: Fleet, redis_server: RedisServer) -> None:
    here, there = fleet(), fleet()
    here.rebuild(["a"])

    def rows() -> Iterator[str]:
        yield "a"
        # The server's clock is set forward for a moment.
        hset(redis_server, "next_until", "1")
        there.add("b")
        hset(redis_server, "next_until", str(int(time.time() * 1000) + 3_600_000))

    with pytest.raises(CacheGuardError, match="another rebuild"):
        here.rebuild(rows())
    assert not here.absent("b")


def test_a_long_rebuild_gives_signs_of_life(fleet: Fleet, clock: Clock, redis_server: RedisServer) -> None:
    process = fleet(capacity=5000)

    def rows() -> Iterator[int]:
        for number in range(3000):
            if number == 1500:
                hset(redis_server, "next_until", str(int(time.time() * 1000) + 5000))
                clock.advance(rebuild.REBUILD_SIGN)
            if number == 2500:
                left = int(redis_server.command("HGET", meta_key(redis_server), "next_until"))
                assert left > time.time() * 1000 + 60_000
            yield number

    process.rebuild(rows())
    assert not process.absent(2999)


def forget_the_kept_items(server: RedisServer) -> None:
    server.command("DEL", next(key for key in keys(server) if key.endswith(":s")))


def forget_them_while_as_many_come(server: RedisServer) -> None:
    key = next(key for key in keys(server) if key.endswith(":s"))
    count = server.command("LLEN", key)
    server.command("DEL", key)
    server.command("RPUSH", key, *["x"] * (count - 1))


def change_server(server: RedisServer) -> None:
    hset(server, "next_run", "0" * 80)


@pytest.mark.parametrize(
    "lose", [forget_the_kept_items, forget_them_while_as_many_come, change_server, lose_meta, lose_everything]
)
@either
def test_a_rebuild_that_lost_what_was_added_meanwhile_fails(
    fleet: Fleet, redis_server: RedisServer, lose: Callable[[RedisServer], None]
) -> None:
    here, there = fleet(), fleet()

    def rows() -> Iterator[str]:
        yield "a"
        there.add("b", "c")
        lose(redis_server)

    with pytest.raises(CacheGuardError, match="during the rebuild"):
        here.rebuild(rows())
    assert not here.absent("b")


@either
def test_a_switch_whose_answer_was_lost_may_be_sent_again(fleet: Fleet, redis_server: RedisServer) -> None:
    process = fleet()
    process.rebuild(["a"])
    old = set(chunk_keys(redis_server))
    assert process.wire
    whole = process.wire.send

    async def send_scripts_twice(*calls: Call) -> list[Reply]:
        if isinstance(calls[0], ScriptCall):
            await whole(*calls)
        return await whole(*calls)

    process.wire.send = send_scripts_twice  # type: ignore[method-assign]  # one test's wire
    process.add("b", "c")
    process.rebuild(["a"])
    process.mark_complete()
    assert not any(process.absent(item) for item in ("a", "b", "c"))
    assert process.absent("x")
    assert not old & set(chunk_keys(redis_server))
    assert process.info().count == 3


@either
def test_chunks_that_a_dying_rebuild_did_not_remove_are_removed_by_the_next(
    fleet: Fleet, redis_server: RedisServer
) -> None:
    process = fleet()
    process.rebuild(["a"])
    old = set(chunk_keys(redis_server))
    assert process.wire

    def cut(calls: tuple[Call, ...]) -> None:
        assert process.wire
        process.wire.cut = command_name(calls[0]) == "UNLINK"

    process.wire.before = cut
    process.rebuild(["b"])
    assert old & set(chunk_keys(redis_server))
    process.wire.before = lambda calls: None
    process.wire.cut = False
    process.rebuild(["c"])
    assert not old & set(chunk_keys(redis_server))
    assert not process.absent("c")


@either
def test_a_deadline_of_a_rebuild_that_is_over_stops_the_keeping_of_items(
    fleet: Fleet, redis_server: RedisServer
) -> None:
    here, there = fleet(), fleet()
    steps = here.tier.rebuild(here.runtime, ["a"])
    assert here.wire
    here.wire.before = lambda calls: (_ for _ in ()).throw(KeyboardInterrupt) if here.wire.sends else None  # type: ignore[union-attr]  # set above
    with pytest.raises(KeyboardInterrupt):
        here.run(steps)
    there.add("b")
    assert any(key.endswith(":s") for key in keys(redis_server))
    hset(redis_server, "next_until", "1")
    redis_server.command("DEL", next(key for key in keys(redis_server) if key.endswith(":s")))
    there.add("c")
    assert not any(key.endswith(":s") for key in keys(redis_server))


# Threads and forks


@either
def test_no_thread_is_told_absent_once_add_has_returned(fleet: Fleet) -> None:
    rows = [f"row {number}" for number in range(60)]
    reader = fleet(clock=None, mirror_lease=0.01)
    writer = fleet(clock=None, mirror_lease=0.01)
    writer.rebuild(["a"])
    done: list[str] = []
    wrong: list[str] = []
    answers = {True: 0, False: 0}
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            certain = list(done)
            for row in rows:
                absent = reader.absent(row)
                answers[absent] += 1
                if absent and row in certain:
                    wrong.append(row)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for row in rows:
            writer.add(row)
            done.append(row)
            if row == rows[30]:
                writer.rebuild(list(done))
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert not wrong
    assert all(answers.values())


@either
def test_a_forked_process_goes_on_with_a_lock_of_its_own(fleet: Fleet) -> None:
    lock = threading.Lock()
    process = fleet(lock=lock)
    process.rebuild(["a"])
    with lock:
        process.tier.after_fork(threading.Lock())
        assert process.absent("x")
        process.add("c")
        assert not process.absent("c")


@either
def test_a_process_forked_during_a_load_loads_for_itself(fleet: Fleet) -> None:
    fleet().rebuild(["a"])
    process = fleet()
    assert process.wire
    answers: list[bool] = []

    def fork(calls: tuple[Call, ...]) -> None:
        if command_name(calls[0]) == "GET" and not answers:
            answers.append(False)
            process.tier.after_fork(threading.Lock())
            answers.append(process.absent("x"))

    process.wire.before = fork
    assert process.absent("x")
    assert answers == [False, True]


# Without Redis


def test_alone_a_process_keeps_the_filter_to_itself() -> None:
    process = Process(None, Clock(), shared=False, capacity=10)
    process.add(*range(40))
    assert process.known("x") is False
    assert process.info().state == "incomplete"
    process.mark_complete()
    assert process.known("x") is True
    assert process.absent("x")
    assert not any(process.absent(number) for number in range(40))
    assert process.info() == BloomInfo(
        "users", "complete", "", 40, 70, 0.001, 3, process.info().bits, process.info().memory
    )
    assert process.runtime.slept == []


def test_alone_a_rebuild_keeps_what_is_added_meanwhile() -> None:
    process = Process(None, Clock(), shared=False)
    process.add("open")

    def rows() -> Iterator[str]:
        yield "a"
        process.add("b")

    process.rebuild(rows())
    assert not any(process.absent(item) for item in ("open", "a", "b"))
    assert process.absent("x")
    assert process.info().count == 3


def test_alone_the_later_of_two_rebuilds_wins() -> None:
    process = Process(None, Clock(), shared=False)

    def rows() -> Iterator[str]:
        yield "a"
        process.rebuild(["b"])

    with pytest.raises(CacheGuardError, match="another rebuild"):
        process.rebuild(rows())
    assert not process.absent("b")
    assert process.absent("a")
