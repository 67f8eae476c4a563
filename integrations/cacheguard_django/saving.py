"""Invalidates keys and tags when rows are saved or deleted."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from django.db import models
from django.db.models.signals import m2m_changed, post_delete, post_init, post_save

from cacheguard.errors import ConfigurationError
from cacheguard.extending import Duration, TextTemplate, roots_of, row_template

from .transactions import invalidate

_numbers = iter(range(2**62))
_lock = threading.Lock()


class SavedRows:
    """The handle that `invalidate_on_save` returns for a model, with `changed` and `disconnect`."""

    def __init__(
        self,
        model: type[models.Model],
        templates: Sequence[str],
        tags: Sequence[str],
        alias: str,
        settle: Duration | None,
    ) -> None:
        self._model, self._alias, self._settle = model, alias, settle
        self._keys = [_template(model, each, "keys") for each in templates]
        self._tags = [_template(model, each, "tags") for each in tags]
        fields = dict.fromkeys(field for each in (*self._keys, *self._tags) for field in each.fields)
        # A change of the row may change its keys. Then the entries under the old keys are invalidated, too.
        self._followed = tuple(name for name in fields if not _is_primary(model, name) and _is_field(model, name))
        self._fields = tuple(fields)
        self._throughs: list[Any] = []
        with _lock:
            self._name = f"cacheguard_django.{next(_numbers)}"

    def connect(self) -> None:
        """Listen to the model's signals."""
        post_save.connect(self._saved, dispatch_uid=self._name, weak=False)
        post_delete.connect(self._saved, dispatch_uid=self._name, weak=False)
        if self._followed:
            post_init.connect(self._made, dispatch_uid=self._name, weak=False)

    def disconnect(self) -> None:
        """Stop listening to the model's signals."""
        for signal in (post_save, post_delete, post_init):
            signal.disconnect(dispatch_uid=self._name)
        for through in self._throughs:
            m2m_changed.disconnect(sender=through, dispatch_uid=self._name)

    def changed(self, rows: Iterable[models.Model], *, using: str | None = None) -> None:
        """Invalidate the keys and tags of *rows*, as if each had been saved. For changes without signals.

        ``bulk_create``, ``bulk_update``, ``QuerySet.update`` and raw SQL send none. The invalidation waits for the
        COMMIT. If a field of a template changes, pass the rows both as they were before and as they are after.

        Args:
            rows: instances, or a queryset.
            using: the database whose COMMIT it waits for; by default that of the rows.
        """
        by_database: dict[str | None, tuple[dict[str, None], dict[str, None]]] = {}
        for row in rows:
            keys, tags = by_database.setdefault(using or row._state.db, ({}, {}))  # noqa: SLF001 - Django's documented place
            values = {name: getattr(row, name) for name in self._fields}
            keys.update(dict.fromkeys(self._texts(self._keys, values)))
            tags.update(dict.fromkeys(self._texts(self._tags, values)))
        for database, (keys, tags) in by_database.items():
            invalidate(*keys, tags=tags, alias=self._alias, using=database, settle=self._settle)

    def _texts(self, templates: Iterable[TextTemplate], values: Mapping[str, Any]) -> list[str]:
        return [each.text(values) for each in templates]

    def _made(self, sender: type[models.Model], instance: models.Model, **_: Any) -> None:
        if issubclass(sender, self._model):
            self._remember(instance)

    def _remember(self, instance: models.Model) -> None:
        """Note the current keys and tags of the row; a deferred field is not loaded."""
        known = {name: instance.__dict__[name] for name in self._followed if name in instance.__dict__}
        vars(instance._state).setdefault("cacheguard", {})[self._name] = known  # noqa: SLF001 - travels with the row

    def _saved(self, sender: type[models.Model], instance: models.Model, using: str | None = None, **_: Any) -> None:
        if not issubclass(sender, self._model):
            return
        now = {name: getattr(instance, name) for name in self._fields}
        texts = self._texts(self._keys, now), self._texts(self._tags, now)
        known = vars(instance._state).get("cacheguard", {}).get(self._name)  # noqa: SLF001 - as above
        if known:
            before = {**now, **known}
            texts[0].extend(self._texts(self._keys, before))
            texts[1].extend(self._texts(self._tags, before))
        invalidate(
            *dict.fromkeys(texts[0]), tags=dict.fromkeys(texts[1]), alias=self._alias, using=using, settle=self._settle
        )
        if self._followed:
            self._remember(instance)

    def follow(self, relation: str) -> None:
        """Listen to a many-to-many relation of the model, too."""
        field = getattr(self._model, relation, None)
        through = getattr(field, "through", None)
        if through is None:
            raise ConfigurationError(f"many_to_many must name relations of {self._model.__name__}, got {relation!r}")
        m2m_changed.connect(partial(self._related, relation), sender=through, dispatch_uid=self._name, weak=False)
        self._throughs.append(through)

    def _related(
        self,
        relation: str,
        instance: models.Model,
        action: str,
        model: type[models.Model],
        pk_set: set[Any] | None,
        using: str,
        **_: Any,
    ) -> None:
        if action not in {"post_add", "post_remove", "pre_clear"}:
            return
        if isinstance(instance, self._model):
            self.changed([instance], using=using)
        if issubclass(model, self._model):
            rows = model._default_manager.using(using)  # noqa: SLF001 - public API
            # The signal of clear() does not name the removed rows: they are queried before.
            self.changed(rows.filter(**{relation: instance} if pk_set is None else {"pk__in": pk_set}), using=using)


