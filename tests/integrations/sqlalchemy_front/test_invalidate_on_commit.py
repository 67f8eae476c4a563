"""What a session's transaction changes is invalidated once it is committed, and not before."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import NullPool

from cacheguard import CacheGuard
from cacheguard.errors import ConfigurationError, KeyTemplateError, Unreachable
from cacheguard_sqlalchemy import Touches, invalidate_on_commit
from tests.support.faults import Fault, FaultProxy
from tests.support.orm import OUTBOX, Book, Club, Item, Listening, Post, User

Factory = sessionmaker[Session]
USER = Touches(keys=["user:{id}"], tags=["org:{org_id}"])


@pytest.fixture
def watched(guard: Listening, factory: Factory) -> Factory:
    """Sessions that are watched, and two users in the database that nobody was told of."""
    with factory.begin() as session:
        session.add_all([User(id=1, org_id=1, name="Ann"), User(id=2, org_id=1, name="Bob")])
    invalidate_on_commit(guard, factory, {User: USER, Post: ["post:{id}"], Club: ["club:{id}"]})
    return factory


# Flushes


def test_nothing_is_said_before_commit_returns_and_everything_after(guard: Listening, watched: Factory) -> None:
    with watched() as session:
        session.add(User(id=3, org_id=7))
        session.flush()
        assert guard.heard() == set()
        session.commit()
        assert guard.heard() == {"user:3", "#org:7"}


def test_an_id_that_the_database_gives_is_known(guard: Listening, watched: Factory) -> None:
    with watched.begin() as session:
        new = Club()
        session.add(new)
    with watched() as session:
        assert guard.heard() == {f"club:{session.scalar(select(Club.id))}"}


def test_a_rollback_says_nothing(guard: Listening, watched: Factory) -> None:
    with watched() as session:
        session.add(User(id=3, org_id=7))
        session.flush()
        session.rollback()
        session.commit()
    with watched() as session:  # closed without a word
        session.add(User(id=3, org_id=7))
        session.flush()
    assert guard.told == []


def test_a_flush_that_fails_in_commit_says_nothing(guard: Listening, watched: Factory) -> None:
    with watched() as session:
        session.add(User(id=1, org_id=7))
        with pytest.raises(IntegrityError):
            session.commit()
    assert guard.told == []


def test_the_release_of_a_savepoint_is_no_commit(guard: Listening, watched: Factory) -> None:
    with watched() as session:
        with session.begin_nested():
            session.add(User(id=3, org_id=7))
        assert guard.told == []
        session.commit()
        assert guard.heard() == {"user:3", "#org:7"}


def test_a_savepoint_that_is_released_inside_a_rollback_says_nothing(guard: Listening, watched: Factory) -> None:
    with watched() as session:
        with session.begin_nested():
            session.add(User(id=3, org_id=7))
        session.rollback()
    assert guard.told == []


def test_what_came_before_a_savepoint_that_is_rolled_back_is_said(guard: Listening, watched: Factory) -> None:
    with watched() as session:
        session.add(User(id=3, org_id=7))
        session.flush()
        savepoint = session.begin_nested()
        session.add(Club(id=1))
        session.flush()
        savepoint.rollback()
        session.commit()
    assert {"user:3", "#org:7"} <= guard.heard()


def test_a_root_that_commits_over_an_open_savepoint_is_heard(guard: Listening, watched: Factory) -> None:
    with watched() as session:
        root = session.begin()
        session.begin_nested()
        session.add(User(id=3, org_id=7))
        root.commit()
    assert guard.heard() == {"user:3", "#org:7"}


def test_both_the_old_and_the_new_values_count(guard: Listening, watched: Factory) -> None:
    with watched.begin() as session:
        session.get_one(User, 1).org_id = 2
    assert guard.heard() == {"user:1", "#org:1", "#org:2"}


def test_an_old_value_that_was_never_loaded_is_asked_for(guard: Listening, watched: Factory) -> None:
    with watched() as session:
        user = session.get_one(User, 1)
        session.commit()  # expires it
        user.org_id = 3
        session.commit()
    assert guard.heard() == {"user:1", "#org:1", "#org:3"}


def test_a_value_that_the_database_computes_is_loaded(guard: Listening, watched: Factory) -> None:
    with watched.begin() as session:
        session.get_one(User, 1).org_id = User.org_id + 4
    assert guard.heard() == {"user:1", "#org:1", "#org:5"}


def test_an_attribute_set_to_what_it_was_is_no_change(guard: Listening, watched: Factory) -> None:
    with watched.begin() as session:
        session.get_one(User, 1).name = "Ann"
    assert guard.told == []


def test_a_delete_names_the_row_as_it_was(guard: Listening, watched: Factory) -> None:
    with watched() as session:
        user = session.get_one(User, 1)
        session.expire(user)
        session.delete(user)
        session.commit()
    assert guard.heard() == {"user:1", "#org:1"}


def test_cascades_and_orphans_are_changes_of_their_own(guard: Listening, watched: Factory) -> None:
    with watched.begin() as session:
        session.get_one(User, 1).posts += [Post(id=1), Post(id=2)]
    assert {"user:1", "post:1", "post:2"} <= guard.heard()
    with watched.begin() as session:
        user = session.get_one(User, 1)
        user.posts.remove(session.get_one(Post, 1))
    assert "post:1" in guard.heard()
    with watched.begin() as session:
        session.delete(session.get_one(User, 1))
    assert {"user:1", "post:2"} <= guard.heard()


def test_both_ends_of_a_many_to_many_row_are_touched(guard: Listening, watched: Factory) -> None:
    with watched.begin() as session:
        session.add(Club(id=7))
    guard.heard()
    with watched.begin() as session:
        user = session.get_one(User, 1)
        user.clubs.append(session.get_one(Club, 7))
    assert {"user:1", "club:7"} <= guard.heard()
    with watched.begin() as session:
        user = session.get_one(User, 1)
        user.clubs.clear()
    assert {"user:1", "club:7"} <= guard.heard()
    with watched.begin() as session:
        user = session.get_one(User, 1)
        user.clubs.append(session.get_one(Club, 7))
    guard.heard()
    with watched.begin() as session:
        session.delete(session.get_one(User, 1))
    assert {"user:1", "club:7"} <= guard.heard()


def test_a_changed_primary_key_touches_both(guard: Listening, watched: Factory) -> None:
    with watched.begin() as session:
        session.get_one(User, 2).id = 9
    assert guard.heard() == {"user:2", "user:9", "#org:1"}


def test_subclasses_are_included_and_their_versions_travel(guard: Listening, factory: Factory) -> None:
    models: Any = {Item: ["item:{id}"], Book: Touches(tags=["title:{title}"])}
    invalidate_on_commit(guard, factory, models, versions=True)
    with factory() as session:
        book = Book(id=1, title="a")
        session.add(book)
        session.commit()
        assert guard.heard() == {"item:1", "#title:a"}
        book.title = "b"
        session.commit()
        assert guard.heard() == {"item:1", "#title:a", "#title:b"}
        assert guard.versions == {"item:1": 2}
        session.delete(book)
        session.commit()
        assert guard.versions == {"item:1": None}, "a row that is gone has no version that could be as new"


def test_an_entry_that_is_as_new_as_the_row_stays(factory: Factory, redis_url: str) -> None:
    with CacheGuard(redis_url) as guard:
        invalidate_on_commit(guard, factory, {Item: ["item:{id}"]}, versions=True)
        with factory() as session:
            book = Book(id=1, title="a")
            session.add(book)
            session.commit()
            guard.set("item:1", "of the future", version=3)
            book.title = "b"
            session.commit()  # the row's version is 2 now
            assert guard.get("item:1") == "of the future"
            book.title = "c"
            session.commit()
            book.title = "d"
            session.commit()
            assert guard.get("item:1") is None


def test_a_function_of_the_instance_names_keys_and_tags(guard: Listening, watched: Factory) -> None:
    named = Touches(keys=[lambda user: [f"name:{user.name}", f"mail:{user.id}"]], tags=[lambda user: "users"])
    invalidate_on_commit(guard, watched, {User: named})
    with watched.begin() as session:
        session.get_one(User, 1).name = "Zoe"
    assert guard.heard() == {"name:Zoe", "mail:1", "#users", "user:1", "#org:1"}


# Targets


def rename(session: Session) -> None:
    session.get_one(User, 1).name += "!"
    session.commit()


def test_every_kind_of_blocking_target_is_watched_until_removed(
    guard: Listening, watched: Factory, engine: Engine
) -> None:
    class Mine(Session):
        pass

    one = Session(engine)
    scoped = scoped_session(sessionmaker(engine))
    targets: list[tuple[Any, Callable[[], Session]]] = [
        (watched, watched),
        (scoped, scoped),
        (Mine, lambda: Mine(engine)),
        (one, lambda: one),
    ]
    for target, make in targets:
        guard.heard()
        handle = invalidate_on_commit(guard, target, {User: ["again:{id}"]})
        with make() as session:
            rename(session)
        assert "again:1" in guard.heard()
        handle.remove()
        handle.remove()
        with make() as session:
            rename(session)
        assert "again:1" not in guard.heard()
    with Session(engine) as other:
        rename(other)
    assert guard.told == [], "a session that nobody named is left alone"


def test_threads_with_sessions_of_their_own_are_told_apart(guard: Listening, watched: Factory) -> None:
    with watched.begin() as session:
        session.add_all([User(id=each, org_id=each) for each in range(10, 14)])
    guard.heard()
    start = threading.Barrier(4)

    def work(number: int) -> None:
        start.wait()
        with watched() as session:
            session.execute(select(User.id).where(User.id == number)).one()
            session.get_one(User, number).name = "x"
            session.rollback() if number % 2 else session.commit()

    threads = [threading.Thread(target=work, args=[number]) for number in range(10, 14)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert guard.heard() == {"user:10", "#org:10", "user:12", "#org:12"}


async def test_asynchronous_sessions_are_told_apart_by_their_factory(
    guard: Listening, watched: Factory, database_url: Callable[[str], str]
) -> None:
    engine = create_async_engine(database_url("async"))

    class Mine(AsyncSession):
        pass

    factory, other = async_sessionmaker(engine), async_sessionmaker(engine)
    scoped = async_scoped_session(async_sessionmaker(engine), asyncio.current_task)
    one = AsyncSession(engine)
    targets: list[tuple[Any, Callable[[], AsyncSession]]] = [
        (factory, factory),
        (scoped, scoped),
        (Mine, lambda: Mine(engine)),
        (one, lambda: one),
    ]
    for target, make in targets:
        handle = invalidate_on_commit(guard, target, {User: ["user:{id}"]})
        async with make() as session:
            (await session.get_one(User, 1)).name += "?"
            await session.flush()
            assert guard.told == []
            await session.commit()
            assert guard.heard() == {"user:1"}
        async with other.begin() as session:
            (await session.get_one(User, 1)).name += "?"
        assert guard.told == []
        handle.remove()
    await scoped.remove()
    await engine.dispose()


async def test_an_asynchronous_session_that_sets_what_it_never_loaded(
    guard: Listening, watched: Factory, database_url: Callable[[str], str]
) -> None:
    engine = create_async_engine(database_url("async"))
    factory = async_sessionmaker(engine)
    invalidate_on_commit(guard, factory, {User: USER})
    async with factory() as session:
        user = await session.get_one(User, 1)
        await session.commit()
        user.org_id = 5
        await session.commit()
    assert guard.heard() == {"user:1", "#org:1", "#org:5"}
    await engine.dispose()


def test_several_guards_hear_of_one_commit(guard: Listening, watched: Factory) -> None:
    with Listening() as other:
        handle = invalidate_on_commit(other, watched, {User: ["u:{id}"]})
        with watched() as session:
            rename(session)
        assert guard.heard() == {"user:1", "#org:1"}
        assert other.heard() == {"u:1"}
        handle.remove()


# By hand


def test_what_a_session_does_not_see_can_be_said(guard: Listening, factory: Factory) -> None:
    handle = invalidate_on_commit(guard, factory, {User: USER})
    with factory() as session:
        handle.also(session, "user:42", tags=["users"])
        session.execute(text("DELETE FROM users"))
        session.commit()
        assert guard.heard() == {"user:42", "#users"}
        session.execute(select(User))
        handle.also(session, "user:42")
        session.rollback()
        session.commit()
    assert guard.told == []
    with pytest.raises(TypeError, match="several texts"):
        handle.also(factory(), tags="users")


# Trouble


def test_a_commit_of_which_nobody_knows_what_became_counts_as_one(
    guard: Listening, watched: Factory, engine: Engine
) -> None:
    def cut(_connection: object) -> None:
        raise ConnectionError("the wire is cut while COMMIT is on its way")

    with watched() as session:
        session.get_one(User, 1).name = "Zoe"
        event.listen(engine, "commit", cut)
        with pytest.raises(ConnectionError):
            session.commit()
        event.remove(engine, "commit", cut)
    assert guard.heard() == {"user:1", "#org:1"}


async def test_a_commit_that_is_cancelled_counts_as_one(
    guard: Listening, watched: Factory, database_url: Callable[[str], str]
) -> None:
    engine = create_async_engine(database_url("async"))
    factory = async_sessionmaker(engine)
    invalidate_on_commit(guard, factory, {User: USER})
    sent = asyncio.Event()
    event.listen(engine.sync_engine, "commit", lambda _: sent.set())

    async def write() -> None:
        async with factory() as session:
            (await session.get_one(User, 1)).name = "Zoe"
            await session.commit()

    writing = asyncio.create_task(write())
    await sent.wait()  # COMMIT is on its way, and its answer not yet here
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert guard.heard() == {"user:1", "#org:1"}
    await engine.dispose()


def test_an_unreachable_redis_is_said_after_the_commit_and_the_session_goes_on(
    watched: Factory, proxy: FaultProxy
) -> None:
    with CacheGuard(proxy.url, on_unreachable="raise") as guard:
        invalidate_on_commit(guard, watched, {User: ["user:{id}"]})
        guard.set("user:1", "old")
        with watched() as session:
            session.get_one(User, 1).name = "Zoe"
            proxy.inject(Fault.REFUSE)
            with pytest.raises(Unreachable):
                session.commit()
            assert session.scalar(select(User.name).where(User.id == 1)) == "Zoe"
            session.get_one(User, 2).name = "Yan"
            with pytest.raises(Unreachable):
                session.commit()
        proxy.heal()
        assert guard.get("user:1") is None


# Fences


def test_behind_a_fence_nothing_is_cached_from_before_commit_on(
    watched: Factory, redis_url: str, engine: Engine
) -> None:
    seen: list[Any] = []
    with CacheGuard(redis_url) as guard, CacheGuard(redis_url) as elsewhere:
        invalidate_on_commit(guard, watched, {User: ["user:{id}"]}, mode="fence")

        def read(_connection: object) -> None:  # COMMIT is about to be sent
            seen.append(elsewhere.get_or_set("user:1", lambda: "old"))
            seen.append(elsewhere.get("user:1"))

        with watched() as session:
            session.get_one(User, 1).name = "Zoe"
            event.listen(engine, "commit", read)
            session.commit()
            event.remove(engine, "commit", read)
        assert seen == ["old", None]
        assert elsewhere.get_or_set("user:1", lambda: "new") == "new"
        assert elsewhere.get("user:1") == "new"


def test_a_fence_ends_with_a_rollback(watched: Factory, redis_url: str, engine: Engine) -> None:
    def cut(_connection: object) -> None:
        raise ConnectionError("the wire is cut while COMMIT is on its way")

    with CacheGuard(redis_url) as guard:
        invalidate_on_commit(guard, watched, {User: ["user:{id}"]}, mode="fence")
        with watched() as session:
            session.get_one(User, 1).name = "Zoe"
            event.listen(engine, "commit", cut)
            with pytest.raises(ConnectionError):
                session.commit()
            event.remove(engine, "commit", cut)
        assert guard.get_or_set("user:1", lambda: "new") == "new"
        assert guard.get("user:1") == "new"


async def test_fences_of_asynchronous_sessions(
    watched: Factory, redis_url: str, database_url: Callable[[str], str]
) -> None:
    engine = create_async_engine(database_url("async"))
    factory = async_sessionmaker(engine)
    seen: list[Any] = []
    async with CacheGuard(redis_url) as guard:
        with CacheGuard(redis_url) as elsewhere:
            invalidate_on_commit(guard, factory, {User: ["user:{id}"]}, mode="fence")
            event.listen(
                engine.sync_engine,
                "commit",
                lambda _: seen.extend([elsewhere.get_or_set("user:1", lambda: "old"), elsewhere.get("user:1")]),
            )
            async with factory.begin() as session:
                (await session.get_one(User, 1)).name = "Zoe"
            assert seen == ["old", None]
            assert await guard.aget_or_set("user:1", lambda: "new") == "new"
            assert await guard.aget("user:1") == "new"
    await engine.dispose()


# What cannot work


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({}, "models must be a mapping"),
        ({int: ["user:{id}"]}, "mapped classes"),
        ({User: "user:{id}"}, "keys of User must be a list"),
        ({User: 7}, "keys of User must be a list"),
        ({User: []}, "names no keys"),
        ({User: [7]}, "keys of User must be templates"),
        ({User: Touches(bulk=["org:{org_id}"])}, "tags without fields"),
        (
            {User: ["user:{nam}"]},
            r"template 'user:\{nam\}' of User: \{nam\} is no column attribute; they are: id, org_id",
        ),
        ({User: ["user:{posts}"]}, "posts"),
        ({User: ["user:{id"]}, "broken"),
        ({User: Touches(tags=["org:{org}"])}, r"\{org\}"),
    ],
)
def test_models_that_cannot_work_are_refused_by_name(guard: Listening, models: Any, message: str) -> None:
    with pytest.raises((ConfigurationError, KeyTemplateError), match=message):
        invalidate_on_commit(guard, sessionmaker(), models)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "later"}, "mode must be"),
        ({"mode": "outbox"}, "outbox must be"),
        ({"outbox": User.__table__}, "outbox must be"),
        ({"alone": "never"}, "alone must be"),
        ({"versions": 1}, "versions must be"),
        ({"versions": True, "mode": "fence"}, "versions must be False"),
        ({"settle": -1}, "settle"),
        ({"settle": 1, "mode": "outbox", "outbox": OUTBOX}, "settle must be None"),
    ],
)
def test_options_that_cannot_work_are_refused_by_name(guard: Listening, options: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        invalidate_on_commit(guard, sessionmaker(), {User: ["user:{id}"]}, **options)


@pytest.mark.parametrize("target", [None, AsyncSession, User, create_engine("sqlite://")])
def test_targets_that_are_no_sessions_are_refused(guard: Listening, target: Any) -> None:
    with pytest.raises(ConfigurationError, match="target must be"):
        invalidate_on_commit(guard, target, {User: ["user:{id}"]})


def test_a_guard_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="guard must be"):
        invalidate_on_commit("redis://", sessionmaker(), {User: ["user:{id}"]})  # type: ignore[arg-type]


def test_a_statement_on_a_model_that_nobody_watches_is_nobody_s_business(guard: Listening, watched: Factory) -> None:
    with watched.begin() as session:
        session.execute(insert(Item).values(id=1, kind="item", revision=1))
        session.execute(update(Item).values(revision=func.abs(2)))
    assert guard.told == []


def by_object(session: Session) -> None:
    session.get_one(User, 1).name = "committed at once"
    session.flush()


def by_statement(session: Session) -> None:
    session.execute(update(User).where(User.id == 1).values(name="committed at once"))


@pytest.mark.parametrize("change", [by_object, by_statement], ids=lambda each: each.__name__)
def test_a_driver_that_begins_no_transaction_commits_by_itself(
    guard: Listening, engine: Engine, change: Callable[[Session], None]
) -> None:
    told: dict[str, Any] = {"isolation_level": None} if engine.dialect.name == "sqlite" else {"autocommit": True}
    unbegun = create_engine(engine.url, poolclass=NullPool, connect_args=told)
    factory = sessionmaker(unbegun)
    with factory.begin() as session:
        session.add(User(id=1, org_id=1, name="Ann"))
    invalidate_on_commit(guard, factory, {User: USER})
    with factory() as session:
        change(session)
        session.rollback()
        assert session.get_one(User, 1).name == "committed at once"
    assert "user:1" in guard.heard()
