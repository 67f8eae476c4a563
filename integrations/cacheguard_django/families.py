"""Which models share a row: proxies, and the parents and children of multi-table inheritance."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.db import models


def tables(model: type[models.Model]) -> dict[type[models.Model], None]:
    """The models whose tables a row of *model* is in, its own first."""
    meta: Any = model._meta.concrete_model._meta  # type: ignore[union-attr] # noqa: SLF001 - public API
    parents = [parent._meta.concrete_model for parent in meta.get_parent_list()]  # noqa: SLF001 - public API
    return dict.fromkeys([meta.model, *parents])


def shared(one: type[models.Model], other: type[models.Model]) -> type[models.Model] | None:
    """The model whose table both have; None if a row of one is never a row of the other."""
    mine = tables(one)
    return next((each for each in tables(other) if each in mine), None)


def is_real(model: Any) -> bool:
    """True for a model with a table."""
    if not (isinstance(model, type) and issubclass(model, models.Model)):
        return False
    meta: Any = model._meta  # noqa: SLF001 - public API
    return not meta.abstract and not meta.swapped


def every_model(model: type[models.Model]) -> Iterator[type[models.Model]]:
    """All models so far, also while Django is still loading them."""
    registry: Any = model._meta.apps  # noqa: SLF001 - public API
    for of_app in list(registry.all_models.values()):
        yield from list(of_app.values())


def has_same_key(model: type[models.Model], parent: type[models.Model]) -> bool:
    """True if the primary key of *model* is that of *parent*, by links from child to parent."""
    concrete: Any = model._meta.concrete_model  # noqa: SLF001 - public API
    while concrete is not parent:
        pk: Any = concrete._meta.pk  # noqa: SLF001 - public API
        if pk.remote_field is None or not pk.remote_field.parent_link:
            return False
        concrete = pk.remote_field.model._meta.concrete_model  # noqa: SLF001 - public API
    return True
