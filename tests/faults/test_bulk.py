"""Many invalidations at once: the work grows with their number, and an event loop has its turn in between."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import anyio
import pytest

from benchmarks.gate.counting import Calls
from cacheguard import CacheGuard
from cacheguard.delivery.bus import Bus
from cacheguard.delivery.gate import Gate
from cacheguard.delivery.outbox import Invalidation, Outbox
from cacheguard.delivery.parts import MOST_AT_ONCE
from cacheguard.errors import Refused, Unreachable
from cacheguard.events import Events
from cacheguard.ports import Call, Commands, PartlyUnreachable, Reply, Script, ScriptCall
from cacheguard.protocol.calls import FILL, LEASE
from cacheguard.runtime import run_now
from tests.conftest import OpenDoor

FEW, MANY = 250, 1500
AS_MANY = MANY / FEW


class Servers:
    """Servers that answer every call in one way."""

    away = False

    def __init__(self, answer: Callable[[int], list[Reply]]) -> None:
        self.answer = answer

    async def send_each(self, *calls: Call) -> list[Reply]:
        return self.answer(len(calls))

    async def send(self, *calls: Call) -> list[Reply]:
        return await self.send_each(*calls)

    async def masters(self) -> Sequence[Commands]:
        return [self]


def gone(_: int) -> list[Reply]:
    raise Unreachable("away")


def partly(number: int) -> list[Reply]:
    error = Unreachable("away")
    raise PartlyUnreachable([error if at % 2 else 1 for at in range(number)], error)


ANSWERS: dict[str, Callable[[int], list[Reply]]] = {
    "acknowledged": lambda number: [1] * number,
    "refused": lambda number: [Refused("NOREPLICAS")] * number,
    "gone": gone,
    "partly gone": partly,
}
ITEMS: dict[str, Callable[[int], Invalidation]] = {
    "of many keys": lambda number: Invalidation(f"cg:n:1:{number}"),
    "of one key": lambda number: Invalidation("cg:n:1:k", version=f"{number:020d}"),
    "writes of one key": lambda number: Invalidation("cg:n:1:k", ends=f"{number}"),
}


class Kept:
    """Nothing is kept."""

    def pause(self) -> None: ...

    def drop_shared(self) -> None: ...

    def trust(self, until: float) -> None: ...


def steps(work: Callable[[], object]) -> int:
    """How many functions are called while *work* runs."""
    with Calls() as calls:
        work()
    return calls.count


def delivered(number: int, answer: str, items: str) -> int:
    """The steps of *number* invalidations that meet *answer*, and of their delivery later."""
    events = Events()
    outbox = Outbox("cg:n:m", events, lambda: 0.0)
    servers = Servers(ANSWERS[answer])
    gate = Gate(servers, events, outbox, Bus("c", "me", lambda _: None, Kept(), events, now=lambda: 0.0))
    what = [ITEMS[items](each) for each in range(number)]

    def work() -> None:
        run_now(gate.deliver(what))
        servers.answer = ANSWERS["acknowledged"]  # they are back
        run_now(gate.deliver_pending())
        outbox.replay()
        run_now(gate.deliver_pending())

    found = steps(work)
    assert outbox.count == 0
    return found


@pytest.mark.parametrize("items", ITEMS)
@pytest.mark.parametrize("answer", ANSWERS)
def test_the_steps_grow_as_the_invalidations_do(answer: str, items: str) -> None:
    few, many = delivered(FEW, answer, items), delivered(MANY, answer, items)
    assert many <= 1.3 * AS_MANY * few


def most_steps_at_once(guard: CacheGuard, number: int, verb: str) -> int:
    """Of *number* keys in one call, the most steps between two turns of the event loop."""

    async def main() -> int:
        most = last = 0
        keys: list[Any] = [f"row:{each}" for each in range(number)]
        task = asyncio.create_task(getattr(guard, verb)(*([[(key, 1) for key in keys]] if verb == "aapply" else keys)))
        with Calls() as calls:
            while not task.done():
                await asyncio.sleep(0)
                most, last = max(most, calls.count - last), calls.count
        await task
        return most

    return asyncio.run(main())


@pytest.mark.parametrize(
    "verb",
    [
        "ainvalidate",
        "aapply",
        *(pytest.param(verb, marks=pytest.mark.slow) for verb in ("aexpire", "aremove", "ainvalidate_tags")),
    ],
)
def test_an_event_loop_has_its_turn_however_many_there_are(verb: str) -> None:
    with CacheGuard("redis://127.0.0.1:1/0") as guard:  # nobody listens there
        few, many = (most_steps_at_once(guard, number, verb) for number in (1000, 4000))
    assert many <= 2 * few  # four times as many keys


# Batches that are sent in parts

PART_LOST = {
    "does not answer": Unreachable("away"),
    "takes no more": Refused("OOM command not allowed"),
}


@pytest.mark.parametrize("lost", PART_LOST)
@pytest.mark.parametrize("script", [LEASE, FILL], ids=["lease", "fill"])
async def test_a_part_of_a_batch_that_is_lost_takes_no_other_with_it(
    open_door: OpenDoor, redis_url: str, monkeypatch: pytest.MonkeyPatch, script: Script, lost: str
) -> None:
    door, count, parts = open_door(CacheGuard(redis_url, operation_timeout=10)), 2 * MOST_AT_ONCE + 1, 0
    names = [f"row:{number}" for number in range(count)]
    send = Gate.send

    async def losing(gate: Gate, *calls: Call, reading: bool = True) -> list[Reply]:
        nonlocal parts
        if isinstance(calls[0], ScriptCall) and calls[0].script is script:
            parts += 1
            if parts == 2:
                raise PART_LOST[lost]
        return await send(gate, *calls, reading=reading)

    monkeypatch.setattr(Gate, "send", losing)
    assert await door.get_or_set_many(names, dict.fromkeys, l1=False) == dict.fromkeys(names)
    assert parts == 3
    monkeypatch.undo()
    there = await door.get_many(names)
    ours = set(names[MOST_AT_ONCE : 2 * MOST_AT_ONCE])
    assert set(names) - set(there) == ours
    with anyio.fail_after(5):  # nobody waits for a lease of whom nobody knows
        assert await door.get_or_set_many(names, lambda some: dict.fromkeys(some, 2), l1=False) == {
            name: 2 if name in ours else None for name in names
        }
