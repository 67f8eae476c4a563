"""What is owed to one of several servers, while the others go on."""

from __future__ import annotations

from typing import Any

import pytest

from cacheguard.delivery.gate import Gate
from cacheguard.delivery.outbox import Invalidation
from cacheguard.errors import Unreachable
from cacheguard.ports import Call, PartlyUnreachable, Reply, ScriptCall
from cacheguard.tiers.remote import Remote
from tests.support.desk import KEY, Desk
from tests.support.stepped import SteppedCommands

ELSEWHERE = "on another server"


class Apart(Desk):
    """A desk whose Redis is several servers; those of the keys in `away` cannot be asked."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        super().__init__(options={"l1": False})
        self.away: set[str] = set()
        self.asked: list[str] = []
        honest = SteppedCommands.send_each

        async def send_each(commands: Any, *calls: Call) -> list[Reply]:
            keys = [call.keys[0] if isinstance(call, ScriptCall) else str(call[-1]) for call in calls]
            self.asked += keys
            there = [at for at, key in enumerate(keys) if key not in self.away]
            answers = dict(zip(there, await honest(commands, *(calls[at] for at in there)), strict=True))
            error = Unreachable("away")
            replies = [answers.get(at, error) for at in range(len(calls))]
            if len(there) < len(calls):
                raise PartlyUnreachable(replies, error)
            return replies

        patch.setattr(SteppedCommands, "send_each", send_each)

    @property
    def gate(self) -> Gate:
        remote = self.engine.remote
        assert isinstance(remote, Remote)
        return remote.gate

    def lose(self, *keys: str) -> None:
        """Somebody invalidates *keys* while their servers are away."""
        self.away |= set(keys)
        assert not self.run(self.engine.changes.invalidate([Invalidation(key) for key in keys]))
        self.asked.clear()


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> Apart:
    desk = Apart(monkeypatch)
    for key in (KEY, ELSEWHERE):
        desk.read(desk.loader("old"), key)
    return desk


def test_a_key_of_another_server_is_read_without_a_try_to_deliver(apart: Apart) -> None:
    apart.lose(KEY)
    load = apart.loader("new")
    assert apart.read(load, ELSEWHERE) == "old"
    assert load.runs == 0
    assert KEY not in apart.asked
    assert apart.events.invalidations_queued == 1


def test_what_is_owed_is_delivered_before_its_own_key_is_read(apart: Apart) -> None:
    apart.lose(KEY)
    assert apart.read(apart.loader("new")) == "new"
    assert apart.events.invalidations_queued == 1
    apart.away.clear()
    assert apart.read(apart.loader("newer")) == "newer"
    assert apart.events.invalidations_queued == 0


def test_a_server_that_is_back_is_not_read_before_what_is_owed_could_be_delivered(
    apart: Apart, monkeypatch: pytest.MonkeyPatch
) -> None:
    apart.lose(KEY)
    answer = apart.server.answer
    monkeypatch.setattr(
        apart.server, "answer", lambda call: Unreachable("still") if isinstance(call, ScriptCall) else answer(call)
    )
    apart.away.clear()
    assert apart.read(apart.loader("new")) == "new"
    left = apart.server.stored(KEY)
    assert left is not None
    assert left.value == "old"


def test_of_several_keys_only_those_are_owed_whose_servers_are_away(apart: Apart) -> None:
    apart.away = {KEY}
    assert not apart.run(apart.engine.changes.invalidate([Invalidation(KEY), Invalidation(ELSEWHERE)]))
    assert apart.events.invalidations_queued == 1
    assert apart.server.value(ELSEWHERE, stale=True) is None
    assert apart.server.value(KEY, stale=True) is not None


def test_after_a_while_somebody_tries_even_if_nobody_listens(apart: Apart) -> None:
    apart.lose(KEY)
    apart.away.clear()
    apart.read(apart.loader("new"), ELSEWHERE)
    assert apart.events.invalidations_queued == 1
    apart.pass_by(3)
    apart.read(apart.loader("new"), ELSEWHERE)
    assert apart.events.invalidations_queued == 0
    assert apart.server.value(KEY, stale=True) is None


def test_who_listens_delivers_what_was_set_aside_and_tells_the_others_meanwhile(
    apart: Apart, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []
    monkeypatch.setattr(apart.server, "tell", heard.append)
    apart.lose(KEY)
    assert heard == [f"2 dirty {KEY}"]
    apart.run(apart.gate.deliver_pending())
    assert heard == [f"2 dirty {KEY}"] * 2
    apart.away.clear()
    apart.run(apart.gate.deliver_pending())
    assert heard[2:] == [f"2 drop - 0 0 - {KEY}"]
    assert apart.events.invalidations_queued == 0


def test_the_same_owed_twice_is_struck_off_once_it_is_delivered(apart: Apart) -> None:
    apart.lose(KEY)
    apart.lose(KEY)
    assert apart.events.invalidations_queued == 1
    apart.away.clear()
    assert apart.read(apart.loader("new")) == "new"
    assert apart.events.invalidations_queued == 0


def test_different_things_owed_under_one_key_are_all_delivered(apart: Apart) -> None:
    apart.away = {KEY}
    for lag_ms in (1000, 2000):
        assert not apart.run(apart.engine.changes.invalidate([Invalidation(KEY, lag_ms=lag_ms)]))
    assert apart.events.invalidations_queued == 2
    apart.away.clear()
    apart.run(apart.gate.deliver_pending())
    assert apart.events.invalidations_queued == 0


def test_more_than_can_be_set_aside_becomes_one_of_the_whole_namespace(
    apart: Apart, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cacheguard.delivery.outbox.MOST_PENDING", 1)
    apart.lose(KEY)
    apart.lose(ELSEWHERE)
    assert [item.key for item in apart.process.outbox.pending] == ["cg:world:m"]
    assert apart.events.invalidations_queued == 1


def test_a_lease_that_may_have_been_granted_is_given_back_when_its_server_is_back(apart: Apart) -> None:
    gate = apart.gate
    apart.away = {KEY}
    gate.orphaned({KEY: "token"})
    assert apart.read(apart.loader("new"), ELSEWHERE) == "old"
    apart.asked.clear()
    assert apart.read(apart.loader("new"), ELSEWHERE) == "old"
    assert KEY not in apart.asked
    apart.away.clear()
    apart.asked.clear()
    apart.read(apart.loader("new"))
    assert apart.asked[:1] == [KEY]


@pytest.mark.parametrize("keys", [[KEY], [KEY, ELSEWHERE]], ids=["the short way", "the usual way"])
def test_an_answer_is_not_used_if_another_thread_meets_another_server_meanwhile(
    monkeypatch: pytest.MonkeyPatch, keys: list[str]
) -> None:
    desk = Desk(options={"l1": False})
    answer, said = desk.server.answer, []

    def listens(call: Call) -> Reply:
        said.append(answer(call))
        return said[-1]

    def is_another(call: Call) -> Reply:
        if not said:
            return answer(call)
        if (
            len(said) == before
        ):  # here the other thread, to which the new server has spoken first, queues what it may lack
            desk.process.outbox.replay()
        return said.pop(0)

    assert read_all(desk, keys, "old") == ["old"] * len(keys)
    monkeypatch.setattr(desk.server, "answer", listens)
    assert read_all(desk, keys, "new") == ["old"] * len(keys)
    before = len(said)
    monkeypatch.setattr(desk.server, "answer", answer)
    desk.run(desk.engine.changes.invalidate([Invalidation(key) for key in keys]))
    monkeypatch.setattr(desk.server, "answer", is_another)
    assert read_all(desk, keys, "new") == ["new"] * len(keys)
    assert not said


def read_all(desk: Desk, keys: list[str], value: str) -> list[str]:
    """What *keys* have; who has nothing loads *value*."""
    if len(keys) == 1:
        return [desk.read(desk.loader(value), keys[0])]
    return list(desk.run(desk.batch(desk.loader(dict.fromkeys(keys, value)), *keys)).values())


def test_the_first_answer_after_an_outage_says_that_redis_is_back() -> None:
    desk = Desk(options={"l1": False})
    desk.read(desk.loader("old"))
    desk.events.redis_failed(Unreachable("away"))
    assert not desk.events.l2_up
    assert desk.read(desk.loader("new")) == "old"
    assert desk.events.l2_up
