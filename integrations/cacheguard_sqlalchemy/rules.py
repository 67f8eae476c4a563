"""Templates over the column attributes of a row → the keys and tags that a change of the row touches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

from sqlalchemy import Column, inspect
from sqlalchemy.orm import ColumnProperty, Mapper

from cacheguard import BloomFilter, Change
from cacheguard.errors import ConfigurationError, KeyTemplateError
from cacheguard.extending import TextTemplate, roots_of, row_item, row_template

OfRow: TypeAlias = Callable[[Any], "str | Iterable[str]"]
Template: TypeAlias = "str | OfRow"


@dataclass(frozen=True, slots=True, kw_only=True)
class Touches:
    """The keys and tags that a change of a row of one model touches.

    Args:
        keys: templates over the column attributes of the row, like ``"user:{id}"``; or functions of the instance that
            return one key text or several.
        tags: likewise, like ``"org:{org_id}"``.
        bulk: tags that cover every change of a bulk statement in this model. With them, the rows that the statement
            touches are not read.
        bloom: a Bloom filter of the primary keys, or a mapping of filters to templates of their items:
            ``{users: "{id}"}``. What is inserted, or gets another item, is added before COMMIT, in one round trip for
            each filter. Where `BloomFilter.add` raises, nothing is committed. A statement whose new items are unknown
            is refused.
    """

    keys: Sequence[Template] = ()
    tags: Sequence[Template] = ()
    bulk: Sequence[str] = ()
    bloom: BloomFilter | Mapping[BloomFilter, str] | None = None


@dataclass(frozen=True, slots=True)
class Fed:
    """A Bloom filter that holds an item for each row of a model.

    Args:
        attributes: those that the item is made of.
        item: makes it.
    """

    bloom: BloomFilter
    attributes: tuple[str, ...]
    item: Callable[[Mapping[str, Any]], object]


@dataclass(frozen=True, slots=True)
class Named:
    """One template of a model."""

    is_tag: bool
    template: TextTemplate
    of_primary_key: bool

    def change(self, values: Mapping[str, Any], version: int | None) -> Change:
        text = self.template.text(values)
        return Change(tag=text) if self.is_tag else Change(text, version=version if self.of_primary_key else None)


@dataclass(frozen=True, slots=True)
class Rules:
    """The templates of one model, checked.

    Args:
        attributes: the column attributes that the templates use.
        bulk: the tags that cover a bulk statement.
    """

    mapper: Mapper[Any]
    named: tuple[Named, ...]
    functions: tuple[tuple[bool, OfRow], ...]
    bulk: tuple[Change, ...]
    version: str | None = None
    attributes: tuple[str, ...] = field(default=())
    fed: tuple[Fed, ...] = ()

    @property
    def item_attributes(self) -> tuple[str, ...]:
        """The attributes that the items of Bloom filters are made of."""
        return tuple(dict.fromkeys(name for each in self.fed for name in each.attributes))

    @property
    def model(self) -> str:
        return self.mapper.class_.__name__

    def of_values(self, values: Mapping[str, Any], *, deleted: bool = False) -> list[Change]:
        """The changes for the values of `attributes` (and of the version)."""
        version = values.get(self.version) if self.version and not deleted else None
        version = version if isinstance(version, int) and not isinstance(version, bool) else None
        return [named.change(values, version) for named in self.named]

    def of_known(self, values: Mapping[str, Any]) -> tuple[list[Change], list[str]]:
        """The same if some values are missing: the changes that are known, and the attributes that are missing."""
        changes: list[Change] = []
        missing: list[str] = []
        for named in self.named:
            unknown = [name for name in named.template.fields if name not in values]
            missing += unknown
            if not unknown:
                changes.append(named.change(values, None))
        return changes, missing

    def of_instance(self, instance: Any) -> list[Change]:
        """The changes that the functions return for *instance*."""
        changes: list[Change] = []
        for is_tag, function in self.functions:
            said = function(instance)
            texts = [said] if isinstance(said, str) else said
            changes += [Change(tag=text) if is_tag else Change(text) for text in texts]
        return changes


def rules_of(models: Any, *, versions: bool) -> dict[type, Rules]:
    """Check *models*, the argument of `invalidate_on_commit`; `ConfigurationError` for what cannot work."""
    given: Any = models
    if not isinstance(models, Mapping) or not models:
        raise ConfigurationError(f"models must be a mapping like {{User: ['user:{{id}}']}}, got {given!r}")
    return {model: _rules(model, given[model], versions) for model in given}


def _rules(model: Any, touched: Any, versions: bool) -> Rules:  # noqa: FBT001 - handed on as it came
    mapper = _mapper(model)
    touches = touched if isinstance(touched, Touches) else Touches(keys=touched)
    keys, tags = _checked(mapper, "keys", touches.keys), _checked(mapper, "tags", touches.tags)
    bulk = _checked(mapper, "bulk", touches.bulk)
    columns = column_attributes(mapper)
    fed = _fed(mapper, columns, touches.bloom)
    if not keys and not tags and not bulk and not fed:
        raise ConfigurationError(
            f"models[{mapper.class_.__name__}] names no keys, tags, bulk tags or filters, got {touched!r}"
        )
    primary = {mapper.get_property_by_column(column).key for column in mapper.primary_key}
    named: list[Named] = []
    functions: list[tuple[bool, OfRow]] = []
    for is_tag, each in [*((False, key) for key in keys), *((True, tag) for tag in tags)]:
        if isinstance(each, str):
            template = _template(mapper, columns, each)
            named.append(Named(is_tag, template, set(template.fields) == primary))
        else:
            functions.append((is_tag, each))
    if any(not isinstance(tag, str) for tag in bulk):
        raise ConfigurationError(f"bulk of {mapper.class_.__name__} must be tags, got {touches.bulk!r}")
    fields = dict.fromkeys(name for each in named for name in each.template.fields)
    version = _version_attribute(mapper) if versions else None
    if version is not None:
        fields[version] = None
    return Rules(
        mapper,
        tuple(named),
        tuple(functions),
        tuple(_tag(mapper, tag) for tag in bulk),
        version,
        tuple(fields),
        fed,
    )


def _fed(mapper: Mapper[Any], columns: tuple[str, ...], given: Any) -> tuple[Fed, ...]:
    name = mapper.class_.__name__
    if given is None:
        return ()
    if isinstance(given, BloomFilter):
        key = [mapper.get_property_by_column(column).key for column in mapper.primary_key]
        if len(key) != 1:
            raise ConfigurationError(
                f"bloom of {name} must say what its items are, like {{a_filter: '{{{key[0]}}}:{{{key[1]}}}'}}: "
                f"the primary key has several columns, {', '.join(key)}"
            )
        given = {given: f"{{{key[0]}}}"}
    listed: Any = given
    if not isinstance(given, Mapping) or not all(isinstance(each, BloomFilter) for each in listed):
        raise ConfigurationError(
            f"bloom of {name} must be a filter, or a mapping of filters to templates, got {given!r}"
        )
    fed: list[Fed] = []
    for bloom, text in cast("Mapping[BloomFilter, Any]", given).items():
        if not isinstance(text, str):
            raise ConfigurationError(f"bloom of {name} must have templates like '{{id}}', got {text!r}")
        _check_roots(columns, text, name)
        fed.append(Fed(bloom, tuple(roots_of(text)), row_item(text, columns, name)))
    return tuple(fed)


def column_attributes(mapper: Mapper[Any]) -> tuple[str, ...]:
    """The attributes of the row that are columns."""
    return tuple(each.key for each in mapper.column_attrs if isinstance(each.columns[0], Column))


def _mapper(model: Any) -> Mapper[Any]:
    found: Any = None
    if isinstance(model, type):
        found = inspect(cast("Any", model), raiseerr=False)
    if not _is_mapper(found):
        raise ConfigurationError(f"models must have mapped classes as its keys, got {model!r}")
    mapper: Mapper[Any] = found
    return mapper


def _is_mapper(found: object) -> bool:
    return isinstance(found, Mapper)


def _checked(mapper: Mapper[Any], what: str, given: Any) -> list[Any]:
    name = mapper.class_.__name__
    try:
        listed: list[Any] = [] if isinstance(given, str) else [*given]
    except TypeError:
        listed = []
    if isinstance(given, str) or (not listed and given not in ((), [])):
        raise ConfigurationError(f"{what} of {name} must be a list of templates, got {given!r}")
    for each in listed:
        if not (isinstance(each, str) and each) and not callable(each):
            raise ConfigurationError(f"{what} of {name} must be templates or functions of the instance, got {each!r}")
    return listed


def _template(mapper: Mapper[Any], columns: tuple[str, ...], text: str) -> TextTemplate:
    name = mapper.class_.__name__
    _check_roots(columns, text, name)
    return row_template(text, columns, name)


def _check_roots(columns: tuple[str, ...], text: str, name: str) -> None:
    for root in roots_of(text):
        if root not in columns:
            raise KeyTemplateError(
                f"template {text!r} of {name}: {{{root}}} is no column attribute; they are: {', '.join(columns)}"
            )


def _tag(mapper: Mapper[Any], tag: str) -> Change:
    if "{" in tag:
        raise ConfigurationError(f"bulk of {mapper.class_.__name__} must be tags without fields, got {tag!r}")
    return Change(tag=tag)


def _version_attribute(mapper: Mapper[Any]) -> str | None:
    column = mapper.version_id_col
    if column is None:
        return None
    found = mapper.get_property_by_column(cast("Any", column))
    return found.key if isinstance(found, ColumnProperty) else None
