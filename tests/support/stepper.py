"""Runs coroutines one step at a time, in an order that the test chooses, on a clock that the test moves.

A step ends where its coroutine pauses. The pause says what the next step will touch, so that a search can leave out
orders that differ only in steps which cannot notice each other.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Coroutine, Generator, Iterator, Mapping
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from typing import Any

ANYTHING = frozenset({"*"})
NOTHING: frozenset[str] = frozenset()

Choose = Callable[[Mapping[str, "Pause"]], str]


class Cancelled(BaseException):
    """What a cancelled actor meets where it pauses."""


class Crashed(BaseException):
    """What an actor meets whose process is no more."""


class Redundant(Exception):  # noqa: N818 - a verdict, not a fault
    """The schedule so far leads to where another one has been."""


@dataclass(slots=True, eq=False)
class Pause:
    """A place where another actor may run.

    Args:
        label: what comes next, for the trace.
        reads: what the next step looks at.
        writes: what it may change.
        ready: whether it may go on yet; None: at once.
        until: the time from which on it may go on in any case.
    """

    label: str
    reads: frozenset[str] = NOTHING
    writes: frozenset[str] = NOTHING
    ready: Callable[[], bool] | None = None
    until: float | None = None

    def collides(self, other: Pause) -> bool:
        """Whether the order of the two steps can make a difference."""
        if self.writes is ANYTHING or other.writes is ANYTHING:
            return True
        return bool(self.writes & (other.reads | other.writes) or other.writes & self.reads)


@types.coroutine
def stop_at(pause: Pause) -> Generator[Pause, None, None]:
    """Let others run."""
    yield pause


@dataclass(slots=True, eq=False)
class Actor:
    """A coroutine on its way."""

    name: str
    work: Coroutine[Any, Any, Any]
    place: str
    context: Context
    pause: Pause
    children: int = 0
    blow: BaseException | None = None  # thrown into it at its next step
    seen: int = 0  # the version of the world that it was shown last


@dataclass
class Stepper:
    """Who is on the way, what time it is, and what has happened."""

    now: float = 1000.0
    actors: dict[str, Actor] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    trace: list[tuple[str, str]] = field(default_factory=list)
    _running: Actor | None = None

    @property
    def actor(self) -> Actor:
        """Who moves now."""
        assert self._running is not None, "nobody moves now"
        return self._running

    def add(self, name: str, work: Coroutine[Any, Any, Any], place: str, pause: Pause | None = None) -> Actor:
        """Let *work* take part, in the process called *place*."""
        pause = pause or Pause("starts", writes=frozenset({place}))
        actor = self.actors[name] = Actor(name, work, place, copy_context(), pause)
        return actor

    def spawn(self, kind: str, work: Coroutine[Any, Any, Any], pause: Pause | None = None) -> Actor:
        """Let *work* take part beside the actor that runs now, in the same process."""
        parent = self.actor
        parent.children += 1
        return self.add(f"{parent.name}.{kind}{parent.children}", work, parent.place, pause)

    def movable(self) -> dict[str, Pause]:
        """Whose turn it may be."""
        return {name: actor.pause for name, actor in self.actors.items() if self._can_move(actor)}

    def _can_move(self, actor: Actor) -> bool:
        pause = actor.pause
        if pause.ready is None or actor.blow is not None or pause.ready():
            return True
        return pause.until is not None and self.now >= pause.until

    def run(self, choose: Choose, limit: int = 500) -> None:
        """Go on until everyone has ended; time passes only when nobody else can move."""
        for _ in range(limit):
            if not self.actors:
                return
            movable = self.movable()
            if movable:
                self.step(choose(movable))
            else:
                self._wait()
        raise AssertionError(f"no end after {limit} steps; the last ones: {self.trace[-12:]}")

    def _wait(self) -> None:
        ends = [actor.pause.until for actor in self.actors.values() if actor.pause.until is not None]
        if not ends:
            raise AssertionError(f"nobody can move: {[(a.name, a.pause.label) for a in self.actors.values()]}")
        self.now = min(ends)

    def step(self, name: str) -> None:
        """Let one actor go on to its next pause."""
        actor = self.actors[name]
        self.trace.append((name, actor.pause.label if actor.blow is None else type(actor.blow).__name__))
        blow, actor.blow = actor.blow, None
        move: Callable[[], Pause] = (
            (lambda: actor.work.send(None)) if blow is None else (lambda: actor.work.throw(blow))
        )
        outer, self._running = self._running, actor
        try:
            actor.pause = actor.context.run(move)
        except StopIteration as stop:
            self._end(actor, stop.value)
        except (Exception, Cancelled, Crashed) as error:  # noqa: BLE001 - it is the actor's result
            self._end(actor, error)
        finally:
            self._running = outer

    def _end(self, actor: Actor, result: object) -> None:
        self.actors.pop(actor.name, None)
        self.results[actor.name] = result

    def cancel(self, name: str) -> None:
        """Cancel an actor, if it is still on the way."""
        if name in self.actors:
            self.actors[name].blow = Cancelled()

    def dismiss(self, actor: Actor) -> None:
        """Send an actor away that waits."""
        if self.actors.get(actor.name) is actor and actor is not self._running:
            del self.actors[actor.name]
            actor.work.close()

    def kill(self, place: str) -> None:
        """End the actors of one process where they stand. Their process must answer every call with `Crashed`."""
        for actor in [actor for actor in self.actors.values() if actor.place == place]:
            if actor.name not in self.actors:
                continue  # sent away by one that ended before it
            if actor.pause.label == "starts":
                actor.work.close()
                del self.actors[actor.name]
            else:
                actor.blow = Crashed()
                self.step(actor.name)


@dataclass(slots=True)
class _Fork:
    """One choice of a schedule."""

    moves: dict[str, Pause]
    asleep: set[str]  # moves whose schedules have been seen already, from here or from an equivalent place
    choice: str = ""

    def choose(self) -> bool:
        """Take the next move that leads to something new; false if none does."""
        for name in self.moves:
            if name not in self.asleep:
                self.choice = name
                return True
        return False


class Exploration:
    """Every schedule, depth first, and of those that differ only in the order of independent steps about one.

    The pruning is that of sleep sets (Godefroid, Partial-Order Methods, 1996): what was explored from a fork is not
    explored again behind its siblings until a step collides with it.
    """

    def __init__(self) -> None:
        self._forks: list[_Fork] = []
        self._depth = 0

    def schedules(self) -> Iterator[Choose]:
        """One chooser for each run; the run is over when `Redundant` comes out of it, too."""
        while True:
            self._depth = 0
            yield self._choose
            while self._forks:
                last = self._forks[-1]
                last.asleep.add(last.choice)
                if last.choose():
                    break
                self._forks.pop()
            if not self._forks:
                return

    def _choose(self, movable: Mapping[str, Pause]) -> str:
        if self._depth == len(self._forks):
            fork = _Fork(dict(movable), self._inherited(movable))
            if not fork.choose():
                raise Redundant
            self._forks.append(fork)
        fork = self._forks[self._depth]
        # The same names at the same place, or what runs is not a function of the schedule.
        assert fork.moves.keys() == movable.keys(), (sorted(fork.moves), sorted(movable))
        fork.moves = dict(movable)
        self._depth += 1
        return fork.choice

    def _inherited(self, movable: Mapping[str, Pause]) -> set[str]:
        if not self._forks:
            return set()
        fork = self._forks[-1]
        step = fork.moves[fork.choice]
        return {name for name in fork.asleep if name in movable and not fork.moves[name].collides(step)}
