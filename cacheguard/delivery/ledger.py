"""A file for pending invalidations, so that they outlive the process."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any

from ..errors import ConfigurationError
from ..events import log
from .outbox import Invalidation

PATIENCE = 0.5  # seconds that one process waits for another one to finish its line


class FileLedger:
    """Invalidations in an SQLite file, one row each; several processes may share it.

    Pending ones are written as soon as Redis does not acknowledge; acknowledged ones, the journal, once a second with
    the heartbeat. It is opened anew each time. SQLite has its own locks, so no
    thread may use the file when the process forks: the forking thread holds *lock*. A row belongs to the process that
    wrote it or, once read at a start, to each process that read it. The process that delivers it deletes it;
    delivering it twice does no harm.

    Args:
        path: the file; created if it does not exist, its directory is not.
        root: the marker of the guard's namespace; guards of several namespaces may share a file.
        lock: guards the table of known rows.
        node: the node that the rows are for, if there are several; rows of other nodes are ignored.

    Raises:
        ConfigurationError: the file cannot be opened.
    """

    def __init__(self, path: str | Path, root: str, lock: AbstractContextManager[Any], node: str = "") -> None:
        self._path, self._root, self._lock = Path(path), root, lock
        self._owner = f"{root} {node}" if node else root  # no name of a namespace has a space in it, nor has a node's
        self._rows: dict[Invalidation, list[int]] = {}
        self._met: dict[str, list[str]] = {}
        try:
            with lock, closing(self._opened()) as file, file:
                file.execute("PRAGMA journal_mode=WAL")
                file.execute(
                    "CREATE TABLE IF NOT EXISTS owed (id INTEGER PRIMARY KEY AUTOINCREMENT, root TEXT, item TEXT)"
                )
                file.execute(
                    "CREATE TABLE IF NOT EXISTS journal"
                    " (root TEXT, key TEXT, versioned INTEGER, at REAL, item TEXT, PRIMARY KEY (root, key, versioned))"
                )
                file.execute(
                    "CREATE TABLE IF NOT EXISTS met (root TEXT, server TEXT, facts TEXT, PRIMARY KEY (root, server))"
                )
                file.execute("CREATE TABLE IF NOT EXISTS dropped (root TEXT PRIMARY KEY, at REAL)")
        except sqlite3.Error as error:
            raise ConfigurationError(f"outbox={str(path)!r} cannot be used as an SQLite file: {error}") from error

    def _opened(self) -> sqlite3.Connection:
        file = sqlite3.connect(self._path, timeout=PATIENCE)
        file.execute("PRAGMA synchronous=NORMAL")
        return file

    def after_fork(self, lock: AbstractContextManager[Any]) -> None:
        """Go on with another *lock*. The known rows stay known: the process that delivers them deletes them."""
        self._lock = lock

    def load(self) -> list[Invalidation]:
        """The invalidations that an earlier process has left pending, or another one has pending now."""
        with self._lock, closing(self._opened()) as file, file:
            rows = file.execute("SELECT id, item FROM owed WHERE root = ? ORDER BY id", (self._owner,)).fetchall()
        items: list[Invalidation] = []
        for number, text in rows:
            try:
                item = Invalidation(**json.loads(text))
            except (ValueError, TypeError):
                log.warning(
                    "a row of the outbox file cannot be read, so the whole namespace is invalidated: %.200s", text
                )
                item = Invalidation(self._root)
            self._rows.setdefault(item, []).append(number)
            items.append(item)
        return list(dict.fromkeys(items))

    def add(self, items: Iterable[Invalidation]) -> None:
        """Write *items*. A failure is logged; they stay pending in memory in any case."""
        lines = [(item, _line(item)) for item in items]
        try:
            with self._lock, closing(self._opened()) as file, file:
                for item, line in lines:
                    row = file.execute("INSERT INTO owed (root, item) VALUES (?, ?)", (self._owner, line)).lastrowid
                    if row is not None:
                        self._rows.setdefault(item, []).append(row)
        except sqlite3.Error as error:
            log.error("the outbox file %s cannot be written: %s", self._path, error)

    def strike(self, items: Iterable[Invalidation]) -> None:
        """Delete *items*: Redis has acknowledged them."""
        with self._lock:
            rows = [(row,) for item in items for row in self._rows.pop(item, ())]
            if not rows:
                return
            try:
                with closing(self._opened()) as file, file:
                    file.executemany("DELETE FROM owed WHERE id = ?", rows)
            except sqlite3.Error as error:
                log.error("the outbox file %s cannot be written: %s", self._path, error)

    # The journal. Its times are those of the system's clock, which other processes share; they say only what is old.

    def recall(self) -> tuple[list[tuple[float, Invalidation]], float | None]:
        """The journal, the oldest first, each with its age in seconds; the age of the youngest that it let go of."""
        now, entries = time.time(), list[tuple[float, Invalidation]]()
        with self._lock, closing(self._opened()) as file, file:
            rows = file.execute("SELECT at, item FROM journal WHERE root = ? ORDER BY at", (self._owner,)).fetchall()
            dropped = file.execute("SELECT at FROM dropped WHERE root = ?", (self._owner,)).fetchone()
        for at, text in rows:
            try:
                entries.append((now - at, Invalidation(**json.loads(text))))
            except (ValueError, TypeError):  # unknown which key that was
                dropped = (max(at, dropped[0] if dropped else at),)
        return entries, None if dropped is None else now - dropped[0]

    def note(self, entries: Iterable[tuple[float, Invalidation]], kept_for: float, dropped_ago: float | None) -> None:
        """Write *entries*, each with its age, and delete those older than *kept_for* seconds. A failure is logged."""
        now = time.time()
        rows = [(self._owner, item.key, bool(item.version), now - ago, _line(item)) for ago, item in entries]
        try:
            with self._lock, closing(self._opened()) as file, file:
                file.executemany("INSERT OR REPLACE INTO journal VALUES (?, ?, ?, ?, ?)", rows)
                file.execute("DELETE FROM journal WHERE root = ? AND at < ?", (self._owner, now - kept_for))
                if dropped_ago is not None:
                    file.execute(
                        "INSERT INTO dropped VALUES (?, ?) ON CONFLICT (root) DO UPDATE SET at = max(at, excluded.at)",
                        (self._owner, now - dropped_ago),
                    )
        except sqlite3.Error as error:
            log.error("the outbox file %s cannot be written: %s", self._path, error)

    def met(self) -> dict[str, list[str]]:
        """Which servers have acknowledged what is in the journal, by their names."""
        with self._lock, closing(self._opened()) as file, file:
            rows = file.execute("SELECT server, facts FROM met WHERE root = ?", (self._owner,)).fetchall()
        self._met = {name: json.loads(facts) for name, facts in rows}
        return dict(self._met)

    def meet(self, servers: Mapping[str, Sequence[str]]) -> None:
        """Note *servers*, if they are others than before."""
        others = {name: list(facts) for name, facts in servers.items() if self._met.get(name) != list(facts)}
        if not others:
            return
        self._met |= others
        rows = [(self._owner, name, json.dumps(facts)) for name, facts in others.items()]
        try:
            with self._lock, closing(self._opened()) as file, file:
                file.executemany("INSERT OR REPLACE INTO met VALUES (?, ?, ?)", rows)
        except sqlite3.Error as error:
            log.error("the outbox file %s cannot be written: %s", self._path, error)


def _line(item: Invalidation) -> str:
    """*item* as a row has it.

    A write that had begun when its process died is over: what is left of it is an invalidation.
    """
    said = {"key": item.key, "lag_ms": item.lag_ms, "version": item.version, "ends": item.ends}
    return json.dumps({name: value for name, value in said.items() if value})
