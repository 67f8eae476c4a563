"""Random programs of two clients: nothing is cached that is not committed, and nothing older than a COMMIT.

The plainest model is the database itself: after every step, what is cached for a row is its committed value or nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from itertools import count
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, create_engine, event, func, insert, select, update
from sqlalchemy.exc import DBAPIError, InvalidRequestError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.orm.exc import StaleDataError

import cacheguard_sqlalchemy.invalidation as inner
from cacheguard import CacheGuard, Policy
from cacheguard_sqlalchemy import OnCommit, invalidate_on_commit
from cacheguard_sqlalchemy.bulk import Bulk
from tests.support.orm import Model, User

Alone = Literal["changed", "open"]
Program = list[tuple[int, str, str, int]]

ROWS = (1, 2)
# What a load that failed leaves behind lasts for a time by the clock; a program must run the same each time.
HERE = Policy(error_backoff=None)
IN_REDIS = Policy(error_backoff=None, l1=False)  # another process's L1 hears of a commit a moment later
STEPS = (
    "change",
    "change, not flushed",
    "bulk change",
    "bulk change at random",
    "change and return",
    "savepoint",
    "release",
    "roll back to savepoint",
    "roll back",
    "commit",
    "commit, and a listener raises",
    "read columns",
    "read objects",
    "read by key",
    "read held",
    "read in a session of its own",
)
PLACES = ("here", "here", "copy", "thread")  # where a step runs: in the client's own context, or in a copy of it
TASKS = ("here", "task", "gather", "wait_for", "run_sync")
values = count(1)
pool = ThreadPoolExecutor(1)


def programs(places: tuple[str, ...]) -> st.SearchStrategy[Program]:
    step = st.tuples(st.integers(0, 1), st.sampled_from(STEPS), st.sampled_from(places), st.sampled_from(ROWS))
    return st.lists(step, min_size=10, max_size=40)


def column(session: Session, row: int) -> str:
    return session.execute(select(User.name).where(User.id == row)).scalar_one()


def write(session: Session, name: str, row: int) -> User | None:
    """The step of a program that changes something. The object, if the session holds one."""
    new = str(next(values))
    if name.startswith("change, ") or name == "change":
        user = session.get_one(User, row)
        user.name = new
        if name == "change":
            session.flush()
        return user
    if name == "bulk change":
        session.execute(update(User).where(User.id == row).values(name=new))
    elif name == "bulk change at random":
        session.execute(update(User).where(User.id == row, func.random() > 0).values(name=new))
    elif name == "change and return":
        changed = update(User).where(User.id == row).values(name=new).returning(User)
        session.scalars(select(User).from_statement(changed)).all()
    elif name == "savepoint":
        session.begin_nested()
    elif name in ("release", "roll back to savepoint"):
        nested = session.get_nested_transaction()
        if nested is not None:
            nested.commit() if name == "release" else nested.rollback()
    return None


def raises(session: Session) -> None:
    if session.info.get("a listener raises"):
        raise ValueError("a listener raises")


def loader(session: Session, name: str, row: int) -> Callable[[], str] | None:
    """What a step reads through the session."""
    if name == "read objects":
        return lambda: session.scalars(select(User).where(User.id == row)).one().name
    if name == "read columns":
        return lambda: column(session, row)
    if name == "read by key":
        return lambda: session.get_one(User, row).name
    return None


class Client:
    """A session in a context of its own, as a request has one, and what it has written so far."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.session = world.factory()
        self.context = copy_context()
        self.held: dict[int, User] = {}

    def step(self, name: str, where: str, row: int) -> None:
        context = self.context if where == "here" else self.context.run(copy_context)

        def run(*call: Any) -> None:
            def within() -> None:
                context.run(*call)

            pool.submit(within).result() if where == "thread" else within()

        try:
            run(self._step, name, row)
        except (DBAPIError, InvalidRequestError, StaleDataError):  # somebody else has the lock, or no savepoint is open
            run(self._roll_back)
        except ValueError:
            run(self._close)  # as a request does whose commit raised

    def _roll_back(self) -> None:
        self.held.clear()
        self.session.rollback()

    def _close(self) -> None:
        self.session.info.pop("a listener raises", None)
        self.held.clear()
        self.session.close()

    def _step(self, name: str, row: int) -> None:
        session, key, guard = self.session, f"user:{row}", self.world.guard
        load = loader(session, name, row)
        if load is not None:
            guard.get_or_set(key, load)
        elif name == "roll back":
            self._roll_back()
        elif name.startswith("commit"):
            session.info["a listener raises"] = "raises" in name
            self.held.clear()
            session.commit()
        elif name == "read held" and self.world.alone == "open":
            held = self.held.get(row) or session.get_one(User, row)
            guard.get_or_set(key, lambda: held.name)
        elif name == "read in a session of its own":
            guard.get_or_set(key, lambda: self.world.committed(row))
        else:
            user = write(session, name, row)
            if user is not None:
                self.held[row] = user


