"""One process on a fake clock, for tests of the engine that need no second one: each call runs to its end."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

from cacheguard.engine.ask import Ask, opened, stored_of
from cacheguard.engine.batch import Batch
from cacheguard.policy import Policy, Rules, resolve
from tests.support.judged import ModelServer
from tests.support.schedules import following
from tests.support.stepped import Fault, Process
from tests.support.stepper import Stepper

KEY = "k"


@dataclass
class Loader:
    """What a user's function does: takes its time, then returns or raises; it counts its runs."""

    desk: Desk
    answer: Any
    seconds: float = 0.0
    runs: int = 0

    async def __call__(self, *_: Any) -> Any:
        self.runs += 1
        until = self.desk.now + self.seconds
        await self.desk.process.pause("loads", ready=lambda: self.desk.now >= until, until=until)
        answer = self.answer
        if callable(answer):
            answer = answer()
        if isinstance(answer, Coroutine):
            answer = await answer
        if isinstance(answer, Exception):
            raise answer
        return answer


@dataclass
class Desk:
    """A process, its Redis, and a clock that moves only when everybody waits.

    Args:
        threads: callers block; without, they are tasks.
        options: fields of the policy; there is no jitter unless asked for.
    """

    threads: bool = True
    options: dict[str, Any] = field(default_factory=dict)
    begun: int = 0
    faults: dict[str, Fault] = field(default_factory=dict)  # by the names of the calls in a round trip

    def __post_init__(self) -> None:
        self.stepper = Stepper()
        self.server = ModelServer(self.stepper)
        self.process = self.neighbour("A")
        self.engine, self.events, self.local = self.process.engine, self.process.events, self.process.local

    def neighbour(self, name: str) -> Process:
        """Another process on the same Redis."""
        return Process(name, self.stepper, self.server, threads=self.threads, fault=self._fault)

    def _fault(self, place: str, label: str) -> Fault:
        return self.faults.get(label, Fault.NONE) if place == "A" else Fault.NONE

    @property
    def now(self) -> float:
        return self.stepper.now

    def rules(self, **options: Any) -> Rules:
        return resolve(Policy(**({"jitter": None} | self.options | options)))

    def loader(self, answer: Any, seconds: float = 0.0) -> Loader:
        return Loader(self, answer, seconds)

    def ask(self, load: Callable[[], Any], key: str = KEY, **options: Any) -> Ask:
        return Ask(key, self.rules(**options), None, load, ())

    def run(self, *works: Coroutine[Any, Any, Any], process: Process | None = None) -> Any:
        """Run *works* side by side to their ends; the result of the first, or its exception."""
        names = self.begin(*works, process=process)
        self.go()
        return self.result(names[0])

    def begin(self, *works: Coroutine[Any, Any, Any], process: Process | None = None) -> list[str]:
        """Let *works* take part from now on; their names."""
        first = self.begun + 1
        self.begun += len(works)
        names = [f"work {number}" for number in range(first, self.begun + 1)]
        for name, work in zip(names, works, strict=True):
            self.stepper.add(name, work, (process or self.process).name)
        return names

    def go(self) -> None:
        """Let everybody come to an end."""
        self.stepper.run(following(), limit=5000)

    def settle(self) -> None:
        """Let everybody go on until all of them wait for time to pass."""
        while movable := self.stepper.movable():
            self.stepper.step(next(iter(movable)))

    def cancel(self, name: str, *, when: Callable[[], bool]) -> None:
        """Cancel a work as soon as *when* says so."""

        async def watch() -> None:
            await self.process.pause("watches", ready=when)
            self.stepper.cancel(name)

        self.begin(watch())

    def refuse_detached(self) -> None:
        """Let there be no room for work that nobody waits for."""
        runtime: Any = self.process.runtime
        honest = runtime.start

        async def start(work: Coroutine[Any, Any, None], *, detached: bool) -> bool:
            if detached:
                work.close()
                return False
            return bool(await honest(work, detached=detached))

        runtime.start = start

    def result(self, name: str) -> Any:
        """What a work came to."""
        result = self.stepper.results[name]
        if isinstance(result, BaseException):
            raise result
        return result

    def read(self, load: Callable[[], Any], key: str = KEY, **options: Any) -> Any:
        """One read by a caller who looks into the in-process tier first."""
        rules = self.rules(**options)
        entry = self.local.find(key) if rules.l1 else None
        if entry is not None and self.now < entry.until:
            return opened(stored_of(entry), rules)
        return self.run(self.engine.read(self.ask(load, key, **options)))

    def batch(self, load: Callable[[list[str]], Any], *keys: str, **options: Any) -> Coroutine[Any, Any, Any]:
        """One read of several keys, to be run."""
        asks: Mapping[str, Ask] = {key: self.ask(self.loader(f"alone {key}"), key, **options) for key in keys}
        return Batch(self.engine, asks, {key: key for key in keys}, load).read()

    def pass_by(self, seconds: float) -> None:
        """Time passes."""
        self.stepper.now += seconds
