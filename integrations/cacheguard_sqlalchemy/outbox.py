"""The outbox: what a transaction invalidates, written down in the same transaction."""

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
    """The table of an outbox, to be created like any other (``metadata.create_all``, Alembic).

    One row is one key or tag that a committed transaction has changed and that no relay has delivered yet:

    | column | what is in it |
    | --- | --- |
    | ``id`` | a number that grows |
    | ``kind`` | ``key``, ``tag``, or ``all``: the whole namespace |
    | ``name`` | the text of the key or tag; empty for ``all`` |
    | ``version`` | the version that the row has now, if there is one |
    | ``created_at`` | when it was written, in Unix seconds by the writer's clock |
    | ``claimed_by``, ``claimed_until`` | the relay that is delivering it, where the database has no SKIP LOCKED |

    Args:
        metadata: of the database in which the watched models live: a transaction writes both, or neither.
        name: of the table; each guard needs one of its own.
        schema: of the table.
    """
    given: Any = metadata
    if not isinstance(given, MetaData):
        raise ConfigurationError(f"metadata must be a MetaData, got {given!r}")
    _check_name(name)
    return Table(
        name,
        metadata,
        # SQLite counts by itself only what is declared INTEGER.
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
    """*table* if it can be an outbox."""
    names = {str(column.name) for column in table.columns} if _is_table(table) else set[str]()
    if not names >= _COLUMNS:
        raise ConfigurationError(f"outbox must be a table made by outbox_table(metadata), got {table!r}")
    found: Table = table
    return found


def _is_table(table: object) -> bool:
    return isinstance(table, Table)


def rows_of(changes: Iterable[Change], *, everything: bool) -> list[dict[str, Any]]:
    """The rows that say *changes*."""
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
    """The change that a row says; of any but ``all``."""
    return Change(tag=name) if kind == TAG else Change(name, version=version)
