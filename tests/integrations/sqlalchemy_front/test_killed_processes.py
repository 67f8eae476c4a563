"""Relays and writers that are killed outright: what was committed is invalidated all the same."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session, sessionmaker

from cacheguard import CacheGuard
from cacheguard_sqlalchemy import OutboxRelay, invalidate_on_commit
from tests.support.fleet import Process
from tests.support.orm import OUTBOX, User

Factory = sessionmaker[Session]
AT_ONCE = 2  # relays

# Imports once and forks a relay or a writer for each line that it hears: a killed one is replaced within milliseconds.
NURSERY = """
import json, os, signal, sys
from sqlalchemy import create_engine, event
from sqlalchemy.orm import sessionmaker
from cacheguard import CacheGuard
from cacheguard_sqlalchemy import OutboxRelay, invalidate_on_commit
from tests.support.orm import OUTBOX, User

def relay(database, redis):
    engine = create_engine(database)
    OutboxRelay(engine, OUTBOX, CacheGuard(redis), interval="2ms", batch=5, claim="200ms").run()

def writer(database, redis, mode):
    factory = sessionmaker(create_engine(database))
    event.listen(factory, "after_commit", lambda _: os.kill(os.getpid(), signal.SIGKILL))
    guard = CacheGuard(redis)
    invalidate_on_commit(guard, factory, {User: ["user:{id}"]}, mode=mode, outbox=OUTBOX)
    with factory() as session:
        session.add(User(id=1, org_id=1))
        session.commit()

for line in sys.stdin:
    what, *words = json.loads(line)
    pid = os.fork()
    if not pid:
        {"relay": relay, "writer": writer}[what](*words)
        os._exit(1)
    print(pid, flush=True)
    if what == "writer":
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Nursery:
    """What it gave birth to is gone with it."""

    def __init__(self) -> None:
        self._process = Process(NURSERY)
        self._alive: set[int] = set()

    def relay(self, database: str, redis: str) -> int:
        """A relay's process id."""
        pid = self._born("relay", database, redis)
        self._alive.add(pid)
        return pid

    def killed_writer(self, database: str, redis: str, mode: str) -> int:
        """How a writer has ended."""
        self._born("writer", database, redis, mode)
        return int(self._process.hear())

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        self._alive.discard(pid)

    def end(self) -> None:
        for pid in self._alive:
            os.kill(pid, signal.SIGKILL)
        self._process.kill()

    def _born(self, *words: str) -> int:
        self._process.tell(json.dumps(words))
        return int(self._process.hear())


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.end()


class Relays:
    """Relays in processes of their own, of which one after the other is killed."""

    def __init__(self, nursery: Nursery, database: str, redis: str) -> None:
        self._nursery, self._where = nursery, (database, redis)
        self.killed = 0
        self._pids = [nursery.relay(*self._where) for _ in range(AT_ONCE)]

    def kill_one(self) -> None:
        at = random.randrange(AT_ONCE)
        self._nursery.kill(self._pids[at])
        self.killed += 1
        self._pids[at] = self._nursery.relay(*self._where)

    def end(self) -> None:
        for pid in self._pids:
            self._nursery.kill(pid)


@contextmanager
def relays(nursery: Nursery, database: str, redis: str) -> Iterator[Relays]:
    them = Relays(nursery, database, redis)
    try:
        yield them
    finally:
        them.end()


class Writers:
    """Threads that commit, or roll back, and remember which."""

    def __init__(self, factory: Factory, guard: CacheGuard) -> None:
        self._factory, self._guard = factory, guard
        self._over = threading.Event()
        self.committed: list[int] = []
        self.rolled_back: list[int] = []
        self.errors: list[BaseException] = []
        self._threads = [threading.Thread(target=self._write, args=[first]) for first in (0, 1)]
        for thread in self._threads:
            thread.start()

    def _write(self, number: int) -> None:
        try:
            while not self._over.is_set():
                number += 2
                self._guard.set(f"user:{number}", "old", ttl="1h")
                with self._factory() as session:
                    session.add(User(id=number, org_id=1))
                    if number % 7 == 0:
                        session.flush()
                        session.rollback()
                        self.rolled_back.append(number)
                    else:
                        session.commit()
                        self.committed.append(number)
                time.sleep(0.002)
        except BaseException as error:  # for the test to see
            self.errors.append(error)
            raise

    def end(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        assert not self.errors


def kill_relays(nursery: Nursery, engine: Engine, url: str, redis_url: str, kills: int) -> str:
    """Kill that many while writers commit, wait for an empty outbox, and look for what was lost."""
    factory = sessionmaker(engine)
    with CacheGuard(redis_url) as guard:
        invalidate_on_commit(guard, factory, {User: ["user:{id}"]}, mode="outbox", outbox=OUTBOX)
        with relays(nursery, url, redis_url) as them:
            writers = Writers(factory, guard)
            try:
                while them.killed < kills:
                    time.sleep(random.uniform(0, 0.06))
                    them.kill_one()
            finally:
                writers.end()
            deadline = time.monotonic() + 30
            with OutboxRelay(engine, OUTBOX, guard, interval="5ms"):  # besides those that are alive
                while OutboxRelay(engine, OUTBOX, guard).pending().rows:
                    assert time.monotonic() < deadline, "the outbox is not drained"
                    time.sleep(0.01)
        with engine.connect() as connection:
            written = set(connection.scalars(select(User.id)))
        assert written == set(writers.committed)
        with CacheGuard(redis_url) as reader:
            lost = [each for each in writers.committed if reader.get(f"user:{each}") is not None]
            kept = [each for each in writers.rolled_back if reader.get(f"user:{each}") == "old"]
        assert lost == []
        assert kept == writers.rolled_back, "what was rolled back is not invalidated"
        assert len(writers.committed) > kills
        return f"{them.killed} kills, {len(writers.committed)} commits, {len(lost)} lost"


@pytest.mark.parametrize("times", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_nothing_is_lost_when_relays_are_killed_many_times(
    nursery: Nursery,
    engine: Engine,
    database_url: Callable[[str], str],
    redis_url: str,
    record_property: Callable[[str, object], None],
    times: int,
) -> None:
    record_property("outcome", kill_relays(nursery, engine, database_url("sync"), redis_url, times))


@pytest.mark.parametrize("mode", ["delete", "fence", "outbox"])
def test_a_writer_that_dies_between_commit_and_invalidation_is_made_up_for(
    nursery: Nursery, engine: Engine, database_url: Callable[[str], str], redis_url: str, mode: str
) -> None:
    with CacheGuard(redis_url) as guard:
        guard.set("user:1", "old")
        assert nursery.killed_writer(database_url("sync"), redis_url, mode) == -signal.SIGKILL
        with Session(engine) as session:
            assert session.get(User, 1) is not None, "it died after COMMIT"
        assert guard.get("user:1") == (None if mode == "fence" else "old")
        assert OutboxRelay(engine, OUTBOX, guard).run_once() == 1
        assert guard.get("user:1") is None
