"""What type checkers see of user code. Never run; both checkers read it, strictly.

A line that must be wrong carries an ignore for either checker, and an ignore that is not needed is an error.
"""

# pyright: strict
# pyright: reportUnnecessaryTypeIgnoreComment=true, reportUnusedFunction=false

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, assert_type

from cacheguard import MISSING, CacheGuard, Change, Hot, Policy, current_load
from cacheguard.errors import CacheGuardError, ConfigurationError, LoadTimeout


@dataclass
class User:
    name: str


guard = CacheGuard("redis://localhost", namespace="shop", policy=Policy(ttl="5m", jitter=0.2, not_found=KeyError))
child = guard.namespace("v2", policy=Policy(ttl=timedelta(hours=1)))
assert_type(child, CacheGuard)
users = guard.bloom("users", capacity=1000, error_rate=0.01)


@guard.cached("user:{user_id}", ttl="10m", tags=["users"], bloom=users, bloom_item="{user_id}")
def get_user(user_id: int, *, lang: str = "en") -> User | None:
    """A function."""


@guard.cached("auser:{user_id}", rebuild="logical", error_backoff=("100ms", "5s"))
async def aget_user(user_id: int, *, lang: str = "en") -> User:
    return User(lang)


@guard.cached()
def untemplated(a: str, /, *rest: int, **more: bool) -> list[str]:
    return [a]


@guard.cached
def bare(a: int) -> int:
    return a


@guard.cached
async def abare(a: int) -> int:
    return a


class Repository:
    tenant = "x"

    @guard.cached("row:{self.tenant}:{row_id}")
    def row(self, row_id: int) -> User:
        return User(self.tenant)

    @guard.cached("arow:{self.tenant}:{row_id}")
    async def arow(self, row_id: int) -> User:
        return User(self.tenant)

    @staticmethod
    @guard.cached("static:{row_id}")
    def static(row_id: int) -> str:
        return "x"


def a_function_keeps_its_types() -> None:
    assert_type(get_user(1), User | None)
    assert_type(get_user(1, lang="de"), User | None)
    assert_type(get_user(user_id=1), User | None)
    assert_type(untemplated("a", 1, 2, x=True), list[str])
    assert_type(bare(1), int)
    get_user("1")  # type: ignore[arg-type]
    get_user()  # type: ignore[call-arg]
    get_user(1, "de")  # type: ignore[call-arg]
    get_user(1, language="de")  # type: ignore[call-arg]


async def a_coroutine_function_keeps_its_types() -> None:
    assert_type(await aget_user(1), User)
    assert_type(await abare(1), int)
    asked: Coroutine[Any, Any, User] = aget_user(1, lang="de")
    assert_type(await asked, User)
    await aget_user("1")  # type: ignore[arg-type]


def what_hangs_on_a_function_takes_its_arguments() -> None:
    get_user.invalidate(1)
    get_user.expire(1, lang="de")
    assert_type(get_user.refresh(1), User | None)
    assert_type(get_user.key(1), str)
    assert_type(get_user.many([1, (2,)]), list[User | None])
    get_user.put(User("x"), 1)
    get_user.put(None, user_id=1)
    peeked = get_user.peek(1)
    if peeked is not MISSING:
        assert_type(peeked, User | None)
    get_user.invalidate("1")  # type: ignore[arg-type]
    get_user.put("x", 1)  # type: ignore[arg-type]
    get_user.refresh()  # type: ignore[call-arg]
    get_user.erase(1)  # type: ignore[attr-defined]


async def what_hangs_on_a_coroutine_function_is_awaited() -> None:
    await aget_user.invalidate(1)
    assert_type(await aget_user.refresh(1, lang="de"), User)
    assert_type(await aget_user.many([1]), list[User])
    assert_type(aget_user.key(1), str)
    await aget_user.put(User("x"), 1)
    await aget_user.put(None, 1)  # type: ignore[arg-type]


async def methods_keep_their_types() -> None:
    repository = Repository()
    assert_type(repository.row(1), User)
    assert_type(Repository.row(repository, 1), User)
    assert_type(await repository.arow(1), User)
    assert_type(Repository.static(1), str)
    Repository.row.invalidate(repository, 1)
    await Repository.arow.invalidate(repository, 1)
    repository.row("1")  # type: ignore[arg-type]


def a_decorated_function_is_a_callable() -> None:
    plain: Callable[[int], User | None] = get_user
    waiting: Callable[[int], Coroutine[Any, Any, User]] = aget_user
    wrong: Callable[[str], User | None] = get_user  # type: ignore[assignment]
    print(plain, waiting, wrong)  # noqa: T201 - uses them


def find_user() -> User | None:
    return None


