"""What does it cost to invalidate very many keys at once, while Redis is well, hangs, or refuses writes?

CPU for 5,000 and for 20,000 keys (four times the keys should cost four times the CPU), and the longest that an event
loop stood still, measured as CPU of its thread between two turns.
"""

from __future__ import annotations

import asyncio
import gc
import time

from benchmarks.common import claim, headline, options
from benchmarks.compare.figures import pretty_seconds
from cacheguard import CacheGuard
from cacheguard.testing import RedisServer

FEW, MANY, MOST = 5_000, 20_000, 100_000
AIM, STALL = 6.0, 0.050


def break_it(server: RedisServer, how: str) -> None:
    """Have the server as it is to be met."""
    server.thaw()
    server.command("CONFIG", "SET", "min-replicas-to-write", int(how == "refuses"))
    if how == "hangs":
        server.freeze()


async def measured(url: str, server: RedisServer, how: str, count: int) -> tuple[float, float]:
    """CPU of invalidating *count* keys, and the longest that the loop stood still."""
    async with CacheGuard(url, namespace=f"{how}{count}") as guard:
        await guard.aget("warm")
        break_it(server, how)
        await guard.aget("known")  # whoever finds out first waits for a timeout
        keys = [f"row:{number}" for number in range(count)]
        gc.collect()
        gc.freeze()  # what the program itself has made is not ours to look through
        worst, last, began = 0.0, time.thread_time(), time.process_time()
        task = asyncio.create_task(guard.ainvalidate(*keys))
        while not task.done():
            await asyncio.sleep(0)
            now = time.thread_time()
            worst, last = max(worst, now - last), now
        cpu = time.process_time() - began
        break_it(server, "well")
        return cpu, worst


def main() -> None:
    """Each state of the server in turn."""
    chosen = options(__doc__ or "")
    with RedisServer() as server:
        headline(__doc__ or "", server.url)
        for how in ("is well", "hangs", "refuses"):
            few, _ = asyncio.run(measured(server.url, server, how, FEW))
            many, worst = asyncio.run(measured(server.url, server, how, MANY))
            if chosen.full:
                _, worst = asyncio.run(measured(server.url, server, how, MOST))
            print(f"Redis {how}: {FEW:,} keys {pretty_seconds(few)}, {MANY:,} keys {pretty_seconds(many)}")
            claim("CPU, four times the keys", f"{many / few:.1f}x", f"≤ {AIM:g}x", ok=many / few <= AIM)
            claim("the loop stood still", pretty_seconds(worst), f"≤ {pretty_seconds(STALL)}", ok=worst <= STALL)


if __name__ == "__main__":
    main()
