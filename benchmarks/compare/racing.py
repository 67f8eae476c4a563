"""Contestants take turns, so that the noise of the machine meets them alike."""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from benchmarks.compare.figures import Figure, Measured, Timed, summary

Run = Callable[[], Timed]
AsyncRun = Callable[[], Coroutine[Any, Any, Timed]]


@dataclass(frozen=True)
class Contestant:
    """What is measured: a library, what of it is called, and one round of calls."""

    library: str
    how: str
    run: Any


def race(row: str, contestants: dict[str, Contestant], rounds: int) -> Measured:
    """Run *rounds* rounds of each, in turn, after one that does not count."""
    taken: dict[str, list[Timed]] = {name: [] for name in contestants}
    with _clean():
        for at in range(rounds + 1):
            for name in _turn(list(contestants), at):
                gc.collect()
                timed = contestants[name].run()
                if at:
                    taken[name].append(timed)
    return Measured(row, _figures(contestants, taken))


def race_runs(runs: dict[str, Run], rounds: int) -> dict[str, Figure]:
    """`race` of what has no name but its own."""
    return race("", {name: Contestant("", "", run) for name, run in runs.items()}, rounds).figures


async def arace(row: str, contestants: dict[str, Contestant], rounds: int) -> Measured:
    """The same for rounds that are awaited."""
    taken: dict[str, list[Timed]] = {name: [] for name in contestants}
    with _clean():
        for at in range(rounds + 1):
            for name in _turn(list(contestants), at):
                gc.collect()
                timed = await contestants[name].run()
                if at:
                    taken[name].append(timed)
    return Measured(row, _figures(contestants, taken))


@contextmanager
def _clean() -> Iterator[None]:
    """No collection within a round, and short ones between: what was there before is not looked through."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def _turn(names: list[str], at: int) -> list[str]:
    """Another one begins each round: nobody always runs after the same neighbour's garbage."""
    at %= len(names)
    return names[at:] + names[:at]


def _figures(contestants: dict[str, Contestant], taken: dict[str, list[Timed]]) -> dict[str, Figure]:
    return {name: summary(each.library, each.how, taken[name]) for name, each in contestants.items()}


def calls(fn: Callable[[Any], Any], arguments: Sequence[Any]) -> Run:
    """A round that calls *fn* with each of *arguments*."""

    def run() -> Timed:
        began = perf_counter()
        for argument in arguments:
            fn(argument)
        return Timed(perf_counter() - began, len(arguments))

    return run


def awaits(fn: Callable[[Any], Awaitable[Any]], arguments: Sequence[Any]) -> AsyncRun:
    """A round that awaits *fn* with each of *arguments*, one after another."""

    async def run() -> Timed:
        began = perf_counter()
        for argument in arguments:
            await fn(argument)
        return Timed(perf_counter() - began, len(arguments))

    return run
