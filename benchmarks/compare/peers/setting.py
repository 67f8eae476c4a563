"""What a peer is opened with, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from typing import Any

TTL = 3_600  # seconds, for everyone
TEXT = "x" * 100
RECORDS: list[dict[str, Any]] = [
    {"id": number, "name": f"product number {number}", "price": number / 7, "stock": number % 13, "active": True}
    for number in range(1_000, 1_115)
]


@dataclass(frozen=True)
class Setting:
    """The server, and the value that every entry has."""

    url: str
    value: Any

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1].partition("/")[0])


@dataclass
class Store:
    """One library on one Redis; in the async half all but *many* and *close* give something to await.

    Args:
        library: the distribution.
        fill: store the entry of a number.
        hit: read the entry of a number, which is there.
        how: what *hit* calls.
        many: for numbers, a function that reads them all.
        miss: read the entry of a number that is not there, and store it.
        how_many: what *many* calls.
        how_miss: what *miss* calls.
    """

    library: str
    fill: Callable[[int], Any]
    hit: Callable[[int], Any]
    how: str
    many: Callable[[Sequence[int]], Callable[[], Any]] | None = None
    miss: Callable[[int], Any] | None = None
    how_many: str = ""
    how_miss: str = ""


@dataclass
class Opened:
    """The peers that could be opened, and why the others could not."""

    stores: dict[str, Store] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)


def reason(error: BaseException) -> str:
    """One line for the table."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}"


def open_all(stack: ExitStack, openers: dict[str, Any], setting: Setting) -> Opened:
    """Open each peer; what a peer raises is its reason to be absent, except for ours and the baseline."""
    opened = Opened()
    for name, opener in openers.items():
        try:
            opened.stores[name] = stack.enter_context(opener(setting))
        except Exception as error:
            if name in {"cacheguard", "redis-py"}:
                raise
            opened.absent[name] = reason(error)
    return opened


async def aopen_all(stack: AsyncExitStack, openers: dict[str, Any], setting: Setting) -> Opened:
    """The same for peers that are opened with ``async with``."""
    opened = Opened()
    for name, opener in openers.items():
        try:
            opened.stores[name] = await stack.enter_async_context(opener(setting))
        except Exception as error:
            if name in {"cacheguard", "redis-py"}:
                raise
            opened.absent[name] = reason(error)
    return opened
