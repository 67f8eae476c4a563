"""How one server is told from another that answers in its place."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from ..ports import Call, Commands, Reply, until_steady
from . import redispy

_QUESTION = b"*2\r\n$4\r\nINFO\r\n$6\r\nserver\r\n*2\r\n$4\r\nINFO\r\n$11\r\nreplication\r\n"

Facts = tuple[str, str, str]  # run id, replication id, role


class Identity:
    """Which servers the connections of one guard have reached; shared by its threads and its event loops.

    Args:
        on_change: called once for each change, before anything is sent to the other server.
    """

    QUESTION = _QUESTION  # to be sent over every new connection
    ANSWERS = 2

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._known: dict[str, Facts] = {}
        self.generation: int = 0  # connections and decisions of an older one count no more
        self._lock = threading.RLock()

    def tell(self, name: str, facts: Facts | None) -> int:
        """What a new connection to *name* has found; the generation to which that connection belongs."""
        if facts is None:
            return self.generation
        with self._lock:
            before = self._known.get(name)
            self._known[name] = facts
            if before is not None and before != facts:
                self.changed()
            return self.generation

    def changed(self) -> None:
        """Another server answers for something from now on."""
        with self._lock:
            self._on_change()
            self.generation += 1

    def after_fork(self) -> None:
        """A thread of the parent may have held the lock."""
        self._lock = threading.RLock()


def facts_of(server: Reply, replication: Reply) -> Facts | None:
    """What the two answers to `Identity.QUESTION` say; None if the server does not tell."""
    found = [
        re.search(pattern, text) if isinstance(text, bytes) else None
        for pattern, text in (
            (rb"run_id:(\w+)", server),
            (rb"master_replid:(\w+)", replication),
            (rb"role:(\w+)", replication),
        )
    ]
    run, history, role = (each[1].decode() if each else "" for each in found)
    return (run, history, role) if run and history else None


def is_wrong(connection: Any, facts: Facts | None) -> bool:
    """Whether Sentinel has led to a server that is no master, not any more or not yet."""
    return facts is not None and facts[2] == "slave" and redispy.finder_of(connection) is not None


class Steady:
    """Commands for those who tell one server from another by themselves: they need not hear of a change."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands

    @property
    def away(self) -> bool:
        return self._commands.away

    async def send(self, *calls: Call) -> list[Reply]:
        return await until_steady(partial(self._commands.send, *calls))

    async def send_each(self, *calls: Call) -> list[Reply]:
        return await until_steady(partial(self._commands.send_each, *calls))

    async def masters(self) -> list[Commands]:
        return [Steady(each) for each in await self._commands.masters()]
