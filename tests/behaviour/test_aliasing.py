"""Who has which object: what L1 shares, the copies of ``l1_copy``, and the check that names who changed one."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from cacheguard import MISSING, CacheGuard, Policy
from cacheguard.errors import CodecError
from cacheguard.testing import AliasingError, check_aliasing
from tests.conftest import OpenDoor
from tests.support.doors import Door

WHERES = ("redis", "memory", "l2 off", "away")
AWAY = "redis://127.0.0.1:1/0"  # nobody listens there


async def _open(open_door: OpenDoor, where: str, redis_url: str, **options: Any) -> Door:
    url = {"memory": "memory://", "away": AWAY}.get(where, redis_url)
    door = open_door(CacheGuard(url, policy=Policy(l2=where != "l2 off"), **options))
    if where == "l2 off":  # what it keeps before it hears of changes is dropped when it begins to
        await door.get("k")
        async with asyncio.timeout(10):
            while not door.guard.stats().bus_up:
                await asyncio.sleep(0.005)
    return door


@dataclass
class Basket:
    items: list[dict[str, int]]
    owner: Any = None


class Plain:
    """A class of the user's that the codec does not know."""

    def __init__(self) -> None:
        self.rows = [[1]]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plain) and self.rows == other.rows

    __hash__ = None  # type: ignore[assignment]  # it may change


class Rows:
    """What an ORM returns: it asks when it is read, keeps what it was told, and begins anew if it is copied."""

    asked = 0

    def __init__(self) -> None:
        self.result: list[int] | None = None

    def __deepcopy__(self, memo: object) -> Rows:
        return Rows()

    def __getstate__(self) -> dict[str, Any]:
        self.all()
        return self.__dict__

    def all(self) -> list[int]:
        if self.result is None:
            type(self).asked += 1
            self.result = [1, 2]
        return self.result


def _local() -> object:
    @dataclass
    class Local:
        rows: list[int]

    return Local([1])


VALUES: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "list": (lambda: [[1]], lambda value: value[0].append(2)),
    "dict": (lambda: {"a": {"b": 1}}, lambda value: value["a"].update(b=2)),
    "set in a tuple": (lambda: ({1},), lambda value: value[0].add(2)),
    "OrderedDict": (lambda: OrderedDict(a=[1]), lambda value: value["a"].append(2)),
    "bytearray": (lambda: bytearray(b"a"), lambda value: value.extend(b"b")),
    "a class without an annotation": (lambda: Basket([{"a": 1}]), lambda value: value.items.append({})),
    "a plain class": (Plain, lambda value: value.rows[0].append(2)),
    "a local class": (_local, lambda value: value.rows.append(2)),
}


@pytest.mark.parametrize(
    ("where", "kind"),
    [*((where, "dict") for where in WHERES), *(("memory", kind) for kind in VALUES if kind != "dict")],
)
async def test_with_l1_copy_nobody_sees_what_another_one_changed(
    open_door: OpenDoor, redis_url: str, where: str, kind: str
) -> None:
    door = await _open(open_door, where, redis_url, l1_copy=True)
    make, spoil = VALUES[kind]
    mine = make()
    fresh = repr(getattr(mine, "__dict__", mine))

    @door.cached("k:{number}")
    def load(number: int) -> Any:
        return mine

    async def all_of() -> list[Any]:
        loader: Callable[[], Any] = lambda: mine  # noqa: E731 - the doors make it async
        found = [await load(1), await load(1), *await load.many([1, 2, 2]), await load.peek(1), await load.refresh(1)]
        found += [await door.get_or_set("k:1", loader), await door.get("k:1"), await door.get_or_set("k:3", loader)]
        found += (await door.get_many(["k:1"])).values()
        found += (await door.get_or_set_many(["k:1", "k:4"], lambda keys: dict.fromkeys(keys, mine))).values()
        return [each for each in found if each is not MISSING and each is not None]

    seen: list[Any] = []
    for _ in range(2):
        for each in await all_of():
            assert repr(getattr(each, "__dict__", each)) == fresh
            assert each is not mine
            assert all(each is not other for other in seen)
            spoil(each)
            seen.append(each)
    assert repr(getattr(mine, "__dict__", mine)) == fresh


@pytest.mark.parametrize("where", WHERES)
async def test_with_l1_copy_a_loader_may_change_its_own_object_afterwards(
    open_door: OpenDoor, redis_url: str, where: str
) -> None:
    door = await _open(open_door, where, redis_url, l1_copy=True)
    mine = [1]
    assert await door.get_or_set("k", lambda: mine) == [1]
    mine.append(2)
    assert await door.get_or_set("k", lambda: [0]) == [1]


@pytest.mark.parametrize("where", WHERES)
async def test_with_l1_copy_followers_of_one_flight_get_objects_of_their_own(
    open_door: OpenDoor, redis_url: str, where: str
) -> None:
    guard = (await _open(open_door, where, redis_url, l1_copy=True)).guard
    got: list[list[int]] = []
    begun = threading.Barrier(4)
    loads: list[int] = []

    def load() -> list[int]:
        loads.append(1)
        threading.Event().wait(0.1)
        return [1]

    def read() -> None:
        begun.wait()
        got.append(guard.get_or_set("k", load))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        await asyncio.to_thread(each.join)
    assert (got, len(loads), len(set(map(id, got)))) == ([[1]] * 4, 1, 4)