class World:
    """Two clients, one database, one cache."""

    def __init__(self, engine: Engine, guard: CacheGuard, elsewhere: CacheGuard, alone: Alone) -> None:
        self.engine, self.guard, self.elsewhere, self.alone = engine, guard, elsewhere, alone
        self.factory = sessionmaker(engine)
        event.listen(self.factory, "after_commit", raises)
        self.handle = invalidate_on_commit(guard, self.factory, {User: ["user:{id}"]}, alone=alone)

    def committed(self, row: int) -> str:
        with Session(self.engine) as session:
            return column(session, row)

    def run(self, program: Program) -> None:
        with Session(self.engine) as session:
            session.execute(update(User).values(name="0"))
            session.commit()
        self.guard.clear()
        clients = [Client(self), Client(self)]
        try:
            for who, name, where, row in program:
                clients[who].step(name, where, row)
                self.check(name)
        finally:
            for client in clients:
                client.context.run(client.session.close)
        for row in ROWS:
            self.guard.get_or_set(f"user:{row}", partial(self.committed, row))
            assert self.guard.get(f"user:{row}") == self.committed(row), "all have ended: what is read is cached"

    def check(self, name: str) -> None:
        for row in ROWS:
            committed = self.committed(row)
            for guard in (self.guard, self.elsewhere):
                cached = guard.get(f"user:{row}")
                assert cached in (None, committed), f"after {name!r} row {row} is cached as {cached}"


def begins_where_it_is_told_to(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def connected(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver would not begin before a SELECT or a SAVEPOINT
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = OFF")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begun(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN")


@pytest.fixture
def impatient(database_url: Callable[[str], str]) -> Iterator[Engine]:
    """An engine that waits for nobody's lock, and whose SQLite begins where it is told to."""
    url = database_url("sync")
    if url.startswith("sqlite"):
        engine = create_engine(url, connect_args={"timeout": 0, "check_same_thread": False})
        begins_where_it_is_told_to(engine)
    else:
        engine = create_engine(url, connect_args={"options": "-c lock_timeout=2"})
    Model.metadata.drop_all(engine)
    Model.metadata.create_all(engine)
    with Session(engine) as session:
        session.execute(insert(User), [{"id": row, "org_id": 1} for row in ROWS])
        session.commit()
    yield engine
    engine.dispose()


FEW = pytest.mark.parametrize(
    "most",
    [
        pytest.param(3, id="some"),
        pytest.param(100, id="many", marks=pytest.mark.slow),
        pytest.param(2000, id="all", marks=pytest.mark.chaos),
    ],
)


def drawn(most: int, places: tuple[str, ...], run: Callable[[Program], None]) -> None:
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]

    @settings(suppress_health_check=checks, max_examples=most, deadline=None)
    @given(programs(places))
    def each(program: Program) -> None:
        run(program)

    each()


@FEW
@pytest.mark.parametrize("alone", ["changed", "open"])
def test_random_programs_cache_nothing_that_is_not_committed(
    impatient: Engine, redis_url: str, alone: Alone, most: int
) -> None:
    with CacheGuard(redis_url, policy=HERE) as guard, CacheGuard(redis_url, policy=IN_REDIS) as elsewhere:
        drawn(most, PLACES, World(impatient, guard, elsewhere, alone).run)


def nothing(*_: object, **__: object) -> None:
    return None


PLANTED: dict[str, tuple[list[tuple[Any, str, Any]], Program]] = {
    "objects that are changed are not asked for": (
        [(OnCommit, "_is_alone", nothing), (inner, "notice", nothing)],
        [(0, "change, not flushed", "here", 1), (0, "read by key", "here", 1)],
    ),
    "an old snapshot is taken for new": (
        [(OnCommit, "_is_private", nothing)],
        [
            (0, "read columns", "here", 2),
            (1, "change", "here", 1),
            (1, "commit", "here", 1),
            (0, "read columns", "here", 1),
        ],
    ),
    "a commit is not heard": (
        [(OnCommit, "_tell", nothing)],
        [(0, "read columns", "here", 1), (0, "change", "here", 1), (0, "commit", "here", 1)],
    ),
    "a session is known in one thread only": (
        [(inner, "notice", nothing)],
        [(0, "change, not flushed", "thread", 1), (0, "read by key", "here", 1)],
    ),
    "nobody looks into statements": (
        [(Bulk, "run", nothing)],
        [(0, "read columns", "here", 1), (0, "bulk change", "here", 1), (0, "commit", "here", 1)],
    ),
    "a listener that raises ends the invalidation": (
        [(OnCommit, "_after_commit", nothing), (OnCommit, "_before_commit", nothing)],
        [
            (0, "read columns", "here", 1),
            (0, "change", "here", 1),
            (0, "commit, and a listener raises", "here", 1),
        ],
    ),
}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)  # PostgreSQL's READ COMMITTED has no snapshots
@pytest.mark.parametrize("bug", PLANTED)
def test_the_random_programs_would_notice(
    impatient: Engine, redis_url: str, monkeypatch: pytest.MonkeyPatch, bug: str
) -> None:
    parts, program = PLANTED[bug]
    with CacheGuard(redis_url, policy=HERE) as guard, CacheGuard(redis_url, policy=IN_REDIS) as elsewhere:
        World(impatient, guard, elsewhere, "changed").run(program)
    for place, name, broken in parts:
        monkeypatch.setattr(place, name, broken)
    with CacheGuard(redis_url, policy=HERE) as guard, CacheGuard(redis_url, policy=IN_REDIS) as elsewhere:
        world = World(impatient, guard, elsewhere, "changed")
        with pytest.raises(AssertionError, match="is cached as"):
            world.run(program)


