"""Which node is asked, and how far the in-process tier may be trusted, under a clock of the test's own."""

from __future__ import annotations

import math
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest

from cacheguard.delivery.bus import Bus
from cacheguard.delivery.outbox import Invalidation
from cacheguard.errors import Refused, Unreachable
from cacheguard.events import Events
from cacheguard.protocol.messages import Drop, Woken
from cacheguard.runtime import run_now
from cacheguard.servers.buses import Trust
from cacheguard.servers.hashing import HashRing
from cacheguard.servers.members import DOUBT, FAILURES, GRACE, RETRY_AFTER, Members
from cacheguard.servers.ring import Ring
from cacheguard.servers.ring_commands import RingCommands
from cacheguard.tiers.held import DEAD, Entry
from cacheguard.tiers.local import Local
from cacheguard.tiers.remote import Remote
from tests.support.entries import entry as entry_of

NAMES = ("a:1", "b:1", "c:1")


class World:
    """Three nodes of which nothing is real but the rules."""

    def __init__(self, *, moves: bool = True) -> None:
        self.now = 1000.0
        self.local = Local(100, None, "lru", nullcontext(), Events(), lambda: self.now)
        self.trust = Trust(self.local, NAMES)
        self.events = {name: Events(name) for name in NAMES}
        self.buses = {
            name: Bus("bus", name, self.forgotten, self.trust.of(name), self.events[name], now=lambda: self.now)
            for name in NAMES
        }
        self.members = Members(
            HashRing(dict.fromkeys(NAMES, 1)), self.buses, self.events, lambda: self.now, moves=moves
        )
        self.trust.concerns = self.members.concerns

    def forgotten(self, news: Drop | Woken) -> None:
        self.local.drop(news.key)

    def fail(self, name: str, times: int = FAILURES) -> None:
        for _ in range(times):
            self.events[name].redis_failed(Unreachable("no"))
        self.events[name].failed_at = self.now

    def prove(self, name: str) -> None:
        """A heartbeat goes out and comes back."""
        bus = self.buses[name]
        if not bus.joined_in:
            bus.joined(self.now)
        ((_, text),) = bus.beat(self.now, [""])
        assert bus.hear_beat(text)

    def keep(self, key: str) -> Entry:
        entry = entry_of(until=math.inf)
        assert self.local.put(key, entry, self.local.tickets.take(), absence=False)
        return entry


def test_where_keys_do_not_move_a_node_is_asked_however_often_it_fails() -> None:
    world = World(moves=False)
    home = world.members.home_of("key")
    world.fail(home, 100)
    assert world.members.current("key") == home
    assert world.members.candidates("key") == (home,)
    assert world.members.instead_of(home, "key") is None


def test_a_node_is_away_after_some_failures_and_until_its_bus_has_been_proven_for_a_while() -> None:
    world = World()
    home, standby = world.members.candidates("key")
    world.fail(home, FAILURES - 1)
    assert world.members.current("key") == home
    world.fail(home, 1)
    assert world.members.current("key") == standby
    assert world.members.instead_of(home, "key") == standby
    world.now += 1
    world.prove(home)
    assert world.members.current("key") == standby
    world.now += GRACE - 0.01
    assert world.members.current("key") == standby
    world.now += 0.02
    assert world.members.current("key") == home
    world.fail(home, 1)  # it never answered in between
    assert world.members.current("key") == standby


def test_a_node_whose_bus_is_never_proven_is_tried_again_in_the_end() -> None:
    world = World()
    home = world.members.home_of("key")
    world.fail(home)
    world.now += RETRY_AFTER - 0.01
    assert world.members.current("key") != home
    world.now += 0.02
    assert world.members.current("key") != home  # left alone a little longer, as ever
    world.now += GRACE
    assert world.members.current("key") == home
    world.events[home].redis_answered()
    assert world.members.current("key") == home


def test_a_node_whose_breaker_stays_open_is_away_and_one_whose_breaker_closes_at_once_is_not() -> None:
    world = World()
    home = world.members.home_of("key")
    world.fail(home, 1)
    world.events[home].breaker = "open"
    assert world.members.current("key") == home
    world.now += DOUBT
    assert world.members.current("key") != home
    world.events[home].breaker = "half-open"
    world.now += 60
    assert world.members.current("key") != home
    world.events[home].breaker = "closed"
    world.prove(home)
    assert world.members.current("key") != home
    world.now += GRACE
    assert world.members.current("key") == home


def test_a_node_that_refuses_is_not_away() -> None:
    world = World()
    home = world.members.home_of("key")
    for _ in range(10):
        world.events[home].redis_failed(Refused("OOM"))
    assert world.members.current("key") == home


def test_where_home_and_standby_are_away_home_is_asked() -> None:
    world = World()
    home, standby = world.members.candidates("key")
    world.fail(home)
    world.fail(standby)
    assert world.members.current("key") == home
    assert world.members.instead_of(home, "key") is None


