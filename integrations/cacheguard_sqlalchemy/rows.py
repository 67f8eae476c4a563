"""Facts from SQLAlchemy: the models that a SELECT makes objects of, and the values of a row before a flush."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from enum import Enum
from typing import Any, cast
from uuid import UUID

from sqlalchemy import CHAR, Connection, Dialect, TypeDecorator, inspect, select
from sqlalchemy.orm import Mapper, ORMExecuteState, RelationshipDirection, Session

_PLAIN = (str, int, bool, UUID, date)


def loaded_mappers(state: ORMExecuteState) -> set[Mapper[Any]]:
    """The models of which a SELECT makes objects, and the models related to them."""
    described: list[Any] = getattr(state.statement, "column_descriptions", [])
    entities = [
        each["entity"] for each in described if each.get("entity") is not None and each["expr"] is each["entity"]
    ]
    mappers = {inspect(entity).mapper for entity in entities}
    return mappers.union(*({each.mapper for each in mapper.relationships} for mapper in mappers))


def has_late_updates(mapper: Mapper[Any]) -> bool:
    """True if a flush may change foreign keys of a row after its events (``post_update=True``)."""
    late = (each for other in mapper.registry.mappers for each in other.relationships if each.post_update)
    return any(
        mapper.isa(each.parent if each.direction is RelationshipDirection.MANYTOONE else each.mapper) for each in late
    )


def as_stored(kind: Any, value: Any, dialect: Dialect) -> tuple[Any, bool]:
    """*value* as a row with a column of the type *kind* has it, and whether that is certain. No query.

    An own type may change it on its way, and so may the database: ``Decimal(3)`` comes back as ``3.00``.
    """
    if isinstance(kind, TypeDecorator):
        own, stored = cast("Any", kind), value
        for step in (own.process_bind_param, own.process_result_value):
            try:
                stored = step(stored, dialect)
            except NotImplementedError:  # from TypeDecorator itself: the type has no such step, the value stays
                continue
            except Exception:  # noqa: BLE001 - it is not ours, and may need a real row
                return value, False
        simple = type(stored) in _PLAIN or isinstance(stored, Enum)
        return stored, stored is value is None or (simple and type(stored) is type(value) and stored == value)
    if value is None:
        return None, True
    if isinstance(kind, CHAR) and kind.length != len(str(value)):
        return value, False
    try:
        expected = kind.python_type
    except NotImplementedError:  # the type names none, which SQLAlchemy 2.1 calls `object`: nothing is certain
        return value, False
    return value, expected is type(value) and (expected in _PLAIN or isinstance(value, Enum))


def changed_names(instance: Any, attributes: Iterable[str]) -> bool:
    """True if one of *attributes* is known to have changed."""
    attrs = inspect(instance).attrs
    return any(attrs[name].history.has_changes() for name in attributes)


def values_before(
    mapper: Mapper[Any], connection: Connection, instance: Any, attributes: Iterable[str]
) -> dict[str, Any]:
    """The values that the row had before this flush. Values that were never loaded are queried."""
    values, unknown = known_before(instance, attributes)
    unknown += _uncertain(mapper, values, connection.dialect)
    return values | _asked(mapper, connection, instance, unknown)


def _uncertain(mapper: Mapper[Any], values: dict[str, Any], dialect: Dialect) -> list[str]:
    """The names of those of *values* that the row may have in another form."""
    columns = mapper.column_attrs
    return [name for name, value in values.items() if not as_stored(columns[name].columns[0].type, value, dialect)[1]]


def known_before(instance: Any, attributes: Iterable[str]) -> tuple[dict[str, Any], list[str]]:
    """The values that the row had before this flush, and the names of those that were never loaded."""
    state = inspect(instance)
    values: dict[str, Any] = {}
    unknown: list[str] = []
    for name in attributes:
        history = state.attrs[name].history
        before = history.deleted or history.unchanged
        if before:
            values[name] = before[0]
        else:
            unknown.append(name)
    return values, unknown


def values_now(mapper: Mapper[Any], session: Session, instance: Any, attributes: Iterable[str]) -> dict[str, Any]:
    """The values that the row has after a flush. Values that the database has set, or in another form, are queried.

    The session would query them, too, but with the criteria that an application adds to its SELECTs: the row may be
    hidden by now.
    """
    held = inspect(instance).dict
    values = {name: held[name] for name in attributes if name in held}
    unknown = [name for name in attributes if name not in held]
    connection = session.connection(bind_arguments={"mapper": mapper})
    unknown += _uncertain(mapper, values, connection.dialect)
    return values | _asked(mapper, connection, instance, unknown)


def _asked(mapper: Mapper[Any], connection: Connection, instance: Any, names: list[str]) -> dict[str, Any]:
    """The values of the attributes *names* in the row of *instance*."""
    if not names:
        return {}
    columns = [mapper.column_attrs[name].columns[0].label(name) for name in names]
    identity = zip(mapper.primary_key, inspect(instance).identity, strict=True)
    asked = select(*columns).select_from(mapper.selectable).where(*(column == value for column, value in identity))
    row = connection.execute(asked).mappings().one_or_none()
    # Without a row there is nothing to invalidate: it was deleted before.
    return dict.fromkeys(names) if row is None else {name: row[name] for name in names}
