"""The outbox: written with the transaction, delivered at least once, whoever dies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, MetaData, create_engine, delete, insert, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from cacheguard import CacheGuard
from cacheguard.errors import ConfigurationError, Unreachable
from cacheguard_sqlalchemy import OutboxRelay, OutboxSize, Touches, invalidate_on_commit, outbox_table
from tests.support.faults import Fault, FaultProxy
from tests.support.orm import OUTBOX, Listening, User
from tests.support.postgres_server import PostgresServer

Factory = sessionmaker[Session]
USER = Touches(keys=["user:{id}"], tags=["org:{org_id}"])
TAKES_AT_MOST = 10.0  # seconds until something that must happen has happened


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + TAKES_AT_MOST
    while not holds():
        assert time.monotonic() < deadline, "it has not happened"
        time.sleep(0.005)


@pytest.fixture
def writing(guard: Listening, factory: Factory) -> Factory:
    """Sessions that leave everything to the relay."""
    invalidate_on_commit(guard, factory, {User: USER}, mode="outbox", outbox=OUTBOX)
    return factory


def names(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        found = connection.execute(select(OUTBOX.c.kind, OUTBOX.c.name).order_by(OUTBOX.c.id))
        return [f"{kind} {name}" for kind, name in found]


@pytest.fixture
def relay(engine: Engine, guard: Listening) -> Iterator[OutboxRelay]:
    relay = OutboxRelay(engine, OUTBOX, guard, interval="20ms", claim="5s")
    yield relay
    relay.stop()


def add(factory: Factory, *ids: int) -> None:
    with factory.begin() as session:
        session.add_all([User(id=each, org_id=1) for each in ids])


def test_a_commit_leaves_rows_and_a_rollback_none(
    guard: Listening, writing: Factory, engine: Engine, relay: OutboxRelay
) -> None:
    with writing() as session:
        session.add(User(id=1, org_id=1))
        session.flush()
        session.rollback()
        session.commit()
        assert names(engine) == []
        session.add(User(id=1, org_id=1))
        session.commit()
        assert names(engine) == ["key user:1", "tag org:1"]
    assert guard.told == [], "the relay does it"
    size = relay.pending()
    assert size.rows == 2
    assert size.age is not None
    assert relay.run_once() == 2
    assert guard.heard() == {"user:1", "#org:1"}
    assert relay.pending() == OutboxSize(0, None)
    assert relay.run_once() == 0
    assert relay.stats().delivered == 2


def test_a_savepoint_that_takes_its_rows_along_gets_them_written_again(writing: Factory, engine: Engine) -> None:
    with writing() as session:
        outer = session.begin_nested()
        with session.begin_nested():
            session.add(User(id=1, org_id=1))
        outer.rollback()
        session.add(User(id=1, org_id=2))
        session.commit()
    assert {"key user:1", "tag org:2"} <= set(names(engine))


def test_statements_and_what_is_said_by_hand_are_written_down(
    guard: Listening, writing: Factory, engine: Engine
) -> None:
    handle = invalidate_on_commit(guard, writing, {User: ["other:{id}"]}, mode="outbox", outbox=OUTBOX)
    add(writing, 1)
    handle.remove()
    assert {"key other:1", "key user:1"} <= set(names(engine))
    with engine.begin() as connection:
        connection.execute(delete(OUTBOX))
    with writing.begin() as session:
        session.execute(update(User).where(User.id == 1).values(org_id=3))
    assert sorted(names(engine)) == ["key user:1", "tag org:1", "tag org:3"]
    handle = invalidate_on_commit(guard, writing, {User: ["other:{id}"]}, mode="outbox", outbox=OUTBOX)
    with writing.begin() as session:
        handle.also(session, "by hand")
    assert "key by hand" in names(engine)


def test_with_an_outbox_the_guard_is_told_at_once_as_well(guard: Listening, factory: Factory, engine: Engine) -> None:
    invalidate_on_commit(guard, factory, {User: USER}, outbox=OUTBOX)
    add(factory, 1)
    assert guard.heard() == {"user:1", "#org:1"}
    assert names(engine) == ["key user:1", "tag org:1"]


def test_what_cannot_be_named_clears_the_namespace(
    guard: Listening, writing: Factory, engine: Engine, relay: OutboxRelay
) -> None:
    add(writing, 1)
    with writing.begin() as session:
        session.execute(update(User).values(id=2))
    assert "all " in names(engine)
    relay.run_once()
    assert "everything" in guard.heard()


def test_versions_travel_through_the_table(guard: Listening, factory: Factory, relay: OutboxRelay) -> None:
    from tests.support.orm import Item

    invalidate_on_commit(guard, factory, {Item: ["item:{id}"]}, mode="outbox", outbox=OUTBOX, versions=True)
    with factory() as session:
        item = Item(id=1)
        session.add(item)
        session.commit()
        relay.run_once()
        assert guard.versions == {"item:1": 1}


def test_a_relay_in_a_thread_of_its_own(guard: Listening, writing: Factory, relay: OutboxRelay) -> None:
    with relay:
        add(writing, 1, 2, 3)
        until(lambda: relay.stats().delivered == 4)
    assert guard.heard() == {"user:1", "user:2", "user:3", "#org:1"}
    with pytest.raises(RuntimeError, match="started already"):
        relay.start()


async def test_a_relay_in_an_event_loop(guard: Listening, engine: Engine, database_url: Callable[[str], str]) -> None:
    aengine = create_async_engine(database_url("async"))
    factory = async_sessionmaker(aengine)
    invalidate_on_commit(guard, factory, {User: USER}, mode="outbox", outbox=OUTBOX)
    relay = OutboxRelay(aengine, OUTBOX, guard, interval="20ms")
    async with factory.begin() as session:
        session.add(User(id=1, org_id=1))
    assert (await relay.apending()).rows == 2
    assert await relay.arun_once() == 2
    assert guard.heard() == {"user:1", "#org:1"}
    running = asyncio.create_task(relay.arun())
    async with factory.begin() as session:
        session.add(User(id=2, org_id=1))
    while relay.stats().delivered < 4:
        await asyncio.sleep(0.005)
    relay.stop()
    await running
    assert guard.heard() == {"user:2", "#org:1"}
    with pytest.raises(ConfigurationError, match="arun"):
        relay.run_once()
    await aengine.dispose()


def test_batches_are_as_large_as_asked(guard: Listening, writing: Factory, engine: Engine) -> None:
    relay = OutboxRelay(engine, OUTBOX, guard, batch=2)
    add(writing, 1, 2, 3, 4)
    assert [relay.run_once() for _ in range(4)] == [2, 2, 1, 0]


@pytest.mark.parametrize("on_unreachable", ["queue", "raise"])
def test_rows_stay_until_redis_has_acknowledged_them(
    factory: Factory, engine: Engine, proxy: FaultProxy, on_unreachable: Any
) -> None:
    with CacheGuard(proxy.url, on_unreachable=on_unreachable) as guard:
        invalidate_on_commit(guard, factory, {User: USER}, mode="outbox", outbox=OUTBOX)
        guard.set("user:1", "old")
        add(factory, 1)
        relay = OutboxRelay(engine, OUTBOX, guard)
        proxy.inject(Fault.REFUSE)
        for _ in range(2):  # the claim is let go of, too
            with pytest.raises(Unreachable):
                relay.run_once()
            assert len(names(engine)) == 2
        proxy.heal()
        assert once_it_answers(relay) == 2
        assert guard.get("user:1") is None
        assert names(engine) == []


def once_it_answers(relay: OutboxRelay) -> int:
    """Rows delivered by the first run for which the breaker lets Redis be asked again."""
    delivered: list[int] = []

    def try_it() -> bool:
        with contextlib.suppress(Unreachable):
            delivered.append(relay.run_once())
        return bool(delivered)

    until(try_it)
    return delivered[0]


async def test_rows_stay_behind_the_other_door_too(
    engine: Engine, proxy: FaultProxy, database_url: Callable[[str], str]
) -> None:
    aengine = create_async_engine(database_url("async"))
    with engine.begin() as connection:
        connection.execute(insert(OUTBOX).values(kind="key", name="user:1", created_at=1.0))
    async with CacheGuard(proxy.url) as guard:
        relay = OutboxRelay(aengine, OUTBOX, guard)
        proxy.inject(Fault.REFUSE)
        with pytest.raises(Unreachable):
            await relay.arun_once()
        proxy.heal()
        assert await relay.arun_once() == 1
    await aengine.dispose()


def test_a_running_relay_outlives_the_trouble_with_redis(
    factory: Factory, engine: Engine, proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "cacheguard")
    with CacheGuard(proxy.url) as guard, OutboxRelay(engine, OUTBOX, guard, interval="20ms") as relay:
        proxy.inject(Fault.REFUSE)
        with factory.begin() as session:
            session.execute(insert(OUTBOX).values(kind="key", name="user:1", created_at=time.time()))
        until(lambda: relay.stats().failures)
        proxy.heal()
        until(lambda: relay.stats().delivered == 1)
        until(lambda: "works again" in caplog.text)


def test_a_running_relay_outlives_the_trouble_with_the_database(
    guard: Listening, postgres_server: PostgresServer
) -> None:
    url = f"postgresql+psycopg://postgres@127.0.0.1:{postgres_server.port}/postgres"
    engine = create_engine(url)
    OUTBOX.drop(engine, checkfirst=True)
    OUTBOX.create(engine)
    with OutboxRelay(engine, OUTBOX, guard, interval="20ms") as relay:
        with postgres_server.connect() as other:
            other.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
            until(lambda: relay.stats().failures)
            other.execute("INSERT INTO cacheguard_outbox (kind, name, created_at) VALUES ('key', 'user:1', 0)")
        until(lambda: relay.stats().delivered == 1)
    engine.dispose()


def test_a_second_relay_passes_by_what_the_first_is_delivering(
    guard: Listening, writing: Factory, engine: Engine
) -> None:
    arrived, go_on = threading.Event(), threading.Event()

    class Slow(Listening):
        def apply(self, changes: Any, **options: Any) -> int:
            arrived.set()
            assert go_on.wait(TAKES_AT_MOST)
            return super().apply(changes, **options)

    with Slow() as slow:
        first, second = OutboxRelay(engine, OUTBOX, slow, batch=2), OutboxRelay(engine, OUTBOX, guard, batch=10)
        add(writing, 1, 2, 3)
        thread = threading.Thread(target=first.run_once)
        thread.start()
        assert arrived.wait(TAKES_AT_MOST)
        assert second.run_once() == 2, "the two that are left"
        go_on.set()
        thread.join()
        assert not slow.told[0] & guard.told[0]
    assert names(engine) == []


def test_the_rows_of_a_relay_that_died_are_free_after_its_claim(guard: Listening, engine: Engine) -> None:
    row = {"kind": "key", "name": "user:1", "created_at": 1.0}
    with engine.begin() as connection:
        connection.execute(insert(OUTBOX).values(**row, claimed_by="dead", claimed_until=time.time() - 1))
        connection.execute(insert(OUTBOX).values(**row, claimed_by="alive", claimed_until=time.time() + 60))
    relay = OutboxRelay(engine, OUTBOX, guard)
    if engine.dialect.name == "sqlite":
        assert relay.run_once() == 1
        assert relay.run_once() == 0
    else:
        assert relay.run_once() == 2, "there the lock of the row counts"


def test_an_outbox_that_is_not_drained_is_reported_once(
    guard: Listening, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    relay = OutboxRelay(engine, OUTBOX, guard, batch=1, warn_after="1m")
    with engine.begin() as connection:
        for age in (100, 100, 0, 100):
            connection.execute(insert(OUTBOX).values(kind="key", name="user:1", created_at=time.time() - age))
    caplog.set_level(logging.WARNING, "cacheguard")
    for _ in range(4):
        relay.run_once()
    assert caplog.text.count("is not drained: its oldest row is 100 s old") == 2


def test_a_table_that_is_missing_is_an_error_of_the_database(guard: Listening, tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/empty.db")
    with pytest.raises(SQLAlchemyError):
        OutboxRelay(engine, OUTBOX, guard).run_once()
    engine.dispose()


def test_settings_that_cannot_work_are_refused_by_name(guard: Listening) -> None:
    engine: Any = create_engine("sqlite://")
    none: Any = None
    for make, message in (
        (lambda: OutboxRelay(none, OUTBOX, guard), "engine must be"),
        (lambda: OutboxRelay(engine, OUTBOX, none), "guard must be"),
        (lambda: OutboxRelay(engine, none, guard), "outbox must be"),
        (lambda: OutboxRelay(engine, OUTBOX, guard, batch=0), "batch must be"),
        (lambda: OutboxRelay(engine, OUTBOX, guard, interval=0), "interval"),
        (lambda: OutboxRelay(engine, OUTBOX, guard, claim=-1), "claim"),
        (lambda: OutboxRelay(engine, OUTBOX, guard, warn_after="soon"), "warn_after"),
        (lambda: outbox_table(none), "metadata must be"),
        (lambda: outbox_table(MetaData(), ""), "name must be"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            make()


async def test_a_blocking_engine_has_no_door_to_be_awaited(guard: Listening) -> None:
    relay = OutboxRelay(create_engine("sqlite://"), OUTBOX, guard)
    with pytest.raises(ConfigurationError, match="run_once"):
        await relay.arun_once()