@pytest.mark.parametrize("where", WHERES)
async def test_with_l1_copy_what_has_fetched_its_rows_keeps_them(
    open_door: OpenDoor, redis_url: str, where: str
) -> None:
    door = await _open(open_door, where, redis_url, l1_copy=True)
    Rows.asked = 0

    @door.cached("rows:{number}")
    def rows(number: int) -> Any:
        return Rows()

    for _ in range(3):
        assert (await rows(1)).all() == [1, 2]
    assert Rows.asked == 1


@pytest.mark.parametrize("where", WHERES)
async def test_with_l1_copy_what_cannot_be_copied_is_served_and_not_kept(
    open_door: OpenDoor, redis_url: str, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    door = await _open(open_door, where, redis_url, l1_copy=True)
    lock = threading.Lock()

    @door.cached("lock:{number}")
    def load(number: int) -> Any:
        return [lock]

    before = door.guard.stats()
    assert [(await load(number))[0] for number in (1, 1, 2)] == [lock] * 3
    after = door.guard.stats()
    assert after.loads - before.loads == 3
    assert after.unencodable - before.unencodable == 3
    assert after.l1_entries == 0
    said = [each.getMessage() for each in caplog.records if "copied" in each.getMessage()]
    assert len(said) == 1
    assert "l1_copy" in said[0]


async def test_with_l1_copy_what_cannot_be_copied_cannot_be_set(open_door: OpenDoor) -> None:
    door = open_door(CacheGuard("memory://", l1_copy=True))
    with pytest.raises(CodecError, match="cannot be copied"):
        await door.set("k", [threading.Lock()])
    assert await door.get("k") is None


@pytest.mark.parametrize("serializer", [None, pickle])
async def test_with_l1_copy_what_came_from_redis_is_copied_too(
    open_door: OpenDoor, redis_url: str, serializer: Any
) -> None:
    options: dict[str, Any] = {"l1_copy": True, "serializer": serializer, "secret": b"0123456789abcdef"}
    writer, reader = open_door(CacheGuard(redis_url, **options)), open_door(CacheGuard(redis_url, **options))

    def rows(number: int) -> list[list[int]]:
        return []

    load, loaded = reader.cached("k:{number}")(rows), writer.cached("k:{number}")(rows)
    for number in range(6):
        await loaded.put([[number]], number)
    readers: list[Callable[[int], Any]] = [
        load,
        load.peek,
        lambda number: reader.get(f"k:{number}"),
        lambda number: reader.get_or_set(f"k:{number}", list),
    ]
    for number, read in enumerate(readers):
        for _ in range(3):
            value = await read(number)
            assert value == [[number]]
            value[0].append(-1)
    for _ in range(3):
        many = [*(await load.many([4, 4])), *(await reader.get_or_set_many(["k:5"], dict.fromkeys)).values()]
        assert many == [[[4]], [[4]], [[5]]]
        for value in many:
            value[0].append(-1)
    assert reader.guard.stats().loads == 0


async def test_without_l1_copy_callers_share_one_object(open_door: OpenDoor, redis_url: str) -> None:
    door = open_door(CacheGuard(redis_url))
    first = await door.get_or_set("k", lambda: [1])
    assert await door.get_or_set("k", lambda: [1]) is first


async def test_with_l1_copy_a_fallback_is_copied(open_door: OpenDoor) -> None:
    shared: list[int] = []
    door = open_door(CacheGuard("memory://", l1_copy=True, max_loads=1, load_queue=1, load_wait="10ms"))
    hold, held = threading.Event(), threading.Event()

    def load() -> int:
        held.set()
        hold.wait(5)
        return 1

    busy = threading.Thread(target=door.guard.get_or_set, args=("busy", load))
    busy.start()
    await asyncio.to_thread(held.wait, 5)
    got = await door.get_or_set("k", lambda: [0], fallback=shared)
    hold.set()
    await asyncio.to_thread(busy.join)
    assert (got, got is shared) == ([], False)


# The check


async def _changed(door: Door, use: Callable[[Door], Any]) -> str:
    with pytest.raises(AliasingError) as caught, check_aliasing(door.guard):
        await use(door)
    return str(caught.value)


@pytest.fixture(params=WHERES)
async def shared(request: pytest.FixtureRequest, open_door: OpenDoor, redis_url: str) -> Door:
    return await _open(open_door, request.param, redis_url)


@pytest.mark.parametrize("where", WHERES)
def test_the_check_names_the_key_the_place_and_who_had_it(where: str, redis_url: str) -> None:
    def culprit(guard: CacheGuard) -> None:
        guard.get_or_set("k", lambda: [{"a": [1]}])[0]["a"].append(2)

    def innocent(guard: CacheGuard) -> None:
        guard.get_or_set("k", list)

    def both(guard: CacheGuard) -> None:
        with check_aliasing(guard):
            culprit(guard)
            innocent(guard)

    url = {"memory": "memory://", "away": AWAY}.get(where, redis_url)
    with CacheGuard(url, policy=Policy(l2=where != "l2 off")) as guard:
        with pytest.raises(AliasingError) as caught, check_aliasing(guard):
            culprit(guard)
        assert "k was changed at [0]['a'] after it was stored; noticed at the end" in str(caught.value)
        guard.invalidate("k")
        with pytest.raises(AliasingError) as caught:
            both(guard)
    noticed, _, takers = str(caught.value).partition("got by")
    assert "k was changed at [0]['a']" in noticed
    assert f"{__file__}:" in noticed
    assert "innocent" in noticed
    assert f"{__file__}:" in takers
    assert "culprit" in takers
    assert "innocent" not in takers


async def test_the_check_names_tasks_and_decorated_functions(redis_url: str) -> None:
    async with CacheGuard(redis_url) as guard:

        @guard.cached("k:{number}")
        async def load(number: int) -> list[int]:
            return [number]

        async def culprit() -> None:
            await load(1)
            (await load(1)).append(2)

        async def tasks() -> None:
            await asyncio.gather(load(1), load(1))
            await asyncio.create_task(culprit())

        with pytest.raises(AliasingError) as caught, check_aliasing(guard):
            await tasks()
    assert "culprit" in str(caught.value).partition("got by")[2].partition(",")[0]


@pytest.mark.parametrize("way", ["get", "get_many", "many", "peek", "refresh", "get_or_set_many", "the loader"])
async def test_the_check_sees_every_door(open_door: OpenDoor, redis_url: str, way: str) -> None:
    async def use(door: Door) -> None:
        mine = [1]

        @door.cached("k:{number}")
        def load(number: int) -> Any:
            return mine

        await load(1)
        if way == "get":
            (await door.get("k:1")).append(2)
        elif way == "get_many":
            (await door.get_many(["k:1"]))["k:1"].append(2)
        elif way == "many":
            (await load.many([1]))[0].append(2)
        elif way == "peek":
            (await load.peek(1)).append(2)
        elif way == "refresh":
            (await load.refresh(1)).append(2)
        elif way == "get_or_set_many":
            (await door.get_or_set_many(["k:1"], lambda keys: {}))["k:1"].append(2)
        else:
            mine.append(2)

    said = await _changed(open_door(CacheGuard(redis_url)), use)
    assert "k:1 was changed" in said


async def test_the_check_finds_nothing_where_nothing_was_changed(shared: Door) -> None:
    with check_aliasing(shared.guard) as checker:
        for _ in range(3):
            value = await shared.get_or_set("k", lambda: [1, {"a": Basket([])}])
            assert value[0] == 1
            [*value].append(2)
        await shared.get_or_set("text", lambda: "a")
        await shared.get_or_set("none", lambda: None)
    assert checker.changes == []
    assert str(checker) == "no value in L1 was changed"


async def test_the_check_finds_nothing_with_l1_copy(open_door: OpenDoor, redis_url: str) -> None:
    door = open_door(CacheGuard(redis_url, l1_copy=True))
    with check_aliasing(door.guard):
        for _ in range(3):
            (await door.get_or_set("k", lambda: [1])).append(2)


async def test_the_check_says_what_it_cannot_compare(open_door: OpenDoor) -> None:
    door = open_door(CacheGuard("memory://"))
    with check_aliasing(door.guard) as checker:
        await door.get_or_set("k", lambda: [threading.Lock()])
        await door.get_or_set("k", list)
    assert checker.unchecked == ["cg:cacheguard:e:k"]


async def test_the_check_sees_what_was_there_before_and_ends_with_its_block(open_door: OpenDoor) -> None:
    door = open_door(CacheGuard("memory://"))
    held = await door.get_or_set("k", lambda: [1])
    with pytest.raises(AliasingError), check_aliasing(door.guard):
        held.append(2)
    held.append(3)
    with check_aliasing(door.guard):
        assert await door.get_or_set("k", lambda: [0]) == [1, 2, 3]


async def test_an_exception_of_the_block_gets_the_changes_as_a_note(open_door: OpenDoor) -> None:
    door = open_door(CacheGuard("memory://"))

    async def use() -> None:
        (await door.get_or_set("k", lambda: [1])).append(2)
        await door.get_or_set("k", lambda: [1])
        raise RuntimeError("the test's own")

    with pytest.raises(RuntimeError, match="own") as caught, check_aliasing(door.guard):
        await use()
    assert "k was changed" in caught.value.__notes__[0]


async def test_an_invalidated_value_may_be_changed(open_door: OpenDoor) -> None:
    door = open_door(CacheGuard("memory://"))
    with check_aliasing(door.guard):
        held = await door.get_or_set("k", lambda: [1])
        await door.invalidate("k")
        held.append(2)
        assert await door.get_or_set("k", lambda: [1]) == [1]
