"""Invalidates keys and tags when rows are saved or deleted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

from asgiref.sync import sync_to_async
from django.db import models, router
from django.db.models.signals import (
    class_prepared,
    m2m_changed,
    post_delete,
    post_save,
    pre_delete,
    pre_save,
)

from cacheguard import BloomFilter
from cacheguard.errors import ConfigurationError
from cacheguard.extending import Duration

from .families import every_model, has_same_key, is_real, shared, tables
from .receivers import Receivers
from .relations import Links, Sides, set_by_django, sides_of
from .rows import Rows, Texts, no_texts
from .transactions import invalidate

_lock = threading.Lock()
_handles: list[SavedRows] = []  # those that listen

Act = Callable[[models.Model, str], object]


@dataclass
class Before:
    """What is known of a row before it is saved.

    Args:
        adding: True: the instance is new.
        found: the primary key and the values of the row, if there is one.
        had: what belonged to it.
        added: what has been added to Bloom filters.
    """

    adding: bool
    found: list[tuple[Any, Mapping[str, Any]]] = field(default_factory=list[tuple[Any, Mapping[str, Any]]])
    had: Texts = field(default_factory=no_texts)
    added: Texts = field(default_factory=no_texts)


class SavedRows:
    """The handle that `invalidate_on_save` returns for a model, with `changed`, `changing` and `disconnect`."""

    def __init__(
        self,
        model: type[models.Model],
        templates: Sequence[str],
        tags: Sequence[str],
        bloom: Mapping[BloomFilter, str],
        alias: str,
        settle: Duration | None,
    ) -> None:
        self.model = model
        self._rows = Rows(model, templates, tags, bloom)
        self._alias, self._settle, self._has_items = alias, settle, bool(bloom)
        self._sides: list[Sides] = []
        self._links = Links(model, self._changing_those)
        self._receivers = Receivers()
        self._seen: set[type[models.Model]] = set()
        self._over = False

    def follow(self, relation: str) -> None:
        """Listen to a many-to-many relation of the model, too."""
        self._sides.append(sides_of(self.model, relation))

    def connect(self) -> None:
        """Listen to the signals of the model and of those that share its rows, as `disconnect` ends it."""
        class_prepared.connect(self._prepared, dispatch_uid=self._receivers.name, weak=False)
        self._links.look()
        for each in every_model(self.model):
            self._listen(each)
        for number, sides in enumerate(self._sides):
            self._receivers.connect(m2m_changed, sides.through, f"m2m{number}", partial(self._related, sides))
        with _lock:
            _handles.append(self)

    def disconnect(self) -> None:
        """Stop listening to the model's signals."""
        with _lock:
            _handles[:] = [each for each in _handles if each is not self]
        class_prepared.disconnect(dispatch_uid=self._receivers.name)
        self._receivers.disconnect()
        self._over = True
        self._links.end()

    def changed(self, rows: object, *, using: str | None = None) -> None:
        """Invalidate the keys and tags of *rows*, as if each had been saved. For changes without signals.

        ``bulk_create``, ``bulk_update``, ``QuerySet.update`` and raw SQL send none. The invalidation waits for the
        COMMIT. It covers the rows as the database has them now, and instances also as they are in memory. If a field of
        a template changes, call this before and after the change, or use `changing`. One SELECT for 500 rows if the
        templates need more than the primary key. Items of Bloom filters are added at once.

        Args:
            rows: an instance, or an iterable of instances, of primary keys, or of the dicts of ``values()`` with the
                primary key; a queryset or a manager.
            using: the database; by default the one that they are written to.

        Raises:
            ConfigurationError: *rows* is something else, or rows of another model.
        """
        by_database: dict[str, Texts] = {}
        primaries: dict[str, list[Any]] = {}
        for database, row, primary, fresh in self._each(rows, using):
            texts = by_database.setdefault(database, no_texts())
            if row is not None and self._has_all(row):
                texts.add(self._rows.of_instance(row))
            if not fresh and primary is not None:
                primaries.setdefault(database, []).append(primary)
        for database, texts in by_database.items():
            texts.add(self._rows.of_all(database, primaries.get(database, ())))
            self._add_items(texts)
            self._invalidate(texts, database)

    async def achanged(self, rows: object, *, using: str | None = None) -> None:
        """`changed`, to be awaited."""
        await sync_to_async(self.changed)(rows, using=using)

    @contextmanager
    def changing(self, rows: object, *, using: str | None = None) -> Generator[None]:
        """Invalidate the keys and tags of *rows* as they are before and after the block, which changes them.

        For ``QuerySet.update``, ``bulk_update`` and raw SQL that change a field of a template. The invalidation waits
        for the COMMIT; it also comes after an exception. Two SELECTs for 500 rows.

        Args:
            rows: as for `changed`.
            using: the database; by default the one that they are written to.
        """
        primaries: dict[str, list[Any]] = {}
        for database, _, primary, _ in self._each(rows, using):
            primaries.setdefault(database, []).append(primary)
        before = {database: self._rows.of_all(database, each) for database, each in primaries.items()}
        try:
            yield
        finally:
            for database, texts in before.items():
                texts.add(self._rows.of_all(database, primaries[database]))
                self._add_items(texts)
                self._invalidate(texts, database)

    @contextmanager
    def _changing_those(self, values: Callable[[], Iterable[Any]], using: str, name: str) -> Generator[None]:
        """`changing`, for the rows that have one of *values* in the field *name*."""
        before = [row for row, _ in self._rows.read(using, {f"{name}__in": list(values())})]
        texts = self._rows.of_all(using, before)
        try:
            yield
        finally:
            texts.add(self._rows.of_all(using, before))
            self._invalidate(texts, using)

    def _each(self, rows: object, using: str | None) -> Iterable[tuple[str, models.Model | None, Any, bool]]:
        """Of each row: its database, the instance, the primary key, and whether the instance was read just now."""
        fresh = False
        given: Any = rows
        if isinstance(rows, models.Manager):
            given = given.all()
        if isinstance(rows, models.Manager | models.QuerySet):
            fresh = given._result_cache is None  # noqa: SLF001 - no other way to know
            # Not `given.db`: it may be a replica, where nobody commits, and which may be behind.
            using = using or given._db or router.db_for_write(given.model, **given._hints)  # noqa: SLF001 - as Django's own
            if fresh and using != given.db:
                given = given.using(using)
                given._known_related_objects = {}  # noqa: SLF001 - the row that a manager belongs to is of the other one
        elif isinstance(rows, models.Model):
            given = [rows]
        elif isinstance(rows, str | bytes | Mapping) or not isinstance(rows, Iterable):
            raise ConfigurationError(
                f"rows must be an instance of {self.model.__name__}, or an iterable of instances or primary keys, "
                f"got {rows!r}"
            )
        for each in given:
            yield self._one(each, using, fresh=fresh)

    def _one(self, row: Any, using: str | None, *, fresh: bool) -> tuple[str, models.Model | None, Any, bool]:
        if isinstance(row, models.Model):
            common = shared(self.model, type(row))
            if common is None:
                raise ConfigurationError(f"rows must be of {self.model.__name__}, got {row!r}")
            database = using or router.db_for_write(self.model, instance=row)  # where `save` would write it
            return (
                database,
                row,
                self._primary(row, database),
                fresh and self._has_all(row) and not row.get_deferred_fields(),
            )
        primary: Any = row
        if isinstance(row, Mapping):
            meta: Any = self.model._meta  # noqa: SLF001 - public API
            values = cast("Mapping[str, Any]", row)
            primary = next((values[name] for name in ("pk", meta.pk.name, meta.pk.attname) if name in values), None)
        if primary is None or isinstance(primary, list | tuple | set):
            raise ConfigurationError(
                f"rows must be instances of {self.model.__name__}, primary keys, or dicts with one, got {row!r}"
            )
        return using or router.db_for_write(self.model), None, self._rows.primary(primary), False

    def _primary(self, row: models.Model, using: str) -> Any:
        """The primary key of our row for a row of a model that shares a table with it; None if there is none."""
        common = shared(self.model, type(row))
        if common is None:
            return None
        pk: Any = common._meta.pk  # noqa: SLF001 - public API
        value = getattr(row, pk.attname, None)
        if value is None or has_same_key(self.model, common):
            return value
        return next((found for found, _ in self._rows.read(using, {pk.name: value})), None)

    def _has_all(self, row: models.Model) -> bool:
        """True if *row* has the attributes that the templates need."""
        if self._rows.by_instance:
            return isinstance(row, self.model)
        return next(iter(tables(self.model))) in tables(type(row))

    def _invalidate(self, texts: Texts, using: str | None) -> None:
        if texts.keys or texts.tags:
            invalidate(*texts.keys, tags=texts.tags, alias=self._alias, using=using, settle=self._settle)

    def _add_items(self, texts: Texts, but: Texts | None = None) -> None:
        """Add the items of rows to their filters, except those that the rows have had."""
        items: dict[BloomFilter, list[Any]] = {}
        for bloom, item in texts.items:
            if but is None or (bloom, item) not in but.items:
                items.setdefault(bloom, []).append(item)
        for bloom, each in items.items():
            bloom.add_many(each)

    # Signals

    def _prepared(self, sender: Any, **_: Any) -> None:
        def ready(model: type[models.Model]) -> None:
            if not self._over:
                self._links.look()
                self._listen(model)

        # After what waits for this class already: the relations to it.
        meta = sender._meta  # noqa: SLF001 - public API
        meta.apps.lazy_model_operation(ready, (meta.app_label, meta.model_name))

    def _listen(self, model: type[models.Model]) -> None:
        """Listen to *model*, if what happens to its rows may happen to ours."""
        if model in self._seen or not is_real(model):
            return
        self._seen.add(model)
        common = shared(self.model, model)
        if common is not None:
            if not self._rows.only_primary or self._has_items:
                self._receivers.connect(pre_save, model, "row", self._before_save)
            if not self._rows.only_primary:
                self._receivers.connect(pre_delete, model, "row", self._before_delete)
            self._receivers.connect(post_save, model, "row", self._saved)
            self._receivers.connect(post_delete, model, "row", self._deleted)
        for target, key in set_by_django(self.model):
            if shared(target, model) is not None:
                self._around_deletion(model, f"set {key.name}", partial(self._set_by, key))
        for number, sides in enumerate(self._sides):
            self._listen_to_sides(model, f"{number}", sides)

    def _listen_to_sides(self, model: type[models.Model], number: str, sides: Sides) -> None:
        """Listen to *model*, if it is the other side of a many-to-many relation, or the program's own model between."""
        for ours, other in sides.watched:
            if shared(other.related_model, model) is not None:
                self._around_deletion(model, f"partner{number}{ours.name}", partial(sides.partners_of, ours, other))
        if not sides.is_hidden and shared(sides.through, model) is not None:
            self._follow_through(model, f"through{number}", sides)

    def _around_deletion(
        self, model: type[models.Model], name: str, primaries: Callable[[models.Model, str], list[Any]]
    ) -> None:
        """When a row of *model* is deleted, ours with *primaries* change: before and after it, they are looked at."""

        def before(instance: models.Model, using: str, **_: Any) -> None:
            found = primaries(instance, using)
            self._receivers.note(instance, name, (found, self._rows.of_all(using, found)))

        def after(instance: models.Model, using: str, **_: Any) -> None:
            noted: tuple[list[Any], Texts] = self._receivers.noted(instance, name) or ([], no_texts())
            found, texts = noted
            texts.add(self._rows.of_all(using, found))
            self._invalidate(texts, using)

        self._receivers.connect(pre_delete, model, name, before)
        self._receivers.connect(post_delete, model, name, after)

    def _set_by(self, key: Any, instance: models.Model, using: str) -> list[Any]:
        value = getattr(instance, key.target_field.attname, None)
        return [row for row, _ in self._rows.read(using, {key.attname: value})]

    def _follow_through(self, model: type[models.Model], name: str, sides: Sides) -> None:
        """Rows of a model between two that is the program's own are saved and deleted like others."""

        def named(instance: models.Model, using: str, *, old: bool) -> dict[Any, list[Any]]:
            row: Any = instance
            if old:
                row = sides.through._base_manager.using(using).filter(pk=instance.pk).first()  # noqa: SLF001 - public API
            if row is None:
                return {}
            return {ours: [getattr(row, ours.attname, None)] for ours, _ in sides.watched}

        def touch(found: dict[Any, list[Any]], using: str) -> None:
            texts = no_texts()
            for ours, values in found.items():
                texts.add(self._rows.of_all(using, values, _name_of_target(ours)))
            self._invalidate(texts, using)

        def before(instance: models.Model, using: str, **_: Any) -> None:
            self._receivers.note(instance, name, named(instance, using, old=True))

        def after(instance: models.Model, using: str, **_: Any) -> None:
            touch(named(instance, using, old=False), using)
            touch(self._receivers.noted(instance, name) or {}, using)

        self._receivers.connect(pre_save, model, name, before)
        self._receivers.connect(pre_delete, model, name, before)
        self._receivers.connect(post_save, model, name, after)
        self._receivers.connect(post_delete, model, name, after)

    def _before_save(
        self, instance: models.Model, using: str, update_fields: frozenset[str] | None = None, **_: Any
    ) -> None:
        before = Before(instance._state.adding)  # noqa: SLF001 - documented
        primary = self._primary(instance, using)
        if primary is not None and not self._rows.only_primary:
            before.found = self._rows.read(using, {"pk": primary}, lock=True)
        for _, values in before.found:
            before.had.add(self._rows.of_values(values))
        if primary is not None and self._rows.only_primary and not before.adding:
            before.had.add(self._rows.of_primary(self._rows.primary(primary)))
        if self._has_items and primary is not None:
            # Before the row is there: a save without a transaction is committed before `post_save`.
            now = self._written(instance, before, update_fields)
            if now is not None:
                self._add_items(now, before.had)
                before.added.add(now)
        self._receivers.note(instance, "row", before)

    def _written(self, instance: models.Model, before: Before, names: frozenset[str] | None) -> Texts | None:
        """The texts that the row has when it is saved; None if only the database knows them."""
        old = before.found[0][1] if before.found else None
        values = self._rows.written(instance, old, names) if self._has_all(instance) else None
        return None if values is None else self._rows.of_values(values)

    def _saved(self, instance: models.Model, using: str, update_fields: frozenset[str] | None = None, **_: Any) -> None:
        before = cast("Before", self._receivers.noted(instance, "row") or Before(adding=False))
        primary = self._primary(instance, using)
        texts = no_texts()
        if primary is not None:
            written = self._written(instance, before, update_fields)
            texts.add(self._rows.of_all(using, [primary]) if written is None else written)
        if self._has_items:
            texts_before = no_texts()
            texts_before.add(before.had)
            texts_before.add(before.added)
            self._add_items(texts, texts_before)
        texts.add(before.had)
        self._invalidate(texts, using)

    def _before_delete(self, instance: models.Model, using: str, **_: Any) -> None:
        primary = self._primary(instance, using)
        texts = no_texts()
        for _, values in [] if primary is None else self._rows.read(using, {"pk": primary}, lock=True):
            texts.add(self._rows.of_values(values))
        self._receivers.note(instance, "deleted", texts)

    def _deleted(self, instance: models.Model, using: str, **_: Any) -> None:
        texts = cast("Texts", self._receivers.noted(instance, "deleted") or no_texts())
        primary = self._primary(instance, using) if self._rows.only_primary else None
        if primary is not None:
            texts.add(self._rows.of_primary(self._rows.primary(primary)))
        self._invalidate(texts, using)

    def _related(
        self, sides: Sides, instance: models.Model, action: str, pk_set: set[Any] | None, using: str, **given: Any
    ) -> None:
        if action not in {"post_add", "post_remove", "pre_clear"}:
            return
        texts = no_texts()
        for ours, values in sides.touched(instance, using, pk_set, reverse=bool(given.get("reverse"))).items():
            texts.add(self._rows.of_all(using, values, _name_of_target(ours)))
        self._invalidate(texts, using)


