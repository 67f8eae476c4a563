"""Every checker is checked: a deadline that ends with another one, and news that some tier does not hear."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from cacheguard.engine.here import Here
from cacheguard.protocol.messages import Drop
from cacheguard.protocol.model import MemoryCommands
from cacheguard.protocol.state import State
from tests.support.redis_server import NoRedisError, RedisServer
from tests.support.schedules import Pick, beside_world, cleared_world, deadline_world, violation
from tests.support.stepped_redis import RealRedis, RealServer, Tamper, planted
from tests.support.witness import Witness
from tests.support.world import World

Plant = Callable[[pytest.MonkeyPatch], None]
After = Callable[[State, int, tuple[Any, ...], Any], None]
Build = Callable[[Pick], World]
SECONDS = 55.0

touch_world = partial(deadline_world, about="a touch")
slow_world = partial(deadline_world, about="a slow load")
old_world = partial(deadline_world, about="an old value")
QUARANTINE, FLOOR, WRITE = "a quarantine ends before", "a version floor ends before", "a write under way ends before"
OUTLIVES, PROVEN, OLD = "a value outlives a quarantine", "is proven by another version", "had been acknowledged"


def after(name: str, spoil: After) -> Plant:
    """The script of that name, with something done afterwards to what is under the key."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        honest = getattr(MemoryCommands, f"_{name}")

        def broken(self: MemoryCommands, state: State, now: int, key: str, *args: Any) -> Any:
            reply = honest(self, state, now, key, *args)
            spoil(state, now, args, reply)
            return reply

        patch.setattr(MemoryCommands, f"_{name}", broken)

    return plant


