"""Both doors carry the same names and parameters."""

from __future__ import annotations

import inspect
from typing import Any, get_overloads

import pytest

from cacheguard import CacheGuard
from cacheguard.doors.bloom import BloomFilter
from cacheguard.doors.methods import AsyncMethods, Methods

# These wait for nothing, so there is one of each.
WITHOUT_TWIN = {
    CacheGuard: {
        "at_hand",
        "bloom",
        "cached",
        "disabled",
        "hot",
        "invalidates",
        "load_alone_when",
        "namespace",
        "new_client",
        "stats",
        "writing",
    },
    BloomFilter: {"known"},
}


def public(kind: type) -> dict[str, Any]:
    return {name: each for name, each in vars(kind).items() if not name.startswith("_") and inspect.isfunction(each)}


def pairs(kind: type) -> list[tuple[str, Any, Any]]:
    methods = public(kind)
    return [(name, each, methods[f"a{name}"]) for name, each in methods.items() if f"a{name}" in methods]


ALL = [(kind, *pair) for kind in (CacheGuard, BloomFilter) for pair in pairs(kind)]


@pytest.mark.parametrize(
    ("blocking", "waiting"), [pair for _, _, *pair in ALL], ids=[f"{kind.__name__}.{name}" for kind, name, *_ in ALL]
)
def test_a_method_and_its_twin_have_one_signature(blocking: Any, waiting: Any) -> None:
    assert inspect.iscoroutinefunction(waiting)
    assert not inspect.iscoroutinefunction(blocking)
    ours, theirs = inspect.signature(blocking), inspect.signature(waiting)
    if get_overloads(waiting):  # the types are in the overloads, which tests/typing/ looks at
        assert [(name, each.kind, each.default) for name, each in ours.parameters.items()] == [
            (name, each.kind, each.default) for name, each in theirs.parameters.items()
        ]
        return
    # What can be iterated may be iterated with `async for` behind the other door, and a loader be a coroutine function.
    also = str(theirs).replace(" | AsyncIterable[object]", "").replace("Awaitable[Mapping[str, T]] | ", "")
    assert str(ours) == also
    assert blocking.__doc__
    assert waiting.__doc__


@pytest.mark.parametrize("kind", [CacheGuard, BloomFilter])
def test_every_method_that_waits_has_a_twin(kind: type) -> None:
    methods = public(kind)
    twins = {name for name, *_ in pairs(kind)}
    alone = set(methods) - twins - {f"a{name}" for name in twins}
    assert alone <= WITHOUT_TWIN[kind]
    assert len(twins) > 2


def test_what_hangs_on_a_function_is_the_same_in_both_colours() -> None:
    blocking, waiting = public(Methods), public(AsyncMethods)
    assert set(blocking) == set(waiting)
    assert {"invalidate", "expire", "refresh", "peek", "put", "key", "many"} <= set(blocking)
    for name, each in blocking.items():
        assert inspect.signature(each) == inspect.signature(waiting[name])
        assert each.__doc__ == waiting[name].__doc__
        assert inspect.iscoroutinefunction(waiting[name]) is (name != "key")


def test_a_decorated_function_carries_them_all() -> None:
    with CacheGuard("memory://") as guard:

        @guard.cached("a")
        def blocking() -> int:
            return 1

        @guard.cached("b")
        async def waiting() -> int:
            return 1

        for name in public(Methods):
            assert callable(getattr(blocking, name))
            assert inspect.iscoroutinefunction(getattr(waiting, name)) is (name != "key")
