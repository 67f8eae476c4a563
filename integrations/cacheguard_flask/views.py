"""`cached`: a view, or any function, under a key made of the request."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias, cast
from urllib.parse import parse_qsl, quote

from flask import Flask, has_request_context, request, url_for
from werkzeug.datastructures import MultiDict
from werkzeug.exceptions import HTTPException, ServiceUnavailable
from werkzeug.wrappers import Response

from cacheguard import MISSING, Load, current_load
from cacheguard.errors import ConfigurationError, LoadTimeout, Overloaded
from cacheguard.extending import KeyOwner

from .app_cache import AppCache
from .calls import Common
from .contexts import in_its_context
from .headers import strange, value_of
from .pages import (
    PageTtl,
    is_storable,
    is_stored_page,
    packed,
    packed_absence,
    pages_tag,
    unpacked,
    why_private,
)
from .use import RequestUse, of_no_matter

log: logging.Logger = logging.getLogger("cacheguard")

QueryArguments: TypeAlias = str | Mapping[str, Any] | Iterable[tuple[str, Any]]

FIRST_SERVER_ERROR = 500


class Answer:
    """What the function itself returned or raised in this call, if it ran here."""

    def __init__(self) -> None:
        self.ran = False
        self.value: Any = None
        self.error: HTTPException | None = None

    def given(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.value


class CachedView:
    """What `CacheGuardFlask.cached` knows of one function."""

    def __init__(
        self,
        caches: Callable[[], AppCache],
        common: Common,
        *,
        key_prefix: str | Callable[[], str],
        query_string: bool | None,
        make_cache_key: Callable[..., str] | None,
        response_hit_indication: bool,
        methods: Sequence[str],
        vary: Sequence[str],
        ignore_credentials: bool,
        ignore_headers: bool | Sequence[str],
    ) -> None:
        self._caches, self._common, self._fn = caches, common, common.fn
        self._key_owner = KeyOwner(common.fn)
        self._key_prefix, self._query_string, self._made_by_user = key_prefix, query_string, make_cache_key
        if make_cache_key is not None and not callable(make_cache_key):
            raise ConfigurationError(f"make_cache_key must be a function, got {make_cache_key!r}")
        prefix: Any = key_prefix
        if not callable(prefix) and (not isinstance(prefix, str) or not prefix):
            raise ConfigurationError(f"key_prefix must be a text or a function that makes one, got {key_prefix!r}")
        self._says_hit, self._ignore_credentials = response_hit_indication, ignore_credentials
        self._methods = frozenset(method.upper() for method in _texts("methods", methods))
        self._vary = tuple(sorted(name.lower() for name in _texts("vary", vary)))
        ignored = () if isinstance(ignore_headers, bool) else _texts("ignore_headers", ignore_headers)
        self._ignores_all = ignore_headers is True
        self._named_headers = frozenset({*self._vary, *(name.lower() for name in ignored)})
        self._said: set[str] = set()
        self.wrapper: Any = self._wrapper()

    def _wrapper(self) -> Any:
        @functools.wraps(self._fn)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return self._call(args, kwargs)

        made = cast("Any", wrapper)
        made.uncached = self._fn
        made.cache_timeout = self._common.timeout
        made.make_cache_key = self.make_cache_key
        return made

    # Keys

    def make_cache_key(self, *args: Any, **kwargs: Any) -> str:
        """The key text of a call; outside of a request, of the page at ``path`` with ``query_args``."""
        if self._made_by_user is not None:
            return self._made_by_user(*args, **kwargs)
        path, query_args = kwargs.pop("path", None), kwargs.pop("query_args", None)
        prefix = self._key_prefix
        if callable(prefix):
            key = prefix()
        elif "%s" in prefix:
            key = prefix.replace("%s", path if path is not None else self._path(args, kwargs))
        else:
            key = prefix
        cache = self._caches()
        if self._query_string:
            pairs = list(request.args.items(multi=True)) if query_args is None else _pairs(query_args)
            # The order of parameters does not matter, that of the values of one does.
            in_order = sorted(pairs, key=lambda pair: pair[0])
            key += self._common.digest(cache, repr(in_order).encode("utf-8", "surrogatepass"))
        return key + self._common.source_digest(cache)

    def _path(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        names = self._fn.__code__.co_varnames if hasattr(self._fn, "__code__") else ()
        given = dict(zip(names, args, strict=False)) | kwargs
        if not given and has_request_context():
            return request.path
        return url_for(self._endpoint(self._caches().app), _external=False, **given)

    def _endpoint(self, app: Flask) -> str:
        for name, view in app.view_functions.items():
            if _is_around(view, self.wrapper):
                return name
        return self._fn.__name__

    def _key_of_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        if self.wrapper.make_cache_key != self.make_cache_key:  # replaced by the user
            return _text(self.wrapper.make_cache_key(*args, **kwargs), self._fn)
        if self._made_by_user is None:  # the arguments are in the path
            return _text(self.make_cache_key(path=request.path if has_request_context() else None), self._fn)
        return _text(self._made_by_user(*args, **kwargs), self._fn)

    @property
    def _is_of_request(self) -> bool:
        """Whether the key depends on the request, so that what is cached is a page."""
        constant = isinstance(self._key_prefix, str) and "%s" not in self._key_prefix and not self._query_string
        return not (constant and self._made_by_user is None and self.wrapper.make_cache_key == self.make_cache_key)

    @property
    def _must_not_query(self) -> bool:
        """Whether an answer that depends on the query would be taken for one that does not."""
        return self._query_string is None and not self._has_own_key

    @property
    def _has_own_key(self) -> bool:
        """Whether the user's function makes the key: it knows what the answer depends on."""
        own_key = self._made_by_user is not None or self.wrapper.make_cache_key != self.make_cache_key
        return own_key or not isinstance(self._key_prefix, str)

    def _why_of_request(self, use: RequestUse, *, page: bool) -> str | None:
        """Why the answer may depend on headers or the body of this request, which are not part of the key."""
        if self._ignores_all or self._has_own_key or not has_request_context():
            return None
        names = strange(use.headers_within, before=False, named=self._named_headers)
        if page:
            names += strange(use.headers_before, before=True, named=self._named_headers)
        if names:
            listed = ", ".join(dict.fromkeys(names))
            return (
                f"it looked at the request headers {listed}, which are not part of the key (vary= makes them one, "
                "ignore_headers= says that they make no difference)"
            )
        if use.body and request.method in ("GET", "HEAD"):
            return "it looked at the body of a GET, which is not part of the key (make_cache_key= can make it one)"
        return None

    def _variant(self, method: str) -> str:
        """What tells the pages under one key apart: nobody may choose, by a header, what others get to see."""
        root = quote(f"{request.host}{request.root_path}", safe="[]:/")
        parts = [f"@{request.scheme}://{root}"]
        if method != "GET":
            parts.append(f";{method}")
        parts += [f";{name}={quote(value_of(request, name), safe='')}" for name in self._vary]
        return "".join(parts)

    # Calls

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        cache = self._caches()
        app = cache.app

        def run() -> Any:
            return app.ensure_sync(self._fn)(*args, **kwargs)

        with of_no_matter():
            bypassed = self._common.is_bypassed(args, kwargs)
        if bypassed:
            return run()
        if self._is_of_request and has_request_context():
            return self._page(cache, app, run, args, kwargs)
        return self._through(cache, app, self._key_of_call(args, kwargs), run, args, kwargs)

    def _page(
        self, cache: AppCache, app: Flask, run: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """The answer to the request that is being handled."""
        method = request.method
        reads_only = method == "HEAD" and "HEAD" not in self._methods and "GET" in self._methods
        if not reads_only and method not in self._methods:
            return run()
        if not self._ignore_credentials and "Authorization" in request.headers:
            return run()
        base = self._key_of_call(args, kwargs)
        key = base + self._variant("GET" if reads_only else method)
        if reads_only:
            usable = self._usable(app, args, kwargs)
            found = cache.guard.get(key, MISSING)
            return run() if found is MISSING or (usable is not None and not usable(found)) else self._hit(app, found)
        try:
            return self._through(cache, app, key, run, args, kwargs, page_of=base)
        except (Overloaded, LoadTimeout) as error:
            raise ServiceUnavailable(retry_after=1) from error

    def _through(
        self,
        cache: AppCache,
        app: Flask,
        key: str,
        run: Callable[[], Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        page_of: str | None = None,
    ) -> Any:
        """What is cached under *key*, or what *run* answers."""
        answer, page, caller = Answer(), page_of is not None, threading.get_ident()
        self._key_owner.claim(cache.guard, key)

        def load() -> Any:
            # A load behind must not answer for the caller, who has an older answer, and contexts that are over by then.
            own = answer if threading.get_ident() == caller else Answer()
            return self._load(cache, app, key, run, own, current_load(), page=page)

        if cache.passes.has(key):
            self._load(cache, app, key, run, answer, Load(), page=page)
            return answer.given()
        tags = self._common.tags.of(args, kwargs)
        stored = cache.guard.get_or_set(
            key,
            in_its_context(app, load, as_request=page),
            tags=tags if page_of is None else (pages_tag(page_of), *tags),
            usable=self._usable(app, args, kwargs),
            returns=None if page or _returns_pages(self._fn) else self._fn,
            **self._rules(cache, page=page),
        )
        if answer.ran:
            return answer.given()
        return self._hit(app, stored) if page else unpacked(app, stored)

    def _load(
        self, cache: AppCache, app: Flask, key: str, run: Callable[[], Any], answer: Answer, load: Load, *, page: bool
    ) -> Any:
        """Run the function, and say what may become of its answer."""
        error: HTTPException | None = None
        value: Any = None
        with RequestUse() as use:
            try:
                value = run()
            except HTTPException as raised:
                if not page or (raised.code is not None and raised.code >= FIRST_SERVER_ERROR):
                    raise  # a load that failed: an older answer may do instead
                error = raised
        if page and issubclass(type(value), tuple) and value and isinstance(value[0], Response):
            value = app.make_response(value)
        answer.ran, answer.value, answer.error = True, value, error
        reason = why_private(
            app,
            value,
            use,
            page=page or isinstance(value, Response),
            varies=frozenset(self._vary),
            ignore_credentials=self._ignore_credentials,
        )
        if reason is None and page and (use.query_within or use.query_before) and self._must_not_query:
            reason = "it looked at the query, which is not part of the key (query_string=True makes it one)"
        stored = packed_absence(error) if error is not None else None
        if reason is None:
            reason = self._why_of_request(use, page=page)
        if error is not None and stored is None and reason is None:
            reason = f"an error {error.code} may concern this request alone"
        if reason is not None:
            load.private = True
            cache.passes.note(key)
            self._say_once(reason)
            return None
        cache.passes.forget(key)
        judged: Any = value if error is None else error.get_response()
        unwanted = self._common.is_unwanted(judged)
        if unwanted or not is_storable(app, value, page=page) or (error is not None and cache.null_ttl is None):
            load.cacheable = False
        return packed(value) if error is None else stored

    def _hit(self, app: Flask, stored: Any) -> Any:
        value = unpacked(app, stored)
        if not self._says_hit:
            return value
        response = app.make_response(value)
        response.headers["hit_cache"] = "True"
        return response

    def _usable(self, app: Flask, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[Any], bool] | None:
        with of_no_matter():
            return self._common.usable(args, kwargs, lambda stored: _shown(app, stored))

    def _rules(self, cache: AppCache, *, page: bool) -> dict[str, Any]:
        rules = self._common.rules(cache, self.wrapper.cache_timeout)
        if page:
            rules["ttl"] = PageTtl(rules.get("ttl", cache.ttl), cache.null_ttl)
        return rules

    def _say_once(self, reason: str) -> None:
        if reason not in self._said:
            self._said.add(reason)
            log.warning("%s is not cached: %s", self._fn.__qualname__, reason)


def _shown(app: Flask, stored: Any) -> Any:
    """What was cached, as the user's ``is_stale`` takes it: a page as a response."""
    if not is_stored_page(stored):
        return stored
    try:
        return unpacked(app, stored)
    except HTTPException as error:
        return error.get_response()


def _returns_pages(fn: Callable[..., Any]) -> bool:
    """Whether *fn* says that it returns responses; what is stored of them is of another type.

    By name, since the annotation may be text that nothing resolves.
    """
    return "Response" in str(getattr(fn, "__annotations__", {}).get("return", ""))


def _is_around(view: Any, wrapper: Any) -> bool:
    while view is not None:
        if view is wrapper:
            return True
        view = getattr(view, "__wrapped__", None)
    return False


def _pairs(query_args: QueryArguments) -> list[tuple[str, str]]:
    if isinstance(query_args, str):
        return parse_qsl(query_args.removeprefix("?"), keep_blank_values=True)
    given: Any = query_args
    items: Iterable[tuple[str, Any]] = given
    if issubclass(type(given), MultiDict):
        items = given.items(multi=True)
    elif issubclass(type(given), Mapping):
        items = given.items()
    return [(key, str(value)) for key, value in items]


def _texts(name: str, values: Any) -> Sequence[str]:
    if isinstance(values, str) or not all(isinstance(each, str) for each in values):
        raise ConfigurationError(f"{name} must be a list of texts, got {values!r}")
    return [*values]


def _text(key: object, fn: Callable[..., Any]) -> str:
    if not isinstance(key, str):
        raise TypeError(f"the key of {fn.__qualname__} must be text, got {key!r}")
    return key
