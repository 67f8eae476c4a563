"""Detects open transactions of the program: they may read data that no other transaction sees."""

from __future__ import annotations

from typing import Any

from django.db import connections


def is_open() -> bool:
    """True if this thread has a transaction open in any database."""
    return any(map(_is_open, connections.all(initialized_only=True)))


def has_block(using: str) -> bool:
    """True if this thread is inside an ``atomic`` block of the database *using*, so that `on_commit` waits."""
    connection: Any = connections[using]
    return bool(connection.in_atomic_block) and _is_open(connection)


def _is_open(connection: Any) -> bool:
    """True if a transaction of the program is open.

    The blocks that Django's ``TestCase`` puts around each test do not count, as with ``durable``: code under test
    behaves as it does without them.
    """
    if connection.in_atomic_block:
        blocks = connection.atomic_blocks
        return not blocks or any(not block._from_testcase for block in blocks)  # noqa: SLF001 - as Atomic does
    return connection.connection is not None and not connection.autocommit
