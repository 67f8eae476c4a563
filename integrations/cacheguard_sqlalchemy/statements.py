"""Looks into statements: what they change, and whether they change the same rows if they are asked twice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias, cast

from sqlalchemy import CTE, ClauseElement, Delete, Insert, Select, TextClause, TextualSelect, Update
from sqlalchemy.orm import FromStatement
from sqlalchemy.sql import visitors
from sqlalchemy.sql.elements import BindParameter
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.lambdas import NullLambdaStatement, StatementLambdaElement

Change: TypeAlias = "Insert | Update | Delete"

# The same arguments, the same result, however often they are called.
_STEADY = frozenset(
    [
        "abs",
        "avg",
        "cast",
        "char_length",
        "coalesce",
        "concat",
        "count",
        "date",
        "greatest",
        "ifnull",
        "least",
        "length",
        "lower",
        "ltrim",
        "max",
        "min",
        "mod",
        "nullif",
        "replace",
        "round",
        "rtrim",
        "substr",
        "substring",
        "sum",
        "trim",
        "upper",
    ]
)
_UPSERTS = frozenset({"on_conflict_do_update", "on_duplicate_key_update"})
_MOST_KNOWN = 1000


def executed(statement: Any) -> Any:
    """What is executed: *statement*, or the one in a `lambda_stmt`, ``from_statement`` or ``text(…).columns(…)``."""
    while True:
        if isinstance(statement, StatementLambdaElement | NullLambdaStatement):
            statement = cast("Any", statement)._resolved  # noqa: SLF001 - it has no other name
        elif isinstance(statement, FromStatement | TextualSelect):
            statement = cast("Any", statement).element
        else:
            return statement


class Within:
    """Finds the INSERT, UPDATE and DELETE statements in the CTEs of a statement."""

    def __init__(self) -> None:
        self._without: set[Any] = set()  # cache keys of statements that have none

    def changes(self, statement: Any) -> list[Change]:
        """Those in *statement*, in any depth, without itself."""
        if not isinstance(statement, ClauseElement):  # a Sequence, or another default
            return []
        made = cast("Any", statement)._generate_cache_key()  # noqa: SLF001 - to look into each SELECT takes longer than to compile it
        key = None if made is None else made.key
        if key is not None and key in self._without:
            return []
        found = [
            each.element for each in visitors.iterate(statement) if isinstance(each, CTE) and _is_change(each.element)
        ]
        if not found and key is not None:
            if len(self._without) >= _MOST_KNOWN:
                self._without.clear()
            self._without.add(key)
        return list(dict.fromkeys(cast("Iterable[Change]", found)))


def _is_change(element: Any) -> bool:
    return isinstance(element, Insert | Update | Delete)


def is_steady(statement: Update | Delete) -> bool:
    """True if the WHERE clause matches the same rows whenever it is asked in one transaction.

    Not so: a function that nobody knows, SQL text, a LIMIT, rows that are skipped because they are locked.
    """
    if any(name.endswith("_limit") for name in statement.dialect_kwargs):
        return False
    where = statement.whereclause
    return where is None or all(map(_is_steady, visitors.iterate(where)))


def _is_steady(part: Any) -> bool:
    if isinstance(part, FunctionElement):
        return getattr(cast("Any", part), "name", "") in _STEADY
    if isinstance(part, Select):
        select = cast("Any", part)
        return select._limit_clause is None and select._offset_clause is None and select._for_update_arg is None  # noqa: SLF001 - they have no other name
    return not isinstance(part, TextClause)


def is_upsert(statement: Insert) -> bool:
    """True if the statement may change or replace a row that is there."""
    prefixes = cast("Iterable[Any]", getattr(statement, "_prefixes", ()))
    if any("REPLACE" in str(prefix[0]).upper() for prefix in prefixes):
        return True
    return any(getattr(part, "__visit_name__", "") in _UPSERTS for part in visitors.iterate(statement))


def rows_given(statement: Insert, parameters: Iterable[Mapping[str, Any]]) -> list[dict[Any, Any]] | None:
    """The rows that an INSERT names, by column or by name; None if it takes them from a SELECT.

    A value that the database computes is left out.
    """
    inner = cast("Any", statement)
    if inner.select is not None:
        return None
    common = _known(inner._values or {})  # noqa: SLF001 - the compiled parameters have None for each default, too
    several = [_known(_by_column(inner.table, row)) for part in inner._multi_values for row in part]  # noqa: SLF001 - as above
    if several:
        return [common | row for row in several]
    return [common | _known(row) for row in parameters] or [common]


def values_set(statement: Update, parameters: Iterable[Mapping[str, Any]]) -> tuple[set[str], list[dict[Any, Any]]]:
    """The names of what an UPDATE sets, and the values that are known."""
    common = dict(cast("Any", statement)._values or {})  # noqa: SLF001 - they have no other name
    rows = [common | dict(row) for row in parameters] or [common]
    return {name_of(column) for row in rows for column in row}, [_known(row) for row in rows]


def name_of(column: Any) -> str:
    """The name of a column, which may be given by its name."""
    return column if isinstance(column, str) else column.key


def _by_column(table: Any, row: Any) -> Mapping[Any, Any]:
    return cast("Any", row) if isinstance(row, Mapping) else dict(zip(table.c, row, strict=False))


def _known(row: Mapping[Any, Any]) -> dict[Any, Any]:
    known: dict[Any, Any] = {}
    for column, value in row.items():
        if isinstance(value, BindParameter):
            bound = cast("Any", value)
            if not bound.required:
                known[column] = bound.effective_value
        elif not hasattr(value, "__clause_element__") and not hasattr(value, "_propagate_attrs"):
            known[column] = value
    return known
