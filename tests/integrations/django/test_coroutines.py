"""Whose transaction it is, is asked where the rows are read: a coroutine inside of ``atomic`` is inside."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from asgiref.sync import ThreadSensitiveContext, async_to_sync, sync_to_async
from django.db import connections, transaction

from cacheguard import MISSING
from cacheguard_django import CacheGuardCache, ainvalidate, guard, invalidate, invalidates, reach, writing
from cacheguard_django.reach import reached
from tests.integrations.django.shop.models import Person

pytestmark = pytest.mark.usefixtures("database", "cache")

Act = Callable[[int], Coroutine[Any, Any, Any]]


def cached(pk: int) -> Any:
    return guard().get(f"person:{pk}", MISSING)


async def read(pk: int) -> Any:
    return await Person.objects.filter(pk=pk).values_list("name", flat=True).afirst()


async def by_function(pk: int) -> Any:
    return await guard().cached("person:{pk}")(read)(pk)


async def by_many(pk: int) -> Any:
    return await guard().cached("person:{pk}")(read).many([pk])


async def by_refresh(pk: int) -> Any:
    return await guard().cached("person:{pk}")(read).refresh(pk)


async def by_get_or_set(pk: int) -> Any:
    return await guard().aget_or_set(f"person:{pk}", lambda: read(pk))


async def by_get_or_set_many(pk: int) -> Any:
    async def load(names: list[str]) -> dict[str, Any]:
        return {name: await read(pk) for name in names}

    return await guard().aget_or_set_many([f"person:{pk}"], load)


async def in_a_task(pk: int) -> Any:
    return await asyncio.create_task(by_function(pk))


async def gathered(pk: int) -> Any:
    return await asyncio.gather(by_function(pk), by_function(pk))


async def within_a_time(pk: int) -> Any:
    return await asyncio.wait_for(by_function(pk), 10)


async def in_a_group(pk: int) -> Any:
    async with asyncio.TaskGroup() as group:
        return await group.create_task(by_function(pk))


async def by_a_blocking_function(pk: int) -> Any:
    @guard().cached("person:{pk}")
    def blocking(pk: int) -> Any:
        return Person.objects.get(pk=pk).name

    return await sync_to_async(blocking)(pk)


READS: list[Act] = [
    by_function,
    by_many,
    by_refresh,
    by_get_or_set,
    by_get_or_set_many,
    in_a_task,
    gathered,
    within_a_time,
    in_a_group,
    by_a_blocking_function,
]


@pytest.mark.parametrize("act", READS, ids=lambda act: act.__name__)
def test_what_a_coroutine_reads_in_a_transaction_is_not_cached(act: Act) -> None:
    pk = Person.objects.create(name="committed").pk
    with transaction.atomic():
        Person.objects.filter(pk=pk).update(name="never committed")
        assert "never committed" in str(async_to_sync(act)(pk))
        transaction.set_rollback(True)
    assert cached(pk) is MISSING
    assert "committed" in str(async_to_sync(act)(pk))
    assert cached(pk) == "committed"


def test_the_cache_asks_too(cache: CacheGuardCache) -> None:
    pk = Person.objects.create(name="committed").pk

    async def load() -> Any:
        return await cache.aget_or_set("k", lambda: read(pk))

    with transaction.atomic():
        async_to_sync(load)()
    assert cache.get("k") is None


async def by_call(pk: int) -> None:
    invalidate(f"person:{pk}")


async def by_awaited_call(pk: int) -> None:
    await ainvalidate(f"person:{pk}")


async def by_block(pk: int) -> None:
    with writing(f"person:{pk}"):
        await Person.objects.filter(pk=pk).aupdate(name="new")


async def by_async_block(pk: int) -> None:
    async with writing("other") as write:
        await Person.objects.filter(pk=pk).aupdate(name="new")
        write.also(f"person:{pk}")


@invalidates("person:{pk}")
async def by_decorator(pk: int) -> None:
    await Person.objects.filter(pk=pk).aupdate(name="new")


async def in_the_thread(pk: int) -> None:
    await sync_to_async(invalidate)(f"person:{pk}")


async def in_a_task_of_its_own(pk: int) -> None:
    await asyncio.create_task(by_call(pk))


WRITES: list[Act] = [
    by_call,
    by_awaited_call,
    by_block,
    by_async_block,
    by_decorator,
    in_the_thread,
    in_a_task_of_its_own,
]


@pytest.mark.parametrize("act", WRITES, ids=lambda act: act.__name__)
def test_what_a_coroutine_invalidates_waits_for_the_commit(act: Act) -> None:
    pk = Person.objects.create(name="old").pk
    with transaction.atomic():
        async_to_sync(act)(pk)
        guard().set(f"person:{pk}", "old")  # a reader that fills before the COMMIT
    assert cached(pk) is MISSING
    guard().set(f"person:{pk}", "kept")
    with transaction.atomic():
        async_to_sync(act)(pk)
        transaction.set_rollback(True)
    assert cached(pk) == "kept"
    async_to_sync(act)(pk)
    assert cached(pk) is MISSING


def test_a_view_of_an_asgi_server_is_inside_of_its_own_transaction_only() -> None:
    """The thread of a request waits in `async_to_sync`; another request has another one."""
    pk = Person.objects.create(name="committed").pk
    inside = asyncio.Event()

    def view() -> Any:
        with transaction.atomic():
            Person.objects.filter(pk=pk).update(name="never committed")
            async_to_sync(middleware)()
            transaction.set_rollback(True)

    async def middleware() -> None:
        assert await by_function(pk) == "never committed"
        inside.set()
        await asyncio.wait_for(done.wait(), 10)

    async def request() -> None:
        async with ThreadSensitiveContext():
            await sync_to_async(view)()
            await sync_to_async(connections.close_all)()

    async def another_request() -> Any:
        await inside.wait()
        async with ThreadSensitiveContext():
            try:
                seen = await guard().aget_or_set(f"another:{pk}", lambda: read(pk))
                return seen, await guard().aget(f"another:{pk}"), await guard().aget(f"person:{pk}")
            finally:
                done.set()
                await sync_to_async(connections.close_all)()

    done = asyncio.Event()

    async def server() -> Any:
        first = asyncio.create_task(request())
        seen = await another_request()
        await first
        return seen

    assert asyncio.run(server()) == ("committed", "committed", None)


def test_a_loop_inside_of_a_transaction_reads_elsewhere_and_invalidates_at_once_and_after_the_commit() -> None:
    pk = Person.objects.create(name="old").pk
    guard().set(f"person:{pk}", "old")
    with transaction.atomic():
        asyncio.run(by_call(pk))
        assert cached(pk) is MISSING  # its rows may be committed already, by another thread
        guard().set(f"person:{pk}", "old")
    assert cached(pk) is MISSING


def test_a_connection_that_was_there_before_is_found() -> None:
    """The module may be imported late; in a thread, for what was there before the tests is hidden from its search."""

    async def found() -> list[Any]:
        return reached()

    def program() -> bool:
        try:
            with transaction.atomic():
                reach._known.clear()  # noqa: SLF001 - no other way in
                reach._note_all()  # noqa: SLF001 - no other way in
                mine: Any = connections["default"]
                return any(each is mine for each in async_to_sync(found)())
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(program).result(30)


def test_a_task_that_outlives_its_transaction_is_outside() -> None:
    left: list[asyncio.Task[Any]] = []
    pk = Person.objects.create(name="committed").pk

    async def main() -> Any:
        go = asyncio.Event()

        async def later() -> Any:
            await go.wait()
            return reached()

        async def inner() -> None:
            left.append(asyncio.create_task(later()))

        def view() -> None:
            with transaction.atomic():
                async_to_sync(inner)()
            connections.close_all()

        await sync_to_async(view)()
        go.set()
        return await left[0]

    assert all(not each.in_atomic_block for each in asyncio.run(main()))
    assert pk
