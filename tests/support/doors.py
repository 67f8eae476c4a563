"""One way for a test to use either door of a guard.

A test is written once, as a coroutine, and hands over plain functions. Behind the blocking door each call runs in a
thread of its own; behind the async door a plain function becomes a coroutine function that runs it in a thread, so a
loader may block (on a `threading.Event`, say) behind either.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from functools import partial, wraps
from inspect import iscoroutinefunction
from typing import Any

import anyio
import anyio.to_thread

from cacheguard import CacheGuard

CALLERS = 500  # threads at once, well above the number of callers in any test

Plain = Callable[..., Any]


async def well_again(guard: CacheGuard) -> None:
    """Wait until Redis is asked again: after a failure, a probe finds that out."""
    with anyio.fail_after(10):
        while guard.stats().breaker != "closed":
            await anyio.sleep(0.002)


class Door(ABC):
    """Either door of a guard, under the names of the blocking one; everything is awaited."""

    def __init__(self, guard: CacheGuard) -> None:
        self.guard = guard

    @abstractmethod
    async def ask(self, subject: object, name: str, *args: Any, **options: Any) -> Any:
        """Call *subject*'s method *name*, or its twin for coroutines."""

    @abstractmethod
    async def call(self, function: Plain, *args: Any, **options: Any) -> Any:
        """Call a decorated function, or what hangs on it."""

    @abstractmethod
    def lift(self, function: Plain) -> Plain:
        """*function* in this door's colour."""

    @abstractmethod
    async def write(self, body: Plain, *keys: str, **options: Any) -> Any:
        """Run *body* inside ``guard.writing(…)``; it gets the write."""

    async def get(self, key: str, default: Any = None) -> Any:
        return await self.ask(self.guard, "get", key, default)

    async def get_or_set(self, key: str, loader: Plain, **policy: Any) -> Any:
        return await self.ask(self.guard, "get_or_set", key, self.lift(loader), **policy)

    async def get_many(self, keys: Iterable[str]) -> dict[str, Any]:
        found: dict[str, Any] = await self.ask(self.guard, "get_many", keys)
        return found

    async def get_or_set_many(self, keys: Iterable[str], loader: Plain, **policy: Any) -> dict[str, Any]:
        found: dict[str, Any] = await self.ask(self.guard, "get_or_set_many", keys, self.lift(loader), **policy)
        return found

    async def set(self, key: str, value: Any, **policy: Any) -> None:
        await self.ask(self.guard, "set", key, value, **policy)

    async def set_many(self, values: Mapping[str, Any], **policy: Any) -> None:
        await self.ask(self.guard, "set_many", values, **policy)

    async def touch(self, key: str, *args: Any, **options: Any) -> Any:
        return await self.ask(self.guard, "touch", key, *args, **options)

    async def invalidate(self, *keys: str, **options: Any) -> None:
        await self.ask(self.guard, "invalidate", *keys, **options)

    async def apply(self, changes: Iterable[Any], **options: Any) -> int:
        count: int = await self.ask(self.guard, "apply", changes, **options)
        return count

    async def expire(self, *keys: str) -> None:
        await self.ask(self.guard, "expire", *keys)

    async def invalidate_tags(self, *tags: str, **options: Any) -> None:
        await self.ask(self.guard, "invalidate_tags", *tags, **options)

    async def clear(self) -> None:
        await self.ask(self.guard, "clear")

    async def inspect(self, key: str) -> Any:
        return await self.ask(self.guard, "inspect", key)

    async def warm(self, cached: Cached, arguments: Iterable[Any], **options: Any) -> Any:
        return await self.ask(self.guard, "warm", cached.function, arguments, **options)

    async def close(self) -> None:
        await self.ask(self.guard, "close")

    def cached(self, template: str | None = None, **options: Any) -> Callable[[Plain], Cached]:
        """Decorate as ``guard.cached`` does, after lifting the plain function into this door's colour."""
        decorate: Callable[[Plain], Any] = (
            self.guard.cached(**options) if template is None else self.guard.cached(template, **options)
        )

        def wrap(function: Plain) -> Cached:
            return Cached(self, decorate(self.lift(function)))

        return wrap


class BlockingDoor(Door):
    def __init__(self, guard: CacheGuard) -> None:
        super().__init__(guard)
        self._callers = anyio.CapacityLimiter(CALLERS)

    async def ask(self, subject: object, name: str, *args: Any, **options: Any) -> Any:
        return await self.call(getattr(subject, name), *args, **options)

    async def call(self, function: Plain, *args: Any, **options: Any) -> Any:
        return await anyio.to_thread.run_sync(partial(function, *args, **options), limiter=self._callers)

    def lift(self, function: Plain) -> Plain:
        if iscoroutinefunction(function):
            raise TypeError(f"a door takes plain functions, got the coroutine function {function!r}; write def")
        return function

    async def write(self, body: Plain, *keys: str, **options: Any) -> Any:
        def run() -> Any:
            with self.guard.writing(*keys, **options) as write:
                return body(write)

        return await self.call(run)


class AsyncDoor(Door):
    def __init__(self, guard: CacheGuard) -> None:
        super().__init__(guard)
        self._loaders = anyio.CapacityLimiter(CALLERS)

    async def ask(self, subject: object, name: str, *args: Any, **options: Any) -> Any:
        return await getattr(subject, f"a{name}")(*args, **options)

    async def call(self, function: Plain, *args: Any, **options: Any) -> Any:
        return await function(*args, **options)

    def lift(self, function: Plain) -> Plain:
        if iscoroutinefunction(function):
            raise TypeError(f"a door takes plain functions, got the coroutine function {function!r}; write def")

        @wraps(function)
        async def lifted(*args: Any, **options: Any) -> Any:
            # Abandoned when cancelled: a cancelled loader must not hold up its guard until the thread is through.
            call = partial(function, *args, **options)
            return await anyio.to_thread.run_sync(call, limiter=self._loaders, abandon_on_cancel=True)

        return lifted

    async def write(self, body: Plain, *keys: str, **options: Any) -> Any:
        async with self.guard.writing(*keys, **options) as write:
            return await self.lift(body)(write)


class Cached:
    """A decorated function behind either door; `function` is the decorated one itself."""

    def __init__(self, door: Door, function: Any) -> None:
        self._door = door
        self.function = function

    async def __call__(self, *args: Any, **options: Any) -> Any:
        return await self._door.call(self.function, *args, **options)

    def key(self, *args: Any, **options: Any) -> str:
        key: str = self.function.key(*args, **options)
        return key

    async def invalidate(self, *args: Any, **options: Any) -> None:
        await self._door.call(self.function.invalidate, *args, **options)

    async def expire(self, *args: Any, **options: Any) -> None:
        await self._door.call(self.function.expire, *args, **options)

    async def refresh(self, *args: Any, **options: Any) -> Any:
        return await self._door.call(self.function.refresh, *args, **options)

    async def peek(self, *args: Any, **options: Any) -> Any:
        return await self._door.call(self.function.peek, *args, **options)

    async def put(self, value: Any, *args: Any, **options: Any) -> None:
        await self._door.call(self.function.put, value, *args, **options)

    async def many(self, arguments: Iterable[Any]) -> list[Any]:
        values: list[Any] = await self._door.call(self.function.many, arguments)
        return values


DOORS: dict[str, type[Door]] = {"blocking": BlockingDoor, "async": AsyncDoor}
