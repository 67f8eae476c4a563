"""What is read inside a transaction does not become everybody's: no value from before COMMIT, none that is over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextvars import Context, copy_context
from itertools import count
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, create_engine, event, select, text, update
from sqlalchemy.exc import DBAPIError, InvalidRequestError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.orm.exc import StaleDataError

from cacheguard import CacheGuard, Policy
from cacheguard_sqlalchemy import OnCommit, invalidate_on_commit
from tests.support.orm import Listening, Model, User

Factory = sessionmaker[Session]
Alone = Literal["changed", "open"]


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
        pytest.skip("the random programs below have SQLite's snapshots")
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


# Random programs

ROWS = (1, 2)
IN_REDIS = Policy(l1=False)  # another process's L1 hears of a commit a moment later
STEPS = (
    "change",
    "change, not flushed",
    "bulk change",
    "savepoint",
    "release",
    "roll back to savepoint",
    "roll back",
    "commit",
    "read columns",
    "read objects",
    "read held",
    "read in a session of its own",
)
PROGRAMS = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from(STEPS), st.sampled_from(ROWS)), min_size=10, max_size=40
)
values = count(1)


class Client:
    """A session in a context of its own, as a request has one, and what it has written so far."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.session = world.factory()
        self.context = copy_context()
        self.held: dict[int, User] = {}

    def step(self, name: str, row: int) -> None:
        try:
            self.context.run(self._step, name, row)
        except (DBAPIError, InvalidRequestError, StaleDataError):  # somebody else has the lock, or no savepoint is open
            self.context.run(self._roll_back)

    def _roll_back(self) -> None:
        self.held.clear()
        self.session.rollback()

    def _step(self, name: str, row: int) -> None:  # noqa: C901 - one branch for each step
        session, key = self.session, f"user:{row}"
        if name.startswith("change"):
            user = self.held[row] = session.get_one(User, row)
            user.name = str(next(values))
            if name == "change":
                session.flush()
        elif name == "bulk change":
            session.execute(update(User).where(User.id == row).values(name=str(next(values))))
        elif name == "savepoint":
            session.begin_nested()
        elif name in ("release", "roll back to savepoint"):
            nested = session.get_nested_transaction()
            if nested is not None:
                nested.commit() if name == "release" else nested.rollback()
        elif name == "roll back":
            self._roll_back()
        elif name == "commit":
            self.held.clear()
            session.commit()
        elif name == "read held" and (self.world.alone == "open" or session.dirty):
            self.held[row] = user = session.get_one(User, row)
            self.world.guard.get_or_set(key, lambda: user.name)
        elif name == "read objects":
            self.world.guard.get_or_set(key, lambda: session.scalars(select(User).where(User.id == row)).one().name)
        elif name == "read columns":
            self.world.guard.get_or_set(key, lambda: column(session, row))
        elif name == "read in a session of its own":
            self.world.guard.get_or_set(key, lambda: self.world.committed(row))


class World:
    """Two clients, one database, one cache."""

    def __init__(self, engine: Engine, guard: CacheGuard, elsewhere: CacheGuard, alone: Alone) -> None:
        self.engine, self.guard, self.elsewhere, self.alone = engine, guard, elsewhere, alone
        self.factory = sessionmaker(engine)
        self.handle = invalidate_on_commit(guard, self.factory, {User: ["user:{id}"]}, alone=alone)

    def committed(self, row: int) -> str:
        with self.factory() as session:
            return column(session, row)

    def run(self, program: list[tuple[int, str, int]]) -> None:
        with Session(self.engine) as session:
            session.execute(update(User).values(name="0"))
            session.commit()
        self.guard.clear()
        clients = [Client(self), Client(self)]
        try:
            for who, name, row in program:
                clients[who].step(name, row)
                self.check(name)
        finally:
            for client in clients:
                client.context.run(client.session.close)

    def check(self, name: str) -> None:
        for row in ROWS:
            committed = self.committed(row)
            for guard in (self.guard, self.elsewhere):
                cached = guard.get(f"user:{row}")
                assert cached in (None, committed), f"after {name!r} row {row} is cached as {cached}"


@pytest.fixture
def impatient(database_url: Callable[[str], str]) -> Iterator[Engine]:
    """An engine that waits for nobody's lock, and whose SQLite begins where it is told to."""
    url = database_url("sync")
    if url.startswith("sqlite"):
        engine = create_engine(url, connect_args={"timeout": 0})

        @event.listens_for(engine, "connect")
        def connected(connection: Any, _record: object) -> None:
            connection.isolation_level = None  # the driver would not begin before a SELECT or a SAVEPOINT
            connection.execute("PRAGMA journal_mode = WAL")

        @event.listens_for(engine, "begin")
        def begun(connection: Any) -> None:
            connection.exec_driver_sql("BEGIN")

    else:
        engine = create_engine(url, connect_args={"options": "-c lock_timeout=2"})
    Model.metadata.drop_all(engine)
    Model.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all([User(id=row, org_id=1) for row in ROWS])
        session.commit()
    yield engine
    engine.dispose()


@pytest.mark.parametrize("share", [10, pytest.param(1, marks=pytest.mark.slow)], ids=["some", "many"])
@pytest.mark.parametrize("alone", ["changed", "open"])
def test_random_programs_cache_nothing_that_is_not_committed(
    impatient: Engine, redis_url: str, alone: Alone, share: int
) -> None:
    with CacheGuard(redis_url) as guard, CacheGuard(redis_url, policy=IN_REDIS) as elsewhere:
        world = World(impatient, guard, elsewhere, alone)
        fixtures = [HealthCheck.too_slow, HealthCheck.data_too_large]

        @settings(suppress_health_check=fixtures, max_examples=max(5, settings().max_examples // share))
        @given(PROGRAMS)
        def run(program: list[tuple[int, str, int]]) -> None:
            world.run(program)

        run()
        assert guard.stats().fills > 5 // share, "reads are cached, or there was nothing to find"


@pytest.mark.parametrize(
    ("part", "program"),
    [
        ("_is_alone", [(0, "change, not flushed", 1), (0, "read held", 1)]),
        ("_is_private", [(0, "read columns", 2), (1, "change", 1), (1, "commit", 1), (0, "read columns", 1)]),
        ("_after_commit", [(0, "read columns", 1), (0, "change", 1), (0, "commit", 1)]),
    ],
)
def test_the_random_programs_would_notice(
    impatient: Engine, redis_url: str, monkeypatch: pytest.MonkeyPatch, part: str, program: list[tuple[int, str, int]]
) -> None:
    if part == "_is_private" and impatient.dialect.name == "postgresql":
        pytest.skip("READ COMMITTED has no snapshots")
    monkeypatch.setattr(OnCommit, part, lambda *_: False)
    if part == "_after_commit":
        monkeypatch.setattr(OnCommit, "_before_commit", lambda *_: None)
    with CacheGuard(redis_url) as guard, CacheGuard(redis_url, policy=IN_REDIS) as elsewhere:
        world = World(impatient, guard, elsewhere, "changed")
        with pytest.raises(AssertionError, match="is cached as"):
            world.run(program)
