"""How one server is told from another that answers in its place, and old data from those that were there before."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import Any, NamedTuple

from ..ports import Call, Commands, Reply, until_steady
from . import redispy

_QUESTION = b"*2\r\n$4\r\nINFO\r\n$6\r\nserver\r\n*2\r\n$4\r\nINFO\r\n$11\r\nreplication\r\n"

# To be asked with each heartbeat. Redis 6.2 takes one section at a time.
LOOK: tuple[Call, ...] = (
    ("INFO", "server"),
    ("INFO", "replication"),
    ("INFO", "persistence"),
    ("INFO", "commandstats"),
)
EMPTYING = ("flushall", "flushdb", "swapdb")
RELOADING = ("debug",)
# Someone who restores a backup empties the server first, then restores key after key. At other times, RESTORE is
# somebody's way to copy a key.
RESTORING_FOR = 600.0  # seconds
_NO_HISTORY = "0" * 40
_MICROSECONDS = 1_000_000


class Facts(NamedTuple):
    """Who a server says it is.

    Args:
        run: of this process of the server.
        history: its replication id.
        role: ``master`` or ``slave``.
        former: the replication id before, as long as the data go on from there; empty if they do not.
    """

    run: str
    history: str
    role: str
    former: str = ""


class Change(IntEnum):
    """What has become of the data since the last look."""

    NONE = 0
    LOSSY = 1  # what was acknowledged last may be missing
    UNKNOWN = 2  # they may be of any age


@dataclass(frozen=True, slots=True)
class Look:
    """What a server has said with a heartbeat.

    Args:
        facts: who it is.
        offset: how far its replication has come.
        calls: how often the commands were run that replace data.
        saved_ago: the age, in seconds, of the data that it would come back with after a crash; None if untold.
    """

    facts: Facts
    offset: int
    calls: dict[str, int]
    saved_ago: float | None


class Identity:
    """Which servers the connections of one guard have reached; shared by its threads and its event loops.

    Args:
        on_change: called once for each change, before anything is sent to the other server; it is told whether the data
            may be of any age.
    """

    QUESTION = _QUESTION  # to be sent over every new connection
    ANSWERS = 2

    def __init__(self, on_change: Callable[[bool], None]) -> None:
        self._on_change = on_change
        self._known: dict[str, Facts] = {}
        self._looks: dict[str, Look] = {}
        self._emptied_at: dict[str, float] = {}
        self._saved_at: dict[str, tuple[str, float]] = {}  # by server: the run, and since when its data may be lost
        self.generation: int = 0  # connections and decisions of an older one count no more
        self._lock = threading.RLock()

    @property
    def known(self) -> dict[str, Facts]:
        """Who has answered last, by the names of the servers."""
        return dict(self._known)

    def remember(self, known: Mapping[str, Sequence[str]]) -> None:
        """Who has answered an earlier process."""
        self._known.update({name: Facts(*facts) for name, facts in known.items()})

    def tell(self, name: str, facts: Facts | None) -> int:
        """What a new connection to *name* has found; the generation to which that connection belongs."""
        if facts is None:
            return self.generation
        with self._lock:
            before = self._known.get(name)
            self._known[name] = facts
            change = Change.NONE if before is None else change_of(before, facts)
            if change:
                self._looks.pop(name, None)
                self.changed(of_unknown_age=change is Change.UNKNOWN)
            return self.generation

    def look(self, name: str, look: Look, at: float) -> float | None:
        """What *name* has said with a heartbeat that was sent *at*.

        Since when its data would be lost in a crash; None if it does not say.
        """
        with self._lock:
            facts, before = self._known.get(name), self._looks.get(name)
            self._known[name], self._looks[name] = look.facts, look
            change = Change.NONE if facts is None else change_of(facts, look.facts)
            if not change and before is not None and before.facts == look.facts:
                change = self._replaced(name, before, look)
            if change:
                self.changed(of_unknown_age=change is Change.UNKNOWN)
            run, saved_at = self._saved_at.get(name, ("", float("-inf")))
            if look.saved_ago is not None:
                saved_at = at - look.saved_ago if run != look.facts.run else max(saved_at, at - look.saved_ago)
                self._saved_at[name] = look.facts.run, saved_at
            return saved_at if saved_at > float("-inf") else None

    def _replaced(self, name: str, before: Look, after: Look) -> Change:
        """Whether the same process has other data now."""
        grown = {word for word, number in after.calls.items() if number and number != before.calls.get(word, 0)}
        if grown.intersection(EMPTYING):
            self._emptied_at[name] = time.monotonic()
        if after.offset < before.offset or grown & {"flushall", "swapdb"}:
            return Change.UNKNOWN
        restoring = "restore" in grown and time.monotonic() < self._emptied_at.get(name, -RESTORING_FOR) + RESTORING_FOR
        if restoring:
            return Change.UNKNOWN
        # Of which database, nobody says; and a reload brings back the last snapshot.
        return Change.LOSSY if grown & {"flushdb", *RELOADING} else Change.NONE

    def changed(self, *, of_unknown_age: bool = False) -> None:
        """Another server answers for something from now on, or other data are there."""
        with self._lock:
            self._on_change(of_unknown_age)
            self.generation += 1

    def after_fork(self) -> None:
        """A thread of the parent may have held the lock."""
        self._lock = threading.RLock()


def change_of(before: Facts, after: Facts) -> Change:
    """What has become of the data between two answers at the same address."""
    if before[:3] == after[:3]:
        return Change.NONE
    if before.run != after.run or before.history == after.history:
        return Change.LOSSY
    # The same process has another history. A master begins a new one, without a former, when its first replica comes
    # and some time after its last one has left. One that was promoted goes on from there. Any other has copied the data
    # of another server, of whatever age.
    if before.role == after.role == "master" and not after.former:
        return Change.NONE
    return Change.LOSSY if after.former == before.history else Change.UNKNOWN


def facts_of(server: Reply, replication: Reply) -> Facts | None:
    """What the two answers to `Identity.QUESTION` say; None if the server does not tell."""
    run, history = _word(server, rb"run_id"), _word(replication, rb"master_replid")
    former = _word(replication, rb"master_replid2")
    role = _word(replication, rb"role")
    return Facts(run, history, role, "" if former == _NO_HISTORY else former) if run and history else None


def look_of(replies: Sequence[Reply]) -> Look | None:
    """What the answers to `LOOK` say; None if the server does not tell."""
    server, replication, persistence, statistics = replies
    facts = facts_of(server, replication)
    if facts is None:
        return None
    words = (*EMPTYING, *RELOADING, "restore")
    calls = {word: _number(statistics, rb"cmdstat_%s:calls=" % word.encode()) or 0 for word in words}
    return Look(facts, _number(replication, rb"master_repl_offset:") or 0, calls, _saved_ago(server, persistence))


def _saved_ago(server: Reply, persistence: Reply) -> float | None:
    """The age of the data that the server would come back with after a crash; None if it does not say."""
    if _number(persistence, rb"aof_enabled:") == 1 and b"aof_last_write_status:ok" in persistence:
        return 0.0
    if _number(persistence, rb"rdb_changes_since_last_save:") == 0:
        return 0.0
    now, saved = _number(server, rb"server_time_usec:"), _number(persistence, rb"rdb_last_save_time:")
    if now is None or saved is None or now < saved * _MICROSECONDS:  # its clock was set back
        return None
    # A snapshot shows the moment in which it began; that it ended is noted, in whole seconds.
    took = max(0, _number(persistence, rb"rdb_last_bgsave_time_sec:") or 0)
    return now / _MICROSECONDS - saved + took + 1


def _word(answer: Reply, name: bytes) -> str:
    found = re.search(rb"^%s:(\w+)" % name, answer, re.MULTILINE) if isinstance(answer, bytes) else None
    return found[1].decode() if found else ""


def _number(answer: Reply, before: bytes) -> int | None:
    found = re.search(rb"^%s(-?\d+)" % before, answer, re.MULTILINE) if isinstance(answer, bytes) else None
    return int(found[1]) if found else None


def is_wrong(connection: Any, facts: Facts | None) -> bool:
    """Whether Sentinel has led to a server that is no master, not any more or not yet."""
    return facts is not None and facts.role == "slave" and redispy.finder_of(connection) is not None


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
