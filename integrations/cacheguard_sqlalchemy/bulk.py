"""Statements that change rows without loading them: finds the rows, and the keys and tags to invalidate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

from sqlalchemy import Delete, Insert, Result, Select, Table, Update, delete, false, select, tuple_
from sqlalchemy.orm import Mapper, ORMExecuteState
from sqlalchemy.sql import visitors

from cacheguard import Change
from cacheguard.errors import ConfigurationError

from .rules import Rules

OPTION = "cacheguard"
MOST_ROWS = 1000  # a bulk statement that touches more rows needs bulk tags

_UPSERTS = frozenset({"on_conflict_do_update", "on_duplicate_key_update"})


class Bulk:
    """One INSERT, UPDATE or DELETE of many rows at once.

    Args:
        state: the state from `do_orm_execute`.
        rules: of every model whose rows the statement may touch.
        mapper: of the model that the statement names.
    """

    def __init__(self, state: ORMExecuteState, rules: Sequence[Rules], mapper: Mapper[Any]) -> None:
        self._state, self._rules, self._mapper = state, rules, mapper
        self._statement = cast("Insert | Update | Delete", state.statement)

    def run(self, add: Callable[[Iterable[Change]], None], lost: Callable[[], None]) -> Result[Any] | None:
        """Pass the touched keys and tags to *add*. Return the result if the statement had to run for that.

        Args:
            lost: called if the statement has touched more rows than were found.

        Raises:
            ConfigurationError: the touched rows cannot be found. The statement was not run.
        """
        for rules in self._rules:
            add(rules.bulk)
        if all(rules.bulk for rules in self._rules):
            return None
        self._check_nameable()
        if isinstance(self._statement, Insert):
            add(self._inserted(self._statement))
            return None
        return self._rewritten(self._statement, add, lost)

    def _check_nameable(self) -> None:
        for rules in self._rules:
            if rules.bulk:
                continue
            if rules.functions:
                raise self._complaint(rules, "its functions need instances")
            if not self._mapper.isa(rules.mapper):
                raise self._complaint(
                    rules, f"its rows are not told apart from those of {self._mapper.class_.__name__}"
                )

    def _complaint(self, rules: Rules, why: str) -> ConfigurationError:
        statement = self._statement
        kind = "INSERT" if statement.is_insert else "UPDATE" if statement.is_update else "DELETE"
        return ConfigurationError(
            f"nobody knows which keys of {rules.model} this bulk {kind} touches ({why}): give the model "
            f"Touches(…, bulk=['a-tag']), or the statement execution_options={{{OPTION!r}: [Change(…)]}}"
        )

    # INSERT

    def _inserted(self, statement: Insert) -> list[Change]:
        if any(getattr(part, "__visit_name__", "") in _UPSERTS for part in visitors.iterate(statement)):
            raise self._complaint(self._open_rules()[0], "an upsert does not say what was there before")
        rows = self._parameters() or [statement.compile().params]
        changes: list[Change] = []
        for row in rows:
            values = {
                self._attribute(name): value for name, value in row.items() if not hasattr(value, "__clause_element__")
            }
            for rules in self._open_rules():
                known, missing = rules.of_known({name: value for name, value in values.items() if name is not None})
                if missing:
                    raise self._complaint(rules, f"it does not give {', '.join(missing)}")
                changes += known
        return changes

    def _attribute(self, name: str) -> str | None:
        """The attribute for a parameter, which has the name of the attribute or of its column."""
        if name in self._mapper.column_attrs:
            return name
        column = cast("Table", self._mapper.local_table).c.get(name)
        return None if column is None else self._mapper.get_property_by_column(column).key

    # UPDATE and DELETE

    def _rewritten(
        self, statement: Update | Delete, add: Callable[[Iterable[Change]], None], lost: Callable[[], None]
    ) -> Result[Any]:
        self._lock_sqlite()
        rows = self._rows_before(statement)
        for rules in self._open_rules():
            for row in rows:
                add(rules.of_values(row, deleted=True))
        result = self._state.invoke_statement()
        touched = getattr(result, "rowcount", -1)
        if touched > len(rows):  # another transaction has added matching rows meanwhile
            lost()
        if isinstance(statement, Update) and rows:
            after = self._rows_after(rows)
            if len(after) < len(rows):  # their primary keys were changed
                lost()
            for rules in self._open_rules():
                for row in after:
                    add(rules.of_values(row, deleted=True))
        return result

    def _lock_sqlite(self) -> None:
        """Take the write lock now, so that the rows read here do not change before the statement."""
        session, table = self._state.session, self._mapper.local_table
        if session.get_bind(mapper=self._mapper).dialect.name == "sqlite":
            session.execute(delete(cast("Table", table)).where(false()), execution_options={OPTION: ()})

    def _rows_before(self, statement: Update | Delete) -> list[dict[str, Any]]:
        parameters = self._parameters()
        if statement.whereclause is not None:
            asked = self._select().where(statement.whereclause)
            return self._limited([self._read(asked, each) for each in parameters or [{}]])
        if isinstance(self._state.parameters, Sequence) and parameters:  # an UPDATE by primary key
            keys = [tuple(row[name] for name in self._primary_key()) for row in parameters]
            return self._limited([self._read(self._select().where(self._is_one_of(keys)))])
        return self._limited([self._read(self._select())])

    def _rows_after(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        keys = [tuple(row[name] for name in self._primary_key()) for row in rows]
        return self._read(self._select().where(self._is_one_of(keys)))

    def _limited(self, parts: Iterable[list[dict[str, Any]]]) -> list[dict[str, Any]]:
        rows = [row for part in parts for row in part]
        if len(rows) > MOST_ROWS:
            raise self._complaint(self._open_rules()[0], f"it touches more than {MOST_ROWS} rows")
        return rows

    def _select(self) -> Select[Any]:
        names = dict.fromkeys(
            [*self._primary_key(), *(name for each in self._open_rules() for name in each.attributes)]
        )
        columns = [getattr(self._mapper.class_, name).label(name) for name in names]
        asked: Any = select(*columns)
        limited: Select[Any] = asked.limit(MOST_ROWS + 1).with_for_update()
        return limited

    def _read(self, asked: Select[Any], parameters: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        found = self._state.session.execute(asked, parameters or None)
        return [dict(row) for row in found.mappings()]

    def _primary_key(self) -> list[str]:
        return [self._mapper.get_property_by_column(column).key for column in self._mapper.primary_key]

    def _is_one_of(self, keys: Sequence[tuple[Any, ...]]) -> Any:
        columns = [getattr(self._mapper.class_, name) for name in self._primary_key()]
        if len(columns) == 1:
            return columns[0].in_([key[0] for key in keys])
        return tuple_(*columns).in_(keys)

    def _open_rules(self) -> list[Rules]:
        return [rules for rules in self._rules if not rules.bulk]

    def _parameters(self) -> list[dict[str, Any]]:
        given = self._state.parameters
        if given is None:
            return []
        return [dict(given)] if isinstance(given, Mapping) else [dict(each) for each in given]
