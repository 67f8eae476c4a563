"""What a server says of itself, and what follows for the data that it has."""

from __future__ import annotations

from typing import Any

import pytest

from cacheguard.client.identity import Change, Facts, Identity, Look, change_of, facts_of, look_of

SERVER = b"# Server\r\nrun_id:ab12\r\nserver_time_usec:1000000000\r\n"
REPLICATION = b"role:master\r\nmaster_replid:cd34\r\nmaster_replid2:" + b"0" * 40 + b"\r\nmaster_repl_offset:7\r\n"
HERE = Facts("run", "history", "master")


class Told:
    """An identity, and what it has told."""

    def __init__(self) -> None:
        self.told: list[bool] = []
        self.identity = Identity(self.told.append)
        self.identity.tell("", HERE)

    def look(self, facts: Facts = HERE, offset: int = 0, saved_ago: float | None = 0.0, **calls: int) -> list[bool]:
        """A heartbeat; what was told by then: for each change, whether the data may be of any age."""
        self.saved_at = self.identity.look("", Look(facts, offset, calls, saved_ago), 100.0)
        return self.told


@pytest.fixture
def told() -> Told:
    return Told()


def test_a_change_is_told_once() -> None:
    told: list[int] = []
    identity = Identity(lambda _: told.append(identity.generation))
    assert identity.tell("", HERE) == 0
    assert identity.tell("", None) == 0
    assert identity.tell("elsewhere", Facts("other", "history", "master")) == 0
    assert identity.tell("", HERE) == 0
    assert identity.tell("", Facts("new", "history", "master")) == 1
    assert identity.tell("", Facts("new", "history", "master")) == 1
    assert told == [0]


def test_a_server_that_does_not_tell_is_unknown() -> None:
    assert facts_of(SERVER, REPLICATION) == ("ab12", "cd34", "master", "")
    assert facts_of(SERVER, None) is None
    assert facts_of(b"", b"") is None
    assert look_of([None] * 4) is None


def test_heartbeats_that_say_the_same_tell_nothing(told: Told) -> None:
    assert told.look() == []
    assert told.look(offset=5, flushall=0) == []


@pytest.mark.parametrize(
    ("after", "change"),
    [
        (HERE, Change.NONE),
        (Facts("another", "history", "master"), Change.LOSSY),
        (Facts("run", "history", "slave"), Change.LOSSY),
        (Facts("run", "promoted", "master", "history"), Change.LOSSY),
        (Facts("run", "its first replica has come", "master"), Change.NONE),
        (Facts("run", "of another server", "slave"), Change.UNKNOWN),
        (Facts("run", "after that", "master", "of another server"), Change.UNKNOWN),
    ],
)
def test_what_has_become_of_the_data_is_seen_from_the_history(told: Told, after: Facts, change: Change) -> None:
    assert change_of(HERE, after) is change
    assert told.look(after) == ([] if not change else [change is Change.UNKNOWN])
    assert told.look(after) == ([] if not change else [change is Change.UNKNOWN])


def test_an_offset_that_goes_back_tells_that_the_data_do(told: Told) -> None:
    told.look(offset=10)
    assert told.look(offset=9) == [True]


@pytest.mark.parametrize("word", ["flushall", "flushdb", "swapdb", "debug"])
def test_who_has_emptied_or_exchanged_the_data_is_seen(told: Told, word: str) -> None:
    told.look()
    calls: dict[str, Any] = {word: 1}
    assert told.look(**calls) == [word in {"flushall", "swapdb"}]
    assert told.look(**calls) == [word in {"flushall", "swapdb"}]


def test_statistics_that_were_reset_tell_nothing_unless_it_was_done_again(told: Told) -> None:
    told.look(flushall=2)
    assert told.look(flushall=0) == []
    assert told.look(flushall=1) == [True]


def test_keys_that_are_restored_count_only_after_the_server_was_emptied(told: Told) -> None:
    told.look()
    assert told.look(restore=1) == []
    assert told.look(restore=1, flushdb=1) == [False]
    assert told.look(restore=2, flushdb=1) == [False, True]


def test_a_change_that_a_connection_has_found_is_not_told_by_the_heartbeat_again(told: Told) -> None:
    told.look(flushall=3, offset=9)
    told.identity.tell("", Facts("new", "history", "master"))
    assert told.look(Facts("new", "history", "master")) == [False]


@pytest.mark.parametrize(
    ("persistence", "ago"),
    [
        (b"aof_enabled:1\r\naof_last_write_status:ok\r\n", 0.0),
        (b"aof_enabled:0\r\nrdb_changes_since_last_save:0\r\nrdb_last_save_time:900\r\n", 0.0),
        (b"rdb_changes_since_last_save:1\r\nrdb_last_save_time:900\r\nrdb_last_bgsave_time_sec:-1\r\n", 101.0),
        (b"rdb_changes_since_last_save:1\r\nrdb_last_save_time:900\r\nrdb_last_bgsave_time_sec:9\r\n", 110.0),
        (b"aof_enabled:1\r\naof_last_write_status:err\r\nrdb_last_save_time:900\r\n", 101.0),
        (b"rdb_changes_since_last_save:1\r\nrdb_last_save_time:1001\r\n", None),
        (b"", None),
        (None, None),
    ],
)
def test_how_old_the_data_would_be_after_a_crash_is_read_from_the_server(
    persistence: bytes | None, ago: float | None
) -> None:
    look = look_of([SERVER, REPLICATION, persistence, b"cmdstat_flushall:calls=2,usec=1\r\n"])
    assert look is not None
    assert look.saved_ago == ago
    assert look.offset == 7
    assert look.calls["flushall"] == 2
    assert look.calls["flushdb"] == 0


def test_what_was_on_disk_once_stays_there_until_another_server_answers(told: Told) -> None:
    told.look(saved_ago=None)
    assert told.saved_at is None
    told.look(saved_ago=0.0)
    assert told.saved_at == 100.0
    told.look(saved_ago=50.0)
    assert told.saved_at == 100.0
    told.look(Facts("another", "history", "master"), saved_ago=50.0)
    assert told.saved_at == 50.0
