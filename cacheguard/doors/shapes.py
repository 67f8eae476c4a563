"""The types of decorated functions and of options, for type checkers."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

from ..missing import Missing
from ..policy import PolicyOptions

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
S = TypeVar("S")


class CachedFunction(Protocol[P, R]):
    """A decorated ``def``: called as before, with methods that take the arguments of the call."""

    __wrapped__: Callable[P, R]
    __name__: str
    __qualname__: str

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...

    @overload
    def __get__(self, instance: None, owner: type[Any], /) -> CachedFunction[P, R]: ...
    @overload
    def __get__(
        self: CachedFunction[Concatenate[S, Q], R], instance: S, owner: type[Any] | None = None, /
    ) -> CachedFunction[Q, R]: ...

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> None: ...
    def expire(self, *args: P.args, **kwargs: P.kwargs) -> None: ...
    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R: ...
    def peek(self, *args: P.args, **kwargs: P.kwargs) -> R | Missing: ...
    def put(self, value: R, /, *args: P.args, **kwargs: P.kwargs) -> None: ...
    def key(self, *args: P.args, **kwargs: P.kwargs) -> str: ...
    def many(self, calls: Iterable[Any], /) -> list[R]: ...


class CachedCoroutineFunction(Protocol[P, R]):
    """A decorated ``async def``."""

    __wrapped__: Callable[P, Coroutine[Any, Any, R]]
    __name__: str
    __qualname__: str

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]: ...

    @overload
    def __get__(self, instance: None, owner: type[Any], /) -> CachedCoroutineFunction[P, R]: ...
    @overload
    def __get__(
        self: CachedCoroutineFunction[Concatenate[S, Q], R], instance: S, owner: type[Any] | None = None, /
    ) -> CachedCoroutineFunction[Q, R]: ...

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, None]: ...
    def expire(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, None]: ...
    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]: ...
    def peek(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R | Missing]: ...
    def put(self, value: R, /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, None]: ...
    def key(self, *args: P.args, **kwargs: P.kwargs) -> str: ...
    def many(self, calls: Iterable[Any], /) -> Coroutine[Any, Any, list[R]]: ...


class Decorator(Protocol):
    """The type of ``guard.cached(…)``."""

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a coroutine function is a function, too: the first match counts
        self, fn: Callable[P, Coroutine[Any, Any, R]], /
    ) -> CachedCoroutineFunction[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> CachedFunction[P, R]: ...


class LoadOptions(PolicyOptions, total=False):
    """The options of ``guard.aget_or_set(…)``."""

    tags: Sequence[str]
    version: Callable[[Any], Any] | None
    usable: Callable[[Any], bool] | None
    returns: Any
    bounded: bool
