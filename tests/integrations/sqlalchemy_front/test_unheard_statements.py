"""What a session executes is heard, or refused: whatever the form of the statement, whatever others listen to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    ColumnDefault,
    Engine,
    ForeignKey,
    Integer,
    Select,
    Table,
    create_engine,
    delete,
    event,
    func,
    insert,
    lambda_stmt,
    literal,
    select,
    text,
    update,
)
from sqlalchemy.dialects import sqlite
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    relationship,
    sessionmaker,
    with_loader_criteria,
)
from sqlalchemy.pool import QueuePool

from cacheguard import CacheGuard, Change
from cacheguard.errors import ConfigurationError, Unreachable
from cacheguard_sqlalchemy import OutboxRelay, Touches, invalidate_on_commit
from tests.support.orm import OUTBOX, Club, Listening, Model, User, members, without_waiting_for_the_disk
from tests.support.postgres_server import PostgresServer

Factory = sessionmaker[Session]
TABLE: Any = User.__table__
TOUCHED: dict[Any, Any] = {User: Touches(keys=["user:{id}"], tags=["org:{org_id}"]), Club: ["club:{id}"]}


def filled(engine: Engine) -> None:
    Model.metadata.drop_all(engine)
    Model.metadata.create_all(engine)
    with Session(engine) as session:
        session.add_all([User(id=each, org_id=each % 2, name="old") for each in range(1, 9)])
        session.add_all([Club(id=1), Club(id=2)])
        session.flush()
        session.execute(insert(members).values(user_id=1, club_id=1))
        session.commit()


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = without_waiting_for_the_disk(create_engine(f"sqlite:///{tmp_path}/db"))
    filled(engine)
    yield engine
    engine.dispose()


def from_statement(statement: Any) -> Select[Any]:
    return select(User).from_statement(statement.returning(User))  # type: ignore[return-value]


# Forms of statements

HEARD: dict[str, tuple[Any, set[str]]] = {
    "insert(association)": (insert(members).values(user_id=2, club_id=2), {"user:2", "#org:0", "club:2"}),
    "insert(association) many": (
        insert(members).values([{"user_id": 2, "club_id": 2}, {"user_id": 3, "club_id": 2}]),
        {"user:2", "#org:0", "user:3", "#org:1", "club:2"},
    ),
    "delete(association)": (delete(members).where(members.c.user_id == 1), {"user:1", "#org:1", "club:1"}),
    "update(association)": (
        update(members).where(members.c.user_id == 1).values(club_id=2),
        {"user:1", "#org:1", "club:1", "club:2"},
    ),
    "from_statement(update)": (
        from_statement(update(User).where(User.id == 1).values(org_id=7)),
        {"user:1", "#org:1", "#org:7"},
    ),
    "from_statement(insert)": (from_statement(insert(User).values(id=20, org_id=3, name="x")), {"user:20", "#org:3"}),
    "from_statement(delete)": (from_statement(delete(User).where(User.id == 2)), {"user:2", "#org:0"}),
    "lambda update": (lambda_stmt(lambda: update(User).where(User.id == 1).values(name="x")), {"user:1", "#org:1"}),
    "lambda insert": (lambda_stmt(lambda: insert(User).values(id=20, org_id=3, name="x")), {"user:20", "#org:3"}),
    "lambda insert, spoiled": (
        lambda_stmt(lambda: insert(User).values(id=20, org_id=3, name="x")).spoil(),
        {"user:20", "#org:3"},
    ),
    "lambda delete(association)": (
        lambda_stmt(lambda: delete(members).where(members.c.user_id == 1)),
        {"user:1", "#org:1", "club:1"},
    ),
    "values of several rows": (
        insert(User).values([{"id": 20, "org_id": 3}, {"id": 21, "org_id": 4}]),
        {"user:20", "#org:3", "user:21", "#org:4"},
    ),
    "values by column": (insert(User).values({User.id: 20, User.org_id: 3}), {"user:20", "#org:3"}),
    "values by position": (insert(TABLE).values([(20, 3, "x")]), {"user:20", "#org:3"}),
    "on conflict do nothing": (
        sqlite.insert(User).values(id=1, org_id=9, name="x").on_conflict_do_nothing(),
        {"user:1", "#org:9"},
    ),
}


@pytest.mark.parametrize("form", HEARD)
def test_it_is_heard(guard: Listening, watched: Factory, form: str) -> None:
    statement, touched = HEARD[form]
    with watched() as session:
        session.execute(statement)
        session.commit()
    assert guard.heard() == touched


REFUSED: dict[str, Any] = {
    "association from select": insert(members).from_select(["user_id", "club_id"], select(User.id, literal(2))),
    "association by expression": insert(members).values(user_id=select(func.max(User.id)).scalar_subquery(), club_id=2),
    "association at random": delete(members).where(func.random() > 0),
    "association moved by expression": update(members).values(club_id=members.c.club_id + 1),
    "lambda at random": lambda_stmt(lambda: update(User).where(func.random() > 0).values(name="x")),
    "replace": insert(User).prefix_with("OR REPLACE").values(id=1, org_id=9, name="x"),
    "from_statement at random": from_statement(update(User).where(func.random() > 0).values(name="x")),
    "joined at random": update(User).where(User.id == members.c.user_id, func.random() > 0).values(name="x"),
    "cte": select(1).add_cte(update(User).values(name="x").returning(User.id).cte("c")),
    "cte in a subquery": select(
        select(delete(User).returning(User.id).cte("c").c.id).where(User.id == 1).scalar_subquery()
    ),
    "cte of an association": select(insert(members).values(user_id=2, club_id=2).returning(members).cte("c")),
}


@pytest.mark.parametrize("form", REFUSED)
def test_it_is_refused_and_not_run(guard: Listening, watched: Factory, form: str) -> None:
    with watched() as session:
        with pytest.raises(ConfigurationError, match="nobody knows which keys"):
            session.execute(REFUSED[form])
        session.commit()
        assert set(session.scalars(select(User.name))) == {"old"}
        assert session.execute(select(members)).all() == [(1, 1)]
    assert guard.heard() == set()


@pytest.mark.parametrize(
    "statement",
    [
        text("UPDATE users SET name = 'x' RETURNING id"),
        text("UPDATE users SET name = 'x' RETURNING id").columns(User.id),
        select(User.id).from_statement(text("UPDATE users SET name = 'x' RETURNING id").columns(User.id)),
    ],
    ids=["text", "columns", "from_statement"],
)
def test_text_that_changes_rows_makes_loads_private(guard: Listening, watched: Factory, statement: Any) -> None:
    with watched() as session:
        session.execute(select(User.id).from_statement(text("SELECT id FROM users").columns(User.id)))
        assert guard.get_or_set("user:1", lambda: "old") == guard.get("user:1") == "old", "nothing is changed yet"
        session.execute(statement).all()
        assert (guard.get_or_set("user:2", lambda: "x"), guard.get("user:2")) == ("x", None)
        session.rollback()


def test_what_is_no_statement_is_executed_as_ever(guard: Listening, watched: Factory) -> None:
    with watched() as session:
        assert session.scalar(ColumnDefault(5)) == 5  # as `session.scalar(Sequence(…))` is, where there are sequences
        session.commit()
    assert guard.heard() == set()


def test_a_relationship_that_is_declared_late_is_known(guard: Listening, factory: Factory) -> None:
    class Late(DeclarativeBase): ...

    class Post(Late):
        __tablename__ = "late_posts"
        id: Mapped[int] = mapped_column(primary_key=True)

    counts = Table("late_counts", Late.metadata, Column("n", Integer))
    invalidate_on_commit(guard, factory, {Post: ["post:{id}"]})
    Late.metadata.create_all(factory.kw["bind"])
    with factory.begin() as session:
        session.add(Post(id=1))
        session.execute(insert(counts).values(n=1))
    guard.heard()
    tagged = Table(
        "late_tagged",
        Late.metadata,
        Column("post", ForeignKey("late_posts.id")),
        Column("tag", ForeignKey("late_tags.id")),
    )

    class Tag(Late):
        __tablename__ = "late_tags"
        id: Mapped[int] = mapped_column(primary_key=True)
        posts: Mapped[list[Post]] = relationship(Post, secondary=tagged)

    Late.metadata.create_all(factory.kw["bind"])
    with factory.begin() as session:
        session.execute(insert(tagged).values(post=1, tag=1))
    assert guard.heard() == {"post:1"}


def test_bulk_tags_cover_what_is_refused(guard: Listening, factory: Factory) -> None:
    covered: dict[Any, Any] = {
        User: Touches(keys=["user:{id}"], bulk=["users"]),
        Club: Touches(keys=["club:{id}"], bulk=["clubs"]),
    }
    invalidate_on_commit(guard, factory, covered)
    for statement in (REFUSED["association at random"], REFUSED["joined at random"]):
        with factory.begin() as session:
            session.execute(statement)
    assert guard.heard() == {"#users", "#clubs"}
    with factory.begin() as session:
        session.execute(REFUSED["association from select"], execution_options={"cacheguard": [Change("user:1")]})
    assert guard.heard() == {"user:1"}


def test_a_condition_that_is_not_the_same_twice_changes_the_rows_that_were_found(
    guard: Listening, watched: Factory
) -> None:
    first = select(User.id).where(User.id > 2).order_by(User.id).limit(2)
    with watched() as session:
        changed = session.scalars(update(User).where(func.random() > 0).values(name="x").returning(User.id)).all()
        session.commit()
        assert {each for each in guard.heard() if each[0] == "u"} == {f"user:{each}" for each in changed}
        session.execute(update(User).where(User.id.in_(first)).values(name="y"))
        session.execute(delete(User).where(text("random() IS NOT NULL AND id = 8")))
        session.commit()
    assert {each for each in guard.heard() if each[0] == "u"} == {"user:3", "user:4", "user:8"}


def test_statements_in_ctes_of_postgresql(guard: Listening, postgres_server: PostgresServer) -> None:
    engine = create_engine(f"postgresql+psycopg://postgres@127.0.0.1:{postgres_server.port}/postgres")
    filled(engine)
    factory = sessionmaker(engine)
    covered = invalidate_on_commit(guard, factory, {User: Touches(keys=["user:{id}"], bulk=["users"])})
    changed = update(User).where(User.id == 1).values(name="x").returning(User.id).cte("changed")
    gone = delete(User).where(User.id == 2).returning(User.id).cte("gone")
    with factory.begin() as session:
        assert session.scalars(select(changed.c.id)).all() == [1]
        session.execute(update(User).where(User.id == 3).values(name="x").add_cte(gone))
    assert guard.heard() == {"#users"}
    covered.remove()
    invalidate_on_commit(guard, factory, {User: ["user:{id}"]})
    with factory() as session:
        for _ in range(2):
            assert session.scalars(select(User.id).where(User.id == 1)).all() == [1], "others run as ever"
            with pytest.raises(ConfigurationError, match="inside of a CTE"):
                session.execute(update(User).where(User.id == 4).values(name="x").add_cte(changed))
        skipped = select(User.id).where(User.id > 2).order_by(User.id).limit(2).with_for_update(skip_locked=True)
        session.execute(delete(User).where(User.id.in_(skipped)))
        session.commit()
        assert guard.heard() == {"user:3", "user:4"}
        returned = session.scalars(update(User).where(User.id > 6).values(name="z").returning(User)).all()
        session.commit()
        assert guard.heard() == {f"user:{each.id}" for each in returned} == {"user:7", "user:8"}
    engine.dispose()


# Other listeners


def test_later_listeners_of_a_flush_are_heard(guard: Listening, watched: Factory) -> None:
    def before_flush(session: Session, *_: object) -> None:
        user = session.get_one(User, 1)
        if user.clubs:
            user.clubs = [session.get_one(Club, 2)]

    def before_update(_mapper: object, _connection: object, user: User) -> None:
        user.org_id = 5

    event.listen(watched, "before_flush", before_flush)
    event.listen(User, "before_update", before_update)
    try:
        with watched.begin() as session:
            session.get_one(User, 3).name = "x"
    finally:
        event.remove(User, "before_update", before_update)
    assert guard.heard() == {"user:3", "#org:1", "#org:5", "user:1", "club:1", "club:2"}


def test_statements_of_later_listeners_are_in_the_outbox(guard: Listening, factory: Factory) -> None:
    invalidate_on_commit(guard, factory, TOUCHED, mode="outbox", outbox=OUTBOX)

    def before_commit(session: Session) -> None:
        session.execute(update(User).where(User.id == 2).values(name="x"))

    event.listen(factory, "before_commit", before_commit)
    with factory() as session:
        session.get_one(User, 1).name = "y"
        session.commit()
    with Session(factory.kw["bind"]) as session:
        assert {"user:1", "user:2"} <= set(session.scalars(select(OUTBOX.c.name)))


@pytest.mark.parametrize("ours", ["before", "after"])
@pytest.mark.parametrize("name", ["after_commit", "after_transaction_end"])
def test_a_listener_that_raises_loses_no_invalidation(guard: Listening, factory: Factory, ours: str, name: str) -> None:
    def raises(session: Session, *_: object) -> None:
        if not session.in_transaction() or name == "after_commit":
            raise ValueError("theirs")

    if ours == "before":
        invalidate_on_commit(guard, factory, TOUCHED)
    with factory() as session:
        session.get_one(User, 1).name = "x"
        session.flush()
        event.listen(factory, name, raises)
        if ours == "after":
            invalidate_on_commit(guard, factory, TOUCHED)
            session.get_one(User, 1).name = "y"
            session.flush()
        with pytest.raises(ValueError, match="theirs"):
            session.commit()
        event.remove(factory, name, raises)
    assert "user:1" in guard.heard()


def test_ours_raises_when_all_others_have_run(factory: Factory) -> None:
    heard: list[str] = []
    with CacheGuard("redis://127.0.0.1:1/0", on_unreachable="raise") as guard:
        invalidate_on_commit(guard, factory, TOUCHED)
        event.listen(factory, "after_transaction_end", lambda *_: heard.append("theirs"))
        with factory() as session:
            session.get_one(User, 1).name = "x"
            session.flush()
            heard.clear()
            with pytest.raises(Unreachable):
                session.commit()
            assert heard == ["theirs"]
        with factory() as session:
            assert session.get_one(User, 1).name == "x"


def hides(state: Any) -> None:
    """A recipe as many have it: every SELECT leaves out what is deleted softly."""
    if state.is_select:
        shown = with_loader_criteria(User, lambda cls: cls.name != "hidden", include_aliases=True)
        state.statement = state.statement.options(shown)


@pytest.mark.parametrize(
    "change",
    [
        lambda session: session.execute(update(User).where(User.id == 1).values(name="hidden")),
        lambda session: setattr(session.get_one(User, 1), "name", "hidden"),
        lambda session: session.execute(insert(members).values(user_id=1, club_id=2)) and None,
    ],
)
def test_nobody_s_criteria_apply_to_our_own_reads(
    guard: Listening, watched: Factory, change: Callable[[Session], Any], caplog: pytest.LogCaptureFixture
) -> None:
    event.listen(watched, "do_orm_execute", hides)
    with watched.begin() as session:
        change(session)
    assert {"user:1", "#org:1"} <= guard.heard()
    with watched.begin() as session:
        session.execute(update(User).where(User.id == 1).values(name="shown"))
    assert guard.heard() == {"user:1", "#org:1"}
    assert not caplog.records


# What clears a namespace says so


def test_what_clears_a_namespace_says_so(
    guard: Listening, factory: Factory, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    invalidate_on_commit(guard, factory, TOUCHED, outbox=OUTBOX)
    with factory.begin() as session:
        session.execute(update(User).where(User.id == 8).values(id=80))
    said = [record for record in caplog.records if record.levelname == "WARNING"]
    assert ["changed primary keys of User" in record.message for record in said] == [True]
    caplog.clear()
    OutboxRelay(engine, OUTBOX, guard).run_once()
    assert [record.levelname for record in caplog.records if "whole namespace" in record.message] == ["WARNING"]


# Transactions that are none


def test_what_the_database_commits_by_itself_is_invalidated_after_a_rollback(guard: Listening, engine: Engine) -> None:
    factory = sessionmaker(engine.execution_options(isolation_level="AUTOCOMMIT"))
    invalidate_on_commit(guard, factory, TOUCHED)
    with factory() as session:
        session.get_one(User, 1).name = "committed at once"
        session.flush()
        session.rollback()
        assert session.get_one(User, 1).name == "committed at once"
    assert "user:1" in guard.heard()


# Connections


def test_a_load_that_waits_for_a_connection_says_why(
    guard: Listening, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = create_engine(
        f"sqlite:///{tmp_path}/db", poolclass=QueuePool, pool_size=1, max_overflow=0, pool_timeout=0.05
    )
    Model.metadata.create_all(engine)
    factory = sessionmaker(engine)
    invalidate_on_commit(guard, factory, TOUCHED)

    def load() -> int:
        with factory() as own:
            return len(own.scalars(select(User)).all())

    assert guard.get_or_set("free", load) == 0
    assert not caplog.records
    with factory() as session:
        session.scalars(select(User)).all()
        for key in ("a", "b"):
            with pytest.raises(Exception, match="QueuePool"):
                guard.get_or_set(key, load)
    assert len([record for record in caplog.records if "loads wait for a connection" in record.message]) == 1
    engine.dispose()


# Bloom filters


def test_filters_are_fed_before_the_commit(guard: Listening, factory: Factory) -> None:
    users, pairs = guard.bloom("users", capacity=100), guard.bloom("pairs", capacity=100)
    for each in (users, pairs):
        each.mark_complete()
    handle = invalidate_on_commit(
        guard, factory, {User: Touches(bulk=["users"], bloom={users: "{id}", pairs: "{org_id}:{id}"})}
    )
    seen: list[bool] = []
    event.listen(factory.kw["bind"], "commit", lambda _connection: seen.append(users.absent(21)))
    with factory() as session:
        session.add(User(id=21, org_id=3))
        session.flush()
        assert users.absent(21)
        session.rollback()
        assert users.absent(21)
        session.add(User(id=21, org_id=3))
        session.commit()
        assert seen == [False]
        assert not pairs.absent("3:21")
        session.execute(insert(User), [{"id": 30, "org_id": 1}, {"id": 31, "org_id": 1}])
        session.execute(update(User).where(User.id == 21).values(org_id=4))
        session.execute(update(User).where(User.id == 30).values(id=32))
        session.get_one(User, 31).org_id = 5
        session.commit()
        for there in (30, 31, 32):
            assert not users.absent(there)
        for pair in ("4:21", "5:31", "1:32"):
            assert not pairs.absent(pair)
        assert users.absent(99)
        with pytest.raises(ConfigurationError, match="which items of User this bulk INSERT brings"):
            session.execute(insert(User).values(org_id=1))
        with pytest.raises(ConfigurationError, match="which items of User this bulk UPDATE brings"):
            session.execute(update(User).values(id=User.id + 100))
        with pytest.raises(ConfigurationError, match="an upsert does not say"):
            session.execute(insert(User).prefix_with("OR REPLACE").values(id=40, org_id=1))
    handle.remove()
    invalidate_on_commit(guard, factory, {User: Touches(bloom={pairs: "{org_id}:{id}"})})
    with factory() as session:
        session.add(User(id=50, org_id=None))
        with pytest.raises(ConfigurationError, match="takes text and whole numbers"):
            session.commit()


def test_nothing_is_committed_that_a_filter_hides(factory: Factory) -> None:
    with CacheGuard("redis://127.0.0.1:1/0") as guard:
        users = guard.bloom("users", capacity=100)
        invalidate_on_commit(guard, factory, {User: Touches(bloom=users)})
        with factory() as session:
            session.add(User(id=21))
            with pytest.raises(Unreachable):
                session.commit()
            session.rollback()
            assert session.get(User, 21) is None


@pytest.mark.parametrize(
    ("bloom", "why"),
    [("users", "must be a filter, or a mapping"), ({"users": "{id}"}, "a mapping of filters"), (5, "must be a filter")],
)
def test_what_is_no_filter_is_refused(guard: Listening, factory: Factory, bloom: Any, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        invalidate_on_commit(guard, factory, {User: Touches(keys=["user:{id}"], bloom=bloom)})
