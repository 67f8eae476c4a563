"""What does a hit in Redis cost?"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from typing import Any

import redis
import redis.asyncio
from common import Target, awaits_of, calls_of, crowds_of, headline, once, options, private_redis, race, rounds, table

from cacheguard import CacheGuard, Policy

VALUE = "x" * 100
KEYS = range(1_000, 1_100)
CROWD = 50


def load(number: int) -> str:
    return VALUE


async def aload(number: int) -> str:
    return VALUE


def main() -> None:
    """Every read goes to Redis (``l1=False``) and finds a text of 100 characters."""
    chosen = options(__doc__ or "")
    with private_redis() as url, asyncio.Runner() as runner:
        headline(__doc__ or "", url)
        client = redis.Redis.from_url(url)
        for number in KEYS:
            client.set(f"plain:{number}", pickle.dumps(VALUE), ex=3_600)
        policy = Policy(ttl="1h", l1=False)
        with CacheGuard(url, policy=policy, operation_timeout=5) as guard:
            in_threads(guard, client, rounds(chosen, 60))
            runner.run(_fill_plainly(guard))
            in_tasks(guard, runner, url, rounds(chosen, 60))
            many(guard, client, rounds(chosen, 60))
            runner.run(guard.aclose())
        client.close()


async def _fill_plainly(guard: CacheGuard) -> None:
    await guard.aset_many({f"many:{number}": VALUE for number in KEYS})


def in_threads(guard: CacheGuard, client: Any, count: int) -> None:
    """One thread, one read after another."""
    cached = guard.cached("sync:{number}")(load)

    def plain(number: int) -> Any:
        return pickle.loads(client.get(f"plain:{number}"))

    names = "redis-py GET + pickle.loads", "cacheguard"
    times = race({names[0]: calls_of(plain, KEYS), names[1]: calls_of(cached, KEYS)}, count)
    table(times, names[0], Target(names[1], 0.75))


def in_tasks(guard: CacheGuard, runner: asyncio.Runner, url: str, count: int) -> None:
    """One task, one read after another; then 50 tasks at once."""
    cached = guard.cached("async:{number}")(aload)
    client: Any = redis.asyncio.Redis.from_url(url)

    async def plain(number: int) -> Any:
        return pickle.loads(await client.get(f"plain:{number}"))

    names = "redis-py asyncio GET + pickle.loads", "cacheguard, async"
    times = race({names[0]: awaits_of(runner, plain, KEYS), names[1]: awaits_of(runner, cached, KEYS)}, count)
    table(times, names[0], Target(names[1], 0.75))
    names = "redis-py asyncio, 50 tasks, per hit", "cacheguard, 50 tasks, per hit"
    crowded = {names[0]: crowds_of(runner, plain, KEYS, CROWD), names[1]: crowds_of(runner, cached, KEYS, CROWD)}
    table(race(crowded, count), names[0], Target(names[1], 0.30))
    runner.run(client.aclose())


def many(guard: CacheGuard, client: Any, count: int) -> None:
    """A hundred keys in one round trip."""
    plain_names, names = [f"plain:{number}" for number in KEYS], [f"many:{number}" for number in KEYS]

    def plain() -> list[Any]:
        return [pickle.loads(each) for each in client.mget(plain_names)]

    cached: Callable[[], dict[str, Any]] = lambda: guard.get_many(names)  # noqa: E731 - as short as its rival
    if len(cached()) != len(names):
        raise RuntimeError("get_many has to find every key")
    labels = "redis-py MGET of 100 + 100 pickle.loads", "cacheguard get_many of 100"
    table(race({labels[0]: once(plain, 1), labels[1]: once(cached, 1)}, count), labels[0], Target(labels[1], 1.0))


if __name__ == "__main__":
    main()
