"""Several coroutines at once, in one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any


async def together(works: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
    """What they have returned or raised, in their order, when all have ended.

    If the caller is cancelled, they are, and then it hears of the very cancellation that came: `asyncio.gather` makes
    up another one, which a cancel scope of anyio does not know for its own and lets pass.
    """
    tasks = [asyncio.ensure_future(work) for work in works]
    cancelled: asyncio.CancelledError | None = None
    while any(not task.done() for task in tasks):
        try:
            await asyncio.wait(tasks)
        except asyncio.CancelledError as error:
            cancelled = error
            for task in tasks:
                task.cancel()
    outcomes = [_outcome(task) for task in tasks]  # also looked at if nobody gets them
    if cancelled is not None:
        raise cancelled
    return outcomes


def _outcome(task: asyncio.Future[Any]) -> Any:
    if task.cancelled():
        return asyncio.CancelledError()
    error = task.exception()
    return task.result() if error is None else error
