"""The keys of a namespace, page by page."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator

from cacheguard import CacheGuard

PAGE = 1000  # keys looked at in one round trip


def pages(guard: CacheGuard, pattern: str = "*", count: int = PAGE) -> Generator[list[str]]:
    """Yield the key texts that match *pattern*; *count* keys are scanned for each page."""
    cursor = ""
    while True:
        texts, cursor = guard.scan(pattern, cursor=cursor, count=count)
        yield texts
        if not cursor:
            return


async def apages(guard: CacheGuard, pattern: str = "*", count: int = PAGE) -> AsyncGenerator[list[str]]:
    """`pages`, for ``async for``."""
    cursor = ""
    while True:
        texts, cursor = await guard.ascan(pattern, cursor=cursor, count=count)
        yield texts
        if not cursor:
            return
