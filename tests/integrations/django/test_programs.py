"""Random programs of transactions against the plainest model: what another connection sees is what may be cached."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, cast

import pytest
from asgiref.sync import async_to_sync
from django.db import IntegrityError, OperationalError, connections, transaction

from cacheguard import MISSING
from cacheguard_django import atomic, commits, guard, invalidate, invalidate_on_save, invalidates, transactions, writing
from cacheguard_django.rows import Rows
from cacheguard_django.saving import SavedRows
from tests.integrations.django.conftest import Configure
from tests.integrations.django.shop.models import Label, Person
from tests.support.postgres_server import PostgresServer, find_postgres

pytestmark = pytest.mark.usefixtures("database", "cache")

STEPS = (
    *("begin", "commit", "write", "read", "outside") * 3,
    "rollback",
    "hold",
    "callback",
    "manual",
    "by another",
)
NAMES = ("Ada", "Bob", "Cyd", "Dan")
WRITES = ("invalidate", "writing", "invalidates", "coroutine", "async block", "save", "held", "retry", "bulk", "told")
READS = ("function", "coroutine", "many", "refresh", "get_or_set")


class Rollback(Exception):  # noqa: N818 - a wish
    pass


def rows_of(using: str) -> Any:
    return Person.objects.using(using)


def named(using: str, name: str) -> list[int]:
    return list(rows_of(using).filter(name=name).order_by("pk").values_list("pk", flat=True))


def keys_of(pk: int, *names: str) -> list[str]:
    return [f"person:{pk}", *(f"named:{name}" for name in names)]


class Program:
    """A random program of transactions on two rows; after each of its steps the cache may hold committed values only.

    Every write says what it has changed, in one of the ways; `leaks` are the cached values that were not committed at
    the time.
    """

    def __init__(
        self, choices: random.Random, using: str, people: list[int], rows: SavedRows, others: ThreadPoolExecutor
    ) -> None:
        self.choices, self.using, self.people, self.rows, self.others = choices, using, people, rows, others
        self.left = choices.randint(5, 25)
        self.held: list[Person] = []
        self.leaks: list[Any] = []
        self.steps: list[str] = []  # for whoever looks for the reason of a leak
        self.read = 0

        one = guard().cached("person:{pk}")  # one decorator for both: they load the same

        @one
        def name_of(pk: int) -> str | None:
            return cast("str | None", rows_of(using).filter(pk=pk).values_list("name", flat=True).first())

        @one
        async def aname_of(pk: int) -> str | None:
            return cast("str | None", await rows_of(using).filter(pk=pk).values_list("name", flat=True).afirst())

        self.name_of: Any = name_of
        self.aname_of: Any = aname_of

    def run(self) -> None:
        connection: Any = connections[self.using]
        while self.left > 0:
            try:
                self.block(0)
            except (Rollback, OSError):
                pass
            finally:
                if not connection.get_autocommit():
                    transaction.rollback(using=self.using)
                    transaction.set_autocommit(True, using=self.using)
            self.look()

    def block(self, depth: int) -> None:  # noqa: C901, PLR0912 - one branch for each kind of step
        connection: Any = connections[self.using]
        while self.left > 0:
            self.left -= 1
            step = self.choices.choice(STEPS)
            pk = self.choices.choice(self.people)
            self.steps.append(f"{'  ' * depth}{step} {pk}")
            if step == "begin" and depth < 4:
                try:
                    with transaction.atomic(self.using, savepoint=self.choices.random() < 0.8 or depth == 0):
                        self.block(depth + 1)
                except Rollback:
                    if connection.needs_rollback:
                        raise
                except OSError:
                    if depth or connection.needs_rollback:
                        raise
            elif step == "commit" and depth:
                return
            elif step == "rollback" and depth:
                raise Rollback
            elif step == "manual" and not depth and connection.get_autocommit():
                transaction.set_autocommit(False, using=self.using)
            elif step in {"manual", "commit"} and not depth and not connection.get_autocommit():
                end = self.choices.choice([transaction.commit, transaction.commit, transaction.rollback])
                end(using=self.using)
                if step == "manual":
                    transaction.set_autocommit(True, using=self.using)
            elif step == "callback" and depth:
                transaction.on_commit(self.fail, using=self.using)
            elif step == "hold":
                self.held.append(rows_of(self.using).get(pk=pk))
            elif step == "write":
                self.write(pk)
            elif step == "by another" and not depth and connection.get_autocommit():
                self.others.submit(self.write, pk, "writing").result(30)
            elif step == "read":
                self.reads(pk)
            elif step == "outside":
                self.others.submit(self.reads, pk, "function").result(30)
            self.look()

    @staticmethod
    def fail() -> None:
        raise OSError("no mail server")

    def reads(self, pk: int, how: str = "") -> None:
        how = how or self.choices.choice(READS)
        self.steps.append(f"    by {how}")
        if how == "function":
            self.name_of(pk)
        elif how == "coroutine":
            async_to_sync(self.aname_of)(pk)
        elif how == "many":
            async_to_sync(self.aname_of.many)(self.people)
        elif how == "refresh":
            self.name_of.refresh(pk)
        name = NAMES[pk % len(NAMES)] if how == "function" else self.choices.choice(NAMES)
        guard().get_or_set(f"named:{name}", lambda: named(self.using, name))

    def write(self, pk: int, how: str = "") -> None:  # noqa: C901 - one branch for each way
        """Give a row another name, and say so."""
        how = how or self.choices.choice(WRITES)
        self.steps.append(f"    by {how}")
        using, rows, name = self.using, rows_of(self.using), self.choices.choice(NAMES)
        keys = keys_of(pk, name, rows.get(pk=pk).name)

        def update() -> None:
            rows.filter(pk=pk).update(name=name)

        if how == "invalidate":
            update()
            invalidate(*keys, using=using)
        elif how == "writing":
            with writing(*keys, using=self.choices.choice([using, None])):
                update()
        elif how == "invalidates":
            invalidates(keys[0], tags=[], using=using)(update)()
            invalidate(*keys, using=using)
        elif how in {"coroutine", "async block"}:

            async def aupdate() -> None:
                await rows.filter(pk=pk).aupdate(name=name)
                if how == "coroutine":
                    invalidate(*keys, using=using)

            async def in_block() -> None:
                async with writing(keys[0]) as write:
                    await aupdate()
                    write.also(*keys)

            async_to_sync(aupdate if how == "coroutine" else in_block)()
        elif how in {"bulk", "told"}:
            if how == "bulk":
                with self.rows.changing([pk], using=using):
                    update()
            else:
                self.rows.changed([pk], using=using)
                update()
                self.rows.changed(rows.filter(pk=pk))
        else:
            self.save(pk, name, how)

    def save(self, pk: int, name: str, how: str) -> None:
        row = self.choices.choice(self.held) if how == "held" and self.held else Person(pk=pk)
        row.name, row.email = name, "x"
        if how == "retry":
            with suppress(ZeroDivisionError), transaction.atomic(self.using):
                row.save(using=self.using)
                raise ZeroDivisionError
        row.save(using=self.using)

    def look(self) -> None:
        """Compare what is cached with what another connection sees."""
        seen = dict(outside("SELECT id, name FROM shop_person"))
        found = guard().get_many([*(f"person:{pk}" for pk in self.people), *(f"named:{name}" for name in NAMES)])
        for pk in self.people:
            self.compare(found.get(f"person:{pk}", MISSING), seen[pk])
        for name in NAMES:
            self.compare(found.get(f"named:{name}", MISSING), sorted(pk for pk, each in seen.items() if each == name))

    def compare(self, value: Any, truth: Any) -> None:
        if value is not MISSING:
            self.read += 1
            if value != truth:
                self.leaks.append((value, truth))
                self.left = 0


outside: Callable[[str], Any] = None  # type: ignore[assignment]  # one connection for all programs


def run_programs(count: int, seed: int, using: str = "default") -> tuple[list[Any], int]:
    """The leaks of so many programs, up to and with those of the first that has any; how often something was cached."""
    people = [rows_of(using).create(name=name).pk for name in NAMES[:2]]
    rows = invalidate_on_save(Person, "person:{pk}", "named:{name}")
    leaks: list[Any] = []
    read = 0
    others = ThreadPoolExecutor(1)  # somebody else, with a connection of his own
    try:
        for number in range(count):
            program = Program(random.Random(f"{seed} {number}"), using, people, rows, others)
            program.run()
            leaks += program.leaks[:1] and [*program.steps, program.leaks[0]]
            read += program.read
            if leaks:
                break
    finally:
        rows.disconnect()
        others.submit(connections.close_all).result(30)
        others.shutdown()
    return leaks, read


@pytest.fixture
def _sqlite(database: None) -> Iterator[None]:
    global outside  # noqa: PLW0603 - as above
    connection: Any = connections["default"]
    connection.ensure_connection()
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=OFF")
    other = connection.Database.connect(connection.settings_dict["NAME"])
    outside = lambda statement: other.execute(statement).fetchall()  # noqa: E731
    yield
    other.close()


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    binaries = find_postgres()
    if binaries is None:
        if os.environ.get("CI"):
            pytest.fail("CI has a PostgreSQL, and it is not found")
        pytest.skip("no PostgreSQL here")
    server = PostgresServer(binaries).start()
    yield server
    server.stop()


@pytest.fixture
def on_postgres(database: None, postgres: PostgresServer) -> Iterator[str]:
    global outside  # noqa: PLW0603 - as above
    settings: Any = connections.settings
    settings["postgres"] = {
        **connections.settings["default"],
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "postgres",
        "USER": "postgres",
        "HOST": "127.0.0.1",
        "PORT": postgres.port,
        "OPTIONS": {},
    }
    other = postgres.connect()
    outside = lambda statement: other.execute(statement).fetchall()  # noqa: E731
    connection: Any = connections["postgres"]
    with connection.schema_editor() as editor:
        if "shop_person" not in connection.introspection.table_names():
            for model in (Label, Person):
                editor.create_model(model)
    yield "postgres"
    other.close()
    connections["postgres"].close()
    del connections["postgres"]
    del settings["postgres"]


COUNTS = [20, pytest.param(100, marks=pytest.mark.slow), pytest.param(2000, marks=pytest.mark.chaos)]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("programs", COUNTS)
@pytest.mark.usefixtures("_sqlite")
def test_random_programs_of_transactions_cache_nothing_that_is_not_committed(programs: int) -> None:
    leaks, read = run_programs(programs, seed=4)
    assert not leaks, "\n".join(map(str, leaks))
    assert read > programs  # the programs do cache


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("programs", [pytest.param(100, marks=pytest.mark.slow), COUNTS[2]])
def test_so_do_programs_on_postgresql(on_postgres: str, programs: int) -> None:
    leaks, read = run_programs(programs, seed=5, using=on_postgres)
    assert not leaks, "\n".join(map(str, leaks))
    assert read > programs


@pytest.mark.parametrize("outcome", ["its answer is lost", "it is refused"])
def test_a_commit_of_which_nobody_knows_counts(on_postgres: str, monkeypatch: pytest.MonkeyPatch, outcome: str) -> None:
    connection: Any = connections[on_postgres]

    def commit() -> None:
        if outcome == "it is refused":
            raise IntegrityError("violates a deferred constraint")
        raw = connection.connection
        raw.commit()
        raw.close()
        raise OperationalError("server closed the connection unexpectedly")

    guard().set("k", "old")
    monkeypatch.setattr(connection, "_commit", commit)
    with pytest.raises((IntegrityError, OperationalError)), transaction.atomic(using=on_postgres):
        invalidate("k")
    assert guard().get("k") == (None if outcome == "its answer is lost" else "old")


def test_an_error_without_a_connection_is_the_programs(on_postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    connection: Any = connections[on_postgres]
    with transaction.atomic(using=on_postgres):
        invalidate("k")
    connection.close()

    def connect(_: object) -> None:
        raise OperationalError("no route to host")

    def is_usable() -> bool:  # as Django's for MySQL
        connection.connection.ping()
        return True

    monkeypatch.setattr(connection, "get_new_connection", connect)
    monkeypatch.setattr(connection, "is_usable", is_usable)
    with pytest.raises(OperationalError, match="no route"):
        connection.set_autocommit(False)


# Every checker is checked


def filled_inside(patch: pytest.MonkeyPatch, configure: Configure) -> None:
    configure(OPTIONS={"fill_in_atomic": True})


def not_waiting(patch: pytest.MonkeyPatch, configure: Configure) -> None:
    patch.setattr(transactions, "open_on", lambda using: [])


def asked_in_the_loop(patch: pytest.MonkeyPatch, configure: Configure) -> None:
    patch.setattr(atomic, "reached", lambda: list(connections.all(initialized_only=True)))


def no_row_read(patch: pytest.MonkeyPatch, configure: Configure) -> None:
    patch.setattr(Rows, "read", lambda *_, **__: [])


def lost_with_others(patch: pytest.MonkeyPatch, configure: Configure) -> None:
    patch.setattr(commits, "_listen", lambda connection: None)
    for name in ("commit", "set_autocommit", "run_and_clear_commit_hooks", "savepoint_commit"):
        vars(connections["default"]).pop(name, None)


BUGS = [filled_inside, not_waiting, asked_in_the_loop, no_row_read, lost_with_others]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("bug", BUGS, ids=lambda each: each.__name__)
@pytest.mark.usefixtures("_sqlite")
def test_the_programs_find_a_planted_bug(bug: Any, monkeypatch: pytest.MonkeyPatch, configure: Configure) -> None:
    bug(monkeypatch, configure)
    leaks, _ = run_programs(300, seed=4)
    vars(connections["default"]).pop("_cacheguard_commits", None)  # it was not listened to, maybe
    assert leaks
