"""Facts from SQLAlchemy: the models that a SELECT makes objects of, and the values of a row before a flush."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, inspect, select
from sqlalchemy.orm import Mapper, ORMExecuteState


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
    if unknown:
        columns = [mapper.column_attrs[name].columns[0].label(name) for name in unknown]
        identity = zip(mapper.primary_key, state.identity, strict=True)
        asked = select(*columns).select_from(mapper.selectable).where(*(column == value for column, value in identity))
        row = connection.execute(asked).mappings().one_or_none()
        if row is not None:
            values.update({name: row[name] for name in unknown})
        else:  # deleted already: nothing to invalidate
            values.update(dict.fromkeys(unknown))
    return values
