"""The transactional outbox: a table for the invalidations of a transaction, written in that transaction."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from sqlalchemy import BigInteger, Column, Double, Integer, MetaData, String, Table, Text

from cacheguard import Change
from cacheguard.errors import ConfigurationError

KEY, TAG, ALL = "key", "tag", "all"

_COLUMNS = {"id", "kind", "name", "version", "created_at", "claimed_by", "claimed_until"}


def outbox_table(metadata: MetaData, name: str = "cacheguard_outbox", *, schema: str | None = None) -> Table:
    """Return the table of an outbox. Create it like any other table (``metadata.create_all``, Alembic).

    Each row is a key or tag that a committed transaction has changed and that no relay has delivered yet:

    | column | content |
    | --- | --- |
    | ``id`` | a number that grows |
    | ``kind`` | ``key``, ``tag``, or ``all``: the whole namespace |
    | ``name`` | the text of the key or tag; empty for ``all`` |
    | ``version`` | the current version of the row, if there is one |
    | ``created_at`` | when it was written, in Unix seconds by the writer's clock |
    | ``claimed_by``, ``claimed_until`` | the relay that is delivering it, if the database has no SKIP LOCKED |

    Args:
        metadata: of the database of the watched models, so that one transaction writes both, or neither.
        name: of the table; each guard needs its own.
        schema: of the table.

    Raises:
        ConfigurationError: *metadata* is not a `MetaData`, or *name* is not a table name.
    """
    given: Any = metadata
    if not isinstance(given, MetaData):
        raise ConfigurationError(f"metadata must be a MetaData, got {given!r}")
    _check_name(name)
    return Table(
        name,
        metadata,
        # SQLite only numbers rows itself if the column is declared INTEGER.
        Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
        Column("kind", String(8), nullable=False),
        Column("name", Text, nullable=False),
        Column("version", BigInteger),
        Column("created_at", Double, nullable=False),
        Column("claimed_by", String(32), index=True),
        Column("claimed_until", Double),
        schema=schema,
    )


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not name:
        raise ConfigurationError(f"name must be the name of a table, got {name!r}")


def check_outbox(table: Any) -> Table:
    """Return *table* if it can be an outbox; else `ConfigurationError`."""
    names = {str(column.name) for column in table.columns} if _is_table(table) else set[str]()
    if not names >= _COLUMNS:
        raise ConfigurationError(f"outbox must be a table made by outbox_table(metadata), got {table!r}")
    found: Table = table
    return found


def _is_table(table: object) -> bool:
    return isinstance(table, Table)


def rows_of(changes: Iterable[Change], *, everything: bool) -> list[dict[str, Any]]:
    """The outbox rows for *changes*."""
    now = time.time()
    rows: list[dict[str, Any]] = [
        {"kind": KEY, "name": each.key, "version": each.version, "created_at": now}
        if each.key is not None
        else {"kind": TAG, "name": each.tag, "version": None, "created_at": now}
        for each in changes
    ]
    if everything:
        rows.append({"kind": ALL, "name": "", "version": None, "created_at": now})
    return rows


def change_of(kind: str, name: str, version: int | None) -> Change:
    """The change in a row of any kind but ``all``."""
    return Change(tag=name) if kind == TAG else Change(name, version=version)
