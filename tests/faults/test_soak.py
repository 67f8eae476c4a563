"""Traffic for a long time, with a fault of some kind every few seconds: nothing grows, nothing is wrong."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from cacheguard import CacheGuard, Policy
from cacheguard.testing.redis_server import RedisServer as Server
from tests.faults.test_bus import until
from tests.faults.test_outage import own_server, uses_redis
from tests.support.faults import Fault, FaultProxy
from tests.support.traffic import Database, Traffic

__all__ = ["own_server"]  # a fixture


@dataclass(slots=True)
class Sample:
    """What the process holds."""

    at: float
    resident: float  # MB
    descriptors: int
    threads: int


def sample(began: float) -> Sample:
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # what was freed counts as free, where the system can be asked
        ctypes.CDLL(None).malloc_trim(0)
    process = psutil.Process()
    ours = [thread for thread in threading.enumerate() if thread.name.startswith("cacheguard")]
    return Sample(time.monotonic() - began, process.memory_info().rss / 1e6, process.num_fds(), len(ours))


def slope(samples: list[Sample], of: Callable[[Sample], float]) -> float:
    """How much it grows in a minute: the least squares line."""
    times, values = [each.at / 60 for each in samples], [of(each) for each in samples]
    mean_time, mean_value = sum(times) / len(times), sum(values) / len(values)
    spread = sum((at - mean_time) ** 2 for at in times)
    return sum((at - mean_time) * (value - mean_value) for at, value in zip(times, values, strict=True)) / spread


TERMS: dict[Fault, dict[str, Any]] = {Fault.DELAY: {"seconds": 0.3}, Fault.THROTTLE: {"rate": 2000}}


class Trouble:
    """One fault after the other, at random, each made good after a while."""

    def __init__(self, server: Server, proxy: FaultProxy, guard: CacheGuard, draws: random.Random) -> None:
        self._server, self._proxy, self._guard, self._draws = server, proxy, guard, draws
        self.met: dict[str, int] = {}
        self._kinds: dict[str, Callable[[float], None]] = {
            "restart": lambda _: server.restart(),
            "kill": self._kill,
            "freeze": self._freeze,
            "cut": lambda _: proxy.cut(),
            "deafen": lambda _: proxy.deafen(),
            "kill connections": lambda _: server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"),
            "forget scripts": lambda _: server.command("SCRIPT", "FLUSH"),
            "full": lambda seconds: self._configured("maxmemory", "1", "0", seconds),
            "no replicas": lambda seconds: self._configured("min-replicas-to-write", "1", "0", seconds),
        } | {fault.name.lower(): self._injected(fault) for fault in Fault if fault is not Fault.NONE}

    def strike(self, seconds: float) -> None:
        kind = self._draws.choice(list(self._kinds))
        self.met[kind] = self.met.get(kind, 0) + 1
        self._kinds[kind](seconds)

    def _injected(self, fault: Fault) -> Callable[[float], None]:
        def strike(seconds: float) -> None:
            self._proxy.inject(fault, **TERMS.get(fault, {}))
            time.sleep(seconds)
            self._proxy.heal()

        return strike

    def _kill(self, seconds: float) -> None:
        self._server.kill()
        time.sleep(seconds)
        self._server.start()

    def _freeze(self, seconds: float) -> None:
        self._server.freeze()
        time.sleep(seconds)
        self._server.thaw()

    def _configured(self, name: str, value: str, before: str, seconds: float) -> None:
        self._server.command("CONFIG", "SET", name, value)
        time.sleep(seconds)
        self._server.command("CONFIG", "SET", name, before)


def writer(guard: CacheGuard, over: threading.Event, problems: list[str]) -> None:
    """Invalidations, guarded writes, tags, values by hand, all the time."""
    draws, turn = random.Random(17), 0
    while not over.wait(0.01):
        turn += 1
        number = draws.randrange(300)
        try:
            match turn % 5:
                case 0:
                    guard.invalidate(f"row:{number}", f"arow:{number}")
                case 1:
                    with guard.writing(f"row:{number}"):
                        pass
                case 2:
                    guard.invalidate_tags("red")
                case 3:
                    guard.set(f"hand:{number}", "x" * draws.randrange(5000))
                case _:
                    guard.get_many([f"hand:{number}", f"hand:{number + 1}"])
        except BaseException as error:  # noqa: BLE001 - it is reported
            problems.append(repr(error))


def soak(server: Server, tmp_path: Path, seconds: float, every: float, warm: float) -> list[Sample]:
    database, problems, samples = Database(seconds=0.002), list[str](), list[Sample]()
    over = threading.Event()
    with (
        FaultProxy(server.port) as proxy,
        CacheGuard(
            proxy.url,
            policy=Policy(ttl="2s", stale_if_error="10s"),
            operation_timeout=0.2,
            outbox=tmp_path / "outbox.db",
            l1_size=200,
        ) as guard,
        Traffic(guard, database, keys=300, rate=200, tags=["red"]) as traffic,
    ):
        trouble = Trouble(server, proxy, guard, random.Random(23))
        writing = threading.Thread(target=writer, args=(guard, over, problems))
        writing.start()
        began = time.monotonic()
        requests = 0
        while time.monotonic() - began < seconds:
            strike_at = time.monotonic() + every
            trouble.strike(every / 3)
            time.sleep(max(0.0, strike_at - time.monotonic()))
            problems += traffic.problems
            requests += len(traffic.answers)
            traffic.answers.clear()  # what a test writes down is no leak
            database.loads.clear()
            if time.monotonic() - began >= warm:
                samples.append(sample(began))
        until(lambda: uses_redis(guard), 10)
        until(lambda: guard.stats().invalidations_queued == 0, 10)
        until(lambda: guard.stats().bus_up, 10)
        over.set()
        writing.join(10)
        stats = guard.stats()
    memory, descriptors, threads = (
        slope(samples, lambda each: each.resident),
        slope(samples, lambda each: each.descriptors),
        slope(samples, lambda each: each.threads),
    )
    first, last = samples[0], samples[-1]
    figures = [
        f"{seconds:g} s, {sum(trouble.met.values())} faults {trouble.met}",
        f"{requests} requests, {len(problems)} problems",
        f"RSS {first.resident:.1f} to {last.resident:.1f} MB, {memory:+.3f} MB/min",
        f"descriptors {first.descriptors} to {last.descriptors}, {descriptors:+.2f}/min",
        f"threads {first.threads} to {last.threads}, {threads:+.2f}/min",
        f"breaker opened {stats.breaker_opens} times, redis errors {stats.redis_errors}",
        f"replayed {stats.replayed}, gaps {stats.bus_gaps}",
    ]
    print("; ".join(figures))  # noqa: T201
    assert problems == []
    assert database.peak <= 64
    assert max(each.threads for each in samples) <= 40  # the bus, the keeper, the probe, and loads behind answers
    assert max(each.descriptors for each in samples) <= 64 * 2 + 100  # both ends of the proxy are here, too
    return samples


def test_a_fault_every_half_second_for_a_while(own_server: Server, tmp_path: Path) -> None:
    soak(own_server, tmp_path, 4, 0.5, 1)


@pytest.mark.chaos
@pytest.mark.timeout(1200)
def test_ten_minutes_with_a_fault_every_five_seconds(own_server: Server, tmp_path: Path) -> None:
    """Nothing grows: not the memory, not the descriptors, not the threads."""
    minutes = float(os.environ.get("CACHEGUARD_SOAK_MINUTES", "10"))
    samples = soak(own_server, tmp_path, 60 * minutes, 5, 60 * minutes / 5)
    half = len(samples) // 2
    early, late = samples[:half], samples[half:]
    assert sum(each.resident for each in late) / len(late) - sum(each.resident for each in early) / len(early) <= 3
    assert slope(samples, lambda each: each.descriptors) <= 1
    assert slope(samples, lambda each: each.threads) <= 0.5


def test_the_slope_is_that_of_the_line() -> None:
    samples = [Sample(60.0 * minute, 10.0 + 2.0 * minute, 5, 3) for minute in range(5)]
    assert slope(samples, lambda each: each.resident) == pytest.approx(2.0)
    assert slope(samples, lambda each: each.descriptors) == 0
