"""A pipeline keeps its order when the server does not know one of its scripts.

After a restart of Redis, or SCRIPT FLUSH, an unknown script was sent again by itself, and so ran behind everything that
stood behind it:

    sent:   FILL (unknown), HGET marker     ran:  HGET marker, FILL
    sent:   TAGGED (unknown), INVALIDATE    ran:  INVALIDATE, TAGGED

The marker was then answered for a time before the fill, and a load that claimed its tag in between did not learn of
the invalidation.
"""

from __future__ import annotations

from typing import Any

import pytest

from cacheguard import CacheGuard
from cacheguard.ports import Call
from cacheguard.protocol.lua import load
from cacheguard.runtime import run_now
from tests.support.redis_server import RedisServer

MARK, INVALIDATE = load("mark"), load("invalidate")
MARKER = "cg:issue:m:tag"


@pytest.fixture(params=["threads", "tasks"])
def door_of(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


async def sent(guard: CacheGuard, door_of: str, *calls: Call) -> list[Any]:
    hub = guard._hub  # noqa: SLF001 - the moment in question lies inside
    if door_of == "threads":
        return run_now(hub.blocking().remote.of("").gate.send(*calls))
    return await hub.running().remote.of("").gate.send(*calls)


def invalidated() -> Call:
    return INVALIDATE(MARKER)("channel", "drop - nothing", 0, "", 0, "", 0, "")


async def test_what_is_asked_behind_an_unknown_script_is_answered_behind_it(
    redis_server: RedisServer, redis_url: str, door_of: str
) -> None:
    async with CacheGuard(redis_url) as guard:
        await sent(guard, door_of, ("PING",))
        redis_server.command("SCRIPT", "FLUSH")
        before, _, behind = await sent(
            guard, door_of, ("HGET", MARKER, "v"), MARK(MARKER)(b"nonce", 60_000), ("HGET", MARKER, "v")
        )
        assert (before, behind) == (None, b"nonce")


async def test_a_known_script_behind_an_unknown_one_runs_behind_it(
    redis_server: RedisServer, redis_url: str, door_of: str
) -> None:
    async with CacheGuard(redis_url) as guard:
        await sent(guard, door_of, ("PING",))
        redis_server.command("SCRIPT", "FLUSH")
        await sent(guard, door_of, invalidated())
        await sent(guard, door_of, MARK(MARKER)(b"nonce", 60_000), invalidated())
        (left,) = await sent(guard, door_of, ("HGET", MARKER, "v"))
        assert left is None, "the invalidation came last"