def before(name: str, spoil: Callable[[State], None]) -> Plant:
    """The script of that name, with something done beforehand to what is under the key."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        honest = getattr(MemoryCommands, f"_{name}")

        def broken(self: MemoryCommands, state: State, *args: Any) -> Any:
            spoil(state)
            return honest(self, state, *args)

        patch.setattr(MemoryCommands, f"_{name}", broken)

    return plant


def ends_with_the_value(state: State, _now: int, _args: tuple[Any, ...], reply: Any) -> None:
    """As if there were one TTL for all."""
    if reply in {1, 2} and state.quarantine is not None:
        state.quarantine[0] = min(state.quarantine[0], state.fresh - 1)


def ends_with_an_absence(state: State, _now: int, args: tuple[Any, ...], reply: Any) -> None:
    if reply in {1, 2} and not args[4]:
        state.floor = None


def forgets_the_floor(state: State, _now: int, _args: tuple[Any, ...], _reply: Any) -> None:
    state.floor = None


def forgets_the_writes(state: State, _now: int, _args: tuple[Any, ...], _reply: Any) -> None:
    state.writes.clear()


def forgets_what_it_was_loaded_in(state: State, _now: int, _args: tuple[Any, ...], reply: Any) -> None:
    if reply[0] == b"GRANTED" and state.lease is not None:
        del state.lease[4:]


def forgets_the_quarantine_of_the_value(state: State) -> None:
    state.latest = None


def forgets_the_longer_quarantine(state: State) -> None:
    state.quarantine = None


def a_value_goes_without_a_floor(patch: pytest.MonkeyPatch) -> None:
    def broken(self: State, _now: int) -> None:
        self.value = self.version = self.latest = None

    patch.setattr(State, "let_go", broken)


def one_version_proves_all_quarantines(patch: pytest.MonkeyPatch) -> None:
    honest = MemoryCommands._quarantine  # noqa: SLF001 - the part to be broken

    def broken(self: MemoryCommands, state: State, now: int, ms: int, version: str, under: bytes) -> None:
        honest(self, state, now, ms, version, under)
        if version and state.quarantine is not None:
            state.quarantine[2:] = version, under

    patch.setattr(MemoryCommands, "_quarantine", broken)


def one_floor_for_all_names(patch: pytest.MonkeyPatch) -> None:
    honest = State.raise_floor

    def broken(self: State, *args: Any) -> None:
        honest(self, *args)
        self.floors.clear()

    patch.setattr(State, "raise_floor", broken)


@pytest.mark.parametrize(
    ("plant", "about", "build"),
    [
        (after("fill", ends_with_the_value), QUARANTINE, deadline_world),
        (after("fill", ends_with_an_absence), FLOOR, deadline_world),
        (after("store", forgets_the_floor), FLOOR, deadline_world),
        (after("expire", forgets_the_writes), WRITE, deadline_world),
        (after("lease", forgets_what_it_was_loaded_in), OUTLIVES, slow_world),
        (before("lease", forgets_the_quarantine_of_the_value), OUTLIVES, old_world),
        (before("touch", forgets_the_quarantine_of_the_value), OUTLIVES, touch_world),
        (before("invalidate", forgets_the_longer_quarantine), QUARANTINE, deadline_world),
        (a_value_goes_without_a_floor, FLOOR, deadline_world),
        (one_version_proves_all_quarantines, PROVEN, deadline_world),
        (one_floor_for_all_names, FLOOR, cleared_world),
    ],
)
def test_a_deadline_that_ends_with_another_is_found(
    plant: Plant, about: str, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    assert violation(build, about, seconds=SECONDS) is not None


# The same and others, as readers notice them.


def news_says(**what: Any) -> Plant:
    """Messages leave out a part of what they have to say."""

    def plant(patch: pytest.MonkeyPatch) -> None:
        honest = Here.heard
        patch.setattr(Here, "heard", lambda self, news: honest(self, replace(news, **what)))

    return plant


def news_is_for_redis_only(patch: pytest.MonkeyPatch) -> None:
    def broken(_self: Here, _news: Drop) -> None:
        """Hear nothing."""

    patch.setattr(Here, "heard", broken)


def what_is_kept_here_is_not_for_the_writer(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Here, "forget", lambda *_: None)


@pytest.mark.parametrize(
    ("plant", "build"),
    [
        (before("fill", forgets_the_longer_quarantine), deadline_world),
        (after("lease", forgets_what_it_was_loaded_in), slow_world),
        (before("touch", forgets_the_quarantine_of_the_value), touch_world),
        (news_says(quarantine_ms=0), beside_world),
        (news_says(floor=""), beside_world),
        (news_is_for_redis_only, beside_world),
        (what_is_kept_here_is_not_for_the_writer, beside_world),
    ],
)
def test_readers_notice_a_lost_deadline_and_lost_news(
    plant: Plant, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Witness, "saw", lambda *_: None)
    plant(monkeypatch)
    assert violation(build, OLD, seconds=SECONDS) is not None


# In the scripts, on a real server.


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    try:
        server = RedisServer()
    except NoRedisError as error:
        pytest.skip(str(error))
    with server:
        yield server.port


@pytest.mark.parametrize(
    ("tamper", "about", "build"),
    [
        (planted("fill", "c.l = nil", "c.l, c.q = nil, nil"), QUARANTINE, deadline_world),
        (planted("store", "void(e)", "void(e) e.c.f = nil"), FLOOR, deadline_world),
        (planted("expire", "void(e)", "void(e) e.c.w = nil"), WRITE, deadline_world),
        (planted("touch", "if e.c.b then", "if false then"), OUTLIVES, touch_world),
        (planted("lease", "if c.q then", "if false then"), OUTLIVES, slow_world),
        (planted("lease", "outlive(e, ton", "e.c.b = nil outlive(e, ton"), OUTLIVES, old_world),
        (planted("invalidate", "if q[1] > last then last, life = q[1], q[2] end", ""), QUARANTINE, deadline_world),
        (planted("prelude", "if n then raise_floor", "if false then raise_floor"), FLOOR, deadline_world),
        pytest.param(
            planted("prelude", "'PEXPIREAT', e.key, last)", "'PEXPIREAT', e.key, math.max(now + 1, e.dead))"),
            "too early",
            deadline_world,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_bug_in_a_script_is_found_on_a_real_server(
    port: int, tamper: Tamper, about: str, build: Callable[..., World]
) -> None:
    redis = RealRedis(port, tamper)
    try:
        assert violation(lambda pick: build(pick, partial(RealServer, redis=redis)), about, seconds=SECONDS)
    finally:
        redis.close()
