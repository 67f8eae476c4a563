"""`CacheGuardFlask`: one object for any number of apps. The state of an app is stored in the app."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, Protocol, TypeVar

from flask import Flask, current_app, has_app_context, request_started

from cacheguard import MISSING, CacheGuard
from cacheguard.errors import ConfigurationError

from .app_cache import NAME, AppCache
from .calls import Common
from .commands import commands
from .fragments import FragmentExtension, make_template_fragment_key
from .memoized import Memoized, memoized_of
from .settings import HashMethod, say_what_is_ignored, settings_of
from .timeouts import Timeout, ttl_of_call
from .use import nothing_is_read
from .views import CachedView, QueryArguments

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class CachedFunction(Protocol[P, R_co]):
    """A function decorated with `CacheGuardFlask.cached`."""

    cache_timeout: Timeout | None
    make_cache_key: Callable[..., str]

    @property
    def uncached(self) -> Callable[P, R_co]:
        """The function itself."""
        ...

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Answer from the cache, or run."""
        ...

    def __get__(self, instance: Any, owner: type | None = None, /) -> Any:
        """Bind a method to its object."""
        ...


class MemoizedFunction(CachedFunction[P, R_co], Protocol[P, R_co]):
    """A function decorated with `CacheGuardFlask.memoize`."""

    delete_memoized: Callable[[], None]