def _name_of_target(key: Any) -> str:
    """The name of the column that the foreign key *key* refers to, in a filter."""
    target = key.target_field
    return "pk" if target.primary_key else str(target.attname)


def changed(model: type[models.Model], rows: object, *, using: str | None = None) -> None:
    """`SavedRows.changed`, for all that `invalidate_on_save` watches of *model*, whoever has called it.

    Raises:
        ConfigurationError: nobody watches *model*, or *rows* are no rows of it.
    """
    if not is_real(model):
        raise ConfigurationError(f"model must be a model, got {model!r}")
    watching = [each for each in tuple(_handles) if shared(each.model, model) is not None]
    if not watching:
        raise ConfigurationError(f"nobody has called invalidate_on_save for {model.__name__}")
    given: Any = rows
    if hasattr(given, "__next__"):  # it can be read only once
        given = list(given)
    for each in watching:
        each.changed(given, using=using)


def invalidate_on_save(
    model: type[models.Model],
    *keys: str,
    tags: Sequence[str] = (),
    many_to_many: Sequence[str] = (),
    bloom: BloomFilter | Mapping[BloomFilter, str] | None = None,
    alias: str = "default",
    settle: Duration | None = None,
) -> SavedRows:
    """Invalidate keys and tags of a guard whenever a row of *model* is saved or deleted, after the COMMIT.

    If the transaction or the savepoint is rolled back, nothing is invalidated. The row counts, whatever model it is
    saved through: proxies, parents and children. So do ``SET_NULL`` and its like, and the managers of the other side of
    a foreign key. If a field of a template changes, the entry under the old value is also invalidated: one SELECT
    before each UPDATE or DELETE of a row, and a second one after an UPDATE whose result only the database knows. All
    rows of one transaction cost one round trip.

    ``bulk_create``, ``bulk_update``, ``QuerySet.update`` and raw SQL send no signals: call `SavedRows.changed` or
    `invalidate`.

    Args:
        model: a model.
        keys: templates over its attributes: ``"user:{pk}"``, ``"user:{email}"``. Where a relation is NULL, a template
            over it names nothing.
        tags: likewise: ``"org:{org_id}"``.
        many_to_many: names of relations of the model; a row that is added to one, or removed, counts as saved. So does
            one whose partner is deleted.
        bloom: a Bloom filter of the primary keys, or a mapping of filters to templates of their items. Items are added
            before the COMMIT (one round trip each); a save raises `Unreachable` if a filter with
            ``on_unreachable="raise"`` cannot take them.
        alias: of the cache.
        settle: the replica lag: how far the database that loaders read may be behind; None: not at all.

    Raises:
        KeyTemplateError: a template that does not fit the model.
        ConfigurationError: an option that cannot work.
    """
    if not is_real(model):
        raise ConfigurationError(f"model must be a model with a table, got {model!r}")
    if isinstance(tags, str) or isinstance(many_to_many, str):
        raise ConfigurationError("tags and many_to_many must be lists, got a text")
    filters = _filters(bloom)
    if not keys and not tags and not filters:
        raise ConfigurationError("invalidate_on_save needs keys or tags: invalidate_on_save(User, 'user:{pk}')")
    rows = SavedRows(model, keys, tags, filters, alias, settle)
    for relation in many_to_many:
        rows.follow(relation)
    rows.connect()
    return rows


def _filters(bloom: Any) -> Mapping[BloomFilter, str]:
    if bloom is None:
        return {}
    given: Any = {bloom: "{pk}"} if isinstance(bloom, BloomFilter) else bloom
    if not isinstance(given, Mapping) or not all(isinstance(each, BloomFilter) for each in cast("Any", given)):
        raise ConfigurationError(f"bloom must be a Bloom filter, or a mapping of filters to templates, got {bloom!r}")
    filters = cast("Mapping[BloomFilter, Any]", given)
    for template in filters.values():
        if not isinstance(template, str):
            raise ConfigurationError(f"bloom must have templates like '{{pk}}', got {template!r}")
    return filters