# Event loops


class AsyncClient:
    """An asynchronous session, used from tasks of all kinds."""

    def __init__(self, world: AsyncWorld) -> None:
        self.world, self.session = world, world.factory()

    async def step(self, name: str, where: str, row: int) -> None:
        try:
            await self._within(where, name, row)
        except SQLAlchemyError:
            await self.session.rollback()
        except ValueError:
            self.session.info.pop("a listener raises", None)
            await self.session.close()

    async def _within(self, where: str, name: str, row: int) -> None:
        if where == "task":
            await asyncio.create_task(self._step(name, row))
        elif where == "gather":
            await asyncio.gather(self._step(name, row))
        elif where == "wait_for":
            await asyncio.wait_for(self._step(name, row), 30)
        else:
            await self._step(name, row, sync=where == "run_sync")

    async def _step(self, name: str, row: int, *, sync: bool = False) -> None:
        session, guard, key = self.session, self.world.guard, f"user:{row}"
        load = loader(session.sync_session, name, row)
        if load is not None:
            await guard.aget_or_set(key, lambda: session.run_sync(lambda _: load()))
        elif name == "roll back":
            await session.rollback()
        elif name.startswith("commit"):
            session.info["a listener raises"] = "raises" in name
            await session.commit()
        elif name == "read in a session of its own":
            await guard.aget_or_set(key, lambda: self.world.committed(row))
        elif name == "change, not flushed" and not sync:
            (await session.get_one(User, row)).name = str(next(values))
        else:
            await session.run_sync(lambda plain: write(plain, name, row) and None)


class AsyncWorld:
    """As `World`, in an event loop."""

    def __init__(self, engine: AsyncEngine, guard: CacheGuard) -> None:
        self.engine, self.guard = engine, guard
        self.factory: async_sessionmaker[AsyncSession] = async_sessionmaker(engine)
        invalidate_on_commit(guard, self.factory, {User: ["user:{id}"]})
        event.listen(self.factory.kw["sync_session_class"], "after_commit", raises)

    async def committed(self, row: int) -> str:
        async with AsyncSession(self.engine) as session:
            return await session.run_sync(lambda plain: column(plain, row))

    async def run(self, program: Program) -> None:
        async with AsyncSession(self.engine) as session:
            await session.execute(update(User).values(name="0"))
            await session.commit()
        await self.guard.aclear()
        clients = [AsyncClient(self), AsyncClient(self)]
        try:
            for who, name, where, row in program:
                await clients[who].step(name, where, row)
                for each in ROWS:
                    committed, cached = await self.committed(each), await self.guard.aget(f"user:{each}")
                    assert cached in (None, committed), f"after {name!r} row {each} is cached as {cached}"
        finally:
            for client in clients:
                await client.session.close()
        for each in ROWS:
            await self.guard.aget_or_set(f"user:{each}", partial(self.committed, each))
            assert await self.guard.aget(f"user:{each}") == await self.committed(each), "all have ended"


@pytest.mark.slow
@FEW
def test_random_programs_of_tasks(impatient: Engine, database_url: Callable[[str], str], most: int) -> None:
    url = database_url("async")
    is_sqlite = url.startswith("sqlite")
    options: dict[str, Any] = {"timeout": 0} if is_sqlite else {"server_settings": {"lock_timeout": "2"}}
    engine = create_async_engine(url, connect_args=options)
    if is_sqlite:
        begins_where_it_is_told_to(engine.sync_engine)

    with asyncio.Runner() as runner, CacheGuard("memory://", policy=HERE) as guard:

        def run(awaited: Awaitable[None]) -> None:
            async def whole() -> None:
                await awaited

            runner.run(whole())

        world = AsyncWorld(engine, guard)
        try:
            drawn(most, TASKS, lambda program: run(world.run(program)))
        finally:
            run(engine.dispose())
