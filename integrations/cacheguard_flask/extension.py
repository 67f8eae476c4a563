"""`CacheGuardFlask`: one object for any number of apps; what belongs to an app lies with the app."""

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
from .settings import HashMethod, settings_of
from .timeouts import Timeout, ttl_of
from .use import cookies_are_unread
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
        """A method stays one."""
        ...


class MemoizedFunction(CachedFunction[P, R_co], Protocol[P, R_co]):
    """A function decorated with `CacheGuardFlask.memoize`."""

    delete_memoized: Callable[[], None]


class CacheGuardFlask:
    """The extension: ``CacheGuardFlask(app)``, or ``CacheGuardFlask()`` and `init_app` in an application factory.

    One object may serve several apps; which one is meant is known from the application context. An app's settings are
    ``CACHEGUARD_URL`` and, in capitals, every other option of `CacheGuard` and every field of `Policy`
    (``CACHEGUARD_TTL``, ``CACHEGUARD_L1_SIZE``, …), and ``CACHEGUARD_DISABLED``, ``CACHEGUARD_SOURCE_CHECK`` and
    ``CACHEGUARD_HASH_METHOD``. ``CACHEGUARD_NAMESPACE`` is the app's name if left out.

    Args:
        app: an app to begin with; outside of any application context it is the one that is meant.
        with_jinja2_ext: whether templates have the tag ``{% cache %}``.
        config: settings that go over those of any app.

    Raises:
        ConfigurationError: a setting that does not exist or cannot work, by its name.
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
        """Serve *app*, too. Connects to nothing yet.

        Args:
            app: the app.
            config: settings that go over the app's own.

        Raises:
            ConfigurationError: a setting that does not exist or cannot work, or an app that has a cache already.
        """
        if NAME in app.extensions:
            raise ConfigurationError(f"the app {app.name!r} has a CacheGuardFlask already; init_app is called once")
        settings = settings_of({**app.config, **self._config, **(config or {})}, app.name)
        app.extensions[NAME] = AppCache(self, app, settings)
        request_started.connect(cookies_are_unread, app)
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
        """The app's guard. `RuntimeError` where no app is known."""
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
        **policy: Any,
    ) -> Callable[[Callable[P, R]], CachedFunction[P, R]]:
        """Cache what a view answers, or what a function returns.

        One run for all who ask at the same time, in the whole fleet. A page is kept apart by scheme and host; HEAD is
        answered from what GET has stored, other methods are not cached unless named in *methods*.

        Never kept: streams, answers with ``Set-Cookie``, with ``Cache-Control: private`` or ``no-store``, with a
        ``Vary`` that is not in *vary*, of a request that carries ``Authorization`` or whose session or cookies were
        read, and statuses that concern one request. ``abort(404)`` and ``abort(410)`` are kept for ``null_ttl``. A run
        that fails is answered with an older page for ``stale_if_error``. Why a view is not cached is logged, once.

        Args:
            timeout: seconds, a `timedelta` or text like ``"5m"``; 0: until it is deleted; None: the app's ``ttl``.
            key_prefix: the key; ``%s`` in it is the request's path. Without ``%s`` the key is the same in all requests.
            unless: asked first (with the function and its arguments, if it takes any); if true, nothing is cached.
            forced_update: if true, what is cached is replaced.
            is_stale: asked with what is cached (and the arguments); if true, it is replaced.
            response_filter: asked with what the function returned; if false, that is not kept.
            query_string: make the query part of the key (True): names in any order, the values of a name in theirs; or
                not (False). None: not, and the answer of a view that has looked at it is not kept.
            hash_method: what digests in the key are made with; None: the app's.
            cache_none: keep None as long as other answers (True), or not at all (False); None: for ``null_ttl``.
            make_cache_key: makes the key from the view's arguments instead.
            source_check: make the function's source part of the key; None: the app's setting.
            response_hit_indication: add the header ``hit_cache: True`` to what comes from the cache.
            tags: templates over the function's parameters, like ``"user:{user_id}"``, for `CacheGuard.invalidate_tags`.
            methods: which methods are cached.
            vary: request headers that are part of the key.
            ignore_credentials: keep answers although session or cookies were read or the request carries
                ``Authorization``: say so if the answer is the same for everybody, or *make_cache_key* tells them apart.
            policy: fields of `Policy` but ``ttl``, such as ``stale_while_revalidate="1m"``.

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
        """Cache what a function returns, ``def`` or ``async def``, by its arguments and their types.

        Values come back as the return annotation says. An object is told apart by what its ``__caching_id__()``
        returns, else by its fields or its ``repr``; one with a default ``repr`` is refused. As the object of a method
        it is told apart all the same, but what is cached for it stays in this process.

        Args:
            timeout: as in `cached`.
            make_name: makes another name of the function's, for the key.
            unless: as in `cached`.
            forced_update: as in `cached`.
            is_stale: as in `cached`.
            response_filter: as in `cached`.
            hash_method: what the digest of *source_check* is made with; None: the app's.
            cache_none: as in `cached`.
            source_check: as in `cached`.
            args_to_ignore: parameters that make no difference.
            tags: as in `cached`.
            policy: as in `cached`.

        Raises:
            ConfigurationError: an option that cannot work.
            KeyTemplateError: a tag that does not fit the function; in a call, an argument that nothing tells apart.
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

    # Deleting what decorators have cached

    def delete_memoized(self, f: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Forget what a memoized function returned. A run that began before fills nothing afterwards. One round trip.

        Args:
            f: the function, or a bound method.
            args: of one call; without any, all calls are meant, or all of the object that the method is bound to.
            kwargs: likewise.

        Raises:
            TypeError: *f* is not memoized.
        """
        memoized_of(f).delete(getattr(f, "__self__", None), args, kwargs)

    def delete_memoized_verhash(self, f: Callable[..., Any], *_args: Any) -> None:
        """`delete_memoized` for all calls; there is no version to be left without one."""
        memoized_of(f).delete(getattr(f, "__self__", None), (), {})

    def delete_cached(
        self,
        f: CachedFunction[..., Any],
        path: str | None = None,
        query_args: QueryArguments | None = None,
        **view_args: Any,
    ) -> None:
        """Forget a page, whatever its host. One round trip.

        Args:
            f: the view.
            path: of the page; else it is built of *view_args*.
            query_args: its query, for views that are cached with ``query_string=True``.
            view_args: the view's arguments.
        """
        self.delete(f.make_cache_key(path=path, query_args=query_args, **view_args))

    def delete_fragment(self, fragment_name: str, *vary_on: object) -> None:
        """Forget a fragment of a template. One round trip."""
        self.guard.invalidate(make_template_fragment_key(fragment_name, vary_on))

    # Keys and values

    def get(self, key: str) -> Any:
        """The value of *key*; None if there is none. At most one round trip."""
        return self.guard.get(key)

    def has(self, key: str) -> bool:
        """Whether there is a value for *key*. At most one round trip."""
        return self.guard.get(key, MISSING) is not MISSING

    def set(self, key: str, value: Any, timeout: Timeout | None = None) -> bool:
        """Store *value*; True. `CodecError` if it has no bytes. One round trip."""
        return bool(self.set_many({key: value}, timeout))

    def add(self, key: str, value: Any, timeout: Timeout | None = None) -> bool:
        """Store *value* if *key* has none; whether it had none. Of several at a time one is told yes."""
        policy: Any = {**ttl_of(timeout), "null_ttl": self._cache().none_ttl(timeout)}
        return self.guard.add(key, value, **policy)

    def delete(self, key: str) -> bool:
        """Forget *key*, and the pages under it; whether there was a value for exactly this key. Two round trips."""
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
        """Store several values; their keys. One round trip."""
        guard = self.guard
        values = {key: value for key, value in mapping.items() if value is not None}
        rules = ttl_of(timeout)
        guard.set_many(values, **rules)
        if len(values) < len(mapping):
            nones = {key: None for key, value in mapping.items() if value is None}
            guard.set_many(nones, null_ttl=self._cache().none_ttl(timeout), **rules)
        return list(mapping)

    def delete_many(self, *keys: str) -> list[str]:
        """Forget *keys*, and the pages under them; the keys. One round trip."""
        self._cache().forget(*keys)
        return list(keys)

    def clear(self) -> bool:
        """Forget all that this app has cached; True. One round trip."""
        self.guard.clear()
        return True
