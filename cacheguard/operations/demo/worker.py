"""One process of an application: takes orders over a pipe, sends the requests with its threads, reports."""

from __future__ import annotations

import itertools
import logging
import os
import signal
import threading
import time
import traceback
from array import array
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeAlias

from .disasters import Disaster
from .meter import Meter
from .shop import Shop
from .sides import Application, Side, application
from .traffic import Traffic, plan, share


@dataclass(frozen=True, slots=True)
class Prepare:
    """Get ready for a run; answered with `Done`."""

    disaster: Disaster
    side: Side


@dataclass(frozen=True, slots=True)
class Go:
    """Send the requests from *began* (monotonic seconds) on; answered with a `Tally`."""

    began: float


@dataclass(frozen=True, slots=True)
class Audit:
    """Read every product once more; answered with `Audited`."""


@dataclass(frozen=True, slots=True)
class Finish:
    """Close everything that belongs to this run; answered with `Done`."""


@dataclass(frozen=True, slots=True)
class Done:
    """The order is carried out."""


@dataclass(frozen=True, slots=True)
class Audited:
    """Which products are still shown at a price that was replaced before."""

    outdated: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Crash:
    """The order could not be carried out."""

    trace: str


@dataclass(slots=True)
class Tally:
    """What a thread, a worker or all of them saw."""

    latencies: array[float]
    stale: array[float]
    """When each stale answer was given, in seconds after the start."""
    errors: int = 0
    first_error: str = ""
    unanswered: int = 0
    ended: float = 0.0
    """When the last answer came, in seconds after the start."""

    def add(self, other: Tally) -> None:
        """Take in what another one saw."""
        self.latencies.extend(other.latencies)
        self.stale.extend(other.stale)
        self.errors += other.errors
        self.first_error = self.first_error or other.first_error
        self.unanswered += other.unanswered
        self.ended = max(self.ended, other.ended)


def empty_tally() -> Tally:
    """A tally of nothing yet."""
    return Tally(array("d"), array("d"))


Order: TypeAlias = Prepare | Go | Audit | Finish
Reply: TypeAlias = Done | Tally | Audited | Crash


@dataclass(frozen=True, slots=True)
class Posting:
    """Where a worker works."""

    number: int
    database: Path
    redis_url: str
    seed: int
    meter: Meter


def work(posting: Posting, orders: Connection[Reply, Order]) -> None:
    """The life of a worker: until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what a Ctrl-C at the terminal means
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.getLogger("cacheguard").addHandler(logging.NullHandler())  # the screen belongs to the parent
    worker = _Worker(posting)
    with suppress(EOFError, OSError):  # the parent has closed its end
        while True:
            orders.send(worker.reply(orders.recv()))


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


class _Worker:
    def __init__(self, posting: Posting) -> None:
        self._posting = posting
        self._run: _Run | None = None

    def reply(self, order: Order) -> Reply:
        """Carry out *order*; what goes wrong is told to the parent, which says it to the user."""
        try:
            return self._obeyed(order)
        except Exception:  # noqa: BLE001 - as said
            return Crash(traceback.format_exc())

    def _obeyed(self, order: Order) -> Reply:
        match order:
            case Prepare():
                self._run = _Run(self._posting, order)
                self._run.prepare()
                return Done()
            case Go():
                return self._current().go(order.began)
            case Audit():
                return self._current().audit()
            case Finish():
                self._current().close()
                self._run = None
                return Done()

    def _current(self) -> _Run:
        if self._run is None:
            raise RuntimeError("the order came before Prepare")
        return self._run


class _Run:
    """One disaster on one side, in this process."""

    def __init__(self, posting: Posting, order: Prepare) -> None:
        self._posting, self._meter, self._disaster = posting, posting.meter, order.disaster
        seed = f"{posting.seed}/{order.disaster.name}/distance/{posting.number}"
        self._shop = Shop(posting.database, posting.meter, order.disaster.distance, seed)
        self._application: Application = application(order.side, self._shop, posting.redis_url, order.disaster)
        self._traffic: Traffic = plan(order.disaster, posting.seed, posting.number)
        self._began = 0.0

    def prepare(self) -> None:
        if self._posting.number == 0:
            self._application.prepare()
        mine = share(self._disaster, self._posting.number)
        if self._disaster.warm and mine:
            self._application.warm(self._shop.products(mine[0], mine[-1]))

    def go(self, began: float) -> Tally:
        """Send every request; the tally of all threads."""
        self._began = began
        turns = itertools.count()
        tallies = [empty_tally() for _ in range(self._disaster.clients)]
        jobs: list[Callable[[], None]] = [partial(self._client, turns, tally) for tally in tallies]
        if self._traffic.writes:
            writers, writing = 2, itertools.count()
            tallies += (extra := [empty_tally() for _ in range(writers)])
            jobs += [partial(self._writer, writing, tally) for tally in extra]
        threads = [threading.Thread(target=job) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        total = empty_tally()
        for tally in tallies:
            total.add(tally)
        total.ended = time.monotonic() - began
        total.unanswered = len(self._traffic.ids) - len(total.latencies)
        return total

    def _client(self, turns: itertools.count[int], tally: Tally) -> None:
        ids, due, began = self._traffic.ids, self._traffic.due, self._began
        give_up = began + self._disaster.limit
        _sleep_until(began)
        for turn in turns:
            if turn >= len(ids) or time.monotonic() > give_up:
                return
            asked = began + due[turn] if due else time.monotonic()
            _sleep_until(asked)
            self._ask(ids[turn], tally)
            tally.latencies.append(time.monotonic() - asked)
            self._meter.answered(self._posting.number)

    def _ask(self, product_id: int, tally: Tally) -> None:
        newest = self._meter.acknowledged(product_id) if self._disaster.writes else 0
        try:
            product = self._application.read(product_id)
        except Exception as error:  # noqa: BLE001 - a page that failed, whatever the reason
            tally.errors += 1
            tally.first_error = tally.first_error or repr(error)
            return
        if product is not None and product["revision"] < newest:
            tally.stale.append(time.monotonic() - self._began)

    def _writer(self, turns: itertools.count[int], tally: Tally) -> None:
        writes = self._traffic.writes
        for turn in turns:
            if turn >= len(writes):
                return
            at, product_id, price_cents = writes[turn]
            _sleep_until(self._began + at)
            try:
                revision = self._application.reprice(product_id, price_cents)
            except Exception as error:  # noqa: BLE001 - a change that failed is counted like a page that failed
                tally.errors += 1
                tally.first_error = tally.first_error or repr(error)
            else:
                self._meter.acknowledge(product_id, revision)

    def audit(self) -> Audited:
        """Look at every product once more."""
        wrong: list[int] = []
        for product_id in range(1, self._disaster.products + 1):
            product = self._application.read(product_id)
            if product is not None and product["revision"] < self._meter.acknowledged(product_id):
                wrong.append(product_id)
        return Audited(tuple(wrong))

    def close(self) -> None:
        self._application.close()
        self._shop.close()


def _sleep_until(moment: float) -> None:
    pause = moment - time.monotonic()
    if pause > 0:
        time.sleep(pause)
