"""Guarded writes to the database: no tier keeps a value that a write has made outdated."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial, wraps
from inspect import isasyncgen, isawaitable, isgenerator
from itertools import chain
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeAlias, TypeVar, get_args

from ..checks import check_tag, is_coroutine_function, is_generator_function, texts
from ..defenses.consistency import Version, version_text
from ..delivery.outbox import Invalidation
from ..durations import Duration, seconds
from ..errors import ConfigurationError, KeyTemplateError
from ..keys import Binder, TextTemplate, signature_of
from ..protocol.entry import ms
from ..protocol.names import Scope
from ..runtime import run_now
from ..runtime.blocks import OpenBlocks

if TYPE_CHECKING:
    from ..engine.reading import Engine
    from ..engine.writes import Writes
    from ..ports import Signal, Watch
    from ..process.hub import Hub

Mode: TypeAlias = Literal["fence", "delete", "double"]
OfResult: TypeAlias = Callable[[Any], str | Iterable[str]]
P = ParamSpec("P")
R = TypeVar("R")

INTENT = "10s"
DELAY = "1s"
LONGEST_SETTLE = 86_400.0
LONGEST_RENEWAL = 5.0  # seconds that a write waits for the end of its last renewal


class WriteTerms:
    """The options of a guarded write, checked.

    Args:
        settle: how far the database that loaders read may lag behind (the lag window); None: it does not lag.
        delay: the delay of ``mode="double"``.
        intent: how long a fence stands if its process dies; a living process renews it.
    """

    __slots__ = ("intent_ms", "lag_ms", "mode")

    def __init__(self, mode: Mode, settle: Duration | None, delay: Duration, intent: Duration) -> None:
        if mode not in get_args(Mode):
            raise ConfigurationError(f"mode must be 'fence', 'delete' or 'double', got {mode!r}")
        self.mode = mode
        # The second delete of "double" is a state in Redis, not a timer that dies with its process: values cached
        # during the delay expire when it ends.
        lag = max(settle_seconds(settle), settle_seconds(delay) if mode == "double" else 0.0)
        self.lag_ms: int = ms(lag) if lag else 0
        self.intent_ms: int = ms(seconds(intent, "intent"))


def settle_seconds(settle: Duration | None) -> float:
    """Return *settle* in seconds, 0 for None; `ConfigurationError` if it is not a duration, or longer than a day."""
    if settle is None:
        return 0.0
    lag = seconds(settle, "settle")
    if lag > LONGEST_SETTLE:
        raise ConfigurationError(f"settle must be at most a day, got {settle!r}")
    return lag


class Write:
    """One running write; ``with guard.writing(…) as write`` yields it.

    `also` and `version` may be used until the block ends, for rows that are known only inside the transaction.
    """

    def __init__(self, scope: Scope, keys: Iterable[str], tags: Iterable[str], version: Version | None) -> None:
        self._scope = scope
        self._names: dict[str, None] = {}
        self._token, self._process = "", 0
        self._fenced: frozenset[str] = frozenset()
        self._watch: Watch | None = None
        self._over = False
        self._renewing: Signal | None = None
        self.version = version
        self.also(*keys, tags=tags)

    @property
    def version(self) -> Version | None:
        """The source version of the rows after the write; setting an invalid one raises `TypeError` or `ValueError`."""
        return self._version

    @version.setter
    def version(self, version: Version | None) -> None:
        self._text = version_text(version)
        self._version = version

    def also(self, *keys: str, tags: Iterable[str] = ()) -> None:
        """Invalidate these keys and tags as well when the block ends. No round trip here.

        They have no fence, as with ``mode="delete"``: fences begin with the block.
        """
        self._names.update(dict.fromkeys(names_of(self._scope, keys, tags)))

    async def begin(self, writes: Writes, engine: Engine, terms: WriteTerms) -> None:
        """Begin the write: raise the fence, or invalidate. One round trip, none for ``mode="delete"``.

        If Redis is unreachable, the write continues: this is counted, and the invalidation is pending.
        """
        if terms.mode == "delete" or not self._names:
            return
        if terms.mode == "fence":
            self._token, self._process = engine.runtime.token(), os.getpid()
            self._fenced = frozenset(self._names)
        await writes.write(engine, self._begun(terms), quietly=True)
        if self._fenced:
            self._watch = engine.runtime.watch(
                lambda: self._renew(writes, engine, terms), terms.intent_ms / 3000, _never, None
            )

    async def _renew(self, writes: Writes, engine: Engine, terms: WriteTerms) -> None:
        """Renew the fence; never after the end of the write, or the fence would outlive it."""
        done = self._renewing = engine.runtime.signal()
        try:
            if not self._over:  # read after the signal is set, so that `end` waits or this sees `_over`
                await writes.write(engine, self._begun(terms), quietly=True)
        finally:
            done.set()

    def _begun(self, terms: WriteTerms) -> list[Invalidation]:
        # A tag is not fenced: no entry with the tag could be cached meanwhile, and that may be every entry.
        return [
            Invalidation(name, begins=self._token, intent_ms=terms.intent_ms)
            if self._fenced and not self._scope.is_tag(name)
            else Invalidation(name)
            for name in self._names
        ]

    async def end(self, writes: Writes, engine: Engine, terms: WriteTerms, *, quietly: bool) -> None:
        """Invalidate and end the fence. One round trip for any number of keys and tags.

        A process that was forked inside the block leaves the fence to its parent, which is still writing.
        """
        self._over = True
        token = self._token if self._process == os.getpid() else ""
        if self._watch is not None:
            self._watch.stop()
        if self._renewing is not None:
            await self._renewing.wait(LONGEST_RENEWAL)
        items = [
            Invalidation(
                name,
                lag_ms=terms.lag_ms,
                version="" if self._scope.is_tag(name) else self._text,
                ends=token if name in self._fenced and not self._scope.is_tag(name) else "",
            )
            for name in self._names
        ]
        await writes.write(engine, items, quietly=quietly)


async def _never() -> None:
    """Do nothing: the library sets no deadline for a write."""


def names_of(scope: Scope, keys: Iterable[str], tags: Iterable[str]) -> list[str]:
    """Return the Redis keys of entries and of the markers of tags; `TypeError` for what is not text."""
    return list(dict.fromkeys(_names(scope, *_checked(keys, tags))))


def _checked(keys: Iterable[str], tags: Iterable[str]) -> tuple[Iterable[str], Iterable[str]]:
    """Return *keys* and *tags* without duplicates; `TypeError` for what is not text."""
    if isinstance(keys, str) or isinstance(tags, str):
        raise TypeError(
            f"keys and tags must be several texts, got the text {keys if isinstance(keys, str) else tags!r}"
        )
    tags = list(tags)
    for tag in tags:
        check_tag(tag)
    return texts(keys), dict.fromkeys(tags)


def _names(scope: Scope, keys: Iterable[str], tags: Iterable[str]) -> Iterator[str]:
    return chain(map(scope.key, keys), map(scope.tag, tags))


def named(
    scope: Scope, keys: Iterable[str], tags: Iterable[str], version: Version | None, settle: Duration | None
) -> Iterator[Invalidation]:
    """Return the invalidations for *keys* and *tags*, which are checked now; each is made when it is asked for."""
    of_source, lag_ms = version_text(version), round(settle_seconds(settle) * 1000)
    return (Invalidation(name, lag_ms, of_source) for name in _names(scope, *_checked(keys, tags)))


class Writing:
    """Guards the writes inside ``with`` or ``async with``; `CacheGuard.writing` makes it.

    Its keys and tags are invalidated when the block ends, also after an exception or a cancellation: the outcome of the
    write may be unknown. Blocks may be nested, and one object may be entered again.
    """

    def __init__(
        self,
        hub: Hub,
        scope: Scope,
        keys: Sequence[str],
        tags: Sequence[str],
        version: Version | None,
        terms: WriteTerms,
    ) -> None:
        names_of(scope, keys, tags)  # bad arguments raise here, not inside the transaction
        version_text(version)
        self._hub, self._writes, self._scope, self._terms = hub, hub.writes, scope, terms
        self._keys, self._tags, self._version = tuple(keys), tuple(tags), version
        self._open = OpenBlocks[Write]()

    def _entered(self) -> Write:
        write = Write(self._scope, self._keys, self._tags, self._version)
        self._open.enter(write)
        return write

    def __enter__(self) -> Write:
        write = self._entered()
        try:
            run_now(write.begin(self._writes, self._hub.blocking(), self._terms))
        except BaseException:
            self._leave_at_once()
            raise
        return write

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # An exception of the block matters more than `Unreachable`, so it is not replaced.
        work = self._open.leave().end(self._writes, self._hub.blocking(), self._terms, quietly=error is not None)
        run_now(work)

    async def __aenter__(self) -> Write:
        write = self._entered()
        engine = self._hub.running()
        try:
            await write.begin(self._writes, engine, self._terms)
        except BaseException:  # cancelled: the block is not entered, so nothing else ends the write
            await engine.runtime.through(self._open.leave().end(self._writes, engine, self._terms, quietly=True))
            raise
        return write

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        engine = self._hub.running()
        work = self._open.leave().end(self._writes, engine, self._terms, quietly=error is not None)
        await engine.runtime.through(work)

    def _leave_at_once(self) -> None:
        run_now(self._open.leave().end(self._writes, self._hub.blocking(), self._terms, quietly=True))


class WriterTemplates:
    """The keys and tags that a writing function invalidates, from its arguments and its result.

    Args:
        fn: the function.
        keys: templates over its parameters and over ``result``, or functions of the result.
        tags: the same for tags.
        version: a function of the result, or None.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        keys: Sequence[str | OfResult],
        tags: Sequence[str | OfResult],
        version: Callable[[Any], Version | None] | None,
    ) -> None:
        if is_generator_function(fn):
            raise ConfigurationError(f"{_name(fn)} is a generator: use `with guard.writing(…)` inside it")
        if version is not None and not callable(version):
            raise ConfigurationError(f"version must be a function of the result, got {version!r}")
        self._binder = Binder(fn)
        self._version = version
        self._keys, self._result_keys = _sorted(fn, keys, "keys")
        self._tags, self._result_tags = _sorted(fn, tags, "tags")
        makers = [*self._keys, *self._tags, *self._result_keys, *self._result_tags]
        fields = {field for each in makers if isinstance(each, TextTemplate) for field in each.fields}
        self._needed = fields & {*self._binder.names}

    def before(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[dict[str, Any], list[str], list[str]]:
        """Return the arguments by name, and the keys and tags that depend only on them."""
        values = self._binder.values(args, kwargs, self._needed)
        return values, [key.text(values) for key in self._keys], [tag.text(values) for tag in self._tags]

    def after(self, write: Write, values: dict[str, Any], result: Any) -> None:
        """Add the keys, tags and version that depend on the result to *write*."""
        values = {**values, "result": result}
        write.also(*_texts(self._result_keys, values, result), tags=_texts(self._result_tags, values, result))
        if self._version is not None:
            write.version = self._version(result)


def _sorted(
    fn: Callable[..., Any], templates: Sequence[str | OfResult], name: str
) -> tuple[list[TextTemplate], list[TextTemplate | OfResult]]:
    """Split *templates* into those over the arguments and those that need the result."""
    if isinstance(templates, str):
        raise ConfigurationError(f"{name} must be a list of templates, got the text {templates!r}")
    early: list[TextTemplate] = []
    late: list[TextTemplate | OfResult] = []
    for each in templates:
        if not isinstance(each, str):
            if not callable(each):
                raise KeyTemplateError(f"{name} must be templates or functions of the result, got {each!r}")
            late.append(each)
            continue
        template = TextTemplate(each, fn, more=("result",))
        known = "result" in template.fields and "result" not in signature_of(fn).parameters
        (late if known else early).append(template)
    return early, late


def _texts(makers: Iterable[TextTemplate | OfResult], values: dict[str, Any], result: Any) -> list[str]:
    texts: list[str] = []
    for maker in makers:
        if isinstance(maker, TextTemplate):
            texts.append(maker.text(values))
            continue
        made = maker(result)
        texts += [made] if isinstance(made, str) else made
    return texts


def decorate_writes(
    open_write: Callable[[list[str], list[str]], Any],
    keys: Sequence[str | OfResult],
    tags: Sequence[str | OfResult],
    version: Callable[[Any], Version | None] | None,
    *,
    called: str,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a decorator that runs each call of a function inside the block that *open_write* returns.

    Args:
        open_write: takes the keys and tags that depend on the arguments; returns a block like `Writing`.
        keys: templates over the parameters and over ``result``, or functions of the result.
        tags: the same for tags.
        version: a function of the result, or None.
        called: the name of the decorator in messages.
    """
    if not keys and not tags:
        raise ConfigurationError(f"invalidates needs keys or tags: @{called}('user:{{user_id}}')")

    def decorate(fn: Any) -> Any:
        if type(fn) in (staticmethod, classmethod):
            return type(fn)(decorate(fn.__func__))
        if not callable(fn):
            raise ConfigurationError(f"only functions can be decorated, got {fn!r}")
        return _guarded(fn, WriterTemplates(fn, keys, tags, version), open_write)

    return decorate


def _guarded(fn: Callable[..., Any], templates: WriterTemplates, open_write: Callable[..., Any]) -> Any:
    """Return *fn* wrapped in a guarded write."""

    async def finished(work: Callable[[], Any], values: dict[str, Any], keys: list[str], tags: list[str]) -> Any:
        async with open_write(keys, tags) as write:
            result = await work()
            templates.after(write, values, result)
        return result

    if is_coroutine_function(fn):

        @wraps(fn)
        async def waiting(*args: Any, **kwargs: Any) -> Any:
            values, keys, tags = templates.before(args, kwargs)
            return await finished(partial(fn, *args, **kwargs), values, keys, tags)

        return waiting

    @wraps(fn)
    def blocking(*args: Any, **kwargs: Any) -> Any:
        values, keys, tags = templates.before(args, kwargs)
        with open_write(keys, tags) as write:
            result = fn(*args, **kwargs)
            if not _is_awaited(fn, result):
                templates.after(write, values, result)
                return result
        # A plain function that returns a coroutine: it has not begun, and runs in a block of its own.
        return finished(lambda: result, values, keys, tags)

    return blocking


def _is_awaited(fn: Callable[..., Any], result: Any) -> bool:
    """Return True if *result*, which *fn* has returned, must be awaited; `TypeError` if its work would go on."""
    if isawaitable(result):
        if not hasattr(result, "add_done_callback"):
            return True
        # A task or a future: its work may have begun, and it may end when nobody waits for it.
        cancel = getattr(result, "cancel", None)
        if cancel is not None:
            cancel()
    elif not (isasyncgen(result) or isgenerator(result)):
        return False
    raise TypeError(
        f"{_name(fn)} returned a {type(result).__name__}, whose work would go on after the invalidation: "
        "decorate an `async def` that awaits it, or return a list instead of a generator"
    )


def _name(fn: Callable[..., Any]) -> str:
    return getattr(fn, "__qualname__", repr(fn))