def invalidate_on_save(
    model: type[models.Model],
    *keys: str,
    tags: Sequence[str] = (),
    many_to_many: Sequence[str] = (),
    alias: str = "default",
    settle: Duration | None = None,
) -> SavedRows:
    """Invalidate keys and tags of a guard whenever a row of *model* is saved or deleted, after the COMMIT.

    If the transaction or the savepoint is rolled back, nothing is invalidated. Rows of proxies and of derived models
    count, too. If a save changes a field that a template uses, the entry under the old value is also invalidated. All
    rows of one transaction cost one round trip.

    ``bulk_create``, ``bulk_update``, ``QuerySet.update`` and raw SQL send no signals: call `SavedRows.changed` or
    `invalidate`.

    Args:
        model: a model.
        keys: templates over its attributes: ``"user:{pk}"``, ``"user:{email}"``.
        tags: likewise: ``"org:{org_id}"``.
        many_to_many: names of relations of the model; a row that is added to one, or removed, counts as saved.
        alias: of the cache.
        settle: the replica lag: how far the database that loaders read may be behind; None: not at all.

    Raises:
        KeyTemplateError: a template that does not fit the model.
        ConfigurationError: an option that cannot work.
    """
    if not _is_model(model):
        raise ConfigurationError(f"model must be a model, got {model!r}")
    if isinstance(tags, str) or isinstance(many_to_many, str):
        raise ConfigurationError("tags and many_to_many must be lists, got a text")
    if not keys and not tags:
        raise ConfigurationError("invalidate_on_save needs keys or tags: invalidate_on_save(User, 'user:{pk}')")
    rows = SavedRows(model, keys, tags, alias, settle)
    for relation in many_to_many:
        rows.follow(relation)
    rows.connect()
    return rows


def _is_model(model: Any) -> bool:
    return isinstance(model, type) and issubclass(model, models.Model)


def _template(model: type[models.Model], template: str, name: str) -> TextTemplate:
    if not isinstance(template, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigurationError(f"{name} must be templates, got {template!r}")
    roots = roots_of(template)
    known = [root for root in roots if root.isidentifier() and (hasattr(model, root) or _is_field(model, root))]
    return row_template(template, known, model.__name__)


def _is_primary(model: type[models.Model], name: str) -> bool:
    primary: Any = model._meta.pk  # noqa: SLF001 - public API
    return name == "pk" or (primary is not None and name in {primary.name, primary.attname})


def _is_field(model: type[models.Model], name: str) -> bool:
    return any(name in {field.name, getattr(field, "attname", None)} for field in model._meta.fields)  # noqa: SLF001 - public API
