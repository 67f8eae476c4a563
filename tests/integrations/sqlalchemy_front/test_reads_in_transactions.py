"""What is read inside a transaction does not become everybody's: no value from before COMMIT, none that is over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, select, text, update
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from cacheguard import CacheGuard
from cacheguard_sqlalchemy import invalidate_on_commit
from tests.support.orm import Listening, User

Factory = sessionmaker[Session]


@pytest.fixture
def watched(guard: Listening, factory: Factory) -> Factory:
    with factory.begin() as session:
        session.add_all([User(id=1, org_id=1, name="old"), User(id=2, org_id=1, name="other")])
    invalidate_on_commit(guard, factory, {User: ["user:{id}"]})
    return factory


def column(session: Session, user_id: int = 1) -> str:
    return session.execute(select(User.name).where(User.id == user_id)).scalar_one()


def read(guard: CacheGuard, load: Callable[[], str]) -> Any:
    """The cached read, and whether it was kept."""
    return guard.get_or_set("user:1", load), guard.get("user:1")


def test_a_read_in_a_transaction_that_has_changed_nothing_is_cached(guard: Listening, watched: Factory) -> None:
    with watched() as session:
        assert column(session, 2) == "other"
        assert read(guard, lambda: column(session)) == ("old", "old")


@pytest.mark.parametrize(
    "change",
    [
        lambda session: session.get(User, 1).__setattr__("name", "new") or session.flush(),
        lambda session: setattr(session.get(User, 1), "name", "new"),
        lambda session: session.execute(update(User).values(name="new")),
        lambda session: session.execute(text("UPDATE users SET name = 'new'")),
        lambda session: session.bulk_update_mappings(User, [{"id": 1, "name": "new"}]),
    ],
)
@pytest.mark.parametrize("load", [column, lambda session: session.get(User, 1).name])
def test_what_is_not_committed_is_its_reader_s_alone(
    guard: Listening, watched: Factory, change: Callable[[Session], Any], load: Callable[[Session], str]
) -> None:
    with watched() as session:
        change(session)
        assert read(guard, lambda: load(session)) == ("new", None)
        session.rollback()
        assert read(guard, lambda: load(session)) == ("old", "old")


def test_a_savepoint_that_is_rolled_back_leaves_the_transaction_alone(guard: Listening, watched: Factory) -> None:
    with watched() as session:
        with session.begin_nested() as savepoint:
            session.execute(update(User).values(name="new"))
            savepoint.rollback()
        assert read(guard, lambda: column(session)) == ("old", None)


def test_a_session_from_elsewhere_is_noticed_when_the_loader_asks_it(guard: Listening, watched: Factory) -> None:
    with watched() as session:
        Context().run(session.execute, update(User).values(name="new"))
        assert Context().run(read, guard, lambda: column(session)) == ("new", None)


def test_objects_that_the_session_held_before_are_not_taken_for_new(guard: Listening, watched: Factory) -> None:
    with watched() as session:
        held = session.get_one(User, 1)
        with watched.begin() as other:
            other.get_one(User, 1).name = "new"
        assert read(guard, lambda: session.scalars(select(User).where(User.id == 1)).one().name) == ("old", None)
        assert held.name == "old"
        assert read(guard, lambda: column(session)) == ("new", "new")


def test_a_snapshot_that_is_older_than_the_load_is_not_cached(
    guard: Listening, database_url: Callable[[str], str], watched: Factory, engine: Engine
) -> None:
    if engine.dialect.name == "sqlite":
        pytest.skip("the random programs have SQLite's snapshots")
    snapshots = sessionmaker(create_engine(database_url("sync"), isolation_level="REPEATABLE READ"))
    invalidate_on_commit(guard, snapshots, {User: ["user:{id}"]})
    with snapshots() as session:
        assert column(session, 2) == "other"
        with watched.begin() as other:
            other.get_one(User, 1).name = "new"
        assert read(guard, lambda: column(session)) == ("old", None)
        session.rollback()
        assert read(guard, lambda: column(session)) == ("new", "new"), "this one begins inside the load"
    with snapshots(bind=engine.execution_options(isolation_level="SERIALIZABLE")) as session:
        column(session, 2)
        guard.invalidate("user:1")
        assert read(guard, lambda: column(session)) == ("new", None)
    snapshots.kw["bind"].dispose()


def test_where_it_is_asked_for_no_open_transaction_fills(guard: Listening, factory: Factory, watched: Factory) -> None:
    handle = invalidate_on_commit(guard, factory, {User: ["user:{id}"]}, alone="open")
    with factory() as session:
        session.get(User, 2)
        assert read(guard, lambda: "of anywhere") == ("of anywhere", None)
    assert read(guard, lambda: "after") == ("after", "after")
    guard.invalidate("user:1")
    handle.remove()
    with factory() as session:
        session.get(User, 2)
        assert read(guard, lambda: "of anywhere") == ("of anywhere", "of anywhere")


async def test_tasks_are_told_apart(guard: Listening, watched: Factory, database_url: Callable[[str], str]) -> None:
    engine = create_async_engine(database_url("async"))
    factory = async_sessionmaker(engine)
    invalidate_on_commit(guard, factory, {User: ["user:{id}"]})

    async def load() -> str:
        async with factory() as session:
            return (await session.execute(select(User.name).where(User.id == 1))).scalar_one()

    async def elsewhere() -> Any:
        return await guard.aget_or_set("user:1", load), await guard.aget("user:1")

    task_before = asyncio.Event()
    go_on = asyncio.Event()

    async def other_task() -> Any:
        task_before.set()
        await go_on.wait()
        return await elsewhere()

    running = asyncio.create_task(other_task())
    await task_before.wait()
    async with factory() as session:
        (await session.get_one(User, 1)).name = "new"
        await session.flush()
        own = await guard.aget_or_set("user:1", lambda: "seen inside")
        assert (own, await guard.aget("user:1")) == ("seen inside", None)
        go_on.set()
        assert await running == ("old", "old"), "who has nothing to do with the transaction loads and fills as ever"
        await session.commit()
    assert await elsewhere() == ("new", "new")
    await engine.dispose()
