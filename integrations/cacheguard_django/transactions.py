"""Invalidation that waits for the COMMIT, and loads that know of the transaction around them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from django.db import DEFAULT_DB_ALIAS, connections, transaction

from cacheguard import CacheGuard
from cacheguard.defenses.consistency import Version
from cacheguard.doors.writing import DELAY, INTENT, Mode, OfResult, Terms, Write, WriterTemplates, Writing, guarded
from cacheguard.durations import Duration
from cacheguard.errors import ConfigurationError

P = ParamSpec("P")
R = TypeVar("R")


def is_open() -> bool:
    """Whether this thread has a transaction open in any database: what it reads may be seen by nobody else."""
    return any(map(_is_open, connections.all(initialized_only=True)))


def _is_open(connection: Any) -> bool:
    """Whether a transaction of the program's own is open.

    The blocks that Django's ``TestCase`` puts around every test do not count, as they do not for ``durable``: a test
    shall see what happens without them.
    """
    if connection.in_atomic_block:
        blocks = connection.atomic_blocks
        return not blocks or any(not block._from_testcase for block in blocks)  # noqa: SLF001 - as Atomic does
    return connection.connection is not None and not connection.autocommit


class Pending:
    """Invalidations of one guard that wait for the COMMIT of a transaction, or for the end of its outermost block."""

    def __init__(self, guard: CacheGuard, block: Writing, write: Write, settle: Duration | None) -> None:
        self.guard, self.write, self.settle = guard, write, settle
        self._block = block

    def __call__(self) -> None:
        """Invalidate. One round trip."""
        self._block.__exit__(None, None, None)


def invalidate(
    *keys: str,
    tags: Iterable[str] = (),
    alias: str = "default",
    using: str | None = None,
    settle: Duration | None = None,
) -> None:
    """Invalidate keys and tags of a guard when the transaction around is committed; at once if there is none.

    For what sends no signals: ``bulk_create``, ``bulk_update``, ``QuerySet.update``, raw SQL. Rolled back together with
    the transaction, or with the savepoint in which it was called. One round trip for all calls in one transaction.

    Args:
        keys: key texts, as decorated functions of ``guard(alias)`` have them: ``"user:42"``.
        tags: tags.
        alias: of the cache.
        using: the database whose COMMIT is waited for.
        settle: how far the database that loaders read may lag behind; None: not at all.
    """
    _invalidate(_guard(alias), keys, tuple(tags), using or DEFAULT_DB_ALIAS, settle)


def _invalidate(
    guard: CacheGuard, keys: Sequence[str], tags: Sequence[str], using: str, settle: Duration | None
) -> None:
    connection: Any = connections[using]
    if not connection.in_atomic_block or not _is_open(connection):
        with guard.writing(*keys, tags=tags, mode="delete", settle=settle):
            return
    last = connection.run_on_commit[-1] if connection.run_on_commit else ((), None)
    pending = last[1]
    if (
        isinstance(pending, Pending)
        and pending.guard is guard
        and pending.settle == settle
        and set(last[0]) == set(connection.savepoint_ids)
    ):
        pending.write.also(*keys, tags=tags)
        return
    block = guard.writing(*keys, tags=tags, mode="delete", settle=settle)
    transaction.on_commit(Pending(guard, block, block.__enter__(), settle), using=using)


class TransactionWriting:
    """Guards the writes inside ``with`` (or ``async with``); made by `writing`."""

    def __init__(self, open_block: Callable[[bool], Writing], using: str) -> None:
        self._open_block, self._using = open_block, using
        self._open: list[tuple[Writing, bool, Write | None]] = []

    def _begin(self) -> tuple[Writing, bool]:
        connection: Any = connections[self._using]
        waits = connection.in_atomic_block and _is_open(connection)
        return self._open_block(waits), waits

    def __enter__(self) -> Write:
        block, waits = self._begin()
        write = block.__enter__()
        self._open.append((block, waits, write))
        return write

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        block, waits, _ = self._open.pop()
        if waits:
            # Also on an exception: whoever catches it may commit what was written before.
            transaction.on_commit(lambda: block.__exit__(None, None, None), using=self._using)
        else:
            block.__exit__(kind, error, traceback)

    async def __aenter__(self) -> Write:
        block, waits = self._begin()
        write = await block.__aenter__()
        self._open.append((block, waits, write))
        return write

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        block, waits, _ = self._open.pop()
        if waits:
            transaction.on_commit(lambda: block.__exit__(None, None, None), using=self._using)
        else:
            await block.__aexit__(kind, error, traceback)


def writing(
    *keys: str,
    tags: Sequence[str] = (),
    alias: str = "default",
    using: str | None = None,
    mode: Mode = "fence",
    settle: Duration | None = None,
    version: Version | None = None,
    delay: Duration = DELAY,
    intent: Duration = INTENT,
) -> TransactionWriting:
    """Guard a write to the database by a ``with`` block, around ``transaction.atomic()`` or inside it.

    Around the transaction it is `CacheGuard.writing`, with all that its modes promise. Inside of one, what is named is
    invalidated right after the outermost COMMIT, and not at all if the transaction or the savepoint is rolled back: a
    fence would have to outlive the block.

    Args:
        keys: key texts.
        tags: tags.
        alias: of the cache.
        using: the database whose transaction counts.
        mode: as in `CacheGuard.writing`, and so are the others.
        settle: likewise.
        version: likewise.
        delay: likewise.
        intent: likewise.
    """
    Terms(mode, settle, delay, intent)  # what cannot work is said here

    def open_block(waits: bool) -> Writing:  # noqa: FBT001 - called by position only
        return _guard(alias).writing(
            *keys,
            tags=tags,
            mode="delete" if waits else mode,
            settle=settle,
            version=version,
            delay=delay,
            intent=intent,
        )

    return TransactionWriting(open_block, using or DEFAULT_DB_ALIAS)


def invalidates(
    *keys: str | OfResult,
    tags: Sequence[str | OfResult] = (),
    alias: str = "default",
    using: str | None = None,
    mode: Mode = "fence",
    settle: Duration | None = None,
    version: Callable[[Any], Version | None] | None = None,
    delay: Duration = DELAY,
    intent: Duration = INTENT,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function that writes: its call is a `writing` block.

    The function may open a transaction, or be called inside of one.

    Args:
        keys: templates over the parameters, and over ``result``: ``"user:{user_id}"``, as in `CacheGuard.invalidates`.
        tags: likewise.
        alias: of the cache.
        using: the database whose transaction counts.
        mode: as in `writing`, and so are the others.
        settle: likewise.
        version: a function of the result that gives the source version of what was written.
        delay: as in `writing`.
        intent: as in `writing`.

    Raises:
        KeyTemplateError: a template that does not fit the function.
        ConfigurationError: an option that cannot work.
    """
    Terms(mode, settle, delay, intent)
    if not keys and not tags:
        raise ConfigurationError("invalidates needs keys or tags: @invalidates('user:{user_id}')")

    def open_write(names: list[str], tags: list[str]) -> TransactionWriting:
        return writing(
            *names, tags=tags, alias=alias, using=using, mode=mode, settle=settle, delay=delay, intent=intent
        )

    def decorate(fn: Any) -> Any:
        if type(fn) in (staticmethod, classmethod):
            return type(fn)(decorate(fn.__func__))
        if not callable(fn):
            raise ConfigurationError(f"only functions can be decorated, got {fn!r}")
        return guarded(fn, WriterTemplates(fn, keys, tags, version), open_write)

    return decorate


def _guard(alias: str) -> CacheGuard:
    from .guards import guard

    return guard(alias)
