"""Facts from SQLAlchemy: the models that a SELECT makes objects of, and the values of a row before a flush."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, inspect, select
from sqlalchemy.orm import Mapper, ORMExecuteState, Session


def loaded_mappers(state: ORMExecuteState) -> set[Mapper[Any]]:
    """The models of which a SELECT makes objects, and the models related to them."""
    described: list[Any] = getattr(state.statement, "column_descriptions", [])
    entities = [
        each["entity"] for each in described if each.get("entity") is not None and each["expr"] is each["entity"]
    ]
    mappers = {inspect(entity).mapper for entity in entities}
    return mappers.union(*({each.mapper for each in mapper.relationships} for mapper in mappers))


def changed_names(instance: Any, attributes: Iterable[str]) -> bool:
    """True if one of *attributes* is known to have changed."""
    attrs = inspect(instance).attrs
    return any(attrs[name].history.has_changes() for name in attributes)


def values_before(
    mapper: Mapper[Any], connection: Connection, instance: Any, attributes: Iterable[str]
) -> dict[str, Any]:
    """The values that the row had before this flush. Values that were never loaded are queried."""
    values, unknown = known_before(instance, attributes)
    return values | _asked(mapper, connection, instance, unknown)


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
    """The values that the row has after a flush. Values that the database has set are queried.

    The session would query them, too, but with the criteria that an application adds to its SELECTs: the row may be
    hidden by now.
    """
    held = inspect(instance).dict
    values = {name: held[name] for name in attributes if name in held}
    unknown = [name for name in attributes if name not in held]
    if unknown:
        connection = session.connection(bind_arguments={"mapper": mapper})
        values |= _asked(mapper, connection, instance, unknown)
    return values


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
