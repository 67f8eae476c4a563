"""A decorated function stays the function it was, whatever its parameters and wherever it lives."""

from __future__ import annotations

import asyncio
import inspect
import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from cacheguard import CacheGuard, Policy
from cacheguard.errors import CacheGuardError, KeyTemplateError
from tests.support.doors import Cached, Door
from tests.support.loader import Loader

RUNS = itertools.count(1)


def run(*values: object) -> int:
    """Something else each time."""
    return next(RUNS)


async def arun(*values: object) -> int:
    return next(RUNS)


def untemplated(door: Door) -> Cached:
    """That function, cached without a template behind either door."""
    is_async = inspect.iscoroutinefunction(door.lift(run))
    return Cached(door, door.guard.cached()(arun if is_async else run))


@pytest.fixture
def guard(redis_url: str) -> Iterator[CacheGuard]:
    with CacheGuard(redis_url) as guard:
        yield guard


async def test_values_that_are_equal_but_not_the_same_share_nothing(door: Door) -> None:
    of = untemplated(door)
    values: list[Any] = [1, 1.0, True, "1", b"1", (1,), [1], {1}, frozenset({1}), {1: 1}]
    values += [None, "None", 0, False, 0.0, -0.0, ""]
    first = [await of(value) for value in values]
    assert len(set(first)) == len(values)
    for _ in range(3):
        assert [await of(value) for value in values] == first
        assert [await of(value) for value in reversed(values)] == first[::-1]


async def test_equal_values_of_two_parameters_share_nothing(door: Door) -> None:
    of = untemplated(door)
    pairs = [(a, b) for a in (1, 1.0, True, "1") for b in (0, False, 0.0, "0")]
    first = [await of(*pair) for pair in pairs]
    assert len(set(first)) == len(pairs)
    for _ in range(2):
        assert [await of(*pair) for pair in pairs] == first


async def test_a_template_that_makes_one_text_of_two_values_shares_their_entry(door: Door) -> None:
    loader = Loader()

    @door.cached("of:{value}")
    def of(value: object) -> int:
        run: int = loader(value)
        return run

    assert [await of(1), await of("1"), await of(1), await of("1")] == [1, 1, 1, 1]
    assert [await of(True), await of("True"), await of(1)] == [2, 2, 1]
    await of.invalidate("1")
    assert [await of(1), await of("1")] == [3, 3]


@pytest.mark.parametrize("name", ["type", "TypeError", "wrapper", "key", "value", "cls", "self", "entry", "monotonic"])
def test_a_parameter_may_have_any_name(guard: CacheGuard, name: str) -> None:
    scope: dict[str, Any] = {}
    exec(f"def single({name}): return [{name}]\ndef pair({name}, other=2): return [{name}, other]", scope)
    single = guard.cached(f"single:{{{name}}}")(scope["single"])
    pair = guard.cached(f"pair:{{{name}}}:{{other}}")(scope["pair"])
    for _ in range(3):
        assert single("a") == ["a"]
        assert single(**{name: "b"}) == ["b"]
        assert pair("a") == ["a", 2]
        assert pair("a", other="x") == ["a", "x"]
    assert guard.stats().loads == 4


def test_every_kind_of_parameter_is_bound_as_before(guard: CacheGuard) -> None:
    @guard.cached()
    def odd(a: int, /, b: int, *rest: int, c: int = 3, d: int, **more: int) -> list[Any]:
        return [a, b, list(rest), c, d, dict(more)]

    for _ in range(2):
        assert odd(1, 2, d=4) == [1, 2, [], 3, 4, {}]
        assert odd(1, 2, 5, 6, d=4, e=7) == [1, 2, [5, 6], 3, 4, {"e": 7}]
        assert odd(1, b=2, c=3, d=4) == [1, 2, [], 3, 4, {}]
    assert guard.stats().loads == 2
    for wrong in (lambda: odd(1), lambda: odd(a=1, b=2, d=4), lambda: odd(1, 2, 3)):  # type: ignore[call-arg]
        with pytest.raises(TypeError):
            wrong()  # type: ignore[no-untyped-call]


def test_defaults_count_as_given(guard: CacheGuard) -> None:
    @guard.cached()
    def found(text: str, limit: int = 10) -> object:
        return [text, limit]

    found("a")
    found("a", 10)
    found(text="a", limit=10)
    assert guard.stats().loads == 1
    assert found.key("a") == found.key("a", limit=10)


def test_the_wrapper_looks_like_the_function(guard: CacheGuard) -> None:
    def plain(a: int, *, b: str = "x") -> list[str]:
        """What it does."""
        return [b] * a

    cached = guard.cached("plain:{a}:{b}")(plain)
    assert cached.__wrapped__ is plain
    assert cached.__name__ == "plain"
    assert cached.__qualname__ == plain.__qualname__
    assert cached.__module__ == __name__
    assert cached.__doc__ == "What it does."
    assert inspect.signature(cached) == inspect.signature(plain)
    assert not inspect.iscoroutinefunction(cached)

    async def waiting(a: int) -> int:
        return a

    assert inspect.iscoroutinefunction(guard.cached("waiting:{a}")(waiting))


def test_a_decorator_without_parentheses_is_one_too(guard: CacheGuard) -> None:
    @guard.cached
    def plain(a: int) -> int:
        return a

    assert [plain(1), plain(1)] == [1, 1]
    assert guard.stats().loads == 1


def test_two_functions_without_a_template_share_nothing(guard: CacheGuard) -> None:
    @guard.cached()
    def inner(a: int) -> list[int]:
        return [a]

    @guard.cached()
    def other(a: int) -> str:
        return "other"

    assert inner(5) == [5]
    assert other(5) == "other"


