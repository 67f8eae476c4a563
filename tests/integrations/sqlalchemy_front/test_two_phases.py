"""Two-phase transactions: PREPARE TRANSACTION is no COMMIT; what waits for the COMMIT waits for COMMIT PREPARED."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextvars import Context

import pytest
from sqlalchemy import Engine, create_engine, event, select
from sqlalchemy.orm import Session, sessionmaker

from cacheguard_sqlalchemy import Touches, invalidate_on_commit
from cacheguard_sqlalchemy.invalidation import Mode
from tests.support.orm import OUTBOX, Club, Listening, Model, User
from tests.support.postgres_server import PostgresServer

Factory = sessionmaker[Session]


@pytest.fixture
def engine(postgres_server: PostgresServer) -> Iterator[Engine]:
    engine = create_engine(f"postgresql+psycopg://postgres@127.0.0.1:{postgres_server.port}/postgres")
    Model.metadata.drop_all(engine)
    Model.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all([User(id=1, name="old"), Club(id=1)])
        session.commit()
    yield engine
    engine.dispose()


@pytest.fixture
def factory(engine: Engine) -> Factory:
    return sessionmaker(engine, twophase=True)


@pytest.fixture
def others_read(guard: Listening, engine: Engine) -> Callable[[], str]:
    """What somebody else's cached read returns, who knows nothing of this context."""

    def load() -> str:
        with Session(engine) as session:
            return session.execute(select(User.name).where(User.id == 1)).scalar_one()

    return lambda: Context().run(guard.get_or_set, "user:1", load)


@pytest.mark.parametrize("mode", ["delete", "fence"])
def test_a_prepared_transaction_is_its_own_until_it_is_committed(
    guard: Listening, factory: Factory, others_read: Callable[[], str], mode: Mode
) -> None:
    invalidate_on_commit(guard, factory, {User: ["user:{id}"]}, mode=mode)
    with factory() as session:
        user = session.get_one(User, 1)
        user.name = "new"
        session.prepare()
        assert (guard.get_or_set("user:1", lambda: user.name), guard.get("user:1")) == ("new", None)
        assert (others_read(), guard.get("user:1")) == ("old", "old" if mode == "delete" else None)
        assert guard.told == []
        session.commit()
    assert guard.get("user:1") is None
    assert others_read() == guard.get("user:1") == "new"


def test_a_prepared_transaction_that_is_rolled_back_leaves_nothing(
    guard: Listening, factory: Factory, others_read: Callable[[], str]
) -> None:
    invalidate_on_commit(guard, factory, {User: ["user:{id}"]})
    with factory() as session:
        user = session.get_one(User, 1)
        user.name = "new"
        session.prepare()
        assert guard.get_or_set("user:1", lambda: user.name) == "new"
        session.rollback()
        assert guard.get_or_set("user:1", lambda: session.get_one(User, 1).name) == guard.get("user:1") == "old"
    assert others_read() == "old"


def test_all_databases_are_committed_before_anything_is_said(guard: Listening, engine: Engine) -> None:
    other = create_engine(engine.url)
    factory = sessionmaker(binds={User: engine, Club: other, OUTBOX: engine}, twophase=True)
    clubs = guard.bloom("clubs", capacity=100)
    clubs.mark_complete()
    invalidate_on_commit(
        guard, factory, {User: ["user:{id}"], Club: Touches(keys=["club:{id}"], bloom=clubs)}, outbox=OUTBOX
    )
    seen: list[tuple[bool, bool]] = []

    def note(*_: object) -> None:
        seen.append((bool(guard.told), clubs.absent(7)))

    for each in (engine, other):
        event.listen(each, "prepare_twophase", note)
        event.listen(each, "commit_twophase", note)
    with factory() as session:
        session.get_one(User, 1).name = "new"
        session.add(Club(id=7))
        session.commit()
    assert seen == [(False, False)] * 4, "the filter is filled before, the rest is told after"
    assert guard.heard() == {"user:1", "club:7"}
    with Session(engine) as session:
        assert set(session.scalars(select(OUTBOX.c.name))) == {"user:1", "club:7"}
    other.dispose()
