"""What does a protected miss cost, when the load itself is free?"""

from __future__ import annotations

import asyncio
import pickle
from itertools import count as counter
from typing import Any

import redis
import redis.asyncio
from common import Target, awaits_of, calls_of, headline, options, private_redis, race, rounds, table

from cacheguard import CacheGuard, Policy

VALUE = "x" * 100
A_ROUND = range(100)
TTL = 300


def load(number: int) -> str:
    return VALUE


async def aload(number: int) -> str:
    return VALUE


def main() -> None:
    """Ids that were never asked for, against GET, then SET: two round trips without any protection."""
    chosen = options(__doc__ or "")
    with private_redis() as url, asyncio.Runner() as runner:
        headline(__doc__ or "", url)
        client: Any = redis.Redis.from_url(url)
        aclient: Any = redis.asyncio.Redis.from_url(url)
        fresh = counter()
        with CacheGuard(url, policy=Policy(ttl=TTL), operation_timeout=5) as guard:
            cached, acached = guard.cached("sync:{number}")(load), guard.cached("async:{number}")(aload)

            def plain(_: int) -> Any:
                name = f"plain:{next(fresh)}"
                raw = client.get(name)
                if raw is not None:
                    return pickle.loads(raw)
                client.set(name, pickle.dumps(VALUE), ex=TTL)
                return VALUE

            async def aplain(_: int) -> Any:
                name = f"plain:{next(fresh)}"
                raw = await aclient.get(name)
                if raw is not None:
                    return pickle.loads(raw)
                await aclient.set(name, pickle.dumps(VALUE), ex=TTL)
                return VALUE

            async def amiss(_: int) -> str:
                return await acached(next(fresh))

            names = "redis-py GET + SET", "cacheguard"
            contestants = {
                names[0]: calls_of(plain, A_ROUND),
                names[1]: calls_of(lambda _: cached(next(fresh)), A_ROUND),
            }
            table(race(contestants, rounds(chosen, 30)), names[0], Target(names[1], 2.0))
            names = "redis-py asyncio GET + SET", "cacheguard, async"
            contestants = {names[0]: awaits_of(runner, aplain, A_ROUND), names[1]: awaits_of(runner, amiss, A_ROUND)}
            table(race(contestants, rounds(chosen, 30)), names[0], Target(names[1], 2.0))
            runner.run(guard.aclose())
        runner.run(aclient.aclose())
        client.close()


if __name__ == "__main__":
    main()
