"""A decorated function: its key, its defences, and the methods that hang on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from functools import update_wrapper
from inspect import (
    Parameter,
    isasyncgenfunction,
    iscoroutinefunction,
    isgeneratorfunction,
    signature,
)
from typing import TYPE_CHECKING, Any, Final

from .codec import Codec, return_codec
from .engine import Engine, opened, stored_of
from .errors import ConfigurationError, KeyTemplateError
from .generated import caller, index_key, wrapper
from .hub import Hub
from .keys import KeyMaker, TextTemplate, compile_key, redis_key
from .loading import Ask
from .policy import Rules
from .runtime import run_now
from .tiers.local import Index
from .tiers.remote import Stored

if TYPE_CHECKING:
    from .bloom import BloomFilter

MOST_LOADS_OF_MANY = 16


class Missing:
    """Type of `MISSING`, the absence of a value; ``None`` is a value."""

    _only: Missing | None = None

    def __new__(cls) -> Missing:
        """The one instance."""
        if cls._only is None:
            cls._only = super().__new__(cls)
        return cls._only

    def __repr__(self) -> str:
        return "MISSING"

    def __bool__(self) -> bool:
        return False

    def __reduce__(self) -> str:
        return "MISSING"


MISSING: Final = Missing()

_SCALARS = (int, str, bytes, bool, float, type(None))


def copied(value: Any) -> Any:
    """A copy that its receiver may change."""
    return value if type(value) in _SCALARS else deepcopy(value)


class Function:
    """What a guard knows of one decorated function."""

    def __init__(
        self,
        hub: Hub,
        prefix: str,
        fn: Callable[..., Any],
        template: str | None,
        rules: Rules,
        *,
        tags: Sequence[str],
        bloom: BloomFilter | None,
        bloom_item: str | None,
        validate: Callable[..., object] | None,
    ) -> None:
        if isasyncgenfunction(fn) or isgeneratorfunction(fn):
            raise ConfigurationError(f"{_name(fn)} is a generator: its items cannot be cached, return a list")
        self.fn, self.rules, self.is_async = fn, rules, iscoroutinefunction(fn)
        self.signature = signature(fn)
        self._names = tuple(self.signature.parameters)
        self._places = {name: place for place, name in enumerate(self._names)}
        self._call = caller(self.signature)
        self._hub, self._prefix = hub, prefix
        self._keys: KeyMaker = compile_key(template, fn)
        self._key_places = tuple(self._places[name] for name in self._keys.fields)
        self._tags = tuple(TextTemplate(_text(tag, "tags"), fn) for tag in _tags(tags))
        self._codec: Codec = hub.options.codec or return_codec(fn)
        hub.registry.register(self._codec)
        self._bloom = bloom
        self._item = None if bloom is None else self._item_of(bloom_item)
        if bloom is None and bloom_item is not None:
            raise ConfigurationError(f"bloom_item={bloom_item!r} needs bloom=")
        self._validate = None if validate is None else self._checked(validate)
        self._guarded = self._bloom is not None or self._validate is not None
        self._index: Index | None = {} if self._can_index() else None
        self._copy = copied if hub.options.l1_copy else None
        self._owner = _owner(fn, self._names)

    def _can_index(self) -> bool:
        variadic = (Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL)
        keyed_by = [self.signature.parameters[name] for name in self._keys.fields]
        return self.rules.l1 and bool(keyed_by) and not any(each.kind in variadic for each in keyed_by)

    def _item_of(self, item: str | None) -> Callable[[tuple[Any, ...]], object]:
        """How a call's arguments become the item that the filter is asked about."""
        if item is not None:
            text = TextTemplate(_text(item, "bloom_item"), self.fn, escaped=False)
            if not text.fields:
                raise ConfigurationError(f"bloom_item={item!r} names no parameter of {_name(self.fn)}")
            places = [self._places[name] for name in text.fields]
            return lambda values: text.text_of(*[values[place] for place in places])
        own = [name for name in self._names if not (self._places[name] == 0 and name in {"self", "cls"})]
        if len(own) != 1 or self.signature.parameters[own[0]].kind in (Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL):
            raise ConfigurationError(
                f"bloom_item is needed: {_name(self.fn)} has the parameters ({', '.join(self._names)}), "
                f"say which of them the filter holds, like bloom_item='{{{own[0] if own else 'id'}}}'"
            )
        place = self._places[own[0]]
        return lambda values: values[place]

    def _checked(self, validate: Callable[..., object]) -> Callable[..., object]:
        if not callable(validate) or iscoroutinefunction(validate):
            raise ConfigurationError(f"validate must be a plain function of the same parameters, got {validate!r}")
        try:
            theirs = signature(validate)
        except (TypeError, ValueError):
            return validate
        try:
            self._call(lambda *args, **kwargs: theirs.bind(*args, **kwargs), self._samples())
        except TypeError as error:
            raise ConfigurationError(
                f"validate{theirs} does not take the parameters of {_name(self.fn)}{self.signature}: {error}"
            ) from None
        return validate

    def _samples(self) -> tuple[Any, ...]:
        empty: dict[Any, Any] = {Parameter.VAR_POSITIONAL: (), Parameter.VAR_KEYWORD: {}}
        return tuple(empty.get(each.kind) for each in self.signature.parameters.values())

    # What a call is called

    def values(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
        """The values of all parameters, defaults included; ``self`` may be left out where the key does not need it."""
        if self._owner is not None and not (args and self._is_owner(args[0])):
            args = (None, *args)
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return tuple(bound.arguments[name] for name in self._names)

    def _is_owner(self, value: object) -> bool:
        kind = value if isinstance(value, type) else type(value)
        return any(f"{each.__module__}.{each.__qualname__}" == self._owner for each in kind.__mro__)

    def needs_owner(self, args: tuple[Any, ...]) -> None:
        """`TypeError` if *args* lack the instance that a load of this method needs."""
        if self._owner is not None and not (args and self._is_owner(args[0])):
            raise TypeError(
                f"{_name(self.fn)} is a method and has to be run here: give the instance first, as in "
                f"{self.fn.__qualname__}.refresh(instance, …)"
            )

    def text(self, values: tuple[Any, ...]) -> str:
        """The key text."""
        return self._keys.text_of(*[values[place] for place in self._key_places])

    def tags(self, values: tuple[Any, ...]) -> tuple[str, ...]:
        """The tags of an entry."""
        if not self._tags:
            return ()
        return tuple(tag.text_of(*[values[self._places[name]] for name in tag.fields]) for tag in self._tags)

    def ask(self, values: tuple[Any, ...], text: str | None = None) -> Ask:
        """The question that a call with *values* puts to the engine."""
        key = redis_key(self._prefix, self.text(values) if text is None else text)
        return Ask(key, self.rules, self._codec, lambda: self._call(self.fn, values), self.tags(values))

    # What a call does when its arguments led to no entry

    def read(self, values: tuple[Any, ...]) -> Any:
        """The rest of a call in a thread."""
        hub = self._hub
        if hub.off:
            return self._call(self.fn, values)
        if self._guarded and (rejected := self._rejected(values)) is not False:
            if rejected is None:
                rejected = run_now(self._asked_bloom(hub.blocking(), values))
            if rejected:
                return self._nothing(values)
        ask = self.ask(values)
        answer = self._from_l1(ask, values)
        if answer is MISSING:
            engine = hub.blocking(l2=self.rules.l2)
            answer = run_now(engine.read(ask))
            self._bind(ask.key, values)
        return answer if self._copy is None else self._copy(answer)

    async def aread(self, values: tuple[Any, ...]) -> Any:
        """The rest of a call in an event loop."""
        hub = self._hub
        if hub.off:
            return await self._call(self.fn, values)
        if self._guarded and (rejected := self._rejected(values)) is not False:
            if rejected is None:
                rejected = await self._asked_bloom(hub.running(), values)
            if rejected:
                return self._nothing(values)
        ask = self.ask(values)
        answer = self._from_l1(ask, values)
        if answer is MISSING:
            engine = hub.running(l2=self.rules.l2)
            answer = await engine.read(ask)
            self._bind(ask.key, values)
        return answer if self._copy is None else self._copy(answer)

    def _rejected(self, values: tuple[Any, ...]) -> bool | None:
        """Whether *values* are known to lead to nothing; None if Redis must be asked."""
        hub = self._hub
        if self._validate is not None and not self._call(self._validate, values):
            hub.events.validate_rejects += 1
            return True
        if self._bloom is None or self._item is None:
            return False
        known = self._bloom.known(self._item(values))
        hub.events.bloom_rejects += known is True
        return known

    async def _asked_bloom(self, engine: Engine, values: tuple[Any, ...]) -> bool:
        assert self._bloom is not None  # noqa: S101 - only a filter has something to ask
        assert self._item is not None  # noqa: S101
        absent = await self._bloom.tier.absent(engine.runtime, self._item(values))
        self._hub.events.bloom_rejects += absent
        return absent

    def _nothing(self, values: tuple[Any, ...]) -> None:
        """The answer for what does not exist."""
        if self.rules.not_found:
            kind = self.rules.not_found[0]
            try:
                raise kind(self.text(values))
            except TypeError:
                raise kind from None

    def _from_l1(self, ask: Ask, values: tuple[Any, ...]) -> Any:
        """The in-process answer by key text, when the arguments alone did not lead to it."""
        if not self.rules.l1:
            return MISSING
        entry = self._hub.local.find(ask.key)
        if entry is None or self._hub.now() >= entry.until:
            return MISSING
        entry.hits += 1
        self._hub.local.touch(entry)
        self._bind(ask.key, values)
        return opened(stored_of(entry), self.rules)

    def _bind(self, key: str, values: tuple[Any, ...]) -> None:
        """Let these arguments lead straight to the entry from now on."""
        if self._index is None:
            return
        found = index_key([values[place] for place in self._key_places])
        entry = self._hub.local.find(key)
        if found is not None and entry is not None and not isinstance(entry.value, Exception):
            self._hub.local.bind(entry, self._index, *found)

    def make_wrapper(self) -> Callable[..., Any]:
        """The function that takes the place of the decorated one."""
        made = wrapper(
            self.signature,
            self._keys.fields,
            self._index,
            self.aread if self.is_async else self.read,
            is_async=self.is_async,
            touch=self._hub.local.touch if self._hub.local.touches else None,
            copy=self._copy,
        )
        update_wrapper(made, self.fn)
        methods = AsyncMethods(self) if self.is_async else Methods(self)
        for name in ("invalidate", "expire", "refresh", "peek", "put", "key", "many"):
            setattr(made, name, getattr(methods, name))
        made.cacheguard = self  # type: ignore[attr-defined]  # for `warm`
        return made

    # What both colours of methods share, as coroutines

    async def invalidate(self, engine: Engine, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Remove the entry of these arguments."""
        await self._hub.tell(engine.invalidate, [redis_key(self._prefix, self.text(self.values(args, kwargs)))])

    async def expire(self, engine: Engine, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Make the entry of these arguments stale."""
        await self._hub.tell(engine.expire, [redis_key(self._prefix, self.text(self.values(args, kwargs)))])

    async def refresh(self, engine: Engine, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Load anew and fill."""
        self.needs_owner(args)
        return await engine.refresh(self.ask(self.values(args, kwargs)))

    async def peek(self, engine: Engine, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a call would answer without a load."""
        ask = self.ask(self.values(args, kwargs))
        entry = self._hub.local.find(ask.key) if self.rules.l1 else None
        if entry is not None and self._hub.now() < entry.until:
            return value_or_missing(stored_of(entry))
        answers = await engine.peek([ask.key], self._codec, self.rules)
        return value_or_missing(answers[ask.key][0]) if answers else MISSING

    async def put(self, engine: Engine, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Store *value* as the answer for these arguments."""
        ask = self.ask(self.values(args, kwargs))
        await self._hub.put(engine, {ask.key: value}, self.rules, {ask.key: self._codec}, ask.tags)

    async def many(self, engine: Engine, calls: Iterable[Any], most: int) -> list[Any]:
        """The answers for several calls: those that Redis has in one round trip, the others one by one."""
        many = [self.many_values(each) for each in calls]
        asks = [self.ask(values) for values in many]
        answers: dict[str, Any] = {}
        wanted: dict[str, Ask] = {}
        for ask, values in zip(asks, many, strict=True):
            rejected = self._rejected(values) if self._guarded else False
            if rejected is None:
                rejected = await self._asked_bloom(engine, values)
            if rejected:
                answers.setdefault(ask.key, _Later(lambda values=values: self._nothing(values)))
            elif (answer := self._l1_later(ask, values)) is not None:
                answers.setdefault(ask.key, answer)
            else:
                wanted.setdefault(ask.key, ask)
        if wanted:
            survey = await engine.survey(wanted)
            for key, stored in survey.there.items():
                answers[key] = _Later(lambda stored=stored: opened(stored, self.rules))
            works = [
                lambda key=key, found=found: engine.rebuild(wanted[key], found, cut_off=survey.cut_off)
                for key, found in survey.missing.items()
            ]
            answers |= zip(survey.missing, await engine.runtime.each(works, most), strict=True)
        results: list[Any] = []
        for ask in asks:
            answer = answers[ask.key]
            value = answer.make() if isinstance(answer, _Later) else answer
            results.append(value if self._copy is None else self._copy(value))
        return results

    def many_values(self, call: Any) -> tuple[Any, ...]:
        """The values of one of several calls: a tuple of arguments, or the bare value of the only one."""
        return self.values(call if isinstance(call, tuple) else (call,), {})

    def _l1_later(self, ask: Ask, values: tuple[Any, ...]) -> _Later | None:
        entry = self._hub.local.find(ask.key) if self.rules.l1 else None
        if entry is None or self._hub.now() >= entry.until:
            return None
        entry.hits += 1
        self._bind(ask.key, values)
        stored = stored_of(entry)
        return _Later(lambda: opened(stored, self.rules))

    @property
    def l2(self) -> bool:
        """Whether Redis is used."""
        return self.rules.l2

    @property
    def hub(self) -> Hub:
        """The guard's inside."""
        return self._hub


class _Later:
    """An answer that may turn out to be an exception, once somebody wants it."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make


def value_or_missing(stored: Stored) -> Any:
    """The value, or `MISSING` for a cached exception."""
    return MISSING if stored.kind.name == "ERROR" else stored.value


class Methods:
    """What hangs on a decorated function; each takes the arguments of the call that it is about."""

    def __init__(self, function: Function) -> None:
        self._function = function

    def _engine(self) -> Engine:
        return self._function.hub.blocking(l2=self._function.l2)

    def invalidate(self, *args: Any, **kwargs: Any) -> None:
        """Remove the entry of this call everywhere. One round trip."""
        run_now(self._function.invalidate(self._engine(), args, kwargs))

    def expire(self, *args: Any, **kwargs: Any) -> None:
        """Make the entry of this call stale: still there for when the load fails or is slow. One round trip."""
        run_now(self._function.expire(self._engine(), args, kwargs))

    def refresh(self, *args: Any, **kwargs: Any) -> Any:
        """Load this call anew, fill both tiers, return the new value. Two round trips."""
        return run_now(self._function.refresh(self._engine(), args, kwargs))

    def peek(self, *args: Any, **kwargs: Any) -> Any:
        """What this call would answer without a load; `MISSING` if nothing. At most one round trip."""
        return run_now(self._function.peek(self._engine(), args, kwargs))

    def put(self, value: Any, /, *args: Any, **kwargs: Any) -> None:
        """Store *value* as the answer of this call. One round trip; `CodecError` if it has no bytes."""
        run_now(self._function.put(self._engine(), value, args, kwargs))

    def key(self, *args: Any, **kwargs: Any) -> str:
        """The key text of this call, as `invalidate` and `inspect` of the guard take it."""
        return self._function.text(self._function.values(args, kwargs))

    def many(self, calls: Iterable[Any]) -> list[Any]:
        """The answers of several calls, in their order; each a tuple of arguments, or the value of the only one."""
        return run_now(self._function.many(self._engine(), calls, 1))


class AsyncMethods:
    """What hangs on a decorated coroutine function; the same as `Methods`, to be awaited."""

    def __init__(self, function: Function) -> None:
        self._function = function

    def _engine(self) -> Engine:
        return self._function.hub.running(l2=self._function.l2)

    async def invalidate(self, *args: Any, **kwargs: Any) -> None:
        """Remove the entry of this call everywhere. One round trip."""
        await self._function.invalidate(self._engine(), args, kwargs)

    async def expire(self, *args: Any, **kwargs: Any) -> None:
        """Make the entry of this call stale: still there for when the load fails or is slow. One round trip."""
        await self._function.expire(self._engine(), args, kwargs)

    async def refresh(self, *args: Any, **kwargs: Any) -> Any:
        """Load this call anew, fill both tiers, return the new value. Two round trips."""
        return await self._function.refresh(self._engine(), args, kwargs)

    async def peek(self, *args: Any, **kwargs: Any) -> Any:
        """What this call would answer without a load; `MISSING` if nothing. At most one round trip."""
        return await self._function.peek(self._engine(), args, kwargs)

    async def put(self, value: Any, /, *args: Any, **kwargs: Any) -> None:
        """Store *value* as the answer of this call. One round trip; `CodecError` if it has no bytes."""
        await self._function.put(self._engine(), value, args, kwargs)

    def key(self, *args: Any, **kwargs: Any) -> str:
        """The key text of this call, as `invalidate` and `inspect` of the guard take it."""
        return self._function.text(self._function.values(args, kwargs))

    async def many(self, calls: Iterable[Any]) -> list[Any]:
        """The answers of several calls, in their order; each a tuple of arguments, or the value of the only one."""
        return await self._function.many(self._engine(), calls, MOST_LOADS_OF_MANY)


def _name(fn: Callable[..., Any]) -> str:
    return getattr(fn, "__qualname__", repr(fn))


def _text(value: object, name: str) -> str:
    if not isinstance(value, str) or not value:
        raise KeyTemplateError(f"{name} must be text, got {value!r}")
    return value


def _tags(tags: object) -> Sequence[str]:
    if isinstance(tags, str) or not isinstance(tags, Sequence):
        raise ConfigurationError(f"tags must be a list of texts, got {tags!r}")
    return tags


def _owner(fn: Callable[..., Any], names: Sequence[str]) -> str | None:
    """The class in whose body *fn* was defined as a method, by name; it does not exist yet while it is decorated."""
    scope = _name(fn).rpartition(".")[0]
    if not names or names[0] not in {"self", "cls"} or not scope or scope.endswith("<locals>"):
        return None
    return f"{fn.__module__}.{scope}"