class Repository:
    """A class whose methods get cached, one way and the other."""

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self.loads = 0


def repository(guard: CacheGuard) -> Any:
    class Own(Repository):
        classes = 0

        @guard.cached("own:{self.tenant}:{row_id}")
        def row(self, row_id: int) -> list[Any]:
            self.loads += 1
            return [self.tenant, row_id, self.loads]

        @guard.cached("shared:{row_id}")
        def shared(self, row_id: int) -> list[Any]:
            self.loads += 1
            return [row_id, self.loads]

        @guard.cached("arow:{self.tenant}:{row_id}")
        async def arow(self, row_id: int) -> list[Any]:
            self.loads += 1
            return [self.tenant, row_id, self.loads]

        @classmethod
        @guard.cached()
        def of_class(cls, row_id: int) -> list[Any]:
            cls.classes += 1
            return [cls.__name__, row_id, cls.classes]

        @guard.cached("outside:{row_id}")
        @staticmethod
        def outside(row_id: int) -> int:
            return row_id

        @staticmethod
        @guard.cached("static:{row_id}")
        def static(row_id: int) -> int:
            return row_id

    return Own


def test_methods_are_told_apart_by_what_the_template_names(guard: CacheGuard) -> None:
    own = repository(guard)
    ann, bob = own("ann"), own("bob")
    for _ in range(2):
        assert ann.row(1) == ["ann", 1, 1]
        assert bob.row(1) == ["bob", 1, 1]
    own.row.invalidate(ann, 1)
    assert ann.row(1) == ["ann", 1, 2]
    assert bob.row(1) == ["bob", 1, 1]
    assert own.row.peek(bob, 1) == ["bob", 1, 1]
    assert own.row.refresh(bob, 1) == ["bob", 1, 2]


def test_a_method_whose_key_needs_no_instance_is_invalidated_without_one(guard: CacheGuard) -> None:
    own = repository(guard)
    ann, bob = own("ann"), own("bob")
    assert ann.shared(1) == bob.shared(1) == [1, 1]
    own.shared.invalidate(1)
    assert bob.shared(1) == [1, 1]
    assert bob.loads == 1
    ann.shared.invalidate(1)
    assert ann.shared(1) == [1, 2]
    own.shared.invalidate(ann, 1)
    assert ann.shared(1) == [1, 3]


def test_a_key_that_needs_its_instance_is_never_made_without(guard: CacheGuard) -> None:
    own = repository(guard)
    for ask in (own.row.invalidate, own.row.key, own.of_class.invalidate, own.of_class.key, own.row.peek):
        with pytest.raises(TypeError, match=r"self|cls"):
            ask(1)
    with pytest.raises(TypeError):
        own.shared.refresh(1)


def test_a_key_made_of_self_is_named_with_its_instance(guard: CacheGuard) -> None:
    own = repository(guard)
    ann = own("ann")
    assert ann.row(1) == ["ann", 1, 1]
    with pytest.raises(TypeError, match="needs its self here: give it first"):
        ann.row.invalidate(1)
    own.row.invalidate(ann, 1)
    assert ann.row(1) == ["ann", 1, 2]


def test_classmethods_and_staticmethods_work(guard: CacheGuard) -> None:
    own = repository(guard)

    class Sub(own):  # type: ignore[misc, valid-type]
        pass

    for _ in range(2):
        assert own.of_class(1) == ["Own", 1, 1]
        assert Sub.of_class(1)[0] == "Sub"
        assert own("x").outside(3) == own.outside(3) == 3
        assert own.static(4) == own("x").static(4) == 4
    own.of_class.invalidate(own, 1)
    assert own.of_class(1) == ["Own", 1, 2]
    own.static.invalidate(4)
    own.outside.invalidate(3)


async def test_coroutine_methods_work(redis_url: str) -> None:
    async with CacheGuard(redis_url) as guard:
        own = repository(guard)
        ann = own("ann")
        assert await asyncio.gather(*(ann.arow(1) for _ in range(5))) == [["ann", 1, 1]] * 5
        await own.arow.invalidate(ann, 1)
        assert await ann.arow(1) == ["ann", 1, 2]


def test_a_method_without_a_template_is_refused(guard: CacheGuard) -> None:
    with pytest.raises(KeyTemplateError):

        class Refused:
            @guard.cached()
            def row(self, row_id: int) -> int:
                return row_id


def test_a_function_that_returns_a_coroutine_by_surprise_is_told_so(guard: CacheGuard) -> None:
    async def hidden() -> int:
        return 1

    @guard.cached("surprise")
    def surprise() -> Any:
        return hidden()

    with pytest.raises(CacheGuardError, match="async"):
        surprise()
    with pytest.raises(CacheGuardError, match="async"):
        guard.get_or_set("k", hidden)  # type: ignore[unused-coroutine]  # that is the mistake


def test_arguments_that_cannot_be_hashed_have_keys_too(guard: CacheGuard) -> None:
    @guard.cached()
    def total(numbers: list[int], **names: list[int]) -> int:
        return sum(numbers)

    for _ in range(2):
        assert total([1, 2]) == 3
        assert total([1, 2], more=[1]) == 3
    assert guard.stats().loads == 2


def test_policies_of_functions_do_not_mix(redis_url: str) -> None:
    with CacheGuard(redis_url, policy=Policy(l1=False)) as guard:

        @guard.cached("a:{n}", l1=True)
        def in_process(n: int) -> int:
            return n

        @guard.cached("b:{n}")
        def outside(n: int) -> int:
            return n

        for _ in range(3):
            in_process(1)
            outside(1)
        assert guard.stats().l1_hits == 2
        assert guard.stats().l2_hits == 2
