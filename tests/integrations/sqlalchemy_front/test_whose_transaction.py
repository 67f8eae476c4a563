"""What a session has not committed is its caller's alone, in whichever thread or task the session was used before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context, copy_context
from pathlib import Path
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, HTTPException, Request
from httpx import ASGITransport, AsyncClient
from sqlalchemy import Engine, create_engine, select, update
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from cacheguard_sqlalchemy import OnCommit, invalidate_on_commit
from tests.support.orm import Listening, Model, Post, User, without_waiting_for_the_disk

Factory = sessionmaker[Session]
TOUCHED: dict[Any, list[Any]] = {User: ["user:{id}"]}


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = without_waiting_for_the_disk(
        create_engine(f"sqlite:///{tmp_path}/db", connect_args={"check_same_thread": False})
    )
    Model.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all([User(id=1, name="committed"), User(id=2, name="committed"), Post(id=1, user_id=1)])
        session.commit()
    yield engine
    engine.dispose()


def elsewhere(call: Callable[[], Any]) -> Any:
    """What *call* returns in a thread with a copy of this context, as FastAPI runs each dependency."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(copy_context().run, call).result()


def flushed(session: Session) -> User:
    user = session.get_one(User, 1)
    user.name = "refused"
    session.flush()
    return user


def unflushed(session: Session) -> User:
    user = session.get_one(User, 1)
    user.name = "refused"
    return user


def bulk(session: Session) -> User:
    user = session.get_one(User, 1)
    session.execute(update(User).where(User.id == 1).values(name="refused"))
    return user


def through_a_relation(session: Session) -> str:
    user = session.get_one(Post, 1).user
    assert user is not None
    return user.name


LOADS: dict[str, Callable[[Session], str]] = {
    "get": lambda session: session.get_one(User, 1).name,
    "select": lambda session: session.scalars(select(User).where(User.id == 1)).one().name,
    "columns": lambda session: session.scalars(select(User.name).where(User.id == 1)).one(),
    "relation": through_a_relation,
}


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("change", [flushed, unflushed, bulk])
def test_a_change_in_another_thread_of_the_request(
    guard: Listening, watched: Factory, change: Callable[[Session], User], load: str
) -> None:
    with watched() as session:
        held = elsewhere(lambda: change(session))
        own = elsewhere(lambda: guard.get_or_set("user:1", lambda: LOADS[load](session)))
        assert (own, guard.get("user:1")) == ("refused", None)
        session.rollback()
        assert held in session


@pytest.mark.parametrize("do", ["set", "delete", "add", "append"])
def test_who_changes_an_object_is_inside(guard: Listening, watched: Factory, do: str) -> None:
    with watched() as session:
        user = elsewhere(lambda: session.get_one(User, 1))
        if do == "set":
            user.name = "refused"
        elif do == "delete":
            session.delete(user)
        elif do == "add":
            session.add(User(id=9))
        else:
            user.posts.append(Post(id=9))
        assert guard.get_or_set("user:1", lambda: "of an object") == "of an object"
        assert guard.get("user:1") is None


def test_a_session_that_has_let_go_of_its_objects_is_still_known(guard: Listening, watched: Factory) -> None:
    with watched() as session:
        session.get_one(User, 1)
        session.expunge_all()
        Context().run(unflushed, session)
        own = Context().run(guard.get_or_set, "user:1", lambda: session.get_one(User, 1).name)
        assert (own, guard.get("user:1")) == ("refused", None)


def test_an_object_from_before_the_load_is_not_taken_for_new(guard: Listening, watched: Factory) -> None:
    watched.configure(expire_on_commit=False)
    with watched() as session:
        held = session.get_one(User, 1)
        with watched.begin() as other:
            other.get_one(User, 1).name = "new"
        assert guard.get_or_set("user:1", lambda: session.get_one(User, 1).name) == "committed"
        assert guard.get("user:1") is None
        session.commit()
        assert guard.get_or_set("user:1", lambda: session.get_one(User, 1).name) == "committed"
        assert guard.get("user:1") is None, "it is held across the commit"
        session.expire_all()
        assert guard.get_or_set("user:1", lambda: session.get_one(User, 1).name) == "new"
        assert guard.get("user:1") == held.name == "new", "it was asked anew"


def test_what_a_load_has_loaded_itself_is_cached(guard: Listening, watched: Factory) -> None:
    with watched() as session:

        def load() -> str:
            assert session.get_one(User, 1) is session.get_one(User, 1)
            return session.get_one(User, 1).name

        assert guard.get_or_set("user:1", load) == guard.get("user:1") == "committed"


def test_where_nothing_can_be_known_open_is_safe(guard: Listening, factory: Factory) -> None:
    invalidate_on_commit(guard, factory, TOUCHED, alone="open")
    with factory() as session:
        user = Context().run(flushed, session)
        own = Context().run(guard.get_or_set, "user:1", lambda: user.name)
        assert (own, guard.get("user:1")) == ("refused", None), "an object from a context that nobody knows"
        session.rollback()
    assert guard.get_or_set("user:1", lambda: "committed") == guard.get("user:1") == "committed"

    def load() -> str:
        with factory() as own:
            name: str = guard.get_or_set("user:2", lambda: own.get_one(User, 2).name)
            return name

    assert guard.get_or_set("both", load) == "committed"
    assert guard.get("both") == guard.get("user:2") == "committed", "sessions of loaders count for nobody else"


