"""`OutboxRelay`: delivers the invalidations in the outbox to the guard, at least once."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

from sqlalchemy import Connection, Engine, Row, Table, func, select

from cacheguard import CacheGuard
from cacheguard.errors import ConfigurationError, Unreachable
from cacheguard.extending import Duration, count, seconds

from .doors import asyncio_extension, through
from .outbox import ALL, change_of, check_outbox

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

log: logging.Logger = logging.getLogger("cacheguard")

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0  # seconds between attempts that failed
PATIENCE_AT_CLOSE = 5.0

# These databases have SKIP LOCKED: a second relay gets the rows that the first has not locked. On others, a relay
# claims rows until a deadline.
_SKIP_LOCKED = frozenset({"postgresql", "oracle"})


@dataclass(frozen=True, slots=True)
class OutboxSize:
    """The rows that are not delivered yet.

    Args:
        rows: the number of keys and tags.
        age: seconds since the oldest was written, by the clocks of its writer and of this host; None without rows.
    """

    rows: int
    age: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayStats:
    """The counters of a relay since it was made.

    Args:
        delivered: rows that Redis has acknowledged and that were deleted from the table.
        failures: attempts that failed in the database or in Redis.
    """

    delivered: int
    failures: int


class OutboxRelay:
    """Delivers the outbox rows of committed transactions: invalidates their keys and tags, then deletes the rows.

    A row is deleted only after Redis has acknowledged the invalidation. So each row is delivered at least once,
    whatever fails in between; a second invalidation does no harm. Any number of relays may run. With ``SKIP LOCKED``
    (PostgreSQL, Oracle) each takes rows that no other has locked, and the rows of a relay that dies are free at once.
    Elsewhere a relay claims rows for *claim*.

    Use `run` in your own thread, `start` (or ``with``) for a new thread, `arun` in an event loop, or `run_once` in a
    cron job. With an `AsyncEngine` use `arun`, `arun_once` and `apending`.

    Args:
        engine: of the database with the outbox.
        table: made by `outbox_table`.
        guard: the guard to invalidate in.
        interval: seconds between two looks at an empty table; each costs one query.
        batch: the largest number of rows at a time; each batch costs one round trip to Redis.
        claim: how long the rows of a relay that died stay claimed, on databases without ``SKIP LOCKED``.
        warn_after: if a row is older than this, a warning is logged.

    Raises:
        ConfigurationError: an option that cannot work.
    """

    def __init__(
        self,
        engine: Engine | AsyncEngine,
        table: Table,
        guard: CacheGuard,
        *,
        interval: Duration = "500ms",
        batch: int = 500,
        claim: Duration = "10s",
        warn_after: Duration = "1m",
    ) -> None:
        if not isinstance(engine, Engine) and not _is_async(engine):
            raise ConfigurationError(f"engine must be an Engine or an AsyncEngine, got {engine!r}")
        if not isinstance(guard, CacheGuard):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(f"guard must be a CacheGuard, got {guard!r}")
        self._engine, self._table, self._guard = engine, check_outbox(table), guard
        self._interval, self._batch = seconds(interval, "interval"), count("batch", batch)
        self._claim, self._warn_after = seconds(claim, "claim"), seconds(warn_after, "warn_after")
        self._skips = engine.dialect.name in _SKIP_LOCKED
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._awake: Callable[[], object] | None = None
        self._thread: threading.Thread | None = None
        self._pause = 0.0
        self._delivered = self._failures = 0
        self._down = self._late = False

    def __repr__(self) -> str:
        return f"<OutboxRelay of {self._table.fullname} into {self._guard!r}>"

    def stats(self) -> RelayStats:
        """The counters since the relay was made. No round trip."""
        return RelayStats(delivered=self._delivered, failures=self._failures)

    # Once

    def run_once(self) -> int:
        """Deliver one batch; return its number of rows.

        Costs two queries and a round trip to Redis; four queries if rows are claimed; one query if there are no rows.

        Raises:
            Unreachable: Redis did not acknowledge the batch; its rows stay in the table.
            SQLAlchemyError: the database failed.
        """
        engine = self._blocking()
        if self._skips:
            with engine.begin() as connection:
                return self._drain_locked(connection)
        token = secrets.token_hex(16)
        with engine.begin() as connection:
            rows = self._claimed(connection, token)
        if rows:
            self._deliver_claimed(engine, rows, token)
        return len(rows)

    async def arun_once(self) -> int:
        """`run_once`, to be awaited."""
        engine = self._waiting()
        if self._skips:
            async with engine.begin() as connection:
                return await connection.run_sync(self._drain_locked)
        token = secrets.token_hex(16)
        async with engine.begin() as connection:
            rows = await connection.run_sync(self._claimed, token)
        if rows:
            await self._adeliver_claimed(engine, rows, token)
        return len(rows)

    def pending(self) -> OutboxSize:
        """Count the rows that are not delivered yet. One query."""
        with self._blocking().connect() as connection:
            return self._size(connection)

    async def apending(self) -> OutboxSize:
        """`pending`, to be awaited."""
        async with self._waiting().connect() as connection:
            return await connection.run_sync(self._size)

    # Running

    def run(self) -> None:
        """Deliver until `stop`. A failed batch is tried again, after pauses that double from 100 ms to 5 s."""
        self._blocking()
        while not self._stop.is_set():
            try:
                rows = self.run_once()
            except Exception as error:  # noqa: BLE001 - drivers raise what they like when a server is gone
                self._stop.wait(self._failed(error))
            else:
                self._worked()
                if rows < self._batch:
                    self._stop.wait(self._interval)

    async def arun(self) -> None:
        """`run` in an event loop, until `stop` or cancellation."""
        self._waiting()
        loop, stopped = asyncio.get_running_loop(), asyncio.Event()
        with self._lock:
            self._awake = lambda: loop.call_soon_threadsafe(stopped.set)
        try:
            while not self._stop.is_set():
                try:
                    rows = await self.arun_once()
                except Exception as error:  # noqa: BLE001 - as in `run`
                    await _wait(stopped, self._failed(error))
                else:
                    self._worked()
                    if rows < self._batch:
                        await _wait(stopped, self._interval)
        finally:
            with self._lock:
                self._awake = None

    def start(self) -> Self:
        """Run `run` in a new thread. It does not survive a fork: start it in the process that needs it."""
        self._blocking()
        if self._thread is not None:
            raise RuntimeError("this relay was started already; make another")
        self._thread = threading.Thread(target=self.run, name="cacheguard-outbox", daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """End `run`, `arun` or the thread, after the current batch. From any thread; waits for the thread."""
        self._stop.set()
        with self._lock:
            if self._awake is not None:
                self._awake()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(PATIENCE_AT_CLOSE)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # Where rows can be locked

    def _drain_locked(self, connection: Connection) -> int:
        table = self._table
        rows = connection.execute(
            select(table).order_by(table.c.id).limit(self._batch).with_for_update(skip_locked=True)
        ).all()
        if rows:
            self._tell(rows)
            connection.execute(table.delete().where(table.c.id.in_([row.id for row in rows])))
            self._delivered += len(rows)
        return len(rows)

    # Where they are claimed

    def _claimed(self, connection: Connection, token: str) -> Sequence[Row[Any]]:
        table, now = self._table, time.time()
        is_free = table.c.claimed_until.is_(None) | (table.c.claimed_until < now)
        free = select(table.c.id).where(is_free).order_by(table.c.id).limit(self._batch)
        ids = connection.execute(free).scalars().all()
        if not ids:  # a plain SELECT first, so that an idle relay takes no lock
            return ()
        connection.execute(
            table.update().where(table.c.id.in_(ids), is_free).values(claimed_by=token, claimed_until=now + self._claim)
        )
        return connection.execute(select(table).where(table.c.claimed_by == token).order_by(table.c.id)).all()

    def _deliver_claimed(self, engine: Engine, rows: Sequence[Row[Any]], token: str) -> None:
        try:
            self._tell(rows)
        except BaseException:
            with engine.begin() as connection:
                self._let_go(connection, token)
            raise
        with engine.begin() as connection:
            self._strike(connection, token)

    async def _adeliver_claimed(self, engine: AsyncEngine, rows: Sequence[Row[Any]], token: str) -> None:
        try:
            await self._atell(rows)
        except Exception:
            async with engine.begin() as connection:
                await connection.run_sync(self._let_go, token)
            raise
        async with engine.begin() as connection:
            await connection.run_sync(self._strike, token)

    def _let_go(self, connection: Connection, token: str) -> None:
        table = self._table
        connection.execute(
            table.update().where(table.c.claimed_by == token).values(claimed_by=None, claimed_until=None)
        )

    def _strike(self, connection: Connection, token: str) -> None:
        # Only rows with our claim: if this relay was slow, another may have claimed them, and then it deletes them.
        self._delivered += connection.execute(self._table.delete().where(self._table.c.claimed_by == token)).rowcount

    # Either way

    def _tell(self, rows: Sequence[Row[Any]]) -> None:
        self._look_at_age(rows)
        changes = [change_of(row.kind, row.name, row.version) for row in rows if row.kind != ALL]
        if len(changes) < len(rows):
            self._say_everything()
            through(self._guard.clear, self._guard.aclear)
        through(self._guard.apply, self._guard.aapply, changes)
        self._check_acknowledged()

    async def _atell(self, rows: Sequence[Row[Any]]) -> None:
        self._look_at_age(rows)
        changes = [change_of(row.kind, row.name, row.version) for row in rows if row.kind != ALL]
        if len(changes) < len(rows):
            self._say_everything()
            await self._guard.aclear()
        await self._guard.aapply(changes)
        self._check_acknowledged()

    def _say_everything(self) -> None:
        log.warning(
            "%r clears the whole namespace: a transaction wrote to the outbox %s that it changed more than it can name",
            self._guard,
            self._table.fullname,
        )

    def _check_acknowledged(self) -> None:
        """Check that nothing is pending: a guard that queues invalidations does not raise if Redis does not answer."""
        if self._guard.stats().invalidations_queued:
            raise Unreachable("Redis has not acknowledged the outbox: its rows stay")

    def _look_at_age(self, rows: Sequence[Row[Any]]) -> None:
        age = time.time() - min(row.created_at for row in rows)
        late = age > self._warn_after
        if late and not self._late:
            log.warning("the outbox %s is not drained: its oldest row is %.0f s old", self._table.fullname, age)
        self._late = late

    def _size(self, connection: Connection) -> OutboxSize:
        created_at = self._table.c.created_at
        rows, oldest = connection.execute(select(func.count(), func.min(created_at)).select_from(self._table)).one()
        return OutboxSize(rows, None if oldest is None else max(0.0, time.time() - cast("float", oldest)))

    def _failed(self, error: Exception) -> float:
        """The pause after *error*, in seconds."""
        self._failures += 1
        if not self._down:
            self._down = True
            log.warning("the relay of %s waits (%s: %s)", self._table.fullname, type(error).__name__, error)
        self._pause = min(LONGEST_PAUSE, max(FIRST_PAUSE, 2 * self._pause))
        return self._pause * random.uniform(0.75, 1.0)

    def _worked(self) -> None:
        self._pause = 0.0
        if self._down:
            self._down = False
            log.warning("the relay of %s works again", self._table.fullname)

    def _blocking(self) -> Engine:
        if not isinstance(self._engine, Engine):
            raise ConfigurationError("this relay has an AsyncEngine: use arun, arun_once and apending")
        return self._engine

    def _waiting(self) -> AsyncEngine:
        if isinstance(self._engine, Engine):
            raise ConfigurationError("this relay has a blocking Engine: use run, run_once, pending and start")
        return self._engine


def _is_async(engine: object) -> bool:
    asynchronous = asyncio_extension()
    return asynchronous is not None and isinstance(engine, asynchronous.AsyncEngine)


async def _wait(stopped: asyncio.Event, pause: float) -> None:
    try:
        await asyncio.wait_for(stopped.wait(), pause)
    except TimeoutError:
        return
