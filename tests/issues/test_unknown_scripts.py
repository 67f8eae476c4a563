"""A pipeline keeps its order when the server does not know one of its scripts.

After a restart of Redis, or SCRIPT FLUSH, an unknown script was sent again by itself, and so ran behind everything that
stood behind it:

    sent:   FILL (unknown), MGET markers    ran:  MGET markers, FILL
    sent:   TAGGED (unknown), INVALIDATE    ran:  INVALIDATE, TAGGED

The marker was then answered for a time before the fill, and a load that claimed its tag in between did not learn of
the invalidation.
"""

from __future__ import annotations

from typing import Any

import pytest

from cacheguard import CacheGuard
from cacheguard.ports import Call
from cacheguard.protocol import calls
from cacheguard.runtime import run_now
from tests.support.redis_server import RedisServer

MARKER = "cg:issue:m:tag"


@pytest.fixture(params=["threads", "tasks"])
def door_of(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


async def sent(guard: CacheGuard, door_of: str, *asked: Call) -> list[Any]:
    hub = guard._hub  # noqa: SLF001 - the moment in question lies inside
    if door_of == "threads":
        return run_now(hub.blocking().remote.of("").gate.send(*asked))
    return await hub.running().remote.of("").gate.send(*asked)


def invalidated() -> Call:
    return calls.invalidate(MARKER, channel="channel", echo="-")


def marked() -> Call:
    return calls.mark(MARKER, nonce=b"n" * 8, keep_ms=60_000)


MGET = calls.nonces([MARKER])


async def test_what_is_asked_behind_an_unknown_script_is_answered_behind_it(
    redis_server: RedisServer, redis_url: str, door_of: str
) -> None:
    async with CacheGuard(redis_url) as guard:
        await sent(guard, door_of, ("PING",))
        redis_server.command("SCRIPT", "FLUSH")
        before, _, behind = await sent(guard, door_of, *MGET, marked(), *MGET)
        assert [calls.were_nonces([MARKER], [said])[MARKER] for said in (before, behind)] == [None, b"n" * 8]


async def test_a_known_script_behind_an_unknown_one_runs_behind_it(
    redis_server: RedisServer, redis_url: str, door_of: str
) -> None:
    async with CacheGuard(redis_url) as guard:
        await sent(guard, door_of, ("PING",))
        redis_server.command("SCRIPT", "FLUSH")
        await sent(guard, door_of, invalidated())
        await sent(guard, door_of, marked(), invalidated())
        left = calls.were_nonces([MARKER], await sent(guard, door_of, *MGET))
        assert left == {MARKER: None}, "the invalidation came last"
