"""Filling the cache before it is asked: many calls, a few at once, at a steady rate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, TypeAlias

from .defenses.avalanche import next_start
from .errors import ConfigurationError
from .events import log

if TYPE_CHECKING:
    from .functions import Function
    from .ports import Runtime

Progress: TypeAlias = Callable[[int, "int | None"], object]


@dataclass(frozen=True, slots=True)
class Warmed:
    """The outcome of a warm-up, in calls."""

    done: int
    failed: int


class _Tally:
    """What several workers have done."""

    def __init__(self, total: int | None, progress: Progress | None) -> None:
        self.total, self.progress = total, progress
        self._done, self._failed = count(), count()
        self.done = self.failed = 0

    def note(self, *, failed: bool) -> None:
        self.done = next(self._done) + 1
        if failed:
            self.failed = next(self._failed) + 1
        if self.progress is not None:
            self.progress(self.done, self.total)


async def warm(
    runtime: Runtime,
    fn: Callable[..., Any],
    calls: Iterable[Any],
    *,
    rate: float | None,
    progress: Progress | None,
    concurrency: int,
) -> Warmed:
    """Call *fn* for each of *calls*; see `CacheGuard.warm`."""
    function: Function | None = getattr(fn, "cacheguard", None)
    if function is None:
        raise ConfigurationError(f"warm takes a function decorated with guard.cached(…), got {fn!r}")
    if rate is not None and not rate > 0:
        raise ConfigurationError(f"rate must be loads per second > 0 or None, got {rate!r}")
    if concurrency < 1:
        raise ConfigurationError(f"concurrency must be >= 1, got {concurrency!r}")
    tally = _Tally(len(calls) if isinstance(calls, Sized) else None, progress)
    queue = iter(enumerate(calls))
    began = runtime.now()
    await runtime.each([lambda: _work(runtime, fn, queue, began, rate, tally)] * concurrency, concurrency)
    return Warmed(tally.done, tally.failed)


async def _work(
    runtime: Runtime,
    fn: Callable[..., Any],
    queue: Iterator[tuple[int, Any]],
    began: float,
    rate: float | None,
    tally: _Tally,
) -> None:
    """One of the workers: takes the next call until there is none."""
    while True:
        try:
            number, call = next(queue)
        except StopIteration:
            return
        pause = next_start(number, began, rate) - runtime.now()
        if pause > 0:
            await runtime.sleep(pause)
        arguments = call if isinstance(call, tuple) else (call,)
        try:
            await runtime.call(lambda arguments=arguments: fn(*arguments))
        except Exception as error:  # noqa: BLE001 - one row that does not load must not end the warm-up
            log.warning("warming %s%r failed: %r", getattr(fn, "__qualname__", fn), arguments, error)
            tally.note(failed=True)
        else:
            tally.note(failed=False)
