"""A real PostgreSQL tells a real guard what has changed."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import count
from typing import Any

import psycopg
import pytest
from psycopg import sql

from cacheguard import MISSING, CacheGuard, Change
from cacheguard.errors import ConfigurationError, KeyTemplateError, Unreachable
from cacheguard.protocol.names import escape
from cacheguard_postgres import FeedStats, PostgresFeed, trigger_sql
from tests.support.faults import Fault, FaultProxy
from tests.support.pages import ROOT, run
from tests.support.postgres_server import PostgresServer

TAKES_AT_MOST = 10.0  # seconds until something that must happen has happened

RunFeed = Callable[[PostgresFeed], AbstractContextManager[PostgresFeed]]
_channels = count()


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + TAKES_AT_MOST
    while not holds():
        assert time.monotonic() < deadline, "it has not happened"
        time.sleep(0.005)


@pytest.fixture
def channel() -> str:
    """One that no other test listens to."""
    return f"cacheguard {next(_channels)}"


@pytest.fixture
def database(postgres_server: PostgresServer) -> Iterator[psycopg.Connection[Any]]:
    """A connection to the server, with an empty schema as the default."""
    with postgres_server.connect() as connection:
        connection.execute("SET client_min_messages = warning")
        connection.execute("DROP SCHEMA IF EXISTS shop CASCADE")
        connection.execute("CREATE SCHEMA shop")
        connection.execute("SET search_path = shop")
        yield connection


@pytest.fixture
def guard() -> Iterator[CacheGuard]:
    guard = CacheGuard("memory://")
    yield guard
    guard.close()


@contextmanager
def in_thread(feed: PostgresFeed) -> Iterator[PostgresFeed]:
    with feed:
        until(lambda: feed.stats().connected)
        yield feed


@contextmanager
def in_loop(feed: PostgresFeed) -> Iterator[PostgresFeed]:
    thread = threading.Thread(target=lambda: asyncio.run(feed.arun()))
    thread.start()
    try:
        until(lambda: feed.stats().connected)
        yield feed
    finally:
        feed.close()
        thread.join(TAKES_AT_MOST)
        assert not thread.is_alive()


@pytest.fixture(params=["run", "arun"])
def running(request: pytest.FixtureRequest) -> RunFeed:
    """Runs a feed, in a thread or in an event loop, until the block ends."""
    return {"run": in_thread, "arun": in_loop}[request.param]


@pytest.fixture
def feed(guard: CacheGuard, postgres_server: PostgresServer, channel: str) -> PostgresFeed:
    return PostgresFeed(guard, postgres_server.conninfo, channel=channel)


def notify(database: psycopg.Connection[Any], channel: str, payload: object) -> None:
    text = payload if isinstance(payload, str) else json.dumps(payload)
    database.execute("SELECT pg_notify(%s, %s)", (channel, text))


def terminate(database: psycopg.Connection[Any]) -> int:
    """End the connections of all feeds; how many there were."""
    ended = database.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'cacheguard'"
    ).fetchall()
    return len(ended)


@contextmanager
def listening(database: psycopg.Connection[Any], channel: str) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """What is notified, without a feed."""
    database.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))

    def events() -> list[dict[str, Any]]:
        return [json.loads(each.payload) for each in database.notifies(timeout=0.1)]

    yield events
    database.execute("UNLISTEN *")


# Triggers


def test_insert_update_and_delete_of_a_row_are_notified(database: psycopg.Connection[Any], channel: str) -> None:
    database.execute("CREATE TABLE users (id int PRIMARY KEY, org_id int, row_version bigint NOT NULL)")
    script = trigger_sql("users", key="user:{id}", tags=["org:{org_id}"], version="row_version", channel=channel)
    database.execute(script.encode())
    database.execute(script.encode())  # once more changes nothing
    with listening(database, channel) as events:
        database.execute("INSERT INTO users VALUES (1, 7, 1), (2, NULL, 1)")
        assert events() == [
            {"key": "user:1", "version": 1},
            {"tag": "org:7"},
            {"key": "user:2", "version": 1},
            {"tag": "org:None"},
        ]
        database.execute("UPDATE users SET org_id = 8, row_version = 9007199254740993 WHERE id = 1")
        assert events() == [{"key": "user:1", "version": 2**53 + 1}, {"tag": "org:8"}, {"tag": "org:7"}]
        database.execute("UPDATE users SET id = 3, row_version = 5 WHERE id = 2")
        assert events() == [{"key": "user:3", "version": 5}, {"key": "user:2", "version": 2}, {"tag": "org:None"}]
        database.execute("DELETE FROM users WHERE id = 3")
        assert events() == [{"key": "user:3", "version": 6}, {"tag": "org:None"}]
        database.execute("UPDATE users SET org_id = 9")  # somebody forgot the version: news in any case
        assert events() == [{"key": "user:1"}, {"tag": "org:9"}, {"tag": "org:8"}]
        with suppress(psycopg.errors.RaiseException), database.transaction():
            database.execute("DELETE FROM users")
            database.execute("DO $$ BEGIN RAISE 'no'; END $$")
        assert events() == []
        database.execute("TRUNCATE users")
        assert events() == [{"gap": True}]


@pytest.mark.parametrize(
    ("kind", "old", "new", "versions"),
    [
        (
            "timestamptz",
            "'2026-01-01Z'",
            "'2026-01-02Z'",
            ["2026-01-02T00:00:00+00:00", "2026-01-02T00:00:00.000001+00:00"],
        ),
        ("pg_lsn", "'16/B374D848'", "'16/B374D849'", ["16/B374D849", None]),
        ("smallint", "1", "32767", [32767, 32768]),
        ("bigint", "1", "9223372036854775807", [2**63 - 1, 2**63]),
        ("numeric(20)", "1", "99999999999999999999", [10**20 - 1, 10**20]),
        ("bigint", "1", "NULL", [None, None]),
    ],
)
def test_versions_of_every_kind(
    database: psycopg.Connection[Any], channel: str, kind: str, old: str, new: str, versions: list[Any]
) -> None:
    database.execute("SET TimeZone = 'UTC'")
    database.execute(f"CREATE TABLE rows (id int, v {kind})".encode())
    database.execute(trigger_sql("rows", key="row:{id}", version="v", channel=channel).encode())
    database.execute(f"INSERT INTO rows VALUES (1, {old})".encode())
    with listening(database, channel) as events:
        database.execute(f"UPDATE rows SET v = {new}".encode())
        database.execute("DELETE FROM rows")
        assert [event.get("version") for event in events()] == versions


HOSTILE = [
    "plain",
    "a:b",
    "{x}",
    "100%",
    "%3A",
    "tab\tnewline\nreturn\rescape\x1b",
    "del\x7f nel\x85 end\x9f",
    "é ü 漢 🐘 \u2028",
    "'; DROP TABLE users; --",
    '"quoted" \\ back\\slash $cg0$ $$',
    "",
    " ",
]


def test_values_are_escaped_as_the_guard_escapes_them(
    database: psycopg.Connection[Any], guard: CacheGuard, channel: str
) -> None:
    @guard.cached("it's %s {{\\}}:{name}:{flag}")
    def row(name: str | None, flag: bool) -> int:
        return 1

    database.execute("CREATE TABLE rows (name text, flag bool)")
    database.execute(trigger_sql("rows", key="it's %s {{\\}}:{name}:{flag}", channel=channel).encode())
    with listening(database, channel) as events:
        for value in HOSTILE:
            database.execute("INSERT INTO rows VALUES (%s, %s)", (value, len(value) % 2 == 0))
        database.execute("INSERT INTO rows VALUES (NULL, NULL)")
        keys = [event["key"] for event in events()]
    assert keys[:-1] == [row.key(value, len(value) % 2 == 0) for value in HOSTILE]
    assert keys[-1] == "it's %s {\\}:None:None"
    assert escape("a:b") in keys[1]


def test_every_character_that_may_be_reserved(database: psycopg.Connection[Any], channel: str) -> None:
    letters = [chr(code) for code in [*range(1, 0x300), 0x2028, 0xD7FF, 0xE000, 0xFFFD, 0x10FFFF]]
    database.execute("CREATE TABLE rows (name text)")
    database.execute(trigger_sql("rows", key="{name}", channel=channel).encode())
    with listening(database, channel) as events:
        database.cursor().executemany("INSERT INTO rows VALUES (%s)", [(letter,) for letter in letters])
        assert [event["key"] for event in events()] == [escape(letter) for letter in letters]


@pytest.mark.parametrize(
    "name", ["Users", "my table", 'a"b', "a.b", "o'brien", "$cg0$", "select", "💥 --", "x" * 63, "\\"]
)
@pytest.mark.parametrize("conforming", ["on", "off"])
def test_names_are_names_whatever_is_in_them(
    database: psycopg.Connection[Any], channel: str, name: str, conforming: str
) -> None:
    table, column = sql.Identifier("shop", name), sql.Identifier(name)
    database.execute(sql.SQL("CREATE TABLE {} ({} text, v int)").format(table, column))
    database.execute("SET escape_string_warning = off")
    database.execute(f"SET standard_conforming_strings = {conforming}".encode())
    script = trigger_sql(("shop", name), key=f"k:{{{name}}}", version="v", channel=f"{name[:40]}'{channel}")
    database.execute("SET search_path = pg_catalog")
    database.execute(script.encode())
    database.execute("SET standard_conforming_strings = on")
    with listening(database, f"{name[:40]}'{channel}") as events:
        database.execute(f"SET standard_conforming_strings = {conforming}".encode())
        database.execute(sql.SQL("INSERT INTO {} VALUES (%s, 1)").format(table), ("a:b",))
        assert events() == [{"key": "k:a%3Ab", "version": 1}]


def test_several_keys_and_a_second_channel_live_beside_each_other(
    database: psycopg.Connection[Any], channel: str
) -> None:
    database.execute("CREATE TABLE users (id int, mail text)")
    database.execute(trigger_sql("users", key=["user:{id}", "mail:{mail}"], channel=channel).encode())
    database.execute(trigger_sql("users", tags=["users"], channel=f"{channel} too").encode())
    with listening(database, channel) as events, listening(database, f"{channel} too"):
        database.execute("INSERT INTO users VALUES (1, 'a@b.c')")
        heard = events()
        assert len(heard) == 3
        assert {"key": "user:1"} in heard
        assert {"key": "mail:a@b.c"} in heard
        assert {"tag": "users"} in heard


def test_a_tag_of_many_rows_is_notified_once_in_a_transaction(database: psycopg.Connection[Any], channel: str) -> None:
    database.execute("CREATE TABLE users (id int, org_id int)")
    database.execute(trigger_sql("users", tags=["org:{org_id}"], channel=channel).encode())
    with listening(database, channel) as events:
        database.execute("INSERT INTO users SELECT id, 7 FROM generate_series(1, 1000) AS id")
        assert events() == [{"tag": "org:7"}]


def test_partitions_are_the_tables_too(database: psycopg.Connection[Any], channel: str) -> None:
    database.execute("CREATE TABLE users (id int, org int) PARTITION BY RANGE (org)")
    database.execute("CREATE TABLE \"a 'part'\" PARTITION OF users FOR VALUES FROM (0) TO (10) PARTITION BY RANGE (id)")
    database.execute("CREATE TABLE leaf PARTITION OF \"a 'part'\" DEFAULT")
    for _ in range(2):  # it may be run again, for partitions that were made later
        script = trigger_sql("users", key="user:{id}", channel=channel)
        database.execute(script.encode())
        database.execute("CREATE TABLE IF NOT EXISTS later PARTITION OF users DEFAULT")
    with listening(database, channel) as events:
        database.execute("INSERT INTO users VALUES (1, 5), (2, 50)")
        assert sorted(each["key"] for each in events()) == ["user:1", "user:2"]
        for table in ("leaf", "\"a 'part'\"", "later", "users"):
            database.execute(f"TRUNCATE {table}".encode())
            assert events() == [{"gap": True}]


def test_a_name_too_long_for_a_notification_is_a_gap_and_the_write_succeeds(
    database: psycopg.Connection[Any], channel: str
) -> None:
    database.execute("CREATE TABLE rows (name text)")
    database.execute(trigger_sql("rows", key="{name}", channel=channel).encode())
    with listening(database, channel) as events:
        database.execute("INSERT INTO rows VALUES (%s)", ("x" * 100_000,))
        database.execute("INSERT INTO rows VALUES (%s)", ("é" * 3900,))
        database.execute("INSERT INTO rows VALUES (%s)", ('"' * 4000,))  # longer as JSON
        assert [event.get("gap", False) for event in events()] == [True, False, True]


def test_what_does_not_fit_the_table_fails_at_once_and_leaves_no_trigger(database: psycopg.Connection[Any]) -> None:
    database.execute("CREATE TABLE users (id int, at timestamp, note text)")
    for options in ({"key": "{nope}"}, {"key": "{id}", "version": "nope"}, {"key": "{id}", "version": "at"}):
        with pytest.raises(psycopg.errors.RaiseException, match="cacheguard:"):
            database.execute(trigger_sql("users", **options).encode())
    with pytest.raises(psycopg.errors.UndefinedTable):
        database.execute(trigger_sql("nope", key="{id}").encode())
    assert database.execute("SELECT tgname FROM pg_trigger WHERE NOT tgisinternal").fetchall() == []


@pytest.mark.parametrize(
    ("table", "options", "complaint"),
    [
        ("users", {}, "needs a key or tags"),
        ("users", {"tags": "org:{id}"}, "several templates"),
        ("users", {"key": "user:{}"}, "a column"),
        ("users", {"key": "user:{id:03}"}, "no format"),
        ("users", {"key": "user:{id!r}"}, "no format"),
        ("users", {"key": "user:{id"}, "broken"),
        ("users", {"tags": [""]}, "must be a text"),
        ("users", {"key": "a\0{id}"}, "cannot have"),
        ("", {"key": "{id}"}, "table must be a name"),
        ("a\0b", {"key": "{id}"}, "table must be a name"),
        ("\ud800", {"key": "{id}"}, "table must be a name"),
        ("x" * 64, {"key": "{id}"}, "at most 63 bytes"),
        ("é" * 32, {"key": "{id}"}, "at most 63 bytes"),
        ("users", {"key": "{id}", "channel": ""}, "channel must be a name"),
        ("users", {"key": "{id}", "channel": "x" * 64}, "at most 63 bytes"),
        ("users", {"key": "{id}", "version": "v\0"}, "version must be a name"),
    ],
)
def test_what_cannot_be_sql_is_a_mistake_of_configuration(table: str, options: Any, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        trigger_sql(table, **options)


def test_a_template_that_cannot_work_is_an_error_of_templates() -> None:
    with pytest.raises(KeyTemplateError):
        trigger_sql("users", key="user:{id")


# The feed


def test_a_write_by_anybody_reaches_the_cache(
    database: psycopg.Connection[Any], guard: CacheGuard, feed: PostgresFeed, running: RunFeed, channel: str
) -> None:
    database.execute("CREATE TABLE users (id int, org_id int, name text, row_version int)")
    script = trigger_sql("users", key="user:{id}", tags=["org:{org_id}"], version="row_version", channel=channel)
    database.execute(script.encode())

    @guard.cached("user:{user_id}", tags=["org:7"], version=lambda row: row[1])
    def user(user_id: int) -> tuple[str, int] | None:
        return database.execute("SELECT name, row_version FROM users WHERE id = %s", (user_id,)).fetchone()

    @guard.cached("all-of-org", tags=["org:7"])
    def names() -> list[str]:
        rows = database.execute("SELECT name FROM users WHERE org_id = 7").fetchall()
        return [name for (name,) in rows]

    with running(feed):
        assert (user(1), names()) == (None, [])
        database.execute("INSERT INTO users VALUES (1, 7, 'Ada', 1)")
        until(lambda: user(1) == ("Ada", 1) and names() == ["Ada"])
        database.execute("UPDATE users SET name = 'Ada L.', row_version = 2")
        until(lambda: user(1) == ("Ada L.", 2) and names() == ["Ada L."])
        with suppress(ZeroDivisionError), database.transaction():
            database.execute("DELETE FROM users")
            raise ZeroDivisionError
        time.sleep(0.1)
        assert user.peek(1) == ("Ada L.", 2)
        database.execute("DELETE FROM users")
        until(lambda: user(1) is None and names() == [])
    assert feed.stats().gaps == feed.stats().garbage == 0
    assert feed.stats().applied >= 6


def test_of_repeated_and_reordered_events_the_newest_wins(
    database: psycopg.Connection[Any], guard: CacheGuard, feed: PostgresFeed, running: RunFeed, channel: str
) -> None:
    newest_wins(database, guard, feed, running, channel)


def test_the_newest_wins_in_redis_too(
    database: psycopg.Connection[Any], postgres_server: PostgresServer, redis_url: str, running: RunFeed, channel: str
) -> None:
    guard = CacheGuard(redis_url, operation_timeout=2)
    try:
        newest_wins(database, guard, PostgresFeed(guard, postgres_server.conninfo, channel=channel), running, channel)
    finally:
        guard.close()


def newest_wins(
    database: psycopg.Connection[Any], guard: CacheGuard, feed: PostgresFeed, running: RunFeed, channel: str
) -> None:
    """A thousand events about ten rows, in any order, some of them again."""
    newest = 100
    answers = dict.fromkeys(range(10), newest)

    @guard.cached("row:{row_id}", version=lambda version: version)
    def row(row_id: int) -> int:
        return answers[row_id]

    events = [{"key": f"row:{row_id}", "version": version} for row_id in answers for version in range(1, newest + 1)]
    events += random.Random(7).choices(events, k=200)
    random.Random(8).shuffle(events)
    with running(feed):
        for at in range(0, len(events), 6):
            some = events[at : at + 6]
            notify(database, channel, some if at % 4 else some[0])
            for event in [] if at % 4 else some[1:]:
                notify(database, channel, event)
            row(at % 10)
        until(lambda: feed.stats().applied >= len(events))
    for row_id in answers:
        assert row(row_id) == newest
        assert row.peek(row_id) == newest
    guard.apply((f"row:{row_id}", newest - 1) for row_id in answers)  # late news of something old
    assert [row.peek(row_id) for row_id in answers] == [newest] * 10
    guard.invalidate(*(f"row:{row_id}" for row_id in answers))
    answers.update(dict.fromkeys(answers, newest - 1))  # a replica that lags behind
    assert row(0) == newest - 1
    assert row.peek(0) is MISSING
    assert feed.stats() == FeedStats(applied=len(events), garbage=0, gaps=0, connected=False)


def test_a_lost_connection_is_a_gap_and_everything_is_cleared(
    database: psycopg.Connection[Any],
    guard: CacheGuard,
    feed: PostgresFeed,
    running: RunFeed,
    channel: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with running(feed):
        guard.set("k", 1)
        assert terminate(database) == 1
        until(lambda: feed.stats().gaps == 1 and feed.stats().connected)
        assert guard.get("k") is None
        guard.set("k", 2)
        notify(database, channel, {"key": "k"})
        until(lambda: guard.get("k") is None)
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2


def test_a_gap_may_be_ignored_or_given_to_a_function(
    database: psycopg.Connection[Any],
    guard: CacheGuard,
    postgres_server: PostgresServer,
    running: RunFeed,
    channel: str,
) -> None:
    calls: list[int] = []

    def fails_once() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise ZeroDivisionError

    for on_gap in ("ignore", fails_once):
        feed = PostgresFeed(guard, postgres_server.conninfo, channel=channel, on_gap=on_gap)
        with running(feed):
            guard.set("k", 1)
            terminate(database)
            until(lambda feed=feed: feed.stats().gaps and feed.stats().connected)  # type: ignore[misc]
            assert guard.get("k") == 1
    assert len(calls) == 2


def test_filters_are_fed_with_the_keys_of_events(
    database: psycopg.Connection[Any],
    postgres_server: PostgresServer,
    guard: CacheGuard,
    channel: str,
    running: RunFeed,
) -> None:
    users, others = guard.bloom("users", capacity=100), guard.bloom("others", capacity=100)
    for each in (users, others):
        each.mark_complete()
    gaps: list[int] = []
    bloom = {users: "user:{id}", others: "other:{id}:x"}
    feed = PostgresFeed(guard, postgres_server.conninfo, channel=channel, on_gap=lambda: gaps.append(1), bloom=bloom)
    with running(feed):
        events = [{"key": key} for key in ("user:42", "user:a%3Ab", "other:7:x", "user:1:2", "other:8")]
        notify(database, channel, [*events, {"tag": "user:9"}])
        until(lambda: feed.stats().applied == len(events) + 1)
        assert not users.absent(42)
        assert not users.absent("a:b")
        assert not others.absent(7)
        assert users.absent("1:2")
        assert users.absent(9)
        assert others.absent(8)
    assert gaps == []


@pytest.mark.parametrize("template", ["", "user", "{a}:{b}", "user:{", "user:{id:03}", "user:{id!r}", 5])
def test_filters_need_a_template_with_one_field_and_an_answer_to_gaps(guard: CacheGuard, template: Any) -> None:
    users = guard.bloom("users", capacity=100)
    with pytest.raises(ConfigurationError, match="one plain field"):
        PostgresFeed(guard, "", on_gap=print, bloom={users: template})
    with pytest.raises(ConfigurationError, match="on_gap must be a function"):
        PostgresFeed(guard, "", bloom={users: "user:{id}"})
    with pytest.raises(ConfigurationError, match="a mapping of filters"):
        PostgresFeed(guard, "", on_gap=print, bloom=users)  # type: ignore[arg-type]


def test_a_coroutine_function_for_gaps_is_awaited(
    database: psycopg.Connection[Any], guard: CacheGuard, postgres_server: PostgresServer, channel: str
) -> None:
    calls: list[str] = []

    async def on_gap() -> None:
        await asyncio.sleep(0)
        calls.append("gap")

    with in_loop(PostgresFeed(guard, postgres_server.conninfo, channel=channel, on_gap=on_gap)):
        notify(database, channel, {"gap": True})
        until(lambda: calls == ["gap"])
    with pytest.raises(ConfigurationError, match="use arun"):
        PostgresFeed(guard, postgres_server.conninfo, on_gap=on_gap).run()


def test_garbage_is_counted_and_logged_once(
    database: psycopg.Connection[Any],
    guard: CacheGuard,
    feed: PostgresFeed,
    running: RunFeed,
    channel: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    garbage: list[object] = [
        "", "not json", "[" * 7000, "1" * 7000, "null", "{}", 7, "text", {"key": 1}, {"key": "a", "tag": "b"},
        {"tag": ""}, {"tag": 3}, {"gap": 1}, [[]],
    ]  # fmt: skip
    with running(feed):
        for key in ("good", "unversioned", "odd"):
            guard.set(key, 1)
        for payload in garbage:
            notify(database, channel, payload)
        notify(database, channel, [{"key": "good"}, None, {"key": "unversioned", "version": "latest"}])
        notify(database, channel, {"key": "odd", "version": -1.5, "more": "is ignored"})
        until(lambda: feed.stats().applied == 3)
        assert [guard.get(key) for key in ("good", "unversioned", "odd")] == [None] * 3
        assert feed.stats() == FeedStats(applied=3, garbage=len(garbage) + 3, gaps=0, connected=True)
    assert len(caplog.records) == 1


def test_no_more_than_a_batch_is_applied_at_once(
    database: psycopg.Connection[Any], postgres_server: PostgresServer, channel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def apply(self: CacheGuard, changes: list[Change], **options: Any) -> int:
        sizes.append(len(changes))
        raise Unreachable("queued")  # with on_unreachable="raise"; the feed goes on

    monkeypatch.setattr(CacheGuard, "apply", apply)
    feed = PostgresFeed(CacheGuard("memory://"), postgres_server.conninfo, channel=channel, batch=10)
    with in_thread(feed):
        notify(database, channel, [{"key": str(each)} for each in range(95)])
        until(lambda: feed.stats().applied == 95)
    assert max(sizes) == 10
    assert feed.stats().gaps == 0


def test_closing_takes_no_longer_than_two_seconds(
    guard: CacheGuard, postgres_server: PostgresServer, channel: str
) -> None:
    def seconds_of(close: Callable[[], None]) -> float:
        began = time.monotonic()
        close()
        return time.monotonic() - began

    idle = PostgresFeed(guard, postgres_server.conninfo, channel=channel).start()
    until(lambda: idle.stats().connected)
    assert seconds_of(idle.close) < 2
    idle.close()  # once more is nothing
    in_vain = PostgresFeed(guard, "host=127.0.0.1 port=1", channel=channel).start()
    time.sleep(0.5)
    assert seconds_of(in_vain.close) < 2
    assert in_vain.stats() == FeedStats(applied=0, garbage=0, gaps=0, connected=False)
    with pytest.raises(RuntimeError, match="runs once"):
        in_vain.run()
    before = PostgresFeed(guard, postgres_server.conninfo)
    before.close()
    before.run()


async def test_a_cancelled_feed_lets_go_of_its_connection(
    database: psycopg.Connection[Any], feed: PostgresFeed
) -> None:
    task = asyncio.create_task(feed.arun())
    while not feed.stats().connected:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not feed.stats().connected
    await asyncio.sleep(0.1)
    assert terminate(database) == 0


def test_options_that_cannot_work_are_refused(guard: CacheGuard) -> None:
    for options in ({"channel": ""}, {"on_gap": "explode"}, {"batch": 0}, {"batch": True}):
        with pytest.raises(ConfigurationError):
            PostgresFeed(guard, "", **options)
    with pytest.raises(ConfigurationError, match="conninfo"):
        PostgresFeed(guard, "nonsense")


@pytest.mark.parametrize("waits", ["run", "arun"])
def test_a_server_that_says_nothing_any_more_is_given_up(
    postgres_server: PostgresServer, guard: CacheGuard, channel: str, waits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cacheguard_postgres.feed.SILENCE", 0.2)
    monkeypatch.setattr("cacheguard_postgres.feed.PATIENCE", 0.2)
    monkeypatch.setattr("cacheguard_postgres.feed.LOOKS_UP_EVERY", 0.05)
    with FaultProxy(postgres_server.port) as proxy:
        conninfo = psycopg.conninfo.make_conninfo(postgres_server.conninfo, port=proxy.port)
        feed = PostgresFeed(guard, conninfo, channel=channel)
        with feed if waits == "run" else in_loop(feed):
            until(lambda: feed.stats().connected)
            time.sleep(0.5)
            assert feed.stats() == FeedStats(applied=0, garbage=0, gaps=0, connected=True)
            guard.set("user:1", "old")
            proxy.inject(Fault.BLACKHOLE)
            until(lambda: not feed.stats().connected)
            proxy.heal()
            until(lambda: feed.stats().connected and feed.stats().gaps == 1)
            until(lambda: guard.get("user:1") is None)


def test_every_change_is_queued_before_a_guard_that_wants_to_know_is_told() -> None:
    with CacheGuard("redis://127.0.0.1:1/0", on_unreachable="raise") as guard:
        with pytest.raises(Unreachable):
            guard.apply([(f"row:{number}", number) for number in range(2500)])
        assert guard.stats().invalidations_queued == 2500


@pytest.mark.parametrize("where", ["memory", "redis"])
def test_the_examples_of_the_page_run(
    where: str, postgres_server: PostgresServer, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CACHEGUARD_URL", "memory://" if where == "memory" else redis_url)
    run(ROOT / "docs" / "change-feeds.md", {"postgresql://cache@db/shop": postgres_server.conninfo})
