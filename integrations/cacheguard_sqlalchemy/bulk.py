"""Statements that change rows without loading them: finds the rows, and the keys and tags to invalidate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias, cast

from sqlalchemy import Connection, Delete, Insert, Result, Select, Table, Update, delete, false, select, tuple_
from sqlalchemy.orm import Mapper, ORMExecuteState

from cacheguard import Change
from cacheguard.errors import ConfigurationError

from .links import End
from .pending import Pending
from .rows import as_stored
from .rules import Rules
from .statements import is_steady, is_upsert, name_of, rows_given, values_set

OPTION = "cacheguard"
MOST_ROWS = 1000  # a bulk statement that touches more rows needs bulk tags

Lost: TypeAlias = Callable[[str], None]


def complaint(statement: Any, rules: Rules, why: str) -> ConfigurationError:
    """The error for a statement of which nobody knows what it touches."""
    kind = "INSERT" if statement.is_insert else "UPDATE" if statement.is_update else "DELETE"
    if rules.bulk:  # they cover the keys
        return ConfigurationError(
            f"nobody knows which items of {rules.model} this bulk {kind} brings ({why}): add them to the Bloom filter "
            f"yourself, and give the statement execution_options={{{OPTION!r}: [Change(…)]}}"
        )
    return ConfigurationError(
        f"nobody knows which keys of {rules.model} this bulk {kind} touches ({why}): give the model "
        f"Touches(…, bulk=['a-tag']), or the statement execution_options={{{OPTION!r}: [Change(…)]}}"
    )


class _Statement:
    """One INSERT, UPDATE or DELETE that a session executes, and our own reads beside it.

    Args:
        state: the state from `do_orm_execute`.
        statement: the statement; *state* may have it within `from_statement`.
    """

    def __init__(self, state: ORMExecuteState, statement: Any) -> None:
        self._state = state
        self._statement = cast("Insert | Update | Delete", statement)
        self._is_within = statement is not state.statement  # what is executed is not this one itself
        self._made: Connection | None = None

    @property
    def _connection(self) -> Connection:
        """The session's connection: listeners of the session, which may add criteria, do not see what it runs."""
        if self._made is None:
            session = self._state.session
            if session.autoflush:
                session.flush()  # as the statement itself would
            self._made = session.connection(bind_arguments=dict(self._state.bind_arguments))
        return self._made

    def _read(self, asked: Select[Any], parameters: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        found = self._connection.execute(asked, parameters or None)
        return [dict(row) for row in found.mappings()]

    def _parameters(self) -> list[dict[str, Any]]:
        given = self._state.parameters
        if given is None:
            return []
        return [dict(given)] if isinstance(given, Mapping) else [dict(each) for each in given]

    def _lock_sqlite(self, table: Any) -> None:
        """Take the write lock now, so that the rows read here do not change before the statement."""
        if self._connection.dialect.name == "sqlite":
            self._connection.execute(delete(cast("Table", table)).where(false()))

    def _counted(self, result: Result[Any]) -> tuple[Result[Any], int]:
        """The result, and how many rows the statement has touched."""
        touched = getattr(result, "rowcount", -1)
        if touched >= 0 or self._connection.dialect.name == "sqlite" or not getattr(result, "returns_rows", True):
            return result, touched
        frozen = result.freeze()  # a RETURNING: the rows are the count
        return frozen(), len(frozen.data)


class Bulk(_Statement):
    """One INSERT, UPDATE or DELETE of many rows of a model at once.

    Args:
        state: the state from `do_orm_execute`.
        statement: the statement.
        rules: of every model whose rows the statement may touch.
        mapper: of the model that the statement names.
    """

    def __init__(self, state: ORMExecuteState, statement: Any, rules: Sequence[Rules], mapper: Mapper[Any]) -> None:
        super().__init__(state, statement)
        self._rules, self._mapper = rules, mapper

    def run(self, pending: Pending, lost: Lost) -> Result[Any] | None:
        """Note in *pending* what the statement touches. Return the result if it had to run for that.

        Args:
            pending: takes the changes, and the new items of Bloom filters.
            lost: called with the reason if the statement has touched rows that were not found.

        Raises:
            ConfigurationError: the touched rows cannot be found. The statement was not run.
        """
        for rules in self._rules:
            pending.add(rules.bulk)
        if not self._open_rules():
            return None
        self._check_nameable()
        if isinstance(self._statement, Insert):
            self._note_inserted(self._statement, pending)
            return None
        return self._rewritten(self._statement, pending, lost)

    def _check_nameable(self) -> None:
        for rules in self._rules:
            if not self._is_open(rules):
                continue
            if rules.functions and not rules.bulk:
                raise self._complaint(rules, "its functions need instances")
            if not self._mapper.isa(rules.mapper):
                raise self._complaint(
                    rules, f"its rows are not told apart from those of {self._mapper.class_.__name__}"
                )

    def _complaint(self, rules: Rules, why: str) -> ConfigurationError:
        return complaint(self._statement, rules, why)

    # INSERT

    def _note_inserted(self, statement: Insert, pending: Pending) -> None:
        first = self._open_rules()[0]
        if is_upsert(statement):
            raise self._complaint(first, "an upsert does not say what was there before")
        rows = rows_given(statement, self._parameters())
        if rows is None:
            raise self._complaint(first, f"a SELECT gives {', '.join(self._attributes(first))}")
        for row in rows:
            given = self._defaults() | {self._attribute(column): value for column, value in row.items()}
            values = {name: self._stored(name, value) for name, value in given.items() if name is not None}
            for rules in self._open_rules():
                known, missing = ([], []) if rules.bulk else rules.of_known(values)
                missing += [name for name in rules.item_attributes if name not in values]
                if missing:
                    raise self._complaint(rules, f"it does not give {', '.join(dict.fromkeys(missing))}")
                pending.add(known)
                pending.feed(rules, values)

    def _defaults(self) -> dict[str | None, Any]:
        """The defaults that are plain values, by attribute."""
        found: dict[str | None, Any] = {}
        for attribute in self._mapper.column_attrs:
            default = getattr(attribute.columns[0], "default", None)
            if default is not None and default.is_scalar:
                found[attribute.key] = default.arg
        return found

    def _stored(self, name: str, value: Any) -> Any:
        """The value as the row will have it, if a type of the application changes it on its way."""
        return as_stored(self._mapper.column_attrs[name].columns[0].type, value, self._connection.dialect)[0]

    def _attribute(self, column: Any) -> str | None:
        """The attribute for a column, or for the name of an attribute or column."""
        if isinstance(column, str) and column in self._mapper.column_attrs:
            return column
        own = cast("Table", self._mapper.local_table).c.get(name_of(column))
        return None if own is None else self._mapper.get_property_by_column(own).key

    # UPDATE and DELETE

    def _rewritten(self, statement: Update | Delete, pending: Pending, lost: Lost) -> Result[Any]:
        steady = is_steady(statement)
        if not steady:
            self._check_can_be_pinned(statement)
        self._check_moved(statement)
        self._lock_sqlite(self._mapper.local_table)
        rows = self._rows_before(statement)
        self._note(rows, pending)
        if steady:
            result, touched = self._counted(self._state.invoke_statement())
            if touched > len(rows):  # another transaction has added matching rows meanwhile
                lost(f"a bulk statement touched more rows of {self._mapper.class_.__name__} than there were before")
        else:
            result = self._state.invoke_statement(statement=self._pinned(statement, rows))
        if isinstance(statement, Update) and rows:
            self._feed_moved(statement, rows, pending)
            after = self._rows_after(rows)
            if len(after) < len(rows):
                lost(f"a bulk UPDATE changed primary keys of {self._mapper.class_.__name__}")
            self._note(after, pending, is_after=True)
        return result

    def _note(self, rows: Sequence[Mapping[str, Any]], pending: Pending, *, is_after: bool = False) -> None:
        for rules in self._open_rules():
            feeds = is_after and self._changes_items(rules)
            for row in rows:
                pending.add([] if rules.bulk else rules.of_values(row, deleted=True))
                if feeds:
                    pending.feed(rules, row)

    def _check_can_be_pinned(self, statement: Update | Delete) -> None:
        """Raise unless the statement can be told to change the rows that were found, and no others."""
        why = "its WHERE clause may match other rows each time"
        several = (
            self._select().where(cast("Any", statement.whereclause)) if statement.whereclause is not None else None
        )
        if self._is_within or self._parameters() or (several is not None and len(several.get_final_froms()) > 1):
            raise self._complaint(self._open_rules()[0], why)

    def _moved(self, statement: Update | Delete) -> tuple[list[str], list[dict[str, Any]]]:
        """The primary key's attributes that the statement sets, and the values that are known."""
        if isinstance(statement, Delete):
            return [], []
        names, rows = values_set(statement, self._parameters() if statement.whereclause is not None else ())
        moved = [name for name in self._primary_key() if name in {self._attribute(each) for each in names}]
        known = [{self._attribute(column): value for column, value in row.items()} for row in rows]
        return moved, [{name: value for name, value in row.items() if name is not None} for row in known]

    def _check_moved(self, statement: Update | Delete) -> None:
        """Raise if rows get new items that cannot be read, since their primary keys change, too."""
        moved, known = self._moved(statement)
        for rules in self._open_rules():
            if moved and rules.fed and any(name not in row for name in moved for row in known):
                raise self._complaint(rules, f"it does not give {', '.join(moved)}")

    def _feed_moved(self, statement: Update, rows: Sequence[Mapping[str, Any]], pending: Pending) -> None:
        moved, known = self._moved(statement)
        for rules in self._open_rules() if moved else ():
            for row in rows:
                for values in known:
                    if self._changes_items(rules):
                        moves = {name: self._stored(name, value) for name, value in values.items()}
                        pending.feed(rules, {**row, **moves})

    def _pinned(self, statement: Update | Delete, rows: Sequence[Mapping[str, Any]]) -> Update | Delete:
        """*statement* for exactly *rows*."""
        pinned = cast("Any", statement)._clone()  # noqa: SLF001 - a statement cannot lose its WHERE clause in another way
        pinned._where_criteria = ()  # noqa: SLF001 - as above
        keys = [tuple(row[name] for name in self._primary_key()) for row in rows]
        found: Update | Delete = pinned.where(self._is_one_of(keys) if keys else false())
        return found

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
            [*self._primary_key(), *(name for each in self._open_rules() for name in self._attributes(each))]
        )
        columns = [getattr(self._mapper.class_, name).label(name) for name in names]
        asked: Any = select(*columns)
        limited: Select[Any] = asked.limit(MOST_ROWS + 1).with_for_update()
        return limited

    def _primary_key(self) -> list[str]:
        return [self._mapper.get_property_by_column(column).key for column in self._mapper.primary_key]

    def _is_one_of(self, keys: Sequence[tuple[Any, ...]]) -> Any:
        return one_of([getattr(self._mapper.class_, name) for name in self._primary_key()], keys)

    def _open_rules(self) -> list[Rules]:
        return [rules for rules in self._rules if self._is_open(rules)]

    def _is_open(self, rules: Rules) -> bool:
        """True if the rows must be known: bulk tags cover neither them nor the filters."""
        return not rules.bulk or self._changes_items(rules)

    def _changes_items(self, rules: Rules) -> bool:
        if isinstance(self._statement, Delete) or not rules.fed:
            return False
        if isinstance(self._statement, Insert):
            return True
        names, _ = values_set(self._statement, self._parameters())
        return not {self._attribute(name) for name in names}.isdisjoint(rules.item_attributes)

    def _attributes(self, rules: Rules) -> tuple[str, ...]:
        """The attributes that must be known of a row."""
        named = () if rules.bulk else rules.attributes
        return (*named, *(rules.item_attributes if self._changes_items(rules) else ()))