def test_a_transaction_that_a_load_began_and_left_open_is_open(guard: Listening, factory: Factory) -> None:
    invalidate_on_commit(guard, factory, TOUCHED, alone="open")
    with factory() as session:
        assert guard.get_or_set("user:2", lambda: session.get_one(User, 2).name) == "committed"
        user = session.get_one(User, 1)
        user.name = "refused"
        own = Context().run(guard.get_or_set, "user:1", lambda: user.name)
        assert (own, guard.get("user:1")) == ("refused", None)
        session.rollback()


def test_what_a_load_changes_in_its_own_session_counts_at_once(guard: Listening, factory: Factory) -> None:
    invalidate_on_commit(guard, factory, TOUCHED, alone="open")

    def load() -> str:
        with factory() as own:
            user = unflushed(own)
            name: str = guard.get_or_set("user:1", lambda: user.name)
            return name

    assert guard.get_or_set("outer", load) == "refused"
    assert guard.get("user:1") is None


def test_scoped_sessions(guard: Listening, factory: Factory) -> None:
    scoped = scoped_session(factory)
    invalidate_on_commit(guard, scoped, TOUCHED)
    session = scoped()
    elsewhere(lambda: unflushed(session))
    assert guard.get_or_set("user:1", lambda: scoped.get_one(User, 1).name) == "refused"
    assert guard.get("user:1") is None
    scoped.remove()


def test_the_end_of_a_watch_leaves_the_sessions_as_they_are(guard: Listening, factory: Factory) -> None:
    handle: OnCommit = invalidate_on_commit(guard, factory, TOUCHED)
    with factory() as session:
        session.get_one(User, 1)
        handle.remove()
        session.get_one(User, 1).name = "new"
        session.expunge_all()
        session.get_one(User, 1).name = "newer"
        session.commit()
    assert guard.told == []


# FastAPI


def request_session(request: Request) -> Iterator[Session]:
    with request.app.state.sessions() as made:
        yield made


TheSession = Annotated[Session, Depends(request_session)]


def found_user(session: TheSession) -> User:
    return session.get_one(User, 1)


def changed_user(session: TheSession) -> User:
    return flushed(session)


Found = Annotated[User, Depends(found_user)]
Changed = Annotated[User, Depends(changed_user)]


async def test_fastapi_with_dependencies_in_threads(guard: Listening, watched: Factory) -> None:
    app = FastAPI()
    app.state.sessions = watched

    @guard.cached("user:{i}")
    def name(i: int, session: Session) -> str:
        return session.get_one(User, i).name

    @app.post("/here")
    def here(session: TheSession, user: Found) -> None:
        user.name = "refused"
        name(1, session)
        raise HTTPException(409)

    @app.post("/dependency")
    def before(session: TheSession, _: Changed) -> None:
        name(1, session)
        raise HTTPException(409)

    @app.post("/async")
    async def in_loop(session: TheSession, user: Found) -> None:
        user.name = "refused"
        await asyncio.to_thread(name, 1, session)
        raise HTTPException(409)

    @app.get("/")
    def show(session: TheSession) -> str:
        return name(1, session)

    async with AsyncClient(transport=ASGITransport(app), base_url="http://shop") as client:
        for path in ("/here", "/dependency", "/async"):
            assert (await client.post(path)).status_code == 409
            assert (await client.get("/")).json() == "committed", path
            await guard.aclear()


# Tasks


@pytest.fixture
async def sessions(guard: Listening, engine: Engine) -> AsyncIterator[async_sessionmaker[AsyncSession]]:
    made = create_async_engine(f"sqlite+aiosqlite:///{engine.url.database}")
    factory = async_sessionmaker(made)
    invalidate_on_commit(guard, factory, TOUCHED)
    yield factory
    await made.dispose()


async def in_gather(session: AsyncSession) -> User:
    return (await asyncio.gather(session.get_one(User, 1)))[0]


async def in_task(session: AsyncSession) -> User:
    return await asyncio.create_task(session.get_one(User, 1))


async def in_group(session: AsyncSession) -> User:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(session.get_one(User, 1))
    return task.result()


async def in_wait_for(session: AsyncSession) -> User:
    return await asyncio.wait_for(session.get_one(User, 1), 10)


async def in_run_sync(session: AsyncSession) -> User:
    return await session.run_sync(lambda plain: plain.get_one(User, 1))


async def changed_in_task(session: AsyncSession) -> User:
    async def change() -> User:
        user = await session.get_one(User, 1)
        user.name = "rolled back"
        return user

    return await asyncio.create_task(change())


async def flushed_in_run_sync(session: AsyncSession) -> User:
    return await asyncio.create_task(session.run_sync(flushed))


@pytest.mark.parametrize(
    "get", [in_gather, in_task, in_group, in_wait_for, in_run_sync, changed_in_task, flushed_in_run_sync]
)
async def test_tasks_and_greenlets(
    guard: Listening, sessions: async_sessionmaker[AsyncSession], get: Callable[[AsyncSession], Awaitable[User]]
) -> None:
    async with sessions() as session:
        user = await get(session)
        if not get.__name__.startswith(("changed", "flushed")):
            user.name = "rolled back"

        async def load() -> str:
            return (await session.get_one(User, 1)).name

        assert await guard.aget_or_set("user:1", load) != "committed"
        assert await guard.aget("user:1") is None
        await session.rollback()
    async with sessions() as session:
        assert await guard.aget_or_set("user:1", load) == "committed"
    assert await guard.aget("user:1") == "committed"
