"""Statements that change rows without loading them: what they touch is known, or they are not run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, bindparam, delete, insert, select, text, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from cacheguard import Change
from cacheguard.errors import ConfigurationError
from cacheguard_sqlalchemy import Touches, invalidate_on_commit
from tests.support.orm import Book, Item, Listening, User

Factory = sessionmaker[Session]
USER = Touches(keys=["user:{id}"], tags=["org:{org_id}"])
TABLE: Any = User.__table__


@pytest.fixture
def watched(guard: Listening, factory: Factory) -> Factory:
    """Sessions that are watched, and users 1 to 4 in organisations 1 and 2 that nobody was told of."""
    with factory.begin() as session:
        session.add_all([User(id=each, org_id=1 + each % 2, name=f"user {each}") for each in range(1, 5)])
        if session.get_bind().dialect.name == "postgresql":  # numbers given by hand do not count there
            session.execute(text("SELECT setval('users_id_seq', 50)"))
    invalidate_on_commit(guard, factory, {User: USER})
    return factory


@pytest.mark.parametrize(
    ("statement", "touched"),
    [
        (update(User).where(User.id == 1).values(name="x"), {"user:1", "#org:2"}),
        (update(User).where(User.id == 1).values(org_id=7), {"user:1", "#org:2", "#org:7"}),
        (update(User).where(User.org_id == 1).values(org_id=User.org_id + 7), {"user:2", "user:4", "#org:1", "#org:8"}),
        (update(User).where(User.id > 9).values(name="x"), set[str]()),
        (update(User).where(User.id == 1).values(name="x").returning(User.id), {"user:1", "#org:2"}),
        (update(TABLE).where(TABLE.c.id == 2).values(org_id=3), {"user:2", "#org:1", "#org:3"}),
        (delete(User).where(User.name.like("%4")), {"user:4", "#org:1"}),
        (delete(TABLE).where(TABLE.c.id.in_([1, 2])), {"user:1", "user:2", "#org:1", "#org:2"}),
        (delete(User), {"user:1", "user:2", "user:3", "user:4", "#org:1", "#org:2"}),
        (insert(User).values(id=9, org_id=9, name="x"), {"user:9", "#org:9"}),
        (insert(TABLE).values(id=9, org_id=9, name="x"), {"user:9", "#org:9"}),
        (update(User).where(User.id == 1).values(id=20), {"user:1", "#org:2", "everything"}),
    ],
)
def test_what_a_statement_touches_is_read_in_its_transaction(
    guard: Listening, watched: Factory, statement: Any, touched: set[str]
) -> None:
    with watched() as session:
        session.execute(statement)
        assert guard.told == []
        session.rollback()
        session.execute(statement)
        session.commit()
    assert guard.heard() == touched


def test_the_caller_gets_the_result_of_his_statement(watched: Factory) -> None:
    with watched() as session:
        assert session.execute(update(User).where(User.org_id == 1).values(name="x")).rowcount == 2  # type: ignore[attr-defined]  # a CursorResult
        returned = session.scalars(delete(User).where(User.id == 2).returning(User.name))
        assert returned.all() == ["x"]


def test_many_rows_in_one_call(guard: Listening, watched: Factory) -> None:
    with watched.begin() as session:
        session.execute(insert(User), [{"id": 8, "org_id": 8}, {"id": 9, "org_id": 9}])
    assert guard.heard() == {"user:8", "user:9", "#org:8", "#org:9"}
    with watched.begin() as session:
        session.execute(update(User), [{"id": 8, "org_id": 5}, {"id": 9, "name": "x"}])
    assert guard.heard() == {"user:8", "user:9", "#org:8", "#org:5", "#org:9"}
    with watched.begin() as session:
        asked = update(TABLE).where(TABLE.c.id == bindparam("which")).values(name="y")
        session.execute(asked, [{"which": 8}, {"which": 9}])
    assert guard.heard() == {"user:8", "user:9", "#org:5", "#org:9"}


def test_the_legacy_query_is_seen_too(guard: Listening, watched: Factory) -> None:
    with watched.begin() as session:
        session.query(User).filter(User.id == 3).update({"name": "x"})
        session.query(User).filter(User.id == 1).delete()
    assert guard.heard() == {"user:3", "user:1", "#org:2"}


async def test_statements_of_asynchronous_sessions(
    guard: Listening, watched: Factory, database_url: Callable[[str], str]
) -> None:
    engine = create_async_engine(database_url("async"))
    factory = async_sessionmaker(engine)
    invalidate_on_commit(guard, factory, {User: USER})
    async with factory.begin() as session:
        await session.execute(update(User).where(User.id == 1).values(org_id=7))
    assert guard.heard() == {"user:1", "#org:2", "#org:7"}
    await engine.dispose()


def upsert(session: Session) -> Any:
    kinds: dict[str, Any] = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}
    rows = kinds[session.get_bind().dialect.name](User).values(id=1, org_id=9, name="x")
    return rows.on_conflict_do_update(index_elements=["id"], set_={"org_id": 9})


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda _: (insert(User).values(org_id=1, name="x"),), "it does not give id"),
        (lambda _: (insert(User), [{"org_id": 1}]), "it does not give id"),
        (
            lambda _: (
                insert(User).from_select(["id", "org_id", "name"], select(User.id + 9, User.org_id, User.name)),
            ),
            "id",
        ),
        (lambda session: (upsert(session),), "upsert"),
    ],
)
def test_a_statement_of_which_nobody_knows_what_it_touches_is_not_run(
    guard: Listening, watched: Factory, make: Callable[[Session], Any], why: str
) -> None:
    with watched() as session:
        with pytest.raises(ConfigurationError, match=f"keys of User this bulk INSERT touches.*{why}"):
            session.execute(*make(session))
        session.commit()
        session.execute(*make(session), execution_options={"cacheguard": [Change(tag="org:1"), Change("user:1")]})
        session.commit()
        assert guard.heard() == {"user:1", "#org:1"}


def test_the_word_of_the_caller_is_checked(watched: Factory) -> None:
    with watched() as session, pytest.raises(ConfigurationError, match="list of Change"):
        session.execute(update(User).values(name="x"), execution_options={"cacheguard": ["user:1"]})


def test_nothing_may_be_the_word_of_the_caller(guard: Listening, watched: Factory) -> None:
    with watched.begin() as session:
        session.execute(update(User).values(name="x"), execution_options={"cacheguard": []})
    assert guard.told == []


def test_tags_for_bulk_statements_cover_them_without_a_look_at_the_rows(guard: Listening, factory: Factory) -> None:
    handle = invalidate_on_commit(guard, factory, {User: Touches(keys=["user:{id}"], bulk=["users"])})
    with factory.begin() as session:
        session.execute(insert(User).values(org_id=1, name="x"))
        session.execute(update(User).values(name="y"))
        session.execute(delete(User))
    assert guard.heard() == {"#users"}
    handle.remove()


def test_more_rows_than_can_be_named_need_a_tag(guard: Listening, watched: Factory) -> None:
    with watched() as session:
        rows = [{"id": each, "org_id": 5, "name": ""} for each in range(100, 1101)]
        session.execute(insert(User), rows, execution_options={"cacheguard": []})
        session.commit()
        with pytest.raises(ConfigurationError, match=r"UPDATE touches.*more than 1000 rows"):
            session.execute(update(User).where(User.org_id == 5).values(name="x"))
        assert session.scalar(select(User.name).where(User.id == 100)) == ""


def test_functions_of_the_instance_do_not_cover_a_statement(guard: Listening, factory: Factory) -> None:
    invalidate_on_commit(guard, factory, {User: [lambda user: f"mail:{user.name}"]})
    with factory() as session, pytest.raises(ConfigurationError, match="functions need instances"):
        session.execute(delete(User))


def test_a_subclass_that_may_be_touched_must_be_covered(guard: Listening, factory: Factory) -> None:
    invalidate_on_commit(guard, factory, {Item: ["item:{id}"], Book: ["book:{id}"]})
    with factory() as session:
        with pytest.raises(ConfigurationError, match=r"keys of Book.*not told apart"):
            session.execute(delete(Item))
        session.execute(update(Book).where(Book.id == 1).values(title="x"))


def test_rows_that_come_into_the_way_meanwhile_cost_the_whole_namespace(
    guard: Listening, factory: Factory, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine.dialect.name == "sqlite":
        pytest.skip("there the lock is taken before the rows are read")
    from cacheguard_sqlalchemy.bulk import Bulk

    invalidate_on_commit(guard, factory, {User: USER})
    before = Bulk._rows_before  # noqa: SLF001 - the moment in between has no other name

    def overtaken(self: Bulk, statement: Any) -> list[dict[str, Any]]:
        rows = before(self, statement)
        with engine.begin() as other:
            other.execute(insert(User).values(id=77, org_id=7, name="late"))
        return rows

    monkeypatch.setattr(Bulk, "_rows_before", overtaken)
    with factory.begin() as session:
        session.execute(update(User).where(User.org_id == 7).values(name="x"))
    assert "everything" in guard.heard()
