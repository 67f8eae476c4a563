"""Association tables: which rows of watched models a row of such a table links."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast
from weakref import WeakKeyDictionary

from sqlalchemy import Table
from sqlalchemy.orm import Mapper

from .rules import Rules


@dataclass(frozen=True, slots=True)
class End:
    """One end of a many-to-many relationship.

    Args:
        mapper: of the model at this end.
        own: its columns that the association table refers to.
        linking: the columns of the association table with their values.
        rules: of the watched models whose rows may be at this end.
    """

    mapper: Mapper[Any]
    own: tuple[Any, ...]
    linking: tuple[Any, ...]
    rules: tuple[Rules, ...]


class Links:
    """The ends of association tables. Each table is looked for when it is first asked for: models may come late."""

    def __init__(self, rules: Sequence[Rules]) -> None:
        self._rules = rules
        self._ends: WeakKeyDictionary[Table, tuple[End, ...]] = WeakKeyDictionary()

    def ends(self, table: Any) -> tuple[End, ...]:
        """The ends of *table* at which watched models are; none if it is no association table."""
        found = self._ends.get(table)
        if found is None:
            found = self._ends[table] = self._found(table)
        return found

    def _found(self, table: Any) -> tuple[End, ...]:
        ends: dict[tuple[Any, ...], End] = {}
        for registry in {each.mapper.registry for each in self._rules}:
            for mapper in registry.mappers:
                for relationship in mapper.relationships:
                    if cast("Any", relationship.secondary) is table:
                        self._add(ends, relationship.parent, relationship.synchronize_pairs)
                        self._add(ends, relationship.mapper, relationship.secondary_synchronize_pairs or ())
        return tuple(ends.values())

    def _add(self, ends: dict[tuple[Any, ...], End], mapper: Mapper[Any], pairs: Iterable[tuple[Any, Any]]) -> None:
        rules = tuple(each for each in self._rules if mapper.isa(each.mapper) or each.mapper.isa(mapper))
        listed = list(pairs)
        if rules and listed:
            own, linking = zip(*listed, strict=True)
            ends.setdefault((mapper, linking), End(mapper, own, linking, rules))
