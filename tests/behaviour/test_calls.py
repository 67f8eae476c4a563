"""A function that decorators have wrapped is called as its caller called it, whatever door the call comes through."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from benchmarks.gate.counting import Calls
from cacheguard import CacheGuard
from cacheguard.errors import KeyTemplateError
from cacheguard.testing import VirtualClock

Seen = list[tuple[tuple[Any, ...], dict[str, Any]]]


@pytest.fixture
def guard() -> Iterator[CacheGuard]:
    with CacheGuard("memory://") as guard:
        yield guard


def noting(seen: Seen, fn: Any) -> Any:
    """A decorator that sees how its function is called."""
    if inspect.iscoroutinefunction(fn):

        @functools.wraps(fn)
        async def waiting(*args: Any, **kwargs: Any) -> Any:
            seen.append((args, kwargs))
            return await fn(*args, **kwargs)

        return waiting

    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        seen.append((args, kwargs))
        return fn(*args, **kwargs)

    return wrapper


def plain(x: int, y: int = 2, *rest: int, z: int = 3, **more: int) -> list[Any]:
    return [x, y, rest, z, more]


CALLS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((1,), {}),
    ((), {"x": 1}),
    ((1, 2), {}),
    ((1,), {"y": 2}),
    ((), {"y": 2, "x": 1}),
    ((1, 5, 6), {"z": 7}),
    ((1,), {"b": 1, "a": 2}),
]


@pytest.mark.parametrize(("args", "kwargs"), CALLS)
@pytest.mark.parametrize("template", ["k:{x}:{y}:{rest}:{z}:{more}", "k:{x}", "k", None])
@pytest.mark.parametrize("l1", [True, False])
def test_what_is_given_is_what_arrives(
    guard: CacheGuard, args: tuple[Any, ...], kwargs: dict[str, Any], template: str | None, l1: bool
) -> None:
    seen: Seen = []
    made: list[Any] = []
    scope = {"note": functools.partial(noting, seen), "made": made, "__name__": __name__}
    source = "def fresh(x, y=2, *rest, z=3, **more):\n  return [x, y, rest, z, more]"
    exec(f"@lambda fn: made.append(note(fn))\n{source}", scope)  # as a module decorates, before the name is there
    cached = guard.cached(template, l1=l1)(made[0])
    want = plain(*args, **kwargs)
    for _ in range(3):
        assert cached(*args, **kwargs) == want
    assert seen == [(args, kwargs)]
    assert list(seen[0][1]) == list(kwargs)
    assert cached.refresh(*args, **kwargs) == want
    assert seen[1:] == [(args, kwargs)]
    assert cached.peek(*args, **kwargs) == want
    cached.invalidate(*args, **kwargs)
    assert cached(*args, **kwargs) == want
    assert len(seen) == 3
    with guard.disabled():
        assert cached(*args, **kwargs) == want
    assert seen[3:] == [(args, kwargs)]


def test_all_forms_of_one_call_are_one_entry(guard: CacheGuard) -> None:
    seen: Seen = []
    cached = guard.cached("k:{x}:{y}")(noting(seen, lambda x, y=2: [x, y]))
    for _ in range(2):
        assert cached(1) == cached(1, 2) == cached(x=1) == cached(y=2, x=1) == cached(1, y=2) == [1, 2]
    assert len(seen) == 1
    assert cached(2, 1) == cached(y=1, x=2) == [2, 1]
    assert len(seen) == 2
    assert guard.stats().l1_hits == 10


def repr_of(x: object) -> str:
    return repr(x)


def test_equal_arguments_of_other_types_share_nothing(guard: CacheGuard) -> None:
    cached = guard.cached("k:{x}:{y}")(noting([], lambda x, y=0: [repr(x), repr(y)]))
    for _ in range(3):
        for x in (1, True, 1.0, "1 "):
            assert cached(x) == cached(x=x) == [repr(x), "0"]
            assert cached(x, False) == cached(x=x, y=False) == [repr(x), "False"]
    single = guard.cached("s:{x}")(noting([], repr_of))
    for _ in range(3):
        assert [single(1), single(x=True), single(True), single(x=1)] == ["1", "True", "True", "1"]


def test_a_text_is_not_found_under_a_number(guard: CacheGuard) -> None:
    @guard.cached("k:{user_id}:{n}")
    def load(user_id: str, n: int) -> list[str]:
        return [repr(user_id), repr(n)]

    first = [load(user_id, 5) for user_id in (1, True, 1.0)]  # type: ignore[arg-type]
    assert first == [["1", "5"], ["True", "5"], ["1.0", "5"]]
    for _ in range(2):
        assert [load(user_id, 5) for user_id in (1, True, 1.0)] == first  # type: ignore[arg-type]
    assert load("True", 5) == ["True", "5"]  # the template makes one text of them


# Decorators that fill, add and change arguments


def fills(fn: Any) -> Any:
    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        kwargs.setdefault("tenant", "filled")
        return fn(*args, **kwargs)

    return wrapper


def injects(fn: Any) -> Any:
    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs, service="S")

    return wrapper


def injects_first(fn: Any) -> Any:
    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return fn("session", *args, **kwargs)

    return wrapper


def states(fn: Any) -> Any:
    @functools.wraps(fn)
    def wrapper(x: int) -> Any:
        return fn("session", x)

    return wrapper


def takes_more(fn: Any) -> Any:
    @functools.wraps(fn)
    def wrapper(*args: Any, loud: bool = False, **kwargs: Any) -> Any:
        return [fn(*args, **kwargs), loud]

    return wrapper


def renames(fn: Any) -> Any:
    @functools.wraps(fn)
    def wrapper(tenant: str, *args: Any, **kwargs: Any) -> Any:
        return [tenant, fn(*args, **kwargs)]

    return wrapper


def doubles(fn: Any) -> Any:
    @functools.wraps(fn)
    def wrapper(x: int, *args: Any, **kwargs: Any) -> Any:
        return fn(2 * x, *args, **kwargs)

    return wrapper


def by_keyword(x: int, *, tenant: str = "public") -> list[Any]:
    return [x, tenant]


def by_position(x: int, tenant: str = "public") -> list[Any]:
    return [x, tenant]


def with_service(x: int, service: str) -> list[Any]:
    return [x, service]


def with_session(session: str, x: int) -> list[Any]:
    return [session, x]


@pytest.mark.parametrize(
    ("decorated", "args", "kwargs"),
    [
        (fills(by_keyword), (1,), {}),
        (fills(by_keyword), (), {"x": 1, "tenant": "given"}),
        (fills(by_position), (1,), {}),
        (injects(with_service), (1,), {}),
        (injects(with_service), (), {"x": 1}),
        (states(with_session), (1,), {}),
        (states(with_session), (), {"x": 1}),
        (takes_more(by_position), (1,), {"loud": True}),
        (takes_more(by_position), (1, "t"), {}),
        (doubles(by_position), (1,), {}),
        (doubles(fills(by_position)), (), {"x": 1}),
        (functools.cache(by_position), (), {"x": 1}),
        (functools.partial(by_position, tenant="p"), (1,), {}),
        (functools.update_wrapper(functools.partial(with_session, "s"), with_session), (1,), {}),
    ],
)
def test_a_decorator_does_what_it_does_without_the_cache(
    guard: CacheGuard, decorated: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    cached = guard.cached("k:{x}", tags=["t:{x}"])(decorated)
    want = decorated(*args, **kwargs)
    for _ in range(2):
        assert cached(*args, **kwargs) == want
    assert guard.stats().loads == 1
    assert cached.key(*args, **kwargs) == "k:1"
    writer = guard.invalidates("k:{x}", tags=["t:{x}"])(decorated)
    assert writer(*args, **kwargs) == want
    assert cached(*args, **kwargs) == want
    assert guard.stats().loads == 2


def test_what_a_wrapper_adds_is_part_of_the_key(guard: CacheGuard) -> None:
    cached = guard.cached("k:{x}:{loud}")(takes_more(by_position))
    assert cached(1) == [[1, "public"], False]
    assert cached(1, loud=True) == [[1, "public"], True]
    with pytest.raises(KeyTemplateError, match="is no parameter"):
        guard.cached("k:{loud}")(by_position)


def test_a_wrapper_of_other_names_must_say_what_it_takes(guard: CacheGuard) -> None:
    with pytest.raises(KeyTemplateError, match="which argument is which cannot be known"):
        guard.cached("k:{x}")(renames(by_position))
    wrapper = renames(by_position)
    wrapper.__signature__ = inspect.signature(lambda tenant, x: None)
    cached = guard.cached("k:{tenant}:{x}")(wrapper)
    assert [cached("a", 1), cached("b", 1), cached(tenant="a", x=1)] == [[name, [1, "public"]] for name in "aba"]


def test_a_call_whose_key_lacks_an_argument_is_told_so(guard: CacheGuard) -> None:
    cached = guard.cached("k:{x}")(injects_first(with_session))
    for call in (cached, cached.invalidate, cached.peek, cached.refresh, guard.invalidates("k:{x}")(cached)):
        with pytest.raises(TypeError, match=r"called without x, .*set __signature__"):
            call(1)


def test_wrong_arguments_are_still_an_error(guard: CacheGuard) -> None:
    cached = guard.cached("k:{x}")(noting([], by_position))
    for args, kwargs in (((), {}), ((1, 2, 3), {}), ((1,), {"nope": 2}), ((1,), {"x": 2})):
        with pytest.raises(TypeError):
            cached(*args, **kwargs)


# Doors


class Repository:
    tenant = "t"


def test_methods_of_every_kind(guard: CacheGuard) -> None:
    seen: Seen = []

    class Own(Repository):
        @guard.cached("row:{self.tenant}:{x}")
        @functools.partial(noting, seen)
        def row(self, x: int, y: int = 2) -> list[int]:
            return [x, y]

        @classmethod
        @guard.cached("class:{x}")
        @functools.partial(noting, seen)
        def of_class(cls, x: int, y: int = 2) -> list[int]:
            return [x, y]

        @staticmethod
        @guard.cached("static:{x}")
        @functools.partial(noting, seen)
        def static(x: int, y: int = 2) -> list[int]:
            return [x, y]

    own = Own()
    for _ in range(2):
        assert own.row(x=1) == own.row(1) == Own.of_class(x=1) == Own.static(x=1) == own.static(1) == [1, 2]
    assert seen == [((own,), {"x": 1}), ((Own,), {"x": 1}), ((), {"x": 1})]
    Own.row.invalidate(own, 1)
    assert Own.row.refresh(own, x=1) == [1, 2]
    assert seen[3:] == [((own,), {"x": 1})]
    Own.static.invalidate(1)
    assert Own.static(1) == [1, 2]
    assert seen[4:] == [((1,), {})]


def test_many_warming_and_reloads_in_the_background() -> None:
    seen: Seen = []
    with VirtualClock() as clock, clock.guard() as guard:
        cached = guard.cached("k:{x}", ttl="1m", jitter=None, stale_while_revalidate="1m")(noting(seen, by_position))
        assert cached.many([1, (2, "t"), (1,)]) == [[1, "public"], [2, "t"], [1, "public"]]
        assert seen == [((1,), {}), ((2, "t"), {})]
        guard.warm(cached, [3, (4,)])
        assert sorted(seen[2:]) == [((3,), {}), ((4,), {})]
        clock.advance("61s")
        assert cached(x=1) == [1, "public"]
        clock.advance("1s")
    assert seen[4:] == [((), {"x": 1})]


async def test_coroutine_functions() -> None:
    seen: Seen = []

    async def load(x: int, y: int = 2) -> list[int]:
        return [x, y]

    async with CacheGuard("memory://") as guard:
        cached: Any = guard.cached("k:{x}:{y}")(noting(seen, load))
        for _ in range(2):
            assert await cached(1) == await cached(y=2, x=1) == await cached(1, 2) == [1, 2]
        assert seen == [((1,), {})]
        assert await cached.refresh(y=2, x=1) == [1, 2]
        assert seen[1:] == [((), {"y": 2, "x": 1})]
        assert await cached.many([(1, 3), 4]) == [[1, 3], [4, 2]]
        assert sorted(seen[2:]) == [((1, 3), {}), ((4,), {})]


def test_a_hit_of_a_wrapped_function_calls_nothing_else(guard: CacheGuard) -> None:
    def called(call: Callable[[], Any]) -> int:
        with Calls() as calls:
            call()
        return calls.count

    for fn in (by_position, noting([], by_position)):
        cached = guard.namespace(repr(fn)).cached("k:{x}:{tenant}")(fn)
        calls: list[Callable[[], Any]] = [partial(cached, 1), partial(cached, x=1), partial(cached, 1, "a")]
        for call in calls:
            call()
            call()
            assert called(call) == 1
