"""The run: a database, a Redis, four processes, four disasters, two applications."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any, TypeAlias, TypeVar

from .disasters import PROCESSES, SLOTS, Disaster
from .meter import Meter
from .outcome import Outcome, buckets, percentile
from .server import NamedRedis, OwnRedis, connect, memory_of_keys
from .shop import PRODUCTS, build
from .sides import SIDES, Side
from .worker import Audit, Audited, Crash, Done, Finish, Go, Order, Posting, Prepare, Tally, empty_tally, work

HEAD_START = 0.1  # seconds for the order to reach every worker
PATIENCE = 1.0  # seconds for the workers to end by themselves
LOOK = 0.1  # seconds between two looks at the meter

Look: TypeAlias = Callable[[Meter], object]
R = TypeVar("R")


class CrewError(Exception):
    """A worker process failed; the message is its traceback."""


@dataclass(frozen=True, slots=True)
class Result:
    """One finished run."""

    disaster: Disaster
    side: Side
    outcome: Outcome


class Crew:
    """The worker processes: spawned once, given orders, gone when the block ends, however it ends."""

    def __init__(self, postings: Sequence[Posting]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Any] = []
        self._processes: list[Any] = []
        with _deaf_to_ctrl_c():
            for posting in postings:
                ours, theirs = context.Pipe()
                process = context.Process(target=work, args=(posting, theirs), daemon=True)
                process.start()
                theirs.close()
                self._pipes.append(ours)
                self._processes.append(process)

    def tell(self, order: Order) -> None:
        """Give an order to all."""
        for number in range(len(self._pipes)):
            self.tell_one(number, order)

    def tell_one(self, number: int, order: Order) -> None:
        """Give an order to one."""
        try:
            self._pipes[number].send(order)
        except OSError as error:
            raise CrewError(f"worker {number} has ended") from error

    def replies(self, kind: type[R], look: Callable[[], object] = lambda: None) -> list[R]:
        """Everybody's reply to the last order; *look* is called every now and then meanwhile."""
        return [self.reply(number, kind, look) for number in range(len(self._pipes))]

    def reply(self, number: int, kind: type[R], look: Callable[[], object] = lambda: None) -> R:
        """One worker's reply."""
        pipe = self._pipes[number]
        try:
            while not pipe.poll(LOOK):
                look()
            reply = pipe.recv()
        except (EOFError, OSError) as error:
            raise CrewError(f"worker {number} has ended") from error
        if isinstance(reply, Crash):
            raise CrewError(reply.trace)
        if not isinstance(reply, kind):
            raise CrewError(f"worker {number} replied {reply!r}")
        return reply

    def dismiss(self) -> None:
        """End them all."""
        for pipe in self._pipes:
            pipe.close()
        deadline = time.monotonic() + PATIENCE
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))
            process.kill()
            process.join()
            process.close()


class Stage:
    """Everything that is there while the demo runs."""

    meter: Meter

    def __init__(self, crew: Crew, meter: Meter, redis_url: str) -> None:
        self._crew, self.meter, self._redis_url = crew, meter, redis_url

    @property
    def redis_version(self) -> str:
        """What answers."""
        with connect(self._redis_url) as client:
            return str(client.info("server").get("redis_version", "of unknown version"))

    def run_all(
        self, disasters: Sequence[Disaster], begins: Callable[[Disaster, Side], object], look: Look
    ) -> Iterator[Result]:
        """Every disaster on both sides, one after the other."""
        for disaster in disasters:
            for side in SIDES:
                begins(disaster, side)
                yield Result(disaster, side, self._run(disaster, side, look))

    def _run(self, disaster: Disaster, side: Side, look: Look) -> Outcome:
        crew, meter = self._crew, self.meter
        with connect(self._redis_url) as client:
            client.flushdb()
            meter.reset()
            crew.tell(Prepare(disaster, side))
            crew.replies(Done)
            began = time.monotonic() + HEAD_START
            meter.start(began)
            crew.tell(Go(began))
            tally = empty_tally()
            for each in crew.replies(Tally, lambda: look(meter)):
                tally.add(each)
            look(meter)
            queries, peak, timeline = meter.total, meter.peak, meter.timeline()
            memory = memory_of_keys(client)
            outdated = self._audit() if disaster.writes else None
            crew.tell(Finish())
            crew.replies(Done)
            client.flushdb()
        latencies = sorted(tally.latencies)
        return Outcome(
            requests=disaster.requests,
            answered=len(latencies),
            seconds=tally.ended,
            queries=queries,
            peak=peak,
            p50=percentile(latencies, 0.50),
            p99=percentile(latencies, 0.99),
            stale=len(tally.stale) if disaster.writes else None,
            outdated=outdated,
            memory=memory,
            errors=tally.errors,
            first_error=tally.first_error,
            timeline=timeline,
            stale_timeline=buckets(tally.stale),
        )

    def _audit(self) -> int:
        self._crew.tell_one(0, Audit())
        return len(self._crew.reply(0, Audited).outdated)


@contextmanager
def staged(seed: int, says: Callable[[str], object]) -> Generator[Stage]:
    """A stage, built up for the block and gone without a trace after it, also on Ctrl-C and SIGTERM.

    Raises `NoRedisError` if there is no Redis to be had.
    """
    with _ended_by_sigterm(), TemporaryDirectory(prefix="cacheguard-demo-", ignore_cleanup_errors=True) as directory:
        room = Path(directory)
        named = os.environ.get("CACHEGUARD_DEMO_REDIS")
        says("starting Redis" if not named else "connecting to Redis")
        with NamedRedis(named) if named else OwnRedis(room) as server:
            meter = Meter(multiprocessing.get_context("spawn"), PRODUCTS, SLOTS)
            says(f"starting {PROCESSES} processes and building a shop of {PRODUCTS:,} products")
            database = room / "shop.sqlite"
            crew = Crew([Posting(number, database, server.url, seed, meter) for number in range(PROCESSES)])
            try:
                build(database, seed)
                yield Stage(crew, meter, server.url)
            finally:
                crew.dismiss()


@contextmanager
def _deaf_to_ctrl_c() -> Generator[None]:
    """Let processes that start in the block ignore Ctrl-C from their first moment on: they end with the parent."""
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def _ended_by_sigterm() -> Generator[None]:
    """Let SIGTERM unwind the stack as Ctrl-C does, so that nothing is left over."""

    def end(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