def test_the_tier_is_trusted_as_long_as_every_node_is_proven_or_away() -> None:
    world = World()
    assert world.keep("key").until == math.inf  # before anybody has a say
    world.trust.reset()
    world.prove("a:1")
    world.prove("b:1")
    assert world.local.trusted_until == DEAD
    world.now += 1
    world.buses["c:1"].alone(world.now)
    assert world.local.trusted_until == 1003.0  # of those that were proven first
    world.now += 1
    world.prove("a:1")
    world.prove("b:1")
    assert world.local.trusted_until == 1004.0
    world.buses["a:1"].lost()
    assert world.local.trusted_until == DEAD
    world.prove("b:1")
    assert world.local.trusted_until == DEAD
    world.prove("a:1")
    assert world.local.trusted_until == 1004.0


def test_a_node_that_is_back_takes_only_its_own_entries_with_it() -> None:
    world = World(moves=False)
    keys = [f"key:{number}" for number in range(30)]
    entries = {key: world.keep(key) for key in keys}
    world.buses["a:1"].joined(world.now)
    for key in keys:
        assert (world.local.find(key) is None) is (world.members.home_of(key) == "a:1")
        assert (entries[key].common.kept_until == DEAD) is (world.members.home_of(key) == "a:1")


def test_where_keys_move_it_takes_those_that_it_stands_by_for_too() -> None:
    world = World()
    keys = [f"key:{number}" for number in range(30)]
    for key in keys:
        world.keep(key)
    world.buses["a:1"].joined(world.now)
    for key in keys:
        assert (world.local.find(key) is None) is ("a:1" in world.members.candidates(key))


class Answers:
    """A node that answers each call with its name, or not at all."""

    def __init__(self, name: str, error: BaseException | None = None) -> None:
        self.name, self.error = name, error
        self.asked: list[Any] = []
        self.pending: list[Invalidation] = []

    async def invalidate(self, items: list[Invalidation]) -> bool:
        self.asked += items
        if self.error is not None:
            raise self.error
        return True

    def queue(self, items: list[Invalidation]) -> None:
        self.pending += items

    async def send_each(self, *calls: Any) -> list[str]:
        self.asked += calls
        return [f"{self.name} {call[1]}" for call in calls]

    async def masters(self) -> list[Any]:
        return [self]


class OneAfterTheOther:
    async def each(self, works: list[Any], most: int) -> list[Any]:
        assert most == 1
        return [await work() for work in works]


def test_who_is_interrupted_while_telling_the_nodes_owes_it_to_those_whose_turn_had_not_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(moves=False)
    nodes = {name: Answers(name) for name in NAMES}
    nodes["b:1"].error = KeyboardInterrupt()
    monkeypatch.setattr(Remote, "invalidate", lambda node, items: node.invalidate(items))
    ring = Ring(OneAfterTheOther(), nodes, world.members, 1)  # type: ignore[arg-type]
    marker = Invalidation("cg:shop:m")
    with pytest.raises(KeyboardInterrupt):
        run_now(ring.invalidate([marker]))
    assert nodes["a:1"].asked == nodes["b:1"].asked == [marker]
    assert nodes["c:1"].asked == []
    assert nodes["c:1"].pending == [marker]  # b has been told, and sees to it by itself
    assert nodes["a:1"].pending == nodes["b:1"].pending == []


def test_calls_for_what_is_no_entry_go_to_the_node_of_their_key_and_come_back_in_order() -> None:
    world = World()
    nodes = {name: Answers(name) for name in NAMES}
    commands = RingCommands(nodes, world.members)  # type: ignore[arg-type]
    keys: list[str | bytes] = [f"key:{number}" for number in range(20)]
    keys += [b"bytes", *(f"cg:{{b:1}}:{number}" for number in range(5))]
    replies = run_now(commands.send(*(("GET", key) for key in keys)))
    text = partial(bytes.decode, encoding="utf-8")
    for key, reply in zip(keys, replies, strict=True):
        name = key if isinstance(key, str) else text(key)
        assert reply == f"{world.members.home_of(name)} {key}"  # type: ignore[str-bytes-safe]
    assert len({reply.split()[0] for reply in replies[-5:]}) == 1  # what is in braces keeps them together
    assert len(run_now(commands.masters())) == len(NAMES)


def test_a_refusal_among_them_is_raised() -> None:
    world = World()

    class Refuses(Answers):
        async def send_each(self, *calls: Any) -> list[Any]:
            return [Refused("no") for _ in calls]

    commands = RingCommands({name: Refuses(name) for name in NAMES}, world.members)  # type: ignore[misc]
    with pytest.raises(Refused):
        run_now(commands.send(("GET", "key")))
