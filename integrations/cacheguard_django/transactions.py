"""Invalidation that waits for the COMMIT, and loads that take account of an open transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from django.db import DEFAULT_DB_ALIAS, connections, transaction

from cacheguard import CacheGuard
from cacheguard.extending import (
    DELAY,
    INTENT,
    Duration,
    Mode,
    OfResult,
    OpenBlocks,
    Version,
    Write,
    Writing,
    check_writing,
    decorate_writes,
)

from .access import guard
from .atomic import has_block

P = ParamSpec("P")
R = TypeVar("R")


class Pending:
    """Invalidations of one guard that wait for the COMMIT of a transaction, or for the end of its outermost block."""

    guard: CacheGuard
    settle: Duration | None
    write: Write

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
    """Invalidate keys and tags of a guard when the current transaction is committed; at once without a transaction.

    For changes without signals: ``bulk_create``, ``bulk_update``, ``QuerySet.update``, raw SQL. If the transaction, or
    the savepoint of the call, is rolled back, nothing is invalidated. All calls in one transaction cost one round trip.

    Args:
        keys: key texts of decorated functions of ``guard(alias)``: ``"user:42"``.
        tags: tags.
        alias: of the cache.
        using: the database whose COMMIT it waits for.
        settle: the replica lag: how far the database that loaders read may be behind; None: not at all.
    """
    _invalidate(guard(alias), keys, tuple(tags), using or DEFAULT_DB_ALIAS, settle)


def _invalidate(
    guard: CacheGuard, keys: Sequence[str], tags: Sequence[str], using: str, settle: Duration | None
) -> None:
    if not has_block(using):
        with guard.writing(*keys, tags=tags, mode="delete", settle=settle):
            return
    connection: Any = connections[using]
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
        self._open = OpenBlocks[tuple[Writing, bool]]()

    def __enter__(self) -> Write:
        waits = has_block(self._using)
        block = self._open_block(waits)
        write = block.__enter__()
        self._open.enter((block, waits))
        return write

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        block, waits = self._open.leave()
        if waits:
            self._end_at_commit(block)
        else:
            block.__exit__(kind, error, traceback)

    async def __aenter__(self) -> Write:
        waits = has_block(self._using)
        block = self._open_block(waits)
        write = await block.__aenter__()
        self._open.enter((block, waits))
        return write

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        block, waits = self._open.leave()
        if waits:
            self._end_at_commit(block)
        else:
            await block.__aexit__(kind, error, traceback)

    def _end_at_commit(self, block: Writing) -> None:
        # After an exception, too: the caller may catch it and commit the earlier writes.
        transaction.on_commit(lambda: block.__exit__(None, None, None), using=self._using)


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
    """Guard a write to the database with a ``with`` block, around ``transaction.atomic()`` or inside it.

    Around the transaction it is `CacheGuard.writing`, with the guarantees of its modes. Inside a transaction it sets no
    fence, which would have to outlive the block: keys and tags are invalidated right after the outermost COMMIT, and
    not at all if the transaction or the savepoint is rolled back.

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
    check_writing(mode, settle, delay, intent)  # here, rather than when the block is entered

    def open_block(waits: bool) -> Writing:  # noqa: FBT001 - called by position only
        return guard(alias).writing(
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

    The function may open a transaction, or be called inside one.

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
    check_writing(mode, settle, delay, intent)

    def open_write(names: list[str], tags: list[str]) -> TransactionWriting:
        return writing(
            *names, tags=tags, alias=alias, using=using, mode=mode, settle=settle, delay=delay, intent=intent
        )

    return decorate_writes(open_write, keys, tags, version, called="invalidates")
