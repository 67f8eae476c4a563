"""What Django changes in a row through its relations, mostly without a signal of the row itself."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# Django makes the managers of related rows at run time: they have no types.

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from django.db import models, router

from cacheguard.errors import ConfigurationError

from .families import shared

Changing = Callable[[Callable[[], Iterable[Any]], str, str], AbstractContextManager[None]]

# With these, the rows that refer to a deleted one are deleted with signals of their own, or stop it, or stay.
_OTHERWISE_HEARD = (models.CASCADE, models.PROTECT, models.RESTRICT, models.DO_NOTHING)


def set_by_django(model: type[models.Model]) -> Iterator[tuple[type[models.Model], Any]]:
    """The foreign keys of *model* that the deletion of another row sets (``SET_NULL`` and its like), with its model."""
    for field, target in _foreign_keys(model):
        if field.remote_field.on_delete not in _OTHERWISE_HEARD:
            yield target, field


def _foreign_keys(model: type[models.Model]) -> Iterator[tuple[Any, type[models.Model]]]:
    for field in model._meta.concrete_fields:  # noqa: SLF001 - public API
        remote: Any = field.remote_field
        if remote is not None and isinstance(remote.model, type):  # a text until the other model is there
            yield field, remote.model


class Sides:
    """A many-to-many relation: the model between two, and which of its foreign keys refer to rows that are watched.

    Args:
        through: the model between.
        source: its foreign key to the model that has the field.
        target: its foreign key to the other one.
        model: the watched model.
        symmetrical: True: each row between stands for a second one.
    """

    def __init__(self, through: Any, source: Any, target: Any, model: type[models.Model], *, symmetrical: bool) -> None:
        self.through: Any = through
        self._source, self._target, self._symmetrical = source, target, symmetrical
        pairs = ((source, target), (target, source))
        # Pairs: the foreign key to our row, and the one to its partner.
        self.watched: list[tuple[Any, Any]] = [
            (one, other) for one, other in pairs if shared(one.related_model, model) is not None
        ]

    @property
    def is_hidden(self) -> bool:
        """True if Django made the model between, and sends none of its signals."""
        return bool(self.through._meta.auto_created)  # noqa: SLF001 - public API

    def partners_of(self, ours: Any, other: Any, instance: models.Model, using: str) -> list[Any]:
        """The values of *ours* in the rows between that refer to *instance* by *other*. One SELECT."""
        value = getattr(instance, other.target_field.attname, None)
        found = self.through._base_manager.using(using).filter(**{other.attname: value})  # noqa: SLF001 - public API
        return list(found.values_list(ours.attname, flat=True))

    def touched(
        self, instance: models.Model, using: str, partners: set[Any] | None, *, reverse: bool
    ) -> dict[Any, list[Any]]:
        """The watched rows of a change from the side of *instance*, by foreign key.

        Args:
            instance: its row.
            using: the database.
            partners: of the rows of the other side; None: all that there are, for the signal of ``clear`` names none.
            reverse: True: the instance is on the side that *target* refers to.
        """
        mine, other = (self._target, self._source) if reverse else (self._source, self._target)
        watched = [ours for ours, _ in self.watched]
        found: dict[Any, list[Any]] = {}
        if mine in watched:
            found.setdefault(mine, []).append(getattr(instance, mine.target_field.attname, None))
        if other in watched:
            if partners is not None:
                found.setdefault(other, []).extend(partners)
            else:
                found.setdefault(other, []).extend(self.partners_of(other, mine, instance, using))
                if self._symmetrical:
                    found.setdefault(mine, []).extend(self.partners_of(mine, other, instance, using))
        return found


def sides_of(model: type[models.Model], relation: str) -> Sides:
    """The sides of the relation of *model* with this name; `ConfigurationError` if there is none."""
    descriptor: Any = getattr(model, str(relation), None)
    through = getattr(descriptor, "through", None)
    if through is None:
        raise ConfigurationError(f"many_to_many must name relations of {model.__name__}, got {relation!r}")
    field = descriptor.rel.field
    meta = through._meta  # noqa: SLF001 - public API
    source, target = meta.get_field(field.m2m_field_name()), meta.get_field(field.m2m_reverse_field_name())
    return Sides(through, source, target, model, symmetrical=bool(descriptor.rel.symmetrical))


class Links:
    """Hears of the managers of the other side: ``org.member_set.add(…)`` changes rows without any signal.

    Args:
        model: the watched model.
        changing: makes the block around a change, from the values of a field in the changed rows, the database and the
            field's name.
    """

    def __init__(self, model: type[models.Model], changing: Changing) -> None:
        self._model, self._changing = model, changing
        self._heard: dict[Any, Any] = {}  # the manager that there was, by descriptor
        self._over = False

    def look(self) -> None:
        """Hear of the foreign keys of the model; of those to a model that is not there yet, at the next look."""
        for field, target in _foreign_keys(self._model):
            name = field.remote_field.get_accessor_name()
            if name is None or field.one_to_one:
                continue
            descriptor: Any = next((vars(each)[name] for each in target.__mro__ if name in vars(each)), None)
            if descriptor is None or descriptor in self._heard or not hasattr(descriptor, "related_manager_cls"):
                continue
            before = descriptor.related_manager_cls
            self._heard[descriptor] = before
            # A cached property of the descriptor: what is put there is what it gives.
            descriptor.__dict__["related_manager_cls"] = _hearing(before, self.around)

    def around(self, rows: Callable[[], Iterable[Any]], using: str, name: str) -> AbstractContextManager[None]:
        """The block around a change."""
        return nullcontext() if self._over else self._changing(rows, using, name)

    def end(self) -> None:
        """Hear of nothing any more."""
        self._over = True  # for managers that others have put theirs over
        for descriptor, before in self._heard.items():
            if descriptor.__dict__["related_manager_cls"].cacheguard_around == self.around:
                descriptor.__dict__["related_manager_cls"] = before
        self._heard.clear()


def _hearing(kind: Any, around: Changing) -> Any:
    """A manager of related rows like *kind*, which says what it changes."""

    class HearingManager(kind):  # type: ignore[misc]  # made at run time, as Django makes its own
        cacheguard_around = staticmethod(around)

        def __call__(self, *, manager: str) -> Any:
            other: Any = super().__call__(manager=manager)
            other.__class__ = _hearing(type(other), around)
            return other

        def add(self, *objs: Any, bulk: bool = True) -> None:
            with _block(self, around, objs):
                super().add(*objs, bulk=bulk)

        def remove(self, *objs: Any, **options: Any) -> None:
            with _block(self, around, objs):
                super().remove(*objs, **options)

        def clear(self, **options: Any) -> None:
            with _block(self, around, None):
                super().clear(**options)

    for name in ("remove", "clear"):  # Django has them only where the foreign key may be NULL
        if not hasattr(kind, name):
            delattr(HearingManager, name)
    HearingManager.__name__, HearingManager.__qualname__ = kind.__name__, kind.__qualname__
    return HearingManager


def _block(manager: Any, around: Changing, objs: Iterable[Any] | None) -> AbstractContextManager[None]:
    """The block around a change of *objs*; None: of all rows of *manager*."""
    using = manager._db or router.db_for_write(manager.model, instance=manager.instance)  # noqa: SLF001 - as Django's own
    pk = manager.model._meta.pk  # noqa: SLF001 - public API

    def rows() -> list[Any]:
        if objs is not None:
            return [each.pk for each in objs if isinstance(each, models.Model)]
        field = manager.field
        value = getattr(manager.instance, field.target_field.attname)
        found = manager.model._base_manager.using(using).filter(**{field.attname: value})  # noqa: SLF001 - public API
        return list(found.values_list("pk", flat=True))

    return around(rows, using, pk.name)
