"""Detects open transactions of the program: they may read data that no other transaction sees.

Loads, invalidations and writes all ask here.
"""

from __future__ import annotations

from typing import Any

from django.db import connections

from .reach import reached


def is_open() -> bool:
    """True if the code that runs here is inside of a transaction, in any database. No round trip."""
    return any(map(is_open_on, reached()))


def open_on(using: str | None) -> list[Any]:
    """The connections with an open transaction whose COMMIT a change of the database *using* waits for.

    None: of every database. `ConnectionDoesNotExist` if there is no such database.
    """
    if using is not None and using not in connections.settings:
        connections[using]  # raises Django's own error
    return [each for each in reached() if using in {None, each.alias} and is_open_on(each)]


def is_open_on(connection: Any) -> bool:
    """True if a transaction of the program is open.

    The blocks that Django's ``TestCase`` puts around each test do not count, as with ``durable``: code under test
    behaves as it does without them. Inside of those, the outermost block with a savepoint counts as the transaction. A
    block without one cannot be rolled back alone; Django opens them for itself, in ``delete()`` for example.
    """
    if connection.in_atomic_block:
        blocks = connection.atomic_blocks
        return not is_in_testcase(connection) or _savepoint_among(connection, len(blocks))
    return connection.connection is not None and not connection.autocommit


def is_in_testcase(connection: Any) -> bool:
    """True inside of the blocks that Django's ``TestCase`` puts around each test."""
    blocks = connection.atomic_blocks
    return bool(blocks) and bool(blocks[0]._from_testcase)  # noqa: SLF001 - as Atomic does


def _savepoint_among(connection: Any, number: int) -> bool:
    blocks, savepoints = connection.atomic_blocks, connection.savepoint_ids
    first = number - len(savepoints)  # the outermost block has a transaction and no savepoint
    return any(
        not block._from_testcase and sid is not None  # noqa: SLF001 - as above
        for block, sid in zip(blocks[first:], savepoints, strict=False)
    )
