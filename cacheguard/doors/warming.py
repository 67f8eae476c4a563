"""Fill the cache before it is read: many calls, a few at once, at a steady rate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from ..checks import count, number_of
from ..defenses.avalanche import next_start
from ..errors import ConfigurationError
from ..events import log
from .functions import arguments_of

if TYPE_CHECKING:
    from ..ports import Runtime

Progress: TypeAlias = Callable[[int, "int | None"], object]


@dataclass(frozen=True, slots=True)
class Warmed:
    """The result of a warm-up, in calls; `done` includes the `failed` ones."""

    done: int
    failed: int


class _Work:
    """The shared state of the workers of one warm-up."""

    def __init__(self, runtime: Runtime, lock: AbstractContextManager[Any], fn: Callable[..., Any]) -> None:
        self._runtime, self._lock, self._fn = runtime, lock, fn
        self.done = self.failed = 0
        self.began = runtime.now()

    async def drain(self, queue: Iterator[tuple[int, Any]], rate: float | None, tell: Callable[[int], object]) -> None:
        """Run as one worker: take the next call until there is none."""
        while True:
            with self._lock:
                number, call = next(queue, (-1, None))
            if number < 0:
                return
            pause = next_start(number, self.began, rate) - self._runtime.now()
            if pause > 0:
                await self._runtime.sleep(pause)
            failed = not await self._loads(arguments_of(call))
            with self._lock:
                self.done += 1
                self.failed += failed
                tell(self.done)

    async def _loads(self, arguments: tuple[Any, ...]) -> bool:
        try:
            await self._runtime.call(partial(self._fn, *arguments))
        except Exception as error:  # noqa: BLE001 - one failed load must not end the warm-up
            log.warning("warming %s%r failed: %r", getattr(self._fn, "__qualname__", self._fn), arguments, error)
            return False
        return True


async def warm(
    runtime: Runtime,
    lock: AbstractContextManager[Any],
    fn: Callable[..., Any],
    calls: Iterable[Any],
    *,
    rate: float | None,
    progress: Progress | None,
    concurrency: int,
    is_async: bool,
) -> Warmed:
    """Call *fn* for each of *calls*; see `CacheGuard.warm`."""
    if getattr(getattr(fn, "cacheguard", None), "is_async", is_async) is not is_async:
        wanted, other = ("a coroutine function", "warm") if is_async else ("a blocking function", "awarm")
        raise ConfigurationError(f"this takes {wanted}, got {fn!r}; use {other} for it")
    if not hasattr(fn, "cacheguard"):
        raise ConfigurationError(f"warm takes a function decorated with guard.cached(…), got {fn!r}")
    if rate is not None and not number_of(rate) > 0:
        raise ConfigurationError(f"rate must be loads per second > 0 or None, got {rate!r}")
    count("concurrency", concurrency, allowed=">= 1")
    total = len(calls) if isinstance(calls, Sized) else None

    def tell(done: int) -> None:
        if progress is not None:
            progress(done, total)

    work, queue = _Work(runtime, lock, fn), iter(enumerate(calls))
    await runtime.each([lambda: work.drain(queue, rate, tell)] * concurrency, concurrency)
    return Warmed(work.done, work.failed)