async def afind_user() -> User | None:
    return None


def load_many(keys: list[str]) -> dict[str, int]:
    return dict.fromkeys(keys, 1)


async def aload_many(keys: list[str]) -> dict[str, int]:
    return dict.fromkeys(keys, 1)


async def what_a_loader_returns_is_what_the_guard_returns() -> None:
    assert_type(guard.get_or_set("k", find_user), User | None)
    assert_type(guard.get_or_set("k", lambda: 1, ttl="5m", tags=["t"]), int)
    assert_type(guard.get_or_set("k", partial(int, "1")), int)
    assert_type(child.get_or_set("k", lambda: User("x")), User)
    assert_type(await guard.aget_or_set("k", afind_user, ttl="5m", returns=User), User | None)
    assert_type(await guard.aget_or_set("k", find_user), User | None)
    number: int = await guard.aget_or_set("k", lambda: abare(1))
    print(number)  # noqa: T201 - uses it
    assert_type(await guard.aget_or_set("k", lambda: "x", l1=False), str)
    assert_type(guard.get_or_set_many(["a"], load_many), dict[str, int | None])
    assert_type(await guard.aget_or_set_many(["a"], aload_many), dict[str, int | None])
    assert_type(await guard.aget_or_set_many(["a"], load_many), dict[str, int | None])
    guard.get_or_set("k", bare)  # type: ignore[arg-type]
    guard.get_or_set_many(["a"], find_user)  # type: ignore[arg-type]
    await guard.aget_or_set("k", afind_user, tll=5)  # type: ignore[call-overload]


async def the_guard() -> None:
    guard.get("k", MISSING)
    guard.get_or_set("k", lambda: 1, ttl=5, stale_if_error="1m")
    await guard.aget_or_set("k", lambda: abare(1), l1=False)
    guard.get_or_set("k", lambda: 1, tll=5)  # type: ignore[call-arg]
    guard.get_or_set("k", lambda: 1, ttl=[])  # type: ignore[arg-type]
    guard.cached("k", tll=5)  # type: ignore[call-overload]
    guard.get_or_set_many(["a"], lambda keys: dict.fromkeys(keys, 1))
    guard.set("k", 1, tags=["t"], ttl="1m")
    assert_type(guard.touch("k"), bool)
    guard.invalidate("a", "b")
    await guard.ainvalidate("a")
    guard.invalidate("a", version=5, settle="1s")
    guard.invalidate(5)  # type: ignore[arg-type]
    await guard.ainvalidate_tags("red", settle=1)
    guard.clear()
    assert_type(guard.apply([("k", 1), Change(tag="red"), Change("k", version="16/B374D848")]), int)
    with guard.writing("k", tags=["red"], mode="double", delay="1s") as write:
        write.version = 5
        write.also("other", tags=["green"])
    async with guard.writing("k", settle=timedelta(seconds=1)):
        pass
    guard.writing("k", mode="fenced")  # type: ignore[arg-type]
    current_load().add_tags("red")
    assert_type(current_load().primary, bool)
    inspection = await guard.ainspect("k")
    assert_type(inspection.ttl_left, float | None)
    assert_type(guard.stats().loads, int)
    assert_type(guard.hot(3)[0].share, float)
    Policy(hot=Hot(share=0.02, l1_ttl="10m", refresh_at=0.5))
    Policy(hot="very")  # type: ignore[arg-type]
    guard.stats().loads = 1  # type: ignore[misc]
    with guard.disabled(), guard:
        pass
    async with guard as same:
        assert_type(same, CacheGuard)
    users.rebuild(range(5))
    await users.aadd(7)
    guard.warm(get_user, [(1,)], rate=10, progress=lambda done, total: None)
    Policy(rebuild="eager")  # type: ignore[arg-type]
    CacheGuard(l1_eviction="mru")  # type: ignore[arg-type]


@guard.invalidates("user:{user_id}", "copy:{result}", lambda result: [f"k:{result}"], tags=["red"])
def rename(user_id: int, name: str = "") -> int:
    return user_id


@guard.invalidates("user:{user_id}", version=lambda result: result)
async def arename(user_id: int) -> int:
    return user_id


async def writing_functions_keep_their_signatures() -> None:
    assert_type(rename(5, name="x"), int)
    assert_type(await arename(5), int)
    rename("5")  # type: ignore[arg-type]
    guard.invalidates(5)  # type: ignore[arg-type]


def errors_have_the_bases_that_were_promised() -> None:
    value_error: ValueError = ConfigurationError()
    timeout: TimeoutError = LoadTimeout()
    ours: list[CacheGuardError] = [ConfigurationError(), LoadTimeout()]
    print(value_error, timeout, ours)  # noqa: T201 - uses them
