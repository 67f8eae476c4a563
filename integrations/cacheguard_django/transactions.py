"""Invalidation that waits for the COMMIT, and loads that take account of an open transaction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, ParamSpec, TypeVar, cast

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
from .atomic import open_on
from .commits import Waiting, at_commit
from .reach import is_ours_alone

P = ParamSpec("P")
R = TypeVar("R")


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
    In a coroutine, the transaction is the one that its queries run in.

    Args:
        keys: key texts of decorated functions of ``guard(alias)``: ``"user:42"``.
        tags: tags.
        alias: of the cache.
        using: the database whose COMMIT it waits for; None: every database that has a transaction open here.
        settle: the replica lag: how far the database that loaders read may be behind; None: not at all.

    Raises:
        TypeError: *tags* is a text, or one of the keys and tags is none.
    """
    at_once = _noted(guard(alias), keys, tags, using, settle)
    if at_once is not None:
        with at_once:
            pass


async def ainvalidate(
    *keys: str,
    tags: Iterable[str] = (),
    alias: str = "default",
    using: str | None = None,
    settle: Duration | None = None,
) -> None:
    """`invalidate`, to be awaited."""
    at_once = _noted(guard(alias), keys, tags, using, settle)
    if at_once is not None:
        async with at_once:
            pass


def _noted(
    guard: CacheGuard, keys: Sequence[str], tags: Iterable[str], using: str | None, settle: Duration | None
) -> Writing | None:
    """Note the invalidation at every open transaction; return it, too, if it must be done at once."""
    tags = tags if isinstance(tags, str) else tuple(tags)  # a text is refused by `writing`

    def block() -> Writing:
        return guard.writing(*keys, tags=cast("Sequence[str]", tags), mode="delete", settle=settle)

    checked = block()  # what cannot work raises here, not after the COMMIT
    opened = open_on(using)
    for each in opened:
        at_commit(each, Waiting(partial(_end, block), (guard, settle), keys, tags))
    return checked if not opened or any(map(is_ours_alone, opened)) else None


def _end(block: Callable[[], Writing]) -> None:
    with block():
        pass


class NotedWrite:
    """The running write of a block, which remembers what is added to it: it may be invalidated at several COMMITs."""

    def __init__(self, write: Write, keys: Iterable[str], tags: Iterable[str]) -> None:
        self._write = write
        self.keys: dict[str, None] = dict.fromkeys(keys)
        self.tags: dict[str, None] = dict.fromkeys(tags)

    @property
    def version(self) -> Version | None:
        return self._write.version

    @version.setter
    def version(self, version: Version | None) -> None:
        self._write.version = version

    def also(self, *keys: str, tags: Iterable[str] = ()) -> None:
        """As `Write.also`."""
        tags = tags if isinstance(tags, str) else tuple(tags)
        self._write.also(*keys, tags=tags)
        self.keys.update(dict.fromkeys(keys))
        self.tags.update(dict.fromkeys(tags))


class TransactionWriting:
    """Guards the writes inside ``with`` (or ``async with``); made by `writing`.

    Args:
        open_block: makes the block of a guard from a mode, keys, tags and a version.
        keys: key texts.
        tags: tags.
        version: the source version of the rows after the write.
        mode: of a block outside of transactions.
        using: the database whose transaction counts; None: all.
    """

    def __init__(
        self,
        open_block: Callable[[Mode, Iterable[str], Iterable[str], Version | None], Writing],
        keys: Sequence[str],
        tags: Sequence[str],
        version: Version | None,
        mode: Mode,
        using: str | None,
    ) -> None:
        self._open_block, self._using = open_block, using
        self._mode: Mode = mode
        self._keys, self._tags, self._version = keys, tags, version
        self._open = OpenBlocks[tuple[Writing, NotedWrite, bool]]()

    def __enter__(self) -> Write:
        block, waits = self._entering()
        return self._entered(block, block.__enter__(), waits=waits)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        block = self._leaving()
        if block is not None:
            block.__exit__(kind, error, traceback)

    async def __aenter__(self) -> Write:
        block, waits = self._entering()
        return self._entered(block, await block.__aenter__(), waits=waits)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        block = self._leaving()
        if block is not None:
            await block.__aexit__(kind, error, traceback)

    def _entering(self) -> tuple[Writing, bool]:
        waits = bool(open_on(self._using))
        if waits:
            return self._open_block("delete", self._keys, self._tags, self._version), True
        return self._open_block(self._mode, self._keys, self._tags, self._version), False

    def _entered(self, block: Writing, write: Write, *, waits: bool) -> Write:
        noted = NotedWrite(write, self._keys, self._tags)
        self._open.enter((block, noted, waits))
        return cast("Write", noted)

    def _leaving(self) -> Writing | None:
        """Note the end of a block at every open transaction; return the block if it must end at once, too.

        After an exception, too: the caller may catch it and commit the earlier writes. With autocommit off, the
        transaction may have begun inside of the block; the fence then ends with the block.
        """
        block, noted, waited = self._open.leave()
        opened = open_on(self._using)
        for each in opened:
            at_commit(each, Waiting(partial(self._end, noted)))
        return None if waited and opened and not any(map(is_ours_alone, opened)) else block

    def _end(self, noted: NotedWrite) -> None:
        with self._open_block("delete", noted.keys, noted.tags, noted.version):
            pass


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
        using: the database whose transaction counts; None: every database that has one open here.
        mode: as in `CacheGuard.writing`, and so are the others.
        settle: likewise.
        version: likewise.
        delay: likewise.
        intent: likewise.
    """
    check_writing(mode, settle, delay, intent)  # here, rather than when the block is entered

    def open_block(mode: Mode, keys: Iterable[str], tags: Iterable[str], version: Version | None) -> Writing:
        return guard(alias).writing(
            *keys,
            tags=cast("Sequence[str]", tags if isinstance(tags, str) else tuple(tags)),
            mode=mode,
            settle=settle,
            version=version,
            delay=delay,
            intent=intent,
        )

    return TransactionWriting(open_block, keys, tags, version, mode, using)


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
        using: the database whose transaction counts; None: every database that has one open here.
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
