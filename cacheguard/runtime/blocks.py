"""Whose ``with`` block ends here, where several tasks and threads use one object."""

from __future__ import annotations

import asyncio
import threading
from typing import Generic, TypeVar

T = TypeVar("T")


class OpenBlocks(Generic[T]):
    """The blocks of one object that are open now, each with the task or thread that entered it.

    Blocks may be nested, and one object may be entered by several tasks and threads at the same time.
    """

    __slots__ = ("_open",)

    def __init__(self) -> None:
        self._open: list[tuple[object, T]] = []  # changed in single steps: a lock could be held at a fork

    def enter(self, block: T) -> None:
        """Note that this task or thread has entered *block*."""
        self._open.append((_whose(), block))

    def leave(self) -> T:
        """The block that ends here: the last one that this task or thread has entered, else the last one of all.

        `IndexError` if none is open.
        """
        here = _whose()
        while True:
            blocks = tuple(self._open)
            block = next((each for each in reversed(blocks) if each[0] == here), blocks[-1] if blocks else None)
            if block is None:
                raise IndexError("a block ends that was never entered")
            try:
                self._open.remove(block)
            except ValueError:  # somebody without a block of its own has taken it meanwhile
                continue
            return block[1]


def _whose() -> object:
    """The task or thread that runs here."""
    try:
        task = asyncio.current_task()
    except RuntimeError:
        task = None
    return threading.get_ident() if task is None else task
