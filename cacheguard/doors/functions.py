"""A decorated function: its key, and the steps of a call that the index of arguments did not answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from inspect import Parameter, Signature, signature
from typing import Any

from ..checks import is_coroutine_function, plain_function
from ..codec import ClassCodecs, Codec, class_codecs, return_codec
from ..engine.ask import Ask, opened, stored_of
from ..engine.reading import Engine
from ..errors import ConfigurationError, KeyTemplateError
from ..events import log
from ..keys import (
    UNBOUND,
    VARIADIC,
    KeyMaker,
    Owner,
    TextTemplate,
    called_as_bound,
    compile_key,
    given_values,
    quick_key,
    signature_of,
)
from ..policy import Rules
from ..process.hub import Hub
from ..protocol.envelope import Kind
from ..protocol.exceptions import absent
from ..protocol.names import Scope
from ..runtime import run_now
from ..tiers.copies import copied
from ..tiers.held import Shelf
from .bloom import BloomFilter, item_of
from .once import refuse_once
from .per_request import refuse_per_request
from .wrapper import IndexKey, as_given, caller, wrapper

_BY_POSITION = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


class Given(tuple[Any, ...]):  # noqa: SLOT001 - a tuple with slots cannot have attributes
    """The values of all parameters, for a function that sees how its arguments were given."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    named: dict[str, Any]
    """The values that were given, by parameter."""