class CacheGuardFlask:
    """The extension: ``CacheGuardFlask(app)``, or ``CacheGuardFlask()`` and `init_app` in an application factory.

    One object may serve several apps; the application context selects the app. The settings of an app are
    ``CACHEGUARD_URL`` and, in capitals, every other option of `CacheGuard` and every field of `Policy`
    (``CACHEGUARD_TTL``, ``CACHEGUARD_L1_SIZE``, …), and ``CACHEGUARD_DISABLED``, ``CACHEGUARD_SOURCE_CHECK`` and
    ``CACHEGUARD_HASH_METHOD``. The default of ``CACHEGUARD_NAMESPACE`` is the app's name.

    Args:
        app: the first app; it is used outside of any application context.
        with_jinja2_ext: True: templates get the tag ``{% cache %}``.
        config: settings that override those of every app.

    Raises:
        ConfigurationError: a setting does not exist or cannot work; the message names it.
    """

    def __init__(
        self, app: Flask | None = None, *, with_jinja2_ext: bool = True, config: Mapping[str, Any] | None = None
    ) -> None:
        self._with_jinja2_ext, self._config = with_jinja2_ext, dict(config or {})
        self._first: weakref.ref[Flask] | None = None
        if app is not None:
            self.init_app(app)
            self._first = weakref.ref(app)

    def init_app(self, app: Flask, config: Mapping[str, Any] | None = None) -> None:
        """Set up the cache of *app*. Opens no connection yet.

        Args:
            app: the app.
            config: settings that override the app's own.

        Raises:
            ConfigurationError: a setting does not exist or cannot work, or the app already has a cache.
        """
        if NAME in app.extensions:
            raise ConfigurationError(f"the app {app.name!r} has a CacheGuardFlask already; init_app is called once")
        config = {**app.config, **self._config, **(config or {})}
        settings = settings_of(config, app.name)
        if "cache" not in app.extensions:  # Flask-Caching is not in use beside this
            say_what_is_ignored(config)
        app.extensions[NAME] = AppCache(self, app, settings)
        request_started.connect(nothing_is_read, app)
        app.cli.add_command(commands)
        if self._with_jinja2_ext:
            app.jinja_env.add_extension(FragmentExtension)

    # What belongs to the app

    def _cache(self) -> AppCache:
        app = self._meant()
        cache: AppCache | None = app.extensions.get(NAME)
        if cache is None or cache.extension is not self:
            raise RuntimeError(f"the app {app.name!r} is not one of this CacheGuardFlask's: call init_app(app) first")
        return cache

    def _meant(self) -> Flask:
        if has_app_context():
            proxy: Any = current_app
            app: Flask = proxy._get_current_object()  # noqa: SLF001 - the documented way out of a werkzeug proxy
            return app
        first = None if self._first is None else self._first()
        if first is None:
            raise RuntimeError(
                "which app's cache is meant is known in an application context only: use `with app.app_context():`, "
                f"or app.extensions[{NAME!r}].guard"
            )
        return first

    @property
    def guard(self) -> CacheGuard:
        """The guard of the current app. `RuntimeError` if there is no application context and no first app."""
        return self._cache().guard

    # Decorators

    def cached(  # noqa: PLR0917 - in the order of Flask-Caching
        self,
        timeout: Timeout | None = None,
        key_prefix: str | Callable[[], str] = "view/%s",
        unless: Callable[..., object] | None = None,
        forced_update: Callable[..., object] | None = None,
        is_stale: Callable[..., object] | None = None,
        response_filter: Callable[[Any], object] | None = None,
        query_string: bool | None = None,  # noqa: FBT001 - positional in Flask-Caching
        hash_method: HashMethod | None = None,
        cache_none: bool | None = None,  # noqa: FBT001 - as above
        make_cache_key: Callable[..., str] | None = None,
        source_check: bool | None = None,  # noqa: FBT001 - as above
        response_hit_indication: bool = False,  # noqa: FBT001, FBT002 - as above
        *,
        tags: Sequence[str] = (),
        methods: Sequence[str] = ("GET",),
        vary: Sequence[str] = (),
        ignore_credentials: bool = False,
        ignore_headers: bool | Sequence[str] = False,
        **policy: Any,
    ) -> Callable[[Callable[P, R]], CachedFunction[P, R]]:
        """Cache the answers of a view, or the results of a function.

        Concurrent requests for one key share one run, across all processes. Pages of different schemes and hosts are
        separate. HEAD is answered from the page of GET; other methods are only cached if *methods* names them.

        Never cached: streams; answers with ``Set-Cookie``, with ``Cache-Control: private`` or ``no-store``, or with a
        ``Vary`` that is not in *vary*; answers to requests with ``Authorization``, or whose session or cookies were
        read; answers for which other headers or the body of a GET were read; statuses that concern one request.
        ``abort(404)`` and ``abort(410)`` are cached for ``null_ttl``. If a run fails, a stale page is served for
        ``stale_if_error``. The reason why a view is not cached is logged once.

        Args:
            timeout: seconds, a `timedelta` or text like ``"5m"``; 0: until it is deleted; None: the app's ``ttl``.
            key_prefix: the key; ``%s`` in it is the request's path. Without ``%s`` the key is the same in all requests.
            unless: called first (with the function and its arguments, if it takes any); if true, the cache is bypassed.
            forced_update: if true, the cached answer is replaced.
            is_stale: called with the cached answer (and the arguments); if true, the answer is replaced.
            response_filter: called with the result of the function; if false, the result is not cached.
            query_string: True: the query is part of the key; the order of names does not matter, the order of the
                values of one name does. False: it is not. None: it is not, and if the view reads it, nothing is cached.
            hash_method: makes the digests in the key; None: the app's.
            cache_none: True: cache None as long as other answers; False: not at all; None: for ``null_ttl``.
            make_cache_key: makes the key from the view's arguments instead.
            source_check: make the function's source part of the key; None: the app's setting.
            response_hit_indication: add the header ``hit_cache: True`` to answers from the cache.
            tags: templates over the function's parameters, like ``"user:{user_id}"``, for `CacheGuard.invalidate_tags`.
            methods: the methods that are cached.
            vary: request headers that are part of the key.
            ignore_credentials: cache answers even if session or cookies were read or the request has
                ``Authorization``. Only if all users get the same answer, or *make_cache_key* separates them.
            ignore_headers: request headers that make no difference, although the view reads them; True: all, and the
                body of a GET.
            policy: fields of `Policy` except ``ttl``, such as ``stale_while_revalidate="1m"``.

        Raises:
            ConfigurationError: an option that cannot work.
            KeyTemplateError: a tag that does not fit the function.
        """

        def decorate(fn: Callable[P, R]) -> CachedFunction[P, R]:
            common = Common(
                fn,
                timeout=timeout,
                unless=unless,
                forced_update=forced_update,
                is_stale=is_stale,
                response_filter=response_filter,
                hash_method=hash_method,
                cache_none=cache_none,
                source_check=source_check,
                tags=tags,
                policy=policy,
            )
            view = CachedView(
                self._cache,
                common,
                key_prefix=key_prefix,
                query_string=query_string,
                make_cache_key=make_cache_key,
                response_hit_indication=response_hit_indication,
                methods=methods,
                vary=vary,
                ignore_credentials=ignore_credentials,
                ignore_headers=ignore_headers,
            )
            wrapper: CachedFunction[P, R] = view.wrapper
            return wrapper

        return decorate

    def memoize(  # noqa: PLR0917 - in the order of Flask-Caching
        self,
        timeout: Timeout | None = None,
        make_name: Callable[[str], str] | None = None,
        unless: Callable[..., object] | None = None,
        forced_update: Callable[..., object] | None = None,
        is_stale: Callable[..., object] | None = None,
        response_filter: Callable[[Any], object] | None = None,
        hash_method: HashMethod | None = None,
        cache_none: bool | None = None,  # noqa: FBT001 - positional in Flask-Caching
        source_check: bool | None = None,  # noqa: FBT001 - as above
        args_to_ignore: Sequence[str] | None = None,
        *,
        tags: Sequence[str] = (),
        **policy: Any,
    ) -> Callable[[Callable[P, R]], MemoizedFunction[P, R]]:
        """Cache the results of a function, ``def`` or ``async def``, by its arguments and their types.

        Values have the type of the return annotation. An object is identified by its ``__caching_id__()``, else by its
        fields or its ``repr``; an object with a default ``repr`` is refused. Exception: the object of a method may have
        a default ``repr``, but then its results are only cached in this process.

        Args:
            timeout: as in `cached`.
            make_name: makes the name used in the key from the function's name.
            unless: as in `cached`.
            forced_update: as in `cached`.
            is_stale: as in `cached`.
            response_filter: as in `cached`.
            hash_method: makes the digest of *source_check*; None: the app's.
            cache_none: as in `cached`.
            source_check: as in `cached`.
            args_to_ignore: parameters that are not part of the key.
            tags: as in `cached`.
            policy: as in `cached`.

        Raises:
            ConfigurationError: an option that cannot work.
            KeyTemplateError: a tag that does not fit the function; in a call, an argument that cannot be identified.
        """

        def decorate(fn: Callable[P, R]) -> MemoizedFunction[P, R]:
            common = Common(
                fn,
                timeout=timeout,
                unless=unless,
                forced_update=forced_update,
                is_stale=is_stale,
                response_filter=response_filter,
                hash_method=hash_method,
                cache_none=cache_none,
                source_check=source_check,
                tags=tags,
                policy=policy,
            )
            memoized = Memoized(self._cache, common, make_name=make_name, args_to_ignore=args_to_ignore)
            wrapper: MemoizedFunction[P, R] = memoized.wrapper
            return wrapper

        return decorate

    # Deleting results of decorated functions

    def delete_memoized(self, f: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Delete cached results of a memoized function. A run that began earlier is not cached. One round trip.

        Args:
            f: the function, or a bound method.
            args: of one call; without any: all calls, or all calls on the object that the method is bound to.
            kwargs: likewise.

        Raises:
            TypeError: *f* is not memoized.
        """
        memoized_of(f).delete(getattr(f, "__self__", None), args, kwargs)

    def delete_memoized_verhash(self, f: Callable[..., Any], *_args: Any) -> None:
        """Call `delete_memoized` for all calls. For Flask-Caching; this package keeps no version hash."""
        memoized_of(f).delete(getattr(f, "__self__", None), (), {})

    def delete_cached(
        self,
        f: Callable[..., Any],
        path: str | None = None,
        query_args: QueryArguments | None = None,
        **view_args: Any,
    ) -> None:
        """Delete a page, for all hosts. One round trip.

        Args:
            f: the view.
            path: of the page; if left out, it is built from *view_args*.
            query_args: its query, for views that are cached with ``query_string=True``.
            view_args: the view's arguments.
        """
        view: Any = f
        self.delete(view.make_cache_key(path=path, query_args=query_args, **view_args))

    def delete_fragment(self, fragment_name: str, *vary_on: object) -> None:
        """Delete a fragment of a template. One round trip."""
        self.guard.invalidate(make_template_fragment_key(fragment_name, vary_on))

    # Keys and values

    def get(self, key: str) -> Any:
        """The value of *key*; None if there is none. At most one round trip."""
        return self.guard.get(key)

    def has(self, key: str) -> bool:
        """True if there is a value for *key*. At most one round trip."""
        return self.guard.get(key, MISSING) is not MISSING

    def set(self, key: str, value: Any, timeout: Timeout | None = None) -> bool:
        """Store *value*; return True. `CodecError` if it cannot be stored. One round trip."""
        return bool(self.set_many({key: value}, timeout))

    def add(self, key: str, value: Any, timeout: Timeout | None = None) -> bool:
        """Store *value* only if *key* has none; True if stored. Of several concurrent calls, one returns True."""
        policy: Any = {**ttl_of_call(timeout), "null_ttl": self._cache().none_ttl(timeout)}
        return self.guard.add(key, value, **policy)

    def delete(self, key: str) -> bool:
        """Delete *key* and the pages under it; True if exactly this key had a value. Two round trips."""
        there = self.has(key)
        self._cache().forget(key)
        return there

    def get_many(self, *keys: str) -> list[Any]:
        """The values of *keys*, None for those without. At most one round trip."""
        return list(self.get_dict(*keys).values())

    def get_dict(self, *keys: str) -> dict[str, Any]:
        """The values of *keys* by key, None for those without. At most one round trip."""
        found = self.guard.get_many(keys)
        return {key: found.get(key) for key in keys}

    def set_many(self, mapping: Mapping[str, Any], timeout: Timeout | None = None) -> list[str]:
        """Store several values; return their keys. One round trip."""
        guard = self.guard
        values = {key: value for key, value in mapping.items() if value is not None}
        rules = ttl_of_call(timeout)
        guard.set_many(values, **rules)
        if len(values) < len(mapping):
            nones = {key: None for key, value in mapping.items() if value is None}
            guard.set_many(nones, null_ttl=self._cache().none_ttl(timeout), **rules)
        return list(mapping)

    def delete_many(self, *keys: str) -> list[str]:
        """Delete *keys* and the pages under them; return the keys. One round trip."""
        self._cache().forget(*keys)
        return list(keys)

    def clear(self) -> bool:
        """Delete everything that this app has cached; return True. One round trip."""
        self.guard.clear()
        return True
