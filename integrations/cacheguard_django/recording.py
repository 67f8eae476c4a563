"""Records the cache calls of a request, while recording is on."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from inspect import iscoroutinefunction
from time import perf_counter
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

P = ParamSpec("P")
R = TypeVar("R")
SEVERAL = (list, tuple, dict, set)
C = TypeVar("C")


@dataclass(frozen=True, slots=True)
class Record:
    """One call of a cache.

    Args:
        name: of the method.
        key: the key, or the keys, as they were given.
        seconds: how long it took.
        outcome: ``"hit"``, ``"miss"`` or ``""``.
    """

    name: str
    key: str
    seconds: float
    outcome: str


_records: ContextVar[list[Record] | None] = ContextVar("cacheguard_django_records", default=None)


@contextmanager
def recording() -> Generator[list[Record]]:
    """Record all cache calls of this request or task."""
    records: list[Record] = []
    token = _records.set(records)
    try:
        yield records
    finally:
        _records.reset(token)


def start(records: list[Record] | None) -> None:
    """Record into *records* from now on; None: stop."""
    _records.set(records)


def recorded(method: Callable[Concatenate[C, P], R]) -> Callable[Concatenate[C, P], R]:
    """Wrap *method* so that its calls are recorded while recording is on."""
    fn: Any = method
    name = fn.__name__
    if iscoroutinefunction(fn):

        @wraps(fn)
        async def waiting(self: C, *args: Any, **kwargs: Any) -> Any:
            records = _records.get()
            if records is None:
                return await fn(self, *args, **kwargs)
            began = perf_counter()
            answer = await fn(self, *args, **kwargs)
            records.append(_record(name, args, kwargs, began, answer))
            return answer

        return cast("Callable[Concatenate[C, P], R]", waiting)

    @wraps(fn)
    def blocking(self: C, *args: Any, **kwargs: Any) -> Any:
        records = _records.get()
        if records is None:
            return fn(self, *args, **kwargs)
        began = perf_counter()
        answer = fn(self, *args, **kwargs)
        records.append(_record(name, args, kwargs, began, answer))
        return answer

    return cast("Callable[Concatenate[C, P], R]", blocking)


def _record(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], began: float, answer: Any) -> Record:
    subject: Any = args[0] if args else next((kwargs[each] for each in ("key", "keys", "data") if each in kwargs), "")
    key = ", ".join(map(str, subject)) if type(subject) in SEVERAL else str(subject)
    outcome = ""
    if name in {"get", "aget"}:
        default = args[1] if len(args) > 1 else kwargs.get("default")
        outcome = "miss" if answer is default else "hit"
    elif name in {"has_key", "ahas_key", "get_many", "aget_many"}:
        outcome = "hit" if answer else "miss"
    return Record(name, key, perf_counter() - began, outcome)