class Function:
    """One decorated function and its options."""

    fn: Callable[..., Any]
    hub: Hub
    is_async: bool
    rules: Rules
    scope: Scope
    version: Callable[[Any], object] | None

    def __init__(
        self,
        hub: Hub,
        scope: Scope,
        fn: Callable[..., Any],
        template: str | None,
        rules: Rules,
        *,
        tags: Sequence[str],
        version: Callable[[Any], object] | None,
        bloom: BloomFilter | None,
        bloom_item: str | None,
        validate: Callable[..., object] | None,
        by: object,
    ) -> None:
        """*by*: the decorator; functions of one decorator object share their keys on purpose."""
        refuse_once(fn)
        refuse_per_request(fn, template)
        self.fn, self.rules, self.is_async = fn, rules, is_coroutine_function(fn)
        self.signature: Signature = signature_of(fn)
        self._names = tuple(self.signature.parameters)
        self._positions = {name: position for position, name in enumerate(self._names)}
        self._call = caller(self.signature)
        self.is_plain: bool = called_as_bound(fn)
        by_position = all(each.kind in _BY_POSITION for each in self.signature.parameters.values())
        self._exact = len(self._names) if self.is_plain and by_position else -1
        self.hub, self.scope, self.version = hub, scope, version
        self._shared = hub.shared
        self._keys: KeyMaker = compile_key(template, fn, closures=hub.owners.closures)
        self._template = template or self._keys.pattern  # as `CacheGuard.hot` shows it
        self._key_positions = tuple(self._positions[name] for name in self._keys.fields)
        self._quick_key = (
            quick_key(self._keys, scope.prefix, self._key_positions) if isinstance(self._keys, TextTemplate) else None
        )
        # Without a template, the name of a class is all that a key says of it.
        self._classes = () if template else self._key_positions
        self._tags = tuple(TextTemplate(_text(tag, "tags"), fn) for tag in _tags(tags))
        self.codec: Codec = hub.options.codec or return_codec(fn)
        hub.registry.register(self.codec)
        self._by_class: ClassCodecs | None = class_codecs(fn) if hub.options.codec is None else None
        self._bloom = bloom
        self._item_names: tuple[str, ...] = ()
        self._item = None if bloom is None else self._item_of(bloom_item)
        if bloom is None and bloom_item is not None:
            raise ConfigurationError(f"bloom_item={bloom_item!r} needs bloom=")
        self._validate = None if validate is None else self._checked(validate)
        self.guarded: bool = self._bloom is not None or self._validate is not None
        for kind in rules.not_found:
            hub.registry.raised.setdefault(f"{kind.__module__}:{kind.__qualname__}", kind)
        if self.guarded and rules.not_found:
            self._check_absent(rules.not_found[0])
        # The parameters of `validate` and the filter are part of the index's key: a hit must not skip their checks.
        indexed_by = (*self._keys.fields, *(name for name in self._guard_names() if name not in self._keys.fields))
        self._index_positions = tuple(self._positions[name] for name in indexed_by)
        self._shelf = Shelf(self._template) if self._can_index(indexed_by) else None
        self._indexed_by = indexed_by
        self._index_key = IndexKey(indexed_by, self._texts() if template else ())
        of_tags = [name for tag in self._tags for name in tag.fields]
        self._needed = {*(self._keys.fields if template else ()), *of_tags, *self._guard_names()}
        warning = hub.owners.claim(scope.prefix, self._keys.pattern, Owner(fn, by), templated=template is not None)
        if warning is not None:
            log.warning(warning)
        self._copy = copied if hub.options.l1_copy else None
        self._owner = _owner(fn, self._names)

    def _check_absent(self, kind: type[Exception]) -> None:
        """`validate` and the filter raise the first class of ``not_found``: it must be possible to make one."""
        try:
            absent(kind, "")
        except Exception as error:
            raise ConfigurationError(
                f"not_found: {kind.__qualname__} is what validate= and bloom= raise for an absent key, and it cannot "
                f"be made of one text or of nothing ({error}); put a class first that can"
            ) from error

    def _can_index(self, names: Sequence[str]) -> bool:
        kinds = [self.signature.parameters[name].kind for name in names]
        # An auditor samples all hits, so no hit may be answered by the index.
        return (
            self.rules.l1 and self.hub.auditor is None and bool(kinds) and not any(kind in VARIADIC for kind in kinds)
        )

    def _guard_names(self) -> list[str]:
        """Return the parameters that `validate` and the Bloom filter read."""
        if self._validate is not None:
            return [name for name in self._names if name not in {"self", "cls"}]
        return list(self._item_names)

    def _texts(self) -> set[str]:
        """Return the parameters annotated as text."""
        return {name for name, each in self.signature.parameters.items() if each.annotation in (str, "str")}

    def _item_of(self, item: str | None) -> Callable[[tuple[Any, ...]], object]:
        """Return the function that makes the filter's item from the arguments of a call."""
        if item is not None:
            text = TextTemplate(_text(item, "bloom_item"), self.fn, escaped=False)
            if not text.fields:
                raise ConfigurationError(f"bloom_item={item!r} names no parameter of {_name(self.fn)}")
            self._item_names = text.fields
            positions = [self._positions[name] for name in text.fields]
            return lambda values: item_of(text, [values[position] for position in positions])
        own = [name for name in self._names if not (self._positions[name] == 0 and name in {"self", "cls"})]
        if len(own) != 1 or self.signature.parameters[own[0]].kind in VARIADIC:
            raise ConfigurationError(
                f"bloom_item is needed: {_name(self.fn)} has the parameters ({', '.join(self._names)}), "
                f"say which of them the filter holds, like bloom_item='{{{own[0] if own else 'id'}}}'"
            )
        self._item_names = (own[0],)
        position = self._positions[own[0]]
        return lambda values: values[position]

    def _checked(self, asked: Any) -> Callable[..., object]:
        validate = plain_function("validate", asked, "of the same parameters")
        try:
            theirs = signature(validate)
        except (TypeError, ValueError):
            return validate
        try:
            self._call(theirs.bind, self._samples())
        except TypeError as error:
            raise ConfigurationError(
                f"validate{theirs} does not take the parameters of {_name(self.fn)}{self.signature}: {error}"
            ) from None
        return validate

    def _samples(self) -> tuple[Any, ...]:
        empty: dict[Any, Any] = {Parameter.VAR_POSITIONAL: (), Parameter.VAR_KEYWORD: {}}
        return tuple(empty.get(each.kind) for each in self.signature.parameters.values())

    # Values and keys of a call

    def values(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """Return the values of all parameters, with defaults; ``self`` is optional if the key does not use it."""
        if len(args) == self._exact and not kwargs and self._owner is None:
            return tuple(args)  # nothing to bind
        if self._lacks_owner(args):
            if self._names[0] in self._keys.fields:
                raise self._needs_owner("key")
            args = (None, *args)
        if not self.is_plain:
            return self._given(args, kwargs)
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return tuple(bound.arguments[name] for name in self._names)

    def _given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Given:
        """Return the values of all parameters; one that is missing may come from a decorator below."""
        values, named = given_values(self.fn, self.signature, self._needed, args, kwargs)
        given = Given(values.values())
        given.args, given.kwargs, given.named = args, kwargs, named
        return given

    def _is_owner(self, value: object) -> bool:
        kind = value if isinstance(value, type) else type(value)
        return any(f"{each.__module__}.{each.__qualname__}" == self._owner for each in kind.__mro__)

    def runnable_values(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """`values` for a load; a method needs its instance for it."""
        if self._owner is not None and self._lacks_owner(args):
            raise self._needs_owner("refresh")
        return self.values(args, kwargs)

    def _lacks_owner(self, args: tuple[Any, ...]) -> bool:
        return self._owner is not None and not (args and self._is_owner(args[0]))

    def _needs_owner(self, method: str) -> TypeError:
        owner, name = self._names[0], _name(self.fn)
        return TypeError(f"{name} needs its {owner} here: give it first, as in {name}.{method}({owner}, …)")

    def many_values(self, calls: Iterable[Any]) -> list[tuple[Any, ...]]:
        """Return the values of several calls, each a tuple of arguments, or the bare value of the only argument."""
        return [self.runnable_values(arguments_of(call), {}) for call in calls]

    def call(self, values: tuple[Any, ...]) -> Any:
        """Call the function itself; one that would see the difference as it was called."""
        if isinstance(values, Given):
            return self.fn(*values.args, **values.kwargs)
        return self._call(self.fn, values)

    def redis_key(self, values: tuple[Any, ...]) -> str:
        """Return the Redis key."""
        key = None if self._quick_key is None else self._quick_key(values)
        return self.scope.key(self.text(values)) if key is None else key

    def text(self, values: tuple[Any, ...]) -> str:
        """Return the key text."""
        for position in self._classes:
            self._check_class(values[position])
        return self._keys.text_of(*[values[position] for position in self._key_positions])

    def _check_class(self, kind: Any) -> None:
        """Refuse a second class of one name: a class of a function is made anew at each call of that function."""
        if isinstance(kind, type) and "<locals>" in kind.__qualname__:
            try:
                self.hub.owners.claim_class(kind)
            except ValueError as error:
                raise KeyTemplateError(f"{_name(self.fn)} needs a key template: {error}") from None

    def tags(self, values: tuple[Any, ...]) -> tuple[str, ...]:
        """Return the tags of the entry."""
        if not self._tags:
            return ()
        return tuple(tag.text_of(*[values[self._positions[name]] for name in tag.fields]) for tag in self._tags)

    def codec_of(self, values: tuple[Any, ...]) -> Codec:
        """Return the codec of a call with *values*."""
        if self._by_class is None:
            return self.codec
        kinds = tuple(values[self._positions[name]] for name in self._by_class.variables)
        if not all(isinstance(kind, type) for kind in kinds):
            return self.codec
        codec = self._by_class.of(kinds)
        self.hub.registry.register(codec)
        return codec

    def ask(self, values: tuple[Any, ...]) -> Ask:
        """Return the request to the engine for a call with *values*."""
        # What most functions have none of is not called: this is on the way of every hit in Redis.
        return Ask(
            self.redis_key(values),
            self.rules,
            self.codec if self._by_class is None else self.codec_of(values),
            lambda: self.call(values),
            self.tags(values) if self._tags else (),
            self.scope,
            self.version,
            template=self._template,
        )

    # The steps of a call that the index did not answer

    def read(self, values: tuple[Any, ...]) -> Any:
        """Answer a call in a thread, if the index did not."""
        if self._shared.off:
            return self.call(values)
        if self.guarded and (rejected := self.rejected(values)) is not False:
            if rejected is None:
                rejected = run_now(self.asked_bloom(self.hub.blocking(), values))
            if rejected:
                return self.nothing(values)
        ask = self.ask(values)
        answer = self.from_l1(ask, values) if self.rules.l1 else None
        if answer is not None:
            if self.hub.auditor is not None:
                run_now(self.hub.auditor.consider(self.hub.blocking(l2=self.rules.l2), ask, answer()))
            return answer()
        value = run_now(self.hub.blocking(l2=self.rules.l2).read(ask))
        if self._shelf is not None:
            self.bind(ask.key, values)
        return value

    async def aread(self, values: tuple[Any, ...]) -> Any:
        """Answer a call in an event loop, if the index did not."""
        if self._shared.off:
            return await self.call(values)
        if self.guarded and (rejected := self.rejected(values)) is not False:
            if rejected is None:
                rejected = await self.asked_bloom(self.hub.running(), values)
            if rejected:
                return self.nothing(values)
        ask = self.ask(values)
        answer = self.from_l1(ask, values) if self.rules.l1 else None
        if answer is not None:
            if self.hub.auditor is not None:
                await self.hub.auditor.consider(self.hub.running(l2=self.rules.l2), ask, answer())
            return answer()
        value = await self.hub.running(l2=self.rules.l2).read(ask)
        if self._shelf is not None:
            self.bind(ask.key, values)
        return value

    def rejected(self, values: tuple[Any, ...]) -> bool | None:
        """Return True if `validate` or the filter says "absent" for *values*; None if only Redis can decide."""
        hub = self.hub
        if self._validate is not None and not self._call(self._validate, values):
            hub.events.validate_rejects += 1
            return True
        if self._bloom is None or self._item is None:
            return False
        known = self._bloom.known(self._item(values))
        hub.events.bloom_rejects += known is True
        return known

    async def asked_bloom(self, engine: Engine, values: tuple[Any, ...]) -> bool:
        assert self._bloom is not None  # noqa: S101 - called only if there is a filter
        assert self._item is not None  # noqa: S101
        absent = await self._bloom.tier.absent(engine.runtime, self._item(values))
        self.hub.events.bloom_rejects += absent
        return absent

    def nothing(self, values: tuple[Any, ...]) -> None:
        """Answer "absent": None, or the first of the ``not_found`` exceptions."""
        if self.rules.not_found:
            raise absent(self.rules.not_found[0], self.text(values))

    def from_l1(self, ask: Ask, values: tuple[Any, ...]) -> Callable[[], Any] | None:
        """Return the answer of L1 by key text, if L1 has one."""
        entry = self.hub.local.alive(ask.key) if self.rules.l1 else None
        if entry is None:
            return None
        self.bind(ask.key, values)
        return partial(opened, stored_of(entry), self.rules)

    def bind(self, key: str, values: tuple[Any, ...]) -> None:
        """Put the entry into the index under these arguments, so that the next call finds it there."""
        if self._shelf is None:
            return
        if isinstance(values, Given):
            found = self._index_key.of([values.named.get(name, UNBOUND) for name in self._indexed_by])
        else:
            found = self._index_key.of([values[position] for position in self._index_positions])
        entry = self.hub.local.find(key)
        if found is not None and entry is not None and entry.common.kind != Kind.ERROR:
            self.hub.local.bind(key, entry, self._shelf, *found)

    def index_wrapper(self) -> Callable[..., Any]:
        """Return a function with the same parameters that answers hits from the index itself."""
        index = None if self._shelf is None else self._shelf.index
        options: dict[str, Any] = {
            "is_async": self.is_async,
            "now": self.hub.now,
            "touch": self.hub.local.touch if self.hub.local.touches else None,
            "copy": self._copy,
        }
        if self.is_plain:
            slow = self.aread if self.is_async else self.read
            return wrapper(self.signature, self._index_key, index, slow, **options)
        given = self._aread_given if self.is_async else self._read_given
        return as_given(self.signature, self._indexed_by, self._index_key, index, given, **options)

    def _read_given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.read(self._given(args, kwargs))

    async def _aread_given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return await self.aread(self._given(args, kwargs))


def _name(fn: Callable[..., Any]) -> str:
    return getattr(fn, "__qualname__", repr(fn))


def arguments_of(call: Any) -> tuple[Any, ...]:
    """Return the arguments of one of several calls: a tuple, or the bare value of the only argument."""
    return call if issubclass(type(call), tuple) else (call,)


def _text(value: object, name: str) -> str:
    if not isinstance(value, str) or not value:
        raise KeyTemplateError(f"{name} must be text, got {value!r}")
    return value


def _tags(tags: Any) -> Sequence[str]:
    if issubclass(type(tags), str) or not issubclass(type(tags), Sequence):
        raise ConfigurationError(f"tags must be a list of texts, got {tags!r}")
    texts: Sequence[str] = tags
    return texts


def _owner(fn: Callable[..., Any], names: Sequence[str]) -> str | None:
    """Return the name of the class that defines *fn* as a method; the class does not exist yet while decorating."""
    scope = _name(fn).rpartition(".")[0]
    if not names or names[0] not in {"self", "cls"} or not scope or scope.endswith("<locals>"):
        return None
    return f"{fn.__module__}.{scope}"
