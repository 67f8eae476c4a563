"""The changes of one transaction of a session, and the transactions that this thread or task is inside."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from cacheguard import BloomFilter, Change, Load

from .rules import Rules

# At these levels a transaction reads a snapshot: of its beginning, or of the moment before its first statement.
_SNAPSHOTS = frozenset({"REPEATABLE READ", "SERIALIZABLE", "SNAPSHOT"})


class Pending:
    """One root transaction of a session, with the savepoints in it.

    Args:
        owner: the watcher that made it.
        load: the load in which it began; None outside of one.
    """

    __slots__ = (
        "__weakref__",
        "asked",
        "autocommitted",
        "changed",
        "changes",
        "committed",
        "committing",
        "connections",
        "everything",
        "fed",
        "fence",
        "flushing",
        "items",
        "load",
        "over",
        "owner",
        "rows",
        "session",
        "unknown",
        "written",
    )

    autocommitted: bool
    committed: bool
    committing: bool
    flushing: bool
    load: Load | None
    over: bool
    owner: object
    session: weakref.ReferenceType[Session]

    def __init__(self, owner: object, session: Session, load: Load | None) -> None:
        self.owner, self.session, self.load = owner, weakref.ref(session), load
        self.changes: dict[tuple[str | None, str | None], Change] = {}
        self.everything: str = ""  # why more was changed than can be named
        self.rows: list[Any] = []  # instances whose new names are known after the flush
        self.asked: set[int] = set()  # ids of instances whose old names were noted in this flush
        self.fed: set[int] = set()  # ids of instances whose items may be new
        self.items: dict[BloomFilter, dict[object, None]] = {}  # not added yet
        self.written: set[tuple[str | None, str | None, Any]] = set()  # already in the outbox
        self.connections: list[Connection] = []
        self.fence: Any = None  # the guarded write, while a fence stands
        self.changed: bool = False  # the transaction has uncommitted changes
        self.flushing = self.committing = False
        self.unknown: bool = False  # COMMIT may have been sent; its outcome is unknown
        self.committed = self.over = False
        self.autocommitted = False  # the database commits each statement, so there is nothing to roll back

    def add(self, changes: Iterable[Change]) -> None:
        """Note changes to invalidate. Of two versions of one key the larger one counts."""
        for change in changes:
            name = (change.key, change.tag)
            known = self.changes.get(name)
            # A change without a version always invalidates.
            if known is None or (known.version is not None and (change.version is None or _later(change, known))):
                self.changes[name] = change

    def feed(self, rules: Rules, values: Mapping[str, Any]) -> None:
        """Note the items that the Bloom filters get for a row with these values."""
        for each in rules.fed:
            self.items.setdefault(each.bloom, {})[each.item(values)] = None

    @property
    def uncommitted(self) -> bool:
        """True if a read through the session, or of its objects, may see uncommitted changes."""
        session = self.session()
        if self.over or session is None:
            return False
        try:
            return self.changed or bool(session.new or session.deleted or session.dirty)
        except RuntimeError:  # the thread that started this one is changing it right now
            return True

    @property
    def open(self) -> bool:
        return not self.over and self.session() is not None

    @property
    def counts_everywhere(self) -> bool:
        """True if it is open, unless a load began it, still runs, and has changed nothing."""
        return self.open and (self.load is None or self.load.over or self.uncommitted)

    def end(self) -> None:
        self.over = True
        self.connections.clear()
        self.rows.clear()


def _later(change: Change, known: Change) -> bool:
    return bool(change.version > known.version)  # type: ignore[operator]  # both are whole numbers here


# Transactions whose session was used in this thread or task, or in the one that started it.
OPEN: ContextVar[tuple[Pending, ...]] = ContextVar("cacheguard_sqlalchemy_open", default=())


def remember_here(pending: Pending) -> None:
    """Note that this thread or task is inside *pending*."""
    known = OPEN.get()
    if pending not in known:
        OPEN.set((*(each for each in known if each.open), pending))


def open_here(owner: object) -> list[Pending]:
    """The transactions of *owner* that this thread or task is inside."""
    return [each for each in OPEN.get() if each.owner is owner and each.open]


def autocommits(connection: Connection) -> bool:
    """True if each statement is committed at once. No query."""
    level = connection.get_execution_options().get("isolation_level")
    if level is None:
        level = getattr(connection.dialect, "_on_connect_isolation_level", None)
    return str(level).upper() == "AUTOCOMMIT" or _driver_begins_none(connection)


def _driver_begins_none(connection: Connection) -> bool:
    """True if the driver itself was told to begin no transaction, by ``connect_args`` or an event of the pool."""
    driver: Any = connection.connection.driver_connection
    if connection.dialect.name == "sqlite":
        told = getattr(driver, "isolation_level", "") is None or getattr(driver, "autocommit", False) is True
        return told and outside_of_a_transaction(connection)  # a listener may have sent BEGIN
    ask = getattr(driver, "get_autocommit", None)  # of the drivers for MySQL
    return (ask() if callable(ask) else getattr(driver, "autocommit", False)) is True


def outside_of_a_transaction(connection: Connection) -> bool:
    """True if what SQLite has just written there is committed: its driver was told to begin no transaction."""
    if connection.closed or connection.dialect.name != "sqlite":
        return False
    return not getattr(connection.connection.driver_connection, "in_transaction", True)


def sees_a_snapshot(connection: Connection) -> bool:
    """True if reads there may be older than what others have committed. May query the database."""
    if connection.dialect.name == "sqlite":  # it reports SERIALIZABLE; but without BEGIN each SELECT is on its own
        raw = connection.connection.driver_connection
        return bool(getattr(raw, "in_transaction", True))
    level = connection.get_execution_options().get("isolation_level")
    if level is None:
        level = connection.get_isolation_level()
    return str(level).upper() in _SNAPSHOTS
