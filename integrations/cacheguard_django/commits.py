"""Calls what waits for the COMMIT of a connection, whatever other callbacks do.

Django calls the callbacks of ``on_commit`` one after the other, and the first one that raises takes the rest with it.
It calls none where autocommit is off. So ours stand in Django's own list, where rollbacks and savepoints discard them,
and are called by the connection's ``commit()``, before all others. What one of ours raises is raised after the rest has
run: Django runs it before it lets an exception of ``commit()`` out.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from django.db import DatabaseError, OperationalError

from cacheguard import CacheGuard
from cacheguard.extending import Duration

from .atomic import is_in_testcase, is_open_on


class Waiting:
    """What is called at the COMMIT. Also a plain callback of ``on_commit``, for ``captureOnCommitCallbacks``.

    Args:
        call: what to do.
        group: those of one group are done in one round trip; None: this one is done alone.
        keys: key texts of a group's member.
        tags: likewise.
    """

    def __init__(
        self,
        call: Callable[[], object],
        group: tuple[CacheGuard, Duration | None] | None = None,
        keys: Iterable[str] = (),
        tags: Iterable[str] = (),
    ) -> None:
        self._call = call
        self.group: tuple[CacheGuard, Duration | None] | None = group
        self.keys: tuple[str, ...] = tuple(keys)
        self.tags: tuple[str, ...] = tuple(tags)
        self.done: bool = False

    def __call__(self) -> None:
        self.done = True
        self._call()


def at_commit(connection: Any, waiting: Waiting) -> None:
    """Call *waiting* after the COMMIT of the open transaction of *connection*; never, if it is rolled back.

    Where autocommit is off, the COMMIT is ``transaction.commit()`` or ``set_autocommit(True)``. No round trip.
    """
    connection.run_on_commit.append((set(connection.savepoint_ids), waiting, False))
    if not hasattr(connection, "_cacheguard_commits"):
        connection._cacheguard_commits = True  # noqa: SLF001 - a mark of ours
        _listen(connection)


def _listen(connection: Any) -> None:
    """Let the methods of *connection* that end a transaction call ours.

    A block of the program inside of a ``TestCase`` ends with a savepoint that is released.
    """
    commit, set_autocommit = connection.commit, connection.set_autocommit
    savepoint_commit, hooks = connection.savepoint_commit, connection.run_and_clear_commit_hooks

    def commit_and_call() -> None:
        with _outcome(connection):
            commit()
        _call(_taken(connection))

    def set_autocommit_and_call(autocommit: Any, *args: Any, **kwargs: Any) -> None:
        with _outcome(connection):
            set_autocommit(autocommit, *args, **kwargs)
        if autocommit:  # commits, too, with some databases; the others have refused
            _call(_taken(connection))

    def call_and_run_hooks() -> None:
        connection.validate_no_atomic_block()
        ours = _taken(connection)
        try:
            _call(ours)
        finally:
            hooks()

    def savepoint_commit_and_call(sid: Any) -> None:
        savepoint_commit(sid)
        if is_in_testcase(connection) and not is_open_on(connection):
            # They stay in the list, so that `captureOnCommitCallbacks` shows them.
            _call([each for each in _ours(connection) if not each.done])
        elif _has_committed(connection):
            _call(_ours(connection))  # and again at `commit()`, which the program takes for the COMMIT

    connection.commit, connection.set_autocommit = commit_and_call, set_autocommit_and_call
    connection.run_and_clear_commit_hooks = call_and_run_hooks
    connection.savepoint_commit = savepoint_commit_and_call


@contextmanager
def _outcome(connection: Any) -> Generator[None]:
    """A COMMIT. If nobody knows whether it was carried out, because its answer was lost, ours are called, too."""
    try:
        yield
    except BaseException as error:
        # Without a connection nothing was sent, and `is_usable` may not be asked.
        has_sent = connection.connection is not None
        lost = has_sent and isinstance(error, OperationalError) and not connection.is_usable()
        if lost or not isinstance(error, DatabaseError):
            with suppress(Exception):  # that of the COMMIT is raised
                _call(_ours(connection))
        raise


def _has_committed(connection: Any) -> bool:
    """True if the release of a savepoint was a COMMIT.

    In SQLite it is, where autocommit is off and the savepoint was the first statement of the transaction.
    """
    if connection.vendor != "sqlite" or connection.autocommit or connection.connection is None:
        return False
    return not connection.connection.in_transaction


def _ours(connection: Any) -> list[Waiting]:
    return [entry[1] for entry in connection.run_on_commit if isinstance(entry[1], Waiting)]


def _taken(connection: Any) -> list[Waiting]:
    ours = _ours(connection)
    if ours:
        connection.run_on_commit = [each for each in connection.run_on_commit if not isinstance(each[1], Waiting)]
    return ours


def _call(ours: list[Waiting]) -> None:
    """Call them all; then raise what the first one that failed has raised."""
    failed: list[Exception] = []
    groups: dict[tuple[int, Duration | None], list[Waiting]] = {}
    calls: list[Callable[[], object]] = []
    for each in ours:
        each.done = True
        if each.group is None:
            calls.append(each)
            continue
        guard, settle = each.group
        members = groups.setdefault((id(guard), settle), [])
        if not members:
            calls.append(partial(_invalidate, members))
        members.append(each)
    for call in calls:
        try:
            call()
        except Exception as error:  # noqa: BLE001 - raised below
            failed.append(error)
    if failed:
        raise failed[0]


def _invalidate(members: list[Waiting]) -> None:
    """Invalidate the keys and tags of a group. One round trip."""
    group = members[0].group
    if group is None:
        return
    guard, settle = group
    keys = dict.fromkeys(key for each in members for key in each.keys)
    tags = dict.fromkeys(tag for each in members for tag in each.tags)
    with guard.writing(*keys, tags=tuple(tags), mode="delete", settle=settle):
        pass