class Linked(_Statement):
    """One INSERT, UPDATE or DELETE in an association table. It touches the rows at both ends.

    Args:
        state: the state from `do_orm_execute`.
        statement: the statement.
        ends: the ends at which watched models are.
    """

    def __init__(self, state: ORMExecuteState, statement: Any, ends: Sequence[End]) -> None:
        super().__init__(state, statement)
        self._ends = ends

    def run(self, pending: Pending, lost: Lost) -> Result[Any] | None:
        """As `Bulk.run`."""
        for each in {id(each): each for end in self._ends for each in end.rules}.values():
            pending.add(each.bulk)
            if not each.bulk and each.functions:
                raise complaint(self._statement, each, "its functions need instances")
        ends = [(end, [each for each in end.rules if not each.bulk]) for end in self._ends]
        ends = [(end, rules) for end, rules in ends if rules]
        if not ends:
            return None
        names = {column.key: column for end, _ in ends for column in end.linking}
        links = self._links(names, ends[0][1][0])
        for end, rules in ends:
            keys = list(dict.fromkeys(tuple(link.get(column.key) for column in end.linking) for link in links))
            for each in rules:
                pending.add(self._named(end, each, [key for key in keys if None not in key]))
        if isinstance(self._statement, Insert):
            return None
        result, touched = self._counted(self._state.invoke_statement())
        if touched > len(links):  # another transaction has added matching rows meanwhile
            lost(f"a statement touched more rows of {self._statement.table} than there were before")
        return result

    def _named(self, end: End, rules: Rules, keys: list[tuple[Any, ...]]) -> list[Change]:
        if not keys:
            return []
        columns = [getattr(rules.mapper.class_, name).label(name) for name in rules.attributes]
        asked: Any = select(*columns).where(one_of(end.own, keys))
        return [change for row in self._read(asked) for change in rules.of_values(row, deleted=True)]

    def _links(self, names: Mapping[str, Any], rules: Rules) -> list[dict[str, Any]]:
        """The values of the columns *names* in the rows that are added, changed or deleted."""
        statement, parameters = self._statement, self._parameters()
        if isinstance(statement, Insert):
            given = None if is_upsert(statement) else rows_given(statement, parameters)
            return self._complete(names, given, rules)
        if not is_steady(statement):
            raise complaint(statement, rules, "its WHERE clause may match other rows each time")
        self._lock_sqlite(statement.table)
        asked: Any = select(*names.values()).limit(MOST_ROWS + 1).with_for_update()
        if statement.whereclause is not None:
            asked = asked.where(statement.whereclause)
        found = [row for each in parameters or [{}] for row in self._read(asked, each)]
        if len(found) > MOST_ROWS:
            raise complaint(statement, rules, f"it touches more than {MOST_ROWS} rows")
        if isinstance(statement, Update):
            changed, values = values_set(statement, parameters)
            moved = {name: names[name] for name in names if name in changed}
            if moved:
                found += [old | new for old in found for new in self._complete(moved, values, rules)]
        return found

    def _complete(
        self, names: Mapping[str, Any], given: list[dict[Any, Any]] | None, rules: Rules
    ) -> list[dict[str, Any]]:
        rows = [{name_of(column): value for column, value in row.items()} for row in given or ()]
        if given is None or any(name not in row for name in names for row in rows):
            raise complaint(self._statement, rules, f"it does not give {', '.join(names)}")
        return [{name: row[name] for name in names} for row in rows]


def one_of(columns: Sequence[Any], keys: Sequence[tuple[Any, ...]]) -> Any:
    """The condition that *columns* have the values of one of *keys*."""
    if len(columns) == 1:
        return columns[0].in_([key[0] for key in keys])
    return tuple_(*columns).in_(keys)
