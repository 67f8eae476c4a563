"""Two functions with one template in one namespace get what the other has cached: a warning names both."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from cacheguard import CacheGuard


@pytest.fixture
def guard() -> Iterator[CacheGuard]:
    with CacheGuard("memory://") as guard:
        yield guard


class Told:
    """What was logged."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.WARNING, "cacheguard")
        self._caplog = caplog

    def __call__(self) -> list[str]:
        return self._caplog.messages


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Told:
    return Told(caplog)


def first(user_id: int) -> int:
    return 1


def second(user_id: int) -> int:
    return 2


def renamed(uid: int) -> int:
    return 3


async def waiting(user_id: int) -> int:
    return 4


def in_a_factory(tenant: str) -> Any:
    def load(user_id: int) -> str:
        return tenant

    return load


@pytest.mark.parametrize(
    ("other", "template"), [(second, "user:{user_id}"), (renamed, "user:{uid}"), (waiting, "user:{user_id}")]
)
def test_two_functions_with_one_template_are_named_once(
    guard: CacheGuard, told: Told, other: Any, template: str
) -> None:
    guard.cached("user:{user_id}")(first)
    assert not told()
    for _ in range(2):
        guard.cached(template)(other)
    (warning,) = told()
    assert f"{__name__}:first" in warning
    assert f"{__name__}:{other.__name__}" in warning


def test_a_third_function_is_named_too(guard: CacheGuard, told: Told) -> None:
    for fn in (first, second, waiting):
        guard.cached("user:{user_id}")(fn)
    assert [__name__ + ":second" in told()[0], __name__ + ":waiting" in told()[1], len(told())] == [True, True, 2]


def test_a_function_that_is_made_again_is_no_second_one(guard: CacheGuard, told: Told) -> None:
    source = "def load(user_id): return 1"
    for _ in range(3):  # as a reload does it
        scope: dict[str, Any] = {"__name__": "shop"}
        exec(source, scope)
        guard.cached("user:{user_id}")(scope["load"])
        guard.cached("user:{user_id}")(guard.cached("user:{user_id}")(scope["load"]))
    assert not told()


def test_other_templates_namespaces_and_guards_are_others(guard: CacheGuard, told: Told) -> None:
    guard.cached("user:{user_id}")(first)
    guard.cached("account:{user_id}")(second)
    guard.namespace("v2").cached("user:{user_id}")(second)
    with CacheGuard("memory://") as other:
        other.cached("user:{user_id}")(second)
    guard.cached()(first)
    guard.cached()(second)
    assert not told()


def test_one_decorator_object_says_that_sharing_is_meant(guard: CacheGuard, told: Told) -> None:
    user = guard.cached("user:{user_id}", ttl="10m")
    user(first)
    user(waiting)
    assert not told()
    guard.cached("user:{user_id}")(second)
    assert len(told()) == 1


@pytest.mark.parametrize("shared", [True, False])
def test_one_function_with_other_variables_is_two(guard: CacheGuard, told: Told, shared: bool) -> None:
    decorator = guard.cached("user:{user_id}")
    for tenant in ("a", "a", "b", "c"):
        (decorator if shared else guard.cached("user:{user_id}"))(in_a_factory(tenant))
    (warning,) = told()
    assert "in_a_factory.<locals>.load is decorated again with the same key and with another tenant" in warning


def test_what_is_not_noted_any_more_is_no_error(guard: CacheGuard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cacheguard.keys.owners._MOST", 1)
    for number in range(3):
        guard.cached(f"k{number}:{{user_id}}")(first)
        guard.cached(f"k{number}:{{user_id}}")(second)
