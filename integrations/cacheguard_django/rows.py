"""What a model's templates make of its rows: texts of keys, tags and Bloom items, from what the database holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple, cast
from uuid import UUID

from django.core.exceptions import FieldDoesNotExist, ObjectDoesNotExist, ValidationError
from django.db import connections, models

from cacheguard import BloomFilter
from cacheguard.errors import ConfigurationError
from cacheguard.extending import TextTemplate, roots_of, row_item, row_template

CHUNK = 500  # rows in one SELECT: SQLite takes no more than 999 parameters
PLAIN = (str, int, bool, UUID)


class Texts(NamedTuple):
    """What belongs to some rows."""

    keys: dict[str, None]
    tags: dict[str, None]
    items: dict[tuple[BloomFilter, Any], None]

    def add(self, other: Texts) -> None:
        """Add what belongs to other rows."""
        self.keys.update(other.keys)
        self.tags.update(other.tags)
        self.items.update(other.items)


def no_texts() -> Texts:
    """What belongs to no rows."""
    return Texts({}, {}, {})


class Rows:
    """The rows of *model*, and what its templates make of them.

    Args:
        model: the model.
        keys: templates over its attributes.
        tags: likewise.
        bloom: templates of the items of Bloom filters.
    """

    def __init__(
        self,
        model: type[models.Model],
        keys: Sequence[str],
        tags: Sequence[str],
        bloom: Mapping[BloomFilter, str],
    ) -> None:
        self.model = model
        self._meta: Any = model._meta  # noqa: SLF001 - public API
        self.keys: list[TextTemplate] = [_template(model, each, "keys") for each in keys]
        self.tags: list[TextTemplate] = [_template(model, each, "tags") for each in tags]
        self.items: list[tuple[BloomFilter, Any, Any]] = [
            (each, roots_of(text), row_item(text, _known(model, text), model.__name__)) for each, text in bloom.items()
        ]
        roots = [root for each in (*self.keys, *self.tags) for root in each.fields]
        roots += [root for text in bloom.values() for root in roots_of(text)]
        self.roots: tuple[str, ...] = tuple(dict.fromkeys(roots))
        self.columns: dict[str, Any] = {root: field for root in self.roots if (field := self._column(root)) is not None}
        self.followed: tuple[str, ...] = tuple(name for name in self.columns if not self.is_primary(name))
        self.by_instance: bool = len(self.columns) < len(self.roots)  # a property, or something of a related row
        self.only_primary: bool = not self.followed and not self.by_instance

    def is_primary(self, name: str) -> bool:
        """True if *name* is the primary key."""
        return name == "pk" or self._column(name) is self._meta.pk

    def _column(self, name: str) -> Any:
        """The field whose column *name* is; None if it is no column, or a related row."""
        if name == "pk":
            return self._meta.pk
        for field in self._meta.concrete_fields:
            if name == field.attname or (name == field.name and not field.is_relation):
                return field
        return None

    def primary(self, value: Any) -> Any:
        """*value* as the primary key that the database has; `ConfigurationError` if it cannot be one."""
        try:
            return self._meta.pk.to_python(value)
        except (ValidationError, TypeError, ValueError) as error:
            raise ConfigurationError(f"not a primary key of {self.model.__name__}: {value!r}") from error

    def of_primary(self, primary: Any) -> Texts:
        """The texts of the row with this key, if they need nothing else. No SELECT."""
        return self._made(dict.fromkeys(self.roots, primary))

    def of_values(self, values: Mapping[str, Any]) -> Texts:
        """The texts of a row with these columns."""
        return self._made(values)

    def of_instance(self, row: models.Model) -> Texts:
        """The texts of an instance, from what it has in memory; none where a field is deferred."""
        loaded = vars(row)
        if any(field.attname not in loaded for name, field in self.columns.items() if not self.is_primary(name)):
            return no_texts()
        return self._made(_Attributes(row))

    def read(self, using: str, where: Mapping[str, Any], *, lock: bool = False) -> list[tuple[Any, Mapping[str, Any]]]:
        """The primary keys and the values of the rows that the database has. One SELECT.

        Args:
            using: the database.
            where: a filter.
            lock: True: locks the rows until the COMMIT, if there is a transaction: the statement that follows would do
                so anyway, but then it is too late to see what another transaction makes of the row meanwhile.
        """
        rows: Any = self.model._base_manager.using(using).filter(**where)  # noqa: SLF001 - public API
        connection: Any = connections[using]
        if lock and connection.in_atomic_block and connection.features.has_select_for_update:
            weak = connection.features.has_select_for_no_key_update
            rows = rows.select_for_update(no_key=True) if weak else rows.select_for_update()
        return list(self._read(rows))

    def _read(self, rows: Any) -> Iterator[tuple[Any, Mapping[str, Any]]]:
        if self.by_instance:
            for row in rows:
                yield row.pk, _Attributes(row)
            return
        for found in rows.order_by().values_list("pk", *[self.columns[name].attname for name in self.followed]):
            yield found[0], self.values(found[0], dict(zip(self.followed, found[1:], strict=True)))

    def values(self, primary: Any, followed: Mapping[str, Any]) -> dict[str, Any]:
        """The values of all names in the templates."""
        return {name: followed.get(name, primary) for name in self.roots}

    def of_all(self, using: str, primaries: Iterable[Any], field: str = "pk") -> Texts:
        """The texts of the rows with these keys, as the database has them. One SELECT for 500 rows, or none."""
        texts = no_texts()
        for chunk in chunks(dict.fromkeys(primaries)):
            if self.only_primary and field == "pk":
                for each in chunk:
                    texts.add(self.of_primary(self.primary(each)))
                continue
            for _, values in self.read(using, {f"{field}__in": chunk}):
                texts.add(self._made(values))
        return texts

    def written(
        self, row: models.Model, old: Mapping[str, Any] | None, names: frozenset[str] | None
    ) -> Mapping[str, Any] | None:
        """The values of a row that was just saved; None if only the database knows them.

        Args:
            row: the instance.
            old: the values before; None: there was no row.
            names: the fields that were written; None: all.
        """
        if self.by_instance:
            return None
        followed: dict[str, Any] = {}
        for name in self.followed:
            field = self.columns[name]
            if names is not None and field.name not in names and field.attname not in names:
                if old is None:
                    return None
                followed[name] = old[name]
                continue
            value = vars(row).get(field.attname, _UNKNOWN)
            if not _is_stored_as_it_is(field, value):
                return None
            followed[name] = value
        return self.values(self.primary(row.pk), followed)

    def _made(self, values: Mapping[str, Any]) -> Texts:
        texts = no_texts()
        for templates, found in ((self.keys, texts.keys), (self.tags, texts.tags)):
            for each in templates:
                text = _text(each, values)
                if text is not None:
                    found[text] = None
        for bloom, roots, item in self.items:
            if all(values[root] is not None for root in roots):  # nobody asks for the row by what is NULL
                texts.items[bloom, item(values)] = None
        return texts


_UNKNOWN = object()


class _Attributes(Mapping[str, Any]):
    """The attributes of an instance; a related row that does not exist is None."""

    def __init__(self, row: models.Model) -> None:
        self._row = row

    def __getitem__(self, name: str) -> Any:
        try:
            return getattr(self._row, name)
        except ObjectDoesNotExist:
            return None

    def __iter__(self) -> Iterator[str]:
        return iter(vars(self._row))

    def __len__(self) -> int:
        return len(vars(self._row))


def _text(template: TextTemplate, values: Mapping[str, Any]) -> str | None:
    """The text; None if a field is over a relation that is NULL: no reader can ask for such a row by it."""
    try:
        return template.text(values)
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            if (isinstance(cause, AttributeError) and cause.obj is None) or isinstance(cause, ObjectDoesNotExist):
                return None
            cause = cause.__cause__
        raise


def _is_stored_as_it_is(field: Any, value: Any) -> bool:
    """True if the database gives *value* back as it is: no expression, no other form, no field of another kind."""
    if value is None:
        return True
    kind = cast("type[object]", type(field))
    if type(value) not in PLAIN or not kind.__module__.startswith("django.db.models.fields"):
        return False
    if getattr(field, "generated", False) or hasattr(field, "from_db_value"):
        return False
    try:
        stored = field.to_python(value)
    except ValidationError:
        return False
    return type(stored) is type(value) and bool(stored == value)


def chunks(values: Iterable[Any]) -> Iterator[list[Any]]:
    """*values*, in lists of at most `CHUNK`."""
    rest = iter(values)
    while chunk := list(islice(rest, CHUNK)):
        yield chunk


def _template(model: type[models.Model], template: str, name: str) -> TextTemplate:
    if not isinstance(template, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigurationError(f"{name} must be templates, got {template!r}")
    return row_template(template, _known(model, template), model.__name__)


def _known(model: type[models.Model], template: str) -> list[str]:
    return [root for root in roots_of(template) if root.isidentifier() and (hasattr(model, root) or _has(model, root))]


def _has(model: type[models.Model], name: str) -> bool:
    try:
        model._meta.get_field(name)  # noqa: SLF001 - public API
    except FieldDoesNotExist:
        return any(name == getattr(field, "attname", None) for field in model._meta.fields)  # noqa: SLF001 - public API
    return True
